"""From what users pass (text, token ids, chat messages, partial parameters) to what the engine takes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from ..sampling_params import SamplingParams
from .tokenizer import token_ids_of_words

Prompt = str | dict[str, Any] | Sequence[int]
"""Text, ``{"prompt": text}``, ``{"prompt_token_ids": [...]}`` or a list of token ids; the dicts may carry ``cache_salt``."""

_GENERATION_DEFAULTS = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class EngineInput:
    """A prompt as the engine takes it; text is None if it came as token ids."""

    token_ids: list[int]
    text: str | None = None
    cache_salt: str | None = None


class InputProcessor:
    """Tokenizes prompts and completes sampling parameters for one model.

    tokenizer      None: prompts come as token ids, and outputs have no text
    generation     as in generation_config.json: what default parameters are made of
    eos_token_ids  tokens that end a sequence
    """

    def __init__(self, tokenizer: Any, generation: Mapping[str, Any], eos_token_ids: Iterable[int]) -> None:
        self.tokenizer, self._generation = tokenizer, generation
        self.eos_token_ids = frozenset(eos_token_ids)

    def default_params(self) -> SamplingParams:
        """What the generation config recommends, over the defaults of SamplingParams."""
        given = {k: v for k, v in self._generation.items() if k in _GENERATION_DEFAULTS and v is not None}
        if "max_new_tokens" in self._generation:
            given["max_tokens"] = self._generation["max_new_tokens"]
        return SamplingParams(**given)

    def params(self, params: SamplingParams | None) -> SamplingParams:
        """A private copy, completed with what needs the tokenizer."""
        complete = self.default_params() if params is None else copy.copy(params)
        if complete.bad_words:
            if self.tokenizer is None:
                raise ValueError("bad_words needs a tokenizer, and this engine has none; use logit_bias on token ids instead")
            complete.bad_words_token_ids = token_ids_of_words(self.tokenizer, complete.bad_words)
        return complete

    def prompt(self, prompt: Prompt) -> EngineInput:
        """Raises ValueError for a prompt of another form."""
        if isinstance(prompt, str):
            return EngineInput(self._encode(prompt), prompt)
        if isinstance(prompt, dict):
            salt = prompt.get("cache_salt")
            if prompt.get("prompt_token_ids") is not None:
                return EngineInput(_token_ids(prompt["prompt_token_ids"]), prompt.get("prompt"), salt)
            if isinstance(prompt.get("prompt"), str):
                return EngineInput(self._encode(prompt["prompt"]), prompt["prompt"], salt)
            raise ValueError(
                f'a prompt given as a dict needs "prompt" (text) or "prompt_token_ids"; found the keys {sorted(prompt)}'
            )
        return EngineInput(_token_ids(prompt))

    def chat(
        self,
        messages: list[dict[str, Any]],
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_args: Any,
    ) -> EngineInput:
        """Renders a conversation with the tokenizer's chat template, or the one given."""
        if self.tokenizer is None:
            raise ValueError("chat needs a tokenizer, and this engine has none")
        if chat_template is None and not getattr(self.tokenizer, "chat_template", None):
            raise ValueError("the model's tokenizer has no chat template: pass chat_template=..., or use generate with plain text")
        text = self.tokenizer.apply_chat_template(
            messages,
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **template_args,
        )
        # The template writes the special tokens itself.
        return EngineInput(self.tokenizer.encode(text, add_special_tokens=False), text)

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise ValueError('this engine has no tokenizer: pass {"prompt_token_ids": [...]} instead of text')
        return self.tokenizer.encode(text)


def check_priority(priority: object) -> int:
    """A request's priority as an int. Raises ValueError for what is not an integer: it could not be ordered among the others."""
    if not isinstance(priority, Integral) or isinstance(priority, bool):
        raise ValueError(f"priority={priority!r} cannot work: it must be an integer (smaller goes first)")
    return int(priority)


def _token_ids(ids: Sequence[int]) -> list[int]:
    listed = list(ids)
    if not all(isinstance(token, int) for token in listed):
        raise ValueError(f"a prompt of token ids must be a list of integers; found {listed[:5]!r} ...")
    return listed
