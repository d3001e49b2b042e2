"""Floats that are quantized while they are loaded, shards that one op computes together, and what is said of what is not so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.config import ROUNDED_SCHEMES, ModelConfig, QuantConfig
from framework.engine.kv_cache.spec import group_layers
from framework.models.families import FAMILIES
from framework.models.layers.linear import bind_linear
from framework.models.load import load_model
from framework.models.parallel import Parallel
from framework.models.parts import Part, all_parts
from framework.models.quantization import on_load
from framework.models.quantization.canonical import dequantized, integer_weights, scaled_weights
from framework.models.quantization.gptq import Gptq, GptqFormat
from framework.models.quantization.modules import stack
from framework.models.quantization.scheme import LoadedPart, Module
from framework.models.quantization.table import read_scheme
from framework.models.quantization.unquantized import Unquantized, float_linear
from framework.models.read import read_model
from framework.models.weights import Checkpoint, weight_bytes
from framework.plan import KernelPlan
from framework.worker.weight_memory import tensor_bytes

from ..checkpoints import EXAMPLES, make
from ..harness import BLOCK, CPU, build, error, sequences, teacher_forced

QUANT = {scheme: QuantConfig(scheme, group_size=16) for scheme in ROUNDED_SCHEMES}
FP8 = torch.float8_e4m3fn


def source(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return Checkpoint(folder, FAMILIES["llama"], CPU, torch.float32, Unquantized())


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gpt2", "gpt-neox", "qwen3-moe"])
def test_a_model_quantized_on_load_is_the_one_of_its_dequantized_weights(name: str, tmp_path: Path) -> None:
    """The weights of every linear layer, shard by shard and in the checkpoint's own layout, replaced by what their quantized values
    stand for; routers and the logits' projection are not among them."""
    make(EXAMPLES[name], tmp_path)
    config = ModelConfig(str(tmp_path), dtype="float32")
    info, quant = read_model(config), QUANT["rtn-int4"]
    assert info.architecture is not None
    tokens = sequences((5, 21))
    ours = teacher_forced(build(config, {"default": "reference"}, quant=quant), tokens, 9, num_decodes=3)
    stored = load_file(tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path, info.architecture.family, CPU, torch.float32, Unquantized())
    changed = 0
    for part in all_parts(info.architecture):
        if not part.quantizable:
            continue
        assert part.columns is not None and "lm_head" not in part.sources and not part.sources[0].endswith(".gate")
        for tensor, _, shard, _ in part.tensors():
            one = Part((tensor.removesuffix(".weight"),), (part.rows[shard],), part.columns, layout=part.layout)
            floats = checkpoint.weight(replace(one, layout="transposed" if part.layout == "transposed" else "linear"))
            rounded = dequantized(on_load.int4(16, True).round(floats, torch.float32)).float()
            on_disk = rounded.T if part.layout == "transposed" else rounded
            key = next(key for key in stored if tensor.endswith(key) or key.endswith(tensor))
            assert stored[key].shape == on_disk.shape
            stored[key] = on_disk.contiguous()
            changed += 1
    assert changed > 5
    save_file(stored, tmp_path / "model.safetensors")
    dense = teacher_forced(build(config, {"default": "reference"}), tokens, 9, num_decodes=3)
    for row, expected in zip(ours, dense):
        assert error(row, expected) <= 1e-5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scheme", ["none", *ROUNDED_SCHEMES])
