"""What a drafter keeps of each token, at the token's place in the model's blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...engine.kv_cache.spec import CacheGroup, PagedKV
from ...plan import KernelPlan
from ..batches import Batches
from ..cache_memory import allocate_caches
from ..request_rows import RequestRows


class DraftCache:
    """Memory of its own beside the model's, by the block numbers of one KV group: the one that sees farthest. So the drafter's
    layers, of which there are few, do not cut the model's groups to their number."""

    def __init__(
        self,
        specs: Sequence[PagedKV],
        groups: Sequence[CacheGroup],
        num_blocks: int,
        block_size: int,
        rows: RequestRows,
        plan: KernelPlan,
        ahead: int,
    ) -> None:
        """ahead: as Guesser has it."""
        windows = [group.spec.window for group in groups]
        self._group = windows.index(None) if None in windows else windows.index(max(filter(None, windows)))
        alone = (allocate_caches((CacheGroup(spec, (0,)),), num_blocks, block_size, rows.device)[0] for spec in specs)
        caches = dict(enumerate(alone))
        slot_mapping = plan.bind("slot_mapping", params={"page_size": block_size})
        self.batches = Batches(rows, slot_mapping, slice(self._group, self._group + 1), caches, ahead)
        self._copy = plan.bind("copy_blocks", facts={"page_size": block_size})

    def copy_blocks(self, group: int, source: torch.Tensor, destination: torch.Tensor) -> None:
        """As DeviceProposer has it."""
        if group == self._group:
            for kv in self.batches.caches.values():
                self._copy(kv, source, destination)
