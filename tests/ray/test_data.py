"""Ray Data: rows get what ``LLM.generate`` gives, once each, whatever happens to the actors."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from framework import LLM, EngineConfig, SamplingParams

from ..distributed.test_tokens import config_of

pytest.importorskip("ray", reason="Ray is not installed: pip install 'kernelswap[ray]'")
from framework.ray.data import GenerateBatch

pytestmark = pytest.mark.ray
NUM_ROWS, DOOMED = 200, 77


class KilledOnce(GenerateBatch):
    """Its process is killed in the batch that has the row DOOMED, the first time."""

    def __init__(self, config: EngineConfig, params: SamplingParams, mark: Path) -> None:
        super().__init__(config, params)
        self._mark = mark

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        completed = super().__call__(batch)
        if DOOMED in batch["id"] and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return completed


def test_no_row_is_lost_or_doubled_though_an_actor_is_killed(cluster: Any, tmp_path: Path) -> None:
    params = SamplingParams(temperature=1, seed=5, max_tokens=6)
    config, mark = config_of(None), tmp_path / "killed"
    prompts = [f"def f{i}(a, b):" + " " * (i % 7) for i in range(NUM_ROWS)]
    expected = LLM(config).generate(prompts, params, use_tqdm=False)
    rows = cluster.data.from_items([{"id": i, "prompt": prompt} for i, prompt in enumerate(prompts)])
    completed = rows.map_batches(KilledOnce, fn_constructor_args=(config, params, mark), concurrency=2, batch_size=10)
    found = sorted(completed.take_all(), key=lambda row: row["id"])
    assert mark.exists()
    assert [row["id"] for row in found] == list(range(NUM_ROWS))
    for row, prompt, output in zip(found, prompts, expected, strict=True):
        (completion,) = output.outputs
        assert (row["prompt"], row["text"], list(row["token_ids"])) == (prompt, completion.text, list(completion.token_ids))


def test_rows_of_tokens_and_rows_without_a_prompt() -> None:
    generate = GenerateBatch(config_of(None), SamplingParams(temperature=0, max_tokens=4))
    tokens = [[5, 6, 7], [8, 9]]
    found = generate({"prompt_token_ids": tokens})
    prompts: Any = [{"prompt_token_ids": each} for each in tokens]
    expected = LLM(config_of(None)).generate(prompts, SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
    assert found["token_ids"] == [list(output.outputs[0].token_ids) for output in expected]
    with pytest.raises(ValueError, match="rows have the columns question; one of them must be prompt or prompt_token_ids"):
        generate({"question": ["?"]})
    with pytest.raises(ValueError, match="n=2 cannot work: a row gets one completion"):
        GenerateBatch("tiny", SamplingParams(n=2))
