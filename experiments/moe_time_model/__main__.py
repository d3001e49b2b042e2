"""Fits the constants of the time model, and judges it by shapes that the fit has not seen.

python -m experiments.moe_time_model points --times h200_moe.csv.gz --vllm DIR   # writes points.csv: times, and vLLM's tiles
python -m experiments.moe_time_model figures --vllm DIR                          # writes figures.csv: all tiles, compiled for sm_90
python -m experiments.moe_time_model fit                                         # prints the constants
python -m experiments.moe_time_model check                                       # writes held_out.csv, ranks.csv; a summary

DIR is an unpacked wheel of the vLLM that was measured (0.24.0); its Python files and configurations suffice. README.md says where
the rows come from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from dataclasses import astuple, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.moe_time_model.model import SHAPE, TILE, seconds, with_routing
from triton_kernels.lab.aot import Artifact
from triton_kernels.lab.time_model import FITTED, Constants

HERE = Path(__file__).parent
PEERS = HERE.parent / "peers" / "kernels"
CONFIGS = "vllm/model_executor/layers/fused_moe/configs"
COLUMNS = {"bf16": "", "fp8": ",dtype=fp8_w8a8,block_shape=[128,128]"}
NUM_RANKED = 20
FIXED = ("latency_s", "issue_s")
"""The times do not tell them: no tile that vLLM chose waits for its loads (up to 2.5e-7 s the error is as small, above it grows) or
for issue slots (four a cycle, at 1.755 GHz)."""
CHUNK = 12
"""Tiles that are compiled by one child process."""


def make_points(times: Path, vllm: Path) -> pd.DataFrame:
    """Measured times [ms -> us] of the shapes and numbers of tokens for which vLLM ships a tile, with that tile."""
    rows = pd.read_csv(times)
    rows = rows[rows.kernel_source.str.endswith("_triton_tritonexperts")]
    found = pd.DataFrame(
        {
            "dtype": rows.moe_dtype.map({"bfloat16": "bf16", "fp8_block": "fp8"}),
            "num_experts": rows.num_experts,
            "num_ranks": rows.moe_ep_size,
            "top_k": rows.topk,
            "hidden": rows.hidden_size,
            "inner": rows.inter_size // rows.moe_tp_size,
            "num_tokens": rows.num_tokens,
            "distribution": rows.distribution,
            "measured_us": (rows.ms * 1e3).round(2),
        }
    )
    found["local_experts"] = found.num_experts // found.num_ranks
    tiles = published_tiles(vllm)
    return found.merge(tiles, on=["dtype", "local_experts", "inner", "num_tokens"]).drop(columns="local_experts")


def published_tiles(vllm: Path) -> pd.DataFrame:
    """The tiles that vLLM ships for an H200, in bfloat16 and in float8 with scales of blocks (which bound ``block_k``)."""
    found = []
    for path in sorted((vllm / CONFIGS).glob("*device_name=NVIDIA_H200*.json")):
        name = re.fullmatch(r"E=(\d+),N=(\d+),device_name=NVIDIA_H200(.*)", path.stem)
        dtype = next((dtype for dtype, text in COLUMNS.items() if name and name[3] == text), None)
        if not name or not dtype:
            continue
        for num_tokens, tile in json.loads(path.read_text()).items():
            if num_tokens.isdigit():
                block_k = tile["BLOCK_SIZE_K"] if dtype == "bf16" else min(tile["BLOCK_SIZE_K"], 128)
                sizes = (tile["BLOCK_SIZE_M"], tile["BLOCK_SIZE_N"], block_k, tile["num_warps"], tile["num_stages"])
                found.append((dtype, int(name[1]), int(name[2]), int(num_tokens), *sizes))
    return pd.DataFrame(found, columns=["dtype", "local_experts", "inner", "num_tokens", *TILE[1:]])


def make_figures(vllm: Path) -> None:
    """Adds to figures.csv the first product's main loop of every published tile that is not in it yet, as compiled."""
    from framework.cli.child import compile_for
    from triton_kernels.resolve import parse_choice

    path, tiles = HERE / "figures.csv", published_tiles(vllm)[TILE].drop_duplicates().sort_values(TILE)
    known = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=TILE)
    missing = tiles[~tiles.apply(tuple, axis=1).isin(known[TILE].apply(tuple, axis=1))]
    for start in range(0, len(missing), CHUNK):
        chunk, found = missing.iloc[start : start + CHUNK], []
        for dtype, case in (("bf16", "64 tokens"), ("fp8", "fp8 blocks")):
            chosen = chunk[chunk.dtype == dtype][TILE[1:]].astype(int).to_dict("records")
            names = ["moe_experts:vllm_triton" + "".join(f"@{name}:{value}" for name, value in tile.items()) for tile in chosen]
            plugin = str(PEERS / "vllm_triton_moe.py")
            for result in compile_for("sm_90", names, [plugin], "bf16", [case], path=[vllm]) if names else ():
                if result.refused or result.error:
                    raise ValueError(f"{result.impl} was not compiled: {result.refused or result.error}")
                artifact = next(a for a in result.artifacts if a.kernel == "fused_moe_kernel")
                found.append({"dtype": dtype, **parse_choice(result.impl).options, **figures_of(artifact)})
        known = pd.concat([known, pd.DataFrame(found)]) if len(known) else pd.DataFrame(found)
        known.sort_values(TILE).to_csv(path, index=False)


