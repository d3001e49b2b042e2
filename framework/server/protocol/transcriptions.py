"""Bodies of /v1/audio/transcriptions and /v1/audio/translations, which are forms, and their answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, WithJsonSchema

from .common import Body


class TranscriptionBody(Body):
    """file: WAV, FLAC or OGG. language: that is spoken, as its code; None: it is heard. prompt: what was said before, of which
    the last tokens count, one less than half of what the decoder takes. temperature: 0 is greedy."""

    file: Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]
    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt", "diarized_json"] = "json"
    temperature: float = 0.0
    seed: int | None = None
    priority: int | None = None

    # What OpenAI takes and this server does not.
    stream: bool | None = None
    chunking_strategy: Any = None
    include: Any = Field(default=None, validation_alias=AliasChoices("include[]", "include"))
    timestamp_granularities: Any = Field(
        default=None, validation_alias=AliasChoices("timestamp_granularities[]", "timestamp_granularities")
    )


class Duration(BaseModel):
    type: Literal["duration"]
    seconds: int


class TranscriptionAnswer(BaseModel):
    text: str
    usage: Duration
