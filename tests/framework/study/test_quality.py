"""Windows of a text, and the numbers that come of scores per token."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from framework.corpus import load_corpus
from framework.engine.tokenizer import load_tokenizer
from framework.models.hub import resolve_model
from framework.study.quality import cut_windows, quality_metrics, ratio_error, read_text

TEXT = "déjà vu: naïve façade → ünïcödé\n" * 40


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A tokenizer of words that begins texts with nothing."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "é": 1, "bb": 2, "c": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_windows_begin_as_texts_do_and_cover_the_text_once() -> None:
    tokenizer = load_tokenizer(resolve_model("tiny"))
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    windows = cut_windows(TEXT, tokenizer, 33)
    assert windows.token_ids.dtype == np.int64 and windows.token_ids.shape == (len(ids) // 32, 33)
    assert (windows.token_ids[:, 0] == tokenizer.bos_token_id).all()
    assert windows.token_ids[:, 1:].ravel().tolist() == ids[: windows.token_ids.shape[0] * 32]
    covered = tokenizer.decode(windows.token_ids[:, 1:].ravel())
    assert abs(windows.num_bytes.sum() - len(covered.encode())) <= 4  # a letter may end in the next window


def test_without_a_first_token_the_first_of_the_text_is_context(words: PreTrainedTokenizerFast) -> None:
    windows = cut_windows("é bb c é c bb é", words, 3)
    assert windows.token_ids.tolist() == [[1, 2, 3], [1, 3, 2]]
    assert windows.num_bytes.tolist() == [len("bb c "), len("c bb ")]
    assert cut_windows("é bb c é c bb", words, 3).num_bytes.tolist() == [len("bb c "), len("c bb")]


def test_some_windows_are_spread_over_the_text() -> None:
    tokenizer = load_tokenizer(resolve_model("tiny"))
    whole, some = (cut_windows(TEXT, tokenizer, 33, num).token_ids for num in (None, 3))
    assert np.array_equal(some, whole[[0, len(whole) // 3, 2 * len(whole) // 3]])


def test_a_text_that_is_too_short_says_what_it_has_and_needs(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"text=a\.txt has 3 tokens, but 1 window of 4 \(window_tokens\) takes 4"):
        cut_windows("é bb c", words, 4, None, "text=a.txt")
    with pytest.raises(ValueError, match=r"has 3 tokens, but 2 windows of 3 \(window_tokens\) take 6"):
        cut_windows("é bb c", words, 3, 2)


def test_the_text_is_a_file_or_the_held_out_modules(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é\n", encoding="utf-8")
    assert read_text(str(tmp_path / "a.txt")) == (f"text={tmp_path / 'a.txt'}", "é\n")
    _, text = read_text(None)
    corpus = load_corpus()
    assert all(file.text in text for file in corpus.heldout) and len(text) < 1.001 * sum(len(f.text) for f in corpus.heldout) + 100
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("b.txt", "missing.txt"):
        with pytest.raises(ValueError, match=rf"text=.*{name} cannot be read"):
            read_text(str(tmp_path / name))


def test_metrics_by_hand() -> None:
    log2 = math.log(2)
    nats = np.array([[1.0, 3.0], [2.0, 6.0]]) * log2
    baseline = np.array([[1.0, 2.0], [2.0, 4.0]]) * log2
    kl = np.array([[0.0, 0.1], [0.2, 0.5]])
    found = quality_metrics(kl, nats, baseline, np.array([[True, False], [True, True]]), np.array([2, 6]))
    assert found["bits_per_byte"] == pytest.approx(12 / 8) and found["baseline_bits_per_byte"] == pytest.approx(9 / 8)
    assert found["bits_per_byte_increase"] == pytest.approx(3 / 8)
    assert found["kl_mean"] == pytest.approx(0.2) and found["kl_p99"] == pytest.approx(0.2 + 0.97 * 0.3)
    assert found["top1_agreement"] == 0.75
    assert found["perplexity"] == pytest.approx(2**3) and found["baseline_perplexity"] == pytest.approx(2 ** (9 / 4))
    assert (found["num_windows"], found["num_tokens"], found["num_bytes"]) == (2, 4, 8)
    # Window means 0.05 and 0.35: their standard deviation over the root of two.
    assert found["kl_mean_se"] == pytest.approx(0.3 / 2)
    # Bits 4 and 8 of 2 and 6 bytes: residuals +-1 from 1.5 bits per byte.
    assert found["bits_per_byte_se"] == pytest.approx(math.sqrt(2 * 2) / 8)


def test_one_window_has_no_standard_error() -> None:
    one = np.ones((1, 5))
    found = quality_metrics(one, one, one, one > 0, np.array([9]))
    assert not [name for name in found if name.endswith("_se")] and found["kl_mean"] == 1


def test_the_standard_error_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 150, 200)
    totals = sizes * rng.normal(2, 0.3, 200)
    draws = rng.integers(0, 200, (4000, 200))
    spread = (totals[draws].sum(1) / sizes[draws].sum(1)).std()
    assert ratio_error(totals, sizes) == pytest.approx(spread, rel=0.05)


def test_numbers_that_are_not_finite_are_an_error() -> None:
    wrong = np.array([[0.0, math.nan, 1.0]])
    with pytest.raises(ValueError, match="1 of 3 tokens are NaN or infinite"):
        quality_metrics(wrong, wrong, np.zeros((1, 3)), wrong > 0, np.array([9]))
