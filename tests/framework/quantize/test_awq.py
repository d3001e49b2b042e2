"""AWQ: scaling alone changes no outputs, and with it rounding costs less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from framework.quantize import awq
from framework.quantize.calibration import draw_samples
from framework.quantize.formats import Grid
from framework.quantize.layerwise import LayerwiseModel
from framework.quantize.source import Source

from .small_models import DENSE, UNSCALED_NORMS, make_model, quant

CPU = torch.device("cpu")


class Unrounded:
    """In the place of a quantized weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight.clone()

    def dequantize(self) -> torch.Tensor:
        return self._weight


@torch.inference_mode()
@pytest.mark.parametrize("name", sorted({*DENSE, *UNSCALED_NORMS}))
def test_scaling_alone_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(name, tmp_path / "model")
    source = Source(str(tmp_path / "model"))
    model = LayerwiseModel(source, draw_samples(source.folder, quant("awq-int4"), 0), CPU)
    layer, before = model.layer(0), model.hidden.clone()
    layer.advance()
    expected = model.hidden.clone()
    weights = {n: p.clone() for n, p in layer.module.named_parameters()}

    monkeypatch.setattr(awq, "_clipped", lambda weight, *_: weight)
    given = torch.linspace(0.5, 2.0, 1024)
    monkeypatch.setattr(Grid, "nearest", lambda grid, weight: Unrounded(weight))
    monkeypatch.setattr(awq, "_best_scales", lambda w, s, producer, *_: given[: len(producer.pooled(s.magnitude))].clone())
    model.hidden.copy_(before)
    # Norms may be stored in bfloat16: the weights make up for how they are rounded. Biases are just rounded.
    stored = torch.float32 if any(n.endswith("bias") for n in weights) else torch.bfloat16
    awq.quantize_layer(layer, source.architecture, 0, Grid(32, False), stored)
    layer.advance()
    changed = [n for n, p in layer.module.named_parameters() if not torch.equal(p, weights[n])]
    torch.testing.assert_close(model.hidden, expected, rtol=1e-3, atol=1e-3)
    assert any("norm" in n for n in changed) == (name not in UNSCALED_NORMS)
    kept = name == "olmo"  # whose values are clipped
    assert any(part in n for n in changed for part in ("v_proj", "qkv", "query_key_value")) != kept


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_error_of_a_layer_is_smaller_than_by_rounding(name: str, tmp_path: Path) -> None:
    """Whose inputs differ in size, as those of trained models do."""
    model = make_model(name, tmp_path / "model")
    generator = torch.Generator().manual_seed(2)
    for layer in model.get_decoder().layers:
        for norm in (layer.input_layernorm, getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)):
            norm.weight.data = torch.randn(64, generator=generator).mul(1.2).exp() - float(name == "gemma2")
    model.save_pretrained(tmp_path / "model")
    source = Source(str(tmp_path / "model"))
    run = LayerwiseModel(source, draw_samples(source.folder, quant("awq-int4"), 0), CPU)
    before = run.hidden.clone()
    layer = run.layer(0)
    layer.advance()
    expected = run.hidden.clone()
    errors = []
    for scaled in (True, False):
        layer = run.layer(0)
        run.hidden.copy_(before)
        if scaled:
            awq.quantize_layer(layer, source.architecture, 0, Grid(32, False), torch.float32)
        else:
            for part in layer.linears.values():
                for name in part.sources:
                    weight = layer.submodule(name).weight.data
                    weight.copy_(Grid(32, False).nearest(weight).dequantize())
        layer.advance()
        errors.append(float((run.hidden - expected).square().mean()))
    assert errors[0] < 0.8 * errors[1]
