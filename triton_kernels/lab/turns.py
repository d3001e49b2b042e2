"""How often a launch's main loops turn: their bounds, calculated from the arguments of the launch as its middle program would."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import ttgir

_BOUNDS = re.compile(r"scf\.for %[\w.]+ = (%[\w.-]+) to (%[\w.-]+) step (%[\w.-]+)")
_NAME = re.compile(r"%[\w.-]+")
_INTEGERS: Mapping[str, Callable[..., Any]] = {
    "arith.addi": operator.add,
    "arith.subi": operator.sub,
    "arith.muli": operator.mul,
    "arith.divsi": lambda a, b: int(a / b),
    "arith.divui": operator.floordiv,
    "arith.ceildivsi": lambda a, b: -(-a // b),
    "arith.remsi": lambda a, b: a - b * int(a / b),
    "arith.remui": operator.mod,
    "arith.minsi": min,
    "arith.maxsi": max,
    "arith.select": lambda condition, a, b: a if condition else b,
    **dict.fromkeys(("arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast"), lambda a: a),
}
_COMPARISONS = {
    "slt": operator.lt,
    "sle": operator.le,
    "sgt": operator.gt,
    "sge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}


class _Unknown(Exception):
    """A value that depends on what only a run would know."""


def loop_turns(text: str, arguments: Mapping[str, Any], grid: Sequence[int]) -> list[int | None]:
    """Turns of each of the main loops of a kernel's TTGIR, by the launch's arguments by name (integers, and tensors for what the
    bounds read from memory) and its grid; None where they cannot be known."""
    return [_turns(loop, arguments, grid) for loop in ttgir.main_loops(text)]


def _turns(loop: ttgir.Loop, arguments: Mapping[str, Any], grid: Sequence[int]) -> int | None:
    bounds = _BOUNDS.search(loop.header)
    if bounds is None:
        return None
    definitions = {op.result: op for op in loop.before if op.result}

    def value(name: str) -> Any:
        if name.removeprefix("%") in arguments:
            return arguments[name.removeprefix("%")]
        op = definitions.get(name)
        if op is None:
            raise _Unknown(name)
        names = _NAME.findall(op.text)
        if op.name == "arith.constant":
            return {"true": 1, "false": 0}.get(op.text.strip()) or int(op.text)
        if op.name == "tt.get_program_id":
            return grid["xyz".index(op.text.strip())] // 2
        if op.name == "arith.cmpi":
            return _COMPARISONS[op.text.split(",")[0].strip()](*map(value, names))
        if op.name == "tt.addptr":
            return _address(value(names[0]), value(names[1]))
        if op.name == "tt.load":
            tensor, offset = _address(value(names[0]), 0)
            return int(tensor.flatten()[offset])
        if op.name not in _INTEGERS:
            raise _Unknown(op.name)
        return _INTEGERS[op.name](*map(value, names))

    try:
        first, last, step = map(value, bounds.groups())
        return max(-(-(last - first) // step), 0)
    except (_Unknown, ValueError, KeyError, IndexError, TypeError, ZeroDivisionError):  # an operation that is not known here
        return None


def _address(pointer: torch.Tensor | tuple[torch.Tensor, int], offset: int) -> tuple[torch.Tensor, int]:
    """A tensor and the element that a pointer is at, further by an offset."""
    tensor, start = pointer if isinstance(pointer, tuple) else (pointer, 0)
    return tensor, start + offset
