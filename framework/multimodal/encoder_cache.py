"""The books of the embeddings that the executor keeps of images. Pure bookkeeping; no tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from ..config import SchedulerConfig
from .items import ImageItem

if TYPE_CHECKING:
    from ..engine.request import Request
    from ..engine.step import StepInput


class EncoderCache:
    """Which images are encoded in which step, and which embeddings are kept until when.

    An image is encoded by the first step that computes one of its placeholders, once for all requests that hold it. Its embeddings
    stay as long as a request has computed a part of its placeholders, and then until room is needed; the least recently used go
    first. Without chunked prefill the budget takes the images of a prompt as one. Where layers attend to images, those of a request
    are encoded when it takes its seat, and of no use to it from then on: its layers keep what they make of them. One for which
    there is no room beside others of its step is forgotten by the next.

    whole        a chunk never ends within an image, whose tokens see each other
    num_queries  images so far that a request came to
    num_hits     of those, how many were there already
    num_encoded  images so far
    """

    def __init__(self, config: SchedulerConfig, whole: bool = False) -> None:
        self._budget, self._capacity, self._max_chunk = config.encoder_budget, config.encoder_cache, config.max_chunk
        self._whole, self._chunked = whole, config.chunked_prefill
        self._kept: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._num_kept = 0
        self._holders: dict[bytes, set[Request]] = {}
        self._encode: dict[bytes, ImageItem] = {}
        self._passing: dict[bytes, ImageItem] = {}  # encoded in this step, without room to be kept
        self._forgotten: list[bytes] = []
        self._left = self._budget
        self._used: set[bytes] = set()
        self.num_queries = self.num_hits = self.num_encoded = 0

    def check(self, images: Iterable[ImageItem]) -> None:
        """Raises ValueError for images of a prompt that could never be computed."""
        images = tuple(images)
        for image in images:
            if image.count > self._capacity:
                raise ValueError(
                    f"an image of the prompt has {image.count} embeddings, but {self._capacity} are kept "
                    "(scheduler.encoder_cache): give a smaller image, or raise it"
                )
            if self._whole and image.count > self._max_chunk:
                raise ValueError(
                    f"an image of the prompt has {image.count} tokens, which see each other and so are computed in one step, but a "
                    f"step takes {self._max_chunk} of a request: raise scheduler.max_num_batched_tokens (and max_chunk_tokens)"
                )
        if not self._chunked and (total := sum({image.key: image.count for image in images}.values())) > self._capacity:
            raise ValueError(
                f"the images of the prompt have {total} embeddings, and without chunked prefill one step needs them all, but "
                f"{self._capacity} are kept (scheduler.encoder_cache): give fewer, raise it, or set chunked_prefill"
            )

    def start_step(self) -> None:
        """What is scheduled from here on is another step."""
        self._left = self._budget
        self._used.clear()

    def fit(self, request: Request, start: int, count: int) -> int:
        """How many of the ``count`` tokens from ``start`` on can be computed in this step, which encodes what it needs for them.
        Without chunked prefill they are all that are left of the prompt."""
        end = start + count
        if not self._chunked:
            own = {image.key: image.count for image in request.images if image.end > start}
            new = [count for key, count in own.items() if key not in self._kept]
            if sum(new) > self._left < self._budget or not self._make_room(sum(new), own):
                return 0
        for image in request.images:
            if image.end <= start or image.start >= end:
                continue
            is_kept = image.key in self._kept
            if (self._whole and end < image.end) or not self._take(image):
                end = max(image.start, start)
                break
            if start <= image.start:
                self.num_queries += 1
                self.num_hits += is_kept
        for image in request.images:
            if image.start < end < image.end:
                self._holders.setdefault(image.key, set()).add(request)
            elif image.end <= end and start < image.end:
                self._drop(request, image.key)
        return end - start

    def has_budget(self, images: Iterable[ImageItem]) -> bool:
        """Whether this step can encode those of a request, to which layers attend, that are not there."""
        missing = {image.key: image.count for image in images if not self._is_there(image.key)}
        return sum(missing.values()) <= self._left or self._left == self._budget

    def attend(self, images: Iterable[ImageItem]) -> None:
        """A request takes its seat, to whose images layers attend: this step encodes those that are not there."""
        for image in images:
            is_there = self._is_there(image.key)
            self.num_queries += 1
            self.num_hits += is_there
            if not is_there and not self._make_room(image.count):
                self._spend(image)
                self._passing[image.key] = image
            elif image.key not in self._passing:
                self._keep(image)

    def release(self, request: Request) -> None:
        """It is not running any more."""
        for image in request.images:
            self._drop(request, image.key)

    def fill(self, step: StepInput) -> None:
        """Tells a step what it encodes and what it forgets."""
        step.images, self._encode = [*self._encode.values(), *self._passing.values()], {}
        step.forgotten, self._forgotten = self._forgotten, list(self._passing)
        self._passing = {}
        self.num_encoded += len(step.images)

    def lose(self, step: StepInput) -> None:
        """A step failed: nobody knows what it encoded and forgot."""
        for image in step.images:
            if image.key in self._kept:
                self._remove(image.key)
        self._forgotten += [*step.forgotten, *(image.key for image in step.images)]

    def replace(self, old: EncoderCache) -> None:
        """The next step forgets whatever ``old`` kept."""
        self._forgotten += [*old._forgotten, *old._kept]
        self.num_queries, self.num_hits, self.num_encoded = old.num_queries, old.num_hits, old.num_encoded

    def totals(self) -> dict[str, int]:
        """As ``EngineStats`` has them."""
        counts = {"num_image_queries": self.num_queries, "num_image_hits": self.num_hits}
        return {**counts, "num_images_encoded": self.num_encoded}

    def _take(self, image: ImageItem) -> bool:
        """Whether its embeddings are there in this step."""
        if image.key not in self._kept:
            is_too_much = self._chunked and image.count > self._left < self._budget
            if is_too_much or not self._make_room(image.count):
                return False
        self._keep(image)
        return True

    def _keep(self, image: ImageItem) -> None:
        """One that is kept, or for which there is room."""
        if image.key not in self._kept:
            self._spend(image)
            self._kept[image.key] = image.count
            self._num_kept += image.count
            self._encode[image.key] = image
        self._kept.move_to_end(image.key)
        self._used.add(image.key)

    def _spend(self, image: ImageItem) -> None:
        self._left -= min(image.count, self._left)

    def _is_there(self, key: bytes) -> bool:
        """In this step."""
        return key in self._kept or key in self._passing

    def _make_room(self, count: int, own: Container[bytes] = ()) -> bool:
        """Beside what is in use, and ``own``."""
        free = [key for key in self._kept if key not in self._used and key not in own and not self._holders.get(key)]
        if self._num_kept - sum(self._kept[key] for key in free) + count > self._capacity:
            return False
        for key in free:
            if self._num_kept + count <= self._capacity:
                break
            self._remove(key)
            if self._encode.pop(key, None) is None:
                self._forgotten.append(key)
        return True

    def _remove(self, key: bytes) -> None:
        self._num_kept -= self._kept.pop(key)

    def _drop(self, request: Request, key: bytes) -> None:
        if (holders := self._holders.get(key)) is not None:
            holders.discard(request)
            if not holders:
                del self._holders[key]
