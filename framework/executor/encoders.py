"""What encoders compute that layers of a model attend to, or whose vectors stand among its tokens: plain transformers.

Such modules are the transformers library's. What it computes itself is no call of ours, and counts as op ``library``, as it stands
in a real plan: products (and convolutions, as products over their patches) take the time of ``linear``, attention that of a
``paged_attention_prefill`` whose queries see all positions: for these there are measured times. All else takes what it reads and
writes, and as many launches as the library makes of it, which fuses nothing; what grows with the square of positions (the buckets
of T5's distances) counts as launches alone. Linear layers that are swapped for ours are calls of ``linear`` like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..config import ModelConfig
from ..models.launches import ELEMENTWISE
from ..models.read import ModelInfo

LIBRARY = "library"
"""Stands among ops for what another library computes."""


class Product(NamedTuple):
    """A linear layer, or a convolution as what it is over its patches. rows: for each position; library: the library computes it,
    even where linear layers are swapped for ours; embeddings: rows are for each of what comes of an item."""

    in_features: int
    out_features: int
    rows: float = 1.0
    library: bool = False
    embeddings: bool = False


class Parts(NamedTuple):
    """An item that falls apart: positions of the parts, each of which sees itself alone; windows: likewise in windowed layers;
    embeddings: how many come of it, where products ask for them."""

    parts: tuple[int, ...]
    windows: tuple[int, ...] = ()
    embeddings: int = 0


Item = int | Parts
"""What is encoded at once: so many positions, all of which see each other, or parts of them."""


class EncoderCall(NamedTuple):
    """``number`` calls of the op whose time they take. rows: for each position; library: the library computes it; windowed: of
    attention, in windowed layers; embeddings: rows are for each of these."""

    op: str
    dims: Mapping[str, float]
    number: int
    rows: float = 1.0
    library: bool = True
    windowed: bool = False
    embeddings: bool = False


_ACTIVATION_PASSES: Mapping[str, tuple[int, ...]] = {"quick_gelu": (2, 2, 3), "gelu_new": (2, 2, 2, 3, 2, 2, 2, 3)}
"""Of activations that are several launches of PyTorch's: for each of its numbers, those that each reads and writes."""


def _rms_passes(element: int) -> tuple[int, ...]:
    """Bytes that each launch reads and writes for each of its numbers: squares, means of rows, a constant, roots and two products
    in float32, and the ways there and back."""
    computed = 2 * 4, 4, 0, 0, element + 4
    return (*computed, 2 * 4) if element == 4 else (element + 4, *computed, 4 + element, 2 * element)


