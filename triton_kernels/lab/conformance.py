"""Does an impl keep its contract? Every impl is held to the same checks on its op's cases, against the reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..attention_meta import LayerKV
from ..impl import Bound, Impl
from ..impls._shared.recording import Arena, record
from ..op import Case, Op
from ..state_meta import StateMeta
from .calls import Args, bind, call, make_args, make_spec, mutated, outputs, rows_of, take_rows, tensors
from .guards import GuardedEmpty, surround


@dataclass(frozen=True)
class CheckResult:
    """What came out of one impl on one case.

    error    largest relative Frobenius error over outputs and mutated arguments; limit: what the op's tolerance allows
    skipped  the impl refuses the case's facts; ``message`` has its reasons
    message  empty when all is well, else every violation found
    """

    op: str
    impl: str
    case: str
    dtype: torch.dtype
    error: float
    limit: float
    ok: bool
    skipped: bool = False
    message: str = ""


def check(
    op: Op,
    impl: Impl,
    case: Case,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    interpret: bool = False,
    options: Mapping[str, Any] | None = None,
    num_reruns: int = 1,
) -> CheckResult:
    """Runs ``impl`` on ``case`` and compares it with the reference.

    Checked: shape, dtype and values of every output and every mutated argument; other inputs, all memory around mutated views, and
    guards around all memory unchanged bit for bit; nothing read from uninitialized memory or guards (they hold NaN); outputs are
    new tensors; equal bits in ``num_reruns`` further runs and in a smaller batch, where the flags promise them.
    """
    device = torch.device(device)
    limit = op.limit(case, dtype)
    args = surround(make_args(op, case, dtype, device))
    spec = make_spec(op, args, dtype, device, interpret)
    reasons = impl.unsupported(spec, options)
    if reasons:
        return CheckResult(op.name, impl.name, case.name, dtype, 0.0, limit, True, True, "; ".join(reasons))

    expected_args = copy.deepcopy(args)
    expected = outputs(op.reference(**expected_args))
    got_args = copy.deepcopy(args)
    with GuardedEmpty() as fresh:
        bound = bind(op, impl, spec, got_args, options)
        got = call(op, bound, got_args)

    own_rng = impl.flags.rng == "own"
    problems, error = compare(op, args, got, got_args, expected, expected_args, limit, own_rng)
    problems += _touched(op, args, got_args) + _aliased(got, got_args)
    if fresh.was_crossed():
        problems.append("wrote beside a tensor that it allocated")
    found = got + mutated(op, got_args)

    for _ in range(num_reruns if impl.flags.deterministic else 0):
        again_args = copy.deepcopy(args)
        again = call(op, bound, again_args) + mutated(op, again_args)
        if not all(_same_bits(a, b) for a, b in zip(found, again, strict=True)):
            problems.append("claims to be deterministic, but a further run gave other bits")
            break
    if impl.flags.batch_invariant and op.row_args:
        problems += _batch_dependence(op, bound, args, got, got_args)
    if impl.flags.cpu_graph and device.type == "cpu":
        problems += _lost_by_recording(op, bound, case, dtype, args)
    return CheckResult(op.name, impl.name, case.name, dtype, error, limit, not problems, False, "; ".join(problems))


def compare(
    op: Op,
    args: Args,
    got: list[torch.Tensor],
    got_args: Args,
    expected: list[torch.Tensor],
    expected_args: Args,
    limit: float,
    own_rng: bool = False,
) -> tuple[list[str], float]:
    """Violations in the outputs and in the mutated arguments of a run against the reference's, and the largest error.
    ``args`` are the arguments as they were before either run; ``own_rng``: the impl has its own random numbers."""
    excused = op.tolerance.drawn if own_rng else op.tolerance.token_ties
    names = [f"output {i}" for i in range(len(expected))]
    mutated_names = [f"argument {name}" for name in op.mutates for _ in tensors(args[name])]
    problems = _compare_shapes(got, expected, names)
    problems += _compare_shapes(mutated(op, got_args), mutated(op, expected_args), mutated_names)
    if problems:
        return problems, float("inf")
    numbers = op.tolerance.numbers or list
    problems, error = _compare_values(op, args, numbers(got), numbers(expected), limit, names, excused)
    written, expected_written = _mutated_numbers(op, got_args), _mutated_numbers(op, expected_args)
    more, mutated_error = _compare_values(op, args, written, expected_written, limit, mutated_names, excused)
    return problems + more, max(error, mutated_error)


def _mutated_numbers(op: Op, args: Args) -> list[torch.Tensor]:
    """The mutated tensors; of a quantized cache, unless the op is exact, the numbers that it stands for (its quantized values may
    differ by one where a number lies at the border of two)."""
    found = []
    for name in op.mutates:
        value = args[name]
        if isinstance(value, LayerKV) and value.k_scale is not None and value.v_scale is not None and not op.tolerance.exact:
            found += [value.k.double() * value.k_scale[..., None], value.v.double() * value.v_scale[..., None]]
        else:
            found += tensors(value)
    return found


def _compare_shapes(got: list[torch.Tensor], expected: list[torch.Tensor], names: list[str]) -> list[str]:
    """Shapes and dtypes that are not the reference's."""
    if len(got) != len(expected):
        return [f"gave {len(got)} outputs instead of {len(expected)}"]
    return [
        f"{name} is {a.dtype}{list(a.shape)} instead of {b.dtype}{list(b.shape)}"
        for name, a, b in zip(names, got, expected, strict=True)
        if a.shape != b.shape or a.dtype not in (b.dtype, given_dtype(b.dtype))
    ]


