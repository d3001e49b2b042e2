"""From the messages of a conversation to the text of a prompt, and the images that stand in it."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..multimodal.places import ImagePlaces
from .images import check_reads_images, image_from_url

_OTHER_MEDIA = ("video", "video_url", "audio", "audio_url", "input_audio")
"""Templates of models that take them write placeholders for them, behind which there would be nothing."""


class ChatTemplate:
    """Of a tokenizer or its processor.

    tokenizer      None: there is no chat
    image_prompts  of a model that reads images among text; None: it does not, and no_images says why
    """

    def __init__(self, tokenizer: Any, image_prompts: ImagePlaces | None, no_images: str) -> None:
        self._tokenizer, self._image_prompts, self._no_images = tokenizer, image_prompts, no_images

    def take_images(
        self, messages: Sequence[Mapping[str, Any]], chat_template: str | None = None
    ) -> tuple[list[dict[str, Any]], list[Any]]:
        """Messages as the chat template takes them, and the images in their content. Raises ValueError for what is none,
        and for video and audio."""
        images: list[Any] = []
        takes_parts = _takes_parts(chat_template or self._own or "")
        return [self._without_images(message, images, takes_parts) for message in messages], images

    def _without_images(self, message: Mapping[str, Any], images: list[Any], takes_parts: bool) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, str) and self._image_prompts is not None:
            text = self._image_prompts.as_text(content)
            return {**message, "content": [{"type": "text", "text": text}] if takes_parts else text}
        if not isinstance(content, list | tuple):
            return dict(message)
        parts = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind in _OTHER_MEDIA or (isinstance(part, Mapping) and not part.keys().isdisjoint(_OTHER_MEDIA)):
                raise ValueError(f"a message's part must be text or an image, not video or audio; found {reprlib.repr(part)}")
            if kind in ("image", "image_url"):
                check_reads_images("a message", self._image_prompts, self._no_images)
                given = part.get(kind)
                url = given.get("url") if isinstance(given, Mapping) else given
                images.append(image_from_url(url, still=True) if kind == "image_url" or isinstance(url, str) else url)
                parts.append({"type": "image"})
            elif kind == "text" and isinstance(part.get("text"), str) and self._image_prompts is not None:
                parts.append({**part, "text": self._image_prompts.as_text(part["text"])})
            else:
                parts.append(part)
        if self._image_prompts is not None and self._image_prompts.is_spelled:
            numbers = iter(range(len(images) - sum(part == {"type": "image"} for part in parts) + 1, len(images) + 1))
            return {**message, "content": "\n".join(self._spelled(part, numbers) for part in parts)}
        return {**message, "content": parts}

    def _spelled(self, part: Any, numbers: Iterator[int]) -> str:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image" and self._image_prompts is not None:
            return self._image_prompts.nth_placeholder(next(numbers))
        if kind != "text" or not isinstance(text := part.get("text"), str):
            raise ValueError(f"a message's part must be text or an image; found {reprlib.repr(part)}")
        return text

    @property
    def _own(self) -> str | None:
        """Older checkpoints keep it with the processor."""
        own = getattr(self._tokenizer, "chat_template", None)
        return own if own or self._image_prompts is None else self._image_prompts.chat_template

    def render(
        self,
        messages: list[dict[str, Any]],
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_args: Any,
    ) -> str:
        """The text of a conversation, by the tokenizer's chat template or the one given. Templates are run in a sandbox.

        Raises ValueError without a tokenizer or a template, and for whatever goes wrong in the template."""
        if self._tokenizer is None:
            raise ValueError("chat needs a tokenizer, and this engine has none")
        chat_template = chat_template or self._own
        if chat_template is None:
            raise ValueError("the model's tokenizer has no chat template: pass chat_template=..., or use generate with plain text")
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                chat_template=chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **template_args,
            )
        except Exception as error:  # templates can raise anything, and users may have written them
            raise ValueError(f"the chat template cannot render these messages: {str(error)[:500]}") from error


def _takes_parts(chat_template: str) -> bool:
    """Whether it goes through the parts of a message's content, also where that is text alone."""
    return "'content']" in chat_template and "'type'" in chat_template
