"""An engine that says what a test tells it to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from framework import EngineConfig, RequestOutputKind, SamplingParams
from framework.build import input_processor
from framework.engine.metrics import EngineInfo
from framework.engine.prompts import EngineInput
from framework.models.read import read_model
from framework.outputs import CompletionOutput, Logprob, RequestOutput


class ScriptedEngine:
    """Takes the place of AsyncEngine. Whatever the prompt, completion i of the n asked for is ``scripts[i % len(scripts)]``: texts
    of its tokens, as a tokenizer would cut them; one output per token, or one in all. Token i has the log-probability -i.

    prompts     the texts it was asked to go on with
    params      the parameters it was given
    priorities, salts  what came with them

    Of every prompt ``CACHED`` tokens come from the cache.
    """

    CACHED = 2

    def __init__(self, *scripts: Sequence[str]) -> None:
        self.config = EngineConfig()
        self.inputs = input_processor(self.config.model, read_model(self.config.model))
        self.info = EngineInfo(
            max_model_len=2048,
            vocab_size=len(self.inputs.tokenizer),
            block_size=16,
            num_blocks=64,
            weight_bytes=0,
            groups=(),
            in_flight_steps=1,
            prefix_caching=True,
        )
        self.scripts = scripts
        self.prompts: list[str] = []
        self.params: list[SamplingParams] = []
        self.priorities: list[int] = []
        self.salts: list[str | None] = []
        self.errored, self.dead_error, self.pooling = False, None, None

    async def generate(
        self,
        prompt: EngineInput,
        params: SamplingParams,
        request_id: str | None = None,
        *,
        lora_request: None = None,
        priority: int = 0,
    ) -> AsyncIterator[RequestOutput]:
        assert prompt.text is not None
        self.prompts.append(prompt.text)
        self.params.append(params)
        self.priorities.append(priority)
        self.salts.append(prompt.cache_salt)
        completions = [self._completion(i, params) for i in range(params.n)]
        if params.output_kind is RequestOutputKind.FINAL_ONLY:
            yield self._output(prompt, [_joined(tokens) for tokens in completions], True)
            return
        for step in range(longest := max(map(len, completions))):
            yield self._output(prompt, [tokens[step] for tokens in completions if step < len(tokens)], step == longest - 1)

    def _completion(self, index: int, params: SamplingParams) -> list[CompletionOutput]:
        texts = self.scripts[index % len(self.scripts)][: params.max_tokens]
        tokens = [CompletionOutput(index, text, [step]) for step, text in enumerate(texts)]
        if params.logprobs is not None and params.output_kind is RequestOutputKind.DELTA:
            for step, token in enumerate(tokens):
                token.logprobs = [{step: Logprob(float(-step), 1, token.text)}]
        whole = len(texts) == len(self.scripts[index % len(self.scripts)])
        tokens[-1].finish_reason = "stop" if whole else "length"
        return tokens

    def _output(self, prompt: EngineInput, completions: list[CompletionOutput], finished: bool) -> RequestOutput:
        return RequestOutput("", prompt.text, prompt.token_ids, None, completions, finished, num_cached_tokens=self.CACHED)


def _joined(tokens: list[CompletionOutput]) -> CompletionOutput:
    last = tokens[-1]
    ids = [token for completion in tokens for token in completion.token_ids]
    text = "".join(completion.text for completion in tokens)
    return CompletionOutput(last.index, text, ids, finish_reason=last.finish_reason, stop_reason=last.stop_reason)
