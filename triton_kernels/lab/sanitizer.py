"""Triton kernels under triton-viz, an optional package (``pip install kernelswap[viz]``): its sanitizer computes with symbols
instead of numbers and asks a solver whether any program can touch memory outside the tensors of the launch; its tracer records
accesses for a view of them. Both take the interpreter's place, so that they need no GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..impl import Impl
from ..op import Case, Op
from . import calls

Follow = Callable[[Any, Callable[[Any], None]], None]
"""Gets a kernel, and its launch under a client of triton-viz."""


@dataclass(frozen=True)
class Finding:
    """What came of one launch. ``outside``: accesses that can leave the tensors, each with its line; ``unknown``: why the launch
    could not be followed. Both empty: no access can."""

    kernel: str
    outside: tuple[str, ...] = ()
    unknown: str = ""


def missing() -> str:
    """Why triton-viz cannot be used here; "" where it can."""
    import triton

    try:
        import triton_viz  # noqa: F401
    except ModuleNotFoundError as error:
        return f"triton-viz is not whole ({error}); pip install kernelswap[viz]"
    except Exception as error:  # it reaches into Triton's interpreter, which changes from version to version
        return f"the installed triton-viz does not fit Triton {triton.__version__}: {type(error).__name__}: {error}"
    return ""


def sanitize(op: Op, impl: Impl, case: Case, dtype: torch.dtype, options: Mapping[str, Any] | None = None) -> list[Finding]:
    """A finding per launch of the impl on a case; none where it refuses the case."""
    from triton_viz.clients import Sanitizer
    from triton_viz.clients.sanitizer import sanitizer

    findings: list[Finding] = []

    def follow(kernel: Any, launch: Callable[[Any], None]) -> None:
        client = Sanitizer(abort_on_error=False)
        sanitizer._fn_symbolic_cache_set.clear()  # it passes over a launch of the same shapes, whatever the page numbers
        try:
            launch(client)
        except Exception as error:  # an operation or a control flow that it does not know
            findings.append(Finding(kernel.__name__, unknown=f"{type(error).__name__}: {error}".splitlines()[0]))
        else:
            findings.append(Finding(kernel.__name__, tuple(dict.fromkeys(map(_describe, client.records)))))

    _run(op, impl, case, dtype, options, follow)
    return findings


def trace(op: Op, impl: Impl, case: Case, dtype: torch.dtype, options: Mapping[str, Any] | None = None) -> bool:
    """Records the accesses of the impl on a case for ``view``. Returns whether it takes the case."""
    from triton_viz.clients import Tracer

    return _run(op, impl, case, dtype, options, lambda kernel, launch: launch(Tracer()))


def view(port: int) -> None:
    """Serves the view of what was traced on this machine, until interrupted."""
    from triton_viz.visualizer.interface import app

    app.run(host="127.0.0.1", port=port)  # its own launch() opens a debugger to the network


def _run(op: Op, impl: Impl, case: Case, dtype: torch.dtype, options: Mapping[str, Any] | None, follow: Follow) -> bool:
    args = calls.make_args(op, case, dtype, torch.device("cpu"))
    spec = calls.make_spec(op, args, dtype, torch.device("cpu"), interpret=True)
    if impl.unsupported(spec, options):
        return False
    with _followed(follow):
        calls.call(op, calls.bind(op, impl, spec, args, options), args)
    return True


@contextlib.contextmanager
def _followed(follow: Follow) -> Iterator[None]:
    """Inside, each launch in the interpreter is followed before it runs."""
    from triton.runtime import interpreter
    from triton_viz.clients.sanitizer import sanitizer
    from triton_viz.core import patch
    from triton_viz.core.trace import TritonTrace

    run, rows_of = interpreter.InterpretedFunction.run, sanitizer.get_physical_addr_from_tensor_slice

    def rows(tensor: torch.Tensor) -> list[tuple[int, int]]:
        """First and last address of each row of a view. The original adds the view's offset to an address that has it already."""
        twice = tensor.storage_offset() * tensor.element_size()
        return [(first - twice, last - twice) for first, last in rows_of(tensor)]

    def follow_and_run(self: Any, *args: Any, **keywords: Any) -> Any:
        if not callable(keywords["grid"]) and 0 in keywords["grid"]:
            return run(self, *args, **keywords)  # no program, which triton-viz does not expect
        interpreter.InterpretedFunction.run = run  # the trace launches too
        try:
            follow(self, lambda client: TritonTrace(self, client).run(*args, **keywords))
            return run(self, *args, **keywords)  # later launches read what this one writes
        finally:
            interpreter.InterpretedFunction.run = follow_and_run

    interpreter._triton_viz_loop_patcher = patch._loop_patcher  # rewritten functions find their loops' hooks here
    interpreter.InterpretedFunction.run, sanitizer.get_physical_addr_from_tensor_slice = follow_and_run, rows
    try:
        yield
    finally:
        interpreter.InterpretedFunction.run, sanitizer.get_physical_addr_from_tensor_slice = run, rows_of


def _describe(record: Any) -> str:
    place = record.user_code_tracebacks[-1] if record.user_code_tracebacks else None
    tensor = record.tensor
    first = tensor.data_ptr()
    beyond = record.violation_address - first
    where = f"{-beyond} bytes ahead of" if beyond < 0 else f"byte {beyond} of {tensor.numel() * tensor.element_size()} of"
    line = f"{place.filename}:{place.lineno}: {place.line_of_code.strip()}" if place is not None else "an unknown line"
    return f"{record.op_type.__name__.lower()} at {where} {record.tensor_name or 'a tensor'} ({line})"
