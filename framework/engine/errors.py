"""How engines and their devices fail."""

from __future__ import annotations


class EngineDeadError(RuntimeError):
    """The engine can serve no request any more. The text says why."""


class DeviceLostError(RuntimeError):
    """Raised by an executor, or by the result of a step: nothing will ever run on the device again. Any other exception fails one
    step only."""
