"""The weights of a model, part by part: what is stacked into one tensor, and where it lies on disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .architecture import Architecture, LayerShape, Moe
from .mixers import MIXER_NORMS, MIXER_PARTS, GatedDelta, Mixer
from .parallel import Ranks

Layout = Literal["linear", "transposed", "interleaved", "filters", "flat", "flat_transposed"]


@dataclass(frozen=True)
class Part:
    """One tensor of the model (and its bias), stacked from shards.

    sources    module names on disk; for experts with ``{e}`` in place of the expert's number, or without where one tensor holds
               the matrices of all of them: see ``layout``
    tensor     name of the tensor in a module; "" where the module's name is the tensor's
    rows       rows (outputs) of each source
    columns    inputs; None for a norm, which is a vector; one without sources has no weights
    layout     linear [rows, columns]; transposed [columns, rows] on disk; interleaved: rows on disk go by KV heads,
               ``num_groups``, each with its share of every piece (its queries, its key, its value), and rows here by pieces: q of
               all heads, k, v; filters [rows, 1, columns]. Of experts in one tensor [E, ..., ...]; flat and flat_transposed:
               [E * ..., ...]
    alternating   rows of gate and of up take turns on disk; here gate comes first
    always_float   norms and embeddings, which no checkpoint stores otherwise
    float32        kept in float32 whatever the model's dtype
    quantizable    a linear layer or experts inside a layer of the model, as which routers do not count: what is quantized where
                   a checkpoint of floats is to be
    pieces     rows of what stands side by side, however many sources that has: ranks cut each by itself, and where there are more
               ranks than heads, several have the same; () = ranks cut all rows, and may have some that were added
    share      of a rank's share: the whole part, and the rank
    unbiased   of a part with a bias, numbers of the sources that have none
    experts    of a rank's share: which of the whole's experts it has, one may be there twice; () = as many as ``num_experts``, in
               their order
    """

    sources: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int | None = None
    bias: bool = False
    layout: Layout = "linear"
    alternating: bool = False
    num_experts: int = 0
    num_groups: int = 1
    always_float: bool = False
    float32: bool = False
    tensor: str = "weight"
    quantizable: bool = False
    pieces: tuple[int, ...] = ()
    share: tuple[Part, Ranks] | None = None
    unbiased: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        matrix = (sum(self.rows),) if self.columns is None else (sum(self.rows), self.columns)
        return (self.num_experts, *matrix) if self.num_experts else matrix

    @property
    def bias_shape(self) -> tuple[int, ...]:
        rows = sum(self.rows)
        return (self.num_experts, rows) if self.num_experts else (rows,)

    @property
    def own(self) -> tuple[list[range], range, Sequence[int]]:
        """Of a rank's share, within the whole: rows of each piece, columns and experts. Where rows were added, so that there are as
        many for every rank, it may be fewer than ``pieces`` says."""
        assert self.share is not None
        whole, rank = self.share
        rows, start = [], 0
        for count, total in zip(self.pieces or self.rows, whole.pieces or whole.rows, strict=True):
            copies = rank.size * count // total if self.pieces else 1
            first = rank.rank // copies * count
            rows.append(range(start + min(first, total), start + min(first + count, total)))
            start += total
        experts = self.experts or _share(self.num_experts, whole.num_experts, rank)
        return rows, _share(self.columns or 0, whole.columns or 0, rank), experts

    @property
    def is_packed(self) -> bool:
        """Whether one tensor on disk holds all experts."""
        return bool(self.num_experts) and "{e}" not in self.sources[0]

    @property
    def rows_on_disk(self) -> list[int]:
        """Of an interleaved part: where each row lies."""
        sizes = [piece // self.num_groups for piece in self.pieces]
        starts = range(0, sum(self.rows), sum(sizes))
        firsts = list(itertools.accumulate(sizes, initial=0))
        return [start + first + row for first, size in zip(firsts, sizes) for start in starts for row in range(size)]

    def tensors(self) -> Iterator[tuple[str, int, int, tuple[int, ...]]]:
        """(name on disk, expert, shard, shape on disk) of each weight, without the biases. Of packed experts the expert is 0."""
        for expert in range(1 if self.is_packed else self.num_experts or 1):
            for shard, (source, rows) in enumerate(zip(self.sources, self.rows)):
                shape: tuple[int, ...] = (rows,) if self.columns is None else (rows, self.columns)
                shape = shape[::-1] if self.layout.endswith("transposed") else shape
                shape = (rows, 1, *shape[1:]) if self.layout == "filters" else shape
                if self.is_packed:
                    e = self.num_experts
                    shape = (e * shape[0], *shape[1:]) if self.layout.startswith("flat") else (e, *shape)
                name = source.format(e=expert)
                yield f"{name}.{self.tensor}" if self.tensor else name, expert, shard, shape

    def float_names(self) -> Iterator[str]:
        """Names on disk of the weights and biases, where they are floats."""
        for name, _, shard, _ in self.tensors():
            yield name
            if self.bias and shard not in self.unbiased:
                yield bias_name(name)


def _share(count: int, total: int, rank: Ranks) -> range:
    start = rank.rank * count if count < total else 0
    return range(start, start + count)


def shares(own: dict[str, Part], whole: dict[str, Part], rank: Ranks) -> dict[str, Part]:
    """Parts as a rank has them, which know the whole ones where they are less. own: of the rank's architecture."""
    return {name: part if part == whole[name] else replace(part, share=(whole[name], rank)) for name, part in own.items()}


