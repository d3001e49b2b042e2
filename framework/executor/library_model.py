"""Models that the transformers library computes, with our attention and linear layers, on a simulated device.

What the library launches itself is no call of ours, and counts as op ``library``: products take the time of ``linear``, a layer's
experts that of ``moe_experts``, and all else what it reads and writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config import EngineConfig
from ..engine.kv_cache.memory import logit_rows
from ..engine.kv_cache.spec import ELEMENT_BYTES
from ..models.launches import ELEMENTWISE, Launch, Launches
from ..models.ranks import Stage, check_ranks
from ..models.read import ModelInfo
from .calls import Call, Rows, element_sizes, sampling_ops
from .device_memory import Holding, token_bytes
from .placement import Placement
from .timers import Timers

if TYPE_CHECKING:
    from ..models.dry_run import DryRun


def place_library_model(model: ModelInfo, config: EngineConfig, timers: Timers, acceptance_rule: str) -> Placement:
    """On one device. Raises ValueError for a model that cannot be served, and where what it launches cannot be found."""
    from ..models.dry_run import DryRun  # seconds to import, and needed for few models

    check_ranks(model, config.parallel, config.quant)
    run = DryRun(config, model)
    launches, stage = run.launches(), Stage(range(len(run.attention)))
    holding = Holding(run.weight_bytes, token_bytes(run.groups, stage))
    calls = _calls(run, launches, element_sizes(model, config), sampling_ops(acceptance_rule))
    placed = Placement(
        run.groups, run.vocab_size, [holding], [calls], _activation_bytes(launches, model, config), model.dtype, timers
    )
    windows = {each.spec.window for each in run.attention if each.canvases} - {None}
    assert len(windows) < 2, "canvases of one model are cut at one window"
    placed.canvas_window = next(iter(windows), None)
    return placed


def _calls(run: DryRun, launches: Launches, sizes: Mapping[str, float], drawn_by: tuple[str, ...]) -> Counter[Call]:
    found: Counter[Call] = Counter()

    def add(op: str, rows: Rows, dims: Mapping[str, float], count: int = 1, **more: Any) -> None:
        found[Call(op, rows, frozenset({**sizes, **dims}.items()), **more)] += count

    add("slot_mapping", "tokens", {}, len(run.groups))
    by_rows: Mapping[Rows, Counter[Launch]] = {"tokens": launches.tokens, "logits": launches.logits, "taken": launches.taken}
    for rows, counted in by_rows.items():
        for launch, count in counted.items():
            add(launch.op, rows, dict(launch.dims), count, each=launch.each, fixed=launch.fixed, library=launch.library)
    for layer in run.attention:
        add("paged_attention_decode", "decode", layer.dims)
        add("paged_attention_prefill", "prefill", layer.dims)
        if layer.canvases:
            both = {**layer.dims, "window": 0, "causal": 0}
            add("paged_attention_prefill", "whole", both, windowed=layer.spec.window is not None)
    for op in drawn_by:
        add(op, "samples", {"vocab_size": run.vocab_size})
    return found


def _activation_bytes(launches: Launches, model: ModelInfo, config: EngineConfig) -> int:
    """Estimate of what the largest step holds at once beside weights and cache: what the widest launches read and write, of every
    token and of every row of logits."""
    element = ELEMENT_BYTES[model.dtype]

    def widest(counted: Counter[Launch]) -> float:
        wide = (sum(size for name, size in launch.dims if name.endswith("features")) * element for launch in counted)
        return max(max(own, launch.each if launch.op == ELEMENTWISE else 0) for own, launch in zip(wide, counted))

    num_logits = logit_rows(config, model.diffusion.canvas_size if model.diffusion else 1)
    return round(config.scheduler.max_num_batched_tokens * widest(launches.tokens) + num_logits * widest(launches.logits))
