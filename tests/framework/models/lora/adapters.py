"""Adapters written by peft."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import torch
from transformers.pytorch_utils import Conv1D

LINEARS = (torch.nn.Linear, Conv1D)


def linear_modules(model: Any) -> list[str]:
    """Names of a model's linear layers that can be adapted: all but the logits' and routers'. Of a mixture of experts not those of
    MLPs either, by whose names peft adapts experts, too."""
    experts = any(".experts" in name for name, _ in model.named_modules())
    ends = ("lm_head", "embed_out", "output_projection", "router", "kv_b_proj", "mlp.gate", "block_sparse_moe.gate")
    ends += ("mixer.out_proj",)  # of a Mamba, which peft refuses
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, LINEARS)
        and not name.endswith(ends)
        and not (experts and any(part in name for part in (".mlp.", ".ffn.", ".experts.", "_moe.")))
    ]


def write_adapter(
    model: Any,
    folder: Path,
    rank: int,
    targets: Iterable[str] | str,
    seed: int = 0,
    save: dict[str, Any] | None = None,
    **fields: Any,
) -> Any:
    """Saves a random adapter, with a B that is not 0, of a copy of the model, which it returns with the adapter merged."""
    torch.manual_seed(seed)
    targets = targets if isinstance(targets, str) else list(targets)
    config = peft.LoraConfig(r=rank, target_modules=targets, init_lora_weights=False, **{"lora_alpha": 12, **fields})
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    adapted.save_pretrained(folder, **(save or {}))
    return adapted.merge_and_unload()
