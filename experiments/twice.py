"""Kernels that do their work twice: their time is known to be scaled by 2, in truth and not by a delay. As a plugin
(``plugins=[experiments/twice.py]``) they hold experiments/sensitivity.py to what it foretells."""

from __future__ import annotations

from typing import Any

from triton_kernels.impl import Impl, impl
from triton_kernels.impls.linear.native import LinearNative
from triton_kernels.impls.paged_attention_decode.native import DecodeNative
from triton_kernels.impls.silu_and_mul.native import SiluAndMulNative


def _twice(once: Any) -> Impl:
    """Of an impl that writes nothing but its output."""

    class Twice(once.target):  # type: ignore[name-defined, misc]
        def __call__(self, *args: Any) -> Any:
            super().__call__(*args)
            return super().__call__(*args)

    Twice.__module__ = __name__
    return impl(once.op, "twice", flags=once.flags, devices=once.devices)(Twice)


linear, silu_and_mul, paged_attention_decode = _twice(LinearNative), _twice(SiluAndMulNative), _twice(DecodeNative)