def given_dtype(expected: torch.dtype) -> torch.dtype:
    """Of an output for which the reference gives ``expected``: its unrounded float64 are float32 elsewhere."""
    return torch.float32 if expected == torch.float64 else expected


def _compare_values(
    op: Op,
    args: Args,
    got: list[torch.Tensor],
    expected: list[torch.Tensor],
    limit: float,
    names: list[str],
    excused: Callable[[Args], torch.Tensor] | None,
) -> tuple[list[str], float]:
    """Violations, and the largest error."""
    problems, worst = [], 0.0
    for name, a, b in zip(names, got, expected):
        if op.tolerance.exact or not b.is_floating_point():
            wrong = _different(a, b).flatten(1).any(-1) if a.dim() > 1 else _different(a, b).reshape(-1)
            if bool(wrong.any()) and excused is not None:
                wrong &= ~excused(args).to(wrong.device)
            if bool(wrong.any()):
                first = int(wrong.int().argmax())
                problems.append(f"{name}: {int(wrong.sum())} of {len(wrong)} rows are not exact, the first is {first}")
            continue
        error = relative_error(a, b)
        worst = max(worst, error)
        if not error <= limit:
            problems.append(f"{name}: error {error:.2e} is above {limit:.0e}")
    return problems, worst


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """||got - expected|| / ||expected|| (Frobenius) over finite elements; inf where NaN or infinities do not agree."""
    a, b = got.double(), expected.double()
    finite = b.isfinite()
    if bool(_different(a, b)[~finite].any()) or not bool(a[finite].isfinite().all()):
        return float("inf")
    size = float(b[finite].norm())
    return float((a[finite] - b[finite]).norm()) / (size if size > 0 else 1.0)


