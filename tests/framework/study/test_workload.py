"""Workloads: deterministic, of the asked shape, and true to the recorded formats."""

from __future__ import annotations

import gzip
import json
import math
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest

from framework.corpus import load_corpus
from framework.study.workload import Workload, WorkloadConfig, build_workload
from framework.study.workload.arrivals import gamma_arrivals
from framework.study.workload.prompts import SOURCES, Source
from framework.study.workload.stand_ins import STAND_INS
from framework.study.workload.traces import FORMATS, TraceEntry, TraceFormat, read_trace

VOCAB = 1000


def encode(text: str) -> list[int]:
    """A tokenizer of its own kind: one token per three bytes."""
    data = text.encode()
    return [sum(data[i : i + 3]) % VOCAB for i in range(0, len(data), 3)]


def write(path: Path, text: str) -> str:
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write(text)
    return str(path)


@pytest.fixture
def azure(tmp_path: Path) -> str:
    rows = "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:51.2224670,879,55\n"
    return write(tmp_path / "azure.csv.gz", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)


@pytest.fixture
def mooncake(tmp_path: Path) -> str:
    rows = [(0, 1100, 5, [0, 1, 2]), (500, 1030, 6, [0, 1, 3]), (1500, 600, 7, [9, 10])]
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    return write(tmp_path / "mooncake.jsonl.gz", "".join(json.dumps(dict(zip(keys, row))) + "\n" for row in rows))


@pytest.fixture
def spec_bench(tmp_path: Path) -> str:
    rows = [{"question_id": i, "category": "writing", "turns": [f"Question number {i}?", "And now shorter."]} for i in range(3)]
    return write(tmp_path / "questions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def sharegpt(tmp_path: Path) -> str:
    turns = [{"from": "human", "value": "Hello there"}, {"from": "gpt", "value": "Good morning to you"}]
    return write(
        tmp_path / "sharegpt.json", json.dumps([{"id": "a", "conversations": turns[:1]}, {"id": "b", "conversations": turns}])
    )


def test_the_same_config_gives_the_same_requests() -> None:
    config = WorkloadConfig(source="python", num_requests=6, rate=4, prompt_tokens=40)
    first, again = (build_workload(config, VOCAB, encode) for _ in range(2))
    assert first == again
    other = build_workload(replace(config, seed=1), VOCAB, encode)
    assert [r.prompt_token_ids for r in first] != [r.prompt_token_ids for r in other]
    assert len({r.sampling.seed for r in first}) == 6


def test_the_automatic_source_is_text_where_there_is_a_tokenizer() -> None:
    auto, python, random = (
        WorkloadConfig(source=source, num_requests=3, prompt_tokens=40) for source in ("auto", "python", "random")
    )
    assert build_workload(auto, VOCAB, encode) == build_workload(python, VOCAB, encode)
    assert build_workload(auto, VOCAB, None) == build_workload(random, VOCAB, None)


def test_heldout_prompts_are_none_that_the_models_were_trained_on() -> None:
    config = WorkloadConfig(source="heldout", num_requests=20, prompt_tokens=40, prompt_spread=0)
    corpus = load_corpus()
    prompts = [request.prompt_token_ids for request in build_workload(config, VOCAB, lambda text: list(text.encode()))]
    texts = [bytes(prompt).decode(errors="ignore") for prompt in prompts]
    assert all(any(text in file.text for file in corpus.heldout) for text in texts)
    assert len(set(texts)) > 10


def test_more_requests_leave_the_first_ones_alone() -> None:
    few = build_workload(WorkloadConfig(num_requests=4), VOCAB, None)
    many = build_workload(WorkloadConfig(num_requests=9), VOCAB, None)
    assert [r.prompt_token_ids for r in few] == [r.prompt_token_ids for r in many[:4]]
    assert [r.sampling for r in few] == [r.sampling for r in many[:4]]


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 4.0])
def test_arrival_gaps_have_the_spread_of_a_gamma_distribution(burstiness: float) -> None:
    times = np.array(gamma_arrivals(20_000, 5.0, burstiness, np.random.default_rng(0)))
    gaps = np.diff(times, prepend=0)
    assert times[-1] == pytest.approx(20_000 / 5.0)
    assert (gaps >= 0).all()
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_extreme_rates() -> None:
    rng = np.random.default_rng(0)
    assert gamma_arrivals(3, math.inf, 1.0, rng) == [0.0, 0.0, 0.0]
    assert gamma_arrivals(4, 2.0, math.inf, rng) == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_lengths_fill_their_range() -> None:
    config = WorkloadConfig(num_requests=300, prompt_tokens=20, prompt_spread=0.5, output_tokens=8, output_spread=0)
    requests = build_workload(config, VOCAB, None)
    assert {len(r.prompt_token_ids) for r in requests} == set(range(10, 31))
    assert {r.sampling.max_tokens for r in requests} == {8}


