"""The shapes and choices of a native model, in our words. No tensors: a simulator needs them too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..engine.kv_cache.spec import CrossKV, PagedKV, State
from ..engine.redrawing import Redraws
from .families import Family
from .mixers import Mixer
from .rope import Rope


@dataclass(frozen=True)
class Moe:
    """A mixture of experts: ``top_k`` of ``num_experts`` serve each token.

    renormalize .. scaling   the rule of ``moe_route``; bias: of the choice
    float32_router           logits of experts are those of float32, whatever the model's dtype
    shared_size              inner columns of the experts that serve every token, as one MLP; 0: there are none
    shared_gate              what they add is weighted by a sigmoid of its own
    limit .. weighs_input    as ``moe_experts``
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    renormalize: bool
    scoring: str = "softmax"
    num_groups: int = 1
    top_groups: int = 1
    group_score: str = "max"
    scaling: float = 1.0
    bias: bool = False
    float32_router: bool = False
    shared_size: int = 0
    shared_gate: bool = False
    limit: float | None = None
    alpha: float = 1.702
    weighs_input: bool = False

    @property
    def rule(self) -> dict[str, Any]:
        """Bound arguments of ``moe_route``, without the bias."""
        names = ("top_k", "renormalize", "scoring", "num_groups", "top_groups", "group_score", "scaling")
        return {name: getattr(self, name) for name in names}

    @property
    def variant(self) -> dict[str, Any]:
        """Bound arguments of ``moe_experts`` where it is not as usual."""
        clamped = {} if self.limit is None else {"limit": self.limit, "alpha": self.alpha}
        return clamped | ({"weighs_input": True} if self.weighs_input else {})


@dataclass(frozen=True)
class Latent:
    """Latent attention. q_rank, kv_rank: sizes of the latents that queries (None: they have none) and keys with values come from;
    nope_dim and rope_dim: of a head's queries and keys, without and with positions; value_dim: of its values."""

    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int

    @property
    def query_dim(self) -> int:
        """Of a head's queries."""
        return self.nope_dim + self.rope_dim

    @property
    def head_dim(self) -> int:
        """Of what the cache keeps of a token: its latent and the rotated part of its keys."""
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True)
class Buckets:
    """Of distances, each with a learned bias per head (Raffel et al., T5, arXiv 1910.10683): those below half of ``number`` have
    one each, those from ``max_distance`` on share the last, and what is between grows by a factor from one to the next."""

    number: int
    max_distance: int


@dataclass(frozen=True)
class Diffusion:
    """Block diffusion, see ``engine.diffusion``. canvas_size: tokens that are denoised together, and see each other; mask_token_id:
    stands for those that are not settled; causal_prompt: the tokens of a prompt's whole canvases see only what is before them;
    redraws: how a canvas is drawn anew, where random tokens stand for those that are not settled; None: where masks do."""

    canvas_size: int
    mask_token_id: int | None
    causal_prompt: bool
    redraws: Redraws | None = None


@dataclass(frozen=True)
class LayerShape:
    """What may differ from layer to layer. window: tokens a query sees, itself included (None = all); scale: of q.k;
    moe: None for a dense MLP; chunk: positions of a chunk, within which a query sees (None: one chunk); temperature: of queries, as
    ``Family.temperature``; mixer: what keeps states in place of attention, for which all but moe is of no meaning;
    cross: it attends to images, and to nothing else."""

    window: int | None
    rope: Rope | None
    scale: float
    moe: Moe | None
    chunk: int | None = None
    temperature: tuple[float, float] | None = None
    mixer: Mixer | None = None
    cross: bool = False

    @property
    def reach(self) -> int | None:
        """Tokens that a query sees at most, itself included; None: all before it."""
        return self.window or self.chunk

    def normalizes(self, family: Family) -> bool:
        """Whether it has norms of queries and keys."""
        return bool(family.qk_norm) and (self.rope is not None or not family.qk_norm_rotated)


