"""What a family of models says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..mixers import Mixer

Config = Mapping[str, Any]
Names = Mapping[str, tuple[str, ...]]
"""Part of a layer -> the modules on disk that are stacked to make it, in order. Of norms () stands for one without weights, and
``{h}`` counts heads; of experts ``{e}`` counts them."""


@dataclass(frozen=True)
class Family:
    """How the models of one ``model_type`` differ from each other's; everything else is in their config.json.

    Names on disk:
    base         prefix of everything but the logits' projection; a checkpoint of the bare model lacks it
    embed, final_norm, lm_head, layers   the module names; ``layers`` is the list
    embed_norm   of the norm after the embedding; None: there is none. Of it and of ``final_norm`` "" has no weights
    token_types  of the table that tells the texts of a pair apart, "" = none
    names        parts within a layer. Several names are stacked along the output dimension. Parts named ``vision_`` and the name of
                 a linear layer are those of its visual expert, which tokens of images take in its place
    renames      (prefix on disk, prefix here), for checkpoints that hold a text model inside a larger one
    ignored      regular expressions of tensors that are no weights (buffers, towers of other modalities)
    Config:
    fields       our name of a field -> the config's name, where they differ
    defaults     of fields that a config.json may leave out
    derived      fields by our names that follow from others
    biases       parts of a layer that have a bias, and lm_head
    variant      what of this entry a config alters
    Structure:
    residual     pre: x + f(norm(x)); sandwich: x + norm(f(norm(x))); after: x + norm(f(x)); post: norm(x + f(x));
                 parallel: x + attention(norm(x)) + mlp(norm'(x)), where one norm serves both unless there is an mlp_norm;
                 single: x + f(norm(x)) where a layer has no MLP
    starts_normed  the first layer has no attn_norm, as the norm after the embedding does its work
    norm         RMS norms, or layer norms, with a bias unless norm_bias is off; norm_offset is added to their weight
    gated        the MLP is down(activation(gate(x)) * up(x)), else down(activation(up(x)))
    qk_norm      norms of queries and keys: head: one weight for all heads; heads: one for each; width: over all heads at once.
                 qk_norm_bias: they have biases; qk_norm_rotated: they come after the rotary embedding, in layers
                 that have one, not before
    scaled_positions  of a rotary embedding that stretches positions, max_position_embeddings counts the stretched ones
    positions    rotary, a learned table with ``position_offset`` unused rows in front, alibi: scores fall with the distance, or
                 relative: what is added to scores is learned by buckets of distances, in a table that all layers share
    alibi_scaled what alibi adds is scaled with the score, and computed in bfloat16
    rotary_style which elements of a head are rotated together: neox: i and i + half; gptj: 2i and 2i + 1
    rotates      does layer i, which may see a window only, rotate? Consulted where positions are rotary
    transposed   weights of linear layers lie as [in, out]
    interleaved_qkv  the queries, key and value of a KV head are neighbours in the fused projection
    encoder      prefix of the encoder's modules on disk; "": there is none. listens: it reads sound, not text
    crosses      does layer i attend to images, and to nothing else? None: no layer does
    num_unscored   tokens behind the vocabulary that have an embedding, and no logit: they stand in prompts only
    unbiased     modules of parts with a bias that have none themselves
    logits_bias  of the tensor [1, V] that is added to the logits; "" = none
    mixers       of a config, the layers that keep states in place of a cache, by their names in ``layer_types``
    interleaved_mixer  in a gated delta net's fused projections, the rows of a key head and of its value heads are neighbours
    gated_attention    the projection of queries holds, head by head, a query and a gate of what attention returns
    denoises     tokens come by block diffusion (see ``engine.diffusion``): those of a canvas see each other
    causal       a token sees only what is before it; else a window bounds what it sees on both sides
    windowed     does layer i of num_layers see a window only? Consulted if the config has no ``layer_types``
    chunked      does it attend within chunks of ``attention_chunk_size`` positions? Likewise
    temperature  of layer i, (positions, factor): queries are multiplied by 1 + factor * log(1 + floor((position + 1) / positions))
    latent       keys and values of all heads come from one latent vector per token, and queries may have one of their own
    moe          has layer i a mixture of experts in place of its MLP?
    routing      of a mixture of experts: fields of ``Moe`` beyond those that all configs name alike
    route_bias   of the tensor that is added to the scores of experts when they are chosen, in its module
    expert_tensor   name of the weights of experts in their modules; "" where a module's name is the tensor's
    expert_layouts  of w13 and w2 how experts lie on disk, where not as [out, in]: see ``Part.layout``
    alternating_experts   rows of their gate and up take turns
    packed_experts  w13 and w2 of checkpoints that hold all experts of a layer in a tensor of that name, instead of one by one
    refuse       reason why this config is beyond the native decoder, or None
    """

    names: Names
    base: str = "model."
    embed: str = "embed_tokens"
    embed_norm: str | None = None
    token_types: str = ""
    final_norm: str = "norm"
    lm_head: str = "lm_head"
    layers: str = "layers"
    position_embed: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = (r"\.inv_freq$",)
    fields: Mapping[str, str] = field(default_factory=dict)
    defaults: Config = field(default_factory=dict)
    derived: Callable[[Config], Config] = lambda config: {}
    biases: Callable[[Config], frozenset[str]] = lambda config: frozenset()
    variant: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    residual: Literal["pre", "sandwich", "after", "post", "parallel", "single"] = "pre"
    starts_normed: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True
    norm_offset: float = 0.0
    gated: bool = True
    qk_norm: Literal["", "head", "heads", "width"] = ""
    qk_norm_bias: bool = False
    qk_norm_rotated: bool = False
    positions: Literal["rotary", "learned", "alibi", "relative"] = "rotary"
    position_offset: int = 0
    scaled_positions: bool = False
    alibi_scaled: bool = False
    rotary_style: Literal["neox", "gptj"] = "neox"
    rotates: Callable[[Config, int, bool], bool] = lambda config, layer, windowed: True
    transposed: bool = False
    interleaved_qkv: bool = False
    encoder: str = ""
    listens: bool = False
    crosses: Callable[[Config, int], bool] | None = None
    num_unscored: int = 0
    unbiased: tuple[str, ...] = ()
    logits_bias: str = ""
    mixers: Mapping[str, Callable[[Config], Mixer]] = field(default_factory=dict)
    interleaved_mixer: bool = False
    gated_attention: bool = False
    denoises: bool = False
    causal: bool = True
    windowed: Callable[[Config, int], bool] = lambda config, layer: True
    chunked: Callable[[Config, int], bool] = lambda config, layer: False
    temperature: Callable[[Config, int], tuple[float, float] | None] = lambda config, layer: None
    latent: bool = False
    moe: Callable[[Config, int], bool] = lambda config, layer: False
    routing: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    route_bias: str = "e_score_correction_bias"
    expert_tensor: str = "weight"
    expert_layouts: Mapping[str, Literal["linear", "transposed", "flat", "flat_transposed"]] = field(default_factory=dict)
    alternating_experts: bool = False
    packed_experts: Names = field(default_factory=dict)
    refuse: Callable[[Config], str | None] = lambda config: None

    @property
    def norms_have_bias(self) -> bool:
        """Those outside attention."""
        return self.norm == "layer" and self.norm_bias

    @property
    def shares_norm(self) -> bool:
        """Whether one norm serves attention and MLP."""
        return self.residual == "parallel" and "mlp_norm" not in self.names


def where(condition: bool, *parts: str) -> frozenset[str]:
    """The parts, or none of them."""
    return frozenset(parts if condition else ())


def attention_biases(config: Config) -> frozenset[str]:
    """By ``attention_bias`` and ``mlp_bias``."""
    return where(config["attention_bias"], "qkv", "o") | where(config.get("mlp_bias", False), "gate_up", "up", "down")


ATTENTION: Names = {"qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "o": ("self_attn.o_proj",)}
SWIGLU: Names = {"gate_up": ("mlp.gate_proj", "mlp.up_proj"), "down": ("mlp.down_proj",)}
PLAIN_MLP: Names = {"up": ("mlp.up_proj",), "down": ("mlp.down_proj",)}
PRE_NORMS: Names = {"attn_norm": ("input_layernorm",), "mlp_norm": ("post_attention_layernorm",)}
QK_NORM: Names = {"q_norm": ("self_attn.q_norm",), "k_norm": ("self_attn.k_norm",)}
LLAMA_NAMES: Names = {**ATTENTION, **SWIGLU, **PRE_NORMS}
