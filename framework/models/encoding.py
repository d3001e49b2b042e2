"""What an encoder-decoder's encoder reads, and how its decoder begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import ModelConfig
from .native import Architecture


@dataclass(frozen=True)
class Encoding:
    """max_tokens: as many vectors the encoder gives at most; start: tokens that the decoder begins with; listens: it reads sound,
    not text, and always gives ``max_tokens``."""

    max_tokens: int
    start: tuple[int, ...]
    listens: bool


def read_encoding(
    config: ModelConfig, found: Mapping[str, Any], generation: Mapping[str, Any], architecture: Architecture, max_model_len: int
) -> Encoding | None:
    """None for a model without an encoder. Raises ValueError for one whose config does not say how the decoder begins."""
    if not architecture.family.encoder:
        return None
    listens = architecture.family.listens
    given = {**architecture.family.defaults, **found, **{name: value for name, value in generation.items() if value is not None}}
    start = given["decoder_start_token_id"]
    if type(start) is not int or not 0 <= start < architecture.vocab_size:
        raise ValueError(
            f"model {config.name!r} has decoder_start_token_id={start!r} in its config.json (or model.architecture), expected a "
            "token id"
        )
    forced = given.get("forced_bos_token_id")
    begin = (start,) if type(forced) is not int else (start, forced)
    return Encoding(given["max_source_positions"] if listens else max_model_len, begin, listens)
