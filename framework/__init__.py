"""Kernelswap: an LLM inference engine in which every hot path is a named, swappable kernel."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_engine import AsyncEngine
    from .config import EngineConfig
    from .engine.engine import Engine
    from .engine.prompts import TextPrompt, TokensPrompt
    from .image_pipeline import GeneratedImages, ImagePipeline
    from .llm import LLM
    from .lora_request import LoRARequest
    from .outputs import CompletionOutput, Logprob, RequestOutput
    from .pooling_outputs import ClassificationRequestOutput, EmbeddingRequestOutput, PoolingRequestOutput, ScoringRequestOutput
    from .pooling_params import PoolingParams
    from .sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
    from .structured.spec import StructuredOutputsParams

__version__ = "0.1.0"

_EXPORTS = {
    "LLM": "llm",
    "ImagePipeline": "image_pipeline",
    "GeneratedImages": "image_pipeline",
    "AsyncEngine": "async_engine",
    "Engine": "engine.engine",
    "EngineConfig": "config",
    "LoRARequest": "lora_request",
    "SamplingParams": "sampling_params",
    "BeamSearchParams": "sampling_params",
    "RequestOutputKind": "sampling_params",
    "StructuredOutputsParams": "structured.spec",
    "RequestOutput": "outputs",
    "CompletionOutput": "outputs",
    "Logprob": "outputs",
    "PoolingParams": "pooling_params",
    "PoolingRequestOutput": "pooling_outputs",
    "EmbeddingRequestOutput": "pooling_outputs",
    "ClassificationRequestOutput": "pooling_outputs",
    "ScoringRequestOutput": "pooling_outputs",
    "TextPrompt": "engine.prompts",
    "TokensPrompt": "engine.prompts",
}
__all__ = [
    "LLM",
    "AsyncEngine",
    "BeamSearchParams",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "EmbeddingRequestOutput",
    "Engine",
    "EngineConfig",
    "GeneratedImages",
    "ImagePipeline",
    "LoRARequest",
    "Logprob",
    "PoolingParams",
    "PoolingRequestOutput",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringRequestOutput",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
