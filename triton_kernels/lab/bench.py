"""Measuring impls side by side: for each case all impls of an op in one interleaved run, correctness before speed.

Tasks are ordered by importance, so that a run cut short by its budget has measured what matters; rows are handed out case by
case, and what a folder already holds is not measured again.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import torch

from ..devices import by_arch
from ..impl import Impl
from ..op import Case, Op
from ..registry import Registry
from ..resolve import Choice, parse_choice
from ..spec import Spec, device_arch
from ..tuning import TunedTables
from . import calls, conformance
from .ceilings import Ceilings, compute_format
from .measured import same_shape
from .timing import Subject, interleave, num_copies

IMPORTANCE = (
    "paged_attention_decode",
    "paged_attention_prefill",
    "gemm_w4a16",
    "linear",
    "gemm_fp8",
    "moe_experts",
    "sample",
    "qk_norm_rotary_kv_write",
    "rms_norm",
    "silu_and_mul",
    "gemm_int8",
    "gemm_w8a16",
)
"""Ops by their share of a served step and by how far impls lie apart; the others follow in the order of the registry."""
CPU_MAX_FLOPS = 4e9
"""Without a GPU larger cases are left out: the reference in float64 would take minutes."""


@dataclass(frozen=True)
class Contender:
    """An impl with the options of a choice; ``label`` is what its rows are called."""

    impl: Impl
    choice: Choice

    @property
    def label(self) -> str:
        return str(self.choice)


@dataclass(frozen=True)
class Task:
    """One case of one op, and the impls that meet there."""

    op: Op
    case: Case
    contenders: tuple[Contender, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.op.name, self.case.name


@dataclass
class Row:
    """One impl on one case. Times are per call; ``percent_of_ceiling`` is the least time that the ceilings allow over the
    median. ``ratios``: a baseline's median over ours, above 1 where we are faster; baselines are all impls but our Triton kernels.
    ``measured_us``: what other projects' kernels took for the shape on the device of the table that stands for the architecture.

    dims     of the case, as text: ``hidden_size=4096``; q_lens, ctx_lens likewise: ``512 1*31``, one request of 512 and 31 of 1
    impl     or the name of a yardstick of the op, which does other work: nothing is compared
    status   "ok", "wrong" (timed all the same), "refused", "error" or "left out"; ``message`` says why
    mode     "graph": replays of a captured graph; "eager": with the host's cost of launching
    cold     the copies of the inputs exceed the L2 cache, so that each call reads from memory
    count    how often the workload made the call that the case was captured from; 0 for one that was made up
    """

    op: str
    impl: str
    case: str
    dtype: str
    device: str
    arch: str
    status: str
    message: str = ""
    error: float | None = None
    limit: float | None = None
    median_us: float | None = None
    p25_us: float | None = None
    p75_us: float | None = None
    num_samples: int = 0
    calls_per_sample: int = 0
    mode: str = ""
    num_copies: int = 0
    cold: bool = False
    count: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    tflops_s: float | None = None
    tb_s: float | None = None
    bound_by: str = ""
    percent_of_ceiling: float | None = None
    ceiling_tflops_s: float | None = None
    ceiling_tb_s: float | None = None
    dims: str = ""
    q_lens: str = ""
    ctx_lens: str = ""
    ratios: dict[str, float] = field(default_factory=dict)
    measured_us: dict[str, float] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """The row as one dictionary of scalars: ratios become ``ratio.<baseline>``, times of others ``measured_us.<kernel>``."""
        values = asdict(self)
        maps = {"ratio": values.pop("ratios"), "measured_us": values.pop("measured_us")}
        return values | {f"{key}.{name}": value for key, entries in maps.items() for name, value in entries.items()}


def lengths_text(lengths: Iterable[int]) -> str:
    """Lengths with equal neighbours together: ``512 1*31``."""
    runs = [(length, len(list(equal))) for length, equal in groupby(lengths)]
    return " ".join(f"{length}*{count}" if count > 1 else f"{length}" for length, count in runs)


def select_tasks(
    registry: Registry,
    kernels: Iterable[str] = (),
    shapes: Collection[str] = (),
    with_reference: bool = False,
    captured: Mapping[str, Sequence[Case]] | None = None,
) -> list[Task]:
    """What is to be measured, most important first: the first case of every op, then the second, ...

    kernels  ``OP`` for all its impls, or ``OP:CHOICE`` (may repeat an op); none = every op that has cases
    shapes   cases whose name begins so ("llama-8b"); none = all cases made for benchmarks
    captured  op -> cases to take instead of its own
    """
    chosen: dict[str, list[Contender]] = {}
    for name in kernels or registry.ops:
        op, _, text = name.partition(":")
        found = registry.impls(op)
        if text:
            choice = parse_choice(text)
            if choice.name not in found:
                raise ValueError(f"{op} has no impl named {choice.name!r}; there are {', '.join(found)}")
            chosen.setdefault(op, []).append(Contender(found[choice.name], choice))
        else:
            names = [n for n in found if n != "reference" or with_reference]
            chosen.setdefault(op, []).extend(Contender(found[n], Choice(n, {})) for n in names)
    tasks: list[tuple[int, int, Task]] = []
    order = [*IMPORTANCE, *(name for name in registry.ops if name not in IMPORTANCE)]
    for name, contenders in chosen.items():
        cases = [case for case in (captured or {}).get(name, registry.ops[name].cases) if _wanted(case, shapes)]
        tasks += [(i, order.index(name), Task(registry.ops[name], case, tuple(contenders))) for i, case in enumerate(cases)]
    if not tasks:
        lack = f"begins with {', '.join(shapes)}" if shapes else "is made for benchmarks"
        raise ValueError(f"no case of {', '.join(chosen)} {lack}")
    return [task for _, _, task in sorted(tasks, key=lambda entry: entry[:2])]


def _wanted(case: Case, shapes: Collection[str]) -> bool:
    return any(case.name == shape or case.name.startswith(f"{shape}_") for shape in shapes) if shapes else "bench" in case.tags


def run(
    tasks: Sequence[Task],
    device: torch.device,
    dtype: torch.dtype,
    *,
    done: Collection[tuple[str, str]] = (),
    budget_s: float = float("inf"),
    limit_s: float = 10.0,
    tables: TunedTables | None = None,
) -> Iterator[list[Row]]:
    """Measures task by task and yields each task's rows. Tasks in ``done`` (op, case) are left out; none is begun after
    ``budget_s``. ``limit_s``: time for the samples of one task."""
    start = time.perf_counter()
    ceilings: Ceilings | None = None
    for task in tasks:
        if task.key in done:
            continue
        if time.perf_counter() - start > budget_s:
            return
        ceilings = ceilings or Ceilings.measure(device)
        yield measure(task, device, dtype, ceilings, limit_s, tables)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure(
    task: Task,
    device: torch.device,
    dtype: torch.dtype,
    ceilings: Ceilings,
    limit_s: float = 10.0,
    tables: TunedTables | None = None,
) -> list[Row]:
    """The rows of one task."""
    op, case = task.op, task.case
    width = dict.fromkeys(("act_bytes", "weight_bytes", "kv_bytes"), dtype.itemsize)
    dims = {**width, **case.dims}
    cost, known = op.cost(dims, case.q_lens, case.ctx_lens), by_arch(device_arch(device)).name
    peers = same_shape(known, op.name, dims, case.q_lens, case.ctx_lens) if dtype.itemsize == 2 and device.type == "cuda" else {}
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    rows = {
        label: Row(
            op.name,
            label,
            case.name,
            str(dtype).removeprefix("torch."),
            device_name,
            device_arch(device),
            "ok",
            dims=" ".join(f"{name}={value:.12g}" for name, value in case.dims.items()),
            q_lens=lengths_text(case.q_lens),
            ctx_lens=lengths_text(case.ctx_lens),
            flops=cost.flops,
            bytes=cost.bytes,
            count=case.count,
            measured_us=peers,
        )
        for label in (*(contender.label for contender in task.contenders), *op.yardsticks)
    }
    if device.type == "cpu" and cost.flops > CPU_MAX_FLOPS:
        for row in rows.values():
            row.status, row.message = "left out", f"{cost.flops / 1e9:.0f} GFLOP are too many for a CPU"
        return list(rows.values())
    args = calls.make_args(op, case, dtype, device)
    spec = calls.make_spec(op, args, dtype, device)
    _check(task, rows, spec, args, tables)
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    copies = num_copies(cost.bytes, calls.held_bytes(args), cache_bytes)
    subjects = {}
    for contender in task.contenders:
        row = rows[contender.label]
        if row.status in ("ok", "wrong"):
            subjects[contender.label] = _subject(op, contender, spec, args, copies, tables)
    for name, yardstick in op.yardsticks.items():
        own = op.cost({**dims, **yardstick.dims}, case.q_lens, case.ctx_lens)
        rows[name].flops, rows[name].bytes = own.flops, own.bytes
        subjects[name] = Subject([yardstick.make(copy.deepcopy(args)) for _ in range(copies)])
    _time(subjects, rows, device, limit_s)
    ours = {c.label for c in task.contenders if c.impl.is_triton and c.impl.origin.startswith("triton_kernels.")}
    baselines = rows.keys() - ours
    for row in rows.values():
        row.num_copies, row.cold = copies, copies * cost.bytes >= cache_bytes > 0
        _rate(row, ceilings, ceilings.flops(compute_format(op.name, case.dims, dtype)))
        row.ratios = _ratios(row, {label: rows[label] for label in baselines})
    return list(rows.values())


def _check(task: Task, rows: Mapping[str, Row], spec: Spec, args: calls.Args, tables: TunedTables | None) -> None:
    """Fills in status, error and limit. The reference runs once."""
    op = task.op
    limit = op.limit(task.case, spec.dtype)
    for contender in task.contenders:
        if reasons := contender.impl.unsupported(spec, contender.choice.options):
            rows[contender.label].status, rows[contender.label].message = "refused", "; ".join(reasons)
    if all(rows[contender.label].status != "ok" for contender in task.contenders):
        return
    expected_args = copy.deepcopy(args)
    expected = calls.outputs(op.reference(**expected_args))
    for contender in task.contenders:
        row = rows[contender.label]
        if row.status != "ok":
            continue
        got_args = copy.deepcopy(args)
        try:
            bound = calls.bind(op, contender.impl, spec, got_args, contender.choice.options, tables)
            got = calls.call(op, bound, got_args)
        except Exception as error:  # one impl's failure is a row, the others still run
            row.status, row.message = "error", f"{type(error).__name__}: {error}"
            continue
        own_rng = contender.impl.flags.rng == "own"
        problems, row.error = conformance.compare(op, args, got, got_args, expected, expected_args, limit, own_rng)
        row.limit = limit
        if problems:
            row.status, row.message = "wrong", "; ".join(problems)


def _subject(op: Op, contender: Contender, spec: Spec, args: calls.Args, copies: int, tables: TunedTables | None) -> Subject:
    runs = []
    for _ in range(copies):
        own = copy.deepcopy(args)
        bound = calls.bind(op, contender.impl, spec, own, contender.choice.options, tables)
        if "meta" in own and hasattr(bound, "begin_step"):
            bound.begin_step(own["meta"])  # once per step, not per call: layers share it
        inputs = [own[name] for name in op.call_args]
        runs.append(lambda bound=bound, inputs=inputs: bound(*inputs))
    return Subject(runs, capture=contender.impl.flags.cuda_graph)


def _time(subjects: dict[str, Subject], rows: Mapping[str, Row], device: torch.device, limit_s: float) -> None:
    """Interleaved; where one contender fails, the others are timed again without it."""
    while subjects:
        try:
            timings = interleave(subjects, device, limit_s=limit_s)
        except Exception:
            failed = [label for label, subject in subjects.items() if _fails(rows[label], subject, device)]
            if not failed:
                raise
            for label in failed:
                del subjects[label]
            continue
        for label, timing in timings.items():
            row = rows[label]
            row.median_us, row.p25_us, row.p75_us = timing.median_s * 1e6, timing.p25_s * 1e6, timing.p75_s * 1e6
            row.num_samples, row.calls_per_sample, row.mode = timing.num_samples, timing.calls_per_sample, timing.mode
        return


def _fails(row: Row, subject: Subject, device: torch.device) -> bool:
    try:
        interleave({"": subject}, device, num_rounds=1)
    except Exception as error:
        row.status, row.message = "error", f"while timed: {type(error).__name__}: {error}"
        return True
    return False


def _rate(row: Row, ceilings: Ceilings, flops_s: float) -> None:
    row.ceiling_tflops_s, row.ceiling_tb_s = flops_s / 1e12, ceilings.copy_bytes_s / 1e12
    arithmetic_s, memory_s = row.flops / flops_s, row.bytes / ceilings.copy_bytes_s
    row.bound_by = "arithmetic" if arithmetic_s > memory_s else "memory"
    if row.median_us is not None:
        seconds = row.median_us * 1e-6
        row.tflops_s, row.tb_s = row.flops / seconds / 1e12, row.bytes / seconds / 1e12
        row.percent_of_ceiling = 100 * max(arithmetic_s, memory_s) / seconds


def _ratios(row: Row, baselines: Mapping[str, Row]) -> dict[str, float]:
    if row.median_us is None:
        return {}
    timed = {name: other.median_us for name, other in baselines.items() if other.median_us is not None and name != row.impl}
    return {name: median / row.median_us for name, median in timed.items()}
