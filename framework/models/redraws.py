"""What the files of a checkpoint of DiffusionGemma say of its canvases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..engine.redrawing import Redraws
from .architecture import Diffusion
from .own_layouts import check_positive, check_sizes


def read_redraws(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Diffusion:
    """Of a config.json, with its text model's fields on top, and a generation_config.json; either may leave out all, and what the
    library puts there is taken then. Raises ValueError for values of a wrong kind, and for what cannot be served."""
    config = {"canvas_length": 256, "sliding_window": 512, "final_logit_softcapping": 30.0, **config}
    check_sizes(config, "canvas_length", "sliding_window", "num_experts", "top_k_experts")
    check_positive(config, "final_logit_softcapping")
    if config["top_k_experts"] > config["num_experts"]:
        raise ValueError(
            f"the model's config.json (or model.architecture) has top_k_experts={config['top_k_experts']}, of "
            f"num_experts={config['num_experts']}"
        )
    if config.get("use_bidirectional_attention") == "all":
        raise ValueError(
            "the model's config.json (or model.architecture) has use_bidirectional_attention='all', with which nothing of a prompt "
            "holds once there is more; it must be null or 'vision'"
        )
    if config.get("tie_word_embeddings") is False:
        raise ValueError(
            "the model's config.json (or model.architecture) has tie_word_embeddings=false: known tokens and canvases would have "
            "weights of their own, which is not built"
        )
    sampler = _given(generation, "sampler_config", {}, lambda found: isinstance(found, Mapping), "an object")
    if (kind := sampler.get("_cls_name", "EntropyBoundSamplerConfig")) != "EntropyBoundSamplerConfig":
        raise ValueError(
            f"the model's generation_config.json has a sampler_config of {kind!r}; only EntropyBoundSamplerConfig is built"
        )
    coldest = _given(generation, "t_min", 0.4, lambda found: _is_more(found) or found == 0, "a number from 0 up")
    hottest = _given(generation, "t_max", 0.8, _is_more, "a number above 0")
    if coldest >= hottest:
        raise ValueError(f"the model's generation_config.json has t_min={coldest} and t_max={hottest}: t_min must be less")
    return Diffusion(
        config["canvas_length"],
        None,
        causal_prompt=True,
        redraws=Redraws(
            _given(generation, "max_denoising_steps", 48, lambda found: _is_count(found) and found > 0, "a positive whole number"),
            coldest,
            hottest,
            _given(sampler, "entropy_bound", 0.1, _is_more, "a number above 0"),
            _given(generation, "stability_threshold", 1, _is_count, "a whole number"),
            _given(generation, "confidence_threshold", 0.005, _is_more, "a number above 0"),
        ),
    )


def _given(found: Mapping[str, Any], name: str, default: Any, fits: Callable[[Any], bool], expected: str) -> Any:
    if (value := found.get(name)) is None:
        return default
    if not fits(value):
        raise ValueError(f"the model's generation_config.json has {name}={value!r}, expected {expected}")
    return value


def _is_count(found: Any) -> bool:
    return type(found) is int and found >= 0


def _is_more(found: Any) -> bool:
    return type(found) in (int, float) and 0 < found < math.inf
