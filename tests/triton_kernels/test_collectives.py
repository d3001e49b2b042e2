"""The collectives with several ranks: threads of the test, and three processes with gloo, against float64 sums."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import threading
from collections.abc import Iterator
from itertools import product
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist

from framework.cli.child import compile_for
from triton_kernels.group import ProcessGroup, SoloGroup, ThreadGroup
from triton_kernels.lab.calls import bind, make_args, make_spec
from triton_kernels.lab.conformance import relative_error
from triton_kernels.lab.gates import check_gates
from triton_kernels.ops import OPS
from triton_kernels.spec import Spec

from ..thread_ranks import run_ranks
from .ranks import IMPLS, call_as, partials

ROWS = 7
WORLD = 3
LIMIT = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
ON_THREADS = [
    (op, name)
    for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "all_reduce_add_rms_norm")
    for name, found in IMPLS[op].items()
    if not found.unsupported(Spec("cpu", "cpu", torch.float32, facts={"backend": "threads", "ranks": WORLD}))
]
ON_GLOO = [
    (op, name)
    for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
    for name, found in IMPLS[op].items()
    if not found.unsupported(Spec("cpu", "cpu", torch.float32, facts={"backend": "gloo", "ranks": WORLD}))
]


def every(pairs: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("op", "name"), pairs, ids=[f"{op}-{name}" for op, name in pairs])


def inputs(op: str, size: int, dtype: torch.dtype, rows: int = ROWS) -> tuple[list[list[torch.Tensor]], dict[str, Any]]:
    """The tensors of each rank's call, and what all bind."""
    blocks = size if op in ("reduce_scatter", "all_to_all") else 1
    summed = op not in ("all_gather", "all_to_all")
    parts = partials(size, blocks * rows, 37, torch.float32 if summed else dtype)
    if op == "all_reduce_add_rms_norm":
        residual = torch.randn(rows, 37, generator=torch.Generator().manual_seed(9)).to(dtype)
        return [[part, residual.clone()] for part in parts], {"weight": torch.linspace(0.5, 2, 37).to(dtype), "eps": 1e-5}
    bound: dict[str, Any] = {"out_dtype": dtype} if summed else {"dim": 1} if op == "all_gather" else {}
    return [[part] for part in parts], bound | ({"bias": torch.linspace(-1, 1, 37).to(dtype)} if op == "all_reduce" else {})


