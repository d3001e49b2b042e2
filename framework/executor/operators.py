"""What says how long a call of an op takes: its shape, its sizes, and its work.

A *shape* is what a bound layer has (a GEMM's n and k, an attention's heads), *sizes* are what changes from call to call (tokens;
requests and their contexts), *formats* are dims for which other kernels run (bytes of an element of the cache). Times are
interpolated over shapes and sizes, never over formats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

import numpy as np

from ..models.launches import ELEMENTWISE

Dims = Mapping[str, float]
Runs = Sequence[tuple[float, float, float]]
"""Requests of a call: (how many, new tokens of each, tokens in the cache of each with the new ones)."""


class Cost(Protocol):
    """Work of a kernel call."""

    @property
    def flops(self) -> float: ...
    @property
    def bytes(self) -> float: ...


CostFunction = Callable[[Dims, Sequence[float], Sequence[float]], Cost]


class Work(NamedTuple):
    """Of one call. tiles: pieces that can run side by side, of which each takes flops / tiles; sizes: where the call lies among
    those that were measured, as logarithms to base 2 (tokens, or requests and context)."""

    flops: float
    bytes: float
    tiles: float
    sizes: tuple[float, ...]


class _Work(NamedTuple):
    flops: float
    bytes: float


def tokens(runs: Runs) -> float:
    """New tokens of all requests."""
    return sum(count * q_len for count, q_len, _ in runs)


def by_tokens(dims: Dims, runs: Runs) -> tuple[float, ...]:
    """Sizes of ops for which requests make no difference."""
    return (tokens(runs),)


def by_requests(dims: Dims, runs: Runs) -> tuple[float, ...]:
    """Sizes of ops on few new tokens of each request: how many requests, and their mean context."""
    requests = sum(count for count, _, _ in runs)
    return requests, sum(count * context for count, _, context in runs) / requests


def by_prompts(dims: Dims, runs: Runs) -> tuple[float, ...]:
    """Sizes of ops on many new tokens: how many equal whole prompts have as many pairs of a query and a key it sees, and their
    length, the mean context. A chunk behind a long context is a fraction of a prompt of that length, so that what follows on
    each other in its longest row of tiles is the same; a prompt whose tokens see those after them, too, is nearly two."""
    unseen = 0.5 * dims.get("causal", 1)
    pairs = [count * q_len * (context - unseen * (q_len - 1)) for count, q_len, context in runs]
    total = sum(pairs)
    length = sum(part * context for part, (_, _, context) in zip(pairs, runs)) / total
    return 2 * total / (length * (length + 1)), length


@dataclass(frozen=True)
class Operator:
    """An op, seen by its time.

    shape     dims that are interpolated over, with what holds where one is left out
    formats   dims that must be equal, likewise; None: as many bytes as an activation has
    tiles     (dims, runs) -> pieces of a call that can run side by side
    work      (cost, dims, runs) -> flops and bytes; default: the op's cost function, run by run
    cost      in place of the op's, where the op is not built
    whole     dims of a model's layer, before it is cut for ranks: what is left out together when a fit is judged
    sizes     (dims, runs) -> what changes from call to call
    spread    dims that may take over a fraction of a request: half a prompt of 32 heads is a prompt of 16
    """

    shape: Mapping[str, float | None] = field(default_factory=dict)
    formats: Mapping[str, float | None] = field(default_factory=dict)
    tiles: Callable[[Dims, Runs], float] = lambda dims, runs: 1.0
    work: Callable[[CostFunction, Dims, Runs], Cost] | None = None
    cost: CostFunction | None = None
    whole: Callable[[Dims, Runs], tuple[float, ...]] | None = None
    sizes: Callable[[Dims, Runs], tuple[float, ...]] = by_tokens
    spread: tuple[str, ...] = ()

    def point(self, dims: Dims) -> tuple[float, ...]:
        """Coordinates of a shape. Raises ValueError for a dim that is missing."""
        return tuple(_coordinate(name, dims, default) for name, default in self.shape.items())

    def format(self, dims: Dims, dtype: str) -> dict[str, float]:
        """The formats of a call."""
        usual = ELEMENT_BYTES.get(dtype, 2)
        return {name: dims.get(name, usual if value is None else value) for name, value in self.formats.items()}

    def whole_shape(self, dims: Dims, runs: Runs) -> tuple[float, ...]:
        """What all rows of a shape have in common, over the ways it is cut and its formats."""
        return self.whole(dims, runs) if self.whole else tuple(float(dims.get(name, 0)) for name in self.shape)

    def measure(self, cost: CostFunction | None, dims: Dims, runs: Runs) -> Work:
        """The work of a call; ``cost``: the op's function, if it is built."""
        cost = self.cost or cost
        assert cost is not None
        found = self.work(cost, dims, runs) if self.work else _linear_work(cost, dims, runs)
        sizes = tuple(math.log2(max(size, 1e-3)) for size in self.sizes(dims, runs))
        return Work(found.flops, found.bytes, max(1.0, self.tiles(dims, runs)), sizes)


ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_OP_FORMATS = {"gemm_fp8": "fp8", "gemm_int8": "int8"}


