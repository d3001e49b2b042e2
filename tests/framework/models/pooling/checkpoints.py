"""Tiny random checkpoints of models that pool, made with transformers, and engines on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from framework import LLM, EngineConfig
from framework.config import CacheConfig, ModelConfig, SchedulerConfig

VOCAB = 211
REFERENCE = {"default": "reference"}
PROMPTS = [np.random.default_rng(i).integers(3, VOCAB, n).tolist() for i, n in enumerate((3, 40, 1, 17, 96, 9, 33, 40))]
DECODER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 96,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def save(folder: Path, class_name: str, config: Any, seed: int = 0) -> PreTrainedModel:
    """A random model of this class, saved; its weights such that attention and heads matter."""
    torch.manual_seed(seed)
    model: PreTrainedModel = getattr(transformers, class_name)(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.3 if "embed" in name else 2.0 * weight.shape[1] ** -0.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.2)
            else:
                weight.normal_(1.0, 0.2)
    model.save_pretrained(folder)
    return model


@torch.inference_mode()
def states(model: PreTrainedModel, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[np.ndarray]:
    """Last hidden states f64 [T, H] of the model without its head, each prompt by itself."""
    base = model.base_model
    return [base(torch.tensor([prompt])).last_hidden_state[0].double().numpy() for prompt in prompts]


def build(
    folder: Path, kernels: dict[str, str] | None = None, cache: CacheConfig | None = None, in_flight: int = 0, **given: Any
) -> LLM:
    """Steps of 23 tokens at most unless said otherwise, so that prompts are cut. given: of ModelConfig and SchedulerConfig."""
    names = ("max_num_batched_tokens", "max_num_seqs", "chunked_prefill", "max_chunk_tokens")
    scheduling = {"max_num_batched_tokens": 23, "max_num_seqs": 4, **{name: given.pop(name) for name in names if name in given}}
    model = ModelConfig(str(folder), dtype="float32", **{"skip_tokenizer": True, **given})
    cache = cache or CacheConfig(num_blocks=200, block_size=4, check_invariants=True)
    scheduler = SchedulerConfig(in_flight_steps=in_flight, **scheduling)
    return LLM(EngineConfig(model, cache, scheduler, num_threads=1), kernels=kernels)


def tokens(prompts: Sequence[Sequence[int]] = PROMPTS) -> list[dict[str, Any]]:
    return [{"prompt_token_ids": list(prompt)} for prompt in prompts]


def embeddings(llm: LLM, prompts: Sequence[Sequence[int]] = PROMPTS, **given: Any) -> list[np.ndarray]:
    """f32 [D] each."""
    return [np.float32(output.outputs.embedding) for output in llm.embed(tokens(prompts), use_tqdm=False, **given)]


def encoded(llm: LLM, prompts: Sequence[Sequence[int]] = PROMPTS, **given: Any) -> list[np.ndarray]:
    """f32 [D] or [T, D] each."""
    return [output.outputs.data for output in llm.encode(tokens(prompts), use_tqdm=False, **given)]


def assert_same_direction(found: np.ndarray, expected: np.ndarray) -> None:
    """Rows of length 1 whose cosine with ``expected`` is at least 1 - 1e-6."""
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(np.linalg.norm(found, axis=-1) - 1).max() < 1e-6
    cosine = (found * expected).sum(-1) / np.linalg.norm(expected, axis=-1)
    assert cosine.min() >= 1 - 1e-6
