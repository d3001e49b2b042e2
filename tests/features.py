"""Which features of an engine go with which, a cell for each pair: the table that the README shows, and that ``test_features.py``
holds against engines."""

from __future__ import annotations

from itertools import combinations

FEATURES = {
    "images": "images in prompts",
    "encoder": "cross attention to an encoder",
    "states": "recurrent states",
    "diffusion": "block diffusion",
    "pooling": "models that pool",
    "ep": "experts over ranks",
    "tp": "tensor parallel",
    "pp": "pipelines",
    "sim": "simulated executor",
    "quant": "quantized weights",
    "lora": "adapters",
    "spec": "speculation",
    "rec": "recorded decodes",
    "prefix": "prefix caching",
    "gram": "grammars",
    "beam": "beam search",
    "n": "n > 1",
    "plp": "prompt_logprobs",
}
"""Head of a column -> what it is."""
Pair = tuple[str, str]
PAIRS: list[Pair] = list(combinations(FEATURES, 2))
"""In the order of FEATURES, the first before the second."""
_NO_TOKENS = "pools.* generates nothing"
REFUSED: dict[Pair, str] = {
    ("images", "pooling"): "multi_modal_data",
    ("images", "pp"): "parallel.pp=2",
    ("encoder", "pooling"): "model.runner",
    ("encoder", "ep"): "parallel.tp=2, pp=1, ep=2",
    ("encoder", "tp"): "parallel.tp=2",
    ("encoder", "pp"): "pp=2",
    ("encoder", "quant"): "quant.scheme=int8",
    ("encoder", "lora"): "lora.enabled=true",
    ("encoder", "spec"): "speculative_config.method=ngram",
    ("encoder", "prefix"): "cache.prefix_caching=true",
    ("states", "spec"): "speculative_config.method=ngram",
    ("diffusion", "pooling"): "model.runner",
    ("diffusion", "ep"): "parallel.tp=2",
    ("diffusion", "tp"): "parallel.tp=2",
    ("diffusion", "pp"): "pp=2",
    ("diffusion", "lora"): "lora.enabled=true",
    ("diffusion", "spec"): "speculative_config.method=ngram",
    ("diffusion", "gram"): "structured_outputs",
    ("diffusion", "beam"): "beam search cannot work",
    ("diffusion", "plp"): "prompt_logprobs",
    ("pooling", "ep"): "parallel.tp=2",
    ("pooling", "tp"): "parallel.tp=2",
    ("pooling", "pp"): "parallel.pp=2",
    ("pooling", "lora"): "lora.enabled=true",
    ("pooling", "spec"): "speculative_config.method=ngram",
    ("pooling", "gram"): _NO_TOKENS,
    ("pooling", "beam"): _NO_TOKENS,
    ("pooling", "n"): _NO_TOKENS,
    ("pooling", "plp"): _NO_TOKENS,
    ("pp", "spec"): "speculative_config.method=ngram",
    ("sim", "lora"): "lora.enabled",
    ("sim", "gram"): "structured_outputs",
    ("sim", "beam"): "logprobs needs an executor with logits",
    ("sim", "plp"): "prompt_logprobs needs an executor with logits",
    ("gram", "beam"): "structured_outputs",
    ("beam", "plp"): "prompt_logprobs",
}
"""Pairs that are refused: what the ValueError says, with the field in it."""
OFF: dict[Pair, str] = {
    ("pooling", "rec"): "rec",
    ("states", "rec"): "rec",
    ("diffusion", "rec"): "rec",
    ("ep", "rec"): "rec",
    ("tp", "rec"): "rec",
    ("pp", "rec"): "rec",
    ("spec", "beam"): "spec",
    ("prefix", "plp"): "prefix",
}
"""Pairs of which one is left out on a CPU, and which: what comes out is the same. Decodes are not recorded with the first seven,
a step of a beam is one token, and a prompt whose log-probabilities are wanted is computed."""
NONE: dict[Pair, str] = {
    pair: "no model has both"
    for pair in combinations(("images", "encoder", "states", "diffusion"), 2)
    if pair not in REFUSED and pair != ("images", "encoder")
}
"""Pairs that there is nothing to ask for."""


def cell(pair: Pair) -> str:
    """works, refused, off, or none."""
    return "refused" if pair in REFUSED else "off" if pair in OFF else "none" if pair in NONE else "works"


MARKS = {"works": "+", "refused": "-", "off": "o", "none": ""}


def markdown() -> str:
    """The table for the README."""
    names = list(FEATURES)
    rows = [f"| | {' | '.join(names[1:])} |", f"|---|{':-:|' * (len(names) - 1)}"]
    for index, name in enumerate(names[:-1]):
        marks = ["" if place <= index else MARKS[cell((name, other))] for place, other in enumerate(names)][1:]
        rows.append(f"| {FEATURES[name]} (`{name}`) | {' | '.join(marks)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(markdown())
