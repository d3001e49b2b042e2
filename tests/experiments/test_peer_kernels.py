"""Kernels of other projects: how ``kernels bench --peers`` takes them in, and that each adapter tells its library what the
contract says, shown on libraries made of torch with the same signatures."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.peers.kernels import _vllm_python
from framework.cli import main
from triton_kernels.impl import Impl
from triton_kernels.lab import calls
from triton_kernels.op import Case
from triton_kernels.ops import OPS
from triton_kernels.ops.gemm import unpack_int4
from triton_kernels.registry import Registry
from triton_kernels.spec import Spec

ADAPTERS = Path(__file__).parents[2] / "experiments" / "peers" / "kernels"
CPU = torch.device("cpu")
GOOD = """
import peer_library
from triton_kernels.impl import impl

@impl("silu_and_mul", "peer")
def peer(x):
    return peer_library.product(x)
"""
LIBRARY = """
import torch

def product(x):
    gate, up = x.double().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)
"""
BENCH = ("kernels", "bench", "--device", "cpu", "--shapes", "odd", "--case-seconds", "0.01")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "peers"
    (made / "peer_library").mkdir(parents=True)
    (made / "peer_library" / "__init__.py").write_text(LIBRARY)
    (made / "good.py").write_text(GOOD)
    (made / "broken.py").write_text("raise RuntimeError('no such luck')")
    (made / "_helper.py").write_text("raise RuntimeError('not a plugin')")
    return made


@pytest.mark.parametrize("kernel", ["silu_and_mul", "silu_and_mul:torch"])
def test_peers_are_baselines_and_a_broken_one_is_listed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kernel: str
) -> None:
    before = list(sys.path)
    assert main([*BENCH, kernel, "--peers", str(folder), "--output", str(tmp_path / "out")]) == 0
    rows = {row["impl"]: row for row in json.loads((tmp_path / "out" / "bench.json").read_text())}
    assert rows["peer"]["status"] == "ok" and rows["torch"]["ratio.peer"] > 0
    shown = capsys.readouterr().out
    assert f"failed to load {folder / 'broken.py'}: RuntimeError: no such luck" in shown and "not a plugin" not in shown
    assert sys.path == before


def test_a_folder_that_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BENCH, "silu_and_mul", "--peers", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err


def test_a_triton_kernel_of_others_is_a_baseline_and_ours_is_none(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Ratios are formed after timing, so that who is timed can be made up here."""
    from triton_kernels.lab import bench
    from triton_kernels.lab.ceilings import Ceilings

    (folder / "good.py").write_text(GOOD.replace('"peer")', '"peer", requires=("triton",))'))
    monkeypatch.syspath_prepend(str(folder))
    registry = Registry.load([str(folder / "good.py")])
    monkeypatch.setattr(Impl, "unsupported", lambda *_: [])
    monkeypatch.setattr(bench, "_check", lambda *_: None)
    monkeypatch.setattr(bench, "_subject", lambda *_: None)
    monkeypatch.setattr(bench, "_time", lambda subjects, rows, *_: [setattr(rows[s], "median_us", 1.0) for s in subjects])
    (task,) = bench.select_tasks(registry, ["silu_and_mul:triton", "silu_and_mul:peer"], ["odd"])
    rows = {row.impl: row for row in bench.measure(task, CPU, torch.float32, Ceilings(CPU, 1e12, {"fp32": 1e12}))}
    assert rows["triton"].ratios == {"peer": 1.0} and rows["peer"].ratios == {}


