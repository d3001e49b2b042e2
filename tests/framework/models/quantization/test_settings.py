"""What a checkpoint's config says of each module, and what is refused by name before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framework import LLM
from framework.config import ModelConfig, QuantConfig
from framework.models.quantization.auto_round import AutoRound
from framework.models.quantization.awq import Awq, AwqFormat
from framework.models.quantization.compressed_tensors import CompressedTensors, PackedFormat
from framework.models.quantization.fp8 import Fp8, Fp8Format
from framework.models.quantization.gptq import Gptq, GptqFormat
from framework.models.quantization.settings import Settings, checkpoint_settings
from framework.models.quantization.table import read_scheme

from ..checkpoints import EXAMPLES, make
from ..harness import build
from ..test_loading import edit

LAYER = "model.layers.3.mlp."
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
ASYMMETRIC = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token", "symmetric": False}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def group(weights: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"targets": ["Linear"], "weights": weights or INT8, **more}


def compressed(packing: str = "int-quantized", *groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    numbered = {f"group_{i}": found for i, found in enumerate(groups or (group(),))}
    return {"quant_method": "compressed-tensors", "format": packing, "config_groups": numbered, **more}


def test_rules_of_gptqmodel_change_or_exempt_modules_and_the_first_counts() -> None:
    rules = {r"-:.*\.down_proj": {}, r"+:.*layers\.3\..*": {"bits": 8, "group_size": 64, "sym": False}, ".*": {"bits": 2}}
    scheme = Gptq.read(Settings("gptq", {"bits": 4, "group_size": 32, "dynamic": rules}))
    assert scheme.format_of(LAYER + "down_proj") is None
    assert scheme.format_of(LAYER + "up_proj") == GptqFormat(8, 64, False, 1)
    assert scheme.format_of("model.layers.4.mlp.up_proj") == GptqFormat(2, 32, True, 1)
    assert scheme.format_of("lm_head") is None
    with_head = Gptq.read(Settings("gptq", {"bits": 4, "lm_head": True, "checkpoint_format": "gptq_v2"}))
    assert with_head.format_of("lm_head") == GptqFormat(4, 128, True, 0)
    some = Gptq.read(Settings("gptq", {"bits": 4, "modules_in_block_to_quantize": [["mlp.up_proj"], ["self_attn.q_proj"]]}))
    assert some.format_of(LAYER + "up_proj") and some.format_of(LAYER + "down_proj") is None


def test_settings_of_autoround_differ_by_layer() -> None:
    extra = {LAYER + "up_proj": {"bits": 8}, r".*\.down_proj$": {"bits": 16}, LAYER + "gate_proj": {"bits": 2, "group_size": -1}}
    values = {"bits": 4, "group_size": 64, "sym": False, "block_name_to_quantize": "model.layers", "extra_config": extra}
    scheme = AutoRound.read(Settings("auto-round", values))
    assert scheme.format_of(LAYER + "up_proj") == GptqFormat(8, 64, False, 1)
    assert scheme.format_of(LAYER + "gate_proj") == GptqFormat(2, -1, False, 1)
    assert scheme.format_of(LAYER + "down_proj") is None and scheme.format_of("lm_head") is None
    assert scheme.format_of("model.layers.3.self_attn.q_proj") == GptqFormat(4, 64, False, 1)
    awq = AutoRound.read(Settings("auto-round", {"bits": 4, "group_size": 64, "packing_format": "auto_round:auto_awq"}))
    assert awq.format_of(LAYER + "up_proj") == AwqFormat(64)
    plain = AutoRound.read(Settings("auto-round", {"bits": 4, "packing_format": "auto_round"}))
    assert plain.format_of(LAYER + "up_proj") == GptqFormat(4, 128, True, 0)


def test_groups_of_compressed_tensors_name_modules_before_classes() -> None:
    named = {**group(INT4), "targets": [r"re:.*down_proj"], "format": "pack-quantized"}
    scheme = CompressedTensors.read(Settings("compressed-tensors", compressed("int-quantized", group(), named, ignore=["lm_head"])))
    assert scheme.format_of(LAYER + "down_proj") == PackedFormat(4, 32, True)
    assert scheme.format_of(LAYER + "up_proj").activations == "none"  # type: ignore[union-attr]
    assert scheme.format_of("lm_head") is None
    ignoring = CompressedTensors.read(Settings("compressed-tensors", compressed(ignore=[r"re:.*layers\.3\..*"])))
    assert ignoring.format_of(LAYER + "up_proj") is None and ignoring.format_of("model.layers.13.mlp.up_proj") is not None


def test_modules_that_awq_and_fp8_leave_alone() -> None:
    awq = Awq.read(Settings("awq", {"w_bit": 4, "q_group_size": 64, "modules_to_not_convert": ["down_proj"]}))
    assert awq.format_of(LAYER + "down_proj") is None and awq.format_of(LAYER + "up_proj") == AwqFormat(64)
    fp8 = Fp8.read(Settings("fp8", {"weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head", "model.layers.3.mlp"]}))
    assert fp8.format_of(LAYER + "down_proj") is None
    assert fp8.format_of("model.layers.30.mlp.up_proj") == Fp8Format(blocks=True, static=False)


def test_settings_are_found_where_older_tools_wrote_them(tmp_path: Path) -> None:
    assert checkpoint_settings({}, tmp_path) is None
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 64}))
    assert checkpoint_settings({}, tmp_path) == Settings("gptq", {"bits": 4, "group_size": 64})
    (tmp_path / "quantize_config.json").write_text(json.dumps({"w_bit": 4, "zero_point": True}))
    found = checkpoint_settings({}, tmp_path)
    assert found is not None and found.method == "awq"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"quant_method": "hqq"}, "quant_method='hqq' cannot be served; known are gptq, awq"),
        ({"quant_method": "gptq", "bits": 5}, r"bits=5 of gptq cannot be served: it must be one of 2, 3, 4, 8"),
        ({"quant_method": "gptq"}, "bits=None"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size=0"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format='marlin'"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:x": {"bits": 6}}}, r"dynamic\.\+:x\.bits=6"),
        ({"quant_method": "awq", "bits": 3}, "bits=3 of awq"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version='gemv'"),
        ({"quant_method": "auto-round", "bits": 9}, "bits=9 of auto-round"),
        ({"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp"}, "data_type='mx_fp'"),
        ({"quant_method": "auto-round", "bits": 8, "act_bits": 8}, "act_bits=8"),
        ({"quant_method": "auto-round", "bits": 4, "data_type": "fp", "packing_format": "auto_round:fp8"}, "bits=4"),
        ({"quant_method": "auto-round", "bits": 4, "extra_config": {"x": {"bits": 1}}}, r"extra_config\['x'\].bits=1"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"weight_block_size=\[64, 64\]"),
        ({"quant_method": "fp8", "activation_scheme": "magic"}, "activation_scheme='magic'"),
        ({"quant_method": "bitsandbytes"}, "load_in_4bit"),
        (compressed("marlin-24"), "config_groups.group_0.format='marlin-24'"),
        (compressed("pack-quantized", group({**INT4, "num_bits": 5})), "weights.num_bits=5"),
        (compressed("pack-quantized", group(INT4, input_activations={"num_bits": 8})), "input_activations"),
        (compressed("int-quantized", group({**INT8, "symmetric": False})), "weights.symmetric=False"),
        (
            compressed("int-quantized", group(INT8, input_activations={"num_bits": 4, "type": "int"})),
            "input_activations.num_bits=4",
        ),
        (compressed("int-quantized", group(INT8, output_activations={"num_bits": 8})), "output_activations"),
        (
            compressed(
                "int-quantized",
                group(
                    INT8, input_activations={"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token", "symmetric": False}
                ),
            ),
            "input_activations.symmetric=False",
        ),
        (compressed("int-quantized", sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "config_groups=None"),
    ],
)
def test_unknown_settings_are_refused_before_weights_are_read(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(EXAMPLES["llama"], tmp_path)
    edit(tmp_path, quantization_config=section)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=message):
        build(ModelConfig(str(tmp_path), dtype="float32"))


def test_floats_are_asked_for_where_a_scheme_is(tmp_path: Path) -> None:
    gptq = Settings("gptq", {"bits": 4})
    with pytest.raises(ValueError, match=r"quant\.scheme=int8 quantizes floats, but the checkpoint is quantized already"):
        read_scheme(gptq, QuantConfig("int8"))
    assert isinstance(read_scheme(Settings("fp8", {}), QuantConfig("fp8")), Fp8)
    make(EXAMPLES["llama"], tmp_path)
    edit(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ValueError, match=r"quantized as gptq\. Leave it out"):
        LLM(str(tmp_path), quantization="awq", skip_tokenizer_init=True)


def test_the_transformers_path_takes_floats_alone(tmp_path: Path) -> None:
    make(EXAMPLES["llama"], tmp_path)
    config = ModelConfig(str(tmp_path), dtype="float32", backend="transformers")
    with pytest.raises(ValueError, match="runs through the transformers library"):
        build(config, quant=QuantConfig("int8"))