def bias_name(weight_name: str) -> str:
    """Of the bias on disk that belongs to a weight."""
    return weight_name.removesuffix("weight") + "bias" if weight_name.endswith("weight") else f"{weight_name}_bias"


def model_parts(a: Architecture) -> dict[str, Part]:
    """Parts outside the layers, as far as there: the embedding and logits, with what stands between them and the layers."""
    f = a.family
    parts = {"embed": Part((f.base + f.embed,), (a.vocab_size + f.num_unscored,), a.embed_dim, always_float=True)}
    if f.positions == "learned":
        rows = (a.max_position + f.position_offset,)
        parts["position_embed"] = Part((f.base + f.position_embed,), rows, a.hidden_size, always_float=True)
    if f.positions == "relative":
        assert a.buckets is not None
        parts["position_bias"] = Part(
            (f.base + f.position_embed,), (a.buckets.number,), a.num_heads, always_float=True, float32=True
        )
    if f.logits_bias:
        parts["logits_bias"] = Part((f.logits_bias,), (1,), a.vocab_size, always_float=True, tensor="")
    if f.token_types:
        parts["token_types"] = Part((f.base + f.token_types,), (a.num_token_types,), a.hidden_size, always_float=True)
    if a.embed_dim != a.hidden_size:
        parts["project_in"] = Part((f.base + "project_in",), (a.hidden_size,), a.embed_dim)
        parts["project_out"] = Part((f.base + "project_out",), (a.embed_dim,), a.hidden_size)
    for name, module in (("embed_norm", f.embed_norm), ("final_norm", f.final_norm if a.final_norm else None)):
        if module is not None:
            parts[name] = _norm(a, (f.base + module,) if module else ())
    if a.has_logits and not a.tied:
        parts["lm_head"] = Part((f.lm_head,), (a.vocab_size,), a.embed_dim, bias="lm_head" in a.biases)
    elif "lm_head" in a.biases:
        parts["lm_head_bias"] = Part((f.lm_head,), (a.vocab_size,), always_float=True, tensor="bias")
    return parts


def _norm(a: Architecture, sources: tuple[str, ...]) -> Part:
    return Part(sources, (a.hidden_size,), bias=a.family.norms_have_bias and bool(sources), always_float=True)


def _qk_norm(a: Architecture, sources: tuple[str, ...], num_heads: int) -> Part:
    """Its shape is [D], [H * D] or, with a weight for each head in one tensor, [H, D]."""
    bias, kind = a.family.qk_norm_bias and bool(sources), a.family.qk_norm
    if kind == "heads" and "{h}" in "".join(sources):
        sources = tuple(source.replace("{h}", str(head)) for source in sources for head in range(num_heads))
        rows = (a.head_dim,) * num_heads
        return Part(sources, rows, bias=bias, always_float=True, pieces=(sum(rows),))
    if kind == "heads":
        return Part(sources, (num_heads,), a.head_dim, bias=bias, always_float=True, pieces=(num_heads,))
    rows = (a.head_dim * (num_heads if kind == "width" else 1),)
    return Part(sources, rows, bias=bias, always_float=True, pieces=rows)