@dataclass(frozen=True)
class EncoderStack:
    """A plain transformer, all of whose positions see each other: each item (the text of a request, an image) by itself.

    intermediate_size  of the MLPs; gated: they have a gate beside
    norm               rms or layer; num_norms: outside the layers, which have two each
    activation         by its name in config.json
    passes             of each layer over its hidden states, beside norms, activation and sums with the residual: factors, copies
    others             launches outside the layers that are no products and no norms, and take no longer than a launch does
    windowed_layers    of num_layers, those in which positions see a window of their own
    fused_qkv          one product makes queries, keys and values, not three
    own_linears        linear layers are swapped for ours
    before, behind     products outside the layers
    kept_states        hidden states of layers that are kept until the last is done
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    gated: bool = False
    norm: str = "layer"
    num_norms: int = 1
    activation: str = "gelu"
    passes: int = 0
    others: int = 0
    fused_qkv: bool = False
    windowed_layers: int = 0
    own_linears: bool = False
    before: tuple[Product, ...] = ()
    behind: tuple[Product, ...] = ()
    kept_states: int = 0

    def calls(self, element: int) -> Iterator[EncoderCall]:
        """Of each item. element: bytes of a number."""
        hidden, inner, width = self.hidden_size, self.intermediate_size, self.num_heads * self.head_dim
        qkv = [Product(hidden, 3 * width)] if self.fused_qkv else [Product(hidden, width)] * 3
        layer = [*qkv, Product(width, hidden), *[Product(hidden, inner)] * (1 + self.gated), Product(inner, hidden)]
        for product, count in [*((p, 1) for p in (*self.before, *self.behind)), *((p, self.num_layers) for p in layer)]:
            dims = {"in_features": product.in_features, "out_features": product.out_features}
            is_theirs = product.library or not self.own_linears
            yield EncoderCall("linear", dims, count, product.rows, is_theirs, embeddings=product.embeddings)
        heads = {"num_heads": self.num_heads, "num_kv_heads": self.num_heads, "head_dim": self.head_dim}
        for windowed, count in ((False, self.num_layers - self.windowed_layers), (True, self.windowed_layers)):
            yield EncoderCall("paged_attention_prefill", {**heads, "window": 0, "causal": 0}, count, windowed=windowed)
        norm, depth = (2 * element,) if self.norm == "layer" else _rms_passes(element), self.num_layers
        yield from (EncoderCall(ELEMENTWISE, {}, 2 * depth + self.num_norms, hidden * moved) for moved in norm)
        yield EncoderCall(ELEMENTWISE, {}, 2 * depth, hidden * 3 * element)
        yield EncoderCall(ELEMENTWISE, {}, self.passes * depth, hidden * 2 * element)
        activation = _ACTIVATION_PASSES.get(self.activation, (2,))
        yield from (EncoderCall(ELEMENTWISE, {}, depth, inner * moved * element) for moved in (*activation, *[3] * self.gated))
        yield EncoderCall(ELEMENTWISE, {}, self.others, 0.0)

    def activation_elements(self) -> int:
        """Of a position, at once: its hidden state, its residual, what is kept, and the widest input and output of a layer."""
        return (2 + self.kept_states) * self.hidden_size + max(
            4 * self.num_heads * self.head_dim, (2 + self.gated) * self.intermediate_size
        )


@dataclass(frozen=True)
class Encoders:
    """Of a model, on the devices of its first stage. weight_bytes: of all; max_positions: of an item."""

    stacks: tuple[EncoderStack, ...] = ()
    weight_bytes: int = 0
    max_positions: int = 0

    @classmethod
    def of(cls, config: ModelConfig, model: ModelInfo) -> Encoders:
        """None of a model that encodes nothing. Raises ValueError for an encoder whose cost is not known."""
        if model.encoding is None or model.encoding.max_images is not None:
            return cls()
        model_type = model.config["model_type"]
        if model_type not in _STACKS:
            raise ValueError(
                f"model {model.name!r} cannot be simulated: what an encoder of model_type {model_type!r} costs is not known; it is "
                f"of {', '.join(_STACKS)}"
            )
        from ..models.encoder import encoder_bytes  # seconds to import, and needed for few models
        from ..models.library import library_config

        found = library_config(config, model.folder, model_type)
        return cls((_STACKS[model_type](found),), encoder_bytes(config, model), model.encoding.max_tokens)

    def activation_bytes(self, element: int) -> int:
        """Estimate of what the longest item holds at once beside weights. element: bytes of a number."""
        return self.max_positions * element * max((stack.activation_elements() for stack in self.stacks), default=0)


NO_ENCODERS = Encoders()


def _of_t5(found: Any) -> EncoderStack:
    sizes = found.d_model, found.d_ff, found.num_layers, found.num_heads, found.d_kv
    return EncoderStack(*sizes, gated=found.is_gated_act, norm="rms", activation=found.dense_act_fn, passes=1, others=22)


def _of_bart(found: Any) -> EncoderStack:
    heads = found.encoder_attention_heads
    sizes = found.d_model, found.encoder_ffn_dim, found.encoder_layers, heads, found.d_model // heads
    return EncoderStack(*sizes, activation=found.activation_function, others=4)


def _of_whisper(found: Any) -> EncoderStack:
    """Two convolutions of width 3 over frames of sound, the second of which takes every other step."""
    before = Product(3 * found.num_mel_bins, found.d_model, 2.0), Product(3 * found.d_model, found.d_model)
    return replace(_of_bart(found), before=before, passes=5, others=5)


_STACKS: Mapping[str, Callable[[Any], EncoderStack]] = {"t5": _of_t5, "bart": _of_bart, "whisper": _of_whisper}
