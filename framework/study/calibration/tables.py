"""Reading tables of measured operator times, of others and our own.

The tables of others are those of NVIDIA's aiconfigurator as csv, plain or gzipped, one per op: ``h200_gemm.csv.gz`` has the GEMMs
of an H200. Our own rows (``rows.COLUMNS``) come as csv, as ``bench.json`` of ``kernelswap kernels bench``, or in the folder of a
profiled run.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..results import RUN_FILE
from .rows import MAX_SIZE, Row, parse_dims, parse_runs

Record = Mapping[str, str]
Call = tuple[str, str, dict[str, float], tuple[float, float, float]]
"""op, dtype, dims, (requests, new tokens, tokens in the cache)."""

TIMES = {"us": 1.0, "ms": 1e3}
"""Columns of time by their unit, in microseconds."""
OWN_TIMES = {"us": "us", "median_us": "us"}
PROFILE_FILE = "op_times.csv"
"""Of a profiled run's folder."""


@dataclass(frozen=True)
class TableFormat:
    """columns: beside the time; optional: those that may be missing; call: what a record measured."""

    columns: tuple[str, ...]
    call: Callable[[Record], Call]
    optional: tuple[str, ...] = ("kernel_source",)


@dataclass(frozen=True)
class Table:
    """The rows of a file. device: as its name says, or its rows."""

    name: str
    device: str
    rows: tuple[Row, ...]


def read_tables(paths: Sequence[Path], device: str | None = None) -> list[Table]:
    """All tables, of one GPU; ``device``: its name, in place of what files say. Raises ValueError for a file that is no such
    table, an entry that cannot be, a table that is given twice, or tables of several GPUs."""
    tables = [_read(path, device) for path in paths]
    devices = dict.fromkeys(table.device for table in tables)
    if len(devices) > 1:
        found = "; ".join(f"{name}: {', '.join(table.name for table in tables if table.device == name)}" for name in devices)
        raise ValueError(f"tables of several GPUs ({found}): a calibration is of one, make one for each")
    for i, table in enumerate(tables):
        if again := next((other for other in tables[:i] if _same(table, other)), None):
            raise ValueError(f"{table.name} and {again.name} hold the same rows, which would count twice: give one of them")
    return tables


def _same(left: Table, right: Table) -> bool:
    """Whether one is the other, or a copy."""
    if not left.rows or len(left.rows) != len(right.rows):
        return False
    return all(
        (a.op, a.dtype, a.dims, a.runs, a.us) == (b.op, b.dtype, b.dims, b.runs, b.us) for a, b in zip(left.rows, right.rows)
    )


def _read(path: Path, device: str | None) -> Table:
    if path.is_dir():
        path, device = _in_folder(path, device)
    if path.suffix == ".json":
        records = _json_records(path)
        return _own_table(path, list(records[0]) if records else [], enumerate(records, 1), device)
    stem = path.name.removesuffix(".gz").removesuffix(".csv")
    owner, _, kind = stem.partition("_")
    if owner == "tiles":
        raise ValueError(
            f"{path.name} has no operator times: it lists tuned tile sizes (block_size_m ...). Give tables like h200_gemm.csv.gz"
        )
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rt", newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a mark of the encoding
        try:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            if "op" in columns and "dims" in columns:
                return _own_table(
                    path, columns, enumerate(reader, 2), device or (owner if kind and path.name != PROFILE_FILE else None)
                )
            if kind not in FORMATS or not owner:
                raise ValueError(
                    f"{path.name}: no table of that name is known. Expected GPU_OP.csv or .csv.gz with OP one of "
                    f"{', '.join(FORMATS)}, or columns op, dtype, dims, q_lens, ctx_lens, us"
                )
            return Table(path.name, device or owner, tuple(_rows(path.name, FORMATS[kind], columns, reader)))
        except (gzip.BadGzipFile, zlib.error, UnicodeDecodeError, EOFError, csv.Error) as error:
            raise ValueError(f"{path.name} is no csv file, plain or gzipped: {error}") from error


