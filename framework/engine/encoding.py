"""What the encoder of an encoder-decoder reads, and how prompts tell it."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from .sound import SoundFeatures
    from .speech import Speech


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """One request's: ``token_ids``, or ``features`` of sound, float32 [bins, frames]. num_tokens: as many vectors the encoder
    gives, whose keys and values the cache holds as long as the request runs."""

    num_tokens: int
    token_ids: list[int] | None = None
    features: np.ndarray | None = None


class EncoderPrompts:
    """Of one model.

    max_tokens  that its encoder reads
    start       tokens that a decoder begins with where the prompt has none of its own; the first of them it always begins with
    sound       makes ``features`` of what a prompt has under "audio"; None: the model reads text
    speech      of a model that listens, in place of ``start``
    """

    def __init__(
        self, max_tokens: int, start: tuple[int, ...], sound: SoundFeatures | None = None, speech: Speech | None = None
    ) -> None:
        self.max_tokens, self._start, self.sound, self.speech = max_tokens, start, sound, speech

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
        if self.sound is not None:
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
        if self.sound is None:
            raise ValueError("multi_modal_data is not available: the model reads text")
        if not isinstance(media, Mapping) or set(media) != {"audio"}:
            raise ValueError(f'multi_modal_data must be {{"audio": (waveform, sampling rate)}}; found {reprlib.repr(media)}')
        return EncoderInput(self.max_tokens, features=self.sound(media["audio"]))

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
