"""Logits of models with adapters in their slots: those of the models that peft merges, whatever else is in the batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.config import LoraConfig, ModelConfig, QuantConfig
from framework.models.architecture import Architecture
from framework.models.lora.adapter import adaptable_parts
from framework.models.lora.peft import read_adapter
from framework.models.parallel import Parallel, Ranks
from framework.models.protocol import Model
from framework.models.quantization.canonical import dequantized
from framework.models.quantization.table import read_scheme
from framework.models.read import read_model
from framework.models.weights import Checkpoint
from triton_kernels.group import ThreadGroup

from ....models.examples import EXAMPLES
from ....thread_ranks import run_ranks
from ..checkpoints import make
from ..harness import CPU, build, error, model_config, reference, sequences, teacher_forced

pytest.importorskip("peft")
from .adapters import linear_modules, write_adapter

FAMILIES = [name for name, one in EXAMPLES.items() if one.oracle is None]
RANKS = (1, 8, 16, 64)
LENGTHS = (21, 17, 30, 19)
SLOTS = [2, -1, 0, 2]
LIMIT = 1e-5
"""Of the largest difference over the largest logit."""


def with_adapters(config: ModelConfig, folders: dict[int, Path], **more: Any) -> Model:
    """folders: by slot."""
    model, a = build(config, lora=LoraConfig(enabled=True, max_loras=3, max_rank=64), **more), architecture(config)
    assert model.lora is not None
    for slot, folder in folders.items():
        adapter = read_adapter(folder, adaptable_parts(a), a.family, 64, torch.float32, Path(config.name))
        model.lora.add(adapter)
        model.lora.load(slot, adapter.key)
        model.lora.drop(adapter.key)
    return model


def calm(name: str, folder: Path) -> Any:
    """An example whose activations do not amplify float32's rounding: with the weights of ``make`` a merged model and the same in
    float64 lie up to 4e-5 apart."""
    model = make(EXAMPLES[name], folder)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1 and not any(part in path for part in ("embed", "wte", "wpe", "lm_head")):
                parameter.mul_(0.1 if name == "dbrx" else 0.5)
    model.save_pretrained(folder)
    return model


def lengths_of(name: str) -> tuple[int, ...]:
    """Scaling that depends on a sequence's length is fixed for the longest one here."""
    kind = EXAMPLES[name].config.get("rope_parameters", {}).get("rope_type")
    return {"dynamic": (80,) * 4, "longrope": (48,) * 4}.get(kind, LENGTHS)


def architecture(config: ModelConfig) -> Architecture:
    found = read_model(config).architecture
    assert found is not None
    return found


def double(model: Any) -> Any:
    """The oracle."""
    model.config._experts_implementation = "eager"  # another has no float64
    return model.double()


def write(model: Any, folder: Path, rank: int, targets: list[str], **more: Any) -> Any:
    """The merged model, in float64."""
    return double(write_adapter(model, folder, rank, targets, lora_alpha=1.25 * rank, **more))


def check_against(merged: dict[int, Any], found: list[torch.Tensor], sent: list[list[int]]) -> None:
    for slot, logits, tokens in zip(SLOTS, found, sent, strict=True):
        expected = reference(merged[slot], tokens)
        assert error(logits, expected) <= LIMIT
        assert slot < 0 or error(logits, reference(merged[-1], tokens)) > 100 * LIMIT, "the adapter changes nothing"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_what_peft_merges(name: str, tmp_path: Path) -> None:
    base = calm(name, tmp_path / "base")
    rank, targets = RANKS[FAMILIES.index(name) % 4], linear_modules(base)
    folders = {slot: tmp_path / f"adapter {slot}" for slot in (0, 2)}
    merged = {-1: double(copy.deepcopy(base)), 0: write(base, folders[0], rank, targets, seed=1)}
    merged[2] = write(base, folders[2], 5, targets[::2], seed=2, use_rslora=True)
    config, sent = model_config(tmp_path / "base", EXAMPLES[name]), sequences(lengths_of(name))
    model = with_adapters(config, folders)
    found, plain = teacher_forced(model, sent, 8, 3, SLOTS), teacher_forced(build(config), sent, 8, 3)
    check_against(merged, found, sent)
    if all(layer.moe is None for layer in architecture(config).layers):  # whose products depend on who else has an expert
        assert torch.equal(found[1], plain[1]), "a row without an adapter has other bits"
    assert all(map(torch.equal, teacher_forced(model, sent, 8, 3), plain)), "a batch without adapters has other bits"