def _rows(name: str, format: TableFormat, columns: Sequence[str], reader: csv.DictReader[str]) -> Iterator[Row]:
    times = [column for column in columns if column in TIMES]
    if len(times) != 1:
        said = "both us and ms" if times else f"columns {', '.join(columns)}"
        raise ValueError(f"{name}: expected one column of time that names its unit ({' or '.join(TIMES)}), found {said}")
    if missing := [column for column in format.columns if column not in columns]:
        raise ValueError(f"{name}: column {', '.join(missing)} is missing; found {', '.join(columns)}")
    if unknown := [column for column in columns if column not in (*format.columns, *format.optional, times[0])]:
        expected = ", ".join((*format.columns, *format.optional, "ms"))
        raise ValueError(f"{name}: column {', '.join(unknown)} is unknown; expected {expected}")
    for line, record in enumerate(reader, 2):
        place = f"{name}, row {line}"
        if None in record:
            raise ValueError(f"{place}: more cells than the header has columns ({', '.join(columns)})")
        us = _time(record[times[0]], times[0], place) * TIMES[times[0]]
        try:
            op, dtype, dims, run = format.call(record)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        yield Row(op, record.get("kernel_source") or "", dtype, dims, (run,), us, place=place)


def _own_table(path: Path, columns: Sequence[str], records: Iterator[tuple[int, Record]], device: str | None) -> Table:
    name, time = path.name, next((column for column in OWN_TIMES if column in columns), None)
    if time is None or not {"op", "dtype", "dims", "q_lens"} <= set(columns):
        raise ValueError(
            f"{name}: expected columns op, dtype, dims, q_lens and us (or median_us), found {', '.join(columns) or 'none'}"
        )
    rows: dict[Any, Row] = {}
    devices: dict[str, None] = {}
    for line, record in records:
        place = f"{name}, row {line}"
        if record.get("status", "ok") != "ok" or record[time] in (None, ""):
            continue  # a kernel that did not run, or was wrong
        try:
            dims, runs = parse_dims(record["dims"]), parse_runs(record["q_lens"], record.get("ctx_lens") or "")
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:  # JSON holds anything
            raise ValueError(f"{place}, columns dims, q_lens and ctx_lens: {error}") from error
        us, count = _time(record[time], time, place), _time(record.get("count") or "1", "count", place)
        row = Row(record["op"], record.get("impl") or "", record["dtype"], dims, runs, us, count, place)
        call = (row.op, row.dtype, tuple(dims.items()), runs)
        if call not in rows or us < rows[call].us:  # of several kernels the fastest, as one would serve with
            rows[call] = row
        devices[record.get("device") or device or "unnamed"] = None
    if len(devices) > 1:
        raise ValueError(f"{name}: rows of several devices ({', '.join(devices)}): a calibration is of one, make one for each")
    return Table(name, _short(next(iter(devices), "unnamed")), tuple(rows.values()))


def _in_folder(folder: Path, device: str | None) -> tuple[Path, str | None]:
    """The file of rows in a run's folder, and the device that the run's row names."""
    found = [folder / name for name in (PROFILE_FILE, "bench.json") if (folder / name).is_file()]
    if not found:
        raise ValueError(
            f"{folder} has neither {PROFILE_FILE} (a run with profile=true) nor bench.json (`kernelswap kernels bench`)"
        )
    run = folder / RUN_FILE
    ran_on = json.loads(run.read_text(encoding="utf-8")).get("env.device") if run.is_file() else None
    return found[0], device or (ran_on and _short(ran_on))


