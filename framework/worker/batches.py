"""From the rows of a step to the tensors that a model computes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from ..engine.attention_rows import num_decodes
from ..models.architecture import Diffusion
from ..models.batch import ForwardBatch, GroupBatch, StateBatch, WholeTokens
from ..plan import AttentionMeta, BoundKernel, LayerKV, LoraMeta, StateMeta
from .canvases import add_canvases
from .encoded_rows import EncodedRows
from .images import Images
from .request_rows import RequestRows
from .step_rows import StepRows
from .transfer import all_to_device, to_device


class Batches:
    """Builds the batches of one model. What its attention kernels keep between steps is held here.

    slot_mapping  the bound op
    groups        those of the KV groups that the model's layers are in
    caches        of its layers
    ahead         a slot's token is so many places behind it
    has_lora      the model computes the requests' adapters
    images        of the requests; None: the model reads none
    states        of its recurrent layers, as StateBatch has them: a request's row is that of its seat
    cross         of the groups, those of what layers keep of an encoder
    diffusion     of a model that denoises; None: it does not
    windows       of the groups
    """

    def __init__(
        self,
        rows: RequestRows,
        slot_mapping: BoundKernel,
        groups: slice,
        caches: Mapping[int, LayerKV],
        ahead: int = 0,
        has_lora: bool = False,
        states: Mapping[int, tuple[torch.Tensor, ...]] | None = None,
        images: Images | None = None,
        cross: Collection[int] = (),
        diffusion: Diffusion | None = None,
        windows: Sequence[int | None] = (),
    ) -> None:
        self.rows, self.slot_mapping, self.groups, self.caches, self.ahead = rows, slot_mapping, groups, caches, ahead
        self.has_lora, self.states, self.images, self.cross = has_lora, states or {}, images, frozenset(cross)
        self._diffusion, self._windows = diffusion, windows
        self._workspaces: list[tuple[dict, dict, dict]] = [({}, {}, {}) for _ in rows.tables[groups]]

    def build(
        self, rows: StepRows, first: torch.Tensor | None = None, more: tuple[np.ndarray, ...] = ()
    ) -> tuple[ForwardBatch, list[torch.Tensor]]:
        """The tensors of a step, and ``more`` on the device, where all of them go in one copy. first: int64 [R] on the device, the
        truth of which ``rows.first`` is a bound; None where that is exact."""
        logit_tokens = rows.logit_tokens
        if self._diffusion is not None and self._diffusion.redraws is None:
            size, prompts = self._diffusion.canvas_size, self.rows.num_prompt_tokens[rows.seats]
            rows = rows.by_canvas(size, prompts // size * size * self._diffusion.causal_prompt)
        device, row_of_token = self.rows.device, np.repeat(np.arange(len(rows.seats)), rows.counts)
        positions = np.arange(rows.bounds[-1]) + (rows.first - rows.bounds[:-1])[row_of_token]
        n = num_decodes(rows.counts, rows.first)
        lengths, cu_q = rows.lengths.astype(np.int32), rows.bounds.astype(np.int32)
        width = self.rows.table_width(int(lengths.max()))
        arrays = (
            positions,
            rows.seats[row_of_token],
            logit_tokens,
            cu_q,
            lengths,
            cu_q[n:] - cu_q[n],
            lengths[n:],  # again: kernels may not be compiled for the address that a slice starts at
            self.rows.tables[self.groups][:, rows.seats, :width],
        )
        wanted, slots = len(more), self.lora_slots(rows)
        if slots is not None:
            of_tokens = slots[row_of_token]
            more = (*more, of_tokens, of_tokens[logit_tokens])
        if self.states:
            more = (*more, rows.seats.astype(np.int32), rows.first == 0)
        if self.cross:
            seen = EncodedRows.of(self.rows, rows, n)
            bounds, m = seen.bounds, seen.num_decodes
            blind = np.repeat(seen.lengths == 0, seen.counts)[:, None]
            own_tables = seen.tables(self.rows, rows.seats, sorted(self.cross))
            more = (*more, bounds, bounds[m:] - bounds[m], seen.lengths, seen.lengths[m:], blind, own_tables)
        tensors = all_to_device((*arrays, *more), device)
        token_positions, token_seats, logits_indices, cu_q_all, lengths_all, cu_q_prefill, lengths_prefill, tables = tensors[:8]
        if first is not None:
            behind = first - to_device(rows.first, device)
            token_positions = token_positions + behind[to_device(row_of_token, device)]
            lengths_all = (lengths_all + behind).int()
            lengths_prefill = lengths_all[n:].clone()
        metas = partial(_attention_metas, rows.counts, n, cu_q_all, cu_q_prefill, rows.lengths, lengths_all, lengths_prefill)
        parts = {
            group: GroupBatch(self.slot_mapping(token_positions, cu_q_all, lengths_all, table), *metas(table, workspaces))
            for group, (table, workspaces) in enumerate(zip(tables, self._workspaces))
            if group not in self.cross
        }
        if self.cross:
            cu_seen, cu_seen_prefill, seen_lens, seen_lens_prefill, blind_tokens, tables_seen = tensors[-6:]
            tensors = tensors[:-6]
            for group, table in zip(sorted(self.cross), tables_seen):
                lens = seen.lengths, seen_lens, seen_lens_prefill
                found = _attention_metas(seen.counts, m, cu_seen, cu_seen_prefill, *lens, table, self._workspaces[group])
                parts[group] = GroupBatch(token_positions[:0], *found, blind=blind_tokens if blind.any() else None)
        groups = [part for _, part in sorted(parts.items())]
        token_ids = self.rows.tokens[token_seats, token_positions + self.ahead if self.ahead else token_positions]
        num_decode_tokens = int(rows.bounds[n])
        batch = ForwardBatch(token_ids, token_positions, num_decode_tokens, groups, self.caches, logits_indices)
        own = iter(tensors[8 + wanted :])
        if slots is not None:
            occurring = [slot for slot in np.unique(slots).tolist() if slot >= 0]
            batch.lora, batch.lora_of_logits = LoraMeta(next(own), occurring), LoraMeta(next(own), occurring)
        if self.states:
            batch.states = StateBatch(StateMeta(cu_q_all, next(own), next(own), int(rows.counts.max())), self.states)
        if self._diffusion is not None and self._diffusion.redraws is not None:
            scratch = [workspaces[2] for workspaces in self._workspaces]
            add_canvases(groups, self._windows, rows, (arrays[7], tables), self.rows.block_size, scratch)
        if self.images is not None:
            self._add_images(self.images, batch, rows, positions, tables)
        return batch, tensors[8 : 8 + wanted]

    def _add_images(self, images: Images, batch: ForwardBatch, rows: StepRows, places: np.ndarray, tables: torch.Tensor) -> None:
        batch.images = images.tokens(rows)
        if batch.images is not None and images.whole:
            of_rows, counts, ends = images.spans(rows)
            cu_q = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
            row, cu, lengths = all_to_device((of_rows, cu_q, ends.astype(np.int32)), self.rows.device)
            for group, table, workspaces in zip(batch.groups, tables, self._workspaces):
                meta = AttentionMeta(cu, lengths, table[row], int(counts.max()), int(ends.max()), workspaces[2])
                group.whole = WholeTokens(batch.images.tokens, meta)
        if (found := images.positions(rows, places)) is not None:
            batch.positions, batch.mixed = all_to_device(found, self.rows.device)

    def lora_slots(self, rows: StepRows) -> np.ndarray | None:
        """int32 [R]: slots of the rows' adapters, -1 = none; None: no row has one."""
        if not self.has_lora:
            return None
        slots = self.rows.lora_slots[rows.seats]
        return slots if slots.max(initial=-1) >= 0 else None


def _attention_metas(
    counts: np.ndarray,
    num_decodes: int,
    cu_q: torch.Tensor,
    cu_q_prefill: torch.Tensor,
    lengths: np.ndarray,
    seq_lens: torch.Tensor,
    prefill_lens: torch.Tensor,
    block_table: torch.Tensor,
    workspaces: tuple[dict, dict, dict],
) -> tuple[AttentionMeta | None, AttentionMeta | None]:
    """Of the decodes and of the other rows, None if these are none. lengths: of what rows see, also on the device as those of all
    rows and of the others."""
    n = num_decodes

    def meta(part: slice, bounds: torch.Tensor, own: torch.Tensor, workspace: dict) -> AttentionMeta | None:
        if not len(counts[part]):
            return None
        return AttentionMeta(bounds, own, block_table[part], int(counts[part].max()), int(lengths[part].max()), workspace)

    return (
        meta(slice(0, n), cu_q[: n + 1], seq_lens[:n], workspaces[0]),
        meta(slice(n, None), cu_q_prefill, prefill_lens, workspaces[1]),
    )
