"""What users get back of a pooling model. Names follow vLLM; vectors are numpy's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from .outputs import RequestOutput

Data = TypeVar("Data")


@dataclass(frozen=True, slots=True)
class PoolingOutput:
    """data: float32, [D] of a prompt or [T, D] of each of its tokens."""

    data: np.ndarray


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """embedding: as many numbers as the model's embeddings have, or as ``dimensions`` asked for."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(frozen=True, slots=True)
class ClassificationOutput:
    """probs: one number per class; raw scores where ``use_activation`` is off."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """score: how well two texts fit: a cross-encoder's number, or the cosine of two embeddings."""

    score: float


@dataclass(frozen=True, slots=True)
class PoolingRequestOutput(Generic[Data]):
    """What became of one prompt, or of a pair of texts."""

    request_id: str
    outputs: Data
    prompt_token_ids: list[int]
    num_cached_tokens: int
    finished: bool = True

    @classmethod
    def of(cls, output: RequestOutput, data: Any) -> Any:
        """``output`` with these data."""
        return cls(output.request_id, data, output.prompt_token_ids, output.num_cached_tokens or 0, output.finished)


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    """Of ``LLM.embed``."""


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    """Of ``LLM.classify``."""


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    """Of ``LLM.score``."""


def embedding_output(output: RequestOutput) -> EmbeddingRequestOutput:
    """Of a finished request."""
    found: EmbeddingRequestOutput = EmbeddingRequestOutput.of(output, EmbeddingOutput(vector(output).tolist()))
    return found


def classification_output(output: RequestOutput) -> ClassificationRequestOutput:
    """Of a finished request."""
    found: ClassificationRequestOutput = ClassificationRequestOutput.of(output, ClassificationOutput(vector(output).tolist()))
    return found


def pooling_output(output: RequestOutput) -> PoolingRequestOutput[PoolingOutput]:
    """Of a finished request."""
    found: PoolingRequestOutput[PoolingOutput] = PoolingRequestOutput.of(output, PoolingOutput(vector(output)))
    return found


def vector(output: RequestOutput) -> np.ndarray:
    """What a finished request brought, float32 [D] or [T, D]. Raises RuntimeError if it was aborted, and ValueError where
    nothing is computed."""
    if output.pooled is None and any(completion.finish_reason == "abort" for completion in output.outputs):
        raise RuntimeError(f"the request {output.request_id!r} was aborted before its end, and has no numbers")
    if output.pooled is None:
        raise ValueError("there are no numbers in this output: an executor without a model computes none")
    return output.pooled
