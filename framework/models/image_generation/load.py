"""From a folder of the diffusers library to a pipeline whose UNet and text encoders run our kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from ...config import ModelConfig
from ...plan import KernelPlan
from ..hub import PIPELINE_FILE, pipeline_folder
from ..layers.paged_attention import AttentionKernels, AttentionShape
from ..transformers_model import swap_linears
from .attention import KernelAttention
from .index import CLASSES, OPTIONAL, read_index

_UNKNOWN = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "added_kv_proj_dim")
"""What an attention layer of the library may have besides its projections, and ours do not."""


class Pipeline:
    """library: the pipeline. attention: of its UNet."""

    def __init__(self, library: Any, attention: list[KernelAttention]) -> None:
        self.library, self._attention = library, attention

    def forget(self) -> None:
        """What was kept of the sizes of an image."""
        for each in self._attention:
            each.forget()


def load_pipeline(config: ModelConfig, plan: KernelPlan, device: torch.device, dtype: str, page_size: int) -> Pipeline:
    """dtype: a name of torch's. Raises ValueError for a folder that is no pipeline, or one that cannot be
    run."""
    diffusers = diffusers_library()
    library = _read(diffusers, config, getattr(torch, dtype))
    library.to(device)
    _check_texts(config.name, library)
    attention = _swap_attention(config.name, diffusers, library.unet, AttentionKernels(plan, page_size, dtype), device)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if (part := getattr(library, name, None)) is not None:
            swap_linears(part, plan)
    for part in library.components.values():
        if isinstance(part, torch.nn.Module):
            plan.runs_in_library(part)
    return Pipeline(library, attention)


def diffusers_library() -> Any:
    """The library. Raises ValueError where it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(
            f"images are made by the library diffusers, which cannot be imported ({error}): pip install 'kernelswap[diffusers]'"
        ) from error
    return diffusers


def _read(diffusers: Any, config: ModelConfig, dtype: torch.dtype) -> Any:
    folder = pipeline_folder(config.name) or _download(diffusers, config)
    kind, parts = read_index(config.name, folder)
    given: dict[str, Any] = {part: None for part in OPTIONAL if part not in parts}
    if kind == "StableDiffusionPipeline" and "safety_checker" in given:
        given["requires_safety_checker"] = False
    try:
        for part in CLASSES.keys() & parts:
            given[part] = _model(transformers if part.startswith("text") else diffusers, CLASSES[part], folder / part, dtype)
        return getattr(diffusers, kind).from_pretrained(folder, dtype=dtype, local_files_only=True, **given)
    except Exception as error:  # parts check themselves, each in its way
        raise _refused(diffusers, config, error) from error


def _model(library: Any, kind: str, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """A part with weights. Raises ValueError for a checkpoint that does not fit: the libraries would go on with random weights."""
    model, report = getattr(library, kind).from_pretrained(folder, dtype=dtype, output_loading_info=True, local_files_only=True)
    for found, names in report.items():
        if wrong := sorted(str(name) for name in names if not str(name).endswith("position_ids")):  # older files have these
            raise ValueError(f"the weights of {folder.name} do not fit its config.json: {found} {wrong[:20]}")
    return model


def _download(diffusers: Any, config: ModelConfig) -> Path:
    try:
        return Path(diffusers.DiffusionPipeline.download(config.name, revision=config.revision))
    except Exception as error:  # the hub raises many kinds
        said = " ".join(str(error).split())[:500]
        raise ValueError(
            f"model {config.name!r} was not found: there is no such folder with {PIPELINE_FILE}, and of the Hugging Face hub "
            f"diffusers says {type(error).__name__}: {said}"
        ) from error


def _refused(diffusers: Any, config: ModelConfig, error: Exception) -> ValueError:
    said = " ".join(str(error).split())[:500]
    return ValueError(
        f"model {config.name!r} cannot make images: diffusers {diffusers.__version__} refuses it: {type(error).__name__}: {said}"
    )


def _check_texts(name: str, library: Any) -> None:
    """The library pads prompts to what a tokenizer says."""
    for suffix in ("", "_2"):
        tokenizer: Any = getattr(library, f"tokenizer{suffix}", None)
        if tokenizer is None:
            continue
        most = getattr(library, f"text_encoder{suffix}").config.max_position_embeddings
        if tokenizer.model_max_length > most:
            raise ValueError(
                f"model {name!r} cannot make images: tokenizer{suffix} has model_max_length={tokenizer.model_max_length}, "
                f"text_encoder{suffix} {most} positions"
            )


def _swap_attention(
    name: str, diffusers: Any, unet: torch.nn.Module, kernels: AttentionKernels, device: torch.device
) -> list[KernelAttention]:
    """Puts ours in the place of the library's; layers of equal shape share a kernel."""
    found: dict[AttentionShape, KernelAttention] = {}
    for path, layer in unet.named_modules():
        if not isinstance(layer, diffusers.models.attention_processor.Attention):
            continue
        unknown = [key for key in _UNKNOWN if getattr(layer, key) is not None]
        if layer.residual_connection or layer.rescale_output_factor != 1:
            unknown.append("residual_connection")
        if unknown:
            raise ValueError(
                f"model {name!r} cannot make images: {path} attends with {', '.join(unknown)}, which our attention has not"
            )
        dim, value_dim = (x.out_features // layer.heads for x in (layer.to_q, layer.to_v))
        shape = AttentionShape(layer.heads, layer.heads, dim, value_dim, layer.scale, None, None, causal=False)
        if shape not in found:
            found[shape] = KernelAttention(kernels.of_prompts(shape, causal=False, return_lse=False), kernels.block_size, device)
        layer.set_processor(found[shape])
    return list(found.values())
