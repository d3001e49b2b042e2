"""From prompts with images to tokens and what the model's tower takes, by the library's processor."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..engine.encoding import ImageViews
from ..engine.images import as_rgb, checked_image, unreadable
from ..models.cogvlm import TYPE as COGVLM
from ..models.internvl_chat import TYPE as INTERNVL_CHAT
from ..models.phi3_v import TYPE as PHI3_V
from .items import ImageItem
from .places import BREAK, ImagePlaces, PreparedImage

NOT_INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "text_replacement_offsets", "num_crops")
"""What a processor returns beside that which the tower takes."""


class CrossedImages:
    """Called as a processor of the library is, for one image that layers attend to. processor: of the library, which would tell
    which tokens see it, too; we know."""

    def __init__(self, processor: Any, tower: Any) -> None:
        """tower: the library's configuration of it. Raises ValueError for tiles that it does not take."""
        self.chat_template, self._processor = processor.chat_template, processor
        images, side, tiles = processor.image_processor, tower.image_size, tower.max_num_tiles
        height, width = images.size["height"], images.size["width"]
        if (height, width, images.max_image_tiles) != (side, side, tiles):  # of another number, shapes have other ids, too
            raise ValueError(
                f"it makes {images.max_image_tiles} tiles of {height} x {width} (max_image_tiles, size), but the tower takes "
                f"{tiles} of {side} x {side} (max_num_tiles, image_size of vision_config)"
            )

    def begun(self, text: str) -> str:
        """A prompt's text with what begins one, behind the images at its start, unless that stands in it."""
        from transformers.models.mllama.processing_mllama import build_string_from_input

        bos: str | None = self._processor.tokenizer.bos_token
        return text if bos is None else build_string_from_input(text, bos, self._processor.image_token)

    def __call__(self, images: Sequence[np.ndarray], text: Sequence[str], input_data_format: str, **_: Any) -> dict[str, Any]:
        """Its tiles, with padding, how they lie and which are there; and its placeholder, which stays."""
        found = self._processor.image_processor(list(images), input_data_format=input_data_format, return_tensors="np")
        tiles = {name: found[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}
        return {**tiles, "text_replacement_offsets": [[{"replacement": text[0]}]]}


class ImagePrompts(ImagePlaces):
    """Prompts of the model in ``folder``, whose text has a placeholder for each image.

    config               config.json
    model_type .. experts  as ``Vision`` has them
    views                of a model whose layers attend to images; None: their embeddings take the place of tokens
    most                 images in a prompt; None: no limit
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        tokenizer: Any,
        model_type: str,
        token_id: int | str,
        placeholder_id: int | str,
        placeholder: str | None = None,
        merge: int | None = None,
        whole: bool = False,
        experts: bool = False,
        views: ImageViews | None = None,
        most: int | None = None,
    ) -> None:
        """Raises ValueError for a tokenizer without the tokens that images need."""
        super().__init__(model_type, experts, whole, views, most)
        self._folder, self._config, self._merge, self._tokenizer = folder, config, merge, tokenizer
        self.token_id, self.token_name = self._token(token_id)
        self.placeholder_id, stands = self._token(placeholder_id)
        self.placeholder, self.is_spelled = placeholder or stands, placeholder is not None
        self._pattern = re.compile(re.escape(self.placeholder).replace(r"\{\}", r"\d+"))
        self._spelled = re.compile("|".join((re.escape(self.token_name), re.escape(stands), self._pattern.pattern)))

    def _token(self, given: int | str) -> tuple[int, str]:
        """Its number and its name."""
        number: int = self._tokenizer.convert_tokens_to_ids(given) if isinstance(given, str) else given
        name: str | None = None if number is None else self._tokenizer.convert_ids_to_tokens(number)
        if not name or (isinstance(given, str) and name != given):
            raise ValueError(f"the tokenizer has no token {given}, which stands for images by the model's config.json")
        return number, name

    @property
    def chat_template(self) -> str | None:
        return self._processor.chat_template

    def of_text(
        self, text: str, images: Sequence[Any], encode: Callable[[str], list[int]]
    ) -> tuple[list[int], tuple[ImageItem, ...]]:
        pieces, found = self._pattern.split(text), self._pattern.findall(text)
        self._check_placeholders(len(found), images)
        if found != (expected := [self.nth_placeholder(nth) for nth in range(1, len(found) + 1)]):
            raise ValueError(f"the prompt has the placeholders {', '.join(found)}; expected {', '.join(expected)}")
        prepared = [self.prepared(image) for image in images]
        if prepared and isinstance(self._processor, CrossedImages):
            pieces = self._pattern.split(self._processor.begun(text))
        if self._model_type in (COGVLM, PHI3_V):  # their pieces are texts of their own
            ids, encode_later = list[int](), self._encode if self._model_type == COGVLM else encode
            for piece, image in zip(pieces, prepared):
                ids += [*self._unbroken(piece, encode_later if ids else encode), *image.token_ids]
            if pieces[-1] or not prepared:
                ids += self._unbroken(pieces[-1], encode_later if prepared else encode)
            return ids, self._placed(ids, prepared)
        whole = "".join(part for piece, found in zip(pieces, prepared) for part in (piece, found.text)) + pieces[-1]
        ids = self._unbroken(whole, encode)
        return ids, self._placed(ids, prepared)

    def _unbroken(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Token ids of a text in which some placeholders stand for none."""
        parts = text.split(BREAK)
        return [token for nth, part in enumerate(parts) for token in (self._encode(part) if nth else encode(part))]

    def as_text(self, text: str) -> str:
        return self._spelled.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)

    def nth_placeholder(self, nth: int) -> str:
        return self.placeholder.replace("{}", str(nth))

    def prepared(self, image: Any) -> PreparedImage:
        image, processor = checked_image(image, still=True), self._processor
        try:
            # Of an image with a side of 1 or 3 the library would take that for its colors.
            pixels = as_rgb(image)
        except Exception as error:  # Pillow reads pixels only now, and its decoders raise anything
            raise unreadable(error) from error
        try:
            found = processor(
                images=[pixels],
                text=[self.placeholder],
                input_data_format="channels_last",
                return_text_replacement_offsets=True,
                return_tensors="np",
            )
            text = found["text_replacement_offsets"][0][0]["replacement"]
        except Exception as error:  # processors check what they are given each in its way
            raise ValueError(
                f"an image of {image.size[0]} x {image.size[1]} cannot work: {type(processor).__name__} of transformers says "
                f"{type(error).__name__}: {str(error)[:300]}"
            ) from error
        inputs = {name: np.asarray(value) for name, value in found.items() if name not in NOT_INPUTS}
        digest = blake2b(digest_size=16)
        for name, value in sorted(inputs.items()):
            digest.update(f"{name} {value.dtype} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes())
        ids, grid = self._encode(text), None
        if self._merge is not None:
            _, rows, columns = inputs["image_grid_thw"][0].tolist()
            grid = rows // self._merge, columns // self._merge
        places = np.flatnonzero(np.array(ids) == self.token_id)
        if len(places) and places[-1] - places[0] != len(places) - 1:
            raise ValueError(
                "the processor cuts images into several parts (pan and scan), which this version does not serve: set "
                f"do_pan_and_scan=false in the preprocessor_config.json in {self._folder}"
            )
        return PreparedImage(text, ids, len(places), digest.digest(), inputs, grid)

    def _encode(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return found

    @functools.cached_property
    def _processor(self) -> Any:
        """The library's, of its image processor and our tokenizer: without the part for videos, which would import torchvision."""
        if self._model_type == INTERNVL_CHAT:
            from .tiles import TiledImages

            return TiledImages(self._config)
        if self._model_type == PHI3_V:
            from .crops import CroppedImages

            return CroppedImages(self._folder)
        if self._model_type == COGVLM:
            from .squares import SquareImages

            return SquareImages(self._config, self._tokenizer.convert_ids_to_tokens(self.token_id))
        import transformers
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

        name = PROCESSOR_MAPPING_NAMES[self._model_type]
        try:
            module = importlib.import_module(f"transformers.models.{self._model_type}.processing_{self._model_type}")
            theirs: Any = getattr(module, name)
            images = transformers.AutoImageProcessor.from_pretrained(self._folder, trust_remote_code=False, backend="pil")
            options = theirs.get_processor_dict(self._folder)[0]
            parts = ("image_processor", "tokenizer")
            kind = type(name, (theirs,), {"get_attributes": classmethod(lambda cls: list(parts))})
            known = {key: value for key, value in options.items() if key not in (*parts, "video_processor", "processor_class")}
            found = kind(images, self._tokenizer, **known)
            if found.image_token != self.placeholder:
                raise ValueError(f"it calls an image {found.image_token!r}, and the model's config.json {self.placeholder!r}")
            if self.views is None:
                return found
            return CrossedImages(found, transformers.MllamaConfig(vision_config=self._config.get("vision_config")).vision_config)
        except Exception as error:  # files are missing, no JSON, of another model, the tokenizer lacks a token, ...
            raise ValueError(
                f"the model cannot take images: of the processor in {self._folder} transformers {transformers.__version__} says "
                f"{type(error).__name__}: {str(error)[:300]}"
            ) from error
