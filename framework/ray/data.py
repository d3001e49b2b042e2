"""Batch inference with Ray Data."""

from __future__ import annotations

from typing import Any

from ..config import EngineConfig
from ..llm import LLM
from ..sampling_params import SamplingParams


class GenerateBatch:
    """Completes the prompts of batches; for ``Dataset.map_batches``, which builds one in each of its actors::

        params = SamplingParams(temperature=0, max_tokens=64)
        prompts.map_batches(GenerateBatch, fn_constructor_args=("tiny", params), concurrency=2, batch_size=64)

    Rows bring a prompt in the column ``prompt`` (text) or ``prompt_token_ids`` (int [length]), and keep all columns that they have.
    They get ``text`` and ``token_ids`` (int [length]). What comes out does not depend on how rows are cut into batches if it is
    greedy, or if params bring a seed.

    Raises as ``LLM`` and ``LLM.generate`` do, and ValueError for several completions per prompt, and for rows without one.
    """

    def __init__(self, config: EngineConfig | str, params: SamplingParams | None = None) -> None:
        if params is not None and params.n != 1:
            raise ValueError(f"n={params.n} cannot work: a row gets one completion; repeat the rows, with seeds of their own")
        self._llm, self._params = LLM(config), params

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """batch: column -> values."""
        prompts: list[Any]
        if "prompt" in batch:
            prompts = [str(prompt) for prompt in batch["prompt"]]
        elif "prompt_token_ids" in batch:
            prompts = [{"prompt_token_ids": [int(token) for token in tokens]} for tokens in batch["prompt_token_ids"]]
        else:
            raise ValueError(f"rows have the columns {', '.join(batch)}; one of them must be prompt or prompt_token_ids")
        completions = [output.outputs[0] for output in self._llm.generate(prompts, self._params, use_tqdm=False)]
        found = {"text": [each.text for each in completions], "token_ids": [list(each.token_ids) for each in completions]}
        return batch | found
