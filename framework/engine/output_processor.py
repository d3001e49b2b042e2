"""From new tokens to outputs: text, stop strings, log-probabilities, and the completions of one request put together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from ..outputs import CompletionOutput, Logprob, LogprobsOnePosition, RequestMetrics, RequestOutput
from ..sampling_params import RequestOutputKind, SamplingParams
from .detokenizer import Detokenizer, TokenTexts, make_stop_strings
from .metrics import Recorder
from .request import Request
from .scheduled import Committed, ScheduledStep
from .step import TokenLogprobs


class RequestGroup:
    """A user's request: its completions, and what they have in common."""

    __slots__ = (
        "changed",
        "kind",
        "metrics",
        "num_unfinished",
        "prompt",
        "prompt_logprobs",
        "prompt_logprobs_told",
        "prompt_token_ids",
        "request_id",
        "samples",
    )

    def __init__(
        self, request_id: str, prompt: str | None, prompt_token_ids: list[int], params: SamplingParams, arrival_s: float
    ) -> None:
        self.request_id, self.prompt, self.prompt_token_ids = request_id, prompt, prompt_token_ids
        self.kind = params.output_kind
        self.metrics = RequestMetrics(arrival_s)
        self.prompt_logprobs: list[LogprobsOnePosition | None] | None = None if params.prompt_logprobs is None else [None]
        self.prompt_logprobs_told = False
        self.samples: list[Sample] = []
        self.changed: list[CompletionOutput] = []
        self.num_unfinished = 0

    def add(self, request: Request, texts: TokenTexts | None) -> None:
        """Makes ``request`` the next completion."""
        request.sample = Sample(request, self, len(self.samples), texts)
        self.samples.append(request.sample)
        self.num_unfinished += 1

    def output(self, completions: list[CompletionOutput]) -> RequestOutput:
        """The request with these completions."""
        finished = not self.num_unfinished
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_token_ids,
            None if self.prompt_logprobs is None else self._prompt_logprobs_now(),
            completions,
            finished,
            self.samples[0].request.num_cached_tokens,
            self.metrics if finished else None,
        )

    def everything(self) -> RequestOutput:
        """The request with all its completions so far."""
        return self.output([sample.everything() for sample in self.samples])

    def _prompt_logprobs_now(self) -> list[LogprobsOnePosition | None] | None:
        """All at once; deltas tell them once."""
        assert self.prompt_logprobs is not None
        if len(self.prompt_logprobs) < len(self.prompt_token_ids) or self.prompt_logprobs_told:
            return None
        self.prompt_logprobs_told = self.kind is RequestOutputKind.DELTA
        return self.prompt_logprobs