def layer_parts(a: Architecture, index: int) -> dict[str, Part]:
    """Parts of layer ``index``, by the names of the family table."""
    f, moe, mixer = a.family, a.layers[index].moe, a.layers[index].mixer
    linears, skipped = _linears(a, moe, mixer), _skipped(a, a.layers[index])
    parts = {}
    for name, modules in f.names.items():
        if name in skipped or (name == "attn_norm" and index == 0 and f.starts_normed):
            continue
        sources = tuple(f"{f.base}{f.layers}.{index}.{module}" for module in modules)
        if name in linears:
            pieces, columns = linears[name]
            alone = len(pieces) - len(sources) + 1  # the first source holds what no other does
            rows = (sum(pieces[:alone]), *pieces[alone:])
            layout: Layout = "transposed" if f.transposed else "linear"
            groups = a.num_kv_heads
            if name == "qkv" and f.interleaved_qkv:
                layout = "interleaved"
            elif name in ("in_proj", "gates_proj") and isinstance(mixer, GatedDelta) and f.interleaved_mixer:
                layout, groups = "interleaved", mixer.num_k_heads
            bias = name in a.biases
            quantizable = name not in KEPT_AS_FLOATS
            unbiased = tuple(shard for shard, module in enumerate(modules) if module in f.unbiased)
            own = Part(sources, rows, columns, bias, layout, num_groups=groups, quantizable=quantizable, pieces=pieces)
            parts[name] = replace(own, unbiased=unbiased)
        elif mixer is not None and name in MIXER_PARTS:
            parts[name] = _mixer_part(a, mixer, name, sources)
        elif name == "sinks":
            parts[name] = Part(sources, (a.num_heads,), always_float=True, float32=True, tensor="sinks")
        elif name in CROSS_GATES:
            parts[name] = Part(sources, (1,), always_float=True, tensor="")
        elif name in CROSS_NORMS:
            parts[name] = Part(sources, (a.head_dim,), always_float=True)
        elif name in ("q_norm", "k_norm"):
            parts[name] = _qk_norm(a, sources, a.num_heads if name == "q_norm" else a.num_kv_heads)
        elif name in LATENT_NORMS:
            assert a.latent is not None
            size = a.latent.q_rank if name == "q_a_norm" else a.latent.kv_rank
            parts[name] = Part(sources, (size or 0,), always_float=True)
        elif name.endswith("norm"):
            parts[name] = _norm(a, sources)
        else:
            assert moe is not None
            parts[name] = _expert_part(a, moe, name, sources)
    return parts


def _mixer_part(a: Architecture, mixer: Mixer, name: str, sources: tuple[str, ...]) -> Part:
    """Of a layer with states what is no linear layer."""
    if name == "conv":
        pieces = mixer.conv_pieces
        return Part(sources, (sum(pieces),), mixer.width, "conv" in a.biases, "filters", always_float=True, pieces=pieces)
    if name in MIXER_NORMS:
        return Part(sources, (mixer.norm_sizes()[name],), always_float=True, float32=name == "gated_norm")
    found = mixer.constants()[name]
    return Part(sources, (found.rows,), found.columns, always_float=True, float32=True, tensor=found.tensor)


def _expert_part(a: Architecture, moe: Moe, name: str, sources: tuple[str, ...]) -> Part:
    """Of a mixture of experts what is no linear layer."""
    f, size, hidden, wide = a.family, moe.intermediate_size, a.hidden_size, moe.float32_router
    if name == "router":
        return Part(sources, (moe.num_experts,), hidden, "router" in a.biases, always_float=wide, float32=wide)
    if name == "route_bias":
        return Part(sources, (moe.num_experts,), always_float=True, float32=True, tensor=f.route_bias)
    pieces, columns = ((size, size), hidden) if name == "w13" else ((hidden,), size)
    rows = pieces if len(sources) == len(pieces) else (sum(pieces),)
    return Part(
        sources,
        rows,
        columns,
        name in a.biases,
        f.expert_layouts.get(name, "linear"),
        alternating=f.alternating_experts and name == "w13",
        num_experts=moe.num_experts,
        tensor=f.expert_tensor,
        quantizable=True,
        pieces=pieces,
    )