def number_format(op: str, dtype: str) -> str:
    """Which of a device's ceilings bounds the products of an op. dtype: of the activations."""
    return _OP_FORMATS.get(op, "fp32" if dtype == "float32" else "bf16")


NO_WINDOW = 2.0**18
"""Stands for the size of a window where there is none."""


def _coordinate(name: str, dims: Dims, default: float | None) -> float:
    if name == "grouped":  # heads that share a KV head make other kernels possible
        return float(dims["num_heads"] > dims["num_kv_heads"])
    given = "num_experts" if name == "local_experts" else name
    value = dims.get(given, default)
    if value is None:
        raise ValueError(f"dims lack {given}; they have {', '.join(dims) or 'none'}")
    if name == "window":
        value = value or NO_WINDOW
    if name == "local_experts":
        value /= dims.get("ep", 1)
    return value if name == "skew" else math.log2(max(value, 1e-3))


def _linear_work(cost: CostFunction, dims: Dims, runs: Runs) -> Cost:
    """Of attention, whose work is the sum over requests; ops without weights and those with tokens only pass one run."""
    if len(runs) == 1 and runs[0][0] == 1:
        return cost(dims, [runs[0][1]], [runs[0][2]])
    found = [(count, cost(dims, [q_len], [context])) for count, q_len, context in runs]
    return _Work(sum(count * each.flops for count, each in found), sum(count * each.bytes for count, each in found))


def _token_work(cost: CostFunction, dims: Dims, runs: Runs) -> Cost:
    """Of ops for which requests make no difference."""
    return cost(dims, [tokens(runs)], [tokens(runs)])


def _prompt_tiles(dims: Dims, runs: Runs) -> float:
    prompts, length = by_prompts(dims, runs)
    return prompts * math.ceil(length / 128) * dims["num_heads"]


def _gemm_tiles(dims: Dims, runs: Runs) -> float:
    return max(1.0, tokens(runs) / 128) * dims["out_features"] / 128


@lru_cache(maxsize=65536)
def expert_load(num_tokens: float, num_experts: int, top_k: int, num_ranks: int, skew: float | None) -> tuple[float, float]:
    """(experts with work, rows) of the busiest of ``num_ranks`` ranks that share a layer's experts.

    skew: None = every choice of a token is as likely, 0 = tokens are dealt out in turn, else the exponent of the power law that
    the experts' numbers of tokens follow, from 1 (or 0.01, where there are fewer choices than experts) to 0.8 of all tokens.
    """
    choices = num_tokens * top_k
    if not skew:
        share = 1 - (1 - top_k / num_experts) ** num_tokens if skew is None else min(1.0, choices / num_experts)
        return max(1.0, share * num_experts / num_ranks), choices / num_ranks
    skew += 1e-3 * (skew == 1)  # the formula has a pole there
    least, most = (1.0, max(0.8 * num_tokens, 1.01)) if choices > num_experts else (0.01, 2.0)
    quantiles = (np.arange(num_experts) + 0.5) / num_experts
    counts = ((most ** (1 - skew) - least ** (1 - skew)) * quantiles + least ** (1 - skew)) ** (1 / (1 - skew))
    counts = np.minimum(counts * choices / counts.sum(), num_tokens)
    rng, found = np.random.default_rng(0), np.zeros(2)
    for _ in range(4):  # which experts meet on a rank is chance
        ranks = rng.permutation(counts).reshape(num_ranks, -1)
        busiest = ranks[ranks.sum(1).argmax()]
        found += np.minimum(busiest, 1).sum(), busiest.sum()
    return max(1.0, found[0] / 4), found[1] / 4


def _expert_load(dims: Dims, runs: Runs) -> tuple[float, float]:
    return expert_load(tokens(runs), int(dims["num_experts"]), int(dims["top_k"]), int(dims.get("ep", 1)), dims.get("skew"))


