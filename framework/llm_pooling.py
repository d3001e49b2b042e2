"""What ``LLM`` offers of models that pool: embeddings, classes, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from .engine.pooling import PoolingInputs, generates
from .engine.prompts import EngineInput, Prompt
from .outputs import RequestOutput
from .pooling_outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
    classification_output,
    embedding_output,
    pooling_output,
    vector,
)
from .pooling_params import PoolingParams, PoolingTask

if TYPE_CHECKING:
    from .engine.engine import Engine
    from .replicated_engine import ReplicatedEngine


class PoolingMethods:
    """Of an engine whose model pools. All of them take ``truncate_prompt_tokens``: most tokens that are left of a text, -1 = as
    many as the model takes; and ``prompt_name``: which of the texts that came with the model stands before each.

    Raise ValueError, before anything runs, for what the model cannot do, and RuntimeError as ``generate`` does."""

    if TYPE_CHECKING:

        @property
        def _front(self) -> Engine | ReplicatedEngine: ...

        def _run(self, inputs: list[EngineInput], params: Any, use_tqdm: bool, priority: Any) -> list[RequestOutput]: ...

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: bool = True,
        truncate_prompt_tokens: int | None = None,
        prompt_name: str | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """One vector per prompt, normalized as the model says."""
        found = self._pool(prompts, pooling_params, "embed", use_tqdm, truncate_prompt_tokens, prompt_name)
        return [embedding_output(output) for output in found]

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: bool = True,
        truncate_prompt_tokens: int | None = None,
        prompt_name: str | None = None,
    ) -> list[ClassificationRequestOutput]:
        """The probabilities of the model's classes, for each prompt."""
        found = self._pool(prompts, pooling_params, "classify", use_tqdm, truncate_prompt_tokens, prompt_name)
        return [classification_output(output) for output in found]

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        pooling_task: PoolingTask | None = None,
        use_tqdm: bool = True,
        truncate_prompt_tokens: int | None = None,
        prompt_name: str | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """What the model makes of each prompt, as an array: of ``pooling_task``, else what the model is for."""
        found = self._pool(prompts, pooling_params, pooling_task, use_tqdm, truncate_prompt_tokens, prompt_name)
        return [pooling_output(output) for output in found]

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> list[ScoringRequestOutput]:
        """How well texts fit: the first of ``data_1`` with the first of ``data_2``, and so on; a single one with each. A classifier
        of one class (a cross-encoder, a reranker) sees both texts at once; of embeddings it is the cosine."""
        inputs, params = self._pooling_inputs(), pooling_params or PoolingParams()
        pairs = text_pairs(data_1, data_2)
        inputs.rules.check_scores()
        if inputs.rules.num_labels:
            params = _of_task(params, "classify")
            both = [inputs.pair(first, second, params, truncate_prompt_tokens) for first, second in pairs]
            found = self._run([prompt for prompt, _ in both], [own for _, own in both], use_tqdm, None)
            scores = [float(vector(output)[0]) for output in found]
            return [ScoringRequestOutput.of(output, ScoringOutput(score)) for output, score in zip(found, scores)]
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        embedded = dict(zip(texts, self._pool(texts, params, "embed", use_tqdm, truncate_prompt_tokens, None)))
        return [_cosine_output(embedded[first], embedded[second]) for first, second in pairs]

    def _pool(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: PoolingParams | Sequence[PoolingParams] | None,
        task: PoolingTask | None,
        use_tqdm: bool,
        truncate: int | None,
        prompt_name: str | None,
    ) -> list[RequestOutput]:
        inputs = self._pooling_inputs()
        prepared = [inputs.prompt(prompt, truncate, prompt_name) for prompt in listed(prompts)]
        each: list[Any] = list(params) if isinstance(params, list | tuple) else [params or PoolingParams()] * len(prepared)
        return self._run(prepared, [_of_task(one, task) for one in each], use_tqdm, None)

    def _pooling_inputs(self) -> PoolingInputs:
        engine = self._front
        if engine.pooling is None:
            raise ValueError(generates(engine.config.model.name))
        return PoolingInputs(engine.inputs, engine.pooling, engine.info().max_model_len)


def listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, or several, as a list of them. Raises ValueError for what is neither."""
    if isinstance(prompts, str | bytes | bytearray | Mapping):
        return [prompts]
    try:
        found: list[Any] = list(prompts)
    except TypeError:
        raise ValueError(f"prompts must be text, token ids, a dict, or a list of such; found {prompts!r}") from None
    return [found] if found and isinstance(found[0], Integral) else found


def text_pairs(first: str | Sequence[str], second: str | Sequence[str]) -> list[tuple[str, str]]:
    """One with each, or those in the same places. Raises ValueError for lists of other lengths, and for what is no text."""
    sides = [[side] if isinstance(side, str) else side for side in (first, second)]
    for side in sides:
        if not isinstance(side, list | tuple) or not side or not all(isinstance(text, str) for text in side):
            raise ValueError(f"texts to score must be a text or a list of texts that is not empty; found {side!r:.200}")
    if len(sides[0]) == 1:
        sides[0] = [*sides[0]] * len(sides[1])
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"{len(sides[0])} texts cannot be scored against {len(sides[1])}: give as many of both, or one against any number"
        )
    return list(zip(*sides))


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Of two embeddings [D]."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _cosine_output(first: RequestOutput, second: RequestOutput) -> ScoringRequestOutput:
    """Of two embeddings, as one output."""
    score = ScoringOutput(cosine(vector(first), vector(second)))
    found: ScoringRequestOutput = ScoringRequestOutput.of(first, score)
    return replace(
        found,
        request_id=f"{first.request_id}_{second.request_id}",
        prompt_token_ids=first.prompt_token_ids + second.prompt_token_ids,
        num_cached_tokens=(first.num_cached_tokens or 0) + (second.num_cached_tokens or 0),
    )


def _of_task(params: PoolingParams, task: PoolingTask | None) -> PoolingParams:
    """Raises ValueError for parameters of another task, and for what is no PoolingParams."""
    if not isinstance(params, PoolingParams):
        raise ValueError(f"pooling parameters must be PoolingParams, as PoolingParams(dimensions=64); found {params!r}")
    if task is None or params.task == task:
        return params
    if params.task is not None:
        raise ValueError(f"PoolingParams: task={params.task!r} cannot work here, where it is {task!r}: leave it out, or use encode")
    own = params.clone()
    own.task = task
    return own
