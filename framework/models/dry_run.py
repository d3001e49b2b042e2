"""What a model that the transformers library computes launches in a step: found by running it on the meta device, where tensors
have shapes and nothing else, so that the largest model takes no memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config import EngineConfig
from ..engine.kv_cache.spec import group_layers
from ..plan import AttentionMeta, BoundKernel, LayerKV
from .batch import CanvasTokens, ForwardBatch, GroupBatch, WholeTokens
from .diffusion_gemma import DiffusionGemma, load_diffusion_gemma
from .entropies import entropies
from .launches import ELEMENTWISE, Attends, Launch, Launches
from .read import ModelInfo
from .transformers_model import TransformersModel, check_as_it_is, load_transformers_model

_META = torch.device("meta")
_ROWS = (16, 24)
"""Of the steps that are tried: what grows with a row is told from what does not."""
_aten = torch.ops.aten
_NO_KERNELS = {
    *(_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided),
    *(_aten._unsafe_view, _aten.lift_fresh, _aten.detach),
}
"""Beside views."""
_GATHERS = {_aten.embedding, _aten.index, _aten.index_select, _aten.gather}
"""Of their first argument they read as much as they give."""
_SCATTERS = {_aten.index_put_, _aten.index_copy_, _aten.index_add_}
"""Of their first argument they write as much as they are given."""
_OF_EXPERTS = ("_grouped_mm", "grouped_mm_fallback")


class _Seen(NamedTuple):
    """A launch. amount: rows or bytes."""

    op: str
    dims: frozenset[tuple[str, float]]
    library: bool
    amount: float


class DryRun:
    """A model on the meta device.

    attention     how its layers attend
    weight_bytes  of its weights
    Raises ValueError for a model that cannot be served as ``config`` says, and for one whose launches depend on numbers.
    """

    def __init__(self, engine: EngineConfig, info: ModelInfo) -> None:
        check_as_it_is(info, engine.quant, engine.lora)
        config, cache = engine.model, engine.cache
        self._name, self._plan, self._block_size = config.name, _Plan(), cache.block_size
        load: Any = load_transformers_model if info.diffusion is None else load_diffusion_gemma
        self._model: TransformersModel | DiffusionGemma = self._tried(
            lambda: load(
                replace(config, load_format="dummy"), info, self._plan, _META, cache.block_size, info.cache_dtype(cache.dtype), 0
            )
        )
        self.vocab_size, self.weight_bytes = self._model.vocab_size, sum(self._plan.storages.values())
        layers = [layer for _, layer in sorted(self._model.attention.items())]
        self.attention = [Attends(each.decode.run.dims, each.spec, each.whole is not None) for each in layers]
        self.groups = group_layers(self._model.cache_specs())
        self._model.set_groups(self.groups)

    def launches(self) -> Launches:
        """Raises ValueError as the class does."""
        return self._tried(self._launches)

    def _launches(self) -> Launches:
        tokens = _fitted(_ROWS, [self._step(rows, logits=False) for rows in _ROWS])
        with_logits = [self._step(rows, logits=True) for rows in _ROWS]
        taken, pages = Counter[Launch](), (2, 3)
        if any(layer.canvases for layer in self.attention):
            found = [self._step(_ROWS[0], logits=True, pages=each) for each in pages]
            sizes = [each * self._block_size for each in pages]
            taken = _fitted(sizes, found) - _fitted(sizes, [with_logits[0]] * 2)
        both = _fitted(_ROWS, with_logits)
        if alone := tokens - both:
            raise RuntimeError(f"steps without logits alone launch {', '.join(sorted({launch.op for launch in alone}))}")
        return Launches(tokens, both - tokens, taken)

    def _tried(self, run: Callable[[], Any]) -> Any:
        try:
            with _Dispatched(self._plan), torch.no_grad():  # not inference_mode, in which composite operators would be seen whole
                return run()
        except (NotImplementedError, RuntimeError) as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(
                f"model {self._name!r} cannot be simulated: it runs through the transformers library, and what that launches for "
                f"it cannot be found without its numbers: {type(error).__name__}: {said}"
            ) from error

    def _step(self, rows: int, *, logits: bool, pages: int = 0) -> list[_Seen]:
        """So many tokens, all of which have logits or none does. pages: of the cache that are copied in each windowed layer."""
        model, tokens = self._model, torch.zeros(rows, dtype=torch.int64, device=_META)
        meta = AttentionMeta(tokens, tokens, tokens[None], rows, rows, {})
        groups, caches = list[GroupBatch](), dict[int, LayerKV]()
        for group in self.groups:
            taken = tokens.new_empty(pages, self._block_size) if pages and group.spec.window is not None else None
            groups.append(GroupBatch(tokens, None, meta, WholeTokens(tokens, meta, taken) if logits else None))
            spec = group.spec
            keys = torch.empty(
                1, self._block_size, spec.num_kv_heads, spec.head_dim, dtype=getattr(torch, spec.dtype), device=_META
            )
            caches |= dict.fromkeys(group.layers, LayerKV(keys, keys.new_empty(*keys.shape[:3], spec.v_head_dim)))
        batch = ForwardBatch(tokens, tokens, 0, groups, caches, tokens)
        if isinstance(model, DiffusionGemma) and logits:
            batch.canvas = CanvasTokens(tokens, torch.empty(rows, model.hidden_size, dtype=model.dtype, device=_META))
        self._plan.seen = []
        hidden = model.forward(batch)
        if logits:
            given = model.logits(hidden)
            if isinstance(model, DiffusionGemma):  # the sampler's part of a pass takes time as well
                drawn = given / given[:, :1]
                drawn.argmax(-1)
                model.said(drawn)
                entropies(drawn)
        found, self._plan.seen = self._plan.seen, []
        return found


def _fitted(sizes: Sequence[int], runs: Sequence[Sequence[_Seen]]) -> Counter[Launch]:
    """Of two runs of these sizes that launch the same."""
    first, second = runs
    if [seen[:3] for seen in first] != [seen[:3] for seen in second]:
        raise RuntimeError(f"{len(first)} launches for {sizes[0]} rows, {len(second)} for {sizes[1]}, or others")
    found = Counter[Launch]()
    for one, other in zip(first, second):
        each = (other.amount - one.amount) / (sizes[1] - sizes[0])
        found[Launch(*one[:3], each, one.amount - each * sizes[0])] += 1
    return found


class _Plan:
    """In place of a ``KernelPlan``: kernels give tensors of the right shape.

    seen      launches, in order
    storages  bytes of the weights, each counted once
    """

    def __init__(self) -> None:
        self.seen: list[_Seen] = []
        self.storages: dict[int, int] = {}

    def bind(
        self,
        op: str,
        weights: Mapping[str, torch.Tensor | None] | None = None,
        params: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> BoundKernel:
        for weight in (weights or {}).values():
            self._hold(weight)
        run = _KERNELS[op](self, weights or {}, {**(params or {}), **(facts or {})})
        return BoundKernel(op, None, "", "", run, "", note)

    def runs_in_library(self, model: torch.nn.Module) -> None:
        for weight in model.parameters():
            self._hold(weight)
        for module in model.modules():
            if hasattr(module, "is_concatenated"):  # of the library's use_experts_implementation
                module.register_forward_pre_hook(self._experts)

    def _hold(self, weight: torch.Tensor | None) -> None:
        if weight is not None:
            storage = weight.untyped_storage()
            self.storages[storage._cdata] = storage.nbytes()

    def _experts(self, module: Any, given: tuple[torch.Tensor, ...]) -> None:
        x, ids = given[:2]
        num_experts, *sizes = module.down_proj.shape
        inner, hidden = sizes if module.is_transposed else reversed(sizes)
        self.add("moe_experts", _expert_dims(num_experts, ids, hidden, inner, module.has_gate), len(x), library=True)

    def add(self, op: str, dims: Mapping[str, float], amount: float, *, library: bool = False) -> None:
        self.seen.append(_Seen(op, frozenset(dims.items()), library, amount))


def _expert_dims(num_experts: int, ids: torch.Tensor, hidden: int, inner: int, gated: bool = True) -> dict[str, float]:
    sizes = {"num_experts": num_experts, "top_k": ids.shape[-1], "hidden_size": hidden, "intermediate_size": inner}
    return {**sizes, "ep": 1, "tp": 1, **({} if gated else {"gated": 0})}


class _Kernel:
    """given: what is bound beside weights."""

    def __init__(self, plan: _Plan, weights: Mapping[str, torch.Tensor | None], given: Mapping[str, Any]) -> None:
        self._plan, self._weights, self._given = plan, weights, given


class _Linear(_Kernel):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = cast(torch.Tensor, self._weights["weight"])
        self._plan.add("linear", {"in_features": weight.shape[1], "out_features": weight.shape[0]}, len(x))
        return x.new_empty(len(x), len(weight))


class _Experts(_Kernel):
    def __call__(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        w2 = cast(torch.Tensor, self._weights["w2"])
        num_experts, hidden, inner = w2.shape
        self._plan.add("moe_experts", _expert_dims(num_experts, ids, hidden, inner), len(x))
        return torch.empty_like(x)


class _Write(_Kernel):
    def __call__(self, k: torch.Tensor, v: torch.Tensor, *_: Any) -> None:
        values = {} if v.shape[2] == k.shape[2] else {"value_dim": v.shape[2]}
        self._plan.add("kv_cache_write", {"num_kv_heads": k.shape[1], "head_dim": k.shape[2], **values}, len(k))


class _Attention(_Kernel):
    @property
    def dims(self) -> dict[str, float]:
        found = self._given
        values = {} if found["value_dim"] == found["head_dim"] else {"value_dim": found["value_dim"]}
        return {name: found[name] or 0 for name in ("num_heads", "num_kv_heads", "head_dim", "window")} | values

    def __call__(self, q: torch.Tensor, *_: Any) -> torch.Tensor:
        return q.new_empty(*q.shape[:2], self._given["value_dim"])


_KERNELS: Mapping[str, type[Any]] = {
    "linear": _Linear,
    "moe_experts": _Experts,
    "kv_cache_write": _Write,
    "paged_attention_decode": _Attention,
    "paged_attention_prefill": _Attention,
}


class _Dispatched(TorchDispatchMode):
    """Adds what torch launches to what a plan has seen."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self._plan = plan

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet.__name__ in _OF_EXPERTS:  # which know shapes of some dtypes only
            x, weight = args[:2]
            return x.new_empty(len(x), weight.shape[-1])
        if packet.__name__ in ("item", "is_nonzero", "_local_scalar_dense") and args[0].dtype == torch.bool:
            return False  # the library asks whether a row is one sequence, and a step has many
        out = func(*args, **(kwargs or {}))
        is_constant = packet is _aten._to_copy and args[0].device != _META  # which comes from the host
        if func.is_view or packet in _NO_KERNELS or is_constant:
            return out
        if packet in (_aten.mm, _aten.addmm):
            x, weight = args[-2:]
            self._plan.add("linear", {"in_features": weight.shape[0], "out_features": weight.shape[1]}, len(x), library=True)
        else:
            self._plan.add(ELEMENTWISE, {}, _moved_bytes(packet, args, kwargs, out), library=True)
        return out


def _moved_bytes(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    """What a kernel reads and writes."""
    read, written = ([each for each in tree_leaves(part) if isinstance(each, torch.Tensor)] for part in ((args, kwargs), out))
    if packet in _GATHERS:
        read[0] = written[0]
    if packet in _SCATTERS:
        read, written = read[1:], read[-1:]
    return sum(each.numel() * each.itemsize for each in (*read, *written))
