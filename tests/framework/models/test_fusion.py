"""The fused kernel between projection and attention gives a model the tokens that its ops give one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from framework.config import ModelConfig
from framework.models.decoder import Decoder
from framework.models.layers.attention import Fused

from ...models.examples import EXAMPLES
from .checkpoints import VOCAB, make
from .harness import Session, build

FUSED = "qk_norm_rotary_kv_write"
LENGTHS = (3, 9, 21)
NUM_TOKENS = 12


def decode(model: Decoder) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits of the prompts' last tokens, and tokens chosen greedily."""
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in LENGTHS]
    session = Session(model, len(prompts))
    last = torch.stack([logits[-1] for logits in session.step(list(enumerate(prompts)))])
    rows = [[int(logits.argmax())] for logits in last]
    for _ in range(NUM_TOKENS):
        for row, logits in zip(rows, session.step([(i, row[-1:]) for i, row in enumerate(rows)])):
            row.append(int(logits[-1].argmax()))
    return last, rows


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt-neox", "phi3", "glm", "ernie4_5"])
def test_fused_and_separate_kernels_give_the_same_tokens(name: str, tmp_path: Path) -> None:
    make(EXAMPLES[name], tmp_path)
    found = {}
    for kind in ("reference", "torch"):
        separate = dict.fromkeys(("rms_norm", "layer_norm", "rotary", "kv_cache_write"), kind)
        for choice, kernels in ((kind, {FUSED: kind}), ("none", {FUSED: "none", **separate})):
            model = build(ModelConfig(str(tmp_path), dtype="float32"), kernels)
            assert isinstance(model, Decoder)
            assert all(isinstance(layer.attention.prepare, Fused) == (choice != "none") for layer in model.layers)
            found[kind, choice] = decode(model)
    logits, tokens = found["reference", "none"]
    for other_logits, other_tokens in found.values():
        assert other_tokens == tokens
        torch.testing.assert_close(other_logits, logits, rtol=0, atol=1e-4 * float(logits.abs().max()))
    assert len({token for row in tokens for token in row}) >= 8


@pytest.mark.parametrize("name", ["hunyuan", "olmo", "olmo2", "phi", "stablelm-12b", "bloom"])
def test_what_the_fused_kernel_cannot_do_runs_op_by_op(name: str, tmp_path: Path) -> None:
    make(EXAMPLES[name], tmp_path)
    model = build(ModelConfig(str(tmp_path), dtype="float32"), {FUSED: "auto"})
    assert isinstance(model, Decoder)
    assert not any(isinstance(layer.attention.prepare, Fused) for layer in model.layers)
