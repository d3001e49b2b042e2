"""The configuration of speculative decoding: what it stands for, and what it refuses before anything is loaded."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from framework import LLM
from framework.engine.kv_cache.prefix import ExtraKeys
from framework.engine_args import engine_config
from framework.speculation import table
from framework.speculation.config import SpeculativeConfig
from framework.speculation.table import PROPOSERS, proposer_kind


class Echo:
    """Guesses that the last token comes again."""

    def __init__(self, config: SpeculativeConfig) -> None: ...

    def start(self, request_id: str, prompt_token_ids: list[int], extra_keys: ExtraKeys) -> None: ...

    def propose(self, request_id: str, token_ids: list[int], most: int) -> list[int]:
        return [token_ids[-1]] * most

    def stop(self, request_id: str, token_ids: tuple[int, ...] = ()) -> None: ...


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"method": "ngram"}, "num_speculative_tokens=0 .* from 1 to 128, and given with method=ngram"),
        ({"method": "ngram", "num_speculative_tokens": -1}, "num_speculative_tokens=-1 .* from 1 to 128"),
        ({"method": "ngram", "num_speculative_tokens": 129}, "num_speculative_tokens=129 .* from 1 to 128"),
        ({"num_speculative_tokens": 3}, "method=None .* given with num_speculative_tokens: one of ngram, suffix"),
        ({"model": "tiny-draft"}, "method=None .* given with model: one of"),
        ({"method": "oracle", "num_speculative_tokens": 3}, "method='oracle' .* one of ngram, suffix, .* or module:Class"),
        (
            {"method": "no_such:Class", "num_speculative_tokens": 3},
            "method='no_such:Class' .* could not be loaded: ModuleNotFoundError",
        ),
        ({"method": f"{__name__}:Nobody", "num_speculative_tokens": 3}, "method=.* could not be loaded: AttributeError"),
        ({"method": "collections:Counter", "num_speculative_tokens": 3}, "method=.* is no proposer: .* start, propose and stop"),
        ({"method": "draft_model", "num_speculative_tokens": 3}, "model=None .* given for method=draft_model"),
        ({"method": "eagle3", "num_speculative_tokens": 3}, "model=None .* given for method=eagle3"),
        (
            {"method": "ngram", "num_speculative_tokens": 3, "model": "tiny-draft"},
            "model='tiny-draft' .* method=ngram has no weights",
        ),
        ({"method": "mtp", "num_speculative_tokens": 3, "architecture": {"a": 1}}, "architecture=.* of method=draft_model"),
    ],
)
def test_a_method_has_what_it_needs(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"speculative_config.{complaint}"):
        SpeculativeConfig(**given).validate()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"prompt_lookup_min": 0}, "prompt_lookup_min=0 .* a positive number"),
        ({"prompt_lookup_max": 0}, "prompt_lookup_min=None .* a positive number, as prompt_lookup_max"),
        ({"prompt_lookup_min": 4, "prompt_lookup_max": 3}, "prompt_lookup_max=3 .* from 4, which is prompt_lookup_min"),
        ({"prompt_lookup_min": 1, "prompt_lookup_max": 10**9}, "prompt_lookup_max=1000000000 .* to 1024"),
        ({"prompt_lookup_match": "middle"}, "prompt_lookup_match='middle' .* leftmost or rightmost"),
        ({"suffix_decoding_max_tree_depth": 1}, "max_tree_depth=1 .* from 2"),
        ({"suffix_decoding_max_tree_depth": 10**9}, "max_tree_depth=1000000000 .* to 1024"),
        ({"suffix_decoding_max_cached_requests": -1}, "max_cached_requests=-1 .* or more"),
        ({"suffix_decoding_max_spec_factor": 0.0}, "max_spec_factor=0.0 .* more than 0"),
        ({"suffix_decoding_min_token_prob": 1.5}, "min_token_prob=1.5 .* from 0 to 1"),
        ({"rejection_sample_method": "always"}, "rejection_sample_method='always' .* one of match, standard, synthetic"),
        ({"rejection_sample_method": "synthetic"}, "synthetic_acceptance_rates=None .* not both"),
        (
            {"rejection_sample_method": "match", "synthetic_acceptance_length": 2.0},
            "synthetic_acceptance_length=2.0 .* rejection_sample_method=match does not read it",
        ),
        ({"synthetic_acceptance_rates": [0.5, 0.6, 0.1]}, r"rates=\[0.5, 0.6, 0.1\] .* none larger than the one before"),
        ({"synthetic_acceptance_rates": [0.5, 0.4]}, "rates=.* 3 numbers from 0 to 1, as num_speculative_tokens says"),
        ({"synthetic_acceptance_length": 4.5}, "acceptance_length=4.5 .* from 1 to 4, one more than the drafts"),
        ({"synthetic_acceptance_length": 2.0, "synthetic_acceptance_rates": [1.0, 0.5, 0.5]}, "which is 2.0.*, not both"),
        ({"draft_sample_method": "gumbel"}, "draft_sample_method='gumbel' .* one of coupled, greedy, probabilistic"),
        ({"rejection_sample_method": "standard", "draft_sample_method": "coupled"}, "draft_sample_method='coupled' .*standard"),
        ({"num_speculative_tokens_per_batch_size": []}, "per_batch_size=.* at least one"),
        ({"num_speculative_tokens_per_batch_size": [[1, 4]]}, r"rows \[first, last, drafts\]"),
        ({"num_speculative_tokens_per_batch_size": [[2, 4, 3]]}, "begin at 1"),
        ({"num_speculative_tokens_per_batch_size": [[1, 4, 3], [6, 8, 1]]}, "right behind the one before"),
        ({"num_speculative_tokens_per_batch_size": [[1, 4, 3], [4, 8, 1]]}, "right behind the one before"),
        ({"num_speculative_tokens_per_batch_size": [[1, 4, 3], [5, 4, 1]]}, "right behind the one before"),
        ({"num_speculative_tokens_per_batch_size": [[1, 4, 4]]}, "0 to 3 drafts, as num_speculative_tokens says"),
        ({"num_speculative_tokens_per_batch_size": [[1, 4, 3]], "adaptive_depth": True}, "adaptive_depth=True .* false"),
    ],
)
def test_values_that_cannot_work_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"speculative_config.*{complaint}"):
        SpeculativeConfig("ngram", 3, **given).validate()


def test_an_executor_without_a_model_accepts_by_rates_and_needs_no_weights() -> None:
    SpeculativeConfig("eagle3", 1, synthetic_acceptance_rates=[0.5]).validate(has_model=False)
    with pytest.raises(ValueError, match=r"rejection_sample_method=None .* this executor makes tokens up"):
        SpeculativeConfig("eagle3", 1).validate(has_model=False)


def test_what_is_not_said_follows_from_what_is() -> None:
    SpeculativeConfig().validate()
    config = SpeculativeConfig("ngram", 3)
    config.validate()
    assert (config.acceptance_rule, config.draft_sampling, config.prompt_lookup_lengths) == ("match", "coupled", (5, 5))
    assert SpeculativeConfig("ngram", 3, rejection_sample_method="standard").draft_sampling == "probabilistic"
    assert SpeculativeConfig("ngram", 3, synthetic_acceptance_length=1.5).acceptance_rule == "synthetic"
    assert SpeculativeConfig("ngram", 3, prompt_lookup_max=3).prompt_lookup_lengths == (3, 3)
    assert SpeculativeConfig("ngram", 3, prompt_lookup_min=2).prompt_lookup_lengths == (2, 2)
    assert SpeculativeConfig("ngram", 3, prompt_lookup_min=2, prompt_lookup_max=4).prompt_lookup_lengths == (2, 4)


def test_an_llm_takes_it() -> None:
    given = {"method": "suffix", "num_speculative_tokens": 8, "suffix_decoding_min_token_prob": 0}
    assert engine_config("tiny", speculative_config=given).speculative_config == SpeculativeConfig(**given)
    assert engine_config("tiny").speculative_config == SpeculativeConfig()
    with pytest.raises(ValueError, match="speculative_config has no 'num_tokens'; it has method, num_speculative_tokens"):
        LLM("tiny", speculative_config={"method": "ngram", "num_tokens": 3})
    with pytest.raises(ValueError, match=r"speculative_config.num_speculative_tokens='3' .* of type int"):
        LLM("tiny", speculative_config={"method": "ngram", "num_speculative_tokens": "3"})
    with pytest.raises(ValueError, match="num_speculative_tokens=0"):
        LLM("no/such-model", speculative_config={"method": "ngram"})


def test_a_method_can_be_a_class_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = proposer_kind(f"{__name__}:Echo")
    assert kind.place == "host" and kind.load()(SpeculativeConfig()).propose("a", [1, 2], 2) == [2, 2]
    found = [EntryPoint("echo", f"{__name__}:Echo", table.ENTRY_POINT_GROUP)]
    monkeypatch.setattr(table, "entry_points", lambda group: found if group == "kernelswap.proposers" else [])
    assert proposer_kind("echo").load().__name__ == "Echo"
    SpeculativeConfig("echo", 2).validate()
    with pytest.raises(ValueError, match="mtp, echo, or module:Class"):
        SpeculativeConfig("oracle", 2).validate()


@pytest.mark.parametrize("method", [name for name, kind in PROPOSERS.items() if kind.place == "host"])
def test_the_table_names_classes_that_exist(method: str) -> None:
    proposer = proposer_kind(method).load()(SpeculativeConfig(method, 3))
    proposer.start("a", [1, 2, 3], ())
    assert proposer.propose("a", [1, 2, 3], 3) == []
    proposer.stop("a")
