"""What users pass as a prompt, and what the engine takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from .encoding import EncoderInput

if TYPE_CHECKING:
    import numpy as np

    from ..multimodal.items import ImageItem


class TextPrompt(TypedDict):
    """A prompt as text; prompts of different ``cache_salt`` share no cache blocks. multi_modal_data: ``{"image": a PIL image, or a
    list of them}``, one for each placeholder in the prompt."""

    prompt: str
    cache_salt: NotRequired[str]
    multi_modal_data: NotRequired[Mapping[str, Any]]


class TokensPrompt(TypedDict):
    """A prompt as token ids; its text is not looked at, and comes back with the output."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]
    multi_modal_data: NotRequired[Mapping[str, Any]]


class EncoderDecoderPrompt(TypedDict):
    """A prompt of an encoder-decoder. A prompt of another kind is what the encoder reads. Without ``decoder_prompt`` the decoder
    begins as its config says, and its text has no special tokens but those that it names."""

    encoder_prompt: str | TextPrompt | TokensPrompt | Mapping[str, Any]
    decoder_prompt: NotRequired[str | TextPrompt | TokensPrompt]


Prompt = str | TextPrompt | TokensPrompt | EncoderDecoderPrompt | Mapping[str, Any] | Sequence[int]
"""Text, a dict of one of the kinds, or a list of token ids."""


@dataclass(frozen=True)
class EngineInput:
    """A prompt as the engine takes it; text is None if it came as token ids; pixels: of an image that is the prompt, see
    PoolingParams; images: among the tokens; encoder_input: of an encoder-decoder, whose decoder begins with the tokens, and whose
    encoder read the text."""

    token_ids: list[int]
    text: str | None = None
    cache_salt: str | None = None
    pixels: np.ndarray | None = None
    images: tuple[ImageItem, ...] = ()
    encoder_input: EncoderInput | None = None

    @property
    def num_tokens(self) -> int:
        """Of the prompt; of an encoder-decoder with the text that its encoder reads."""
        read = () if self.encoder_input is None else self.encoder_input.token_ids or ()
        return len(self.token_ids) + len(read)
