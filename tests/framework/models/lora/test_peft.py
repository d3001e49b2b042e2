"""Adapters written by peft, as they are read: added to the base weights they make the weights that peft merges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.config import ModelConfig
from framework.models.lora.adapter import Adapter, adaptable_parts
from framework.models.lora.peft import read_adapter
from framework.models.quantization.unquantized import Unquantized
from framework.models.read import ModelInfo, read_model
from framework.models.weights import Checkpoint

from ....models.examples import EXAMPLES
from ..checkpoints import make

pytest.importorskip("peft")
from .adapters import linear_modules, write_adapter

FAMILIES = {name: one for name, one in EXAMPLES.items() if one.oracle is None}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
Made = tuple[Path, Any, ModelInfo]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    made: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = make(EXAMPLES[name], folder)
            made[name] = folder, model, read_model(ModelConfig(str(folder)))
        return made[name]

    return get


def read(folder: Path, made: Made, max_rank: int = 64, targets: list[str] | None = None) -> Adapter:
    architecture = made[2].architecture
    assert architecture is not None
    parts = adaptable_parts(architecture, targets)
    return read_adapter(folder, parts, architecture.family, max_rank, torch.float32, made[0])


def weight(folder: Path, info: ModelInfo, name: str) -> np.ndarray:
    """Of a part, as the model stacks it."""
    assert info.architecture is not None
    checkpoint = Checkpoint(folder, info.architecture.family, torch.device("cpu"), torch.float32, Unquantized())
    return checkpoint.weight(adaptable_parts(info.architecture)[name]).double().numpy()


def delta(adapter: Adapter, name: str, info: ModelInfo) -> np.ndarray:
    """float64, of the rows that the part stacks."""
    assert info.architecture is not None
    part = adaptable_parts(info.architecture)[name]
    rows = []
    for count, one in zip(part.rows, adapter.parts[name], strict=True):
        if one is None:
            rows.append(np.zeros((count, part.columns or 0)))
        else:
            a, b = one.a.double().numpy(), one.b.double().numpy()
            product = b @ (one.scale.double().numpy()[:, None] * a)
            rows.append(product.T if name == "embed" else product)
    return np.concatenate(rows)


def check(adapter: Adapter, made: Made, merged: Any, folder: Path) -> None:
    merged.save_pretrained(folder)
    base, _, info = made
    for name in adapter.parts:
        ours = weight(base, info, name) + delta(adapter, name, info)
        theirs = weight(folder, info, name)
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max(), name
        assert np.abs(theirs - weight(base, info, name)).max() > 1e-2 * np.abs(theirs).max(), name


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, models: Callable[[str], Made], tmp_path: Path) -> None:
    made = models(name)
    rank = (1, 8, 16, 64)[list(FAMILIES).index(name) % 4]
    targets = linear_modules(made[1])
    merged = write_adapter(made[1], tmp_path / "adapter", rank, targets)
    adapter = read(tmp_path / "adapter", made)
    assert adapter.rank == rank
    assert sum(one is not None for part in adapter.parts.values() for one in part) == len(targets)
    check(adapter, made, merged, tmp_path / "merged")


@pytest.mark.parametrize(
    ("name", "targets", "fields"),
    [
        ("llama", "all-linear", {"use_rslora": True}),
        ("llama", ATTENTION, {"rank_pattern": {"k_proj": 3, r".*\.1\.self_attn\.o_proj": 5}, "alpha_pattern": {"q_proj": 40}}),
        ("llama", ["q_proj"], {"rank_pattern": {"layers.2.self_attn.q_proj": 2}, "use_rslora": True}),
        ("llama", ["q_proj", "v_proj"], {"layers_to_transform": [0, 2]}),
        ("llama", ["up_proj"], {"layers_to_transform": 1, "layers_pattern": "layers"}),
        ("llama", r".*layers\.[01]\.(mlp\.down_proj|self_attn\.k_proj)", {}),
        ("llama", ["mlp.gate_proj", "model.layers.0.self_attn.v_proj"], {}),
        ("llama", ATTENTION, {"exclude_modules": ["k_proj"]}),
        ("llama", ["embed_tokens", "lm_head", "q_proj"], {}),
        ("llama", ["lm_head"], {}),
        ("gpt2", ["c_attn", "c_proj"], {"fan_in_fan_out": True}),
        ("gpt-neox", "all-linear", {}),
        ("phi3", ["qkv_proj", "gate_up_proj"], {}),
    ],
)
def test_what_a_config_can_say(
    name: str, targets: list[str] | str, fields: dict[str, Any], models: Callable[[str], Made], tmp_path: Path
) -> None:
    made = models(name)
    merged = write_adapter(made[1], tmp_path / "adapter", 8, targets, **fields)
    adapter = read(tmp_path / "adapter", made)
    check(adapter, made, merged, tmp_path / "merged")


def test_logits_of_a_tied_model_are_no_embedding(models: Callable[[str], Made], tmp_path: Path) -> None:
    made = models("qwen3")
    write_adapter(made[1], tmp_path, 4, ["lm_head"], save={"save_embedding_layers": False})
    assert list(read(tmp_path, made).parts) == ["lm_head"]


def test_embeddings_beside_an_adapter_are_the_models_own(models: Callable[[str], Made], tmp_path: Path) -> None:
    made = models("llama")
    write_adapter(made[1], tmp_path, 4, ["embed_tokens"])
    read(tmp_path, made)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    copy = next(name for name in tensors if "base_layer" in name)
    tensors[copy][3] += 1
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"brings a whole model.embed_tokens .*save_embedding_layers=False"):
        read(tmp_path, made)


def test_a_key_is_of_weights_and_config(models: Callable[[str], Made], tmp_path: Path) -> None:
    made = models("llama")
    for name, seed, fields in (("a", 0, {}), ("b", 1, {}), ("c", 0, {"lora_alpha": 13}), ("d", 0, {"lora_dropout": 0.1})):
        write_adapter(made[1], tmp_path / name, 4, ["q_proj"], seed, **fields)
    a, b, c, d = (read(tmp_path / name, made).key for name in "abcd")
    assert len({a, b, c}) == 3
    assert d == a, "what is of the training alone"


def test_a_file_of_torch_save_is_read(models: Callable[[str], Made], tmp_path: Path) -> None:
    made = models("llama")
    write_adapter(made[1], tmp_path, 4, ["q_proj"])
    key = read(tmp_path, made).key
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    assert read(tmp_path, made).key == key


def changed_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def changed_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj."
EXPERT = "base_model.model.model.layers.0.mlp.experts.3.down_proj.lora_"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"use_dora": True}, r"use_dora=True.*DoRA.*use_dora=False"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\].*train it without"),
        ({"bias": "lora_only"}, r"bias='lora_only'.*bias='none'"),
        ({"lora_bias": True}, r"lora_bias=True"),
        ({"target_parameters": ["experts.down_proj"]}, r"experts.*target_modules alone"),
        ({"peft_type": "LOHA"}, r"peft_type='LOHA'.*only LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, r"pissa.*path_initial_model_for_weight_conversion"),
        ({"arrow_config": {"top_k": 3}}, r"arrow_config=.*does not know"),
        ({"r": 17, "rank_pattern": {}}, r"made for another model, or its adapter_config.json.*is \[8, 64\].*need \[17, 64\]"),
        ({"lora_alpha": float("nan")}, r"lora_alpha, alpha_pattern=\[nan\], expected numbers"),
        ({"alpha_pattern": {"q_proj": 10**400}}, r"lora_alpha, alpha_pattern=\[.*, expected numbers"),
        ({"r": "8"}, r"r, rank_pattern=\['8'\], expected positive numbers"),
        ({"target_modules": ["k_proj"]}, r"target_modules=\['k_proj'\], but there are tensors for .*q_proj"),
        ({"target_modules": ["q_proj", "k_proj"]}, r"no tensors for .*k_proj and 2 more: the adapter is not whole"),
        ({"layers_to_transform": [0]}, r"but there are tensors for .*layers.1"),
        ({"rank_pattern": {"(": 4}}, r"no regular expression"),
    ],
)
def test_configs_are_refused(fields: dict[str, Any], told: str, models: Callable[[str], Made], tmp_path: Path) -> None:
    made = models("llama")
    write_adapter(made[1], tmp_path, 8, ["q_proj"])
    changed_config(tmp_path, **fields)
    with pytest.raises(ValueError, match=told):
        read(tmp_path, made)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(FIRST + "lora_B.weight"), r"without their other half.*q_proj.lora_A"),
        (lambda t: t.update({"base_model.model.score.weight": torch.ones(2)}), r"belong to no adapter.*score.weight"),
        (lambda t: t.update({FIRST + "lora_magnitude_vector": torch.ones(64)}), r"DoRA"),
        (lambda t: t.clear(), r"adapts no module at all"),
        (lambda t: t.update({FIRST + "lora_A.default.weight": torch.ones(8, 64)}), r"lora_A.*lora_A.*are the same matrix"),
        (lambda t: t.update({FIRST[17:] + "lora_A.weight": torch.ones(8, 64)}), r"lora_A.*lora_A.*are the same matrix"),
        (lambda t: t[FIRST + "lora_A.weight"].fill_(torch.nan), r"not finite"),
        (lambda t: t.update({EXPERT + "A.weight": torch.ones(8, 4), EXPERT + "B.weight": torch.ones(4, 8)}), r"adapts experts"),
        (
            lambda t: t.update(
                {f"base_model.model.model.layers.7.self_attn.q_proj.lora_{m}.weight": torch.ones(8, 8) for m in "AB"}
            ),
            r"none to adapt by the name of .*layers.7",
        ),
    ],
)
def test_tensors_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], told: str, models: Callable[[str], Made], tmp_path: Path
) -> None:
    made = models("llama")
    write_adapter(made[1], tmp_path, 8, ["q_proj"])
    changed_tensors(tmp_path, change)
    with pytest.raises(ValueError, match=told):
        read(tmp_path, made)


def test_other_refusals(models: Callable[[str], Made], tmp_path: Path) -> None:
    made = models("llama")
    write_adapter(made[1], tmp_path / "a", 8, ["q_proj"], rank_pattern={"layers.1.self_attn.q_proj": 32})
    with pytest.raises(ValueError, match=r"rank 32 at model.layers.1.*more than the 16.*max_lora_rank=32"):
        read(tmp_path / "a", made, 16)
    with pytest.raises(ValueError, match=r"none to adapt by the name of .*q_proj.*for example, model.layers.0.mlp.gate_proj"):
        read(tmp_path / "a", made, targets=["up_proj"])
    with pytest.raises(ValueError, match=r"lora.target_modules=\['c_attn'\] cannot work.*it has down_proj, embed_tokens"):
        read(tmp_path / "a", made, targets=["c_attn"])
    with pytest.raises(ValueError, match=r"does not fit the model"):
        read(tmp_path / "a", models("gpt2"))
    with pytest.raises(ValueError, match=r"made for another model.*is \[64, 8\].*need \[128, 8\]"):
        read(tmp_path / "a", models("qwen3"))
    with pytest.raises(ValueError, match=r"is no folder here"):
        read(tmp_path / "b", made)
    with pytest.raises(ValueError, match=r"is no folder here"):
        read(tmp_path / ("b" * 300), made)
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"has no adapter_config.json.*it is empty"):
        read(tmp_path / "c", made)
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "weights.safetensors")
    with pytest.raises(ValueError, match=r"has neither of adapter_model.safetensors.*weights.safetensors"):
        read(tmp_path / "a", made)
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"missing or not whole"):
        read(tmp_path / "a", made)
