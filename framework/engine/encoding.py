"""What encoders read whose output layers attend to, and how prompts of encoder-decoders tell it."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ..multimodal.items import ImageItem
    from .sound import SoundFeatures
    from .speech import Speech


class View(NamedTuple):
    """What the tokens from ``first`` on see of images: ``length`` vectors from the place ``start`` on, where a block begins."""

    first: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """One request's: ``token_ids``, or ``features`` of sound, float32 [bins, frames], or ``images``. num_tokens: as many vectors
    the encoder gives, whose keys and values the cache holds as long as the request runs; of images with the room between them.
    An image's ``count`` is that of its vectors here, for all of which one placeholder stands. views: one of each image, with whose
    own vectors it ends; that of the last begins at 0. Tokens before the first see nothing."""

    num_tokens: int
    token_ids: list[int] | None = None
    features: np.ndarray | None = None
    images: tuple[ImageItem, ...] = ()
    views: tuple[View, ...] = ()

    @property
    def num_seen(self) -> int:
        """Of the vectors, those that generated tokens see: the first."""
        return self.views[-1].length if self.views else self.num_tokens

    @property
    def num_vectors(self) -> int:
        """Without the room between them."""
        return sum(image.count for image in self.images) if self.images else self.num_tokens


class ImageViews:
    """How tokens see the images of a prompt, in layers that attend to them: each sees the last image that it comes behind, or
    stands for, and those that stand side by side before that. tile: vectors of one; block_size: of the cache."""

    def __init__(self, tile: int, block_size: int) -> None:
        self._tile, self._block_size = tile, block_size

    def encoder_input(self, images: Sequence[ImageItem]) -> EncoderInput | None:
        """None without images. What generated tokens see is placed first, so that they know no start."""
        sides: list[list[ImageItem]] = []
        for image in images:
            if not sides or image.start != sides[-1][-1].end:
                sides.append([])
            sides[-1].append(image)
        counts = {image.start: self._tile * int(image.inputs["aspect_ratio_mask"].sum()) for image in images}
        views, start, num_tokens = [], 0, 0
        for side in (*sides[-1:], *sides[:-1]):
            length = 0
            for image in side:
                length += counts[image.start]
                views.append(View(image.start, start, length))
            num_tokens = start + length
            start += -(-length // self._block_size) * self._block_size
        if not views:
            return None
        own = tuple(replace(image, count=counts[image.start]) for image in images)
        return EncoderInput(num_tokens, images=own, views=tuple(sorted(views)))


class EncoderPrompts:
    """Of one model.

    max_tokens  that its encoder reads
    start       tokens that a decoder begins with where the prompt has none of its own; the first of them it always begins with
    sound       makes ``features`` of what a prompt has under "audio"; None: the model reads text, or has no feature extractor
    speech      of a model that listens, in place of ``start``; None: it reads text
    num_bins    of such a model's ``features``
    """

    def __init__(
        self,
        max_tokens: int,
        start: tuple[int, ...],
        sound: SoundFeatures | None = None,
        speech: Speech | None = None,
        num_bins: int = 0,
    ) -> None:
        self.max_tokens, self._start, self.sound, self.speech = max_tokens, start, sound, speech
        self._num_bins = num_bins

    def split(self, prompt: Any) -> tuple[Any, Any]:
        """(what the encoder reads, what the decoder begins with or None) of a prompt. Raises ValueError for one without
        the first."""
        if not isinstance(prompt, Mapping) or not {"encoder_prompt", "decoder_prompt"} & set(prompt):
            return prompt, None
        if others := sorted(map(str, set(prompt) - {"encoder_prompt", "decoder_prompt"})):
            raise ValueError(
                f"a prompt has {', '.join(others)} beside 'encoder_prompt' and 'decoder_prompt': put them into one of the two"
            )
        if prompt.get("encoder_prompt") is None:
            raise ValueError(
                "a prompt for an encoder-decoder needs 'encoder_prompt' (text, or {\"prompt_token_ids\": [...]}); found "
                f"{reprlib.repr(dict(prompt))}"
            )
        return prompt["encoder_prompt"], prompt.get("decoder_prompt")

    def of_tokens(self, token_ids: list[int]) -> EncoderInput:
        """Raises ValueError for too many, and for none."""
        if self.speech is not None:
            raise ValueError('the model listens: its encoder_prompt is {"multi_modal_data": {"audio": (waveform, sampling rate)}}')
        if not token_ids:
            raise ValueError("the encoder_prompt is empty: the encoder needs at least one token")
        if len(token_ids) > self.max_tokens:
            raise ValueError(
                f"the encoder_prompt has {len(token_ids)} tokens, but the encoder reads at most {self.max_tokens} "
                "(model.max_model_len): shorten it"
            )
        return EncoderInput(len(token_ids), token_ids)

    def of_media(self, media: Any) -> EncoderInput:
        """media: ``multi_modal_data``. Raises ValueError for what the model does not read."""
        if self.speech is None:
            raise ValueError("multi_modal_data is not available: the model reads text")
        if self.sound is None:
            raise ValueError(
                "multi_modal_data is not available: the model has no folder with a feature extractor; give one (model.name)"
            )
        if not isinstance(media, Mapping) or set(media) != {"audio"}:
            raise ValueError(f'multi_modal_data must be {{"audio": (waveform, sampling rate)}}; found {reprlib.repr(media)}')
        return EncoderInput(self.max_tokens, features=self.sound(media["audio"]))

    def made_up(self, token_ids: list[int], begin: list[int]) -> tuple[EncoderInput, list[int]]:
        """(what the encoder reads, what the decoder begins with) of a request of which lengths matter alone: the tokens, or, where
        the model listens, noise as long as it reads. begin: behind what all decoders begin with."""
        if self.speech is None:
            return self.of_tokens(token_ids), [*self._start, *begin]
        return EncoderInput(self.max_tokens, features=self._noise), [*self.begin(), *begin]

    @cached_property
    def _noise(self) -> np.ndarray:
        """float32 [bins, frames]: an encoder gives a vector for two frames."""
        return np.random.default_rng(0).standard_normal((self._num_bins, 2 * self.max_tokens), dtype=np.float32)

    def begin(self) -> list[int]:
        """Of a decoder without a prompt of its own. Raises ValueError where its first tokens name a language."""
        if self.speech is None:
            return list(self._start)
        begin = self.speech.begin()
        if None in begin:
            raise ValueError(
                f"the model knows {len(self.speech.languages)} languages: a prompt needs a decoder_prompt that names one, as "
                "'<|startoftranscript|><|en|><|transcribe|><|notimestamps|>'"
            )
        return [token for token in begin if token is not None]

    def started(self, token_ids: list[int]) -> list[int]:
        """A decoder's prompt, with the token that all begin with in front, unless something was said before."""
        first = self._start[0]
        openings: set[int | None] = {first} if self.speech is None else {first, self.speech.previous}
        return token_ids if token_ids and token_ids[0] in openings else [first, *token_ids]
