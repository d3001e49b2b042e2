"""Checkpoints on disk: shards, names, older configs, dummies, and what is said when something does not fit."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from framework.config import ModelConfig
from framework.models.decoder import Decoder
from framework.models.hub import resolve_model
from framework.models.parallel import Parallel, Ranks
from framework.models.parts import Part, all_parts
from framework.models.read import read_model
from framework.models.rope import read_rope
from framework.models.tower import tower_bytes
from framework.models.weights import Checkpoint

from ...models.examples.states import EXAMPLES as STATES
from .checkpoints import EXAMPLES, SIZES, make
from .harness import build, error, model_config, prompt_batch, reference, sequences, teacher_forced

CONF = Path(__file__).parents[3] / "conf" / "model"
DUMMY = {**SIZES, "model_type": "llama", "dtype": "bfloat16"}


def first_logits(config: ModelConfig, **options: Any) -> torch.Tensor:
    return teacher_forced(build(config, **options), sequences((12,)), None, num_decodes=2)[0]


def edit(folder: Path, **changes: Any) -> dict[str, Any]:
    """Changes config.json; None removes a field."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return config


def rename(folder: Path, old: str, new: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    renamed = {(new + name.removeprefix(old) if name.startswith(old) else name): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors")


@pytest.mark.parametrize("name", ["qwen3", "qwen3-moe"])
def test_sharded_checkpoints(name: str, tmp_path: Path) -> None:
    theirs = make(EXAMPLES[name], tmp_path, shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) >= 3
    logits = first_logits(model_config(tmp_path, EXAMPLES[name]))
    assert error(logits, reference(theirs, sequences((12,))[0])) <= 1e-4


def test_bfloat16_loses_no_more_than_the_library(tmp_path: Path) -> None:
    theirs = make(EXAMPLES["llama"], tmp_path)
    tokens = sequences((48, 40, 30))
    exact = torch.cat([reference(theirs, row) for row in tokens])
    theirs.bfloat16()
    rounded = torch.cat([reference(theirs, row) for row in tokens]).float()
    model = build(ModelConfig(str(tmp_path), dtype="bfloat16"))
    ours = torch.cat(teacher_forced(model, tokens, None, num_decodes=4))
    assert model.dtype == torch.bfloat16
    assert 0 < (ours - exact).norm() <= 1.2 * (rounded - exact).norm()


def test_experts_of_a_layer_in_one_tensor(tmp_path: Path) -> None:
    """As Qwen publishes those that the library saves one by one."""
    theirs = make(STATES["qwen3.5-moe"], tmp_path)
    single = load_file(tmp_path / "model.safetensors")
    held = {name: tensor for name, tensor in single.items() if ".mlp.experts." not in name}
    held |= {name: tensor.contiguous() for name, tensor in theirs.state_dict().items() if ".mlp.experts." in name}
    assert any(name.endswith(".0.gate_proj.weight") for name in single) and len(held) < len(single)
    save_file(held, tmp_path / "model.safetensors")
    logits = first_logits(model_config(tmp_path, STATES["qwen3.5-moe"]))
    assert error(logits, reference(theirs, sequences((12,))[0])) <= 1e-4


def test_names_of_bare_and_nested_checkpoints(tmp_path: Path) -> None:
    for example, old, new in (("gpt2", "transformer.", ""), ("gemma3", "model.", "language_model.model."), ("opt", "model.", "")):
        folder = tmp_path / example
        theirs = make(EXAMPLES[example], folder)
        rename(folder, old, new)
        logits = first_logits(model_config(folder, EXAMPLES[example]))
        assert error(logits, reference(theirs, sequences((12,))[0])) <= 1e-4


def test_the_text_part_of_a_larger_model(tmp_path: Path) -> None:
    theirs = make(EXAMPLES["gemma3"], tmp_path)
    rename(tmp_path, "model.", "language_model.model.")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "vision_tower.patch.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    assert error(first_logits(model_config(tmp_path, EXAMPLES["gemma3"])), reference(theirs, sequences((12,))[0])) <= 1e-4


LLAMA3 = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("llama-3.1", {"rope_theta": 10000.0, "rope_scaling": LLAMA3}),
        ("gemma3", {"rope_theta": 10000.0, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ("gpt-neox", {"rotary_emb_base": 10000, "rotary_pct": 0.5}),
    ],
)
def test_older_configs(name: str, older: dict[str, Any], tmp_path: Path) -> None:
    theirs = make(EXAMPLES[name], tmp_path)
    edit(tmp_path, rope_parameters=None, **older)
    assert error(first_logits(model_config(tmp_path, EXAMPLES[name])), reference(theirs, sequences((12,))[0])) <= 1e-4


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_frequencies_of_real_sizes(kind: str) -> None:
    parameters = {
        "rope_type": kind,
        "rope_theta": 500000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    config = transformers.LlamaConfig(head_dim=128, max_position_embeddings=65536, rope_parameters=dict(parameters))
    expected, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    rope = read_rope({"rope_parameters": parameters, "max_position_embeddings": 65536}, 128, "full_attention")
    ours, our_factor = rope.inverse_frequencies(65536)
    torch.testing.assert_close(torch.tensor(ours), expected, rtol=1e-6, atol=0)
    assert our_factor == pytest.approx(factor)


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    make(EXAMPLES["mistral"], tmp_path)
    rename(tmp_path, "model.layers.1.mlp.up_proj", "model.layers.1.mlp.upward")
    with pytest.raises(ValueError, match=r"missing tensors: model.layers.1.mlp.up_proj.weight; .*place in .*upward.weight"):
        build(ModelConfig(str(tmp_path)))


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    make(EXAMPLES["mistral"], tmp_path)
    with pytest.raises(ValueError, match=r"has shape \(96, 64\), but config.json asks for \(80, 64\)"):
        build(ModelConfig(str(tmp_path), architecture={"intermediate_size": 80}))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("../elsewhere.safetensors", "lies outside the folder"),
        ("/elsewhere.safetensors", "lies outside the folder"),
        ("absent.safetensors", r"absent\.safetensors is missing, which model\.safetensors\.index\.json names"),
        ("none.safetensors", r"none\.safetensors has no tensor .*, though the index says so"),
    ],
)
def test_an_index_leads_to_files_of_its_folder(file: str, reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make(EXAMPLES["llama"], folder)
    where = dict.fromkeys(load_file(folder / "model.safetensors"), file)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    save_file({"other": torch.zeros(1)}, folder / "none.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(ValueError, match=reason):
        build(model_config(folder, EXAMPLES["llama"]))


def test_tensors_that_are_there_twice_are_named(tmp_path: Path) -> None:
    """Names with and without the prefix of the larger model are the same tensor."""
    make(EXAMPLES["llama"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"norm.weight": torch.ones(64)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight twice: as (model\.)?norm\.weight and as (model\.)?norm\.weight"):
        build(model_config(tmp_path, EXAMPLES["llama"]))


def test_dummy_weights_depend_on_the_seed_only() -> None:
    config = ModelConfig("none", load_format="dummy", architecture=DUMMY)
    first, again, other = (first_logits(config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert torch.isfinite(first).all() and float(first.std()) > 0.1


def test_dummy_models_of_every_family_run() -> None:
    for name, example in EXAMPLES.items():
        hf = example.library_config()
        config = ModelConfig("none", load_format="dummy", architecture={**hf.to_dict(), "dtype": "float32"})
        assert torch.isfinite(first_logits(config)).all(), name


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3-8b", 8.03),
        ("llama-3-70b", 70.55),
        ("llama-3.2-1b", 1.236),
        ("mixtral-8x7b", 46.70),
        ("qwen3-0.6b", 0.596),
        ("qwen3-30b-a3b", 30.53),
        ("gemma-2-9b", 9.24),
        ("phi-3-mini", 3.82),
        ("gpt2", 0.1244),
        ("cogvlm-chat", 17.64),
        ("internvl2-8b", 8.08),
        ("phi-3-vision", 4.15),
    ],
)
def test_shapes_of_known_models(name: str, billions: float) -> None:
    fields = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    config = ModelConfig(**{**fields, "load_format": "dummy", "dtype": "float16"})
    info = read_model(config)
    assert info.architecture is not None
    tower = 0 if info.vision is None else tower_bytes(config, info) // 2
    assert (sum(math.prod(part.shape) for part in all_parts(info.architecture)) + tower) / 1e9 == pytest.approx(billions, rel=2e-3)


def test_every_model_config_is_readable() -> None:
    for path in CONF.glob("*.yaml"):
        fields = yaml.safe_load(path.read_text())
        info = read_model(ModelConfig(**{**fields, "load_format": "dummy"}))
        assert info.pooling or ((info.architecture or info.diffusion) and info.eos_token_ids), path.name


def test_packed_weights_are_not_kept_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(EXAMPLES["mistral"], tmp_path)
    originals = []
    read = Checkpoint.weight

    def spy(self: Checkpoint, part: Part) -> torch.Tensor:
        weight = read(self, part)
        if "proj" in part.sources[0]:
            originals.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(Checkpoint, "weight", spy)
    model = build(ModelConfig(str(tmp_path)), {"linear": "onednn"})
    assert len(originals) == 4 * len(model.cache_specs()) and all(ref() is None for ref in originals)


def test_lengths_beyond_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match="max_model_len=97 is more than the 96 positions"):
        read_model(ModelConfig("none", load_format="dummy", architecture=DUMMY, max_model_len=97))
    assert read_model(ModelConfig("none", load_format="dummy", architecture=DUMMY, max_model_len=50)).max_model_len == 50


def test_end_of_sequence_comes_from_the_generation_config(tmp_path: Path) -> None:
    make(EXAMPLES["mistral"], tmp_path)
    edit(tmp_path, eos_token_id=5)
    (tmp_path / "generation_config.json").unlink()
    assert read_model(ModelConfig(str(tmp_path))).eos_token_ids == (5,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert read_model(ModelConfig(str(tmp_path))).eos_token_ids == (7, 8)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null}')
    assert read_model(ModelConfig(str(tmp_path))).eos_token_ids == (5,)


def test_names_resolve_to_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resolve_model("tiny") / "config.json").is_file()
    with pytest.raises(ValueError, match=r"has no config.json"):
        resolve_model(str(tmp_path))
    cached = tmp_path / "cached"
    make(EXAMPLES["mistral"], cached)
    asked = []

    def download(name: str, *, local_files_only: bool, **options: Any) -> str:
        asked.append((name, options["revision"], local_files_only))
        if name == "some/model":
            return str(cached)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_model("some/model", "v1") == cached and asked == [("some/model", "v1", True)]
    with pytest.raises(ValueError, match=r"'other/model' \(revision v2\) was not found(.|\n)*hub: OSError: no network"):
        resolve_model("other/model", "v2")


def test_parts_of_ranks_cover_everything_once() -> None:
    for total in (7, 8, 32):
        parts = [Ranks(rank, 3).part(total) for rank in range(3)]
        assert [i for part in parts for i in part] == list(range(total))


@torch.inference_mode()
def test_layers_can_be_cut(tmp_path: Path) -> None:
    """Two stages that exchange (hidden, residual) compute what the whole model does."""
    make(EXAMPLES["qwen3"], tmp_path)
    config = model_config(tmp_path, EXAMPLES["qwen3"])
    whole = build(config)
    stages = [stage for rank in range(2) if isinstance(stage := build(config, parallel=Parallel(pp=Ranks(rank, 2))), Decoder)]
    assert [len(stage.layers) for stage in stages] == [2, 1]
    batch = prompt_batch(whole, 9)
    expected = whole.logits(whole.forward(batch))
    first, second = replace(batch, caches=batch.caches), replace(batch, caches={0: batch.caches[2]})
    state = stages[0].run_layers(stages[0].embed(batch.token_ids, batch.positions), None, first)
    state = stages[1].run_layers(*state, second)
    torch.testing.assert_close(stages[1].logits(stages[1].finish(*state)), expected)