def _expert_work(cost: CostFunction, dims: Dims, runs: Runs) -> Cost:
    """The op's cost of the experts that have work, each with its rows; and what goes in and out between the two products."""
    active, rows = _expert_load(dims, runs)
    inner = dims["intermediate_size"] * (1 if dims.get("gated", 1) else 2 / 3)
    hidden, width = dims["hidden_size"], dims.get("act_bytes", 2)
    busy = cost({**dims, "num_experts": active, "top_k": active, "intermediate_size": inner}, [rows / active], [rows / active])
    between = rows * (2 * hidden + 3 * dims["intermediate_size"]) * width
    return _Work(busy.flops, busy.bytes + between + 2 * (tokens(runs) - rows / active) * hidden * width)


def _expert_tiles(dims: Dims, runs: Runs) -> float:
    active, rows = _expert_load(dims, runs)
    return active * max(1.0, math.ceil(rows / active / 64)) * max(1.0, dims["intermediate_size"] / 64)


def _whole_experts(dims: Dims, runs: Runs) -> tuple[float, ...]:
    inner = dims["intermediate_size"] * dims.get("tp", 1)
    return dims["hidden_size"], inner, dims["num_experts"], dims["top_k"]


def _nvfp4_cost(dims: Dims, q_lens: Sequence[float], ctx_lens: Sequence[float]) -> Cost:
    """Weights and activations of 4 bits, with a scale of one byte for 16 of them."""
    num_tokens, n, k = sum(q_lens), dims["out_features"], dims["in_features"]
    return _Work(2 * num_tokens * n * k, (n * k + num_tokens * k) * 4.5 / 8 + 2 * num_tokens * n)


def _message_cost(dims: Dims, q_lens: Sequence[float], ctx_lens: Sequence[float]) -> Cost:
    return _Work(0.0, sum(q_lens) * dims.get("act_bytes", 2))


def _mla_weights(dims: Dims) -> float:
    """Of the projections of DeepSeek-V3's attention."""
    return dims["num_heads"] * (128 * 7168 + 192 * 1536 + 256 * 512) + 7168 * (1536 + 576)


def _mla_cost(absorbed: int, dims: Dims, q_lens: Sequence[float], ctx_lens: Sequence[float]) -> Cost:
    """DeepSeek-V3's attention with its projections, over a latent cache of 576 per token: decode multiplies in the latent space."""
    pairs = sum(queries * (context - (queries - 1) / 2) for queries, context in zip(q_lens, ctx_lens))
    flops = 2 * sum(q_lens) * _mla_weights(dims) + 2 * dims["num_heads"] * pairs * (576 + 512 if absorbed else 192 + 128)
    return _Work(flops, sum(ctx_lens) * 576 * dims.get("kv_bytes", 2) + sum(q_lens) * 4 * 7168)


def _mla_work(cost: CostFunction, dims: Dims, runs: Runs) -> Cost:
    found = _linear_work(cost, dims, runs)
    return _Work(found.flops, found.bytes + _mla_weights(dims) * dims.get("weight_bits", 16) / 8)


def _delta_cost(dims: Dims, q_lens: Sequence[float], ctx_lens: Sequence[float]) -> Cost:
    """A state of head_dim x head_dim per value head and request, read and written once; per token its keys, values and gates."""
    keys, values, size = dims["num_k_heads"], dims["num_v_heads"], dims.get("head_dim", 128)
    moved = sum(q_lens) * (2 * keys + 2 * values) * size * 2 + len(q_lens) * 8 * values * size * size
    return _Work(sum(q_lens) * values * 4 * size * (size + 64), moved)


def _conv_cost(dims: Dims, q_lens: Sequence[float], ctx_lens: Sequence[float]) -> Cost:
    channels = (2 * dims["num_k_heads"] + dims["num_v_heads"]) * dims.get("head_dim", 128)
    return _Work(sum(q_lens) * channels * 8, sum(q_lens) * channels * 4)


_GEMM = Operator({"out_features": None, "in_features": None}, tiles=_gemm_tiles, work=_token_work)
_HEADS = {"num_heads": None, "num_kv_heads": None, "head_dim": None, "window": 0.0, "grouped": None}


def _whole_heads(dims: Dims, runs: Runs) -> tuple[float, ...]:
    return dims["num_heads"], dims["num_kv_heads"], dims["head_dim"]


def _gemm(**formats: float) -> Operator:
    return Operator(_GEMM.shape, formats, _gemm_tiles, _token_work)


