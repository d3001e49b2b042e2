"""The contract of a kernel: what an op is, what it costs, on which cases it is tested."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

PARTIAL = "partial"
"""Optional argument of products whose K is shared by ranks: the result is this rank's part of a sum that ``all_reduce`` rounds. It
comes unrounded, in float32 (from references in float64), and without bias, which is added once to the whole sum."""


def rounded_once(out: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, partial: bool) -> torch.Tensor:
    """How a reference ends that has summed in float64."""
    if partial:
        assert bias is None, "a partial result takes no bias: the sum over the ranks does"
        return out
    return (out if bias is None else out + bias.double()).to(dtype)


@dataclass(frozen=True)
class Cost:
    """Work of one call: floating-point operations and bytes that must move between memory and chip at least once."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.bytes * times)


@dataclass(frozen=True)
class Tolerance:
    """How far an impl may be from the reference.

    ``relative`` maps a dtype to the largest allowed ||out - ref|| / ||ref|| over the whole output (Frobenius norm), with
    inputs rounded to that dtype for both. ``exact`` demands equal bits (copies, integers). Integers are always compared
    exactly, except in rows that ``token_ties`` excuses: it takes the arguments by name and returns bool [R], true
    where the two best scores, or a score and the border of what is kept, lie within 1e-5 relative. Of impls with their own
    random numbers, the rows that ``drawn`` names (in the same way) are not compared. ``numbers`` turns the list of outputs into
    what is compared: quantized values into the numbers that they and their scales stand for.
    """

    relative: Mapping[torch.dtype, float] = field(
        default_factory=lambda: {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
    )
    exact: bool = False
    token_ties: Callable[[Mapping[str, Any]], torch.Tensor] | None = None
    drawn: Callable[[Mapping[str, Any]], torch.Tensor] | None = None
    numbers: Callable[[list[torch.Tensor]], list[torch.Tensor]] | None = None


@dataclass(frozen=True)
class Case:
    """Concrete inputs of an op.

    ``make(generator, dtype, device)`` returns every argument of the reference by name; optional ones may be left at their
    default. ``dims``, ``q_lens`` and ``ctx_lens`` are what the op's cost function takes. ``tags``: ``"tiled"`` has three or more
    blocks on every tiled axis, ``"odd"`` has sizes that divide nothing, ``"bench"`` is too large for the interpreter and used for
    benchmarks and rooflines only. ``relative`` stands in for that of the op's tolerance where a case needs limits of its own
    (quantized values made inside the op, which one last bit moves to the next). ``count``: how often a served workload made such a
    call; 0 for those that were made up.
    """

    name: str
    make: Callable[[torch.Generator, torch.dtype, torch.device], dict[str, Any]]
    tags: frozenset[str] = frozenset()
    dims: Mapping[str, float] = field(default_factory=dict)
    q_lens: tuple[int, ...] = ()
    ctx_lens: tuple[int, ...] = ()
    relative: Mapping[torch.dtype, float] | None = None
    count: int = 0


@dataclass(frozen=True)
class Yardstick:
    """What benchmarks measure impls beside, though it does not do their work. ``make``: from the arguments of a case to what is
    timed; ``dims``: of its cost, where they are not the case's."""

    make: Callable[[Mapping[str, Any]], Callable[[], Any]]
    dims: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Op:
    """A named contract. ``reference`` is its plain torch function: the oracle of the tests and the impl that works everywhere.

    reference   accumulates in float64 and rounds once to the output dtype; its result for a row does not depend on the
                other rows.
    fake        takes the reference's arguments, returns empty outputs of the right shape and dtype.
    bind_args   names of the reference's arguments that are fixed when a layer is built (weights and static scalars); the
                others are passed, by position, on each call.
    optional    those of ``bind_args`` that an impl need not take: where one is given a value other than its default, a function
                without it in its signature is refused, and a class without it in its attribute ``takes``.
    mutates     names of the arguments written in place.
    row_args    names of the arguments whose first dimension counts rows that must not influence each other (with ``meta``:
                its requests); what batch invariance is tested on. Outputs, and mutated row arguments, have the same rows.
    fuses       names of the ops whose work it does in one pass; where it is not chosen, those run.
    yardsticks  by name, beside which its impls are measured.
    facts       from the bound arguments to the static facts that an impl's ``unsupported`` can look at.
    cost        ``cost(dims, q_lens, ctx_lens)``: pure Python; q_lens are new tokens per request, ctx_lens tokens in the
                cache per request including the new ones. dims carry ``weight_bytes``/``act_bytes``/``kv_bytes`` per element.
    """

    name: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    cost: Callable[[Mapping[str, float], Sequence[int], Sequence[int]], Cost]
    cases: tuple[Case, ...]
    bind_args: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    mutates: tuple[str, ...] = ()
    row_args: tuple[str, ...] = ()
    fuses: tuple[str, ...] = ()
    tolerance: Tolerance = Tolerance()
    facts: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    yardsticks: Mapping[str, Yardstick] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [a for a in (*self.bind_args, *self.optional, *self.mutates, *self.row_args) if a not in self.parameters]
        assert not unknown, f"op {self.name}: {unknown} are no arguments of its reference"

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """All argument names of the reference, in order."""
        return tuple(inspect.signature(self.reference).parameters)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Of the optional arguments, by name."""
        return {name: inspect.signature(self.reference).parameters[name].default for name in self.optional}

    @cached_property
    def call_args(self) -> tuple[str, ...]:
        """Argument names of a bound call, in order."""
        return tuple(p for p in self.parameters if p not in self.bind_args)

    def limit(self, case: Case, dtype: torch.dtype) -> float:
        """The largest error that an impl may have on a case; 0 where bits must be equal."""
        return 0.0 if self.tolerance.exact else (case.relative or self.tolerance.relative)[dtype]

    def static_facts(self, bound_args: Mapping[str, Any]) -> dict[str, Any]:
        """Facts that follow from the bound arguments (weight shapes and dtypes, windows, ...)."""
        facts = {} if self.facts is None else self.facts(bound_args)
        given = [name for name in self.optional if self.is_given(name, bound_args)]
        return {**facts, "given": " ".join(given)} if given else facts

    def is_given(self, name: str, bound_args: Mapping[str, Any]) -> bool:
        """Whether an argument has a value other than its default."""
        default = self.defaults.get(name)
        value = bound_args.get(name, default)
        return value is not default and (isinstance(value, torch.Tensor) or bool(value != default))
