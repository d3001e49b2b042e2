"""What towers for images cost: transformers of the library, each with its products before and behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..config import EngineConfig
from ..models import cogvlm, internvl_chat, phi3_v
from ..models.read import ModelInfo
from ..multimodal.items import ImageItem
from ..multimodal.sized import largest_image
from ..multimodal.support import images_refusal
from .encoders import Encoders, EncoderStack, Item, Parts, Product


@dataclass(frozen=True)
class Tower:
    """Of a model that reads images, each of which is encoded by itself.

    stack   what it computes
    tile    positions of each of the parts that an image is cut into, of which none sees another; None: all of an image's patches,
            as many as its size asks for, see each other (Qwen2-VL)
    joined  parts see each other, and padding is computed like them (Llama 3.2)
    window  (side, merge): but in windowed layers only those in squares of so many embeddings a side (Qwen2.5-VL)
    """

    stack: EncoderStack
    tile: int | None = None
    joined: bool = False
    window: tuple[int, int] | None = None

    @classmethod
    def of(cls, config: EngineConfig, model: ModelInfo) -> Tower | None:
        """None where an engine takes no images. Raises ValueError for a tower whose cost is not known."""
        if model.vision is None or images_refusal(config) is not None:
            return None
        name = model.vision.model_type
        if name == phi3_v.TYPE:
            return _of_phi3(*phi3_v.tower_sizes(model.config))
        if name == cogvlm.TYPE:
            return _of_cogvlm(cogvlm.tower_sizes(model.config))
        if name == internvl_chat.TYPE:
            return _of_internvl(internvl_chat.library_config(model.config))
        from ..models.library import library_config  # slow to import, and needed for few models

        return _TOWERS[name](library_config(config.model, model.folder, name))

    def encoders(self, config: EngineConfig, model: ModelInfo) -> Encoders:
        """With its weights, and the largest image that an engine takes."""
        from ..models.tower import tower_bytes  # seconds to import, and needed for few models

        return Encoders((self.stack,), tower_bytes(config.model, model), self._most_positions(config, model))

    def _most_positions(self, config: EngineConfig, model: ModelInfo) -> int:
        """Of the largest image; 0 where there is none."""
        if (inputs := largest_image(config, model)) is None:
            return 0
        item = self.item(ImageItem(0, 0, b"", inputs))
        return item if isinstance(item, int) else sum(item.parts)

    def item(self, image: ImageItem) -> Item:
        """What an image is for the stack, by the shapes of its inputs."""
        if self.tile is not None:
            count = math.prod(image.inputs["pixel_values"].shape[:-3])
            return Parts((count * self.tile,) if self.joined else (self.tile,) * count, embeddings=image.count)
        _, rows, columns = image.inputs["image_grid_thw"][0].tolist()
        count = rows * columns
        return count if self.window is None else Parts((count,), _windows(rows, columns, *self.window))


def _windows(rows: int, columns: int, side: int, merge: int) -> tuple[int, ...]:
    """Patches of each square of ``side`` x ``side`` embeddings, of ``merge`` x ``merge`` patches each; of those at the edges, what
    is there."""
    heights, widths = ([min(side, end - i) for i in range(0, end, side)] for end in (rows // merge, columns // merge))
    return tuple(height * width * merge**2 for height in heights for width in widths)


def _patches(found: Any, extra: int = 0) -> tuple[int, Product]:
    """Positions of a square, ``extra`` beside its patches; and the convolution that makes them. found: of the tower."""
    side, patch = (size[0] if isinstance(size, list | tuple) else size for size in (found.image_size, found.patch_size))
    count = (side // patch) ** 2
    return count + extra, Product(3 * patch**2, found.hidden_size, count / (count + extra), library=True)


def _of_llava(found: Any) -> Tower:
    """LLaVA and LLaVA-NeXT, before whose projector the positions of CLIP stand that are patches."""
    vision = found.vision_config
    if vision.model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise ValueError(
            f"the model's config.json (or model.architecture) has vision_config.model_type={vision.model_type!r}, and what such a "
            "tower costs is not known: it is of clip_vision_model and siglip_vision_model; "
            "model.limit_mm_per_prompt.image=0 serves text alone"
        )
    tile, conv = _patches(vision, vision.model_type == "clip_vision_model")
    layers = found.vision_feature_layer
    wide = vision.hidden_size * (1 if isinstance(layers, int) else len(layers))
    text = found.text_config.hidden_size
    behind = Product(wide, text, conv.rows), Product(text, text, conv.rows)
    return Tower(_plain(vision, conv, behind, vision.num_hidden_layers + 1), tile)


def _plain(vision: Any, conv: Product, behind: tuple[Product, ...], kept_states: int = 0) -> EncoderStack:
    hidden, heads = vision.hidden_size, vision.num_attention_heads
    sizes = hidden, vision.intermediate_size, vision.num_hidden_layers, heads, hidden // heads
    given: dict[str, Any] = {"own_linears": True, "before": (conv,), "behind": behind, "kept_states": kept_states}
    return EncoderStack(*sizes, activation=vision.hidden_act, **given)


def _of_gemma(found: Any) -> Tower:
    """Squares of patches are made one, and multiplied by no linear layer, but a parameter."""
    tile, conv = _patches(found.vision_config)
    rows = found.mm_tokens_per_image / tile
    behind = Product(found.vision_config.hidden_size, found.text_config.hidden_size, rows, library=True)
    return Tower(_plain(found.vision_config, conv, (behind,)), tile)


def _of_qwen(found: Any) -> Tower:
    vision = found.vision_config
    second = found.model_type == "qwen2_5_vl"
    hidden, merged = (vision.hidden_size if second else vision.embed_dim), vision.spatial_merge_size**2
    inner = vision.intermediate_size if second else int(hidden * vision.mlp_ratio)
    conv = Product(vision.in_channels * vision.temporal_patch_size * vision.patch_size**2, hidden, library=True)
    wide, text = hidden * merged, (vision.out_hidden_size if second else vision.hidden_size)
    stack = EncoderStack(
        hidden,
        inner,
        vision.depth,
        vision.num_heads,
        hidden // vision.num_heads,
        gated=second,
        norm="rms" if second else "layer",
        activation=vision.hidden_act,
        passes=12,  # rotation of queries and keys
        fused_qkv=True,
        own_linears=True,
        windowed_layers=sum(layer not in vision.fullatt_block_indexes for layer in range(vision.depth)) if second else 0,
        before=(conv,),
        behind=(Product(wide, wide, 1 / merged), Product(wide, text, 1 / merged)),
    )
    merge = vision.spatial_merge_size
    return Tower(stack, None, window=(vision.window_size // merge // vision.patch_size, merge) if second else None)


def _of_internvl(found: Any) -> Tower:
    tile, conv = _patches(found.vision_config, 1)
    ratio, text = found.downsample_ratio, found.text_config.hidden_size
    rows = conv.rows * ratio**2
    behind = Product(int(found.vision_config.hidden_size / ratio**2), text, rows), Product(text, text, rows)
    return Tower(replace(_plain(found.vision_config, conv, behind), passes=2), tile)


def _of_mllama(found: Any) -> Tower:
    """Positions of a tile are padded to a multiple of 8, and an image to the most tiles; what is padding goes to no projector."""
    vision = found.vision_config
    count, conv = _patches(vision, 1)
    tile = -(-count // 8) * 8
    conv = conv._replace(rows=(count - 1) / tile)
    hidden, heads, depth = vision.hidden_size, vision.attention_heads, vision.num_hidden_layers + vision.num_global_layers
    behind = Product(vision.vision_output_dim, found.text_config.hidden_size, embeddings=True)
    sizes = hidden, vision.intermediate_size, depth, heads, hidden // heads
    kept = vision.num_hidden_layers + 1
    given: dict[str, Any] = {"own_linears": True, "before": (conv,), "behind": (behind,), "kept_states": kept}
    stack = EncoderStack(*sizes, num_norms=2, activation=vision.hidden_act, **given)
    return Tower(stack, tile, joined=True)


def _of_phi3(hidden: int, text: int) -> Tower:
    """CLIP, and a projector of four patches each, and of what separates them."""
    tile, inner = (2 * phi3_v.GRID) ** 2 + 1, 4 * hidden
    conv = Product(3 * (phi3_v.SIDE // (2 * phi3_v.GRID)) ** 2, hidden, (tile - 1) / tile, library=True)
    behind = Product(inner, text, embeddings=True), Product(text, text, embeddings=True)
    sizes = hidden, inner, 24, hidden // phi3_v.HEAD_DIM, phi3_v.HEAD_DIM
    given: dict[str, Any] = {"own_linears": True, "before": (conv,), "behind": behind, "kept_states": 24 + 1}
    return Tower(EncoderStack(*sizes, activation="quick_gelu", **given), tile)


def _of_cogvlm(sizes: cogvlm.TowerSizes) -> Tower:
    tile, conv = _patches(sizes, 1)
    hidden, text, inner, rows = sizes.hidden_size, sizes.text_size, sizes.text_inner, conv.rows
    joins: tuple[Product, ...] = ()
    if sizes.joins:
        rows /= 4
        joins = (Product(4 * hidden, text, rows, library=True),)
    gated = Product(text, inner, rows), Product(text, inner, rows), Product(inner, text, rows)
    behind = (*joins, Product(text if sizes.joins else hidden, text, rows), *gated)
    own = hidden, sizes.intermediate_size, sizes.num_hidden_layers, sizes.num_heads, hidden // sizes.num_heads
    return Tower(EncoderStack(*own, fused_qkv=True, own_linears=True, before=(conv,), behind=behind), tile)


_TOWERS: Mapping[str, Callable[[Any], Tower]] = {
    "llava": _of_llava,
    "llava_next": _of_llava,
    "qwen2_vl": _of_qwen,
    "qwen2_5_vl": _of_qwen,
    "gemma3": _of_gemma,
    "internvl": _of_internvl,
    "mllama": _of_mllama,
}
