"""What runs in Ray beside ranks (``distributed/launchers/ray.py``): replicas of the server, and batches of a data set."""

from __future__ import annotations

from ..distributed.kinds import LAUNCHERS

if (_reason := LAUNCHERS["ray"].reason) is not None:
    raise ImportError(f"framework.ray cannot work: {_reason}")
