"""Beam search, outside the engine: every beam is a request of one token, and the prefix cache is what beams share.

The rules are vLLM's: a step looks at the 2 * width best tokens of each beam; those that end the sequence leave the beams for the
completed, and the ``width`` best of the others go on. A score is the sum of log-probabilities over the number of tokens (of the
prompt, too, and without an end of sequence) to the power of ``length_penalty``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .engine.prompts import EngineInput
from .lora_request import LoRARequest
from .outputs import LogprobsOnePosition, RequestOutput
from .sampling_params import BeamSearchParams

if TYPE_CHECKING:
    from .async_engine import AsyncEngine
    from .engine.request import FinishReason


@dataclass
class BeamSearchSequence:
    """A beam. tokens: the prompt, too; logprobs: of those generated; text: of all tokens, None without a tokenizer."""

    tokens: list[int]
    logprobs: list[LogprobsOnePosition]
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass
class BeamSearchOutput:
    """The best sequences, best first."""

    sequences: list[BeamSearchSequence] = field(default_factory=list)


class BeamSearch:
    """The beams of one prompt. Whoever drives it asks for the next tokens of all ``beams``, and tells ``advance`` what came."""

    def __init__(self, prompt: EngineInput, params: BeamSearchParams, eos_token_ids: Collection[int], max_model_len: int) -> None:
        self._prompt, self._params = prompt, params
        self._ends = frozenset(() if params.ignore_eos else eos_token_ids)
        self._longest = min(len(prompt.token_ids) + params.max_tokens, max_model_len)
        self.beams = [BeamSearchSequence(list(prompt.token_ids), [])]
        self._completed: list[BeamSearchSequence] = []

    @property
    def inputs(self) -> list[EngineInput]:
        """What the engine is to continue by one token each."""
        return [replace(self._prompt, token_ids=beam.tokens, text=None) for beam in self.beams]

    def advance(self, found: list[LogprobsOnePosition]) -> None:
        """found: of each beam, in order, the log-probabilities of its next tokens."""
        grown: list[tuple[float, int, int]] = []
        for index, (beam, logprobs) in enumerate(zip(self.beams, found)):
            best = sorted(logprobs.items(), key=lambda item: item[1].rank or 0)[: 2 * self._params.beam_width]
            for token, logprob in best:
                total = beam.cum_logprob + logprob.logprob
                if token in self._ends:
                    tokens = [*beam.tokens, token] if self._params.include_stop_str_in_output else beam.tokens
                    self._completed.append(BeamSearchSequence(tokens, [*beam.logprobs, logprobs], total, None, "stop"))
                else:
                    grown.append((total, index, token))
        grown.sort(key=lambda item: -item[0])
        self.beams = [
            BeamSearchSequence([*self.beams[index].tokens, token], [*self.beams[index].logprobs, found[index]], total)
            for total, index, token in grown[: self._params.beam_width]
        ]
        if self.beams and len(self.beams[0].tokens) >= self._longest:
            for beam in self.beams:
                beam.finish_reason = "length"
            self._completed += self.beams
            self.beams = []

    def best(self, tokenizer: Any = None) -> BeamSearchOutput:
        """Of those completed."""
        ranked = sorted(self._completed, key=self._score, reverse=True)[: self._params.beam_width]
        for sequence in ranked:
            sequence.text = None if tokenizer is None else tokenizer.decode(sequence.tokens)
        return BeamSearchOutput(ranked)

    def _score(self, sequence: BeamSearchSequence) -> float:
        """Greater for greater scores, which themselves may be more, or less, than a float holds."""
        with_end = sequence.finish_reason == "stop" and self._params.include_stop_str_in_output
        longer = self._params.length_penalty * math.log(len(sequence.tokens) - with_end)
        return longer - math.log(-sequence.cum_logprob) if sequence.cum_logprob < 0 else math.inf


async def search_beams(
    engine: AsyncEngine, prompt: EngineInput, params: BeamSearchParams, priority: int = 0, lora_request: LoRARequest | None = None
) -> BeamSearchOutput:
    """The best sequences of one prompt. Being cancelled aborts what runs. Raises as ``AsyncEngine.generate`` does."""
    engine.inputs.check_beams()
    search = BeamSearch(prompt, params, engine.inputs.eos_token_ids, engine.info.max_model_len)

    async def step(beam: EngineInput) -> LogprobsOnePosition:
        async for output in engine.generate(beam, params.step_params, lora_request=lora_request, priority=priority):
            last = output
        return next_tokens(last)

    while search.beams:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(step(beam)) for beam in search.inputs]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        search.advance([task.result() for task in tasks])
    return search.best(engine.inputs.tokenizer)


def next_tokens(output: RequestOutput) -> LogprobsOnePosition:
    """What a finished request of ``step_params`` found."""
    completion = output.outputs[0]
    if completion.finish_reason == "error" or not completion.logprobs:
        raise RuntimeError(f"a beam could not go on: {output.error or 'its logits were NaN or all -inf'}")
    return completion.logprobs[0]