def expected(op: str, rank: int, size: int, tensors: list[list[torch.Tensor]], bound: dict[str, Any]) -> torch.Tensor:
    """Of plain float64 arithmetic on what all ranks bring."""
    parts = [given[0].double() for given in tensors]
    rows = slice(rank * len(parts[0]) // size, (rank + 1) * len(parts[0]) // size)
    if op == "all_gather":
        return torch.cat(parts, 1)
    if op == "all_to_all":
        return torch.cat([part[rows] for part in parts])
    total = torch.stack(parts).sum(0)
    if op == "reduce_scatter":
        return total[rows]
    if op == "all_reduce":
        return total + bound["bias"].double()
    summed = total + tensors[rank][1].double()
    return torch.nn.functional.rms_norm(summed, (37,), bound["weight"].double(), bound["eps"])


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("size", [2, 3, 4])
@every(ON_THREADS)
def test_threads_against_float64(op: str, name: str, size: int, dtype: torch.dtype) -> None:
    tensors, bound = inputs(op, size, dtype)
    rounding = 8e-3 if op == "all_reduce_add_rms_norm" and dtype == torch.bfloat16 else LIMIT[dtype]
    wanted = [expected(op, rank, size, tensors, bound) for rank in range(size)]  # before residuals change

    def work(group: ThreadGroup) -> list[torch.Tensor]:
        copies = [[x.clone() for x in tensors[group.rank]] for _ in range(2)]
        return [call_as(op, name, group, copy, bound) for copy in copies]

    for (result, again), right in zip(run_ranks(size, work), wanted, strict=True):
        assert result.dtype == dtype and relative_error(result, right) <= rounding
        assert torch.equal(result, again)


@every([(op, name) for op, name in ON_THREADS if IMPLS[op][name].flags.batch_invariant and op != "all_to_all"])
def test_a_row_has_the_same_bits_in_messages_of_any_size(op: str, name: str) -> None:
    blocks = WORLD if op == "reduce_scatter" else 1

    def work(group: ThreadGroup) -> list[torch.Tensor]:
        first_rows = []
        for rows in (1, 7, 1664, 2048):
            tensors, bound = inputs(op, WORLD, torch.float32, rows)
            tensors[group.rank] = [x.clone() for x in tensors[group.rank]]
            for x in tensors[group.rank]:  # the first row of each block
                generator = torch.Generator().manual_seed(group.rank)
                x[:: len(x) // (blocks if x.dim() == 2 and len(x) > rows else 1)] = torch.randn(1, 37, generator=generator)
            first_rows.append(call_as(op, name, group, tensors[group.rank], bound)[0])
        return first_rows

    for first, *others in run_ranks(WORLD, work):
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("shape", [(0, 37), (5, 37)], ids=["no rows", "strided"])
@every(ON_THREADS)
def test_no_rows_and_strided_rows(op: str, name: str, shape: tuple[int, int]) -> None:
    tensors, bound = inputs(op, 2, torch.float32, shape[0])
    strided = [[torch.cat([x, x], 1)[:, :37] for x in given] for given in tensors]
    wanted = [expected(op, rank, 2, tensors, bound) for rank in range(2)]
    results = run_ranks(2, lambda group: call_as(op, name, group, strided[group.rank], bound))
    assert all(torch.allclose(result.double(), right, atol=1e-5) for result, right in zip(results, wanted, strict=True))


def test_primitives_of_threads() -> None:
    def work(group: ThreadGroup) -> list[int]:
        mine = torch.tensor([group.rank])
        group.send(mine, (group.rank + 1) % WORLD)
        received = group.recv(torch.empty(1, dtype=torch.int64), (group.rank - 1) % WORLD)
        gathered = group.all_gather(mine)
        return [int(received), int(group.broadcast(mine.clone(), 2)), *map(int, gathered)]

    assert run_ranks(WORLD, work) == [[(rank - 1) % WORLD, 2, 0, 1, 2] for rank in range(WORLD)]


@pytest.mark.parametrize("waits", ["all_gather", "recv"])
def test_a_rank_that_dies_is_named_by_the_others(waits: str) -> None:
    """Whenever they wait for it: its next steps were submitted, too."""
    errors: dict[int, str] = {}

    def work(group: ThreadGroup) -> None:
        x = torch.ones(2)
        try:
            with group:
                group.all_gather(x)
                if group.rank == 1:
                    raise ZeroDivisionError("its own fault")
                with contextlib.suppress(RuntimeError):
                    group.all_gather(x) if waits == "all_gather" else group.recv(x, 1)
                group.all_gather(x) if waits == "all_gather" else group.recv(x, 1)
        except (RuntimeError, ZeroDivisionError) as error:
            errors[group.rank] = str(error)

    threads = [threading.Thread(target=work, args=(group,)) for group in ThreadGroup.make(WORLD)]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    dead = "rank 1 of 3 failed: ZeroDivisionError: its own fault"
    assert errors == {0: dead, 1: "its own fault", 2: dead}


def test_a_rank_that_skips_a_collective_is_given_up() -> None:
    def work(group: ThreadGroup) -> None:
        if group.rank:
            group.barrier()

    with pytest.raises(RuntimeError, match=r"rank [12] waited for the others of 3: one of them skipped"):
        run_ranks(WORLD, work, timeout_s=0.05)


# Products that ranks share.


SHARED = [
    (product_impl, sum_impl)
    for product_impl, sum_impl in product(IMPLS["linear"].values(), IMPLS["all_reduce"].values())
    if product_impl.flags.rank_invariant and sum_impl.flags.rank_invariant and (("all_reduce", sum_impl.name) in ON_THREADS)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_in", [64, 88, 96])
@pytest.mark.parametrize(("linear", "reduce"), SHARED, ids=lambda found: found.name)
def test_bits_do_not_depend_on_the_number_of_ranks(linear: Any, reduce: Any, num_in: int, dtype: torch.dtype) -> None:
    """Beside impls that promise it an ordinary sum over ranks differs."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((19, num_in), (23, num_in), (23,)))

    def multiply(x: torch.Tensor, weight: torch.Tensor, name: str = linear.name, **more: Any) -> torch.Tensor:
        args = {"weight": weight.contiguous(), "bias": None, **OPS["linear"].defaults, **more}
        spec = make_spec(OPS["linear"], args, dtype, torch.device("cpu"))
        result: torch.Tensor = bind(OPS["linear"], IMPLS["linear"][name], spec, args)(x.contiguous())
        return result

    whole = multiply(x, weight, bias=bias)
    assert relative_error(whole, x.double() @ weight.double().T + bias.double()) < LIMIT[dtype]
    for size in (2, 4, 8):

        def work(group: ThreadGroup) -> torch.Tensor:
            mine = slice(group.rank * num_in // group.size, (group.rank + 1) * num_in // group.size)
            part = multiply(x[:, mine], weight[:, mine], partial=True)
            return call_as("all_reduce", reduce.name, group, [part], {"bias": bias, "out_dtype": dtype})

        assert all(torch.equal(whole, result) for result in run_ranks(size, work)), size
        rows = [multiply(x[:3], block) for block in weight.split(23 // size + 1)]  # ranks that share the outputs
        assert torch.equal(multiply(x, weight)[:3], torch.cat(rows, 1))


def test_the_tree_refuses_fewer_columns_than_its_segments() -> None:
    args = {"weight": torch.ones(3, 6), "bias": None, "partial": True}
    spec = make_spec(OPS["linear"], args, torch.float32, torch.device("cpu"))
    tree = IMPLS["linear"]["tree"]
    assert tree.unsupported(spec, {"width": 8}) == ["needs 8 columns on each rank, here are 6: lower the width"]
    assert not tree.unsupported(spec, {"width": 6}) and not tree.unsupported(spec)


@pytest.mark.parametrize("op", [name for name, op in OPS.items() if "partial" in op.optional])
def test_a_partial_result_is_not_rounded(op: str) -> None:
    """And an impl that cannot do it is passed over."""
    [case] = [case for case in OPS[op].cases if case.name.endswith("_partial")][:1]
    args = make_args(OPS[op], case, torch.bfloat16, torch.device("cpu"))
    assert OPS[op].reference(**args).dtype == torch.float64
    spec = make_spec(OPS[op], args, torch.bfloat16, torch.device("cpu"))
    result = bind(OPS[op], IMPLS[op]["torch"], spec, args)(*(args[name] for name in OPS[op].call_args))
    assert result.dtype == torch.float32 and not torch.equal(result, result.bfloat16().float())
    if op != "lora_shrink":  # whose output is float32 in any case
        assert all("does not take partial" in str(found.unsupported(spec)) for name, found in IMPLS[op].items() if name == "native")


# Processes.


def process(rank: int, store: str, pipe: Connection) -> None:
    """Calls what the pipe names until it is closed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    group = ProcessGroup()
    while (order := pipe.recv()) is not None:
        op, name, dtype, rows = order
        if op == "primitives":
            mine = torch.tensor([rank])
            group.send(mine, (rank + 1) % WORLD) if rank else None
            received = group.recv(torch.empty(1, dtype=torch.int64), (rank - 1) % WORLD)
            group.send(mine, 1) if not rank else None
            group.barrier()
            pipe.send([int(received), int(group.broadcast(mine.clone(), 2)), *map(int, group.all_gather(mine))])
            continue
        tensors, bound = inputs(op, WORLD, dtype, rows)
        pipe.send([call_as(op, name, group, tensors[rank], bound).float().numpy() for _ in range(2)])
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context("spawn")
    store = tmp_path_factory.mktemp("gloo") / "store"
    ends = [context.Pipe() for _ in range(WORLD)]
    children = [context.Process(target=process, args=(rank, str(store), end[1]), daemon=True) for rank, end in enumerate(ends)]
    for child in children:
        child.start()
    yield [end[0] for end in ends]
    for end in ends:
        end[0].send(None)
    for child in children:
        child.join(timeout=20)
        assert child.exitcode == 0


def ask(processes: list[Connection], *order: Any) -> list[Any]:
    for pipe in processes:
        pipe.send(order)
    assert all(pipe.poll(60) for pipe in processes)
    return [pipe.recv() for pipe in processes]


@every(ON_GLOO)
def test_processes_against_float64(processes: list[Connection], op: str, name: str) -> None:
    for dtype, limit in LIMIT.items():
        tensors, bound = inputs(op, WORLD, dtype)
        for rank, (result, again) in enumerate(ask(processes, op, name, dtype, ROWS)):
            assert relative_error(torch.from_numpy(result), expected(op, rank, WORLD, tensors, bound)) <= limit
            assert (result == again).all()
    assert all(result.size == 0 for result, _ in ask(processes, op, name, torch.float32, 0))


def test_primitives_of_processes(processes: list[Connection]) -> None:
    assert ask(processes, "primitives", "", None, 0) == [[(rank - 1) % WORLD, 2, 0, 1, 2] for rank in range(WORLD)]


# Machine code, and what is refused.


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_both_algorithms_and_the_fused_norm_compile_and_pass_their_gates(target: str) -> None:
    pytest.importorskip("triton")
    compiled = compile_for(target, ["all_reduce:triton", "all_reduce_add_rms_norm:triton"])
    assert not [result.error or result.refused for result in compiled if result.error or result.refused]
    artifacts = [artifact for result in compiled for artifact in result.artifacts]
    assert {artifact.kernel for artifact in artifacts} == {"one_shot_kernel", "two_shot_kernel", "reduce_norm_kernel"}
    assert check_gates(artifacts) == []


@pytest.mark.parametrize(
    ("name", "facts", "reason"),
    [
        ("gloo", {"backend": "threads"}, "serves groups of gloo, this one is of threads"),
        ("threads", {"backend": "gloo"}, "serves groups of threads"),
        ("nccl", {"backend": "nccl"}, "runs on cuda, not on cpu"),
        ("flashinfer", {"backend": "nccl"}, "needs the package flashinfer"),
    ],
)
def test_what_an_impl_cannot_serve_is_a_reason(name: str, facts: dict[str, Any], reason: str) -> None:
    found = IMPLS["all_reduce"][name].unsupported(Spec("cpu", "cpu", torch.float32, facts=facts))
    assert any(reason in text for text in found)


def test_more_ranks_than_a_kernel_adds_are_refused() -> None:
    pytest.importorskip("triton")
    spec = Spec("cuda", "sm_90", torch.bfloat16, facts={"ranks": 16, "backend": "nccl"})
    assert IMPLS["all_reduce"]["triton"].unsupported(spec) == ["adds up to 8 ranks, not 16"]


def test_a_copied_layer_keeps_its_group() -> None:
    group = SoloGroup()
    assert copy.deepcopy({"group": group})["group"] is group
