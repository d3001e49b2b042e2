"""A model with seeded random weights, saved the way transformers saves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def random_llama(folder: Path, architecture: Any, seed: int) -> Path:
    """The folder below ``folder`` that holds a bfloat16 Llama of ``architecture`` (fields of its config.json), made on first use.
    A peer that loads it as float32 computes with the same, rounded, weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    name = hashlib.sha256(json.dumps([architecture, seed], sort_keys=True).encode()).hexdigest()[:12]
    target = folder / f"llama-{name}"
    if not (target / "model.safetensors").is_file():
        torch.manual_seed(seed)
        config = LlamaConfig(**architecture)
        model = LlamaForCausalLM(config)
        model.bfloat16()
        model.save_pretrained(target)
    return target
