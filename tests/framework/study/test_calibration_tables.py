"""Tables of measured operator times: what their rows mean, and what is refused with which words."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from framework.cli import main
from framework.executor.operators import expert_load
from framework.plan import op_costs
from framework.study.calibration.rows import Row, parse_dims, parse_runs
from framework.study.calibration.samples import samples_of
from framework.study.calibration.tables import Table, read_tables
from triton_kernels.lab.bench import lengths_text

GEMM = "kernel_source,gemm_dtype,m,n,k,ms"
CONTEXT = "kernel_source,batch_size,isl,num_heads,num_key_value_heads,head_dim,kv_cache_dtype,ms"
WINDOWED = CONTEXT.replace(",ms", ",window_size,ms")
GENERATION = WINDOWED.replace("isl", "step")
MOE = "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,ms"
MLA = "kernel_source,kv_cache_dtype,gemm_type,num_heads,batch_size,isl,step,ms"
DELTA = "kernel_source,phase,batch_size,seq_len,num_tokens,d_model,d_conv,num_k_heads,head_k_dim,num_v_heads,head_v_dim,ms"
OWN = "op,impl,dtype,dims,q_lens,ctx_lens,us,count"


def read(folder: Path, name: str, *lines: str) -> Table:
    path = folder / name
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return read_tables([path])[0]


def row(folder: Path, name: str, *lines: str) -> Row:
    (only,) = read(folder, name, *lines).rows
    return only


def test_gemm(tmp_path: Path) -> None:
    table = read(tmp_path, "h200_gemm.csv.gz", GEMM, "cublas,bfloat16,16,4096,2048,0.02", "cutlass,fp8_block,1,32,64,0.01")
    assert table.device == "h200" and table.name == "h200_gemm.csv.gz"
    first, second = table.rows
    assert (first.op, first.impl, first.dtype, first.us) == ("linear", "cublas", "bfloat16", 20.0)
    assert first.dims == {"out_features": 4096, "in_features": 2048} and first.runs == ((1, 16, 16),)
    assert second.op == "gemm_fp8" and second.dims["group_rows"] == 128 and second.place == "h200_gemm.csv.gz, row 3"


def test_attention(tmp_path: Path) -> None:
    prefill = row(tmp_path, "a_attention_context.csv", CONTEXT, "fa,4,1024,32,8,128,bfloat16,0.5")
    assert prefill.op == "paged_attention_prefill" and prefill.runs == ((4, 1024, 1024),)
    assert prefill.dims == {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "window": 0}
    decode = row(tmp_path, "a_attention_generation.csv", GENERATION, "fa,4,1023,32,8,128,fp8,256,0.5")
    assert decode.runs == ((4, 1, 1024),) and (decode.dims["kv_bytes"], decode.dims["window"]) == (1, 256)


def test_experts(tmp_path: Path) -> None:
    found = row(tmp_path, "a_moe.csv", MOE, "fp8_block,64,4096,1536,8,128,4,2,power_law_1.2,0.5")
    sizes = {"hidden_size": 4096, "intermediate_size": 384, "num_experts": 128, "top_k": 8, "ep": 2, "tp": 4, "skew": 1.2}
    assert sizes.items() <= found.dims.items() and found.dims["weight_bits"] == 8
    assert row(tmp_path, "a_moe.csv", MOE, "bfloat16,1,1,1,22,512,1,1,balanced,1").dims["gated"] == 0


def test_collectives(tmp_path: Path) -> None:
    header = "kernel_source,allreduce_dtype,num_gpus,message_size,ms"
    eager = row(tmp_path, "a_all_reduce.csv", header, "vLLM_custom_eager,bfloat16,8,4096,0.02")
    assert eager.dims == {"num_ranks": 8, "graph": 0} and eager.runs == ((1, 4096, 4096),)
    nccl = row(tmp_path, "a_nccl.csv", "op_name,nccl_dtype,num_gpus,message_size,ms", "alltoall,int8,4,512,0.01")
    assert (nccl.op, nccl.dtype, nccl.dims["num_ranks"]) == ("all_to_all", "int8", 4)


def test_ops_that_are_not_built(tmp_path: Path) -> None:
    assert row(tmp_path, "a_mla_context.csv", MLA, "x,fp8,fp8_block,16,2,512,0,0.5").runs == ((2, 512, 512),)
    decode = row(tmp_path, "a_mla_generation.csv", MLA, "x,bfloat16,bfloat16,16,2,1,511,0.5")
    assert (decode.op, decode.runs) == ("mla_decode", ((2, 1, 512),))
    table = read(
        tmp_path,
        "a_gated_delta.csv",
        DELTA,
        "causal_conv1d_fn,context,1,8,8,1024,4,2,128,4,128,0.1",
        "fused_recurrent_x,generation,3,1,3,1024,4,2,128,4,128,0.1",
    )
    assert [each.op for each in table.rows] == ["causal_conv_prefill", "gated_delta_decode"]


def test_own_rows(tmp_path: Path) -> None:
    lines = (
        'linear,a,float32,"{""in_features"": 8, ""out_features"": 4}",16,,12.5,3',
        "linear,b,float32,in_features=8 out_features=4,16,16,9,3",
    )
    found = row(tmp_path, "cpu_rows.csv", OWN, *lines)
    assert (found.impl, found.us, found.runs) == ("b", 9.0, ((1, 16, 16),)), "of two kernels the faster"
    runs = ((1, 512, 512), (30, 1, 100), (1, 1, 7))
    assert parse_runs("512 1*31", "512 100*30 7") == runs == parse_runs("[512" + ", 1" * 31 + "]", "512 100*30 7")
    assert parse_runs(lengths_text([512] + [1] * 31), lengths_text([512] + [100] * 30 + [7])) == runs, "as bench rows say it"
    assert parse_dims("a=1 b=2.5") == {"a": 1, "b": 2.5}


def test_rows_of_bench(tmp_path: Path) -> None:
    entry = {
        "op": "linear",
        "impl": "x",
        "dtype": "bfloat16",
        "dims": "in_features=8 out_features=8",
        "q_lens": "4",
        "ctx_lens": "",
    }
    entry |= {"device": "NVIDIA A100-SXM4-80GB", "status": "ok", "median_us": 3.0, "count": 0}
    (tmp_path / "bench.json").write_text(json.dumps([entry, {**entry, "status": "refused", "median_us": None}]))
    (table,) = read_tables([tmp_path])
    assert table.device == "a100" and [(each.us, each.count) for each in table.rows] == [(3.0, 1)]


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "op_times.csv").write_text(OWN + "\nlinear,c,float32,in_features=8 out_features=8,4,4,3,10\n")
    (tmp_path / "run.json").write_text(json.dumps({"env.device": "cpu"}))
    (table,) = read_tables([tmp_path])
    assert (table.device, table.rows[0].count) == ("cpu", 10)
    with pytest.raises(ValueError, match=r"neither op_times.csv"):
        read_tables([tmp_path.parent])


GOOD = "x,bfloat16,1,32,32,0.1"


@pytest.mark.parametrize(
    "name, lines, words",
    [
        ("h200_gemm.csv", (GEMM.replace("ms", "latency"), GOOD), r"h200_gemm.csv: expected one column of time that names its unit"),
        ("h200_gemm.csv", (GEMM + ",us", GOOD + ",1"), "both us and ms"),
        ("h200_gemm.csv", (GEMM.replace("m,n", "n"), "x,bfloat16,1,32,0.1"), "column m is missing; found kernel_source"),
        ("h200_gemm.csv", (GEMM + ",colour", GOOD + ",red"), "column colour is unknown; expected gemm_dtype, m"),
        ("h200_gemm.csv", (GEMM, GOOD, "x,int3,1,32,32,0.1"), "row 3: column gemm_dtype: 'int3' is unknown; expected bfloat16"),
        ("h200_gemm.csv", (GEMM, "x,bfloat16,1.5,32,32,0.1"), "row 2: column m: '1.5' is no whole number above 0"),
        ("h200_gemm.csv", (GEMM, "x,bfloat16,0,32,32,0.1"), "column m: '0'"),
        ("h200_gemm.csv", (GEMM, GOOD, "x,bfloat16,1,32,32,-0.1"), "row 3, column ms: -0.1 is no time"),
        ("h200_gemm.csv", (GEMM, "x,bfloat16,1,32,32,nan"), "row 2, column ms: nan is no time"),
        ("h200_gemm.csv", (GEMM, "x,bfloat16,1,32,32,0"), "row 2, column ms: 0 is no time"),
        ("h200_gemm.csv", (GEMM, "x,bfloat16,1,32,32"), "column ms: None is no number"),
        ("h200_gem.csv", (GEMM, GOOD), "no table of that name is known. Expected GPU_OP.csv or .csv.gz with OP one of gemm"),
        ("tiles_moe.csv.gz", ("device,dtype",), "tiles_moe.csv.gz has no operator times: it lists tuned tile sizes"),
        ("h200_moe.csv", (MOE, "bfloat16,64,4096,1536,8,128,1,3,balanced,1"), "128 experts cannot be spread over 3 ranks"),
        ("h200_moe.csv", (MOE, "bfloat16,64,4096,1536,8,128,1,1,uniform,1"), "column distribution: 'uniform'"),
        ("rows.csv", (OWN.replace("us", "time"), "linear,,float32,a=1,1,1,1,1"), "expected columns op, dtype, dims, q_lens and us"),
        ("rows.csv", (OWN, "linear,,float32,a,1,1,1,1"), "row 2, columns dims, .*expected name=value pairs"),
        ("rows.csv", (OWN, "linear,,float32,a=1,1 2,1,1,1"), "q_lens has 2 requests, ctx_lens 1"),
        ("rows.csv", (OWN, "linear,,float32,a=nan,1,1,1,1"), "nan is no size"),
        ("rows.csv", (OWN, "linear,,float32,a=1,-1,,1,1"), "-1 is no size"),
        ("rows.csv", (OWN, "linear,,float32,a=1,1*9999999,,1,1"), "9999999 requests in a call cannot be"),
        ("rows.csv", (OWN, "linear,,float32,a=1,0,,1,1"), "expected new tokens"),
        ("rows.csv", (OWN, "linear,,float32,a=1,8,4,1,1"), "of no request more than its tokens in the cache"),
        ("rows.csv", (OWN, "linear,,float32,a=1e300,8,8,1,1"), "1e300 is no size; expected a number from 0 to"),
        ("rows.csv", (OWN, "linear,,float32,a=1,8,8,1,nan"), "column count: nan is no count"),
        ("rows.csv", (OWN, "moe_experts,,float32,num_experts=0,8,8,1,1"), "num_experts=0 cannot be; expected 1 to"),
        ("rows.csv", (OWN, "linear,,float32,a=1," + "[" * 100_000 + ",8,1,1"), "maximum recursion depth"),
        ("h200_gemm.csv", (GEMM, f"x,bfloat16,{10**30},32,32,0.1"), "is no whole number above 0, or too large"),
        ("h200_gemm.csv", (GEMM, "x,bfloat16,1,32,32,1e-300"), "1e-300 is no time"),
        ("_gemm.csv", (GEMM, GOOD), "no table of that name is known. Expected GPU_OP.csv"),
        ("h200_gemm.csv", (GEMM, GOOD + ",5"), "row 2: more cells than the header has columns"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, lines: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(tmp_path, name, *lines)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "h200_gemm.csv.gz").write_text(GEMM)
    with pytest.raises(ValueError, match="no csv file, plain or gzipped"):
        read_tables([tmp_path / "h200_gemm.csv.gz"])
    packed = bytearray(gzip.compress("\n".join([GEMM, *(f"x,bfloat16,{m},32,{m * 7},0.1" for m in range(1, 200))]).encode()))
    packed[60:70] = bytes(255 - byte for byte in packed[60:70])
    (tmp_path / "h200_gemm.csv.gz").write_bytes(packed)
    with pytest.raises(ValueError, match="no csv file, plain or gzipped"):
        read_tables([tmp_path / "h200_gemm.csv.gz"])
    (tmp_path / "bench.json").write_text(json.dumps([{"op": 1, "dtype": 2, "dims": 3, "q_lens": 4, "us": 5}]))
    with pytest.raises(ValueError, match="row 1, columns dims"):
        read_tables([tmp_path / "bench.json"])
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a list of rows"):
        read_tables([tmp_path / "bench.json"])
    with pytest.raises(OSError):
        read_tables([tmp_path / "none_gemm.csv"])


def test_several_gpus_are_refused(tmp_path: Path) -> None:
    for name in ("a100_gemm.csv", "h200_gemm.csv"):
        (tmp_path / name).write_text(f"{GEMM}\n{GOOD}\n")
    with pytest.raises(ValueError, match=r"several GPUs .a100: a100_gemm.csv; h200: h200_gemm.csv"):
        read_tables(sorted(tmp_path.glob("*.csv")))
    (tmp_path / "a100_gemm.csv").write_text(f"{GEMM}\n{GOOD}1\n")
    assert {table.device for table in read_tables(sorted(tmp_path.glob("*.csv")), "mixed")} == {"mixed"}


def test_a_table_counts_once(tmp_path: Path) -> None:
    """Given twice by one name, and as a copy by another."""
    path = tmp_path / "h200_gemm.csv"
    path.write_text(f"{GEMM}\n{GOOD}\n")
    (tmp_path / "h200_gemm.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    for again in (path, tmp_path / "h200_gemm.csv.gz"):
        with pytest.raises(ValueError, match=f"{again.name} and h200_gemm.csv hold the same rows"):
            read_tables([path, again])


def test_a_mark_of_the_encoding_is_no_column(tmp_path: Path) -> None:
    """As spreadsheets write it."""
    for name, text in (("h200_gemm.csv", f"{GEMM}\n{GOOD}\n"), ("h200_gemm.csv.gz", f"{GEMM}\n{GOOD}\n")):
        content = b"\xef\xbb\xbf" + text.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        assert read_tables([tmp_path / name])[0].rows[0].us == 100


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "h200_gemm.csv"
    path.write_text(f"{GEMM}\n{GOOD}\n")
    assert main(["calibrate", str(path)]) == 2 and "give --out FILE" in capsys.readouterr().err
    assert main(["calibrate", str(path), "--check", "--out", "x", "--with", "h200"]) == 2
    assert main(["calibrate", str(path), "--out", str(tmp_path / "x.json")]) == 2
    assert "too few rows to fit: linear bfloat16 has 1 rows; an op needs at least 8" in capsys.readouterr().err
    path.write_text("\n".join([GEMM, *[GOOD] * 20]))
    assert main(["calibrate", str(path), "--out", str(tmp_path / "x.json")]) == 2, "one call is no range"
    assert "linear bfloat16 has 20 rows of 1 different calls" in capsys.readouterr().err


def test_a_command_overwrites_nothing_that_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "h200_gemm.csv"
    path.write_text(f"{GEMM}\n{GOOD}\n")
    made, again = str(tmp_path / "made.json"), str(tmp_path / "." / "made.json")
    for words, complaint in (
        (["--out", made, "--errors", str(path)], "--errors .*h200_gemm.csv would overwrite a file of this command"),
        (["--out", made, "--points", again], "--points .*made.json would overwrite"),
        (["--out", str(path)], "expected a name that ends in .json or .json.gz"),
        (["--check", "--with", made, "--errors", again], "--errors .*made.json would overwrite"),
        (["--check", "--with", "h200", "--points", made], "--points and --source are of a fit, and --check makes none"),
    ):
        assert main(["calibrate", str(path), *words]) == 2
        assert re.search(complaint, capsys.readouterr().err)
    assert path.read_text() == f"{GEMM}\n{GOOD}\n" and not (tmp_path / "made.json").exists()
    path.write_text(f"{GEMM}\n")
    assert main(["calibrate", str(path), "--check", "--with", "h200"]) == 2
    assert "h200_gemm.csv: there are no rows" in capsys.readouterr().err


def test_rows_with_and_without_a_dim_are_fits_of_their_own() -> None:
    """A quantized model's norms: those that quantize their output have a dim more."""
    rows = [
        Row("rms_norm", "t", "bfloat16", {"hidden_size": 64.0 * width, **more}, ((1, tokens, tokens),), width * tokens / 10)
        for more in ({}, {"num_scales": 1.0})
        for width in (1, 2, 4)
        for tokens in (1, 8, 64)
    ]
    assert [samples.points.shape for samples in samples_of(rows, op_costs())] == [(9, 1), (9, 2)]
    other = Row("rms_norm", "t", "bfloat16", {"intermediate_size": 64.0}, ((1, 1, 1),), 1.0, place="rows.csv, row 9")
    with pytest.raises(ValueError, match=r"rows.csv, row 9: rows of rms_norm name different dims"):
        samples_of([*rows, other], op_costs())


def test_every_popularity_of_experts_has_a_load() -> None:
    """The formula of the power law has a pole at an exponent of 1."""
    near, at = (expert_load(64, 32, 4, 4, skew) for skew in (1.002, 1.0))
    assert at == pytest.approx(near, rel=0.01)
