"""The size of a batch compiles nothing anew. Triton compiles a kernel once for all arguments that it is told not to look at, and
again where another integer is 1 or a multiple of 16, or an address one of 16: that must follow from the layer alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.jit import JITFunction

from triton_kernels.impl import Impl
from triton_kernels.lab import calls
from triton_kernels.lab.calls import Args
from triton_kernels.op import Op
from triton_kernels.registry import Registry

REGISTRY = Registry.load()
CPU = torch.device("cpu")
KERNELS = [impl for impl in REGISTRY if impl.is_triton]
NUM_ROWS = (1, 2, 3, 16)


class Recorder:
    """Stands in for launches. ``variants``: for a kernel with its compile-time arguments and dtypes, and a batch size, what the
    other arguments are compiled for."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.variants: dict[tuple[Any, ...], dict[int, set[tuple[Any, ...]]]] = {}

    def run(self, kernel: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        bound = kernel.signature.bind(*args, **{k: v for k, v in keywords.items() if k in kernel.signature.parameters})
        constants, compiled_for = [], []
        for parameter in kernel.params:
            value = bound.arguments.get(parameter.name)
            if isinstance(value, torch.Tensor):
                constants.append(str(value.dtype))
                aligned = not parameter.do_not_specialize_on_alignment and value.data_ptr() % 16 == 0
                compiled_for.append((parameter.name, aligned))
            elif parameter.is_constexpr or not isinstance(value, int):
                constants.append(str(value))
            elif not parameter.do_not_specialize:
                compiled_for.append((parameter.name, value == 1, value % 16 == 0))
        key = (kernel.fn.__name__, *constants, keywords.get("num_warps"), keywords.get("num_stages"))
        self.variants.setdefault(key, {}).setdefault(self.num_rows, set()).add(tuple(compiled_for))

    def differences(self) -> list[str]:
        """Kernels and arguments that are compiled for something else in some batches."""
        found: set[str] = set()
        for (name, *_), by_size in self.variants.items():
            if len(set(map(frozenset, by_size.values()))) > 1:
                variants = set().union(*by_size.values())
                shared = set.intersection(*map(set, variants))
                found |= {f"{name}: {argument}" for variant in variants for argument, *_ in set(variant) - shared}
        return sorted(found)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, grid, warmup, **keywords: recorder.run(self, args, keywords))
    return recorder


def batch_of(op: Op, args: Args, num_rows: int) -> Args:
    """The first ``num_rows`` rows (or requests) of a case; repeated where it has fewer."""
    if op.name == "verify_draft":
        rows = int(args["cu_rows"][min(num_rows, len(args["row_to_seat"]))])
        cut = {"cu_rows": num_rows + 1, "row_to_seat": num_rows, "temperature": None, "seed": None}
        return {name: value[: cut.get(name, rows)] if isinstance(value, torch.Tensor) else value for name, value in args.items()}
    return calls.take_rows(op, args, 0, num_rows)[0]


def size_of(op: Op, args: Args) -> int:
    if "meta" in args:
        return int(args["meta"].num_reqs)
    return len(args["row_to_seat"] if op.name == "verify_draft" else args[op.row_args[0]])


@pytest.mark.parametrize("impl", [pytest.param(impl, id=f"{impl.op}:{impl.name}") for impl in KERNELS])
def test_the_size_of_a_batch_compiles_nothing_anew(impl: Impl, recorder: Recorder) -> None:
    op = REGISTRY.ops[impl.op]
    if not op.row_args and op.name != "verify_draft":
        pytest.skip("takes no batch of rows")
    num_calls = 0
    for case in op.cases:
        if "bench" in case.tags:
            continue
        args = calls.make_args(op, case, torch.float16, CPU)
        spec = calls.make_spec(op, args, torch.float16, CPU, interpret=True)
        if impl.unsupported(spec):
            continue
        bound = calls.bind(op, impl, spec, args)
        for num_rows in (*NUM_ROWS, size_of(op, args)):
            if 0 < num_rows <= size_of(op, args):
                recorder.num_rows = num_rows
                calls.call(op, bound, batch_of(op, args, num_rows))
                num_calls += 1
        assert not recorder.differences(), (case.name, recorder.differences())
        recorder.variants.clear()
    assert num_calls > 1


def test_prompts_and_biases_of_any_length_compile_nothing_anew(recorder: Recorder) -> None:
    gather, penalize = (REGISTRY.impls(op)["triton"] for op in ("gather_logprobs", "apply_penalties"))
    args = calls.make_args(REGISTRY.ops["apply_penalties"], REGISTRY.ops["apply_penalties"].cases[0], torch.float32, CPU)
    logits, ids = torch.zeros(2, 5000), torch.zeros(20, dtype=torch.int64)
    for recorder.num_rows in range(9, 17):
        gather.target(logits, ids[recorder.num_rows :][:2], 5, **gather.options)  # targets begin anywhere in a request's row
        wide = {name: args[name].new_zeros(args[name].shape[0], recorder.num_rows) for name in ("bias_ids", "bias_values")}
        penalize.target(**{**args, **wide}, **penalize.options)
    assert not recorder.differences()
