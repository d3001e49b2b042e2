"""Launching a Triton kernel at little cost to the host: ``Launch(kernel, **fixed)`` stands for ``kernel[grid](...)``.

    self.launch = Launch(_scale_kernel, factor=2.0, BLOCK=1024, num_warps=4)      # when a layer is bound
    self.launch((cdiv(num_rows, 4),), x, out, num_rows, ROWS=4)                   # in a call

``fixed`` is what the layer knows: options of the launch, constexprs, and the last of the kernel's other parameters. A call gives
the grid, a tuple; the remaining arguments by position, in the kernel's order; and by name the constexprs that depend on the call.
In a kernel's signature constexprs come last, and before them what layers fix.

The first launch of a variant goes through the JIT; the next ones hand the variant's binary to the driver. What a variant is, the
JIT's own code says for each argument (its type; whether an address or an integer is a multiple of 16; whether an integer is 1;
what AMD's compiler wants to know of a tensor), so that nothing runs on a binary that was compiled for something else. A fixed
tensor stays where it is. Where somebody observes launches or compilation (hooks, an instrumentation, tools that stand in for the
JIT), and in the interpreter, every launch goes the JIT's way.

``cdiv`` and ``next_power_of_2`` are for the host, where Triton's own, which also take constexprs, need 3 us each.
"""

from __future__ import annotations

from typing import Any

from triton import knobs
from triton._C.libtriton import native_specialize_impl
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is not below n > 0."""
    return 1 << (n - 1).bit_length()


class Launch:
    """A kernel with what does not change between its launches."""

    def __init__(self, kernel: Any, **fixed: Any) -> None:
        self._kernel, self._fixed = kernel, fixed
        self._by_device: dict[int, tuple[list[Any], dict[tuple[Any, ...], CompiledKernel]]] = {}
        if not isinstance(kernel, JITFunction):
            return
        constexprs = [param for param in kernel.params if param.is_constexpr]
        last = [param for param in kernel.params if param.name in fixed and not param.is_constexpr]
        self._given = [param for param in kernel.params if param.name not in fixed and not param.is_constexpr]
        in_order = [*self._given, *last, *constexprs] == kernel.params
        assert in_order, f"{kernel.__name__}: after what a call gives come what is fixed, then constexprs: {kernel.arg_names}"
        # A constexpr has a place in a launch, where nobody reads it.
        self._last = [*(fixed[param.name] for param in last), *[None] * len(constexprs)]
        self._traits = (
            [param.is_const for param in self._given],
            [not param.do_not_specialize for param in self._given],
            [not param.do_not_specialize_on_alignment for param in self._given],
        )

    def __call__(self, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        """Launches on the current device and stream."""
        if self._is_observed():
            self._kernel.run(*args, grid=grid, warmup=False, **self._fixed, **constants)
            return
        assert len(args) == len(self._given), f"{self._kernel.__name__} takes {[param.name for param in self._given]} by position"
        active = driver.active
        device = active.get_current_device()
        backends, variants = self._by_device.get(device) or self._enter(device)
        is_const, specialize, align = self._traits
        variant = tuple(map(native_specialize_impl, backends, args, is_const, specialize, align))
        if constants:
            variant += (*constants, *constants.values())
        kernel = variants.get(variant)
        if kernel is None:
            kernel = self._kernel.run(*args, grid=grid, warmup=False, **self._fixed, **constants)
            if isinstance(kernel, CompiledKernel):
                variants[variant] = kernel
            return
        x, y, z = (*grid, 1, 1)[:3]
        stream = active.get_current_stream(device)
        kernel.run(x, y, z, stream, kernel.function, kernel.packed_metadata, None, None, None, *args, *self._last)

    def _enter(self, device: int) -> tuple[list[Any], dict[tuple[Any, ...], CompiledKernel]]:
        backend = self._kernel.device_caches[device][3]
        self._by_device[device] = ([backend] * len(self._given), {})
        return self._by_device[device]

    def _is_observed(self) -> bool:
        """Whether a launch, or what it compiles, is somebody's concern beside the driver's."""
        runtime = knobs.runtime
        return bool(
            type(self._kernel).run.__module__ != JITFunction.__module__
            or getattr(runtime.launch_enter_hook, "calls", runtime.launch_enter_hook)
            or getattr(runtime.launch_exit_hook, "calls", runtime.launch_exit_hook)
            or runtime.add_stages_inspection_hook
            or runtime.debug
            or knobs.compilation.instrumentation_mode
            or self._kernel.pre_run_hooks
        )
