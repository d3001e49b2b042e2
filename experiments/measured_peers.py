"""Selects the rows of NVIDIA's aiconfigurator that ``kernelswap kernels roofline`` and ``bench`` print beside ours.

python experiments/measured_peers.py FOLDER   # with h200_gemm.csv.gz and so on; writes triton_kernels/lab/measured/h200.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

TARGET = Path(__file__).parents[1] / "triton_kernels" / "lab" / "measured"
HEADS = [(32, 8, 128), (32, 4, 128), (64, 8, 128), (64, 8, 64), (16, 8, 256)]
"""Query heads, KV heads, head size: Llama 3 8B and 70B, Qwen3 30B-A3B, gpt-oss, Gemma 2 9B."""


def attention(rows: pd.DataFrame, op: str, q_len: pd.Series, ctx_len: pd.Series) -> pd.DataFrame:
    heads = rows[["num_heads", "num_key_value_heads", "head_dim"]].apply(tuple, axis=1)
    kv_bytes = rows.kv_cache_dtype.map({"bfloat16": 2, "fp8": 1})
    dims = {"num_heads": rows.num_heads, "num_kv_heads": rows.num_key_value_heads, "head_dim": rows.head_dim}
    dims |= {"window": rows.window_size.replace(0, None), "kv_bytes": kv_bytes.replace(2, None)}
    rows = rows.assign(kernel_source=rows.kernel_source + kv_bytes.map({2: "", 1: "_fp8_cache"}))
    return table(rows, op, dims, rows.batch_size, q_len, ctx_len)[heads.isin(HEADS) & (ctx_len >= 128)]


def gemms(rows: pd.DataFrame) -> pd.DataFrame:
    op = rows.gemm_dtype.map({"bfloat16": "linear", "fp8": "gemm_fp8", "fp8_block": "gemm_fp8"})
    wide = (rows.n >= 2048) & (rows.k >= 2048) & rows.m.isin([2**i for i in range(14)])
    dims = {"out_features": rows.n, "in_features": rows.k, "act_bytes": op.map({"gemm_fp8": 1})}
    return table(rows, op, dims, 1, rows.m, rows.m)[wide & op.notna()]


def experts(rows: pd.DataFrame) -> pd.DataFrame:
    bits = rows.moe_dtype.map({"bfloat16": 16, "fp8_block": 8})
    dims = {"num_experts": rows.num_experts, "top_k": rows.topk, "hidden_size": rows.hidden_size}
    dims |= {"intermediate_size": rows.inter_size // rows.moe_tp_size}
    blocks = {"weight_bits": 8, "group_rows": 128, "group_size": 128, "scale_bytes": 4, "fp8_gemms": 1}
    dims |= {name: bits.map({8: value}) for name, value in blocks.items()}
    here = (rows.moe_ep_size == 1) & (rows.distribution == "balanced") & bits.notna()
    return table(rows, "moe_experts", dims, 1, rows.num_tokens, rows.num_tokens)[here]


def recurrences(rows: pd.DataFrame) -> pd.DataFrame:
    """Of Qwen3-Next, and its share on 2 and 4 ranks: prompts of requests that are new, and decodes of requests that are not."""
    decodes, conv = rows.phase == "generation", rows.kernel_source.str.startswith("causal_conv1d")
    heads = {"num_k_heads": rows.num_k_heads, "num_v_heads": rows.num_v_heads, "k_dim": rows.head_k_dim, "v_dim": rows.head_v_dim}
    channels = 2 * rows.num_k_heads * rows.head_k_dim + rows.num_v_heads * rows.head_v_dim
    dims = {name: sizes.mask(conv) for name, sizes in heads.items()}
    dims |= {"num_channels": channels.where(conv), "width": rows.d_conv.where(conv)}
    op = conv.map({True: "causal_conv1d", False: "gated_delta_rule"})
    here = (rows.num_v_heads == 2 * rows.num_k_heads) & rows.num_k_heads.isin([4, 8, 16]) & (decodes | (rows.seq_len >= 128))
    return table(rows, op, dims, rows.batch_size, rows.seq_len, rows.seq_len + decodes)[here]


def table(
    rows: pd.DataFrame, op: object, dims: dict[str, pd.Series], num_reqs: object, q_len: object, ctx_len: object
) -> pd.DataFrame:
    """``dims``: one column each; what is missing is left out of the text."""
    texts = [" ".join(f"{key}={value:g}" for key, value in zip(dims, values) if pd.notna(value)) for values in zip(*dims.values())]
    values = {"op": op, "kernel": rows.kernel_source, "dims": texts, "num_reqs": num_reqs, "q_len": q_len, "ctx_len": ctx_len}
    return pd.DataFrame({**values, "us": (rows.ms * 1e3).round(2)}, index=rows.index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    names = ("attention_context", "attention_generation", "gemm", "moe", "gated_delta")
    context, generation, gemm, moe, states = (pd.read_csv(folder / f"h200_{name}.csv.gz") for name in names)
    parts = [
        attention(generation, "paged_attention_decode", 1 + 0 * generation.step, generation.step + 1),
        attention(context, "paged_attention_prefill", context.isl, context.isl),
        gemms(gemm),
        experts(moe),
        recurrences(states),
    ]
    keys = ["op", "kernel", "dims", "num_reqs", "q_len", "ctx_len"]
    found = pd.concat(parts).groupby(keys, sort=False, as_index=False).us.median()  # a few were measured twice
    TARGET.mkdir(exist_ok=True)
    found.to_csv(TARGET / "h200.csv", index=False)


if __name__ == "__main__":
    main()
