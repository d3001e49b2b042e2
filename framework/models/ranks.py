"""A model cut among devices: what one device of a stage holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..config import CALIBRATED_SCHEMES, QuantConfig
from ..distributed.config import MAX_RANKS, ParallelConfig
from ..engine.kv_cache.spec import PagedKV
from .architecture import Architecture, LayerShape
from .expert_map import first_map
from .mixers import GatedDelta, Mamba1, Mamba2
from .parallel import Parallel, Ranks
from .parts import Part, layer_parts, model_parts, shares
from .read import ModelInfo

if TYPE_CHECKING:
    from .quantization.scheme import Scheme

SHARES = {Mamba1: "channels with states", Mamba2: "groups of heads with states", GatedDelta: "heads of keys with states"}
"""What ranks cut in layers that keep states."""
VOCAB_PADDING = 64
"""Rows of the embedding and of the head are padded to a multiple of it before they are cut."""


@dataclass(frozen=True)
class Stage:
    """Layers that follow each other, on ``tp`` devices."""

    layers: range
    first: bool = True
    last: bool = True


def stages(architecture: Architecture, pp: int) -> list[Stage]:
    """Raises ValueError for more stages than layers."""
    total = len(architecture.layers)
    if pp > total:
        raise ValueError(f"parallel.pp={pp} cannot work: the model has {total} layers, and every stage needs one")
    cuts = [Ranks(rank, pp).part(total) for rank in range(pp)]
    return [Stage(cut, cut.start == 0, cut.stop == total) for cut in cuts]


def check_ranks(model: ModelInfo, parallel: ParallelConfig, quant: QuantConfig) -> None:
    """Raises ValueError for a model that cannot be cut like that, from its config alone. quant: of its weights."""
    if parallel.tp * parallel.pp * parallel.ep == 1:
        return
    asked = ", ".join(f"parallel.{name}={size}" for name in ("tp", "pp", "ep") if (size := getattr(parallel, name)) > 1)
    if model.architecture is None:
        raise ValueError(
            f"{asked} cannot work: model {model.name!r} runs through the transformers library ({model.reason}), whose layers are "
            "whole; leave it at 1"
        )
    if model.pooling is not None:
        raise ValueError(f"{asked} cannot work: {model.name!r} pools; leave it at 1")
    stages(model.architecture, parallel.pp)
    rank = rank_architecture(model.architecture, parallel)
    first_map(model.architecture, parallel)
    if parallel.tp > 1 and model.quantization is not None:
        from .quantization.shares import check_shares

        scheme = read_weight_scheme(model, quant)
        whole, first = model.architecture, Parallel(Ranks(0, parallel.tp), ep=Ranks(0, parallel.ep))
        for index in range(len(whole.layers)):
            check_shares(layer_shares(rank, whole, index, first).values(), scheme)


def rank_architecture(a: Architecture, parallel: ParallelConfig) -> Architecture:
    """The model as each device of a stage has it: its share of heads, of what keeps states, of the MLPs' inner columns and of the
    vocabulary; of KV heads at least one. Experts are cut the same way unless they are spread (``ep``). Raises ValueError for what
    cannot be cut evenly."""
    tp = parallel.tp
    if tp * parallel.ep == 1:
        return a
    if parallel.ep > 1 and not any(layer.moe for layer in a.layers):
        raise ValueError(f"parallel.ep={parallel.ep} cannot work: the model has no experts; leave it at 1")
    attends = any(layer.mixer is None for layer in a.layers)
    if attends and max(a.num_kv_heads, tp) % min(a.num_kv_heads, tp):
        able = [n for n in range(1, a.num_heads + 1) if not a.num_heads % n and not max(a.num_kv_heads, n) % min(a.num_kv_heads, n)]
        works = ", ".join(map(str, able))
        raise ValueError(
            f"parallel.tp={tp} cannot work: it must divide the model's {a.num_kv_heads} KV heads, or be a multiple; {works} work"
        )
    padded = -(-a.vocab_size // VOCAB_PADDING) * VOCAB_PADDING if tp > 1 else a.vocab_size
    dense = a.residual != "single" and any(layer.moe is None for layer in a.layers)
    return replace(
        a,
        num_heads=_share(a.num_heads, tp, "attention heads") if attends else a.num_heads,
        num_kv_heads=max(a.num_kv_heads // tp, 1),
        intermediate_size=_share(a.intermediate_size, tp, "inner columns of the MLP") if dense else a.intermediate_size,
        vocab_size=-(-padded // tp),
        layers=tuple(_rank_layer(layer, parallel) for layer in a.layers),
    )


def _rank_layer(layer: LayerShape, parallel: ParallelConfig) -> LayerShape:
    if layer.mixer is not None:
        _share(layer.mixer.num_shares, parallel.tp, SHARES[type(layer.mixer)])
        layer = replace(layer, mixer=layer.mixer.share(parallel.tp))
    if layer.moe is None:
        return layer
    shared = _share(layer.moe.shared_size, parallel.tp, "inner columns of the shared experts")
    moe = replace(layer.moe, shared_size=shared)
    if parallel.ep > 1:
        _check_experts(moe.num_experts, parallel)
        return replace(layer, moe=moe)
    inner = _share(moe.intermediate_size, parallel.tp, "inner columns of an expert")
    return replace(layer, moe=replace(moe, intermediate_size=inner))


def _check_experts(num_experts: int, parallel: ParallelConfig) -> None:
    ep, redundant = parallel.ep, parallel.redundant_experts
    if ep > num_experts:
        raise ValueError(f"parallel.ep={ep} cannot work: every rank needs an expert of each layer, and those have {num_experts}")
    if redundant > num_experts * (ep - 1):
        raise ValueError(
            f"parallel.redundant_experts={redundant} cannot work: {ep} ranks hold an expert at most {ep} times, which makes "
            f"{num_experts * (ep - 1)} redundant ones of {num_experts}"
        )
    if (num_experts + redundant) % ep:
        able = ", ".join(str(n) for n in range(-num_experts % ep, num_experts * (ep - 1) + 1, ep)[:4])
        raise ValueError(
            f"parallel.ep={ep} cannot work: it must divide the model's {num_experts} experts together with "
            f"parallel.redundant_experts={redundant}; {able} of these would do"
        )


def _share(total: int, size: int, what: str) -> int:
    if total % size:
        works = ", ".join(str(n) for n in range(1, min(total, MAX_RANKS) + 1) if total % n == 0)
        raise ValueError(f"parallel.tp={size} cannot work: it must divide the model's {total} {what}; {works} do")
    return total // size


def stage_parts(rank: Architecture, stage: Stage, ep: int, redundant: int = 0) -> Iterator[Part]:
    """The weights of a device of the stage. rank: ``rank_architecture`` of the model."""
    parts = model_parts(rank)
    wanted = {"embed": stage.first or (stage.last and rank.tied)}
    wanted |= dict.fromkeys(("position_embed", "token_types", "embed_norm", "project_in"), stage.first)
    yield from (part for name, part in parts.items() if wanted.get(name, stage.last))
    for index in stage.layers:
        yield from _spread(layer_parts(rank, index), ep, redundant).values()


def layer_shares(rank: Architecture, whole: Architecture, index: int, parallel: Parallel) -> dict[str, Part]:
    """Parts of a layer as a rank has them. rank: ``rank_architecture`` of the whole."""
    found, ep = layer_parts(whole, index), parallel.ep
    own, slots = layer_parts(rank, index), None
    if parallel.experts is not None and rank.layers[index].moe is not None:
        slots = parallel.experts.of_rank(index, ep.rank)
    own = _spread(own, ep.size)
    if slots is not None:
        own |= {n: replace(part, num_experts=len(slots), experts=slots) for n, part in own.items() if part.num_experts}
    return {
        name: part
        for of_experts, ranks in ((False, parallel.tp), (True, ep if ep.size > 1 else parallel.tp))
        for name, part in shares({n: p for n, p in own.items() if bool(p.num_experts) == of_experts}, found, ranks).items()
    }


def rank_cache_specs(model: ModelInfo, parallel: Parallel, cache_dtype: str) -> list[PagedKV | None]:
    """What every layer of a model keeps on a rank, whichever stage has it. cache_dtype: as in ``CacheConfig``."""
    assert model.architecture is not None
    rank = rank_architecture(model.architecture, parallel.sizes)
    return rank.cache_specs(model.cache_dtype(cache_dtype), model.max_model_len)


def _spread(parts: dict[str, Part], ep: int, redundant: int = 0) -> dict[str, Part]:
    """With the experts of one of ``ep`` ranks."""
    return {
        name: replace(part, num_experts=(part.num_experts + redundant) // ep) if part.num_experts else part
        for name, part in parts.items()
    }


def read_weight_scheme(model: ModelInfo, quant: QuantConfig) -> Scheme:
    """The scheme that says what weights take; of those that need calibration, one of the same format."""
    from .quantization.table import read_scheme

    if quant.scheme in CALIBRATED_SCHEMES:
        quant = replace(quant, scheme="rtn-int4", symmetric=quant.is_symmetric)
    return read_scheme(model.quantization, quant)


def stage_weight_bytes(rank: Architecture, stage: Stage, ep: int, scheme: Scheme, dtype: str, redundant: int = 0) -> float:
    """Of each device of the stage."""
    import torch

    from .weights import parts_bytes

    return parts_bytes(stage_parts(rank, stage, ep, redundant), scheme, getattr(torch, dtype))
