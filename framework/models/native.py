"""From a config.json to the architecture of a native model, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .architecture import Architecture, Buckets, Diffusion, Latent, LayerShape, Moe
from .families import Family
from .plugins import family_names, find_family
from .rope import read_rope

GATED_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh")
PLAIN_ACTIVATIONS = ("relu", "relu2", "silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")


def read_native(config: Mapping[str, Any]) -> tuple[Architecture | None, str]:
    """What a config.json asks of the native decoder; None and the reason where that does not cover it."""
    model_type = config["model_type"]
    entry = find_family(model_type)
    if entry is None:
        return None, f"model_type {model_type!r} is none of the native families ({', '.join(family_names())})"
    merged = _in_our_words(entry, config)
    family = replace(entry, **entry.variant(merged))
    if reason := family.refuse(merged) or _unknown_layers(merged, family) or _unknown_activation(merged, family):
        return None, reason
    found = read_architecture(family, merged)
    if found.activation not in ("silu", "swish") and any(layer.moe for layer in found.layers):
        return None, f"its experts' activation is {found.activation!r}, not silu"
    return found, ""


def _is_flag(found: Any) -> bool:
    return type(found) is bool


_FIELDS: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "a positive whole number",
        lambda found: type(found) is int and found > 0,
        (
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "num_hidden_layers",
            "intermediate_size",
            "head_dim",
            "vocab_size",
            "kv_lora_rank",
            "q_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            "max_position_embeddings",
            "model_max_length",
            "rotary_dim",
            "word_embed_proj_dim",
            "num_kv_heads",
            "no_rope_layer_interval",
            "num_experts_per_tok",
            "max_source_positions",
            "num_mel_bins",
            "relative_attention_num_buckets",
            "relative_attention_max_distance",
            "moe_intermediate_size",
            "moe_layer_freq",
            "n_group",
            "topk_group",
            "state_size",
            "conv_kernel",
            "num_state_heads",
            "num_state_groups",
            "linear_num_key_heads",
            "linear_num_value_heads",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "full_attention_interval",
            "attn_layer_period",
            "expert_layer_period",
            "block_size",
        ),
    ),
    (
        "a whole number",
        lambda found: type(found) is int and found >= 0,
        (
            "num_experts",
            "n_shared_experts",
            "first_k_dense_replace",
            "sliding_window",
            "max_window_layers",
            "num_nextn_predict_layers",
            "mask_token_id",
            "step_tag_id",
        ),
    ),
    (
        "a positive number",
        lambda found: type(found) in (int, float) and 0 < found < float("inf"),
        (
            "rms_norm_eps",
            "norm_eps",
            "query_pre_attn_scalar",
            "attention_multiplier",
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
            "logit_scale",
            "scale_emb",
            "scale_depth",
            "dim_model_base",
            "clip_qkv",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "routed_scaling_factor",
        ),
    ),
    ("an object", lambda found: isinstance(found, Mapping), ("rope_parameters", "rope_scaling")),
    ("a list of names", lambda found: isinstance(found, list) and all(type(name) is str for name in found), ("layer_types",)),
    ("a list of 0 and 1", lambda found: isinstance(found, list) and all(flag in (0, 1) for flag in found), ("no_rope_layers",)),
    ("a name", lambda found: type(found) is str, ("hidden_act",)),
)
"""What fields must be if they are given: in words, the test, the names."""


def _in_our_words(family: Family, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json over the family's defaults, with our names of its fields. Raises ValueError for values of a wrong kind."""
    config = {**family.defaults, **config}
    config |= {ours: config[theirs] for ours, theirs in family.fields.items() if theirs in config}
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"):
        _required(config, name)
    flags = ("tie_word_embeddings", *(name for name, default in family.defaults.items() if type(default) is bool))
    for expected, fits, names in (*_FIELDS, ("true or false", _is_flag, flags)):
        for name in names:
            if (found := config.get(name)) is not None and not fits(found):
                theirs = family.fields.get(name, name)
                raise ValueError(f"the model's config.json (or model.architecture) has {theirs}={found!r}, expected {expected}")
    return {**config, **family.derived(config)}


