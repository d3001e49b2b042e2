"""How long a step would take on a device: the roofline of every kernel call, from the ops' cost functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from ..config import ExecutorConfig
from ..engine.kv_cache.spec import ELEMENT_BYTES
from ..models.architecture import Architecture, LayerShape


class Cost(Protocol):
    """Work of a kernel call."""

    flops: float
    bytes: float


class Device(Protocol):
    """Ceilings of a device."""

    name: str
    copy_bytes_s: float
    flops_s: dict[str, float]


CostFunction = Callable[[Mapping[str, float], Sequence[int], Sequence[int]], Cost]

_NUMBER_FORMAT = {"float32": "fp32", "float16": "bf16", "bfloat16": "bf16"}


class CostModel:
    """Time of a step = sum over kernel calls of max(flops / peak, bytes / bandwidth) / efficiency + overhead of a call.

    costs      op -> its cost function
    kv_bytes   per element of the cache; None = as the model's dtype
    fused      layers that rotate run ``qk_norm_rotary_kv_write`` in place of the ops that it does the work of
    """

    def __init__(
        self,
        architecture: Architecture,
        dtype: str,
        costs: Mapping[str, CostFunction],
        device: Device,
        config: ExecutorConfig,
        kv_bytes: int | None = None,
        fused: bool = True,
    ) -> None:
        if _NUMBER_FORMAT[dtype] not in device.flops_s:
            raise ValueError(f"device {device.name} has no ceiling for {dtype}; it has {', '.join(device.flops_s)}")
        self._architecture, self._costs, self._config = architecture, costs, config
        self._peak, self._bandwidth = device.flops_s[_NUMBER_FORMAT[dtype]], device.copy_bytes_s
        self._bytes = ELEMENT_BYTES[dtype]
        self._kv_bytes = self._bytes if kv_bytes is None else kv_bytes
        self._fused = fused
        self._num_groups = len({layer.window for layer in architecture.layers})
        self._layers = Counter((layer.window, layer.moe) for layer in architecture.layers)
        self._shapes: dict[object, LayerShape] = {(layer.window, layer.moe): layer for layer in architecture.layers}

    def step_time_s(
        self, decode_lens: Sequence[int], chunk_lens: Sequence[int], chunk_ctx_lens: Sequence[int], num_logits: int
    ) -> float:
        """decode_lens: tokens in the cache, the new one included, per request that computes one token. chunk_lens: new tokens
        of each other row, chunk_ctx_lens: its tokens in the cache, the new ones included. num_logits: rows that sample."""
        arch = self._architecture
        num_tokens = len(decode_lens) + sum(chunk_lens)
        time_s = self._call("embedding", num_tokens, hidden_size=arch.embed_dim)
        time_s += self._num_groups * self._call("slot_mapping", num_tokens)
        for kind, count in self._layers.items():
            time_s += count * sum(self._layer(self._shapes[kind], num_tokens, decode_lens, chunk_lens, chunk_ctx_lens))
        time_s += self._norm(num_tokens)
        if num_logits:
            time_s += self._linear(num_logits, arch.hidden_size, arch.vocab_size)
            time_s += self._time("sample", [1] * num_logits, [1] * num_logits, vocab_size=arch.vocab_size)
        return time_s

    def _layer(
        self,
        layer: LayerShape,
        num_tokens: int,
        decode_lens: Sequence[int],
        chunk_lens: Sequence[int],
        chunk_ctx_lens: Sequence[int],
    ) -> Iterator[float]:
        arch = self._architecture
        hidden, heads = (
            arch.hidden_size,
            {"num_heads": arch.num_heads, "num_kv_heads": arch.num_kv_heads, "head_dim": arch.head_dim},
        )
        q_size = arch.num_heads * arch.head_dim
        yield 2 * self._norm(num_tokens)
        yield self._linear(num_tokens, hidden, q_size + 2 * arch.num_kv_heads * arch.head_dim)
        if self._fused and layer.rope is not None:
            yield self._call("qk_norm_rotary_kv_write", num_tokens, **heads)
        else:
            for num_heads in (arch.num_heads, arch.num_kv_heads) if arch.family.qk_norm else ():
                yield self._call("rms_norm", num_tokens, hidden_size=num_heads * arch.head_dim, residual=0)
            if layer.rope is not None:
                yield self._call("rotary", num_tokens, **heads)
            yield self._call("kv_cache_write", num_tokens, **heads)
        window = layer.window or 0
        if decode_lens:
            yield self._time("paged_attention_decode", [1] * len(decode_lens), decode_lens, window=window, **heads)
        if chunk_lens:
            yield self._time("paged_attention_prefill", chunk_lens, chunk_ctx_lens, window=window, **heads)
        yield self._linear(num_tokens, q_size, hidden)
        if layer.moe is not None:
            experts = {"num_experts": layer.moe.num_experts, "top_k": layer.moe.top_k}
            yield self._linear(num_tokens, hidden, layer.moe.num_experts)
            yield self._call("moe_route", num_tokens, **experts)
            yield self._call(
                "moe_experts", num_tokens, hidden_size=hidden, intermediate_size=layer.moe.intermediate_size, **experts
            )
            return
        inner = arch.intermediate_size
        yield self._linear(num_tokens, hidden, inner * (1 + arch.family.gated))
        yield self._call("silu_and_mul", num_tokens, intermediate_size=inner)
        yield self._linear(num_tokens, inner, hidden)

    def _linear(self, num_tokens: int, in_features: int, out_features: int) -> float:
        return self._call("linear", num_tokens, in_features=in_features, out_features=out_features)

    def _norm(self, num_tokens: int) -> float:
        return self._call("rms_norm", num_tokens, hidden_size=self._architecture.hidden_size, residual=1)

    def _call(self, op: str, num_tokens: int, **dims: float) -> float:
        return self._time(op, [num_tokens], [num_tokens], **dims)

    def _time(self, op: str, q_lens: Sequence[int], ctx_lens: Sequence[int], **dims: float) -> float:
        sizes = {"weight_bytes": self._bytes, "act_bytes": self._bytes, "kv_bytes": self._kv_bytes, "logit_bytes": 4}
        cost = self._costs[op]({**sizes, **dims}, q_lens, ctx_lens)
        roofline_s = max(cost.flops / self._peak, cost.bytes / self._bandwidth)
        return roofline_s / self._config.efficiency + self._config.kernel_overhead_s