def test_prompts_of_source_come_from_the_standard_library() -> None:
    characters: list[str] = []

    def by_character(text: str) -> list[int]:
        """Keeps the text recognizable: the tokens are the characters."""
        characters.append(text)
        return [ord(c) for c in text]

    requests = build_workload(
        WorkloadConfig(source="python", num_requests=3, prompt_tokens=60, prompt_spread=0), VOCAB, by_character
    )
    library = [path.read_text() for path in Path(sysconfig.get_paths()["stdlib"]).glob("*.py")]
    for request in requests:
        text = "".join(map(chr, request.prompt_token_ids))
        assert len(text) == 60
        assert any("\n" + text in module for module in library)


def test_shared_prefix() -> None:
    config = WorkloadConfig(num_requests=4, prompt_tokens=10, prompt_spread=0, shared_prefix_tokens=32)
    prompts = [r.prompt_token_ids for r in build_workload(config, VOCAB, None)]
    assert all(len(p) == 42 and p[:32] == prompts[0][:32] for p in prompts)
    assert len({tuple(p[32:]) for p in prompts}) == 4


def test_closed_loop_users_take_turns() -> None:
    requests = build_workload(WorkloadConfig(num_requests=5, arrivals="closed", num_users=2, think_time_s=0.5), VOCAB, None)
    assert [r.user for r in requests] == [0, 1, 0, 1, 0]
    assert all(r.think_time_s is not None and r.think_time_s > 0 for r in requests)


def test_azure_trace(azure: str) -> None:
    config = WorkloadConfig(source="trace", path=azure, num_requests=None, arrivals="trace", time_scale=0.5)
    requests = build_workload(config, VOCAB, None)
    assert [len(r.prompt_token_ids) for r in requests] == [374, 396, 879]
    assert [r.sampling.max_tokens for r in requests] == [44, 109, 55]
    assert [r.arrival_s for r in requests] == pytest.approx([0, 4.314579 / 2, 4.541877 / 2], abs=1e-5)


def test_mooncake_prefixes_are_shared(mooncake: str) -> None:
    config = WorkloadConfig(source="trace", path=mooncake, arrivals="trace")
    a, b, c = (r.prompt_token_ids for r in build_workload(config, VOCAB, None))
    assert (len(a), len(b), len(c)) == (1100, 1030, 600)
    assert a[:1024] == b[:1024]
    assert a[1024:1030] != b[1024:1030]
    assert c[:100] != a[:100]


def test_scaled_mooncake_prefixes_are_shared(mooncake: str) -> None:
    config = WorkloadConfig(source="trace", path=mooncake, arrivals="trace", length_scale=0.1, max_prompt_tokens=105)
    a, b, c = build_workload(config, VOCAB, None)
    assert [len(r.prompt_token_ids) for r in (a, b, c)] == [105, 103, 60]
    assert a.prompt_token_ids[:102] == b.prompt_token_ids[:102]
    assert [r.arrival_s for r in (a, b, c)] == [0, 0.5, 1.5]


