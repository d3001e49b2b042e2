"""What a run leaves behind, small enough for a hundred million tokens: a number per token, and sums over steps."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..engine.metrics import DraftCounts


@dataclass
class RequestRecord:
    """What happened to one request. Times are seconds since the start of the run.

    token_times_s  when each output token came out of the engine
    finish_reason  stop, length, ...; None if it was refused
    error          why it was refused, or what failed while it ran; None otherwise
    replica        the engine that served it
    num_encoder_tokens  that the encoder of an encoder-decoder gave, whose decoder read the prompt tokens; 0: it is none
    num_known_tokens  as of a WorkloadRequest
    num_image_tokens  tokens of the prompt that stand for its images
    """

    request_id: str
    user: int
    arrival_s: float
    num_prompt_tokens: int
    token_times_s: Sequence[float] = field(default_factory=lambda: array("d"))
    finish_reason: str | None = None
    error: str | None = None
    replica: int = 0
    priority: int = 0
    num_known_tokens: int | None = None
    num_images: int = 0
    num_image_tokens: int = 0
    num_encoder_tokens: int = 0

    @property
    def status(self) -> str:
        """ok, refused (it never ran), or failed (an error ended it)."""
        if self.error is None and self.finish_reason != "error":
            return "ok"
        return "refused" if self.finish_reason is None else "failed"


@dataclass
class StepStatistics:
    """Of an engine's steps. A mean is over time: a step counts as long as the state that it left lasted, idle time included.

    Of ``kv_usage`` (fraction of the KV blocks that requests hold), ``num_running`` and ``num_waiting``, in this order:
    areas, maxima, last  integral over the time between the first step's end and the last one's; largest value; value now
    """

    num_steps: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    areas: tuple[float, float, float] = (0.0, 0.0, 0.0)
    maxima: tuple[float, float, float] = (0.0, 0.0, 0.0)
    last: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def add(self, end_s: float, kv_usage: float, num_running: int, num_waiting: int, count: int = 1) -> None:
        """Takes in a step that ended ``end_s`` after the start of the run and left this state; or ``count`` of them, the last of
        which ended then, that all left the state as the step before them had."""
        state = (kv_usage, num_running, num_waiting)
        if self.num_steps:
            (a, b, c), (x, y, z), lasted_s = self.areas, self.last, end_s - self.last_s
            self.areas = (a + x * lasted_s, b + y * lasted_s, c + z * lasted_s)
        else:
            self.first_s = end_s
        if state != self.last:
            (a, b, c), (x, y, z) = self.maxima, state
            self.maxima = (x if x > a else a, y if y > b else b, z if z > c else c)
            self.last = state
        self.num_steps += count
        self.last_s = end_s


@dataclass
class RunRecord:
    """Everything that metrics are computed from. ``steps``: of each engine; none of a system that does not show its steps; totals
    of images are as in EngineStats."""

    requests: list[RequestRecord] = field(default_factory=list)
    steps: list[StepStatistics] = field(default_factory=list)
    num_engines: int = 1
    num_preemptions: int = 0
    num_chunked_prefills: int = 0
    num_denoising_passes: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    num_image_queries: int = 0
    num_image_hits: int = 0
    num_images_encoded: int = 0
    drafts: DraftCounts = field(default_factory=DraftCounts)