def _json_records(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise ValueError(f"{path.name}: expected a list of rows, as `kernelswap kernels bench` writes it")
    return found


def _short(name: str) -> str:
    """The name of a GPU as the device table has it: "NVIDIA A100-SXM4-80GB" is a100."""
    words = re.findall(r"[a-z]+\d+[a-z]*|[a-z0-9]+", name.lower())
    return next((word for word in words if re.fullmatch(r"[a-z]{1,3}\d{2,4}[a-z]?", word)), "_".join(words) or "unnamed")


def _time(text: Any, column: str, place: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{place}, column {column}: {text!r} is no number") from None
    if not 1e-9 < value < 1e12:
        what = "count" if column == "count" else "time"
        raise ValueError(f"{place}, column {column}: {text} is no {what}; expected a number above 0, 1e-9 to 1e12")
    return value


def _numbers(record: Record, *columns: str) -> list[float]:
    """Whole numbers, at least 1 (but ``step`` and ``window_size``, which may be 0)."""
    found = []
    for column in columns:
        text = record.get(column)
        value = float(text) if text is not None and re.fullmatch(r"\d+(\.0*)?", text) else -1.0
        if not (column not in ("step", "window_size")) <= value <= MAX_SIZE:
            raise ValueError(f"column {column}: {str(text)[:40]!r} is no whole number above 0, or too large for one")
        found.append(value)
    return found


def _entry(record: Record, column: str, known: Mapping[str, Any]) -> Any:
    if record[column] not in known:
        raise ValueError(f"column {column}: {record[column]!r} is unknown; expected {', '.join(known)}")
    return known[record[column]]


_FP8_BLOCKS = {"weight_bits": 8, "act_bytes": 1, "group_rows": 128, "group_size": 128, "scale_bytes": 4}
_GEMM_DTYPES: dict[str, tuple[str, dict[str, float]]] = {
    "bfloat16": ("linear", {}),
    "float16": ("linear", {}),
    "fp8": ("gemm_fp8", {"act_bytes": 1, "weight_bits": 8}),
    "fp8_block": ("gemm_fp8", {**_FP8_BLOCKS}),
    "sq": ("gemm_int8", {"act_bytes": 1, "weight_bits": 8}),
    "int8_wo": ("gemm_w8a16", {"weight_bits": 8}),
    "int4_wo": ("gemm_w4a16", {"weight_bits": 4, "group_size": 128}),
    "nvfp4": ("gemm_nvfp4", {}),
}
_KV_BYTES = {"bfloat16": {}, "float16": {}, "fp8": {"kv_bytes": 1}, "int8": {"kv_bytes": 1}}
# Where products of 8 or 4 bits run, the bits of scales are counted with the weights', which also tells these formats apart.
_MOE_DTYPES: dict[str, dict[str, float]] = {
    "bfloat16": {},
    "float16": {},
    "fp8": {"weight_bits": 8},
    "fp8_block": {"weight_bits": 8, "group_rows": 128, "group_size": 128, "scale_bytes": 4},
    "int4_wo": {"weight_bits": 4, "group_size": 128, "scale_bytes": 2},
    "w4a16_mxfp4": {"weight_bits": 4, "group_size": 32, "scale_bytes": 1},
    "w4afp8": {"weight_bits": 4.125},
    "w4a8_mxfp4_mxfp8": {"weight_bits": 4.25},
    "nvfp4": {"weight_bits": 4.5},
}
_MLA_WEIGHTS: dict[str, dict[str, float]] = {
    "bfloat16": {},
    "float16": {},
    "fp8_block": {"weight_bits": 8},
    "fp8": {"weight_bits": 8},
}
_SKEWS = {"balanced": 0.0}
_UNGATED = (22, 512)
"""top_k and experts of the models whose experts have two products and no gate (Nemotron 3), ..."""
_ALL_GATED = "vllm_fused_moe"
"""... but in older tables, of this kernel_source, they were timed with one."""
_NCCL_OPS = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all"}


def _gemm(record: Record) -> Call:
    op, dims = _entry(record, "gemm_dtype", _GEMM_DTYPES)
    m, n, k = _numbers(record, "m", "n", "k")
    return op, "bfloat16", {"out_features": n, "in_features": k, **dims}, (1, m, m)


def _heads(record: Record) -> dict[str, float]:
    heads, kv_heads, size = _numbers(record, "num_heads", "num_key_value_heads", "head_dim")
    window = _numbers(record, "window_size")[0] if "window_size" in record else 0.0
    dims = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": size, "window": window}
    return dims | _entry(record, "kv_cache_dtype", _KV_BYTES)


def _context(record: Record) -> Call:
    requests, length = _numbers(record, "batch_size", "isl")
    return "paged_attention_prefill", "bfloat16", _heads(record), (requests, length, length)


def _generation(record: Record) -> Call:
    requests, step = _numbers(record, "batch_size", "step")
    return "paged_attention_decode", "bfloat16", _heads(record), (requests, 1, step + 1)


def _moe(record: Record) -> Call:
    tokens, hidden, inner, top_k, experts, tp, ep = _numbers(
        record, "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"
    )
    if experts % ep:
        raise ValueError(f"column moe_ep_size: {experts:g} experts cannot be spread over {ep:g} ranks")
    skew = _SKEWS.get(record["distribution"], -1.0)
    if skew < 0:
        if not re.fullmatch(r"power_law_\d+(\.\d+)?", record["distribution"]):
            raise ValueError(f"column distribution: {record['distribution']!r} is unknown; expected balanced or power_law_EXPONENT")
        skew = float(record["distribution"].removeprefix("power_law_"))
    dims = {"hidden_size": hidden, "intermediate_size": inner / tp, "num_experts": experts, "top_k": top_k, "skew": skew}
    dims |= {"tp": tp, "ep": ep, **_entry(record, "moe_dtype", _MOE_DTYPES)}
    if (top_k, experts) == _UNGATED and record.get("kernel_source") != _ALL_GATED:
        dims["gated"] = 0
    return "moe_experts", "bfloat16", dims, (1, tokens, tokens)


def _all_reduce(record: Record) -> Call:
    ranks, elements = _numbers(record, "num_gpus", "message_size")
    dtype = _entry(record, "allreduce_dtype", {"bfloat16": "bfloat16", "float16": "bfloat16", "half": "bfloat16"})
    graph = float(not record["kernel_source"].endswith("_eager"))
    return "all_reduce", dtype, {"num_ranks": ranks, "graph": graph}, (1, elements, elements)


def _nccl(record: Record) -> Call:
    ranks, elements = _numbers(record, "num_gpus", "message_size")
    dtype = _entry(record, "nccl_dtype", {"half": "bfloat16", "bfloat16": "bfloat16", "int8": "int8"})
    dims = {"num_ranks": ranks, "act_bytes": 1.0 if dtype == "int8" else 2.0}
    op = _entry(record, "op_name", _NCCL_OPS)
    return op, dtype, dims | ({"nccl": 1} if op == "all_reduce" else {}), (1, elements, elements)


def _mla(op: str) -> Callable[[Record], Call]:
    def call(record: Record) -> Call:
        heads, requests, length, step = _numbers(record, "num_heads", "batch_size", "isl", "step")
        dims = {"num_heads": heads, **_entry(record, "gemm_type", _MLA_WEIGHTS), **_entry(record, "kv_cache_dtype", _KV_BYTES)}
        return op, "bfloat16", dims, (requests, length, length + step)

    return call


def _gated_delta(record: Record) -> Call:
    requests, length, keys, values, size = _numbers(record, "batch_size", "seq_len", "num_k_heads", "num_v_heads", "head_k_dim")
    phase = _entry(record, "phase", {"context": "prefill", "generation": "decode"})
    op = "causal_conv" if "conv" in record["kernel_source"] else "gated_delta"
    return f"{op}_{phase}", "bfloat16", {"num_k_heads": keys, "num_v_heads": values, "head_dim": size}, (requests, length, length)


_ATTENTION = ("num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype")
_WINDOWED = ("kernel_source", "window_size")
_LATENT = ("kv_cache_dtype", "gemm_type", "num_heads", "batch_size", "isl", "step")
_DELTA = (
    "phase",
    "batch_size",
    "seq_len",
    "num_tokens",
    "d_model",
    "d_conv",
    "num_k_heads",
    "head_k_dim",
    "num_v_heads",
    "head_v_dim",
)
_EXPERTS = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size", "distribution")
FORMATS: dict[str, TableFormat] = {
    "gemm": TableFormat(("gemm_dtype", "m", "n", "k"), _gemm),
    "attention_context": TableFormat(("batch_size", "isl", *_ATTENTION), _context, _WINDOWED),
    "attention_generation": TableFormat(("batch_size", "step", *_ATTENTION), _generation, _WINDOWED),
    "moe": TableFormat(("moe_dtype", *_EXPERTS), _moe),
    "all_reduce": TableFormat(("kernel_source", "allreduce_dtype", "num_gpus", "message_size"), _all_reduce, ()),
    "nccl": TableFormat(("op_name", "nccl_dtype", "num_gpus", "message_size"), _nccl),
    "mla_context": TableFormat(_LATENT, _mla("mla_prefill")),
    "mla_generation": TableFormat(_LATENT, _mla("mla_decode")),
    "gated_delta": TableFormat(("kernel_source", *_DELTA), _gated_delta, ()),
}
"""By the part of a file's name behind the GPU."""
