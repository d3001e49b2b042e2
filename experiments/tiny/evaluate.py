"""Held-out measurements: bits per byte, draft agreement and tokenizable completions.

A completion counts as Python if ``tokenize`` accepts prompt plus completion.  The text is
cut at its last full line, because generation stops at a token budget.  An error is any
exception, error token or mismatched bracket.  A statement or string still open at the cut
is excused where it opened at most ``OPEN_LINES`` lines before the cut (it may merely be
unfinished) and is an error otherwise; the strict count excuses nothing.
"""

import ast
import io
import math
import random
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from experiments.tiny.corpus import SourceFile, total_bytes
from experiments.tiny.tokenizer import BOS, EOS, PAD, encode_file, token_id

OPEN_LINES = 10
BRACKETS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True)
class Completions:
    """How many sampled completions are Python by the lenient and by the strict rule."""

    total: int
    tokenizable: int
    strict: int


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
    model: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    tokenizer: Tokenizer,
    files: Sequence[SourceFile],
    context: int,
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


def complete(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    temperature: float,
) -> list[str]:
    """Prompt plus sampled completion for every prompt, as text."""
    texts = []
    for prompt in prompts:
        output = model.generate(  # type: ignore[misc]
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            eos_token_id=token_id(tokenizer, EOS),
            pad_token_id=token_id(tokenizer, PAD),
        )
        texts.append(tokenizer.decode(output[0].tolist()))
    return texts


def python_error(text: str) -> tuple[bool, int | None]:
    """Whether ``text`` holds an error, and the line on which it is left open, if any."""
    stack: list[tuple[str, int]] = []
    statement_line = 1
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.ERRORTOKEN:
                return True, None
            if token.type == tokenize.OP and token.string in BRACKETS.values():
                stack.append((token.string, token.start[0]))
            elif token.type == tokenize.OP and token.string in BRACKETS and (not stack or stack.pop()[0] != BRACKETS[token.string]):
                return True, None
            statement_line = token.end[0]
    except tokenize.TokenError as error:
        if "EOF in multi-line" not in str(error) and "unterminated triple" not in str(error):
            return True, None
        return False, stack[0][1] if stack else statement_line
    except SyntaxError:
        return True, None
    return False, None


def is_python(text: str) -> tuple[bool, bool]:
    """Whether a sampled text is Python by the lenient and by the strict rule."""
    full_lines = text[: text.rfind("\n") + 1]
    failed, open_line = python_error(full_lines)
    if failed:
        return False, False
    if open_line is None:
        return True, True
    return full_lines.count("\n") - open_line < OPEN_LINES, False


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
    """Sample completions of held-out prompts and count those that tokenize as Python."""
    torch.manual_seed(seed)
    prompts = choose_prompts(tokenizer, files, count, prompt_tokens, seed)
    verdicts = [is_python(t) for t in complete(model, tokenizer, prompts, new_tokens, temperature)]
    return Completions(
        total=count,
        tokenizable=sum(lenient for lenient, _ in verdicts),
        strict=sum(strict for _, strict in verdicts),
    )
