"""The kernel calls of a step, as the native decoder makes them: which ops, with which dims, how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..config import EngineConfig
from ..engine.kv_cache.spec import ELEMENT_BYTES, CrossKV, group_layers
from ..models.architecture import Architecture, Latent, LayerShape, Moe
from ..models.mixers import GatedDelta, Mixer, calls
from ..models.parts import INNER_NORMS, KEPT_AS_FLOATS
from ..models.ranks import Stage, rank_architecture
from ..models.read import ModelInfo
from .encoders import LIBRARY, EncoderStack, Item, Parts

Rows = Literal[
    "tokens",
    "language",
    "vision",
    "logits",
    "samples",
    "taken",
    "decode",
    "prefill",
    "whole",
    "encoded",
    "stored",
    "cross_decode",
    "cross_prefill",
]
ATTENTION_ROWS: tuple[Rows, ...] = ("decode", "prefill", "whole", "cross_decode", "cross_prefill")
RECURRENT_ROWS: tuple[Rows, ...] = ("decode", "prefill")


@dataclass(frozen=True)
class Call:
    """Of an op with fixed dims.

    op        whose time it takes
    rows      what its lengths are: one row with all tokens or all logits of the step, or with those tokens alone that take the
              weights of text or of images (language, vision); a row per token that is sampled or draft that is checked; the rows
              that decode, or those of prompts, or of images whose tokens see each other (whole), and likewise what an encoder gave
              for the first two (cross); an item that is encoded, each by itself; what was encoded for a request, stored as keys
              and values; or tokens of the cache that are copied for canvases (taken)
    elements  of what goes between devices: numbers per token
    each, fixed  rows per token, or per position of an item that is encoded, and beside these; of what a library launches that is no
              product, bytes
    windowed  of attention over an item or a canvas: positions see a window of their own
    embeddings  of an item, rows are for each of what comes of the item
    library   another library computes it
    """

    op: str
    rows: Rows
    dims: frozenset[tuple[str, float]]
    elements: int = 0
    each: float = 1.0
    library: bool = False
    windowed: bool = False
    embeddings: bool = False
    fixed: float = 0.0

    @property
    def name(self) -> str:
        """Of the op that it counts as."""
        return LIBRARY if self.library else self.op

    def lens(self, number: Item) -> Sequence[int]:
        """Where rows are no matter of contexts. number: of rows that its lengths are; of what is encoded, the item."""
        parts = (number,) if isinstance(number, int) else number.windows if self.windowed else number.parts
        if self.rows == "encoded" and self.op == "paged_attention_prefill":
            return parts
        num_rows = number.embeddings if self.embeddings and isinstance(number, Parts) else sum(parts)
        return [1] * num_rows if self.rows == "samples" else [round(num_rows * (self.elements or self.each) + self.fixed)]


@dataclass(frozen=True)
class WeightFormat:
    """How linear layers inside the layers of a model are stored, and what multiplies them. experts: whether it holds for those of a
    mixture too. dims: what the cost functions have to know."""

    op: str = "linear"
    dims: Mapping[str, float] = field(default_factory=dict)
    quantizes_input: bool = False
    experts: bool = True


def weight_format(model: ModelInfo, config: EngineConfig) -> WeightFormat:
    """Of a model under a configuration. Raises ValueError for a quantized checkpoint of a method that has more than one format."""
    q = config.quant
    scheme, group, symmetric = q.scheme, q.group_size, q.is_symmetric
    if (settings := model.quantization) is not None:
        if settings.method not in _METHODS:
            raise ValueError(
                f"executor.kind={config.executor.kind} knows quantized checkpoints of {', '.join(_METHODS)}, but model "
                f"{model.name!r} is of {settings.method}: describe its floats, and choose a quant.scheme"
            )
        blocks = settings.get("weight_block_size") is not None
        scheme = "fp8-block" if blocks else _METHODS[settings.method]
        group, symmetric = settings.get("group_size", -1), settings.get("sym", not settings.get("zero_point", False))
        if scheme == "rtn-int4" and settings.get("bits", settings.get("w_bit", 4)) == 8:
            scheme = "int8-weight"
    scaled = {"weight_bits": 8, "scale_bytes": 4, "act_bytes": 1}
    if scheme == "none":
        return WeightFormat()
    if scheme == "int8-weight":
        return WeightFormat("gemm_w8a16", {"weight_bits": 8, "scale_bytes": 4}, experts=False)
    if scheme == "int8":
        return WeightFormat("gemm_int8", scaled, quantizes_input=True, experts=False)
    if scheme == "fp8":
        return WeightFormat("gemm_fp8", scaled, quantizes_input=True)
    if scheme == "fp8-block":
        blocks_of_128 = {"group_size": 128, "group_rows": 128, "scale_bytes": 4 / 128}  # a scale serves 128 rows of a group
        return WeightFormat("gemm_fp8", {**scaled, **blocks_of_128}, quantizes_input=True)
    dims = {"weight_bits": 4, "group_size": max(group, 0), "scale_bytes": 2 if symmetric else 3}
    return WeightFormat("gemm_w4a16", dims)


_METHODS = {"gptq": "rtn-int4", "awq": "rtn-int4", "auto-round": "rtn-int4", "intel/auto-round": "rtn-int4", "fp8": "fp8"}
"""quant_method of a checkpoint -> the scheme of the same format."""


def element_sizes(model: ModelInfo, config: EngineConfig) -> dict[str, float]:
    """Bytes of numbers, as calls have them if nothing else is said."""
    element = ELEMENT_BYTES[model.dtype]
    kv = ELEMENT_BYTES.get(config.cache.dtype, element)
    return {"weight_bytes": element, "act_bytes": element, "kv_bytes": kv, "logit_bytes": 4, "out_bytes": element}


def sampling_ops(acceptance_rule: str) -> tuple[str, ...]:
    """What draws tokens. acceptance_rule: of drafts, if there are any."""
    return ("filter_logits", "verify_draft") if acceptance_rule == "standard" else ("sample",)


class CallList:
    """Collects the calls of one device of a stage.

    fused  layers that rotate run ``qk_norm_rotary_kv_write`` in place of the ops that it does the work of
    """

    def __init__(self, model: ModelInfo, architecture: Architecture, config: EngineConfig, fused: bool) -> None:
        self._a, self._parallel = architecture, config.parallel
        self._rank = rank_architecture(architecture, config.parallel)
        groups = group_layers(self._rank.cache_specs(model.dtype, model.max_model_len))
        crosses = [isinstance(group.spec, CrossKV) for group in groups]
        self._num_cross_groups, self._num_groups = sum(crosses), crosses.count(False)
        self._is_whole, self._has_experts = model.vision is not None and model.vision.whole, architecture.has_visual_experts
        self._rows: tuple[Rows, ...] = ("language", "vision") if self._has_experts else ("tokens",)
        if config.model.latent_prefill != "absorbed":
            raise ValueError(
                f"executor.kind={config.executor.kind} knows prompts of latent attention in the absorbed form only: set "
                "model.latent_prefill=absorbed"
            )
        self._weights, self._fused = weight_format(model, config), fused
        self._fuse_quantization = config.quant.fuse
        self._sizes = element_sizes(model, config)
        self._calls: Counter[Call] = Counter()

    def stage(self, stage: Stage, acceptance_rule: str = "match") -> Counter[Call]:
        """Of a step of every kind; what computes rows of a kind runs in steps that have such rows. acceptance_rule: of drafts, if
        there are any."""
        a, rank, tp = self._a, self._rank, self._parallel.tp
        self._calls = Counter()
        self._add("slot_mapping", {}, self._num_groups)
        if stage.first:
            self._add("embedding", {"hidden_size": a.embed_dim})
            self._all_reduce(a.embed_dim)
            if a.family.embed_norm is not None:
                self._norm(1)
            if a.family.positions == "learned":
                self._add("embedding", {"hidden_size": a.hidden_size})
            if a.family.token_types:
                self._add("embedding", {"hidden_size": a.hidden_size})
            if a.embed_dim != a.hidden_size:
                self._add("linear", {"in_features": a.embed_dim, "out_features": a.hidden_size})
        for layer, count in Counter(rank.layers[index] for index in stage.layers).items():
            self._layer(layer, count)
        if not stage.last:
            self._add("send", {"num_ranks": 2}, elements=2 * a.hidden_size)  # the hidden state and its residual
            return self._calls
        if a.final_norm:
            self._norm(1)
        if not a.has_logits:
            return self._calls
        if a.embed_dim != a.hidden_size:
            self._add("linear", {"in_features": a.hidden_size, "out_features": a.embed_dim}, rows="logits")
        self._add("linear", {"in_features": a.embed_dim, "out_features": rank.vocab_size}, rows="logits")
        if tp > 1:
            self._add("all_gather", {"num_ranks": tp}, rows="logits", elements=rank.vocab_size * tp)
        drawn_by = sampling_ops(acceptance_rule)
        for op in (*drawn_by, "gather_logprobs") if a.diffusion is not None else drawn_by:
            self._add(op, {"vocab_size": a.vocab_size}, rows="samples")
        return self._calls

    def encoders(self, stacks: Iterable[EncoderStack]) -> Counter[Call]:
        """Of each item that these encode, and of what is stored of it for a request, as keys and values of every layer that attends
        to it."""
        self._calls, a, rank = Counter(), self._a, self._rank
        element = int(self._sizes["act_bytes"])
        for op, dims, count, each, library, windowed, embeddings in (call for stack in stacks for call in stack.calls(element)):
            more = {"each": each, "library": library, "windowed": windowed, "embeddings": embeddings}
            self._add(op, {"kv_bytes": self._sizes["act_bytes"], **dims}, count, rows="encoded", **more)
        if a.family.encoder and not a.family.listens:
            self._add("embedding", {"hidden_size": a.embed_dim}, rows="encoded")
        if num_layers := sum(bool(a.family.encoder) or layer.cross for layer in a.layers):
            self._add("slot_mapping", {}, self._num_cross_groups, rows="stored")
            kv = {"num_kv_heads": rank.num_kv_heads, "head_dim": a.head_dim}
            out_features = 2 * rank.num_kv_heads * a.head_dim
            self._add("linear", {"in_features": a.hidden_size, "out_features": out_features}, num_layers, rows="stored")
            if "cross_k_norm" in a.family.names:
                self._head_norm(rank.num_kv_heads, num_layers, rows="stored")
            self._add("kv_cache_write", kv, num_layers, rows="stored")
        return self._calls

    def _layer(self, layer: LayerShape, count: int) -> None:
        a, rank, family = self._a, self._rank, self._a.family
        hidden, inner = a.hidden_size, rank.intermediate_size
        num_norms = sum(name.endswith("norm") and name not in INNER_NORMS for name in family.names)
        before_linear = ("attn_norm" in family.names) + ("mlp_norm" in family.names and layer.moe is None)
        self._norm(count * before_linear, quantizes=True)
        self._norm(count * (num_norms - before_linear))
        if layer.mixer is not None:
            self._mixer(layer.mixer, count)
        elif layer.cross:
            self._cross_attention(count)
        elif a.latent is None:
            self._attention(layer, count)
        else:
            self._latent_attention(a.latent, layer, count)
        if family.encoder:
            self._cross_attention(count)
        self._all_reduce(hidden, count)
        if a.residual == "single":
            return
        if layer.moe is not None:
            self._experts(layer.moe, count)
        else:
            self._mlp(inner, count)
        self._all_reduce(hidden, count)

    def _attention(self, layer: LayerShape, count: int) -> None:
        a, rank, family = self._a, self._rank, self._a.family
        heads = {"num_heads": rank.num_heads, "num_kv_heads": rank.num_kv_heads, "head_dim": a.head_dim}
        q_size, kv_size = rank.num_heads * a.head_dim, rank.num_kv_heads * a.head_dim
        self._linear(
            count, a.hidden_size, q_size * (1 + family.gated_attention) + 2 * kv_size, input_quantized=not self._has_experts
        )
        if self._fused and layer.rope is not None and a.fuses_rotary:
            self._add("qk_norm_rotary_kv_write", heads, count)
        else:
            for num_heads in (rank.num_heads, rank.num_kv_heads) if layer.normalizes(family) else ():
                self._head_norm(num_heads, count)
            if layer.rope is not None:
                self._add("rotary", heads, count)
            self._add("kv_cache_write", {name: heads[name] for name in ("num_kv_heads", "head_dim")}, count)
        is_causal = a.causal and a.diffusion is None  # rows end where a canvas does
        attention = {**heads, "window": layer.reach or 0} | ({} if is_causal else {"causal": 0})
        self._add("paged_attention_decode", attention, count, rows="decode")
        self._add("paged_attention_prefill", attention, count, rows="prefill")
        if self._is_whole:
            self._add("paged_attention_prefill", {**attention, "causal": 0}, count, rows="whole")
        self._linear(count, q_size, a.hidden_size)

    def _cross_attention(self, count: int) -> None:
        """To what an encoder gave."""
        a, rank = self._a, self._rank
        heads = {"num_heads": rank.num_heads, "num_kv_heads": rank.num_kv_heads, "head_dim": a.head_dim, "window": 0, "causal": 0}
        self._linear(count, a.hidden_size, rank.num_heads * a.head_dim)
        if "cross_q_norm" in a.family.names:
            self._head_norm(rank.num_heads, count)
        self._add("paged_attention_decode", heads, count, rows="cross_decode")
        self._add("paged_attention_prefill", heads, count, rows="cross_prefill")
        self._linear(count, rank.num_heads * a.head_dim, a.hidden_size)

    def _latent_attention(self, x: Latent, layer: LayerShape, count: int) -> None:
        """In its absorbed form. Every rank has the whole latents."""
        hidden, num_heads = self._a.hidden_size, self._rank.num_heads
        queries = num_heads * x.query_dim
        cached = {"num_kv_heads": 1, "head_dim": x.head_dim, "value_dim": x.kv_rank, "aliased": 1}
        self._linear(count, hidden, (x.q_rank or queries) + x.head_dim, input_quantized=True)
        if x.q_rank:
            self._add("rms_norm", {"hidden_size": x.q_rank, "residual": 0, **self._quantized_output()}, count)
            self._linear(count, x.q_rank, queries, input_quantized=True)
        self._add("rms_norm", {"hidden_size": x.kv_rank, "residual": 0}, count)
        self._add("rotary", {"num_heads": num_heads, "num_kv_heads": 1, "head_dim": x.rope_dim}, count)
        self._add("kv_cache_write", cached, count)
        attention = {"num_heads": num_heads, **cached, "window": layer.window or 0}
        self._add("head_linear", {"num_heads": num_heads, "in_features": x.nope_dim, "out_features": x.kv_rank}, count)
        self._add("paged_attention_decode", attention, count, rows="decode")
        self._add("paged_attention_prefill", attention, count, rows="prefill")
        self._add("head_linear", {"num_heads": num_heads, "in_features": x.kv_rank, "out_features": x.value_dim}, count)
        self._linear(count, num_heads * x.value_dim, hidden)

    def _mixer(self, mixer: Mixer, count: int) -> None:
        """Ops with states run once for all rows; what they cost is that of rows that decode and of prompts."""
        for name, (rows, columns) in mixer.linears(self._a.hidden_size).items():
            if name in KEPT_AS_FLOATS:
                self._add("linear", {"in_features": columns, "out_features": sum(rows)}, count)
                if name == "x_proj":
                    self._all_reduce(sum(rows), count)
            else:
                self._linear(count, columns, sum(rows), input_quantized=name == "in_proj" and not isinstance(mixer, GatedDelta))
        for op, dims in calls(mixer):
            if op.endswith("norm"):
                self._add(op, dims, count)
                continue
            for kind in RECURRENT_ROWS:
                self._add(op, {**dims, "state_bytes": 4}, count, rows=kind)

    def _mlp(self, inner: int, count: int, input_quantized: bool = True) -> None:
        hidden, gated = self._a.hidden_size, self._a.family.gated
        self._linear(count, hidden, inner * (1 + gated), input_quantized=input_quantized and not self._has_experts)
        gelu = gated and self._a.activation not in ("silu", "swish")
        width = {"intermediate_size": inner, **self._quantized_output()}
        for rows in self._rows:
            self._add("gelu_and_mul" if gelu else "silu_and_mul", width, count, rows=rows)
        self._linear(count, inner, hidden, input_quantized=True)

    def _experts(self, moe: Moe, count: int) -> None:
        whole = {"num_experts": moe.num_experts, "top_k": moe.top_k}
        wide = {"weight_bytes": 4, "act_bytes": 4} if moe.float32_router else {}
        self._add("linear", {"in_features": self._a.hidden_size, "out_features": moe.num_experts, **wide}, count)
        self._add("moe_route", whole, count)
        weights = {name: value for name, value in self._weights.dims.items() if name != "act_bytes" and self._weights.experts}
        if "group_rows" in weights:  # which the cost of experts knows
            weights["scale_bytes"] = 4
        ranks = {"ep": self._parallel.ep, "tp": self._parallel.tp // self._parallel.ep}
        sizes = {"hidden_size": self._a.hidden_size, "intermediate_size": moe.intermediate_size}
        self._add("moe_experts", {**whole, **sizes, **ranks, **weights}, count)
        if moe.shared_size:
            self._mlp(moe.shared_size, count, input_quantized=False)
        if moe.shared_gate:
            self._linear(count, self._a.hidden_size, 1)

    def _linear(self, count: int, in_features: int, out_features: int, input_quantized: bool = False) -> None:
        """Beside its visual expert, where layers have some. input_quantized: what comes before it can quantize its own output."""
        dims = {"in_features": in_features, "out_features": out_features, **self._weights.dims}
        for rows in self._rows:
            if self._weights.quantizes_input and not (input_quantized and self._fuse_quantization):
                self._add("quantize_activation", {"hidden_size": in_features}, count, rows=rows)
            self._add(self._weights.op, dims, count, rows=rows)

    def _head_norm(self, num_heads: int, count: int, rows: Rows = "tokens") -> None:
        """Of heads one by one, or all at once."""
        a = self._a
        at_once = num_heads if a.family.qk_norm == "width" else 1
        dims = {"hidden_size": at_once * a.head_dim, "residual": 0}
        self._add(f"{a.family.norm}_norm", dims, count, rows=rows, each=num_heads // at_once)

    def _norm(self, count: int, quantizes: bool = False) -> None:
        dims = {"hidden_size": self._a.hidden_size, "residual": 1}
        self._add(
            f"{self._a.family.norm}_norm",
            {**dims, **(self._quantized_output() if quantizes and not self._has_experts else {})},
            count,
        )

    def _quantized_output(self) -> dict[str, float]:
        return {"out_bytes": 1, "num_scales": 1} if self._weights.quantizes_input and self._fuse_quantization else {}

    def _all_reduce(self, elements: int, count: int = 1) -> None:
        if self._parallel.tp > 1:
            self._add("all_reduce", {"num_ranks": self._parallel.tp}, count, elements=elements)

    def _add(self, op: str, dims: Mapping[str, float], count: int = 1, *, rows: Rows = "tokens", **more: Any) -> None:
        """more: fields of ``Call``."""
        if count:
            self._calls[Call(op, rows, frozenset({**self._sizes, **dims}.items()), **more)] += count
