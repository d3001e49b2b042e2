"""Quality of a model over a text: the windows that it reads, and the numbers that come of what it says of their tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import corpus


@dataclass(frozen=True)
class Windows:
    """A text cut into windows of equal length. Every token but a window's first is scored.

    token_ids  int64 [N, W]
    num_bytes  int64 [N]: UTF-8 bytes of the text of the scored tokens
    """

    token_ids: np.ndarray
    num_bytes: np.ndarray


def read_text(path: str | None) -> tuple[str, str]:
    """(what it is, the text) of a file; without one, of the corpus's held-out modules. Raises ValueError if it cannot be read."""
    if path is None:
        return "the corpus's held-out modules", "\n".join(file.text for file in corpus.load_corpus().heldout)
    return f"text={path}", corpus.read_text(path, "text")


def cut_windows(text: str, tokenizer: Any, window_tokens: int, num_windows: int | None = None, source: str = "the text") -> Windows:
    """The text's windows one after the other, or ``num_windows`` of them, spread evenly; what is left at the end is no window. Each
    begins with the token that the tokenizer begins texts with, if it has one; else its first token is context only.

    tokenizer  a fast one of Hugging Face
    source     what an error calls the text
    Raises ValueError for a text of less than one window, or than ``num_windows``."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    first = corpus.bos_token_ids(tokenizer)
    length = window_tokens - len(first)
    found, needed = len(encoded.input_ids) // length, num_windows or 1
    if found < needed:
        raise ValueError(
            f"{source} has {len(encoded.input_ids)} tokens, but {needed} window{'s' * (needed > 1)} of {window_tokens} "
            f"(window_tokens) take{'s' * (needed == 1)} {needed * length}: give a longer text, or make the windows shorter"
        )
    chosen = np.arange(found) if num_windows is None else np.arange(num_windows) * found // num_windows
    starts = [start for start, _ in encoded.offset_mapping] + [len(text)]
    num_bytes = []
    for i in chosen:
        begin, end = i * length + (1 - len(first)), (i + 1) * length
        num_bytes.append(len(text[starts[begin] : starts[end]].encode()))
    ids = np.array([[*first, *encoded.input_ids[i * length : (i + 1) * length]] for i in chosen], dtype=np.int64)
    return Windows(ids, np.array(num_bytes))


def quality_metrics(
    kl: np.ndarray, nats: np.ndarray, baseline_nats: np.ndarray, agrees: np.ndarray, num_bytes: np.ndarray
) -> dict[str, float]:
    """Name -> value, from numbers per token [N, T] of N windows (see ``worker.teacher_forcing.TokenScores``) and bytes per window
    [N]. ``<name>_se`` is the standard error over windows, absent where there is one window.

    bits_per_byte           code length of the text under the model; _increase: over the baseline's, its error that of the pairs
    kl_mean, kl_p99         nats per token
    top1_agreement          fraction of tokens
    perplexity              per token
    Raises ValueError for numbers that are not finite: a kernel computed them wrong."""
    if num_wrong := int((~np.isfinite(kl + nats + baseline_nats)).sum()):
        raise ValueError(f"the logits after {num_wrong} of {kl.size} tokens are NaN or infinite")
    num_tokens = np.full(len(kl), kl.shape[1])
    bits, baseline_bits = (n.sum(1) / math.log(2) for n in (nats, baseline_nats))
    ratios = {
        "bits_per_byte": (bits, num_bytes),
        "bits_per_byte_increase": (bits - baseline_bits, num_bytes),
        "kl_mean": (kl.sum(1), num_tokens),
        "top1_agreement": (agrees.sum(1), num_tokens),
    }
    metrics: dict[str, float] = {}
    for name, (totals, sizes) in ratios.items():
        metrics[name] = float(totals.sum() / sizes.sum())
        if len(totals) > 1:
            metrics[f"{name}_se"] = ratio_error(totals, sizes)
    return metrics | {
        "baseline_bits_per_byte": float(baseline_bits.sum() / num_bytes.sum()),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "perplexity": float(np.exp(nats.mean())),
        "baseline_perplexity": float(np.exp(baseline_nats.mean())),
        "num_windows": len(kl),
        "num_tokens": int(num_tokens.sum()),
        "num_bytes": int(num_bytes.sum()),
    }


def ratio_error(totals: np.ndarray, sizes: np.ndarray) -> float:
    """Standard error of sum(totals) / sum(sizes) over independent pairs, to first order."""
    residuals = totals - totals.sum() / sizes.sum() * sizes
    num = len(totals)
    return float(math.sqrt(num / (num - 1) * (residuals**2).sum()) / sizes.sum())
