"""Held-out measurements: bits per byte, draft agreement and tokenizable completions.

Sampled completions are judged by ``tokenize``: an exception, an error token or a mismatched
bracket is an error.  Prompt plus completion is cut at its last full line.  A bracket or string
that is open there is no error by itself, because the token budget may have ended inside it: the
text is cut again at the last line end with nothing open.  Three counts say how much that excuses.
"""

import ast
import io
import math
import random
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from experiments.tiny.tokenizer import BOS, EOS, PAD, encode_file, token_id
from framework.corpus import SourceFile, total_bytes

BRACKETS = {")": "(", "]": "[", "}": "{"}


class Verdict(Enum):
    """What ``tokenize`` makes of a text that ends with a full line."""

    VALID = "valid"
    OPEN = "open"
    ERROR = "error"


@dataclass(frozen=True)
class Completions:
    """Counts of sampled completions; each count includes the one after it.

    ``tokenizable`` ones hold no error.  ``advanced`` ones also end at least one generated line
    with nothing open.  ``closed`` ones have nothing open at their last full line.
    """

    total: int
    tokenizable: int
    advanced: int
    closed: int


def scored_windows(tokens: Sequence[int], context: int) -> Iterator[tuple[Tensor, int]]:
    """Windows of at most ``context + 1`` tokens and the first target each one scores.

    Consecutive windows overlap by half, so every target past the first window is seen
    with at least ``context / 2`` tokens before it, and each is scored exactly once.
    """
    scored = 1
    start = 0
    while scored < len(tokens):
        window = torch.tensor(tokens[start : start + context + 1]).unsqueeze(0)
        yield window, scored - start
        scored = start + window.size(1)
        start += context // 2


@torch.inference_mode()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: Tokenizer, files: Sequence[SourceFile], context: int) -> float:
    """Code length of the files under the model, end marks included, per source byte."""
    nats = 0.0
    for file in files:
        for window, first in scored_windows(encode_file(tokenizer, file.text), context):
            logits = model(window[:, :-1]).logits[0, first - 1 :].float()
            nats += F.cross_entropy(logits, window[0, first:], reduction="sum").item()
    return nats / math.log(2) / total_bytes(files)


@torch.inference_mode()
def greedy_agreement(
    model: LlamaForCausalLM, draft: LlamaForCausalLM, tokenizer: Tokenizer, files: Sequence[SourceFile], context: int
) -> float:
    """Fraction of held-out positions at which both models rank the same token first."""
    equal = positions = 0
    for file in files:
        for window, first in scored_windows(encode_file(tokenizer, file.text), context):
            choices = [m(window[:, :-1]).logits[0, first - 1 :].argmax(-1) for m in (model, draft)]
            equal += int((choices[0] == choices[1]).sum())
            positions += len(choices[0])
    return equal / positions


def prompts_from(file: SourceFile) -> Iterator[str]:
    """Prompts of one file: from a top-level definition through the first line of a ``def``.

    The ``def`` is the definition itself or a method of it.
    """
    lines = file.text.splitlines(keepends=True)
    for node in ast.parse(file.text).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
        inner = [node, *getattr(node, "body", [])]
        for function in inner:
            if isinstance(function, ast.FunctionDef):
                yield "".join(lines[first : function.lineno])


def choose_prompts(tokenizer: Tokenizer, files: Sequence[SourceFile], count: int, max_tokens: int, seed: int) -> list[list[int]]:
    """A seeded sample of the files' prompts that fit in ``max_tokens``, as token ids."""
    bos = token_id(tokenizer, BOS)
    candidates = []
    for file in files:
        for prompt in prompts_from(file):
            ids = [bos, *tokenizer.encode(prompt, add_special_tokens=False).ids]
            if len(ids) <= max_tokens:
                candidates.append(ids)
    return random.Random(seed).sample(candidates, count)


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], new_tokens: int, temperature: float
) -> list[str]:
    """Prompt plus sampled completion for every prompt, as text."""
    pad = token_id(tokenizer, PAD)
    width = max(len(prompt) for prompt in prompts)
    inputs = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    output: Any = model.generate(  # type: ignore[misc]
        inputs,
        attention_mask=(inputs != pad).long(),
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=token_id(tokenizer, EOS),
        pad_token_id=pad,
    )
    return tokenizer.decode_batch(output.tolist())


def tokenize_verdict(text: str) -> Verdict:
    """Whether ``text`` is Python tokens, an error, or ends inside a bracket or string."""
    stack: list[str] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.ERRORTOKEN:
                return Verdict.ERROR
            if token.type != tokenize.OP:
                continue
            if token.string in BRACKETS.values():
                stack.append(token.string)
            elif token.string in BRACKETS and (not stack or stack.pop() != BRACKETS[token.string]):
                return Verdict.ERROR
    except tokenize.TokenError as error:
        ended_early = "EOF in multi-line" in str(error) or "unterminated triple" in str(error)
        return Verdict.OPEN if ended_early else Verdict.ERROR
    except SyntaxError:
        return Verdict.ERROR
    return Verdict.VALID


def closed_lines(text: str) -> int | None:
    """Number of lines up to the last line end with nothing open, or None for an error."""
    lines = text.split("\n")
    for count in range(len(lines) - 1, 0, -1):
        verdict = tokenize_verdict("\n".join([*lines[:count], ""]))
        if verdict is Verdict.ERROR:
            return None
        if verdict is Verdict.VALID:
            return count
    return 0


def sample_completions(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    files: Sequence[SourceFile],
    *,
    count: int,
    prompt_tokens: int,
    new_tokens: int,
    temperature: float,
    seed: int,
) -> Completions:
    """Sample completions of held-out prompts and count those that are Python."""
    torch.manual_seed(seed)
    prompts = choose_prompts(tokenizer, files, count, prompt_tokens, seed)
    texts = complete(model, tokenizer, prompts, new_tokens, temperature)
    given = [tokenizer.decode(prompt).count("\n") for prompt in prompts]
    closed = [closed_lines(text) for text in texts]
    return Completions(
        total=count,
        tokenizable=sum(lines is not None for lines in closed),
        advanced=sum(lines is not None and lines > start for lines, start in zip(closed, given)),
        closed=sum(lines == text.count("\n") for lines, text in zip(closed, texts)),
    )
