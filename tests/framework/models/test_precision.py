"""bfloat16 costs no more with our kernels than with the transformers library's."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from framework.config import ModelConfig
from framework.models.hub import resolve_model

from .harness import build, teacher_forced

TEXT = '''def read_lines(path, encoding="utf-8"):
    """Return the lines of a file."""
    with open(path, encoding=encoding) as stream:
        return [line.rstrip("\\n") for line in stream]


class Counter(dict):
    def __missing__(self, key):
        return 0
'''


def divergence(exact: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL divergence of next-token distributions, in nats."""
    p, q = (torch.log_softmax(logits.double(), dim=-1) for logits in (exact, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_divergence_of_bfloat16_is_that_of_transformers() -> None:
    folder = resolve_model("tiny")
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids[:, :120]
    with torch.inference_mode():
        exact, theirs = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()(ids).logits[0]
            for dtype in (torch.float32, torch.bfloat16)
        )
    ours = teacher_forced(build(ModelConfig("tiny", dtype="bfloat16")), [ids[0].tolist()], None, num_decodes=40)[0]
    assert 0 < divergence(exact, ours) <= 1.2 * divergence(exact, theirs)
