"""Triton's interpreter, which is chosen per process."""

from __future__ import annotations

import os
import sys


def enable_interpreter() -> None:
    """Makes Triton kernels run in the interpreter. To be called before anything imports Triton, as transformers does through torch:
    Triton decides when its own library of functions is defined. Raises ValueError where it is too late."""
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "interpret=true must be set before Triton is first imported in a process (transformers imports it): build the engine "
            "first, start a fresh process, or set TRITON_INTERPRET=1 in its environment"
        )
    os.environ["TRITON_INTERPRET"] = "1"
