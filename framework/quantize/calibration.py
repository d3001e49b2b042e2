"""The text that calibrated schemes look at, as windows of tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from ..config import QuantConfig
from ..corpus import bos_token_ids, load_corpus, read_text


def calibration_texts(file: str | None) -> list[str]:
    """Of a file, or of the training modules of the corpus. Raises ValueError for a file that cannot be read."""
    return [module.text for module in load_corpus().train] if file is None else [read_text(file, "calibration")]


def draw_samples(folder: Path, config: QuantConfig, seed: int) -> torch.Tensor:
    """int64 [num_samples, sample_tokens]: windows at random places, of as many texts as there are, each after the token that the
    model's tokenizer begins a text with, if any. Raises ValueError for texts shorter than one sample."""
    tokenizer = load_tokenizer(folder)
    rng = random.Random(seed)
    texts = calibration_texts(config.calibration)
    rng.shuffle(texts)
    first = bos_token_ids(tokenizer)
    length = config.sample_tokens - len(first)
    long_enough: list[list[int]] = []
    longest = 0
    for text in texts:
        tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        longest = max(longest, len(tokens))
        if len(tokens) >= length:
            long_enough.append(tokens)
        if len(long_enough) == config.num_samples:
            break
    if not long_enough:
        where = config.calibration or "the corpus of the standard library"
        raise ValueError(
            f"{where}: its longest text has {longest} tokens, but one sample needs {length}: give a longer text or fewer "
            f"tokens per sample (sample_tokens={config.sample_tokens})"
        )
    windows = []
    for number in range(config.num_samples):
        tokens = long_enough[number % len(long_enough)]
        start = rng.randrange(len(tokens) - length + 1)
        windows.append([*first, *tokens[start : start + length]])
    return torch.tensor(windows)


def load_tokenizer(folder: Path) -> Any:
    """Raises ValueError for a model without one."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} has no tokenizer that transformers can load, and calibration needs one: {error}") from error