class Sample:
    """One completion as it grows. ``done``: its last output was made. ``is_silent``: until it ends, its tokens are but counted.
    ``times``: when each token came out; of ``num_timed`` of them the metrics know."""

    __slots__ = (
        "cumulative_logprob",
        "detokenizer",
        "done",
        "group",
        "index",
        "is_silent",
        "logprobs",
        "num_timed",
        "pieces",
        "request",
        "stop_strings",
        "times",
    )

    def __init__(self, request: Request, group: RequestGroup, index: int, texts: TokenTexts | None) -> None:
        params = request.params
        self.request, self.group, self.index, self.done = request, group, index, False
        self.detokenizer: Detokenizer | None = None
        if texts is not None and params.detokenize:
            self.detokenizer = texts.detokenizer(params.skip_special_tokens, params.spaces_between_special_tokens)
        self.stop_strings = make_stop_strings(params)
        self.pieces: list[str] = []
        self.logprobs: list[LogprobsOnePosition] | None = None if params.logprobs is None else []
        self.cumulative_logprob = 0.0
        self.times: list[float] = []
        self.num_timed = 0
        reads = self.detokenizer is not None or self.stop_strings is not None or self.logprobs is not None
        self.is_silent = not reads and group.kind is RequestOutputKind.FINAL_ONLY

    def push(self, token_ids: Sequence[int], now_s: float) -> str:
        """Takes new tokens, the last of the request; returns the text that is certain now. A stop string in it ends the
        request: ``finish_reason`` and ``stop_reason`` say so, and the caller has to tell the scheduler."""
        request, detokenizer = self.request, self.detokenizer
        text = ""
        for token in token_ids:
            self.times.append(now_s)
            # The text of a stop token is wanted as little as a stop string.
            if detokenizer is not None and (request.finish_reason != "stop" or request.params.include_stop_str_in_output):
                text += detokenizer.push(token)
        if request.finish_reason is not None and detokenizer is not None:
            text += detokenizer.flush()
        if self.stop_strings is not None:
            text, stop = self.stop_strings.push(text, search=request.num_output_tokens > request.params.min_tokens)
            if stop is not None:
                request.finish_reason, request.stop_reason = "stop", stop
            elif request.finish_reason is not None:
                text += self.stop_strings.flush()
        if self.group.kind is not RequestOutputKind.DELTA and text:
            self.pieces.append(text)
        return text

    def push_several(self, count: int, now_s: float) -> tuple[str, list[int]]:
        """Takes the request's last ``count`` tokens, or its end without one, as if each token had come alone: what follows a stop
        string is taken off again. Returns the text that is certain now, and the tokens that are left."""
        request = self.request
        if not count:
            return self.push((), now_s), []
        new, end = request.token_ids[-count:], (request.finish_reason, request.stop_reason)
        del request.token_ids[-count:]
        request.finish_reason = request.stop_reason = None
        text = ""
        for taken, token in enumerate(new, 1):
            request.token_ids.append(token)
            if taken == count:
                request.finish_reason, request.stop_reason = end
            try:
                text += self.push((token,), now_s)
            except Exception:
                request.token_ids += new[taken:]  # all of them are to be taken back
                raise
            if request.finish_reason is not None:
                break
        return text, new[:taken]

    def add_logprobs(self, found: Sequence[TokenLogprobs], texts: TokenTexts | None) -> None:
        """Takes the log-probabilities of the last tokens."""
        assert self.logprobs is not None, "log-probabilities came that nobody asked for"
        for entry in found:
            self.logprobs.append(_logprobs(entry, texts))
            self.cumulative_logprob += entry.logprob

    def take_back(self, count: int) -> None:
        """Forgets the last ``count`` tokens, of which some may have been pushed, and some not."""
        request = self.request
        del request.token_ids[len(request.token_ids) - count :]
        if self.logprobs is not None:
            del self.logprobs[request.num_output_tokens :]

    def delta(self, text: str, token_ids: list[int]) -> CompletionOutput:
        """What is new."""
        request = self.request
        if self.logprobs is None:
            return CompletionOutput(self.index, text, token_ids, None, None, request.finish_reason, request.stop_reason)
        logprobs = self.logprobs[len(self.logprobs) - len(token_ids) :]
        return CompletionOutput(
            self.index, text, token_ids, self.cumulative_logprob, logprobs, request.finish_reason, request.stop_reason
        )

    def everything(self) -> CompletionOutput:
        """All so far."""
        request = self.request
        self.pieces = ["".join(self.pieces)]
        logprobs, cumulative = (None, None) if self.logprobs is None else (list(self.logprobs), self.cumulative_logprob)
        return CompletionOutput(
            self.index,
            self.pieces[0],
            request.token_ids[request.num_prompt_tokens :],
            cumulative,
            logprobs,
            request.finish_reason,
            request.stop_reason,
        )


