"""/v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from ..engine.prompts import EngineInput
from ..outputs import CompletionOutput, RequestOutput
from .errors import APIError
from .generation import Generation
from .logprobs import completion_logprobs, prompt_logprobs
from .protocol.common import ERRORS, STREAM
from .protocol.completions import CompletionAnswer, CompletionBody
from .sampling import refuse, sampling_params
from .serving import Serving
from .sse import ChunkWriter, respond

router = APIRouter()


@router.post("/v1/completions", response_model=None, responses={200: {"model": CompletionAnswer, "content": STREAM}, **ERRORS})
async def create_completion(body: CompletionBody, request: Request) -> Response:
    """Completes one prompt or several, n times each."""
    return await respond(request, Completion(request.app.state.serving, body, request), body.stream)


class Completion(Generation):
    """Of one prompt or several, n times each."""

    body: CompletionBody

    def __init__(self, serving: Serving, body: CompletionBody, request: Request) -> None:
        refuse(body, ("suffix", "prompt_embeds"))
        self.echo_only = bool(body.echo) and body.max_tokens == 0
        max_tokens = 1 if self.echo_only else body.max_tokens
        of_prompt = body.logprobs if body.echo and body.prompt_logprobs is None else body.prompt_logprobs
        params = sampling_params(serving, body, max_tokens=max_tokens, logprobs=body.logprobs, prompt_logprobs=of_prompt)
        super().__init__(serving, body, request, params, max_tokens, id_prefix="cmpl", kind="text_completion")
        self.texts = _listed_prompts(body, serving.config.max_num_prompts)

    async def whole(self) -> dict[str, Any]:
        """The answer."""
        with self.serving.admit(len(self.texts) * self.params.n):
            prompts = await self._prompts()
            outputs: dict[int, RequestOutput] = {}
            async with self.outputs(prompts) as found:
                async for index, output in found:
                    outputs[index] = output
        choices: list[dict[str, Any]] = []
        num_completion = 0
        for index, prompt in enumerate(prompts):
            for completion in outputs[index].outputs:
                state = _Choice(self, prompt, index)
                choice = state.choice(completion, outputs[index].prompt_logprobs)
                if self.body.prompt_logprobs is not None:
                    choice["prompt_logprobs"] = prompt_logprobs(outputs[index].prompt_logprobs or [])
                choices.append(choice)
                num_completion += state.num_tokens
        cached = sum(output.num_cached_tokens or 0 for output in outputs.values())
        return {
            **self.common,
            "choices": choices,
            "usage": self.serving.usage(sum(prompt.num_tokens for prompt in prompts), num_completion, cached),
            "system_fingerprint": self.serving.fingerprint,
        }

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer, as it comes."""
        include_usage, continuous = self.usage_chunks()
        writer = ChunkWriter(self.common, self.serving.fingerprint)
        with self.serving.admit(len(self.texts) * self.params.n):
            prompts = await self._prompts()
            states = [[_Choice(self, prompt, i) for _ in range(self.params.n)] for i, prompt in enumerate(prompts)]
            found_logprobs: list[Any] = [None] * len(prompts)
            cached = [0] * len(prompts)
            async with self.outputs(prompts) as found:
                async for index, output in found:
                    found_logprobs[index] = output.prompt_logprobs or found_logprobs[index]
                    cached[index] = output.num_cached_tokens or 0
                    written = []
                    for completion in output.outputs:
                        state = states[index][completion.index]
                        choice = state.choice(completion, found_logprobs[index])
                        num_prompt = prompts[index].num_tokens
                        told = self.serving.usage(num_prompt, state.num_tokens, cached[index]) if continuous else None
                        written.append(writer.chunk([choice], told, last=completion.finished()))
                    yield b"".join(written)
        if include_usage:
            num_prompt = sum(prompt.num_tokens for prompt in prompts)
            num_completion = sum(state.num_tokens for row in states for state in row)
            yield writer.chunk([], self.serving.usage(num_prompt, num_completion, sum(cached)), last=True)

    async def _prompts(self) -> list[EngineInput]:
        inputs, body = self.serving.engine.inputs, self.body
        kept = self.kept()

        def tokenize() -> list[EngineInput]:
            found = []
            for given in self.texts:
                if isinstance(given, str):
                    token_ids = inputs.encode(self.serving.check_text(given), body.add_special_tokens)[kept]
                    text: str | None = given if body.truncate_prompt_tokens is None else inputs.decode(token_ids)
                else:
                    token_ids, text = given[kept], None
                    if body.echo:
                        text = inputs.decode(token_ids)
                if inputs.encoding is None:
                    found.append(EngineInput(token_ids, text, body.cache_salt))
                else:
                    found.append(inputs.prompt({"prompt_token_ids": token_ids, "prompt": text, "cache_salt": body.cache_salt}))
            return found

        return await self.tokenized(tokenize)


class _Choice:
    """One completion as it is told. ``num_tokens``: so far; ``offset``: where its next token begins, in characters."""

    __slots__ = ("completion", "first", "num_tokens", "offset", "prompt", "prompt_index")

    def __init__(self, completion: Completion, prompt: EngineInput, prompt_index: int) -> None:
        self.completion, self.prompt, self.prompt_index = completion, prompt, prompt_index
        self.num_tokens = self.offset = 0
        self.first = True

    def choice(self, output: CompletionOutput, found_prompt_logprobs: Any) -> dict[str, Any]:
        """What is new, as a choice."""
        request, body = self.completion, self.completion.body
        text, token_ids, logprobs = output.text, output.token_ids, output.logprobs or []
        if request.echo_only:
            text, token_ids, logprobs = "", [], []
        self.num_tokens += len(token_ids)
        told_ids, told_logprobs = token_ids, logprobs
        if self.first and body.echo:
            text = (self.prompt.text or "") + text
            told_ids = self.prompt.token_ids + token_ids
            told_logprobs = [*(found_prompt_logprobs or ()), *logprobs]
        choice: dict[str, Any] = {
            "index": self.prompt_index * request.params.n + output.index,
            "text": text,
            "logprobs": None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        if body.logprobs is not None:
            choice["logprobs"], self.offset = completion_logprobs(
                told_ids, told_logprobs, self.offset, request.as_token_ids, request.serving.engine.inputs.decode
            )
        if body.return_token_ids:
            choice["token_ids"] = token_ids
            if self.first:
                choice["prompt_token_ids"] = self.prompt.token_ids
        self.first = False
        return choice


def _listed_prompts(body: CompletionBody, most: int) -> list[str] | list[list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise APIError(400, "`prompt` must be text, token ids, or a list of such that is not empty", "prompt")
    if isinstance(prompt[0], int):
        return [prompt]  # type: ignore[list-item]
    if len(prompt) > most:
        raise APIError(400, f"`prompt`: {len(prompt)} prompts are more than the {most} that this server takes at once", "prompt")
    return prompt  # type: ignore[return-value]
