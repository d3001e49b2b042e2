"""From the name of a drafting head to a bound module: everything that can be wrong is found before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...plan import KernelPlan
from ..decoder import Decoder
from ..hub import read_json
from ..protocol import Model
from ..read import ModelInfo
from .eagle import build_eagle, read_eagle, read_eagle3
from .head import DraftHead, HeadBinder, HeadInfo
from .medusa import build_medusa, read_medusa
from .mtp import build_mtp, read_mtp

Read = Callable[[Path, Mapping[str, Any], ModelInfo], Any]
Build = Callable[[Any, HeadBinder], DraftHead]
METHODS: Mapping[str, tuple[Read, Build]] = {
    "medusa": (read_medusa, build_medusa),
    "eagle": (read_eagle, build_eagle),
    "eagle3": (read_eagle3, build_eagle),
    "mtp": (read_mtp, build_mtp),
}
"""Method of speculation -> what reads its head and what builds it."""


def read_head(method: str, folder: Path, target: ModelInfo) -> HeadInfo:
    """What a head is. method: a key of ``METHODS``. folder: of the head; of an MTP module that may be the target's.

    Raises ValueError for a head that cannot be served or does not fit the target, before any weight is read.
    """
    if target.architecture is None:
        raise ValueError(
            f"speculative_config.method={method} needs a target that runs natively, but {target.name!r} runs through the "
            f"transformers library ({target.reason}): take ngram, suffix or draft_model"
        )
    return METHODS[method][0](folder, read_json(folder, "config.json"), target)


@torch.inference_mode()
def load_head(
    method: str, info: HeadInfo, target: Model, plan: KernelPlan, device: torch.device, block_size: int, cache_dtype: str = "auto"
) -> DraftHead:
    """Builds a head whose every hot operation is bound through ``plan``.

    target                   whose embedding and projection to the vocabulary it shares where it has none of its own
    block_size, cache_dtype  of the head's KV cache ("auto": the target's dtype)
    """
    assert isinstance(target, Decoder), "read_head refuses others"
    return METHODS[method][1](info, HeadBinder(info, target, plan, device, block_size, cache_dtype))
