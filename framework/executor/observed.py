"""The kernel calls of a simulated device, one by one, for a profile or a case file."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from ..config import EngineConfig
from ..engine.kv_cache.spec import ELEMENT_BYTES
from ..models.read import ModelInfo
from ..op_times import OpCall, OpTimes
from .calls import Call
from .cost_model import StageCost, StepWork
from .encoders import LIBRARY

_SIZES = ("weight_bytes", "act_bytes", "kv_bytes", "out_bytes")


class Observer:
    """Takes down the calls of every step. Raises ValueError for ``config.capture`` of an op that is none of ``ops``."""

    def __init__(self, model: ModelInfo, config: EngineConfig, ops: Iterable[str]) -> None:
        known = sorted(set(ops))
        captured = [op for op in known if op != LIBRARY]  # of which there is nothing to replay
        for op in config.capture:
            if op not in captured:
                raise ValueError(f"capture names {op!r}, which this model never calls; it calls {', '.join(captured)}")
        self.times = OpTimes("model")
        self._ops = known if config.profile else config.capture
        self._dtype, self._model, self._config = model.dtype, model, config
        self._known: dict[Call, tuple[dict[str, float], tuple[tuple[str, Any], ...]]] = {}

    @classmethod
    def of(cls, model: ModelInfo, config: EngineConfig, ops: Iterable[str]) -> Observer | None:
        """None where nothing is asked for."""
        return cls(model, config, ops) if config.profile or config.capture else None

    def beside(self, model: ModelInfo) -> Observer:
        """Of another model, whose calls are taken down among these."""
        other = copy.copy(self)
        other._model, other._known = model, {}
        return other

    def add(self, stages: Iterable[StageCost], work: StepWork, start_s: float) -> float:
        """The calls of a step, one after the other. Returns when the last ends."""
        for stage in stages:
            for call, count, seconds, q_lens, ctx_lens in stage.calls(work):
                if call.name in self._ops:
                    dims, options = self._known.get(call) or self._describe(call)
                    lens = {"q_lens": tuple(q_lens), "ctx_lens": tuple(ctx_lens)}
                    found = OpCall.of(call.name, "model", self._dtype, dims, options=options, **lens)
                    self.times.add(found, start_s, seconds, count)
                start_s += seconds
        return start_s

    def _describe(self, call: Call) -> tuple[dict[str, float], tuple[tuple[str, Any], ...]]:
        """dims and options, as those of a call of the real kernel."""
        architecture = self._model.architecture
        usual = ELEMENT_BYTES[self._dtype]
        dims = dict(call.dims)
        dims = {name: value for name, value in dims.items() if name != "logit_bytes" and (name not in _SIZES or value != usual)}
        options = {name: value for name, value in self._options(dims).items() if name in _OPTIONS.get(call.op, ())}
        if "causal" in options:
            causal = options["causal"] = dims.pop("causal", 1) == 1
            if causal and architecture is not None and architecture.buckets is not None:
                options["num_distances"] = architecture.buckets.max_distance + 1
        self._known[call] = dims, tuple(sorted(options.items()))
        return self._known[call]

    def _options(self, dims: Mapping[str, float]) -> dict[str, Any]:
        architecture, cache, rotary = self._model.architecture, self._config.cache, dict[str, Any]()
        off = dict.fromkeys(("sinks", "alibi", "bias", "zeros", "act_order", "static"), False)
        if architecture is not None:  # else the library rotates, and embeds
            family = architecture.family
            rot_dim = architecture.head_dim if architecture.latent is None else architecture.latent.rope_dim
            rotary = {"rot_dim": rot_dim, "style": family.rotary_style, "norms": "qk" if family.qk_norm else ""}
            rotary["vocab_size"] = architecture.vocab_size
        paged = {"page_size": cache.block_size, "kv_dtype": cache.dtype if "kv_bytes" in dims else None}
        experts = {"renormalize": True, "scoring": "softmax", "scheme": "float", "group": 0}
        causal = bool(dims.get("causal", True))
        sizes = {"softcap": None, "causal": causal, "recipe": "channel", "num_top": 0}
        return {**off, **rotary, **paged, **experts, **sizes, "kind": "float8_e4m3fn"}


_ATTENTION = ("page_size", "kv_dtype", "sinks", "alibi", "softcap", "causal")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "paged_attention_decode": _ATTENTION,
    "paged_attention_prefill": _ATTENTION,
    "kv_cache_write": ("page_size", "kv_dtype", "static"),
    "qk_norm_rotary_kv_write": ("page_size", "kv_dtype", "rot_dim", "style", "norms"),
    "rotary": ("rot_dim", "style"),
    "slot_mapping": ("page_size",),
    "embedding": ("vocab_size",),
    "linear": ("bias",),
    "gemm_w4a16": ("zeros", "act_order", "bias"),
    "gemm_fp8": ("recipe", "kind", "static", "bias"),
    "layer_norm": ("bias",),
    "gather_logprobs": ("num_top",),
    "moe_route": ("renormalize", "scoring", "bias", "num_groups", "top_groups", "group_score"),
    "moe_experts": ("scheme", "group", "zeros"),
}
"""What a case of the op needs beside its dims; see ``triton_kernels.call_shapes``."""
