"""A case made into calls of an impl."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..attention_meta import AttentionMeta, LayerKV
from ..impl import Bound, Impl
from ..lora_meta import LoraMeta
from ..op import Case, Op
from ..spec import Spec, device_arch
from ..state_meta import StateMeta
from ..tuning import TunedTables

Args = dict[str, Any]


def make_args(op: Op, case: Case, dtype: torch.dtype, device: torch.device) -> Args:
    """The case's arguments, always the same: the generator is seeded by the names of op and case."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{op.name}/{case.name}".encode()))
    args = {**op.defaults, **case.make(generator, dtype, device)}
    assert tuple(sorted(args)) == tuple(sorted(op.parameters)), f"{op.name}/{case.name} gives {sorted(args)}"
    return args


def make_spec(op: Op, args: Mapping[str, Any], dtype: torch.dtype, device: torch.device, interpret: bool = False) -> Spec:
    """The facts that an engine would know when it builds a layer that is called with ``args``."""
    facts = op.static_facts({name: args[name] for name in op.bind_args if name in args})
    kv = args.get("kv")
    if kv is not None:
        facts |= {"page_size": kv.page_size, "num_kv_heads": kv.k.shape[2], "head_dim": kv.k.shape[3]}
        facts |= {"value_dim": kv.v.shape[3], "kv_dtype": kv.k.dtype, "aliased": kv.is_aliased}
        if "q" in args:
            facts["num_heads"] = args["q"].shape[1]
    return Spec(device.type, device_arch(device), dtype, interpret, facts)


def bind(
    op: Op, impl: Impl, spec: Spec, args: Args, options: Mapping[str, Any] | None = None, tables: TunedTables | None = None
) -> Bound:
    """The impl bound to the arguments that are fixed when a layer is built."""
    given = [name for name in op.bind_args if name not in op.optional or op.is_given(name, args)]
    weights = {name: args[name] for name in given if isinstance(args[name], torch.Tensor)}
    params = {name: args[name] for name in given if name not in weights}
    return impl.bind(spec, weights, params, options, tables)


def call(op: Op, bound: Bound, args: Args) -> list[torch.Tensor]:
    """One step: ``begin_step`` where there is one, then the call. Returns the outputs."""
    begin_step: Callable[[AttentionMeta | LoraMeta], None] | None = getattr(bound, "begin_step", None)
    if begin_step is not None and "meta" in args:
        begin_step(args["meta"])
    return outputs(bound(*(args[name] for name in op.call_args)))


def outputs(result: Any) -> list[torch.Tensor]:
    """What a reference or bound impl returned, as a list."""
    if result is None:
        return []
    return [result] if isinstance(result, torch.Tensor) else list(result)


def held_bytes(args: Args) -> int:
    """Memory of all tensors among the arguments."""
    return sum(tensor.nbytes for value in args.values() for tensor in tensors(value))


def tensors(value: Any) -> list[torch.Tensor]:
    """Those of an argument."""
    if isinstance(value, AttentionMeta):
        return [value.cu_q, value.seq_lens, value.block_table]
    if isinstance(value, StateMeta):
        return [value.cu_q, value.slots, value.is_first]
    if isinstance(value, LoraMeta):
        return [value.index]
    if isinstance(value, LayerKV):
        return [t for t in value if t is not None]
    return [value] if isinstance(value, torch.Tensor) else []


def mutated(op: Op, args: Args) -> list[torch.Tensor]:
    """The tensors that a call writes to."""
    return [t for name in op.mutates for t in tensors(args[name])]


def take_rows(op: Op, args: Args, first: int, last: int) -> tuple[Args, slice]:
    """The arguments of a smaller batch, made of rows (with ``meta``: requests) first .. last - 1, and where its rows of
    outputs lie in those of the whole batch."""
    tokens = slice(first, last)
    part = dict(args)
    meta: AttentionMeta | LoraMeta | StateMeta | None = args.get("meta")
    if isinstance(meta, LoraMeta):
        part["meta"] = LoraMeta(meta.index[tokens], meta.slots)
    elif meta is not None:
        tokens = slice(int(meta.cu_q[first]), int(meta.cu_q[last]))
        part["meta"] = meta.take(first, last)
    for name in op.row_args:
        if isinstance(args[name], torch.Tensor):
            part[name] = rows_of(args[name], tokens, args[op.row_args[0]].shape[0])
    return part, tokens


def rows_of(tensor: torch.Tensor, rows: slice, total: int) -> torch.Tensor:
    """These rows of a batch of ``total``; a single row that holds for all of them stays as it is."""
    return tensor if tensor.shape[0] == 1 < total else tensor[rows]
