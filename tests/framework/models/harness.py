"""Steps a model by hand: batches, block tables and caches without scheduler and runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from framework.config import LoraConfig, ModelConfig, QuantConfig
from framework.engine.kv_cache.spec import group_layers
from framework.models.batch import ForwardBatch, GroupBatch, StateBatch
from framework.models.load import load_model
from framework.models.parallel import Parallel
from framework.models.protocol import Model
from framework.models.read import read_model
from framework.plan import KernelPlan
from triton_kernels.attention_meta import AttentionMeta, LayerKV
from triton_kernels.lora_meta import LoraMeta
from triton_kernels.state_meta import StateMeta

from .checkpoints import VOCAB, Example

CPU = torch.device("cpu")
BLOCK = 4


def build(
    config: ModelConfig,
    kernels: dict[str, str] | None = None,
    block_size: int = BLOCK,
    seed: int = 0,
    parallel: Parallel | None = None,
    cache_dtype: str = "auto",
    quant: QuantConfig | None = None,
    lora: LoraConfig | None = None,
) -> Model:
    info = read_model(config)
    plan = KernelPlan(kernels or {}, [], CPU, getattr(torch, info.dtype))
    model = load_model(config, info, plan, CPU, parallel or Parallel(), block_size, seed, cache_dtype, quant, lora)
    model.set_groups(group_layers(model.cache_specs()))
    return model


class Session:
    """Sequences that grow step by step; their pages are handed out in an order that no request owns contiguously. slots: of the
    requests' adapters, -1 = none."""

    def __init__(self, model: Model, num_requests: int, max_len: int = 128, block_size: int = BLOCK) -> None:
        self.model, self.block_size = model, block_size
        blocks = -(-max_len // block_size)
        order = torch.randperm(num_requests * blocks, generator=torch.Generator().manual_seed(7)).int() + 1
        self.table = order.view(num_requests, blocks)
        self.lengths, self.slots = [0] * num_requests, [-1] * num_requests
        pages = 1 + num_requests * blocks
        self.caches: dict[int, LayerKV] = {}
        self.states = {
            layer: tuple(
                torch.full((2 * num_requests + 1, *shape), torch.nan, dtype=getattr(torch, dtype))
                for shape, dtype in zip(spec.shapes, spec.dtypes)
            )
            for layer, spec in model.state_specs().items()
        }
        for layer, spec in enumerate(model.cache_specs()):
            if spec is None:
                continue
            shape = (pages, block_size, spec.num_kv_heads, spec.head_dim)
            dtype = getattr(torch, spec.dtype)
            if spec.aliased:
                k = torch.full(shape, torch.nan, dtype=dtype)
                self.caches[layer] = LayerKV(k, k[..., : spec.v_head_dim])
                continue
            if dtype.itemsize > 1:
                tensors = [torch.full(shape, torch.nan, dtype=dtype) for _ in range(2)]
            else:
                tensors = [torch.zeros(shape, dtype=dtype) for _ in range(2)]
                tensors += [torch.full(shape[:3], torch.nan) for _ in range(2)]
            self.caches[layer] = LayerKV(*tensors)

    @torch.inference_mode()
    def step(self, rows: list[tuple[int, list[int]]]) -> list[torch.Tensor]:
        """rows: (request, its next tokens), decodes first -> float32 logits [tokens, V] of every token, per row."""
        batch = self.batch(rows)
        self.model.begin_step(batch)
        logits = self.model.logits(self.model.forward(batch)[batch.logits_indices], batch.lora_of_logits)
        return list(logits.float().split([len(tokens) for _, tokens in rows]))

    def batch(self, rows: list[tuple[int, list[int]]]) -> ForwardBatch:
        """Counts the tokens of ``rows`` as computed and returns the tensors of the step."""
        num_decodes = 0
        while num_decodes < len(rows) and len(rows[num_decodes][1]) <= 8 and self.lengths[rows[num_decodes][0]] > 0:
            num_decodes += 1
        positions: list[int] = []
        seats: list[int] = []
        for request, tokens in rows:
            span = range(self.lengths[request], self.lengths[request] + len(tokens))
            positions += span
            seats += [int(self.table[request, p // self.block_size]) * self.block_size + p % self.block_size for p in span]
            self.lengths[request] = span.stop
        counts = [len(tokens) for _, tokens in rows]
        parts = rows[:num_decodes], rows[num_decodes:]
        groups = [GroupBatch(torch.tensor(seats), *map(self._meta, parts)) for _ in group_layers(self.model.cache_specs())]
        ids = torch.tensor([token for _, tokens in rows for token in tokens])
        num_decode_tokens = sum(len(tokens) for _, tokens in rows[:num_decodes])
        batch = ForwardBatch(ids, torch.tensor(positions), num_decode_tokens, groups, self.caches, torch.arange(len(ids)))
        if self.states:  # a request's row is not that of its number
            own = torch.tensor([2 * request + 1 for request, _ in rows], dtype=torch.int32)
            is_first = torch.tensor([self.lengths[request] == count for (request, _), count in zip(rows, counts)])
            cu_q = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            batch.states = StateBatch(StateMeta(cu_q, own, is_first, max(counts)), self.states)
        slots = [self.slots[request] for request, tokens in rows for _ in tokens]
        if max(slots) >= 0:
            batch.lora = batch.lora_of_logits = LoraMeta(torch.tensor(slots, dtype=torch.int32), sorted({*slots} - {-1}))
        return batch

    def _meta(self, rows: list[tuple[int, list[int]]]) -> AttentionMeta | None:
        if not rows:
            return None
        counts = [len(tokens) for _, tokens in rows]
        lengths = [self.lengths[request] for request, _ in rows]
        cu_q = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        table = self.table[[request for request, _ in rows]]
        return AttentionMeta(cu_q, torch.tensor(lengths, dtype=torch.int32), table, max(counts), max(lengths))


def prompt_batch(model: Model, num_tokens: int) -> ForwardBatch:
    """One prompt."""
    return Session(model, 1).batch([(0, list(range(3, 3 + num_tokens)))])


def teacher_forced(
    model: Model, sequences: list[list[int]], chunk: int | None, num_decodes: int, slots: list[int] | None = None
) -> list[torch.Tensor]:
    """Logits [len, V] of each sequence: prompts together, whole or in chunks, then the last ``num_decodes`` tokens one by one.
    slots: of their adapters; None: they have none."""
    session = Session(model, len(sequences))
    session.slots = slots or session.slots
    out: list[list[torch.Tensor]] = [[] for _ in sequences]
    done = [0] * len(sequences)
    while any(d < len(s) for d, s in zip(done, sequences)):
        rows = []
        for i, (start, tokens) in enumerate(zip(done, sequences)):
            prompt = len(tokens) - num_decodes
            count = min(chunk or prompt, prompt - start) if start < prompt else 1
            if start < len(tokens):
                rows.append((i, tokens[start : start + count]))
        rows.sort(key=lambda row: (session.lengths[row[0]] == 0 or len(row[1]) > 8, row[0]))
        for (i, tokens), logits in zip(rows, session.step(rows)):
            out[i].append(logits)
            done[i] += len(tokens)
    return [torch.cat(parts) for parts in out]


def model_config(folder: Path, example: Example, **architecture: object) -> ModelConfig:
    return ModelConfig(str(folder), dtype="float32", max_model_len=example.max_model_len, architecture=architecture)


def sequences(lengths: tuple[int, ...]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def reference(model: Any, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens])).logits[0]


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())
