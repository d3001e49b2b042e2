"""/classify, /score and /rerank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from ..llm_pooling import cosine, text_pairs
from .errors import APIError
from .pooling import Output, PoolingCall, Prompts
from .protocol.common import ERRORS
from .protocol.pooling import ClassifyAnswer, ClassifyBody, RerankAnswer, RerankBody, ScoreAnswer, ScoreBody
from .sse import json_response

router = APIRouter()
_PAIRS = (("queries", "documents"), ("text_1", "text_2"), ("data_1", "data_2"))


@router.post("/classify", response_model=None, responses={200: {"model": ClassifyAnswer}, **ERRORS})
async def classify(body: ClassifyBody, request: Request) -> Response:
    """The probabilities of the model's classes for each input, and the name of the likeliest."""
    call = PoolingCall(body, request, "classification", "classify")
    params, given = call.params("classify"), call.listed(body.input)
    cut, name, special = body.truncate_prompt_tokens, body.prompt_name, body.add_special_tokens
    outputs = await call.outputs(len(given), lambda: [(call.inputs.prompt(each, cut, name, special), params) for each in given])
    data = []
    for i, output in enumerate(outputs):
        probs = output.outputs.data.tolist()
        label = call.inputs.rules.labels.get(probs.index(max(probs)))
        data.append({"index": i, "label": label, "probs": probs, "num_classes": len(probs)})
    return json_response({**call.common, "data": data, "usage": call.usage(outputs)})


@router.post("/score", response_model=None, responses={200: {"model": ScoreAnswer}, **ERRORS})
@router.post("/v1/score", response_model=None, responses={200: {"model": ScoreAnswer}, **ERRORS})
async def score(body: ScoreBody, request: Request) -> Response:
    """How well texts fit."""
    call = PoolingCall(body, request, "scores", "score")
    named = [(getattr(body, first), getattr(body, second)) for first, second in _PAIRS]
    given = [sides for sides in named if None not in sides]
    if len(given) != 1:
        raise APIError(400, f"texts are given as one of {', '.join(' and '.join(pair) for pair in _PAIRS)}")
    outputs, scores = await _scores(call, text_pairs(*given[0]))
    data = [{"index": i, "object": "score", "score": value} for i, value in enumerate(scores)]
    return json_response({**call.common, "data": data, "usage": call.usage(outputs)})


@router.post("/rerank", response_model=None, responses={200: {"model": RerankAnswer}, **ERRORS})
@router.post("/v1/rerank", response_model=None, responses={200: {"model": RerankAnswer}, **ERRORS})
@router.post("/v2/rerank", response_model=None, responses={200: {"model": RerankAnswer}, **ERRORS})
async def rerank(body: RerankBody, request: Request) -> Response:
    """The documents that fit a query, best first."""
    call = PoolingCall(body, request, "reranking", "rerank")
    if not body.documents:
        raise APIError(400, "`documents` must hold a text at least", "documents")
    outputs, scores = await _scores(call, text_pairs(body.query, body.documents))
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n or None]
    results = [{"index": i, "document": {"text": body.documents[i]}, "relevance_score": scores[i]} for i in ranked]
    return json_response({"id": call.common["id"], "model": call.common["model"], "usage": call.usage(outputs), "results": results})


async def _scores(call: PoolingCall, pairs: Sequence[tuple[str, str]]) -> tuple[list[Output], list[float]]:
    """The requests that it took, and a score for each pair."""
    rules, cut = call.inputs.rules, call.body.truncate_prompt_tokens
    if len(pairs) > (most := call.serving.config.max_num_prompts):
        raise APIError(400, f"{len(pairs)} pairs are more than the {most} that this server takes at once")
    call.check_texts(text for pair in pairs for text in pair)
    rules.check_scores()
    if rules.num_labels:
        params: Any = call.params("classify")

        def both() -> Prompts:
            return [call.inputs.pair(first, second, params, cut) for first, second in pairs]

        outputs = await call.outputs(len(pairs), both)
        return outputs, [float(output.outputs.data[0]) for output in outputs]
    params = call.params("embed")
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    outputs = await call.outputs(len(texts), lambda: [(call.inputs.prompt(text, cut), params) for text in texts])
    vectors = {text: output.outputs.data for text, output in zip(texts, outputs)}
    return outputs, [cosine(vectors[first], vectors[second]) for first, second in pairs]