LATENT_NORMS = ("q_a_norm", "kv_a_norm")
CROSS_NORMS = ("cross_q_norm", "cross_k_norm")
"""Of queries to images, and of their keys: each head by itself."""
INNER_NORMS = ("q_norm", "k_norm", *CROSS_NORMS, *LATENT_NORMS, *MIXER_NORMS)
"""Those inside attention, or what stands in its place."""
RECURRENCE_LINEARS = ("x_proj", "dt_proj", "gates_proj")
"""Small linear layers that recurrences hang on."""
KEPT_AS_FLOATS = ("kv_b", *RECURRENCE_LINEARS)
"""Linear layers that nobody quantizes: these, and what is split into the weights of ``head_linear``."""
CROSS_GATES = ("cross_gate", "cross_mlp_gate")
"""Their tanh is the factor of what attention to images, and the MLP behind it, add."""
_CROSS_PARTS = ("cross_q", "cross_kv", "cross_o", *CROSS_NORMS, *CROSS_GATES)
_ATTENTION_PARTS = ("qkv", "o", "q_b", "kv_b", "sinks", "q_norm", "k_norm", *LATENT_NORMS)


def _linears(a: Architecture, moe: Moe | None, mixer: Mixer | None) -> dict[str, tuple[tuple[int, ...], int]]:
    """Linear layers of a layer, but for its experts: rows of each source, and columns."""
    hidden, inner, x = a.hidden_size, a.intermediate_size, a.latent
    found: dict[str, tuple[tuple[int, ...], int]] = {
        "gate_up": ((inner, inner), hidden),
        "up": ((inner,), hidden),
        "down": ((hidden,), inner),
    }
    if moe is not None:
        shared = moe.shared_size
        found |= {"shared_gate_up": ((shared, shared), hidden), "shared_down": ((hidden,), shared), "shared_gate": ((1,), hidden)}
    if mixer is not None:
        return found | mixer.linears(hidden)
    if x is None:
        q, k = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        found |= {"qkv": ((q * (1 + a.family.gated_attention), k, k), hidden), "o": ((hidden,), q)}
        found |= {f"vision_{name}": found[name] for name in ("qkv", "o", "gate_up", "down")}
        return found | {"cross_q": ((q,), hidden), "cross_kv": ((k, k), hidden), "cross_o": ((hidden,), q)}
    queries, values = a.num_heads * x.query_dim, a.num_heads * x.value_dim
    return found | {
        "qkv": ((x.q_rank or queries, x.head_dim), hidden),
        "q_b": ((queries,), x.q_rank or 0),
        "kv_b": ((a.num_heads * (x.nope_dim + x.value_dim),), x.kv_rank),
        "o": ((hidden,), values),
    }


def _skipped(a: Architecture, layer: LayerShape) -> tuple[str, ...]:
    """Names of the family table that a layer does not have."""
    if a.sees_images:
        return _ATTENTION_PARTS if layer.cross else _CROSS_PARTS
    return (*(MIXER_PARTS if layer.mixer is None else _ATTENTION_PARTS), *_skipped_mlp(layer.moe))


def _skipped_mlp(moe: Moe | None) -> tuple[str, ...]:
    shared = ("shared_gate_up", "shared_down", "shared_gate")
    if moe is None:
        return ("router", "route_bias", "w13", "w2", *shared)
    return ("gate_up", "up", "down", *(shared if not moe.shared_size else () if moe.shared_gate else ("shared_gate",)))


def all_parts(a: Architecture) -> Iterator[Part]:
    """Every part of the model."""
    yield from model_parts(a).values()
    for index in range(len(a.layers)):
        yield from layer_parts(a, index).values()
