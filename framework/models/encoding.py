"""What encoders read whose output layers attend to, and how the decoders of encoder-decoders begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import ModelConfig
from ..engine.speech import Speech
from .architecture import Architecture
from .vision import Vision


@dataclass(frozen=True)
class Encoding:
    """max_tokens: as many vectors the encoder gives at most; start: tokens that the decoder begins with; speech: of a model that
    reads sound, not text, whose encoder always gives ``max_tokens``; None: it reads text, or images; num_bins: of sound's features.
    max_images: of a prompt; None: the model is an encoder-decoder, whose prompts have something to encode."""

    max_tokens: int
    start: tuple[int, ...]
    speech: Speech | None
    max_images: int | None = None
    num_bins: int = 0

    def room(self, block_size: int) -> int:
        """Places in the cache that a request takes at most: images begin at whole blocks, unless they follow each other."""
        return self.max_tokens + (self.max_images or 0) * (block_size - 1)


def read_encoding(
    config: ModelConfig,
    found: Mapping[str, Any],
    generation: Mapping[str, Any],
    architecture: Architecture,
    vision: Vision | None,
    max_model_len: int,
) -> Encoding | None:
    """None for a model without an encoder. Raises ValueError for one whose config does not say how the decoder begins."""
    if architecture.sees_images:
        size = 0 if vision is None or vision.tile is None else vision.tile * vision.max_tiles
        most = config.limit_mm_per_prompt.get("image", max(max_model_len // size, 1)) if size else 0
        return Encoding(most * size, (), None, most)
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
    if listens:
        return Encoding(given["max_source_positions"], (start,), _speech(config, given, start), num_bins=given["num_mel_bins"])
    forced = given.get("forced_bos_token_id")
    return Encoding(max_model_len, (start,) if type(forced) is not int else (start, forced), None)


def _speech(config: ModelConfig, given: Mapping[str, Any], start: int) -> Speech:
    def wrong(name: str, expected: str) -> ValueError:
        return ValueError(
            f"model {config.name!r} has {name}={given[name]!r} in its generation_config.json (or config.json), expected {expected}"
        )

    forced = given.get("forced_decoder_ids") or []
    try:
        positions, tokens = [pair[0] for pair in forced], [pair[1] for pair in forced]
    except (TypeError, LookupError):
        raise wrong("forced_decoder_ids", "a list of pairs") from None
    if positions != list(range(1, len(forced) + 1)) or not all(token is None or type(token) is int for token in tokens):
        raise wrong("forced_decoder_ids", "a token id, or null, for each position from 1 on")
    for name in ("lang_to_id", "task_to_id"):
        table = given.get(name) or {}
        if not isinstance(table, Mapping) or not all(type(token) is int for token in table.values()):
            raise wrong(name, "an object of token ids")
    knows_many = given.get("is_multilingual", True)
    languages = {name.removeprefix("<|").removesuffix("|>"): token for name, token in (given.get("lang_to_id") or {}).items()}
    return Speech(
        start,
        tuple(tokens),
        languages if knows_many else {},
        dict(given.get("task_to_id") or {}) if knows_many else {},
        given.get("language"),
        given.get("task"),
        given.get("no_timestamps_token_id"),
        given.get("prev_sot_token_id"),
    )
