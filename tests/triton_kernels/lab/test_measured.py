"""Tables of times that others measured: small, whole, and found by shape only."""

from __future__ import annotations

import pytest

from triton_kernels.devices import DEVICE_MODELS
from triton_kernels.lab.measured import FOLDER, measurements, same_shape
from triton_kernels.lab.roofline import measured_rooflines, rooflines
from triton_kernels.ops import OPS

LLAMA = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "window": 0}


@pytest.mark.parametrize(("length", "us"), [(128, 16.7), (1024, 46.8), (4096, 135.5)])
def test_decode_of_32_requests(length: int, us: float) -> None:
    found = same_shape("h200", "paged_attention_decode", LLAMA, (1,) * 32, (length,) * 32)
    assert found == {"vllm_flash_attn_fa3": pytest.approx(us, abs=0.5)}


def test_what_tells_kernels_apart_must_be_equal() -> None:
    def decode(q_lens: tuple[int, ...] = (1,) * 32, ctx: tuple[int, ...] = (1024,) * 32, **dims: float) -> dict[str, float]:
        return same_shape("h200", "paged_attention_decode", LLAMA | dims, q_lens, ctx)

    assert set(decode(kv_bytes=1)) == {"vllm_flash_attn_fa3_fp8_cache"}
    assert set(decode(act_bytes=2, weight_bytes=2)) == {"vllm_flash_attn_fa3"}
    assert not decode(num_heads=33) and not decode(ctx=(1024,) * 31 + (512,)) and not decode(q_lens=(2,) * 16, ctx=(1024,) * 16)
    experts = {"num_experts": 256, "top_k": 8, "hidden_size": 2048, "intermediate_size": 512}
    assert set(same_shape("h200", "moe_experts", experts, (64,), ())) == {"vllm_unquantizedfusedmoe_triton_tritonexperts"}
    blocks = experts | {"weight_bits": 8, "group_rows": 128, "group_size": 128, "scale_bytes": 4, "fp8_gemms": 1}
    assert set(same_shape("h200", "moe_experts", blocks, (1,) * 64, (9,) * 64)) == {"vllm_fp8moe_triton_tritonexperts"}
    assert not same_shape("h200", "moe_experts", experts | {"weight_bits": 4}, (64,), ())


@pytest.mark.parametrize(("num_reqs", "length", "us"), [(64, 1, 71.6), (1, 2048, 107.6), (8, 2048, 217.6)])
def test_gated_delta_rules_of_qwen3_next(num_reqs: int, length: int, us: float) -> None:
    """A decode has a state, of however many tokens; a prompt has none before it."""
    heads = {"num_k_heads": 16, "num_v_heads": 32, "k_dim": 128, "v_dim": 128}
    before = 500 * (length == 1)
    found = same_shape("h200", "gated_delta_rule", heads, (length,) * num_reqs, (length + before,) * num_reqs)
    assert list(found.values()) == [pytest.approx(us, abs=0.1)]
    assert not same_shape("h200", "gated_delta_rule", heads, (length,) * num_reqs, (length + 500 - before,) * num_reqs)


def test_a_device_without_a_table_has_no_rows() -> None:
    assert measurements("mi300x") == () and not same_shape("mi300x", "linear", {}, (1,), (1,))


def test_the_tables_are_small_and_name_their_source() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3e6
    readme = (FOLDER / "README.md").read_text()
    assert "aiconfigurator" in readme and "095f58a" in readme and "Apache-2.0" in readme


def test_rooflines_show_them() -> None:
    h200 = DEVICE_MODELS["h200"]
    shown = {found.case: found.measured_us for found in rooflines(OPS["linear"], h200)}
    assert shown["llama-8b_o_64"] == {"torch.nn.functional.linear": pytest.approx(12.05)} and not shown["llama-8b_qkv_64"]
    ops = {row.op for row in measurements("h200")}
    for op in ops:
        found = measured_rooflines(OPS[op], h200)
        assert found and all(row.least_s > 0 and len(row.measured_us) == 1 for row in found)
