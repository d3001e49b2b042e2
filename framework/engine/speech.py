"""How the decoder of a model that listens begins: it is told the language, and what is to be done with what is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Speech:
    """Of one model; all tokens are those that its generation_config.json names.

    start          the first token
    forced         tokens behind it where neither language nor task is given; None: a language that is to be heard first
    languages      tokens by the codes of languages (en, de); empty: the model knows but one
    tasks          tokens of "transcribe" and "translate"; empty: it knows but the first
    language, task that the config gives
    no_timestamps  keeps times out of the text; None: the model has no such token
    previous       begins what was said before, which stands in front of ``start``; None: likewise
    """

    start: int
    forced: tuple[int | None, ...] = ()
    languages: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
    language: str | None = None
    task: str | None = None
    no_timestamps: int | None = None
    previous: int | None = None

    def begin(self, language: str | None = None, task: str | None = None) -> list[int | None]:
        """Tokens that a decoder begins with, as transformers' ``WhisperForConditionalGeneration.generate`` chooses them; None for a
        language that is to be heard. Raises ValueError for a language or a task that the model does not know."""
        language, task = language or self.language, task or self.task
        known = None if language is None else self._language(language)
        action = None if task is None else self._task(task)
        begin: list[int | None] = [self.start, *(self.forced if known is action is None else ())]
        if known is not None:
            begin.append(known)
        elif self.languages and begin[1:2] in ([], [None]):
            begin[1:2] = [None]
        else:
            begin = [token for token in begin if token is not None]
        if action is None and known is not None:
            action = self.tasks.get("transcribe")
        if action is not None:
            begin.append(action)
        if self.no_timestamps is not None and begin[-1] != self.no_timestamps:
            begin.append(self.no_timestamps)
        return begin

    def _language(self, name: str) -> int | None:
        """By its code, as a tag, or in English; None: the only one."""
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE  # seconds to import, and needed by few

        code = name.lower().removeprefix("<|").removesuffix("|>")
        code = TO_LANGUAGE_CODE.get(code, code)
        known = sorted(self.languages) or ["en"]
        if code not in known:
            raise ValueError(f"language={name[:80]!r} is none that the model knows: {', '.join(known)}")
        return self.languages.get(code)

    def _task(self, name: str) -> int | None:
        if name not in (self.tasks or ("transcribe",)):
            raise ValueError(f"the model cannot {name[:80]}: it can {', '.join(self.tasks or ('transcribe',))}")
        return self.tasks.get(name)
