"""Bad words of several tokens: their last token is impossible exactly where the tokens before it were generated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from framework import EngineConfig
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig
from framework.engine.step import NewRequest
from framework.plan import KernelPlan
from framework.sampling_params import SamplingParams
from framework.worker.sampler import Sampler
from framework.worker.step_rows import SampleRows

from ..engines import finish

CPU = torch.device("cpu")
WORDS = [[7], [3, 5], [4, 3, 6], [9, 3, 2]]


@pytest.mark.parametrize(
    ("num_prompt_tokens", "expected"),
    [
        (1, 2),  # 7 is a word; 3 5, 4 3 6 would be; 9 3 2 would not
        (2, 6),  # 4 belongs to the prompt
        (3, 6),  # and 3 too, so that 5 is possible, but 6 is likelier
    ],
)
def test_only_what_was_generated_counts(num_prompt_tokens: int, expected: int) -> None:
    sampler = Sampler(KernelPlan({}, [], CPU, torch.float32), 4, 10, CPU)
    params = SamplingParams(temperature=0.0, seed=0)
    params.bad_words_token_ids = WORDS
    plain = SamplingParams(temperature=0.0, seed=0)
    tokens = torch.zeros(5, 12, dtype=torch.int64)
    tokens[1, :3] = tokens[2, :3] = torch.tensor([1, 4, 3])
    sampler.add(NewRequest(1, "bad", [1, 4, 3], num_prompt_tokens, 2, [[1]], params))
    sampler.add(NewRequest(2, "plain", [1, 4, 3], num_prompt_tokens, 2, [[1]], plain))
    seats, positions = np.array([2, 1]), np.array([3, 3])
    rows = SampleRows(seats, positions, torch.from_numpy(seats).int(), torch.from_numpy(positions))
    scores = torch.tensor([0.0, 1.0, 3.0, 2.0, 1.0, 4.0, 5.0, 6.0, 0.0, 0.0])
    found = sampler.sample(scores.repeat(2, 1), rows, tokens).tokens
    assert found.tolist() == [7, expected]


def test_where_a_row_stands_is_what_the_device_says() -> None:
    """With steps in flight, the host knows no more than how far a row may be."""
    sampler = Sampler(KernelPlan({}, [], CPU, torch.float32), 2, 10, CPU)
    early, late = (SamplingParams(temperature=0.0, seed=0, min_tokens=least) for least in (3, 2))
    early.all_stop_token_ids = late.all_stop_token_ids = [7]
    early.bad_words_token_ids = [[4, 5]]
    for seat, params in enumerate((early, late)):
        sampler.add(NewRequest(seat, str(seat), [1, 2], 2, 1, [[1]], params))
    tokens = torch.zeros(3, 12, dtype=torch.int64)
    tokens[0, :7] = torch.tensor([1, 2, 3, 4, 8, 8, 8])
    seats, bound, positions = np.array([0, 1]), np.array([7, 7]), torch.tensor([4, 4])
    rows = SampleRows(seats, bound, torch.from_numpy(seats).int(), positions, ahead=3)
    scores = torch.tensor([0.0, 1.0, 3.0, 2.0, 1.0, 5.0, 4.0, 6.0, 0.0, 0.0])
    assert sampler.sample(scores.repeat(2, 1), rows, tokens).tokens.tolist() == [6, 7]


def test_words_that_the_model_cannot_write_ban_nothing() -> None:
    """The tokenizer knows tokens that the model has not."""
    architecture = {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
    }
    model = ModelConfig("none", load_format="dummy", architecture=architecture, tokenizer="tiny", dtype="float32")
    engine = build_engine(EngineConfig(model, CacheConfig(num_blocks=20), device="cpu", num_threads=1))
    greedy = {"temperature": 0.0, "max_tokens": 6, "ignore_eos": True}
    engine.add_request("plain", [5, 6, 7], SamplingParams(**greedy))
    engine.add_request("words", [5, 6, 7], SamplingParams(**greedy, bad_words=["return", "import os"]))
    done = finish(engine)
    assert len(done["words"].outputs[0].token_ids) == 6
    assert done["words"].outputs[0].token_ids == done["plain"].outputs[0].token_ids
