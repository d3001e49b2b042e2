"""Engines of tiny models that read images, and what they say of every token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from framework import LLM, SamplingParams
from framework.outputs import RequestOutput

from .checkpoints import VOCAB

GREEDY = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)


def serve(folder: Path, **given: Any) -> LLM:
    sizes = {"block_size": 4, "num_gpu_blocks_override": 200, "max_logprobs": -1}
    return LLM(str(folder), dtype="float32", **{**sizes, **given})


def with_logprobs(num_new: int) -> SamplingParams:
    """Greedily, with all log-probabilities of the prompt and of the new tokens."""
    return SamplingParams(max_tokens=num_new, temperature=0, prompt_logprobs=-1, logprobs=-1, ignore_eos=True)


def token_ids(output: RequestOutput) -> list[int]:
    """Of the prompt, and new ones."""
    assert output.prompt_token_ids is not None
    return [*output.prompt_token_ids, *output.outputs[0].token_ids]


def log_probabilities(output: RequestOutput) -> torch.Tensor:
    """f32 [T - 1, V] of each token but the first."""
    completion = output.outputs[0]
    assert output.prompt_logprobs is not None and completion.logprobs is not None
    entries = [*output.prompt_logprobs[1:], *completion.logprobs]
    return torch.tensor([[entry[token].logprob for token in range(VOCAB)] for entry in entries if entry is not None])