def test_adapters_load_and_say_what_they_lack_here() -> None:
    files = sorted(path for path in ADAPTERS.glob("*.py") if not path.name.startswith("_"))
    registry = Registry.load([str(path) for path in files])
    found = [impl for impl in registry if impl.origin.startswith("kernelswap_plugin")]
    assert not registry.failures, registry.failures
    assert {(impl.op, impl.name) for impl in found} == {
        ("paged_attention_decode", "vllm_fa3"),
        ("paged_attention_prefill", "vllm_fa3"),
        ("gemm_w4a16", "vllm_marlin"),
        ("paged_attention_decode", "vllm_triton"),
        ("paged_attention_prefill", "vllm_triton"),
        ("gemm_fp8", "deep_gemm"),
        ("gemm_fp8", "vllm_triton"),
        ("moe_experts", "vllm_triton"),
        ("rms_norm", "liger"),
        ("silu_and_mul", "liger"),
    }
    assert all("runs on cuda, not on cpu" in impl.unsupported(Spec("cpu", "cpu", torch.float32)) for impl in found)
    for impl in (impl for impl in found if impl.name != "liger"):
        (reason,) = impl.target.unsupported(Spec("cuda", "sm_80", torch.bfloat16))  # type: ignore[attr-defined]
        assert "sm_80" in reason
        if importlib.util.find_spec("vllm") is None:
            assert impl.unsupported(Spec("cuda", "sm_90", torch.bfloat16)), impl.name


def adapter(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"adapter_{file}", ADAPTERS / f"{file}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def install(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A library made of ``content``, with packages above it that are empty."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[end - 1]))
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def attention_of_torch(q, k, v, lengths, cu_q, table, scale, window, softcap, sinks=None):  # type: ignore[no-untyped-def]
    """Causal; window = (keys to the left, keys to the right), as FlashAttention counts them."""
    out = torch.zeros_like(q)
    for r, length in enumerate(lengths.tolist()):
        rows = slice(int(cu_q[r]), int(cu_q[r + 1]))
        num = rows.stop - rows.start
        if not length or not num:
            continue
        keys, values = (
            cache[table[r].long()].flatten(0, 1)[:length].repeat_interleave(q.shape[1] // k.shape[2], 1) for cache in (k, v)
        )
        scores = torch.einsum("qhd,khd->hqk", q[rows], keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        offset = torch.arange(length)[None] - torch.arange(length - num, length)[:, None]
        scores.masked_fill_((offset > 0) | ((offset < -window[0]) if window[0] >= 0 else torch.tensor(False)), -torch.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks[:, None, None].expand(-1, num, 1)), dim=-1)
        out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., :length], values)
    return out


