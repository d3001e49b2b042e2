"""Steps of a model that pools: as the other runner's, without logits, samples and drafts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ...engine.kv_cache.spec import CacheGroup
from ...engine.step import StepInput, StepOutput
from ...models.pooling.heads import Heads
from ...models.protocol import Model
from ...plan import KernelPlan, LayerKV
from ..batches import Batches
from ..request_rows import RequestRows
from ..step_rows import StepRows
from ..transfer import HostCopy, device_losses, to_device
from .states import States


class PooledHandle:
    """A step that was launched. pooled: row -> f32 [D] or [T, D], which may still be on its way from the device."""

    def __init__(self, step_id: int, pooled: dict[int, torch.Tensor]) -> None:
        self._step_id, self._rows = step_id, list(pooled)
        self._copy = HostCopy(*pooled.values()) if pooled else None

    def result(self) -> StepOutput:
        with device_losses():
            found = [] if self._copy is None else self._copy.arrays()
        return StepOutput(self._step_id, [], pooled=dict(zip(self._rows, found)))


class PoolingRunner:
    """Executes step inputs on a model whose requests end with their prompt."""

    def __init__(
        self,
        model: Model,
        heads: Heads,
        plan: KernelPlan,
        groups: tuple[CacheGroup, ...],
        caches: Mapping[int, LayerKV],
        states: Mapping[int, tuple[torch.Tensor, ...]],
        num_seats: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        self.model, self._heads = model, heads
        self.rows = RequestRows(num_seats, model.max_model_len, len(groups), block_size, device)
        self._states = States(heads.pooling.kind)
        slot_mapping = plan.bind("slot_mapping", params={"page_size": block_size})
        self._batches = Batches(self.rows, slot_mapping, slice(None), caches, states=states)

    @torch.inference_mode()
    def step(self, step: StepInput) -> PooledHandle:
        """Applies the deltas, computes the rows, pools those whose prompt ends. After an exception other steps give what they would
        have given without this one, once its seats were released."""
        assert not step.copies, "prompts that generate nothing are not forked"
        self.rows.apply(step)
        self._states.admit(step.new)
        if not step.seats:
            return PooledHandle(step.step_id, {})
        seats = np.asarray(step.seats)
        rows = StepRows.of(seats, np.asarray(step.num_tokens), self.rows.num_computed[seats], np.asarray(step.num_logits))
        batch, _ = self._batches.build(rows)
        batch.token_types = self._token_types(rows)
        self.model.begin_step(batch)
        self._states.take(rows, self.model.forward(batch))
        self.rows.advance(rows)
        return PooledHandle(step.step_id, self._pool(rows))

    def _token_types(self, rows: StepRows) -> torch.Tensor | None:
        """int64 [T]: 0, and 1 from the second text of a pair on; None without pairs."""
        seconds = [self._states.params[seat].second_text for seat in rows.seats.tolist()]
        if all(second is None for second in seconds):
            return None
        starts = np.array([np.iinfo(np.int64).max if second is None else second for second in seconds])
        positions = np.arange(rows.bounds[-1]) + np.repeat(rows.first - rows.bounds[:-1], rows.counts)
        return to_device((positions >= np.repeat(starts, rows.counts)).astype(np.int64), self.rows.device)

    def _pool(self, rows: StepRows) -> dict[int, torch.Tensor]:
        """Of the rows that end with this step."""
        found, together = dict[int, torch.Tensor](), dict[int, torch.Tensor]()
        num_tokens = self.rows.num_prompt_tokens[rows.seats]
        params = {row: self._states.params[int(rows.seats[row])] for row in (rows.lengths == num_tokens).nonzero()[0].tolist()}
        for row, each in params.items():
            seat, count = int(rows.seats[row]), int(num_tokens[row])
            states = self._states.pop(seat, count)
            if self._heads.takes_tokens(each):
                found[row] = self._heads.tokens(states, each, self.rows.tokens[seat, :count])
            else:
                together[row] = states
        if together:
            pooled = self._heads(torch.stack(list(together.values())), [params[row] for row in together])
            found.update(zip(together, pooled))
        return found
