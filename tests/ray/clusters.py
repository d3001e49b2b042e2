"""What a cluster knows of its actors and placement groups, also without a dashboard."""

from __future__ import annotations

from typing import Any


def actors(name: str) -> list[dict[str, Any]]:
    """Those whose class has ``name`` in its name, and that have not ended."""
    import ray._private.state

    found = ray._private.state.actors().values()
    return [actor for actor in found if name in actor["ActorClassName"] and actor["State"] != "DEAD"]


def groups() -> list[dict[str, Any]]:
    """Placement groups that are still there."""
    import ray.util

    return [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def nothing_is_left() -> bool:
    return not actors("RankActor") and not groups()
