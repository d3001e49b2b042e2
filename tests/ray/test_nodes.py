"""Ranks on two nodes, which Ray simulates on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ..distributed.ranks import make_config, make_engine, null_rank
from ..distributed.test_faults import pids, wait_until
from ..framework.engines import finish, token_params
from .clusters import actors, nothing_is_left

pytest.importorskip("ray", reason="Ray is not installed: pip install 'kernelswap[ray]'")
import ray
from ray.cluster_utils import Cluster

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def nodes() -> Iterator[None]:
    cluster, node = Cluster(), {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    try:
        cluster.add_node(**node, include_dashboard=False)
        cluster.add_node(**node)
        ray.init(address=cluster.address)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.parametrize(("placement", "size", "num_nodes"), [("pack", 2, 1), ("spread", 2, 2), ("spread", 4, 2)])
def test_ranks_are_placed_as_asked_and_stages_are_not_torn(nodes: None, placement: str, size: int, num_nodes: int) -> None:
    config = make_config(2, "ray", pp=size // 2)
    config.parallel = replace(config.parallel, placement=placement)
    wait_until(lambda: ray.available_resources().get("CPU") == 4, 60)  # Ray places on what it knows to be free
    engine = make_engine(config, null_rank)
    node_of = {actor["Pid"]: actor["Address"]["NodeID"] for actor in actors("RankActor")}
    found = [node_of[pid] for pid in pids(engine)]
    assert len(set(found)) == num_nodes
    if size == 4:
        assert found[0] == found[1] and found[2] == found[3]
    engine.add_request("r", [1, 2, 3], token_params(max_tokens=5))
    assert len(finish(engine)["r"].outputs[0].token_ids) == 5
    engine.shutdown()
    wait_until(nothing_is_left)
