"""From a model's name to what it is and what runs it: the native decoder, the transformers library, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from .architecture import Architecture, Diffusion
from .encoding import Encoding, read_encoding
from .families.diffusion import LIBRARY_DENOISERS
from .families.diffusion import REFUSED as REFUSED_DENOISERS
from .hub import read_json, resolve_model
from .native import read_native
from .plugins import find_family
from .pooling.read import TOWERS, read_pooling, towers_config
from .pooling.settings import Pooling
from .quantization.settings import Settings, checkpoint_settings
from .redraws import read_redraws
from .vision import Vision, of_larger_model, read_vision, reads_images, with_type


@dataclass(frozen=True)
class ModelInfo:
    """A model before anything of it is loaded.

    folder         None when it is described by ``architecture`` alone
    config         config.json (its text part) with the overrides of ``ModelConfig.architecture``
    generation     generation_config.json; empty if there is none
    dtype          float32, float16 or bfloat16
    max_model_len  longest sequence
    eos_token_ids  tokens that end a sequence
    architecture   None if the native decoder does not cover it; ``reason`` says why
    quantization   what a quantized checkpoint says of itself; None: its weights are floats
    pooling        what is made of hidden states; None: it generates
    vision         how it reads images; None: it does not
    encoding       of a model with layers that attend to what an encoder gave; None: it has none
    diffusion      of a model that denoises; None: it generates token by token
    """

    name: str
    folder: Path | None
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    dtype: str
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    architecture: Architecture | None
    reason: str = ""
    quantization: Settings | None = None
    pooling: Pooling | None = None
    vision: Vision | None = None
    encoding: Encoding | None = None
    diffusion: Diffusion | None = None

    def cache_dtype(self, wish: str) -> str:
        """Name of a cache's dtype. wish: as in ``CacheConfig``."""
        return self.dtype if wish == "auto" else wish

    def most_encoded(self, block_size: int) -> int:
        """Places in the cache that a request takes at most for what an encoder gave; 0 without one."""
        return 0 if self.encoding is None else self.encoding.room(block_size)

    def check_generates(self, what: str) -> None:
        """Raises ValueError for a model that pools, or denoises. what: for which it would have to say what token is next."""
        if self.pooling is not None:
            raise ValueError(
                f"{what} is for models that generate, and {self.name!r} pools ({self.pooling.task}): choose another model"
            )
        if self.diffusion is not None:
            raise ValueError(
                f"{what} is for models that say what token is next, and {self.name!r} generates by block diffusion: choose "
                "another model"
            )


