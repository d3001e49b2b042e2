"""From a float checkpoint to a quantized one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ..config import CALIBRATED_SCHEMES, QUANT_SCHEMES, ROUNDED_SCHEMES, QuantConfig
from ..models.quantization import rounding
from . import awq, gptq
from .calibration import draw_samples
from .formats import Grid, QuantizedWeight, awq_tensors, gptq_tensors, quantization_config, round_to_nearest
from .layerwise import LayerwiseModel
from .output import ShardWriter, check_free, copy_metadata, new_folder, write_json
from .source import Source


@torch.inference_mode()
def quantize_checkpoint(
    model: str, out: Path, config: QuantConfig, *, act_order: bool = False, seed: int = 0, progress: bool = True
) -> None:
    """Writes the model (as ``resolve_model`` finds it) to ``out``, quantized, in the scheme's format. The folder appears whole or
    not at all.

    act_order  GPTQ: inputs are rounded in the order of their size
    seed       of the calibration samples
    Raises ValueError for settings that do not fit the model or each other, before any weight is read.
    """
    check_free(out)
    source = Source(model)
    _check(source, config, act_order)
    with new_folder(out) as folder:
        if config.scheme == "autoround-int4":
            from .autoround import write_autoround

            write_autoround(source, folder, config, seed)
            return
        writer = ShardWriter(folder)
        if config.scheme in CALIBRATED_SCHEMES:
            tensors = _calibrated(source, config, act_order, seed, progress)
        else:
            tensors = _rounded(source, config, progress)
        for name, tensor in tensors:
            writer.add(name, tensor)
        writer.close()
        described = quantization_config(config, source.float_modules(), act_order)
        copy_metadata(source.folder, folder, {"quantization_config": described})
        if config.scheme == "gptq-int4":
            write_json(folder / "quantize_config.json", described)


def _check(source: Source, config: QuantConfig, act_order: bool) -> None:
    if config.scheme not in QUANT_SCHEMES[1:]:
        raise ValueError(f"there is no scheme {config.scheme!r} to quantize with; there are {', '.join(QUANT_SCHEMES[1:])}")
    if act_order and config.scheme != "gptq-int4":
        raise ValueError(f"act-order belongs to gptq-int4, but the scheme is {config.scheme}: leave it out")
    if config.calibration is not None and config.scheme not in CALIBRATED_SCHEMES:
        able = ", ".join(CALIBRATED_SCHEMES)
        raise ValueError(f"calibration={config.calibration}: {config.scheme} does not calibrate, {able} do: leave it out")
    if not config.scheme.endswith("int4"):
        if config.symmetric is not None:
            raise ValueError(f"zero points belong to 4-bit schemes, but the scheme is {config.scheme}: leave --sym and --asym out")
        return
    for part in source.linears():
        assert part.columns is not None
        try:
            rounding.group_length(part.columns, config.group_size)
        except ValueError as error:
            raise ValueError(f"{part.sources[0]}: {error}") from None
    if config.scheme == "rtn-int4":
        return
    if experts := next((part for part in source.linears() if part.num_experts), None):
        raise ValueError(
            f"{config.scheme} cannot quantize mixtures of experts ({experts.sources[0]}), whose experts see too few calibration "
            f"tokens each; use one of {', '.join(ROUNDED_SCHEMES)}"
        )
    for part in source.linears():
        assert part.columns is not None
        if any(size % 8 for size in (*part.rows, part.columns)):
            raise ValueError(
                f"{part.sources[0]} is {list(part.shape)}, but {config.scheme} packs eight inputs or outputs per word: use rtn-int4"
            )
    if config.num_samples < 1 or not 2 <= config.sample_tokens <= source.architecture.max_position:
        raise ValueError(
            f"calibration with {config.num_samples} samples of {config.sample_tokens} tokens: one sample is needed at least, of 2 "
            f"to {source.architecture.max_position} tokens, the positions of the model"
        )


def _rounded(source: Source, config: QuantConfig, progress: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """(name on disk, tensor) of every tensor."""
    shapes = {name: shape for part in source.linears() for name, _, _, shape in part.tensors()}
    for name, stored in tqdm(source.stored.items(), desc=config.scheme, unit="tensor", disable=not progress):
        if name in shapes:
            tensors = round_to_nearest(source.read_finite(name, shapes[name]), config)
            yield from ((f"{stored.removesuffix('weight')}{suffix}", tensor) for suffix, tensor in tensors.items())
        else:
            yield stored, source.read(name)


def _calibrated(
    source: Source, config: QuantConfig, act_order: bool, seed: int, progress: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name on disk, tensor) of every tensor; those of a layer once it is quantized."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LayerwiseModel(source, draw_samples(source.folder, config, seed), device)
    grid = Grid(config.group_size, config.is_symmetric)
    of_layers = set()
    for index in tqdm(range(source.num_layers), desc=config.scheme, unit="layer", disable=not progress):
        layer = model.layer(index)
        if config.scheme == "gptq-int4":
            quantized = gptq.quantize_layer(layer, grid, act_order)
        else:
            quantized = awq.quantize_layer(layer, source.architecture, index, grid, source.dtype)
        layer.advance()
        for name, parameter in layer.module.named_parameters():
            full = source.layer_prefix(index) + name
            of_layers.add(full)
            yield from _stored(source, config, full, parameter.data, quantized.get(full.removesuffix(".weight")))
        model.release(index)
    for name, stored in source.stored.items():
        if name not in of_layers:
            yield stored, source.read(name)


def _stored(
    source: Source, config: QuantConfig, name: str, parameter: torch.Tensor, quantized: QuantizedWeight | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors on disk of a layer's parameter. Floats keep the dtype that they have in the checkpoint."""
    stored = source.stored[name]
    if quantized is None:
        yield stored, parameter.to(source.dtype)
        return
    tensors = gptq_tensors(quantized) if config.scheme == "gptq-int4" else awq_tensors(quantized)
    yield from ((f"{stored.removesuffix('weight')}{suffix}", tensor) for suffix, tensor in tensors.items())