def _message(**formats: float) -> Operator:
    return Operator({"num_ranks": None}, formats, work=_token_work, cost=_message_cost, whole=lambda dims, runs: (tokens(runs),))


def _delta(cost: CostFunction, sizes: Callable[[Dims, Runs], tuple[float, ...]]) -> Operator:
    def tiles(dims: Dims, runs: Runs) -> float:
        return sum(count for count, _, _ in runs) * dims["num_v_heads"]

    return Operator({"num_k_heads": None, "num_v_heads": None}, tiles=tiles, cost=cost, sizes=sizes)


def _recurrence(*dims: str) -> Operator:
    """An op of requests that have a state each."""
    return Operator(dict.fromkeys(dims))


def _mla(absorbed: int) -> Operator:
    def tiles(dims: Dims, runs: Runs) -> float:
        return sum(count for count, _, _ in runs) * dims["num_heads"] if absorbed else _prompt_tiles(dims, runs)

    formats, sizes = {"kv_bytes": None, "weight_bits": 16}, by_requests if absorbed else by_prompts
    return Operator(
        {"num_heads": None}, formats, tiles, _mla_work, partial(_mla_cost, absorbed), sizes=sizes, spread=("num_heads",)
    )


def _moving_cost(dims: Dims, q_lens: Sequence[float], ctx_lens: Sequence[float]) -> Cost:
    """Of bytes, in place of tokens."""
    return _Work(0.0, sum(q_lens))


_USUAL_SKEW = 1.01
"""Where no popularity of the experts is given: one that all tables have."""

OPERATORS: dict[str, Operator] = {
    "linear": _GEMM,
    "gemm_fp8": _gemm(group_rows=0),
    "gemm_int8": _GEMM,
    "gemm_nvfp4": Operator(_GEMM.shape, tiles=_gemm_tiles, work=_token_work, cost=_nvfp4_cost),
    "gemm_w8a16": _gemm(group_size=0),
    "gemm_w4a16": _gemm(group_size=128),
    "paged_attention_prefill": Operator(
        _HEADS, {"kv_bytes": None}, _prompt_tiles, whole=_whole_heads, sizes=by_prompts, spread=("num_heads", "num_kv_heads")
    ),
    "paged_attention_decode": Operator(
        _HEADS,
        {"kv_bytes": None},
        lambda dims, runs: sum(count for count, _, _ in runs) * dims["num_kv_heads"],
        whole=_whole_heads,
        sizes=by_requests,
    ),
    "moe_experts": Operator(
        {"hidden_size": None, "intermediate_size": None, "local_experts": None, "top_k": None, "ep": 1.0, "skew": _USUAL_SKEW},
        {"weight_bits": 16, "group_rows": 0},
        _expert_tiles,
        _expert_work,
        whole=_whole_experts,
    ),
    "all_reduce": _message(graph=1, nccl=0),
    "all_gather": _message(),
    "reduce_scatter": _message(),
    "all_to_all": _message(),
    "causal_conv1d": _recurrence("num_channels", "width"),
    "selective_scan": _recurrence("num_channels", "state_size"),
    "ssd_scan": _recurrence("num_heads", "head_dim", "num_groups", "state_size"),
    "gated_delta_rule": _recurrence("num_k_heads", "num_v_heads", "k_dim", "v_dim"),
    "mla_prefill": _mla(0),
    "mla_decode": _mla(1),
    "gated_delta_prefill": _delta(_delta_cost, by_prompts),
    "gated_delta_decode": _delta(_delta_cost, by_requests),
    "causal_conv_prefill": _delta(_conv_cost, by_prompts),
    "causal_conv_decode": _delta(_conv_cost, by_requests),
    ELEMENTWISE: Operator(work=_token_work, cost=_moving_cost),
}
"""Ops by name. Collectives count elements as tokens, of ``num_ranks`` ranks; ``graph``: 1 inside a CUDA graph;
``nccl``: 1 for NCCL's, 0 for vLLM's own. ``ep``: ranks that share a layer's experts, ``tp``: ranks that cut each."""

_SIZES_OF_ELEMENTS = ("act_bytes", "weight_bytes", "kv_bytes", "logit_bytes", "out_bytes", "scale_bytes")


def operator(op: str, dims: Dims) -> Operator:
    """The entry of an op; of one that has none, all of ``dims`` but the sizes of elements are its shape, and tokens its size."""
    if op in OPERATORS:
        return OPERATORS[op]
    return Operator({name: None for name in sorted(dims) if name not in _SIZES_OF_ELEMENTS}, work=_token_work)
