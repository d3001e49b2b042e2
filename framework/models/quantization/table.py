"""Which quantized checkpoints there are, and how floats can be quantized on load: tables by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...config import CALIBRATED_SCHEMES, QuantConfig
from . import on_load, rounding
from .auto_round import AutoRound
from .awq import Awq
from .bitsandbytes import BitsAndBytes
from .compressed_tensors import CompressedTensors
from .fp8 import Fp8
from .gptq import Gptq
from .mxfp4 import Mxfp4Experts
from .scheme import Scheme
from .settings import Settings
from .unquantized import Unquantized

METHODS: Mapping[str, Callable[[Settings], Scheme]] = {
    "gptq": Gptq.read,
    "awq": Awq.read,
    "auto-round": AutoRound.read,
    "intel/auto-round": AutoRound.read,
    "compressed-tensors": CompressedTensors.read,
    "fp8": Fp8.read,
    "bitsandbytes": BitsAndBytes.read,
    "mxfp4": Mxfp4Experts.read,
}
"""quant_method of a config -> what reads the rest of it."""

ON_LOAD: Mapping[str, Callable[[QuantConfig], on_load.Rounding]] = {
    "rtn-int4": lambda quant: on_load.int4(quant.group_size, quant.is_symmetric),
    "int8": lambda quant: on_load.scaled("gemm_int8", rounding.int8_channels, experts=False),
    "int8-weight": lambda quant: on_load.int8_weight(),
    "fp8": lambda quant: on_load.scaled("gemm_fp8", rounding.fp8_channels),
    "fp8-block": lambda quant: on_load.scaled("gemm_fp8", rounding.fp8_blocks, blocks=True),
}
"""quant.scheme -> how a matrix is rounded."""


def read_scheme(settings: Settings | None, quant: QuantConfig) -> Scheme:
    """The scheme by which a model is loaded. Raises ValueError for what cannot be served, before any weight is read."""
    if settings is None:
        assert quant.scheme not in CALIBRATED_SCHEMES, "settle_quantization puts a quantized checkpoint in the model's place"
        return Unquantized() if quant.scheme == "none" else on_load.OnLoad(ON_LOAD[quant.scheme](quant))
    if settings.method not in METHODS:
        raise ValueError(f"quantization_config.quant_method={settings.method!r} cannot be served; known are {', '.join(METHODS)}")
    if quant.scheme not in ("none", settings.method):  # which may be called the same: fp8
        raise ValueError(
            f"quant.scheme={quant.scheme} quantizes floats, but the checkpoint is quantized already ({settings.method}): it is "
            "served as it is stored, with quant.scheme=none"
        )
    return METHODS[settings.method](settings)