def _different(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Elementwise a != b, where NaN equals NaN."""
    return (a != b) & ~((a != a) & (b != b))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(_bytes(a), _bytes(b))


def _touched(op: Op, before: Args, after: Args) -> list[str]:
    """Inputs that changed although they are not mutated, and writes beside the mutated views."""
    problems = [
        f"changed its input {name}"
        for name in op.parameters
        if name not in op.mutates
        and not all(_same_bits(a, b) for a, b in zip(tensors(before[name]), tensors(after[name]), strict=True))
        and not _shares_memory(after[name], [after[m] for m in op.mutates])
    ]
    owned: dict[int, torch.Tensor] = {}
    for view in mutated(op, after):
        whole = _storage(view)
        mask = owned.setdefault(whole.data_ptr(), torch.zeros_like(whole, dtype=torch.bool))
        mask.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
    for old, new in zip(mutated(op, before), mutated(op, after), strict=True):
        outside = ~owned[_storage(new).data_ptr()]
        if not _same_bits(_storage(old)[outside], _storage(new)[outside]):
            problems.append("wrote beside its output")
    return list(dict.fromkeys(problems))


def _storage(view: torch.Tensor) -> torch.Tensor:
    """All the memory behind a view, as a flat tensor of its dtype."""
    return torch.empty(0, dtype=view.dtype, device=view.device).set_(view.untyped_storage())


def _shares_memory(value: Any, others: Iterable[Any]) -> bool:
    theirs = {t.untyped_storage().data_ptr() for other in others for t in tensors(other)}
    return any(t.untyped_storage().data_ptr() in theirs for t in tensors(value))


def _aliased(outputs: list[torch.Tensor], args: Args) -> list[str]:
    shared = any(t.numel() and _shares_memory(t, args.values()) for t in outputs)
    return ["returned a view of an argument instead of a new tensor"] if shared else []


def _batch_dependence(op: Op, bound: Bound, args: Args, got: list[torch.Tensor], got_args: Args) -> list[str]:
    """Runs some rows alone, and half of the batch, and compares bits with the whole batch."""
    num_rows = args["meta"].num_reqs if "meta" in args else args[op.row_args[0]].shape[0]
    total = args[op.row_args[0]].shape[0]
    for first, last in {(0, num_rows // 2), (num_rows // 2, num_rows // 2 + 1), (num_rows - 1, num_rows)}:
        if not 0 <= first < last <= num_rows:
            continue
        part, tokens = take_rows(op, copy.deepcopy(args), first, last)
        alone = call(op, bound, part)
        here = [t for name in op.mutates if name in op.row_args for t in tensors(part[name])]
        there = [t[tokens] for name in op.mutates if name in op.row_args for t in tensors(got_args[name])]
        if isinstance(part.get("meta"), StateMeta):
            slots = [run.slot for run in part["meta"].runs()]
            here += [state[slots] for state in mutated(op, part)]
            there += [state[slots] for state in mutated(op, got_args)]
        whole = [rows_of(t, tokens, total) for t in got]
        pairs = zip((*alone, *here), (*whole, *there), strict=True)
        if not all(_same_bits(a.to(given_dtype(a.dtype)), b.to(given_dtype(b.dtype))) for a, b in pairs):
            return [f"claims to be batch invariant, but rows {first}:{last} have other bits alone than in the batch"]
    return []


def _lost_by_recording(op: Op, bound: Bound, case: Case, dtype: torch.dtype, args: Args) -> list[str]:
    """Records a call, replays it on other numbers in the same memory, and compares bits with a call on those."""
    others = copy.deepcopy(args)
    fresh = case.make(torch.Generator().manual_seed(1), dtype, torch.device("cpu"))
    for name in op.call_args:
        for mine, new in zip(tensors(others[name]), tensors(fresh[name])):
            if mine.is_floating_point() and mine.shape == new.shape:
                mine.copy_(new)
    place = copy.deepcopy(args)
    try:
        with torch.inference_mode():
            recording = record(lambda: call(op, bound, place), Arena())
            for name in op.parameters:
                for mine, new in zip(tensors(place[name]), tensors(others[name])):
                    mine.copy_(new)
            for output in recording.output:
                output.view(torch.uint8).fill_(255)
            recording.replay()
    except RuntimeError as error:
        return [f"claims that its calls can be recorded on a CPU, but: {error}"]
    expected = call(op, bound, others) + mutated(op, others)
    if all(_same_bits(a, b) for a, b in zip(recording.output + mutated(op, place), expected, strict=True)):
        return []
    return ["claims that its calls can be recorded on a CPU, but a replay on other numbers gave other bits than a call"]
