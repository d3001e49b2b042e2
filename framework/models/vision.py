"""Models that read images: a tower of the transformers library before the native decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..config import ModelConfig
from . import cogvlm, internvl_chat, phi3_v
from .architecture import Architecture
from .own_layouts import check_positive, check_sizes

IMAGE_TYPES: Final = (
    cogvlm.TYPE,
    "gemma3",
    "internvl",
    internvl_chat.TYPE,
    "llava",
    "llava_next",
    "mllama",
    phi3_v.TYPE,
    "qwen2_5_vl",
    "qwen2_vl",
)
"""Types of models whose images can be served."""
RENAMES: Final = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.output.", "output."),
    (f"{phi3_v.PREFIX}wte.", "model.embed_tokens."),
)
"""Prefixes of the text model in checkpoints of such models, and ours."""
TOWER: Final = (
    r"^(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|image_newline)(\.|$)"
    r"|^(mlp1|model\.vision_embed_tokens|model\.vision)\."
)
"""Tensors that are the library's business."""
_TOWER_SIZES: Final = (
    *("image_size", "patch_size", "spatial_merge_size", "temporal_patch_size", "window_size", "in_channels", "depth"),
    *("hidden_size", "embed_dim", "intermediate_size", "out_hidden_size", "num_hidden_layers", "num_attention_heads", "num_heads"),
)
"""Fields of towers, as far as a tower has them."""


@dataclass(frozen=True)
class Vision:
    """Of a model that reads images.

    model_type   of its config.json
    token_id     of the placeholders that embeddings replace; its name where config.json does not number it
    placeholder_id  of the token that stands for an image in a prompt: the same, but of Gemma 3
    placeholder  the text that does, where that is not the token's; {} in it is the number of the image, from 1 on
    merge        side of the square of patches that make one embedding, where positions are three (Qwen2-VL); None: they are not
    whole        tokens of an image see each other (Gemma 3)
    tile         vectors of one of the tiles, ``max_tiles`` at most, that an image is cut into, where layers attend to them and
                 none stands among the tokens (Llama 3.2); None: embeddings do
    experts      tokens of an image but its last have weights of their own in every layer, all between its first and its last stand
                 at one position, and a prompt has one image (CogVLM)
    """

    model_type: str
    token_id: int | str
    placeholder_id: int | str
    placeholder: str | None = None
    merge: int | None = None
    whole: bool = False
    tile: int | None = None
    max_tiles: int = 1
    experts: bool = False

    @property
    def has_positions(self) -> bool:
        """Whether tokens of an image stand elsewhere than one behind the other."""
        return self.merge is not None or self.experts