@dataclass(frozen=True)
class Architecture:
    """The shapes and choices of one model.

    family         its entry, as its config alters it
    num_kv_heads, head_dim   what attention over the cache sees: of latent attention one head, as wide as what is cached
    qkv_clip       queries, keys and values are kept within -qkv_clip and qkv_clip
    has_logits     it ends with a projection to the vocabulary, and not with its hidden states
    buckets        of distances, where positions are relative
    diffusion      of a model that denoises; None: it generates token by token
    embed_scale, residual_scale, logit_scale   factors of embeddings, of what layers add, and of logits; None: 1
    """

    family: Family
    vocab_size: int
    hidden_size: int
    embed_dim: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: str
    biases: frozenset[str]
    final_norm: bool
    qkv_clip: float | None
    attn_softcap: float | None
    logit_softcap: float | None
    embed_scale: float | None
    residual_scale: float | None
    logit_scale: float | None
    max_position: int
    tied: bool
    layers: tuple[LayerShape, ...]
    num_token_types: int = 0
    has_logits: bool = True
    latent: Latent | None = None
    buckets: Buckets | None = None
    diffusion: Diffusion | None = None

    def cache_specs(self, dtype: str, max_model_len: int) -> list[PagedKV | None]:
        """What each layer keeps in a cache of ``dtype`` (None: nothing), then what each keeps of an encoder. A window that no
        sequence outgrows is none. Raises ValueError for a cache that the model cannot have."""
        value_dim = self.head_dim if self.latent is None else self.latent.kv_rank
        heads = (self.num_kv_heads, self.head_dim, value_dim)
        reaches = [layer.reach if self.causal else None for layer in self.layers]  # where a prompt is computed whole, all is kept
        windows = [reach if reach is not None and reach < max_model_len else None for reach in reaches]
        specs: list[PagedKV | None] = [
            None
            if layer.mixer is not None
            else CrossKV(*heads, dtype)
            if layer.cross
            else PagedKV(*heads, dtype, window, aliased=self.latent is not None)
            for layer, window in zip(self.layers, windows)
        ]
        return specs + [CrossKV(*heads, dtype) for _ in self.layers if self.family.encoder]

    def state_specs(self, dtype: str) -> dict[int, State]:
        """What layers keep of a request beside the cache, by their number. dtype: the model's."""
        return {index: layer.mixer.state(dtype) for index, layer in enumerate(self.layers) if layer.mixer is not None}

    @property
    def longest(self) -> int:
        """Positions of a sequence, at most."""
        ropes = [] if self.family.scaled_positions else [layer.rope for layer in self.layers if layer.rope]
        return max([self.max_position, *(rope.max_len() for rope in ropes)])

    @property
    def sees_images(self) -> bool:
        """Whether there are layers that attend to images."""
        return any(layer.cross for layer in self.layers)

    @property
    def has_visual_experts(self) -> bool:
        """Whether tokens of images have weights of their own."""
        return "vision_qkv" in self.family.names

    @property
    def has_states(self) -> bool:
        """Whether there are such layers."""
        return any(layer.mixer is not None for layer in self.layers)

    def check_chunks(self, block_size: int, max_model_len: int) -> None:
        """Raises ValueError where a cache's blocks do not fill chunks that sequences outgrow."""
        for chunk in {layer.chunk for layer in self.layers if layer.chunk is not None and layer.chunk < max_model_len}:
            if chunk % block_size:
                raise ValueError(
                    f"the model attends within chunks of {chunk} positions, which are no whole blocks of {block_size}: set "
                    f"cache.block_size to a divisor of {chunk}, or model.max_model_len={chunk} or less"
                )

    @property
    def residual(self) -> str:
        """See ``Family``."""
        return self.family.residual

    @property
    def causal(self) -> bool:
        """See ``Family``."""
        return self.family.causal

    @property
    def norms_sums(self) -> bool:
        """Whether what attention gives is added to the residual and normalized, with nothing between."""
        return self.residual == "pre" and self.residual_scale is None and self.family.norm == "rms"

    @property
    def fuses_rotary(self) -> bool:
        """Whether ``qk_norm_rotary_kv_write`` can do all that layers that rotate do between projection and attention."""
        f = self.family
        return (
            self.qkv_clip is None
            and self.latent is None
            and (not f.qk_norm or (f.qk_norm == "head" and f.norm == "rms" and not f.qk_norm_rotated))
        )
