"""What encoders cost under simulation, against the transformers library's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from framework.config import ModelConfig
from framework.executor.calls import CallList
from framework.executor.cost_model import StageCost, StepWork
from framework.executor.encoders import Encoders
from framework.models.encoder import _encoder_of
from framework.models.launches import ELEMENTWISE
from framework.models.library import library_config
from framework.models.read import ModelInfo, read_model
from framework.plan import op_costs

from ...counted_launches import CountedLaunches
from .simulations import make_timers, simulated_config

SIZES = {"vocab_size": 211, "d_model": 64, "pad_token_id": 1, "decoder_start_token_id": 2}
T5 = {"model_type": "t5", **SIZES, "d_kv": 24, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
BART = {"model_type": "bart", **SIZES, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 80}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "max_position_embeddings": 300}
WHISPER = {**BART, "model_type": "whisper", "max_source_positions": 50, "max_target_positions": 300, "num_mel_bins": 20}
MODELS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "t5_gated": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "bart": BART,
    "whisper": WHISPER,
}


def model_of(kind: str) -> tuple[ModelConfig, ModelInfo]:
    config = ModelConfig("model", load_format="dummy", architecture={**MODELS[kind], "dtype": "float32"})
    return config, read_model(config)


def library_encoder(kind: str) -> Any:
    config, info = model_of(kind)
    torch.manual_seed(0)
    return _encoder_of(library_config(config, None, info.config["model_type"]), torch.float32).eval()


def encode(kind: str, module: Any, positions: int) -> torch.Tensor:
    given = {"inputs_embeds": torch.randn(1, positions, 64)}
    if kind == "whisper":
        given = {"input_features": torch.randn(1, 20, 2 * positions)}
    with torch.inference_mode():
        return module(**given).last_hidden_state


@pytest.mark.parametrize("kind", MODELS)
def test_products_are_those_that_the_library_computes(kind: str) -> None:
    """Counted by torch in the library's module."""
    config, info = model_of(kind)
    (stack,), costs = Encoders.of(config, info).stacks, op_costs()
    for positions in (50,) if kind == "whisper" else (2, 37, 200):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # which is one that it counts
            assert encode(kind, library_encoder(kind), positions).shape == (1, positions, 64)
        lens = [[positions * call.rows] for call in stack.calls(4)]
        products = ("linear", "paged_attention_prefill")
        found = sum(c.number * costs[c.op](c.dims, n, n).flops for c, n in zip(stack.calls(4), lens) if c.op in products)
        assert found == counter.get_total_flops()


@pytest.mark.parametrize("kind", MODELS)
def test_launches_are_those_that_torch_sees(kind: str) -> None:
    """And they move about as much, where there are few positions, with the square of which something grows."""
    config, info = model_of(kind)
    (stack,) = Encoders.of(config, info).stacks
    found = [call for call in stack.calls(4) if call.op == ELEMENTWISE]
    module, positions = library_encoder(kind), 50 if kind == "whisper" else 8
    with CountedLaunches() as seen:
        encode(kind, module, positions)
    assert sum(call.number for call in found) == seen.count - (1 + (kind == "whisper")), "inputs are drawn"
    moved = sum(call.number * call.rows * positions for call in found)
    assert moved == pytest.approx(seen.num_bytes, rel=0.25)


@pytest.mark.parametrize("kind", MODELS)
def test_weights_are_those_of_the_library(kind: str) -> None:
    encoders = Encoders.of(*model_of(kind))
    assert encoders.weight_bytes == sum(w.nbytes for w in library_encoder(kind).state_dict().values())


def test_each_item_is_encoded_by_itself() -> None:
    config, info = model_of("t5")
    assert info.architecture is not None
    engine = simulated_config(MODELS["t5"])
    encoders = Encoders.of(config, info)
    calls = CallList(info, info.architecture, engine, fused=False).encoders(encoders.stacks)
    cost = StageCost(calls, "float32", make_timers(MODELS["t5"]))

    def seconds(*items: int) -> tuple[float, int]:
        return cost.step(StepWork(0, 0, [], encoded=items))

    (short, launches), (long, _) = seconds(40), seconds(400)
    assert 0 < short < long
    assert seconds(40, 400, 40) == (pytest.approx(2 * short + long), 3 * launches)
    whole, _ = seconds(440)
    assert whole > long, "more positions take longer"
