"""/v1/audio/transcriptions and /v1/audio/translations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from ..engine.encoding import EncoderInput
from ..engine.prompts import EngineInput
from ..outputs import RequestOutput
from ..sampling_params import RequestOutputKind, SamplingParams
from .errors import APIError, shown, validation_error
from .generation import priority_of
from .protocol.common import ERRORS
from .protocol.transcriptions import TranscriptionAnswer, TranscriptionBody
from .serving import Serving
from .sse import json_response, until_disconnect

router = APIRouter()
_FORM = "multipart/form-data"
_MAX_FIELDS, _MAX_FIELD_BYTES = 64, 2**16
_FORMATS = ("json", "text")
_UNAVAILABLE = ("stream", "chunking_strategy", "include", "timestamp_granularities")
_described: dict[str, Any] = {
    "responses": {200: {"model": TranscriptionAnswer, "content": {"text/plain": {}}}, **ERRORS},
    "openapi_extra": {"requestBody": {"required": True, "content": {_FORM: {"schema": TranscriptionBody.model_json_schema()}}}},
}


@router.post("/v1/audio/transcriptions", response_model=None, **_described)
async def create_transcription(request: Request) -> Response:
    """What is said in a sound file."""
    return await _answer(request, "transcribe")


@router.post("/v1/audio/translations", response_model=None, **_described)
async def create_translation(request: Request) -> Response:
    """The same in English."""
    return await _answer(request, "translate")


async def _answer(request: Request, task: str) -> Response:
    serving: Serving = request.app.state.serving
    serving.check_generates()
    encoding = serving.engine.inputs.encoding
    if encoding is None or encoding.speech is None:
        raise APIError(501, f"The model does not {task} sound: it reads text")
    if encoding.sound is None:
        raise APIError(501, f"The model does not {task} sound: it has no folder with a feature extractor")
    body = await _body(request)
    transcription = Transcription(serving, body, task, priority_of(body, request))
    text, seconds = await until_disconnect(request.receive, transcription.text())
    if body.response_format == "text":
        return Response(text, media_type="text/plain")
    return json_response({"text": text, "usage": {"type": "duration", "seconds": seconds}})


async def _body(request: Request) -> TranscriptionBody:
    """Raises APIError for a form that is none, and for what cannot be asked for."""
    if find_spec("python_multipart") is None:
        raise NotImplementedError("forms need python-multipart, which is not installed: pip install 'kernelswap[audio]'")
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != _FORM.encode():
        raise APIError(400, f"the body must be a form ({_FORM}) with a sound as its `file`")
    if b"--%b--" % options.get(b"boundary", b"") not in await request.body():  # the library would drop the last field
        raise APIError(400, "the form is cut off: it does not end with its boundary")
    given: dict[str, Any] = {}
    async with request.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES) as form:
        for name, value in form.multi_items():
            if name in given and not name.endswith("[]"):
                raise APIError(400, f"`{shown(name)}` is given twice", shown(name))
            given[name] = await value.read() if isinstance(value, UploadFile) else value
    if isinstance(given.get("file"), str):
        raise APIError(400, "`file` must be the upload of a file, with a filename; found a field of text", "file")
    try:
        body = TranscriptionBody.model_validate(given)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]
        raise validation_error(RequestValidationError(faults)) from None
    if body.response_format not in _FORMATS:
        raise APIError(
            400,
            f"`response_format`={body.response_format} is not available, as times are not told: ask for {' or '.join(_FORMATS)}",
            "response_format",
        )
    for name in _UNAVAILABLE:
        if getattr(body, name):
            raise APIError(400, f"`{name}` is not supported by this server: leave it out", name)
    return body


class Transcription:
    """One request on its way to its answer."""

    def __init__(self, serving: Serving, body: TranscriptionBody, task: str, priority: int) -> None:
        """Raises ValueError or APIError for what cannot be."""
        encoding = serving.engine.inputs.encoding
        assert encoding is not None and encoding.sound is not None and encoding.speech is not None
        self._serving, self._body, self._priority = serving, body, priority
        self._encoding, self._sound, self._speech = encoding, encoding.sound, encoding.speech
        serving.model_name(body.model)
        self._begin = encoding.speech.begin(body.language or None, task)
        defaults = serving.engine.inputs.default_params()
        kind = RequestOutputKind.FINAL_ONLY
        self._params = replace(defaults, temperature=body.temperature, seed=body.seed, max_tokens=None, output_kind=kind)

    async def text(self) -> tuple[str, int]:
        """What is said, and the seconds of sound."""
        with self._serving.admit(1):
            sound, before, seconds = await self._serving.tokenizing(self._prepare)
            begin = [token if token is not None else await self._language(sound) for token in self._begin]
            output = await self._output(sound, [*before, *begin], self._params)
            return output.outputs[0].text.strip(), math.ceil(seconds)

    def _prepare(self) -> tuple[EncoderInput, list[int], float]:
        """What the encoder reads, what was said before, in tokens, and seconds."""
        waveform = self._sound.decoded(self._body.file)
        found = self._encoding.of_media({"audio": (waveform, self._sound.rate)})
        return found, self._before(), len(waveform) / self._sound.rate

    def _before(self) -> list[int]:
        text = (self._body.prompt or "").strip()
        if not text:
            return []
        if self._speech.previous is None:
            raise APIError(400, "the model has no token for what was said before (prev_sot_token_id): leave it out", "prompt")
        if found := [token for token in self._serving.special_tokens if token in text]:
            raise APIError(400, f"`prompt` must be what was said, without special tokens; found {found[0]}", "prompt")
        tokens = self._serving.engine.inputs.encode(" " + self._serving.check_text(text), add_special_tokens=False)
        return [self._speech.previous, *tokens[-(self._serving.engine.info.max_model_len // 2 - 1) :]]

    async def _language(self, sound: EncoderInput) -> int:
        """The token of the language that is heard, as the library's ``detect_language`` finds it: the likeliest."""
        allowed = sorted(self._speech.languages.values())
        params = SamplingParams(temperature=0, max_tokens=1, allowed_token_ids=allowed, detokenize=False)
        return (await self._output(sound, [self._speech.start], params)).outputs[0].token_ids[0]

    async def _output(self, sound: EncoderInput, begin: Sequence[int], params: SamplingParams) -> RequestOutput:
        prompt = EngineInput(list(begin), encoder_input=sound)
        self._serving.check_input(prompt, params.max_tokens)
        async with aclosing(self._serving.outputs([prompt], params, self._priority)) as outputs:
            return [output async for _, output in outputs][-1]
