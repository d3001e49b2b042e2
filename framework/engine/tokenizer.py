"""The tokenizer of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_tokenizer(folder: Path) -> Any:
    """The Hugging Face tokenizer saved in ``folder``, fast if there is one. Code that a checkpoint brings is neither run nor asked
    about: its tokenizer.json says the same."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer could be loaded from {folder}: {error}. Give one with model.tokenizer, or do without: "
            'model.skip_tokenizer=true (skip_tokenizer_init=True of LLM), and prompts as {"prompt_token_ids": [...]}'
        ) from error


def token_ids_of_words(tokenizer: Any, words: list[str]) -> list[list[int]]:
    """Token ids of words as they appear at the start of a text and after a space; both must be kept from being generated."""
    texts = (text for word in words for text in (word, " " + word.lstrip()))
    found = dict.fromkeys(tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    return [list(ids) for ids in found if ids]