def with_type(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config.json, with the type that those of CogVLM leave out."""
    unnamed = not found.get("model_type") and found.get("architectures") == [cogvlm.ARCHITECTURE]
    return {**found, "model_type": cogvlm.TYPE} if unnamed else found


def reads_images(found: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model with a tower for images. Of Gemma 3 there are some without."""
    return found.get("model_type") in IMAGE_TYPES and (found["model_type"] != "gemma3" or "vision_config" in found)


def read_vision(config: ModelConfig, found: Mapping[str, Any], folder: Path | None) -> tuple[dict[str, Any], Vision]:
    """config.json of such a model with the fields of its text model on top, as the library completes both, and what there is to
    know of its images. Raises ValueError for what cannot be served."""
    from .library import library_config  # slow to import, and needed for few models

    model_type = found["model_type"]
    kept = {name: found[name] for name in ("dtype", "torch_dtype", "eos_token_id", "architectures") if found.get(name) is not None}
    if model_type == internvl_chat.TYPE:
        internvl_chat.library_config(found)  # refuses what its modules do not compute
        token, text = internvl_chat.EMBEDDING, internvl_chat.text_fields(found)
        own = {"architectures": text.get("architectures")}  # InternVLChatModel, by whose end it would pool
        merged = {**found, **text, **kept, **own, **_given(config, text)}
        return merged, Vision(model_type, token, token, internvl_chat.PLACEHOLDER)
    if model_type == phi3_v.TYPE:
        phi3_v.tower_sizes(found)  # refuses what its modules do not compute
        return {**found, "model_type": "phi3"}, Vision(model_type, phi3_v.EMBEDDING, phi3_v.EMBEDDING, phi3_v.PLACEHOLDER)
    if model_type == cogvlm.TYPE:
        cogvlm.tower_sizes(found)  # likewise
        pad = cogvlm.placeholder_id(found)
        return dict(found), Vision(model_type, pad, pad, cogvlm.PLACEHOLDER, experts=True)
    theirs = library_config(config, folder, model_type)
    text = theirs.get_text_config().to_dict()
    tied = getattr(theirs, "tie_word_embeddings", None)
    merged = {**found, **text, **({} if tied is None else {"tie_word_embeddings": tied}), **kept, **_given(config, text)}
    if model_type == "mllama":
        tower = theirs.vision_config
        check_sizes(vars(tower), "image_size", "patch_size", "max_num_tiles", "num_hidden_layers", within="vision_config")
        taken = tower.intermediate_layers_indices
        if not all(0 <= layer <= tower.num_hidden_layers for layer in taken):
            raise ValueError(
                f"the model's config.json (or model.architecture) has vision_config.intermediate_layers_indices={taken}, expected "
                f"numbers from 0 to num_hidden_layers={tower.num_hidden_layers}"
            )
        grids = [list(grid) for grid in tile_grids(tower.max_num_tiles)]
        if [list(grid) for grid in tower.supported_aspect_ratios] != grids:  # its embeddings are by their numbers
            raise ValueError(
                f"the model's config.json (or model.architecture) has vision_config.supported_aspect_ratios="
                f"{tower.supported_aspect_ratios}, but processors number those of max_num_tiles={tower.max_num_tiles} so: {grids}"
            )
        tile = (tower.image_size // tower.patch_size) ** 2 + 1
        return merged, Vision(model_type, theirs.image_token_id, theirs.image_token_id, tile=tile, max_tiles=tower.max_num_tiles)
    _check_tower(model_type, theirs)
    window = merged.get("sliding_window")
    if model_type == "gemma3" and window is not None and theirs.mm_tokens_per_image > window:
        raise ValueError(
            f"model {config.name!r} cannot run: an image of it has {theirs.mm_tokens_per_image} tokens (mm_tokens_per_image), but "
            f"its windows, in which they see each other, are of {window} (sliding_window)"
        )
    merge = theirs.vision_config.spatial_merge_size if model_type in ("qwen2_vl", "qwen2_5_vl") else None
    is_whole, token_id = model_type == "gemma3", theirs.image_token_id
    return merged, Vision(model_type, token_id, theirs.boi_token_index if is_whole else token_id, None, merge, is_whole)


def _check_tower(model_type: str, theirs: Any) -> None:
    """Raises ValueError for sizes of a tower that nothing could be computed with. theirs: the library's configuration."""
    tower = dict(vars(theirs.vision_config))
    for name in ("image_size", "patch_size") if model_type == "internvl" else ():
        if isinstance(sides := tower.get(name), list | tuple) and len(sides) == 2 and sides[0] == sides[1]:
            tower[name] = sides[0]
    check_sizes(tower, *(name for name in _TOWER_SIZES if name in tower), within="vision_config")
    if tower.get("image_size", math.inf) < tower["patch_size"]:
        raise ValueError(
            f"the model's config.json (or model.architecture) has vision_config.image_size={tower['image_size']}, expected "
            f"patch_size={tower['patch_size']} or more"
        )
    if model_type == "gemma3":
        check_sizes(vars(theirs), "mm_tokens_per_image")
    if model_type == "internvl":
        check_positive(vars(theirs), "downsample_ratio")
    if model_type == "llava_next":
        pairs = theirs.image_grid_pinpoints
        if not pairs or not all(_is_size(pair, tower["image_size"]) for pair in pairs):
            raise ValueError(
                f"the model's config.json (or model.architecture) has image_grid_pinpoints={str(pairs)[:80]}, expected pairs of "
                f"heights and widths, of vision_config.image_size={tower['image_size']} or more"
            )


def _is_size(pair: object, least: int) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(type(side) is int and side >= least for side in pair)


def tile_grids(most: int) -> Iterator[tuple[int, int]]:
    """All of at most so many tiles, in the order in which processors number them."""
    return ((first, second) for first in range(1, most + 1) for second in range(1, most // first + 1))


def _given(config: ModelConfig, text: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of fields of the text model."""
    return {name: value for name, value in config.architecture.items() if name in text and name != "model_type"}


def of_larger_model(architecture: Architecture) -> Architecture:
    """Of a text model in the checkpoint of one with a tower."""
    family = architecture.family
    renames = (*RENAMES, *(pair for pair in family.renames if pair not in RENAMES))
    return replace(architecture, family=replace(family, renames=renames, ignored=(*family.ignored, TOWER)))