def figures_of(artifact: Artifact) -> dict[str, object]:
    """The columns of figures.csv that the compiler gives."""
    (loop,) = artifact.loops
    return {
        "programs_per_sm": artifact.programs_per_sm,
        "registers": artifact.registers,
        "spills": artifact.spills,
        "matrix": " ".join(artifact.matrix_in_loop),
        "instructions": sum(loop.instructions.values()),
        "loaded_bytes": loop.loaded_bytes,
        "buffers": loop.buffers,
        "wait": loop.wait,
        "tensor_flops": loop.tensor_flops,
        "triton": artifact.triton,
    }


def load_points() -> pd.DataFrame:
    """The committed points with their figures and routing, and whether their shape is held out of the fit."""
    points = pd.read_csv(HERE / "points.csv").merge(pd.read_csv(HERE / "figures.csv"), on=TILE, how="left", validate="many_to_one")
    assert points.tensor_flops.notna().all(), "a tile of points.csv is not in figures.csv"
    held_out = _by_hash(points[SHAPE].drop_duplicates())[::2].assign(held_out=True)
    points = points.merge(held_out, on=SHAPE, how="left")
    return with_routing(points.assign(held_out=points.held_out.notna()))


def _by_hash(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows in an order that looks like chance and depends on what they hold alone."""
    keys = [hashlib.sha256(" ".join(map(str, row)).encode()).hexdigest() for row in rows.itertuples(index=False)]
    return rows.iloc[sorted(range(len(rows)), key=keys.__getitem__)]


def fit(points: pd.DataFrame, start: Constants, rounds: int = 40) -> Constants:
    """The constants with the least mean of |log(predicted / measured)|, one after the other, in steps that grow and shrink. Those
    in ``FIXED`` stay what they are."""
    measured = points.measured_us.to_numpy() * 1e-6

    def loss(constants: Constants) -> float:
        return float(np.abs(np.log(seconds(points, constants) / measured)).mean())

    best, least = start, loss(start)
    names = [field.name for field in fields(start) if field.name not in FIXED]
    for turn in range(rounds):
        if turn % 10 == 0:  # wide again: what was the best place for one depends on the others
            steps = dict.fromkeys(names, 0.2)
        for name, step in steps.items():
            tried = (replace(best, **{name: getattr(best, name) * np.exp(s)}) for s in (step, -step))
            better = next((one for one in tried if loss(one) < least), None)
            steps[name] *= 0.5 if better is None else 1.3
            best, least = (best, least) if better is None else (better, loss(better))
    return Constants(*(float(f"{value:.3g}") for value in astuple(best)))


def rank_correlation(a: pd.Series, b: pd.Series) -> float:
    """Spearman's."""
    return float(a.rank().corr(b.rank()))


def held_out_table(points: pd.DataFrame, constants: Constants) -> pd.DataFrame:
    """Predicted beside measured, of every point of the held-out shapes."""
    held = points[points.held_out].reset_index(drop=True)
    predicted = seconds(held, constants) * 1e6
    table = held[[*SHAPE, "num_tokens", "distribution", *TILE[1:], "measured_us"]].assign(predicted_us=predicted.round(2))
    return table.assign(error=(predicted / held.measured_us - 1).round(4))


def rank_table(points: pd.DataFrame, constants: Constants) -> pd.DataFrame:
    """Where vLLM's tile comes among all tiles that it ships for the number format, for some shapes and one number of tokens each.
    Tiles were tuned with all experts on one device and uniform routing, so shapes are those, and that is the routing. over_best:
    the tile's predicted time over that of the model's first."""
    figures = pd.read_csv(HERE / "figures.csv")
    tuned = points[(points.num_ranks == 1) & (points.distribution == "balanced")]
    chosen = _by_hash(tuned[[*SHAPE, "num_tokens", *TILE[1:]]]).drop_duplicates(SHAPE).head(NUM_RANKED)
    found = []
    for point in chosen.to_dict("records"):
        tiles = figures[figures.dtype == point["dtype"]].reset_index(drop=True)
        call = {name: point[name] for name in (*SHAPE[1:], "num_tokens")}
        predicted = pd.Series(seconds(with_routing(tiles.assign(**call, distribution="uniform")), constants))
        (at,) = tiles.index[(tiles[TILE] == [point[name] for name in TILE]).all(axis=1)]
        rank, over_best = int(predicted.rank(method="max")[at]), round(predicted[at] / predicted.min(), 3)
        found.append({**point, "rank": rank, "of": len(tiles), "over_best": over_best})
    return pd.DataFrame(found)


def summary(table: pd.DataFrame, ranks: pd.DataFrame) -> str:
    """What is claimed of the model, and where it errs most."""
    lines = []
    for name, rows in [("all", table), *table.groupby("dtype"), *table.groupby(pd.cut(table.num_tokens, [0, 16, 256, np.inf]))]:
        off, order = rows.error.abs(), rank_correlation(rows.predicted_us, rows.measured_us)
        lines.append(
            f"held out, {name}: {len(rows)} points, error median {off.median():.1%} and 90 % below {off.quantile(0.9):.1%}, "
            f"bias {rows.error.median():+.1%}, rank correlation {order:.3f}"
        )
    best = (ranks["rank"] <= ranks.of / 4).sum()
    lines.append(f"tiles: in the model's best quarter (of {ranks.of.min()} or more) for {best} of {len(ranks)} shapes")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("points", "figures", "fit", "check"))
    parser.add_argument("--times", type=Path, help="aiconfigurator's times of MoE on an H200, as CSV")
    parser.add_argument("--vllm", type=Path, help="folder of an unpacked vLLM wheel")
    arguments = parser.parse_args()
    if arguments.command == "points":
        make_points(arguments.times, arguments.vllm).to_csv(HERE / "points.csv", index=False)
    elif arguments.command == "figures":
        make_figures(arguments.vllm)
    elif arguments.command == "fit":
        points = load_points()
        found = fit(points[~points.held_out], FITTED["sm_90"])
        print("Constants(" + ", ".join(f"{field.name}={getattr(found, field.name)}" for field in fields(found)) + ")")
    else:
        points = load_points()
        table, ranks = held_out_table(points, FITTED["sm_90"]), rank_table(points, FITTED["sm_90"])
        table.to_csv(HERE / "held_out.csv", index=False)
        ranks.to_csv(HERE / "ranks.csv", index=False)
        print(summary(table, ranks))


if __name__ == "__main__":
    main()