def test_memory_is_what_the_bits_say(scheme: str, tied: bool, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    make(replace(EXAMPLES["llama"], config={**EXAMPLES["llama"].config, **sizes, "tie_word_embeddings": tied}), tmp_path)
    config, quant = ModelConfig(str(tmp_path), dtype="bfloat16"), replace(QUANT.get(scheme, QuantConfig()), group_size=128)
    info = read_model(config)
    assert info.architecture is not None
    said = weight_bytes(info.architecture, read_scheme(None, quant), torch.bfloat16, info.max_model_len)
    for kernels in ({"gemm_w4a16": "torch"}, {"default": "torch"}):
        plan = KernelPlan(kernels, [], CPU, torch.bfloat16)
        model = load_model(config, info, plan, CPU, Parallel(), BLOCK, quant=quant)
        model.set_groups(group_layers(model.cache_specs()))
        assert abs(tensor_bytes(model) / said - 1) <= 0.05, (kernels, tensor_bytes(model), said)
    floats = weight_bytes(info.architecture, Unquantized(), torch.bfloat16, info.max_model_len)
    assert said == floats if scheme == "none" else said < 0.8 * floats


def part(rows: int, scale: float, *, static: float | None = None, zeros: bool = False, perm: int | None = None) -> LoadedPart:
    generator = torch.Generator().manual_seed(rows)
    if static is not None:
        weight = torch.randn(rows, 64, generator=generator).to(FP8)
        return scaled_weights("gemm_fp8", weight, torch.full((1, 1), scale), torch.float32, torch.full((1, 1), static))
    values = torch.randint(0, 16, (rows, 64), generator=generator, dtype=torch.uint8)
    points = torch.randint(0, 16, (rows, 2), generator=generator, dtype=torch.uint8) if zeros else None
    order = None if perm is None else torch.randperm(64, generator=torch.Generator().manual_seed(perm)).int()
    return integer_weights(values, torch.full((rows, 2), scale), points, 4, order)


@pytest.mark.parametrize(
    ("parts", "num_stacked"),
    [
        ([part(8, 1.0), part(16, 2.0, zeros=True), part(8, 0.5)], 1),
        ([part(8, 1.0, perm=1), part(16, 2.0, perm=1)], 1),
        ([part(8, 1.0, perm=1), part(16, 2.0, perm=2), part(8, 2.0)], 3),
        ([part(8, 1.0), float_linear(torch.randn(16, 64), None), part(8, 0.5)], 3),
        ([part(8, 0.25, static=1.0), part(16, 0.5, static=1.0)], 1),
        ([part(8, 0.25, static=1.0), part(16, 0.5, static=2.0)], 2),
    ],
    ids=["zeros", "one order", "two orders", "floats between", "scales", "inputs"],
)
def test_shards_are_joined_where_no_number_changes(parts: list[LoadedPart], num_stacked: int) -> None:
    bias = torch.arange(float(sum(one.num_rows for one in parts)))
    stacked = stack(parts, bias)
    assert len(stacked) == num_stacked
    assert torch.equal(torch.cat([dequantized(one) for one in stacked]), torch.cat([dequantized(one) for one in parts]))
    assert torch.equal(torch.cat([one.tensors["bias"] for one in stacked]), bias)  # type: ignore[misc]


def test_blocks_are_joined_where_they_end_with_a_shard() -> None:
    def blocks(rows: int, seed: int) -> LoadedPart:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(rows, 256, generator=generator).to(FP8)
        scales = torch.rand(-(-rows // 128), 2, generator=generator)
        return scaled_weights("gemm_fp8", weight, scales, torch.float32, blocks=True)

    for rows, count in (((256, 128, 40), 1), ((40, 256), 2), ((128, 40, 128), 2)):
        parts = [blocks(n, n) for n in rows]
        stacked = stack(parts, None)
        assert len(stacked) == count
        assert torch.equal(torch.cat([dequantized(one) for one in stacked]), torch.cat([dequantized(one) for one in parts]))


def test_a_bias_that_only_the_checkpoint_has_counts(tmp_path: Path) -> None:
    """Tools write one for every quantized layer, also of models without."""
    words, scales = torch.full((8, 8), 0x11111111, dtype=torch.int32), torch.ones(1, 8)
    tensors = {}
    for name in ("q", "k"):
        zeros = torch.zeros(1, 1, dtype=torch.int32)
        tensors |= {f"{name}.qweight": words.clone(), f"{name}.qzeros": zeros, f"{name}.scales": scales.clone()}
    tensors |= {"q.bias": torch.arange(8.0), "k.bias": -torch.ones(8)}
    one, scheme = Part(("q", "k"), (8, 8), 64), Gptq(GptqFormat(4, -1, True, 1))
    checkpoint = source(tmp_path, tensors)
    assert set(scheme.names(one, checkpoint)) == set(tensors)
    (loaded,) = scheme.linear(one, checkpoint)
    assert loaded.tensors["bias"].tolist() == [*range(8), *[-1.0] * 8]  # type: ignore[union-attr]


def test_what_experts_cannot_be_is_said_in_the_plan(tmp_path: Path) -> None:
    make(EXAMPLES["qwen3-moe"], tmp_path)
    config = ModelConfig(str(tmp_path), dtype="float32")
    info = read_model(config)
    for scheme, note in (
        ("rtn-int4", None),
        ("fp8", None),
        ("int8", "dequantized to torch.float32: moe_experts does not multiply"),
    ):
        plan = KernelPlan({}, [], CPU, torch.float32)
        load_model(config, info, plan, CPU, Parallel(), BLOCK, quant=QUANT[scheme])
        said = plan.report()["moe_experts"].get("note")
        assert (said is None) if note is None else note in said


@pytest.mark.parametrize("scheme", ["int8", "fp8", "fp8-block"])
def test_norms_and_activations_quantize_what_a_gemm_takes(scheme: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    make(replace(EXAMPLES["llama"], config={**EXAMPLES["llama"].config, **sizes}), tmp_path)
    config, tokens = ModelConfig(str(tmp_path), dtype="float32"), sequences((5, 21))
    info = read_model(config)
    found, calls = [], []
    for fuse in (True, False):
        plan = KernelPlan({"default": "reference"}, [], CPU, torch.float32)
        model = load_model(config, info, plan, CPU, Parallel(), BLOCK, quant=replace(QUANT[scheme], fuse=fuse))
        model.set_groups(group_layers(model.cache_specs()))
        found.append(torch.cat(teacher_forced(model, tokens, None, num_decodes=0)))
        report = plan.report()
        calls.append(report["quantize_activation"]["calls"])
        for op in ("rms_norm", "silu_and_mul"):
            assert ("quantizes its output" in report[op].get("note", "")) == fuse
    assert calls[1] == 4 * calls[0], "attention's output alone has no op before it that could"
    assert error(*found) <= 0.05
    named = KernelPlan({"default": "reference", "quantize_activation": "torch"}, [], CPU, torch.float32)
    load_model(config, info, named, CPU, Parallel(), BLOCK, quant=QUANT[scheme])
    assert "note" not in named.report()["rms_norm"], "a kernel that was named is the one that runs"


@pytest.mark.parametrize("group", [1, 2])
def test_rows_that_lie_head_by_head_follow_those_of_floats(group: int, tmp_path: Path) -> None:
    """GPT-NeoX stores q, k and v of a head beside each other, Falcon the queries of a KV head; every number of a row goes along."""
    heads, head_dim, num_in = 2, 4, 32
    rows, generator = (group + 2) * heads * head_dim, torch.Generator().manual_seed(5)
    words = torch.randint(-(2**31), 2**31, (num_in // 8, rows), generator=generator, dtype=torch.int64).int()
    zeros = torch.randint(-(2**31), 2**31, (2, rows // 8), generator=generator, dtype=torch.int64).int()
    scales = torch.rand(2, rows, generator=generator) + 0.5
    pieces = (group * heads * head_dim, heads * head_dim, heads * head_dim)
    part = Part(("qkv",), (rows,), num_in, bias=True, layout="interleaved", num_groups=heads, pieces=pieces)
    bias = torch.arange(float(rows))
    quantized = source(tmp_path, {"qkv.qweight": words, "qkv.qzeros": zeros, "qkv.scales": scales, "qkv.bias": bias})
    scheme = Gptq(GptqFormat(4, 16, False, 0))
    (loaded,) = scheme.linear(part, quantized)
    in_order = dequantized(scheme.format_of("qkv").load(Module("qkv", rows, num_in), quantized)).float()  # type: ignore[union-attr]
    floats = source(tmp_path, {"qkv.weight": in_order, "qkv.bias": bias})
    assert torch.equal(dequantized(loaded).float(), floats.weight(part)) and not torch.equal(floats.weight(part), in_order)
    assert torch.equal(loaded.tensors["bias"], floats.bias(part))  # type: ignore[arg-type]


def test_a_zero_point_of_activations_moves_the_range_that_is_kept() -> None:
    """Numbers from 0 to 255 steps need all 256 values: without the zero point the larger half would be cut off."""
    x, weight = torch.arange(256.0)[None] * 0.5, torch.eye(256, dtype=torch.int8)
    zero, scale = torch.full((1, 1), -128, dtype=torch.int32), torch.full((1, 1), 0.5)
    loaded = scaled_weights("gemm_int8", weight, torch.ones(256, 1), torch.float32, scale, input_zero=zero)
    for choice in ("reference", "torch", "auto"):
        plan = KernelPlan(dict.fromkeys(("gemm_int8", "quantize_activation"), choice), [], CPU, torch.float32)
        assert torch.equal(bind_linear(plan, [loaded])(x), x)


def test_what_a_layer_became_is_said_in_the_plan() -> None:
    plan = KernelPlan({}, [], CPU, torch.float32)
    plain = float_linear(torch.randn(8, 8), None)
    bind_linear(plan, [plain, replace(plain, note="unpacked")])
    assert plan.report()["linear"]["note"] == "unpacked"