def fake_fa3(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_scheduler_metadata(**given: Any) -> torch.Tensor:
        return torch.tensor([given["batch_size"], given["num_heads_q"], given["num_splits"]])

    def flash_attn_varlen_func(
        q,
        k,
        v,
        *,
        max_seqlen_q,
        cu_seqlens_q,
        max_seqlen_k,
        seqused_k,
        softmax_scale,
        causal,  # type: ignore[no-untyped-def]
        window_size,
        softcap,
        block_table,
        scheduler_metadata,
        num_splits,
        fa_version,
    ):
        assert causal and fa_version == 3 and scheduler_metadata.tolist() == [len(seqused_k), q.shape[1], num_splits]
        return attention_of_torch(q, k, v, seqused_k, cu_seqlens_q, block_table, softmax_scale, window_size, softcap)

    install(
        monkeypatch,
        "vllm.vllm_flash_attn",
        flash_attn_varlen_func=flash_attn_varlen_func,
        get_scheduler_metadata=get_scheduler_metadata,
    )


def fake_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def unified_attention(
        q,
        k,
        v,
        out,
        cu_seqlens_q,
        max_seqlen_q,
        seqused_k,
        max_seqlen_k,
        softmax_scale,
        causal,  # type: ignore[no-untyped-def]
        window_size,
        block_table,
        softcap,
        q_descale,
        k_descale,
        v_descale,
        seq_threshold_3D,
        num_par_softmax_segments,
        softmax_segm_output,
        softmax_segm_max,
        softmax_segm_expsum,
        sinks,
        kv_quant_mode,
    ):
        assert kv_quant_mode == 0
        assert softmax_segm_output.shape[:3] == softmax_segm_max.shape == (seq_threshold_3D, q.shape[1], num_par_softmax_segments)
        out.copy_(attention_of_torch(q, k, v, seqused_k, cu_seqlens_q, block_table, softmax_scale, window_size, softcap, sinks))

    monkeypatch.setattr(_vllm_python, "load", lambda name: SimpleNamespace(unified_attention=unified_attention))


def agrees(impl: Impl, case: Case, dtype: torch.dtype = torch.float32) -> None:
    op = OPS[impl.op]
    args = calls.make_args(op, case, dtype, CPU)
    bound = calls.bind(op, impl, calls.make_spec(op, args, dtype, CPU), args)
    expected = calls.outputs(op.reference(**args))
    for found, wanted in zip(calls.call(op, bound, args), expected, strict=True):
        assert (found.float() - wanted.float()).norm() <= op.limit(case, dtype) * wanted.float().norm()


@pytest.mark.parametrize(("file", "library"), [("vllm_fa3", fake_fa3), ("vllm_triton_attention", fake_triton)])
@pytest.mark.parametrize("op", ["paged_attention_decode", "paged_attention_prefill"])
def test_attention_adapters(op: str, file: str, library: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch)
    module = adapter(file)
    impl = module.Decode if op.endswith("decode") else module.Prefill
    names = {"page64", "padding_rows", "window", "softcap", *(["sinks"] if file == "vllm_triton_attention" else [])}
    cases = [case for case in OPS[op].cases if case.name in names]
    assert len(cases) == len(names)
    for case in cases:
        agrees(impl, case)


def test_vllm_moe_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    def align(ids, num_experts, block_m, sorted_ids, experts, total, expert_map):  # type: ignore[no-untyped-def]
        """Choices by expert, each expert's padded to blocks with a number that is no choice's."""
        flat, at = ids.flatten(), 0
        sorted_ids.fill_(flat.numel())
        for expert in range(num_experts):
            chosen = (flat == expert).nonzero().flatten().int()
            sorted_ids[at : at + len(chosen)] = chosen
            experts[at // block_m : -(-(at + len(chosen)) // block_m)] = expert
            at += -(-len(chosen) // block_m) * block_m
        total.fill_(at)

    def fused(x, weight, out, x_scale, scale, router, sorted_ids, experts, total, mul, top_k, config, **static):  # type: ignore[no-untyped-def]
        assert (router is not None) == mul and x_scale is scale is None and static["block_shape"] is None
        rows = out.view(-1, out.shape[-1])
        for at in range(int(total)):
            if (choice := int(sorted_ids[at])) < len(rows):
                found = weight[experts[at // config["BLOCK_SIZE_M"]]].double() @ x[choice // top_k].double()
                rows[choice] = (found * router.flatten()[choice] if mul else found).to(out.dtype)

    ops = {
        "moe_align_block_size": align,
        "silu_and_mul": lambda out, x: out.copy_(OPS["silu_and_mul"].reference(x)),
        "moe_sum": lambda x, out: out.copy_(x.sum(1)),
    }
    library = SimpleNamespace(
        invoke_fused_moe_triton_kernel=fused, get_moe_configs=lambda *_: {1: {"BLOCK_SIZE_M": 16}, 64: {"BLOCK_SIZE_M": 64}}
    )
    monkeypatch.setattr(_vllm_python, "load", lambda name: library)
    module = adapter("vllm_triton_moe")
    monkeypatch.setattr(module, "_vllm_op", lambda library, name, *args: ops[name](*args))
    for name in ("one_row", "tiled", "empty_experts"):
        agrees(module.FusedMoe, next(case for case in OPS["moe_experts"].cases if case.name == name))
    args = calls.make_args(OPS["moe_experts"], next(c for c in OPS["moe_experts"].cases if c.name == "tiled"), torch.float32, CPU)
    spec = calls.make_spec(OPS["moe_experts"], args, torch.float32, CPU)
    bound = calls.bind(OPS["moe_experts"], module.FusedMoe, spec, args, {"block_m": 32, "num_warps": 8})
    assert bound.config(40, 2) == {"BLOCK_SIZE_M": 32, "num_warps": 8}  # type: ignore[attr-defined]


def test_vllm_fp8_block_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    def block_scaled(x, weight, x_scale, scale, blocks, out_dtype):  # type: ignore[no-untyped-def]
        assert blocks == [128, 128]
        return OPS["gemm_fp8"].reference(x, x_scale, weight, scale, out_dtype=out_dtype)

    monkeypatch.setattr(_vllm_python, "load", lambda name: SimpleNamespace(w8a8_triton_block_scaled_mm=block_scaled))
    impl = adapter("vllm_triton_fp8_block").BlockScaled
    agrees(impl, next(case for case in OPS["gemm_fp8"].cases if case.name == "blocks"), torch.bfloat16)


def test_a_kernel_loads_from_python_files_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "vllm" / Path(*_vllm_python.MOE.split(".")[1:]).with_suffix(".py")
    file.parent.mkdir(parents=True)
    file.write_text(
        "import vllm.envs as envs\nfrom vllm.platforms import current_platform\nfrom vllm.config import Config\n"
        "from vllm.triton_utils import tl, triton\n"
        "class Mine(Config):\n    pass\n"
        "def ask(config: Config | None = None):\n"
        "    return envs.VLLM_FOLDER, bool(Config().more()), current_platform.is_device_capability(90), triton.__name__\n"
    )
    real = ModuleType("vllm")
    monkeypatch.setitem(sys.modules, "vllm", real)
    _vllm_python.load.cache_clear()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert _vllm_python.load(_vllm_python.MOE).ask() == (None, False, True, "triton")
    assert sys.modules["vllm"] is real and "vllm.envs" not in sys.modules
    _vllm_python.load.cache_clear()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "nowhere")])
    (reason,) = _vllm_python.import_error(_vllm_python.MOE)
    assert "no folder vllm/" in reason


def test_deep_gemm_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    def fp8_gemm_nt(a, b, out, disable_ue8m0_cast):  # type: ignore[no-untyped-def]
        assert disable_ue8m0_cast
        wide = [
            codes.double() * scale.double().repeat_interleave(128, 1)[:, : codes.shape[1]]
            for codes, scale in (a, (b[0], b[1].repeat_interleave(128, 0)[: b[0].shape[0]]))
        ]
        out.copy_(wide[0] @ wide[1].T)

    install(monkeypatch, "vllm.third_party.deep_gemm", fp8_gemm_nt=fp8_gemm_nt)
    impl = adapter("deep_gemm_blocks").DeepGemm
    agrees(impl, next(case for case in OPS["gemm_fp8"].cases if case.name == "blocks"), torch.bfloat16)


def test_marlin_shuffles_are_the_published_permutations() -> None:
    """Position p of a shuffled row holds the channel that the index formulas of the Marlin format name."""
    module = adapter("vllm_marlin")
    channels = torch.arange(128)
    groups = torch.tensor([64 * block + i + 8 * j for block in range(2) for i in range(8) for j in range(8)])
    pairs = [0, 1, 8, 9, 16, 17, 24, 25]
    single = torch.tensor([32 * block + 2 * i + pair for block in range(4) for i in range(4) for pair in pairs])
    assert torch.equal(module.shuffle_groups(channels[None])[0], channels[groups])
    assert torch.equal(module.shuffle_channels(channels[None])[0], channels[single])
    zeros = torch.randint(0, 16, (3, 128), dtype=torch.uint8)
    interleaved = groups.view(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].flatten()
    assert torch.equal(unpack_int4(module.pack_zeros(zeros)), zeros[:, interleaved])
