"""Counts what Triton compiles, and what it finds ready in its cache."""

from __future__ import annotations

from typing import Any


class CompileCounter:
    """A context in which compilations are counted; also usable with ``start`` and ``stop``.

    compiled  names of kernels that were compiled, in order; a variant counts once per process and device
    loaded    names of those that were found in Triton's cache on disk
    """

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.loaded: list[str] = []
        self._previous: Any = None

    def start(self) -> None:
        """Counts from now on. A listener that was there before still hears everything."""
        from triton import knobs

        self._previous = knobs.compilation.listener
        knobs.compilation.listener = self._listen

    def stop(self) -> None:
        """Counts no longer."""
        from triton import knobs

        knobs.compilation.listener = self._previous

    def __enter__(self) -> CompileCounter:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _listen(self, *, src: Any, metadata: dict[str, Any], cache_hit: bool, **more: Any) -> None:
        (self.loaded if cache_hit else self.compiled).append(str(metadata["name"]))
        if self._previous is not None:
            self._previous(src=src, metadata=metadata, cache_hit=cache_hit, **more)
