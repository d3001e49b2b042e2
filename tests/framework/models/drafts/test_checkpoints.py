"""Drafting heads that do not fit are refused before a weight is read; those that ship with the package fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from framework.config import ModelConfig
from framework.models.drafts.load import read_head
from framework.models.hub import resolve_head
from framework.models.load import load_model
from framework.models.parallel import Parallel
from framework.models.read import read_model
from framework.models.weights import Checkpoint
from framework.plan import KernelPlan

from ..harness import BLOCK, CPU
from .layouts import AUX, Made, make, make_target, mtp_shapes
from .plain import VOCAB, H, PlainMtp, random_tensors

Tensors = dict[str, Tensor]


def edit(made: Made, change: Callable[[Tensors], Any] = lambda tensors: None, **config: Any) -> None:
    """Changes tensors and config.json of a head."""
    path = made.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    tensors = load_file(made.folder / "model.safetensors")
    change(tensors)
    save_file(tensors, made.folder / "model.safetensors")


def cut(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: tensors[name][..., :-8].clone()})


def beyond(tensors: Tensors) -> None:
    tensors["d2t"][-1] = VOCAB


def without_d2t(tensors: Tensors) -> None:
    del tensors["d2t"]


REFUSED: dict[str, tuple[str, Callable[[Tensors], Any], dict[str, Any], str]] = {
    "shape": ("eagle3", cut("midlayer.self_attn.q_proj.weight"), {}, "midlayer.self_attn.q_proj.weight has shape"),
    "missing": ("eagle3", lambda t: t.pop("norm.weight"), {}, "missing tensors: model.norm.weight"),
    "unknown": ("mtp", lambda t: t.update({"mtp.gate.weight": torch.ones(2, 2)}), {}, "without a place in it: model.layers.0.gate"),
    "d2t beyond": ("eagle3", beyond, {}, f"beyond {VOCAB}"),
    "d2t missing": ("eagle3", without_d2t, {}, "d2t is missing"),
    "d2t shape": ("eagle3", cut("d2t"), {}, "d2t has shape"),
    "vocabulary": ("eagle3", lambda t: None, {"vocab_size": VOCAB + 1}, f"has {VOCAB}: take a head of this target"),
    "vocabulary of mtp": ("mtp", lambda t: None, {"vocab_size": VOCAB + 1}, f"has {VOCAB}: take a head of this target"),
    "width": ("eagle3", lambda t: None, {"target_hidden_size": 2 * H}, f"states of width {2 * H}"),
    "width of mtp": ("mtp", lambda t: None, {"hidden_size": 2 * H}, f"states of width {2 * H}"),
    "layers collapse": ("eagle3", lambda t: None, {"eagle_config": {}}, r"before layers \[2, 3\] are 2 x"),
    "layer beyond": (
        "eagle3",
        lambda t: None,
        {"eagle_config": {**AUX, "eagle_aux_hidden_state_layer_ids": [1, 3, 6]}},
        "of a target of 6 layers",
    ),
    "layers twice": (
        "eagle3",
        lambda t: None,
        {"eagle_config": {**AUX, "eagle_aux_hidden_state_layer_ids": [1, 1, 1]}},
        "must be a list of layers, each once",
    ),
    "one layer, no list": (
        "eagle3",
        lambda t: None,
        {"eagle_config": {**AUX, "eagle_aux_hidden_state_layer_ids": 5}},
        "must be a list of layers, each once",
    ),
    "layers without number": ("eagle3", lambda t: None, {"num_hidden_layers": 10**7}, "10000000 layers: expected 1 to 1000"),
    "layers of text": ("eagle3", lambda t: None, {"num_hidden_layers": "1"}, "asks for '1' layers: expected 1 to 1000"),
    "quantized": ("eagle3", lambda t: None, {"quantization_config": {"quant_method": "fp8"}}, "is quantized"),
    "family": ("eagle3", lambda t: None, {"model_type": "opt", "ffn_dim": 8}, "layers like Llama's"),
    "latents": ("eagle3", lambda t: None, {"model_type": "minicpm3"}, "layers like Llama's"),
    "latent attention": (
        "mtp",
        lambda t: t.update({"mtp.layers.0.self_attn.kv_a_proj_with_mqa.weight": torch.ones(2, 2)}),
        {},
        "multi-head latent attention, which is not served yet",
    ),
    "gated attention": ("mtp", lambda t: None, {"model_type": "qwen3_next"}, "gated attention, which is not served yet"),
    "no layer described": ("speculators", lambda t: None, {"transformer_layer_config": {}}, "names no model_type"),
    "nothing described": ("mtp", lambda t: None, {"model_type": None}, "names no model_type"),
    "type of no name": ("mtp", lambda t: None, {"model_type": [1]}, "names no model_type"),
    "settings in a list": ("eagle3", lambda t: None, {"eagle_config": [1]}, r"eagle_config=\[1\]: expected an object"),
    "layer in a list": ("speculators", lambda t: None, {"transformer_layer_config": [1]}, r"transformer_layer_config=\[1\]"),
    "length of text": ("eagle3", lambda t: None, {"max_position_embeddings": "8"}, "max_position_embeddings='8', expected a pos"),
    "no length": ("mtp", lambda t: None, {"max_position_embeddings": 0}, "max_position_embeddings=0, expected a positive"),
    "negative base": ("eagle3", lambda t: None, {"rope_theta": -1}, "rope_theta=-1, expected a positive number"),
    "base of text": (
        "eagle3",
        lambda t: None,
        {"rope_theta": None, "rope_parameters": {"rope_theta": "x"}},
        "rope_theta='x', expected a positive number",
    ),
    "scaling by text": ("mtp", lambda t: None, {"rope_scaling": {"rope_type": "linear", "factor": "8"}}, "factor='8', expected"),
    "scaling in a list": ("eagle3", lambda t: None, {"rope_scaling": [1]}, r"rope_scaling=\[1\], expected an object"),
    "eps of text": ("eagle3", lambda t: None, {"rms_norm_eps": "x"}, "rms_norm_eps='x', expected a positive number"),
    "kinds of layers in numbers": ("eagle3", lambda t: None, {"layer_types": [[1]]}, "layer_types=.*expected a list of names"),
    "activation in a list": ("eagle3", lambda t: None, {"hidden_act": [1]}, r"hidden_act=\[1\], expected a name"),
    "another kind": ("speculators", lambda t: None, {"speculators_model_type": "eagle"}, "kind 'eagle', not eagle3"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_heads_that_do_not_fit(reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change, config, message = REFUSED[reason]
    made = make(name, tmp_path)
    edit(made, change, **config)
    monkeypatch.setattr(Checkpoint, "weight", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(ValueError, match=message):
        read_head(made.method, made.folder, made.info)


def test_a_model_without_prediction_modules(tmp_path: Path) -> None:
    make_target(tmp_path)
    with pytest.raises(ValueError, match="has no multi-token prediction module"):
        read_head("mtp", tmp_path, read_model(ModelConfig(str(tmp_path))))


def test_a_target_that_does_not_run_natively(tmp_path: Path) -> None:
    made = make("mtp", tmp_path)
    info = read_model(ModelConfig(str(made.target), backend="transformers"))
    with pytest.raises(ValueError, match="needs a target that runs natively"):
        read_head("mtp", made.folder, info)


def test_a_prediction_module_inside_the_checkpoint_of_its_model(tmp_path: Path) -> None:
    """The model is loaded without it, and the head from the same folder."""
    target = make_target(tmp_path)
    save_file({**target, **random_tensors(mtp_shapes(PlainMtp))}, tmp_path / "model.safetensors")
    config = ModelConfig(str(tmp_path))
    info = read_model(config)
    load_model(config, info, KernelPlan({}, [], CPU, torch.float32), CPU, Parallel(), BLOCK)
    assert read_head("mtp", tmp_path, info).most is None


def test_code_in_a_file_of_torch_is_not_run(tmp_path: Path) -> None:
    made = make("eagle1", tmp_path)
    torch.save({"fc.weight": Path("x")}, made.folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        read_head("eagle", made.folder, made.info)


@pytest.mark.parametrize("found", [{5: torch.ones(2)}, {"a": torch.eye(2).to_sparse()}, {"a": torch.ones(2, device="meta")}])
def test_what_is_no_dense_tensor_by_name_is_refused(found: dict[Any, Tensor], tmp_path: Path) -> None:
    made = make("eagle1", tmp_path)
    (made.folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(found, made.folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="dense tensors by name are expected"):
        read_head("eagle", made.folder, made.info)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    made = make("eagle3", tmp_path)
    (made.folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights of a drafting head"):
        read_head("eagle3", made.folder, made.info)


def test_a_head_may_be_cached_as_a_file_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("eagle1", tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, local_files_only, **_: cached(made, local_files_only))
    assert resolve_head("some/head") == made.folder
    (made.folder / "pytorch_model.bin").rename(made.folder / "notes.txt")
    with pytest.raises(ValueError, match="'some/head' was not found"):
        resolve_head("some/head")


def cached(made: Made, local_files_only: bool) -> str:
    if not local_files_only:
        raise OSError("no network")
    return str(made.folder)


@pytest.mark.parametrize("method", ["medusa", "eagle3", "mtp"])
def test_the_shipped_heads_fit_tiny(method: str) -> None:
    info = read_head(method, resolve_head(f"tiny-{method}"), read_model(ModelConfig("tiny")))
    assert info.most == (4 if method == "medusa" else None)
    assert info.aux_layers == ((1, 3, 5) if method == "eagle3" else ())
    assert info.model.max_model_len == 2048


def test_more_medusa_heads_than_there_are(tmp_path: Path) -> None:
    shutil.copytree(resolve_head("tiny-medusa"), tmp_path / "head")
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    (tmp_path / "head" / "config.json").write_text(json.dumps({**config, "num_heads": 5}))
    with pytest.raises(ValueError, match=r"missing tensors: blocks\.4\.layers\.0\.weight"):
        read_head("medusa", tmp_path / "head", read_model(ModelConfig("tiny")))
