"""What is to be made of a prompt's hidden states: names and defaults as users of vLLM know them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from .sampling_params import RequestOutputKind, SamplingParams, is_integer

if TYPE_CHECKING:
    import numpy as np

PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]
TASKS: tuple[PoolingTask, ...] = get_args(PoolingTask)
TOKEN_TASKS: tuple[PoolingTask, ...] = ("token_embed", "token_classify")
"""Those that give a vector per token of the prompt."""


@dataclass
class PoolingParams:
    """Parameters of one request to a pooling model.

    task            embed or classify: one vector; token_embed or token_classify: one per token. None: what the model is for
    dimensions      of an embedding, its first ones, where the model was trained so (matryoshka). None: all
    use_activation  normalize embeddings, make probabilities of scores. None: as the model says
    step_tag_id, returned_token_ids   of a model that judges steps: the token that ends one, and which classes are wanted. None: the
                    model's
    skip_reading_prefix_cache  compute the whole prompt

    ``second_text`` is filled in for pairs of texts: the first token of the second, from which on tokens have another type; and
    by the engine ``num_unpooled``, tokens of an instruction at the prompt's start, which a mean leaves out, and ``pixels``, the
    prompt where that is an image, float32 [3, height, width].
    Raises ValueError naming field, value and range; ``validate`` does so again after changes.
    """

    dimensions: int | None = None
    use_activation: bool | None = None
    task: PoolingTask | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    skip_reading_prefix_cache: bool | None = None

    second_text: int | None = field(default=None, init=False)
    num_unpooled: int = field(default=0, init=False)
    pixels: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.validate()

    @property
    def output_kind(self) -> RequestOutputKind:
        """There is one output, at the end."""
        return RequestOutputKind.FINAL_ONLY

    def validate(self) -> None:
        """Checks every field. Raises ValueError."""
        _require(self.task is None or self.task in TASKS, "task", self.task, f"one of {', '.join(TASKS)}, or None")
        for name, least in (("dimensions", 1), ("step_tag_id", 0)):
            value = getattr(self, name)
            _require(value is None or (is_integer(value) and value >= least), name, value, f"an integer >= {least} or None")
        for name in ("use_activation", "skip_reading_prefix_cache"):
            value = getattr(self, name)
            _require(value is None or isinstance(value, bool), name, value, "True, False or None")
        ids = self.returned_token_ids
        if ids is not None:
            fits = isinstance(ids, list) and ids and all(is_integer(token) and token >= 0 for token in ids)
            _require(fits, "returned_token_ids", ids, "a list of token ids that is not empty, or None")

    def clone(self) -> PoolingParams:
        """A copy that shares nothing with this one."""
        return copy.deepcopy(self)

    def sampling(self) -> SamplingParams:
        """Of a request that samples nothing."""
        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            seed=0,
            output_kind=self.output_kind,
            skip_reading_prefix_cache=self.skip_reading_prefix_cache,
        )


def _require(condition: Any, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"PoolingParams: {name}={value!r} cannot work: it must be {expected}")
