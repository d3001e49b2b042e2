"""Calibration: its text, and the model that is run layer by layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from framework.config import QuantConfig
from framework.corpus import load_corpus
from framework.quantize.calibration import calibration_texts, draw_samples
from framework.quantize.layerwise import LayerwiseModel
from framework.quantize.source import Source

from .small_models import DENSE, TEXT, TINY, make_model, quant

CPU = torch.device("cpu")


def test_calibration_reads_nothing_held_out() -> None:
    used, heldout = calibration_texts(None), load_corpus().heldout
    assert used and heldout
    assert not set(used) & {file.text for file in heldout}


def test_samples() -> None:
    """Windows of different modules, the same for the same seed."""
    config = QuantConfig("gptq-int4", num_samples=12, sample_tokens=64)
    samples = draw_samples(TINY, config, seed=1)
    assert samples.shape == (12, 64)
    assert torch.equal(samples, draw_samples(TINY, config, seed=1))
    assert not torch.equal(samples, draw_samples(TINY, config, seed=2))
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    texts = calibration_texts(None)
    homes = {next(i for i, text in enumerate(texts) if tokenizer.decode(window[1:-1]) in text) for window in samples}
    assert len(homes) > 8


def test_samples_of_a_file() -> None:
    """Each begins with the token that the tokenizer begins texts with."""
    first, *tokens = AutoTokenizer.from_pretrained(TINY)(TEXT.read_text()).input_ids
    windows = draw_samples(TINY, quant("gptq-int4"), seed=0).tolist()
    starts = {next(i for i in range(len(tokens)) if [first, *tokens[i : i + 39]] == window) for window in windows}
    assert len(starts) == len(windows) == 6


@torch.inference_mode()
@pytest.mark.parametrize("name", DENSE)
def test_layer_by_layer_is_the_model_and_holds_one_layer(name: str, tmp_path: Path) -> None:
    """The hidden states after every layer are those of the whole model; while it runs, one layer's parameters are in memory."""
    whole = make_model(name, tmp_path / "model")
    source = Source(str(tmp_path / "model"))
    samples = draw_samples(source.folder, quant("gptq-int4"), 0)
    seen: list[torch.Tensor] = []
    layers = getattr(whole.get_decoder(), source.architecture.family.layers)
    for layer in layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out))
    whole(samples)
    model = LayerwiseModel(source, samples, CPU)
    for index, expected in enumerate(seen):
        layer = model.layer(index)
        loaded = sum(p.numel() for module in (model._inner, *model._layers) for p in module.parameters() if not p.is_meta)
        assert loaded == sum(p.numel() for p in layers[index].parameters())
        layer.advance()
        torch.testing.assert_close(model.hidden, expected, rtol=1e-4, atol=1e-4)
        model.release(index)
    statistics = model.layer(0).statistics(["qkv"])["qkv"]
    assert statistics.num_tokens == samples.numel()