class OutputProcessor:
    """All requests that are not finished, by id, and the step from committed tokens to their outputs.

    texts     None if the engine has no tokenizer
    recorder  hears of every completion that ends
    """

    def __init__(self, texts: TokenTexts | None, recorder: Recorder) -> None:
        self.texts, self._recorder = texts, recorder
        self.groups: dict[str, RequestGroup] = {}

    def scheduled(self, step: ScheduledStep, now_s: float) -> None:
        """Notes when requests were first scheduled."""
        for chunk in step.chunks:
            metrics = chunk.request.sample.group.metrics
            if metrics.first_scheduled_s is None:
                metrics.first_scheduled_s = now_s

    def process(
        self, committed: Committed, now_s: float, outputs: list[RequestOutput]
    ) -> tuple[list[Request], list[tuple[RequestGroup, Exception]]]:
        """Appends the outputs of a step to ``outputs``. Returns the requests that stop strings ended, and those of which no output
        could be made, with the reason: they are to be ended next."""
        failed: list[tuple[RequestGroup, Exception]] = []
        for request, first, entries in committed.prompt_logprobs:
            try:
                self._add_prompt_logprobs(request.sample.group, first, entries)
            except Exception as error:
                failed.append((request.sample.group, error))
        unfit = {group for group, _ in failed}
        delta, final_only = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY
        one_each, emit = not committed.num_new and not committed.logprobs, outputs.append
        stopped: list[Request] = []
        touched: dict[RequestGroup, None] = {}
        for request in committed.requests:
            sample: Sample = request.sample
            group = sample.group
            was_finished = request.finish_reason is not None
            if unfit and group in unfit:
                sample.take_back(committed.num_new.get(request, 1))
                continue
            if one_each and sample.is_silent and not was_finished:
                sample.times.append(now_s)
                continue
            try:
                if one_each:
                    token_ids = request.token_ids[-1:]
                    text = sample.push(token_ids, now_s)
                else:
                    text, token_ids = sample.push_several(committed.num_new.get(request, 1), now_s)
                    if request in committed.logprobs:
                        sample.add_logprobs(committed.logprobs[request][: len(token_ids)], self.texts)
            except Exception as error:
                sample.take_back(committed.num_new.get(request, 1))
                failed.append((group, error))
                continue
            if request.finish_reason is not None:
                self._recorder.corrupted += request.finish_reason == "error"
                self._finished(sample, now_s)
                if not was_finished:
                    stopped.append(request)
            if group.kind is delta:
                completion = sample.delta(text, token_ids)
                if len(group.samples) == 1:
                    emit(group.output([completion]))
                else:
                    group.changed.append(completion)
                    touched[group] = None
            elif group.kind is not final_only or not group.num_unfinished:
                touched[group] = None
        for group in touched:
            if group.kind is delta:
                emit(group.output(sorted(group.changed, key=lambda completion: completion.index)))
                group.changed = []
            else:
                emit(group.everything())
        return stopped, failed

    def pooled(self, committed: Committed, now_s: float, outputs: list[RequestOutput]) -> None:
        """Appends the outputs of the pooling requests that ended in a step."""
        for request, found in committed.pooled:
            group = request.sample.group
            request.sample.times.append(now_s)  # there is no token, but this is when it would have come
            self._finished(request.sample, now_s)
            output = group.everything()
            output.pooled = found
            outputs.append(output)

    def ended(self, group: RequestGroup, now_s: float, error: str | None = None, refused: bool = False) -> RequestOutput:
        """The last output of a request that was cut short by an abort or an ``error``; ``refused``: that is its own."""
        cut = [sample for sample in group.samples if not sample.done]
        completions = [sample.delta(sample.push((), now_s) if error is None else "", []) for sample in cut]
        for sample in cut:
            self._finished(sample, now_s)
        output = group.output(completions) if group.kind is RequestOutputKind.DELTA else group.everything()
        output.error, output.refused = error, refused
        return output

    def _finished(self, sample: Sample, now_s: float) -> None:
        group, sample.done = sample.group, True
        group.metrics.num_preemptions += sample.request.num_preemptions
        group.num_unfinished -= 1
        self._recorder.ended(sample.request, now_s)
        if not group.num_unfinished:
            times = [other.times for other in group.samples]
            group.metrics.token_times_s = times[0] if len(times) == 1 else sorted(chain.from_iterable(times))
            del self.groups[group.request_id]

    def _add_prompt_logprobs(self, group: RequestGroup, first: int, entries: list[TokenLogprobs]) -> None:
        known = group.prompt_logprobs
        assert known is not None
        known += [_logprobs(entry, self.texts) for entry in entries[len(known) - 1 - first :]]  # a resumed prompt comes again


def _logprobs(found: TokenLogprobs, texts: TokenTexts | None) -> LogprobsOnePosition:
    ranked = [(found.token_id, found.logprob, found.rank)]
    ranked += [
        (token, logprob, rank)
        for rank, (token, logprob) in enumerate(zip(found.top_ids, found.top_logprobs), 1)
        if token != found.token_id
    ]
    decode = texts.decoded_token if texts is not None else lambda _: None
    return {token: Logprob(logprob, rank, decode(token)) for token, logprob, rank in ranked}
