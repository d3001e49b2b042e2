"""How a weight is stored is known to its scheme alone: formats of the tests' own load without a change elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.config import ModelConfig
from framework.engine.kv_cache.spec import group_layers
from framework.models.binding.binder import Binder
from framework.models.layers.linear import bind_linear
from framework.models.parallel import Parallel
from framework.models.parts import Part, all_parts
from framework.models.protocol import Model
from framework.models.quantization.scheme import LoadedPart, Scheme, TensorSource
from framework.models.quantization.unquantized import Unquantized
from framework.models.read import ModelInfo, read_model
from framework.models.weights import Checkpoint, DummyWeights, EmptyWeights, Weights
from framework.plan import KernelPlan
from triton_kernels.ops.gemm import gemm_fp8_reference, gemm_int8_reference, pack_int4
from triton_kernels.ops.quantize import reference as quantize

from .checkpoints import EXAMPLES, make
from .harness import BLOCK, CPU, build, error, sequences, teacher_forced

FLOATS = Unquantized()
SCALE, ZERO = 2.0**-6, 8
KINDS = {".weight_int8": 127, ".weight_int4": 7}
"""How names on disk end -> the largest number in such a tensor. Scales are powers of two, so that dequantizing rounds nothing."""


class Toy:
    """Linear layers in 8 bits with a scale per output channel, experts in 4 bits; the logits' projection in floats."""

    def names(self, part: Part, source: TensorSource) -> Iterator[str]:
        ending = self._ending(part)
        for name in part.float_names():
            if ending and name.endswith(".weight"):
                yield name.removesuffix(".weight") + ending
                yield name.removesuffix(".weight") + ".scales"
            else:
                yield name

    def linear(self, part: Part, source: TensorSource) -> tuple[LoadedPart, ...]:
        if self._ending(part) is None:
            return FLOATS.linear(part, source)
        weight, scales = self._read(part, source)
        return (LoadedPart("gemm_w8a16", {"weight": weight, "scales": scales, "bias": source.bias(part)}),)

    def experts(self, w13: Part, w2: Part, source: TensorSource) -> LoadedPart:
        tensors = {}
        for name, part in (("w13", w13), ("w2", w2)):
            quantized, scales = (t.unflatten(0, (part.num_experts, -1)) for t in self._read(part, source))
            tensors |= {name: pack_int4((quantized + ZERO).to(torch.uint8)), f"{name}_scale": scales}
        return LoadedPart("moe_experts", tensors)

    @staticmethod
    def _ending(part: Part) -> str | None:
        if part.always_float or part.sources == ("lm_head",):
            return None
        return ".weight_int4" if part.num_experts else ".weight_int8"

    def _read(self, part: Part, source: TensorSource) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all shards, of all experts: int8 [rows, columns], scales [rows, 1]."""
        found = []
        for name, _, _, (rows, columns) in part.tensors():
            module = name.removesuffix(".weight")
            quantized = source.stored(f"{module}{self._ending(part)}", (rows, columns), torch.int8)
            found.append((quantized, source.stored(f"{module}.scales", (rows, 1), source.dtype)))
        weights, scales = zip(*found)
        return torch.cat(weights), torch.cat(scales)


def assemble(info: ModelInfo, weights: Weights, plan: KernelPlan) -> Model:
    assert info.architecture is not None
    model = Binder(info, info.architecture, weights, plan, CPU, Parallel(), BLOCK, "auto").build()
    model.set_groups(group_layers(model.cache_specs()))
    return model


def store(folder: Path, info: ModelInfo) -> dict[str, torch.Tensor]:
    """Turns a checkpoint into the toy format; the floats that it then stands for."""
    assert info.architecture is not None
    endings = {name: Toy._ending(part) for part in all_parts(info.architecture) for name, *_ in part.tensors()}
    stored, floats = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        ending, module = endings.get(name), name.removesuffix(".weight")
        if ending is None:
            stored[name] = floats[name] = tensor
            continue
        scales = torch.full((len(tensor), 1), SCALE)
        scales[::2] /= 2
        quantized = (tensor / scales).round().clamp(-KINDS[ending], KINDS[ending])
        stored |= {f"{module}{ending}": quantized.to(torch.int8), f"{module}.scales": scales}
        floats[name] = quantized * scales
    save_file(stored, folder / "model.safetensors")
    return floats


@pytest.mark.parametrize(("choice", "tolerance"), [("reference", 0.0), ("torch", 1e-4)])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3-moe"])
def test_a_new_format_is_a_scheme_and_nothing_else(name: str, choice: str, tolerance: float, tmp_path: Path) -> None:
    make(EXAMPLES[name], tmp_path)
    config = ModelConfig(str(tmp_path), dtype="float32")
    info = read_model(config)
    assert info.architecture is not None and info.folder is not None
    floats = store(tmp_path, info)
    checkpoint = Checkpoint(info.folder, info.architecture.family, CPU, torch.float32, Toy())
    checkpoint.check(all_parts(info.architecture), ())
    plan = KernelPlan(dict.fromkeys(("linear", "gemm_w8a16", "moe_experts"), choice), [], CPU, torch.float32)
    tokens = sequences((5, 23))
    ours = teacher_forced(assemble(info, checkpoint, plan), tokens, 9, num_decodes=4)
    report = plan.report()
    assert report["gemm_w8a16"]["calls"] > 0 and report["linear"]["calls"] > 0, "layers in 8 bits, and the logits in floats"
    save_file(floats, tmp_path / "model.safetensors")
    dense = build(config, {"linear": choice, "moe_experts": choice})
    for row, expected in zip(ours, teacher_forced(dense, tokens, 9, num_decodes=4)):
        assert error(row, expected) <= tolerance


@pytest.mark.parametrize("scheme", [FLOATS, Toy()], ids=lambda scheme: type(scheme).__name__)
def test_dummies_and_dry_runs_take_any_scheme(scheme: Scheme, tmp_path: Path) -> None:
    make(EXAMPLES["qwen3-moe"], tmp_path)
    info = read_model(ModelConfig(str(tmp_path), dtype="float32"))
    op = "linear" if scheme is FLOATS else "gemm_w8a16"
    found = []
    for seed in (1, 1, 2):
        plan = KernelPlan({}, [], CPU, torch.float32)
        model = assemble(info, DummyWeights(CPU, torch.float32, scheme, seed, 0.0), plan)
        found.append(teacher_forced(model, sequences((9,)), None, num_decodes=2)[0])
        assert plan.report()[op]["calls"] > 0
    assert torch.isfinite(found[0]).all() and torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])
    plan = KernelPlan({}, [], CPU, torch.float32)
    assemble(info, EmptyWeights(CPU, torch.float32, scheme), plan)
    assert op in plan.report()


def test_tensors_of_another_format_are_named(tmp_path: Path) -> None:
    make(EXAMPLES["llama"], tmp_path)
    info = read_model(ModelConfig(str(tmp_path), dtype="float32"))
    assert info.architecture is not None and info.folder is not None
    parts, family = list(all_parts(info.architecture)), info.architecture.family
    with pytest.raises(ValueError, match=r"missing tensors: .*down_proj\.scales.*without a place .*down_proj\.weight"):
        Checkpoint(info.folder, family, CPU, torch.float32, Toy()).check(parts, ())
    store(tmp_path, info)
    with pytest.raises(ValueError, match=r"without a place in the model: .*down_proj\.scales"):
        Checkpoint(info.folder, family, CPU, torch.float32, FLOATS).check(parts, ())
    checkpoint = Checkpoint(info.folder, family, CPU, torch.float32, Toy())
    with pytest.raises(ValueError, match=r"o_proj\.weight_int8 is torch\.int8, but its format asks for torch\.uint8"):
        checkpoint.stored("model.layers.0.self_attn.o_proj.weight_int8", (64, 64), torch.uint8)


@pytest.mark.parametrize(
    ("op", "dtype", "reference", "more"),
    [("gemm_int8", torch.int8, gemm_int8_reference, (None,)), ("gemm_fp8", torch.float8_e4m3fn, gemm_fp8_reference, ())],
)
def test_inputs_are_quantized_where_the_gemm_wants_it(op, dtype, reference, more) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(5, 64, generator=generator), torch.randn(48, 64, generator=generator)
    quantized, scales = quantize(weight, dtype)
    plan = KernelPlan(dict.fromkeys((op, "quantize_activation"), "reference"), [], CPU, torch.float32)
    first = LoadedPart("quantize_activation", {"static_scale": None}, {"out_dtype": dtype, "granularity": "token"})
    tensors = {"weight": quantized, "scales": scales, "bias": None}
    linear = bind_linear(plan, [LoadedPart(op, tensors, {"out_dtype": torch.float32}, input=first)])
    expected = reference(*quantize(x, dtype), *more, quantized, scales, None, torch.float32)
    assert torch.equal(linear(x), expected)
    assert float((expected - x @ weight.T).norm() / (x @ weight.T).norm()) < 0.1