def test_embedding_and_logits(tmp_path: Path) -> None:
    base = calm("llama", tmp_path / "base")
    folders = {slot: tmp_path / f"adapter {slot}" for slot in (0, 2)}
    merged = {-1: double(copy.deepcopy(base)), 0: write(base, folders[0], 8, ["embed_tokens", "lm_head", "v_proj"], seed=1)}
    merged[2] = write(base, folders[2], 3, ["embed_tokens"], seed=2)
    config, sent = model_config(tmp_path / "base", EXAMPLES["llama"]), sequences(LENGTHS)
    check_against(merged, teacher_forced(with_adapters(config, folders), sent, 8, 3, SLOTS), sent)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt-neox"])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_have_their_share_of_adapters(name: str, size: int, tmp_path: Path) -> None:
    base = calm(name, tmp_path / "base")
    targets = linear_modules(base) + (["embed_tokens", "lm_head"] if name == "llama" else [])
    folders = {slot: tmp_path / f"adapter {slot}" for slot in (0, 2)}
    merged = {-1: double(copy.deepcopy(base))} | {
        slot: write(base, folders[slot], 8 + slot, targets, seed=slot) for slot in folders
    }
    config, sent = model_config(tmp_path / "base", EXAMPLES[name]), sequences(lengths_of(name))

    def on_rank(group: ThreadGroup) -> list[torch.Tensor]:
        parallel = Parallel(tp=Ranks(group.rank, size, group))
        return teacher_forced(with_adapters(config, folders, parallel=parallel), sent, 8, 3, SLOTS)

    for found in run_ranks(size, on_rank):
        check_against(merged, found, sent)


@pytest.mark.parametrize("scheme", ["rtn-int4", "int8-weight"])
def test_adapters_of_quantized_weights(scheme: str, tmp_path: Path) -> None:
    """They add to the numbers that the weights stand for."""
    base, quant = calm("llama", tmp_path / "base"), QuantConfig(scheme, group_size=16)
    config, sent = model_config(tmp_path / "base", EXAMPLES["llama"]), sequences(LENGTHS)
    a, weights = architecture(config), base.state_dict()
    checkpoint = Checkpoint(tmp_path / "base", a.family, CPU, torch.float32, read_scheme(None, quant))
    for name, part in adaptable_parts(a).items():
        if name.startswith("layers."):
            rows = torch.cat([dequantized(loaded) for loaded in checkpoint.load(part)])
            for source, values in zip(part.sources, rows.split(part.rows), strict=True):
                weights[f"{source}.weight"].copy_(values)
    folders = {slot: tmp_path / f"adapter {slot}" for slot in (0, 2)}
    merged = {-1: double(copy.deepcopy(base))}
    merged |= {slot: write(base, folders[slot], 8 + slot, linear_modules(base), seed=slot) for slot in folders}
    model = with_adapters(config, folders, quant=quant)
    found, plain = teacher_forced(model, sent, 8, 3, SLOTS), teacher_forced(build(config, quant=quant), sent, 8, 3)
    check_against(merged, found, sent)
    assert torch.equal(found[1], plain[1])


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_quantized_activations_below_adapters(scheme: str, tmp_path: Path) -> None:
    """Adapters read what norms give, which therefore do not quantize it themselves."""
    base, folders = calm("llama", tmp_path / "base"), {0: tmp_path / "first", 2: tmp_path / "second"}
    config, sent = model_config(tmp_path / "base", EXAMPLES["llama"]), sequences(LENGTHS)
    merged = {-1: base} | {
        slot: write_adapter(base, folders[slot], 8, linear_modules(base), slot, lora_alpha=8) for slot in folders
    }
    model = with_adapters(config, folders, quant=QuantConfig(scheme))
    found = teacher_forced(model, sent, 8, 3, SLOTS)
    plain = teacher_forced(build(config, quant=QuantConfig(scheme, fuse=False)), sent, 8, 3)
    assert torch.equal(found[1], plain[1])
    for slot, logits, tokens in zip(SLOTS, found, sent, strict=True):
        assert slot < 0 or 3 * error(logits, reference(merged[slot], tokens)) < error(logits, reference(base, tokens))