def read_model(config: ModelConfig) -> ModelInfo:
    """Finds a model and reads what it is. Raises ValueError for what cannot be found, read or served."""
    dummy = config.load_format == "dummy"
    describes_itself = dummy and "model_type" in config.architecture
    folder = None if describes_itself else resolve_model(config.name, config.revision, weights=not dummy)
    raw, vision = with_type({**read_json(folder, "config.json"), **config.architecture}), None
    if reads_images(raw):
        found, vision = read_vision(config, raw, folder)
    else:
        found = {**text_part(raw), **config.architecture}
    if not isinstance(found.get("model_type"), str):
        raise ValueError(f"model {config.name!r}: its config.json (or model.architecture) names no model_type")
    names = found.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"the model's config.json (or model.architecture) has architectures={names!r}, expected a list of names")
    if config.runner == "generate" and names == ["GritLM"]:
        found["architectures"] = ["MistralForCausalLM"]
    if found["model_type"] in TOWERS:
        found = towers_config(config, found, folder)
    generation = read_json(folder, "generation_config.json")
    architecture, reason = None, "model.backend=transformers"
    if config.backend != "transformers":
        architecture, reason = read_native(found)
        if architecture is None and config.backend == "native":
            raise ValueError(f"model {config.name!r} cannot run natively: {reason}; use model.backend=auto or transformers")
    if vision is not None:
        if architecture is None:
            raise ValueError(
                f"model {config.name!r} cannot run: its type, {vision.model_type!r}, is served by the native decoder alone, and "
                f"{reason or 'model.backend=transformers'}"
            )
        architecture = of_larger_model(architecture)
    if architecture is None and (unknown := _unknown_type(found, reason)):
        raise ValueError(f"model {config.name!r} cannot run: {unknown}")
    eos = generation.get("eos_token_id")
    if eos is None or "eos_token_id" in config.architecture:
        eos = found.get("eos_token_id")
    size, causal = (found.get("hidden_size", 0), True) if architecture is None else (architecture.hidden_size, architecture.causal)
    pooling = read_pooling(config, found, folder, size, causal)
    if pooling is not None and architecture is not None and architecture.family.encoder:
        raise ValueError(f"model {config.name!r} cannot pool: it is an encoder-decoder, which generates; set model.runner=generate")
    if pooling is not None and architecture is not None and architecture.sees_images:
        raise ValueError(f"model {config.name!r} cannot pool: its layers attend to images; set model.runner=generate")
    diffusion = None if architecture is None else architecture.diffusion
    if found["model_type"] in LIBRARY_DENOISERS:
        diffusion = read_redraws(found, generation)
    if pooling is not None and diffusion is not None:
        raise ValueError(f"model {config.name!r} cannot pool: it generates by block diffusion; set model.runner=generate")
    if pooling is not None and pooling.towers is None:
        if architecture is None:
            raise ValueError(f"model {config.name!r} cannot pool: only native models can, and {reason}")
        architecture = replace(architecture, has_logits=False)
    max_model_len = _max_model_len(config, found, architecture, pooling)
    dtype, quantization = _dtype(config, found), checkpoint_settings(found, folder)
    encoding = None if architecture is None else read_encoding(config, found, generation, architecture, vision, max_model_len)
    return ModelInfo(
        config.name,
        folder,
        found,
        generation,
        dtype,
        max_model_len,
        _eos(eos),
        architecture,
        reason,
        quantization,
        pooling,
        None if pooling is not None else vision,
        encoding,
        diffusion,
    )


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the fields of its text model on top, where a family covers that model alone."""
    name = config.get("model_type")
    if "text_config" not in config or not isinstance(name, str):
        return dict(config)
    if find_family(name) is None and name not in LIBRARY_DENOISERS:
        return dict(config)
    if not isinstance(found := config["text_config"], Mapping):
        raise ValueError(f"the model's config.json (or model.architecture) has text_config={found!r}, expected an object")
    return {**config, **found, **({"model_type": name} if name in LIBRARY_DENOISERS else {})}


def _max_model_len(
    config: ModelConfig, found: Mapping[str, Any], architecture: Architecture | None, pooling: Pooling | None
) -> int:
    if architecture is None:
        limit = int(found.get("max_position_embeddings") or found.get("n_positions") or found.get("seq_length") or 2048)
    else:
        limit = architecture.longest
    if architecture is not None and (diffusion := architecture.diffusion) is not None:
        size = diffusion.canvas_size
        limit -= limit % size  # the last canvas is computed as a whole
        if (config.max_model_len or 0) % size:
            raise ValueError(
                f"model.max_model_len={config.max_model_len} cannot work: {config.name!r} denoises {size} tokens at a time; "
                "set a multiple"
            )
    if config.max_model_len is None:
        return limit if pooling is None or pooling.max_len is None else min(limit, pooling.max_len)
    if config.max_model_len > limit:
        raise ValueError(
            f"model.max_model_len={config.max_model_len} is more than the {limit} positions of {config.name!r}: "
            "ask for fewer, or change them in model.architecture (max_position_embeddings, rope scaling)"
        )
    return config.max_model_len


def _unknown_type(config: Mapping[str, Any], reason: str | None) -> str | None:
    """Why a model that does not run natively, for that reason, cannot run at all: the library does not know it either, or cannot
    serve it here."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config["model_type"] in CONFIG_MAPPING_NAMES:
        return None
    if why := REFUSED_DENOISERS.get(config["model_type"]):
        return why
    if find_family(config["model_type"]) is not None:
        return f"its type, {config['model_type']!r}, is served by the native decoder alone, and {reason}"
    unknown = f"model_type {config['model_type']!r} is none of the native families, and transformers {transformers.__version__} "
    unknown += "does not know it"
    if code := config.get("auto_map"):
        files = sorted({name.rpartition(".")[0].rpartition("--")[2] for name in _names_in(code)})
        unknown += f"; it brings code of its own ({', '.join(files)}), and code of checkpoints is not run"
    return unknown + ". kernelswap models --all lists the known types"


def _names_in(found: Any) -> list[str]:
    """Of an auto_map: objects and lists of names, of which some may be null."""
    parts = found.values() if isinstance(found, Mapping) else found if isinstance(found, list) else ()
    return [found] if isinstance(found, str) else [name for part in parts for name in _names_in(part)]


def _dtype(config: ModelConfig, found: Mapping[str, Any]) -> str:
    wish = config.dtype if config.dtype != "auto" else found.get("dtype") or found.get("torch_dtype") or "float32"
    if wish not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"model.dtype={wish!r} cannot work: it must be auto, float32, float16 or bfloat16")
    return wish


def _eos(value: Any) -> tuple[int, ...]:
    ids = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(type(token) is int for token in ids):
        raise ValueError(f"the model's eos_token_id={value!r} cannot work: it must be a token id or a list of them")
    return ids