def test_what_an_unlimited_cache_would_find_is_told_by_the_traces_blocks(tmp_path: Path) -> None:
    blocks = [[0, 1], [0, 1], [0, 2, 3], [4, 1], [0, 2, 3, 5]]
    entry = {"timestamp": 0, "output_length": 1}
    rows = [entry | {"input_length": 512 * len(ids) - 100, "hash_ids": ids} for ids in blocks]
    path = write(tmp_path / "trace.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    config = WorkloadConfig(source="trace", path=path, num_requests=None)
    # The second is the first again, but its last token is computed; the fourth begins with a block that nobody had.
    found = [request.num_known_tokens for request in build_workload(config, 100, None)]
    assert found == [0, 923, 512, 0, 1536]
    assert [r.num_known_tokens for r in build_workload(replace(config, length_scale=0.25), 100, None)] == [0, 230, 128, 0, 384]
    assert build_workload(WorkloadConfig(), 100, None)[0].num_known_tokens is None


def test_priorities_are_drawn_and_change_nothing_else() -> None:
    one, three = (build_workload(WorkloadConfig(num_priorities=n, num_requests=300), 100, None) for n in (1, 3))
    assert {request.priority for request in one} == {0}
    counts = Counter(request.priority for request in three)
    assert set(counts) == {0, 1, 2} and min(counts.values()) > 70
    assert one == [replace(request, priority=0) for request in three]


def test_traces_of_text(spec_bench: str, sharegpt: str) -> None:
    questions = build_workload(WorkloadConfig(source="trace", path=spec_bench, num_requests=2, rate=1), VOCAB, encode)
    assert [r.prompt_token_ids for r in questions] == [encode("Question number 0?"), encode("Question number 1?")]
    (chat,) = build_workload(WorkloadConfig(source="trace", path=sharegpt, num_requests=None), VOCAB, encode)
    assert chat.prompt_token_ids == encode("Hello there")
    assert chat.sampling.max_tokens == len(encode("Good morning to you"))


def test_a_trace_repeats_after_its_mean_gap(azure: str) -> None:
    config = WorkloadConfig(source="trace", path=azure, num_requests=None, arrivals="trace", time_scale=2)
    once, thrice = build_workload(config, VOCAB, None), build_workload(replace(config, repeat=3), VOCAB, None)
    assert thrice[:3] == once
    span_s = 2 * 4.541877
    assert [r.arrival_s for r in thrice[3:]] == pytest.approx(
        [i * 1.5 * span_s + r.arrival_s for i in (1, 2) for r in once], abs=1e-5
    )
    assert [(len(r.prompt_token_ids), r.sampling.max_tokens) for r in thrice] == 3 * [(374, 44), (396, 109), (879, 55)]
    assert len({tuple(r.prompt_token_ids) for r in thrice}) == len({r.sampling.seed for r in thrice}) == 9


def test_repeated_blocks_are_other_blocks(mooncake: str) -> None:
    config = WorkloadConfig(source="trace", path=mooncake, arrivals="trace", num_requests=2, repeat=2)
    a, b, c, d = (r.prompt_token_ids for r in build_workload(config, VOCAB, None))
    assert a[:1024] == b[:1024] and c[:1024] == d[:1024]
    assert a[:512] != c[:512]


def test_requests_are_made_when_they_are_asked_for(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("framework.study.workload.prompts.random_tokens", lambda count, *_: made.append(count) or [0] * count)
    workload = Workload(WorkloadConfig(source="trace", path=azure, num_requests=None, repeat=1000), VOCAB, None)
    assert (len(workload), len(workload.arrivals), made) == (3000, 3000, [])
    assert len(workload[-1].prompt_token_ids) == 879
    assert [len(r.prompt_token_ids) for r in workload[:2]] == [374, 396]
    assert made == [879, 374, 396]


def entries_of(format: str, seed: int, num_requests: int | None = None) -> list[TraceEntry]:
    return STAND_INS[format](num_requests, np.random.default_rng(seed))


@pytest.mark.parametrize("format", STAND_INS)
def test_stand_ins_are_seeded_and_grow_at_their_end(format: str) -> None:
    few, many, other = entries_of(format, 1, 50), entries_of(format, 1, 90), entries_of(format, 2, 50)
    assert few == many[:50] and few != other
    assert few[0].time_s == 0 and all(a.time_s <= b.time_s for a, b in pairwise(many))


def test_azures_stand_in_has_the_statistics_of_the_trace() -> None:
    """Means of the public trace; a seed's hour differs by a few percent, its rate by a tenth."""
    entries = [entry for seed in range(3) for entry in entries_of("azure", seed)]
    assert len(entries) == 3 * 19_366
    assert np.mean([e.num_prompt_tokens for e in entries]) == pytest.approx(1155, rel=0.05)
    assert np.mean([e.num_output_tokens for e in entries]) == pytest.approx(211, rel=0.03)
    assert np.median([e.num_output_tokens for e in entries]) == pytest.approx(129, rel=0.03)
    gaps = np.diff([e.time_s for e in entries_of("azure", 0)])
    assert gaps.mean() == pytest.approx(0.181, rel=0.2)
    assert 1.0 < gaps.std() / gaps.mean() < 1.15, "burstier than Poisson"


def test_mooncakes_stand_in_has_the_prefixes_of_the_trace() -> None:
    entries, seen, num_found = entries_of("mooncake", 0), set[int](), 0
    for entry in entries:
        assert entry.block_ids is not None and entry.num_prompt_tokens is not None
        assert (len(entry.block_ids) - 1) * 512 < entry.num_prompt_tokens <= len(entry.block_ids) * 512
        found = next((i for i, block in enumerate(entry.block_ids) if block not in seen), len(entry.block_ids))
        num_found += min(512 * found, entry.num_prompt_tokens - 1)
        seen.update(entry.block_ids)
    num_tokens = sum(e.num_prompt_tokens or 0 for e in entries)
    assert num_tokens / len(entries) == pytest.approx(12_035, rel=0.06)
    assert num_found / num_tokens == pytest.approx(0.374, abs=0.03)
    assert entries[-1].time_s == pytest.approx(3537, rel=0.05)


def test_a_trace_needs_no_file() -> None:
    config = WorkloadConfig(source="trace", format="mooncake", num_requests=40, arrivals="trace", length_scale=0.05)
    first, again = (build_workload(config, VOCAB, None) for _ in range(2))
    assert first == again and len(first) == 40
    assert len({tuple(r.prompt_token_ids[:25]) for r in first}) == 1, "the block that all begin with"
    assert build_workload(replace(config, seed=1), VOCAB, None)[0].sampling.max_tokens != first[0].sampling.max_tokens


def test_a_trace_has_the_same_name_wherever_it_lies(azure: str, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "azure.csv.gz"
    copy.parent.mkdir()
    copy.write_bytes(Path(azure).read_bytes())
    here, there = (WorkloadConfig(source="trace", path=str(path)).trace_name() for path in (azure, copy))
    assert here == there and here is not None and re.fullmatch(r"azure\.csv\.gz [0-9a-f]{8}", here)
    copy.write_bytes(gzip.compress(b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,3,4\n"))
    assert WorkloadConfig(source="trace", path=str(copy)).trace_name() != here
    assert WorkloadConfig(source="trace", path="/nowhere/a.csv").trace_name() == "a.csv"
    assert WorkloadConfig(source="trace", format="azure").trace_name() == "stand-in"
    assert WorkloadConfig().trace_name() is None


def test_formats_are_told_apart(azure: str, mooncake: str, spec_bench: str, sharegpt: str, tmp_path: Path) -> None:
    for path, name in ((azure, "azure"), (mooncake, "mooncake"), (spec_bench, "spec_bench"), (sharegpt, "sharegpt")):
        assert read_trace(path)[0] is FORMATS[name]
    assert read_trace(azure)[1][0].num_prompt_tokens == 374
    assert read_trace(mooncake)[1][0].block_ids == (0, 1, 2)
    assert read_trace(spec_bench, max_entries=1)[1] == [TraceEntry(prompt="Question number 0?")]
    assert len(read_trace(sharegpt)[1]) == 1
    with pytest.raises(ValueError, match="none of azure, mooncake, spec_bench, sharegpt"):
        read_trace(write(tmp_path / "other.txt", "something else\n"))
    with pytest.raises(ValueError, match="does not read as mooncake"):
        read_trace(spec_bench, "mooncake")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "books"}, "workload.source='books'"),
        ({"rate": 0}, "workload.rate=0"),
        ({"source": "trace"}, "workload.path=None .* workload.format one of azure, mooncake"),
        ({"source": "trace", "format": "spec_bench"}, "workload.path=None"),
        ({"repeat": 2}, "workload.repeat=2 .* num_requests"),
        ({"source": "trace", "format": "azure", "repeat": 0}, "workload.repeat=0"),
        ({"arrivals": "trace"}, "unless source=trace"),
        ({"path": "trace.csv"}, "workload.path='trace.csv' .* left out, unless source=trace"),
        ({"length_scale": math.inf}, "workload.length_scale=inf .* 1000 at most"),
        ({"time_scale": math.inf}, "workload.time_scale=inf .* 1e.06 at most"),
        ({"rate": 1e-320}, "workload.rate=1e-320 .* 1e-6 or more"),
        ({"think_time_s": math.inf}, "workload.think_time_s=inf .* finite"),
        ({"seed": -1}, "workload.seed=-1 .* 0 or more"),
        ({"num_priorities": 1 << 40}, r"workload.num_priorities=1099511627776 .* 2\^31 at most"),
        ({"source": "trace", "path": "a", "arrivals": "trace", "format": "sharegpt"}, "has timestamps .azure, mooncake"),
        ({"source": "trace", "path": "missing.csv"}, "there is no such file"),
        ({"source": "python"}, "needs a tokenizer"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_workload(replace(WorkloadConfig(), **changes), VOCAB, None)


def test_a_trace_without_timestamps_cannot_be_replayed(spec_bench: str) -> None:
    with pytest.raises(ValueError, match="has no timestamps"):
        build_workload(WorkloadConfig(source="trace", path=spec_bench, arrivals="trace"), VOCAB, encode)


def test_a_trace_of_texts_needs_a_tokenizer(spec_bench: str) -> None:
    with pytest.raises(ValueError, match="source=trace needs a tokenizer"):
        build_workload(WorkloadConfig(source="trace", path=spec_bench), VOCAB, None)


def test_a_source_and_a_format_are_one_entry_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Ones(Source):
        offers = "always the same"
        needs_tokenizer = True

        def tokens(self, num_tokens: int, rng: np.random.Generator) -> list[int]:
            return [1] * num_tokens

    def read(file: TextIO) -> Iterator[TraceEntry]:
        return (TraceEntry(time_s=float(line), num_prompt_tokens=3) for line in file.readlines()[1:])

    monkeypatch.setitem(SOURCES, "ones", Ones)
    monkeypatch.setitem(FORMATS, "times", TraceFormat("seconds", read, lambda line: line == "times", has_times=True))
    (request,) = build_workload(WorkloadConfig(source="ones", num_requests=1, prompt_tokens=3, prompt_spread=0), VOCAB, encode)
    assert request.prompt_token_ids == [1, 1, 1]
    with pytest.raises(ValueError, match="source=ones needs a tokenizer"):
        build_workload(WorkloadConfig(source="ones"), VOCAB, None)
    with pytest.raises(ValueError, match="random, python, heldout, trace, ones"):
        WorkloadConfig(source="books").validate()
    path = write(tmp_path / "a.txt", "times\n0\n2.5\n")
    for format in ("auto", "times"):
        config = WorkloadConfig(source="trace", path=path, format=format, arrivals="trace")
        assert [r.arrival_s for r in build_workload(config, VOCAB, None)] == [0, 2.5]
    with pytest.raises(ValueError, match=r"timestamps \(azure, mooncake, times\)"):
        WorkloadConfig(source="trace", path=path, format="sharegpt", arrivals="trace").validate()


def test_a_shared_prefix_stands_before_recorded_prompts_too(azure: str) -> None:
    requests = build_workload(WorkloadConfig(source="trace", path=azure, shared_prefix_tokens=7), VOCAB, None)
    assert [len(r.prompt_token_ids) for r in requests] == [381, 403, 886]
    assert len({tuple(r.prompt_token_ids[:7]) for r in requests}) == 1


def test_popularity_of_adapters() -> None:
    def numbers(popularity: str, count: int = 4000, num_loras: int = 6) -> list[int]:
        config = WorkloadConfig(
            num_requests=count, num_loras=num_loras, lora_popularity=popularity, lora_folder="/a", prompt_tokens=2
        )
        found = [request.lora_request for request in Workload(config, VOCAB, None)]
        assert all(one is not None and one.lora_path == f"/a/{one.lora_int_id}" for one in found)
        return [one.lora_int_id for one in found if one is not None]

    assert numbers("identical", 20) == [1] * 20
    assert numbers("distinct", 20, 8) == [1 + i % 8 for i in range(20)]
    uniform, skewed = Counter(numbers("uniform")), Counter(numbers("skewed"))
    assert all(uniform[i] == pytest.approx(4000 / 6, rel=0.15) for i in range(1, 7))
    assert [skewed[i] / skewed[i + 1] for i in range(1, 5)] == pytest.approx([1.5] * 4, rel=0.25)
    assert all(request.lora_request is None for request in Workload(WorkloadConfig(num_requests=3), VOCAB, None))
    with pytest.raises(ValueError, match=r"workload.lora_popularity='zipf' cannot work.*identical, distinct, uniform, skewed"):
        WorkloadConfig(lora_popularity="zipf").validate()
    with pytest.raises(ValueError, match=r"needs workload.lora_folder"):
        Workload(WorkloadConfig(num_loras=2), VOCAB, None)