def read_architecture(family: Family, config: Mapping[str, Any]) -> Architecture:
    """config: in our words; family: as it alters it."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim, kv_heads = config.get("head_dim") or hidden // heads, config.get("num_key_value_heads") or heads
    if not head_dim:
        raise ValueError(f"the model's config.json (or model.architecture) has {heads} heads in a hidden_size of {hidden}")
    latent = _latent(config) if family.latent else None
    if latent is not None:
        kv_heads = 1
    elif heads % kv_heads:
        raise ValueError(f"the model's config.json (or model.architecture) has {heads} heads that share {kv_heads} KV heads")
    return Architecture(
        family=family,
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        embed_dim=config.get("word_embed_proj_dim") or hidden,
        intermediate_size=config.get("intermediate_size") or 4 * hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim if latent is None else latent.head_dim,
        norm_eps=float(config.get("norm_eps") or _required(config, "rms_norm_eps")),
        activation=_required(config, "hidden_act"),
        biases=family.biases(config),
        final_norm=family.residual != "post" and not config.get("_remove_final_layer_norm"),
        qkv_clip=config.get("clip_qkv"),
        attn_softcap=config.get("attn_logit_softcapping"),
        logit_softcap=config.get("final_logit_softcapping"),
        embed_scale=_factor(config, "embedding_multiplier"),
        residual_scale=_factor(config, "residual_multiplier"),
        logit_scale=_factor(config, "logit_scale"),
        max_position=config["max_position_embeddings"],
        tied=bool(config.get("tie_word_embeddings", False)),
        num_token_types=config.get("type_vocab_size") or 0,
        layers=tuple(_layer(family, config, head_dim, i) for i in range(config["num_hidden_layers"])),
        latent=latent,
        buckets=_buckets(config) if family.positions == "relative" else None,
        diffusion=_diffusion(config) if family.denoises else None,
    )


def _buckets(config: Mapping[str, Any]) -> Buckets:
    return Buckets(config["relative_attention_num_buckets"], config["relative_attention_max_distance"])


def _diffusion(config: Mapping[str, Any]) -> Diffusion:
    size, mask, sees_behind = (_required(config, name) for name in ("block_size", "mask_token_id", "block_causal_prompt"))
    vocab_size = config["vocab_size"]
    if mask >= vocab_size:
        raise ValueError(
            f"the model's config.json (or model.architecture) has mask_token_id={mask}, but a vocab_size of {vocab_size}: set the "
            "token that stands for what is not settled"
        )
    return Diffusion(size, mask, not sees_behind)


def _latent(config: Mapping[str, Any]) -> Latent:
    ranks = config["q_lora_rank"], _required(config, "kv_lora_rank")
    return Latent(*ranks, *(_required(config, name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")))


def _layer(family: Family, config: Mapping[str, Any], head_dim: int, index: int) -> LayerShape:
    layer_types = config.get("layer_types")
    windowed = layer_types[index] == "sliding_attention" if layer_types else family.windowed(config, index)
    window = (config.get("sliding_window") or None) if windowed else None  # 0, too, is none
    layer_type = "sliding_attention" if windowed else "full_attention"
    scale = (config.get("query_pre_attn_scalar") or head_dim) ** -0.5 if config.get("scale_attn_weights", True) else 1.0
    scale = config.get("attention_multiplier") or scale
    if config.get("scale_attn_by_inverse_layer_idx"):
        scale /= index + 1
    mixer = family.mixers[layer_types[index]](config) if layer_types and layer_types[index] in family.mixers else None
    cross = family.crosses is not None and family.crosses(config, index)
    rotates = family.positions == "rotary" and mixer is None and not cross and family.rotates(config, index, windowed)
    rope = read_rope(config, head_dim, layer_type) if rotates else None
    moe = None
    if family.moe(config, index):
        size = config.get("moe_intermediate_size") or config["intermediate_size"]
        found = {"renormalize": bool(config["norm_topk_prob"]), **family.routing(config)}
        moe = Moe(config["num_experts"], _required(config, "num_experts_per_tok"), size, **found)
        _check_groups(moe)
    chunked = layer_types[index] == "chunked_attention" if layer_types else family.chunked(config, index)
    chunk = config.get("attention_chunk_size") if chunked else None
    return LayerShape(window, rope, scale, moe, chunk, family.temperature(config, index), mixer, cross)


def _check_groups(moe: Moe) -> None:
    size = moe.num_experts // moe.num_groups
    too_small = moe.top_k > size * moe.top_groups or (moe.num_groups > 1 and moe.group_score == "top2" and size < 2)
    if moe.num_experts % moe.num_groups or not 0 < moe.top_groups <= moe.num_groups or too_small:
        raise ValueError(
            f"the model's config.json asks for {moe.top_k} of {moe.num_experts} experts, out of the best {moe.top_groups} of "
            f"{moe.num_groups} groups: groups must be equal, and large enough together"
        )


def _unknown_layers(config: Mapping[str, Any], family: Family) -> str | None:
    types, count = config.get("layer_types") or (), config["num_hidden_layers"]
    for name in ("layer_types", "no_rope_layers"):
        if (listed := config.get(name)) and len(listed) < count:
            return f"its {name} name {len(listed)} of {count} layers"
    kinds = sorted(set(types) - {"full_attention", "sliding_attention", "chunked_attention", *family.mixers})
    return f"it has layers of kind {', '.join(kinds)}" if kinds else None


def _unknown_activation(config: Mapping[str, Any], family: Family) -> str | None:
    name = config.get("hidden_act")
    known = GATED_ACTIVATIONS if family.gated else PLAIN_ACTIVATIONS
    return None if name in known else f"activation {name!r} is none of {', '.join(known)}"


def _factor(config: Mapping[str, Any], name: str) -> float | None:
    """None for what changes nothing."""
    return None if config.get(name) in (None, 1) else float(config[name])


def _required(config: Mapping[str, Any], name: str) -> Any:
    if config.get(name) is None:
        raise ValueError(
            f"the model's config.json (or model.architecture) has no {name!r}, which its model_type "
            f"{config.get('model_type')!r} needs"
        )
    return config[name]
