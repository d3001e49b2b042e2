"""Padded decode batches, without a GPU: recorded as a CPU can, and called where they would be recorded, which proves buffers and
padding for devices that are not here."""

from __future__ import annotations

import functools
import gc
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef

from framework import LLM, EngineConfig, SamplingParams
from framework.config import CacheConfig, GraphConfig, ModelConfig, SchedulerConfig
from framework.models.batch import ForwardBatch
from framework.worker.batches import Batches
from framework.worker.decode_graphs import DecodeGraphs, DecodeRows
from framework.worker.devices import Cpu, Replay
from framework.worker.local_executor import LocalExecutor
from framework.worker.request_rows import RequestRows
from framework.worker.step_rows import StepRows
from triton_kernels.impls._shared.native_code import library_reasons

HOW = ("called", "recorded")
PROMPTS = ["def main():\n", "import os, sys\n", "class A:\n    x = 1\n", "for i in range(10):\n", "x"]
PARAMS = [SamplingParams(temperature=0, max_tokens=5 * n, ignore_eos=True) for n in range(1, 6)]


def llm(**scheduler: int) -> LLM:
    return LLM(
        EngineConfig(
            ModelConfig("tiny", dtype="float32"),
            CacheConfig(block_size=4, num_blocks=200),
            SchedulerConfig(max_num_seqs=8, **scheduler),
            graphs=GraphConfig(enabled=False),
            device="cpu",
            num_threads=1,
        )
    )


def tokens(running: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in running.generate(PROMPTS, PARAMS, use_tqdm=False)]


def record(running: LLM, sizes: list[int], how: str) -> list[int]:
    """Captures graphs: on the CPU (``recorded``), or that call what they would replay (``called``); the list of the sizes that were
    run since."""
    executor = running.engine.executor
    assert isinstance(executor, LocalExecutor)
    replayed: list[int] = []
    make = Cpu().capture() if how == "recorded" else lambda run: run

    def capture(run: Replay) -> Replay:
        inner = make(run)

        def replay() -> tuple[torch.Tensor, torch.Tensor]:
            logits, hidden = inner()
            replayed.append(len(logits))
            return logits, hidden

        return replay

    executor._runner.capture_graphs(sizes, capture)
    return replayed


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("sizes", [[8], [1, 2, 4, 8], [2]])
def test_padded_steps_give_the_same_tokens(sizes: list[int], how: str) -> None:
    running = llm()
    replayed = record(running, sizes, how)
    caches = list(running.engine.executor._runner.caches.values())
    before = [kv.k[0].clone() for kv in caches]
    assert tokens(running) == tokens(llm())
    assert replayed and set(replayed) <= set(sizes)
    assert all(torch.equal(old, kv.k[0]) for old, kv in zip(before, caches)), "padding wrote to the null block"


@functools.cache
def plain(budget: int) -> LLM:
    return llm(max_num_batched_tokens=budget)


@functools.cache
def recorded(budget: int, how: str) -> tuple[LLM, list[int]]:
    running = llm(max_num_batched_tokens=budget)
    return running, record(running, [1, 2, 4, 8], how)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(budget=st.sampled_from([2, 4, 5, 9]), seed=st.integers(0, 10_000), how=st.sampled_from(HOW))
@example(budget=4, seed=0, how="called")
def test_chunks_of_one_token_beside_decodes_change_nothing(budget: int, seed: int, how: str) -> None:
    """The middle of a prompt, one token long, looks like a decode but samples nothing."""
    rng = random.Random(seed)
    prompts = [{"prompt_token_ids": rng.choices(range(300, 2000), k=rng.choice([1, 2, 3, 30]))} for _ in range(6)]
    params = [
        SamplingParams(
            temperature=rng.choice([0.0, 1.0]),
            seed=index,
            max_tokens=rng.randrange(1, 25),
            prompt_logprobs=rng.choice([None, None, 1]),
            frequency_penalty=rng.choice([0.0, 0.5]),
            ignore_eos=True,
        )
        for index in range(6)
    ]

    def outputs(running: LLM) -> list[tuple[list[int], int | None]]:
        found = running.generate(prompts, params, use_tqdm=False)
        return [(o.outputs[0].token_ids, None if o.prompt_logprobs is None else len(o.prompt_logprobs)) for o in found]

    running, replayed = recorded(budget, how)
    first = outputs(running)  # a recording is made when its batch size first comes
    replayed.clear()
    assert outputs(running) == first == outputs(plain(budget))
    assert replayed


@pytest.mark.parametrize("how", HOW)
def test_every_group_has_tables_of_its_own(how: str) -> None:
    """Layers with a window beside layers without."""
    architecture = {
        "model_type": "gemma2",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "sliding_window": 8,
    }
    model = ModelConfig("none", load_format="dummy", architecture=architecture, dtype="float32")
    config = EngineConfig(
        model, CacheConfig(4, 200), SchedulerConfig(max_num_seqs=8), graphs=GraphConfig(enabled=False), device="cpu", num_threads=1
    )
    prompts = [{"prompt_token_ids": list(range(5, 5 + length))} for length in (3, 30, 17)]
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=20, ignore_eos=True, detokenize=False)
    plain, recorded = LLM(config), LLM(config)
    assert len(plain.engine.executor.groups) == 2
    replayed = record(recorded, [4], how)
    found = [[o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)] for llm in (plain, recorded)]
    assert found[0] == found[1] and replayed


def test_blocks_of_drafts_come_with_those_of_the_tokens_before_them() -> None:
    """Of blocks that begin a further part of the table: another row's would stand there."""
    requests = RequestRows(2, 40, 1, 1, torch.device("cpu"), num_drafts=3)
    requests.tables[0, 0, :24], requests.tables[0, 1, :19] = np.arange(100, 124), np.arange(1, 20)
    rows, one = DecodeRows(requests, 1), np.ones(1, dtype=np.int64)
    for seat, length in ((0, 20), (1, 16)):
        rows.fill(StepRows.of(seat * one, one, (length - 1) * one, one))
    assert rows.tables[0, 0, :19].tolist() == list(range(1, 20))


@pytest.mark.parametrize(("counts", "worth"), [((8, 8, 8), True), ((8, 8, 1), True), ((8, 1, 1), False), ((1, 1, 1), True)])
def test_a_cpu_replays_nothing_that_is_mostly_padding(counts: tuple[int, ...], worth: bool) -> None:
    """A recording of four rows with eight tokens each is worth sixteen that count, and more."""
    runner = llm().engine.executor._runner  # type: ignore[attr-defined]
    rows = StepRows.of(np.arange(3), np.array(counts), np.full(3, 20), np.array(counts))
    for most_padding, expected in ((1.0, worth), (None, True)):
        runner.capture_graphs([1, 2, 4], lambda run: run, range(1, 9), most_padding)
        assert runner._graphs.fits(rows) == expected


def test_a_cpu_records_at_the_first_replay_and_only_then() -> None:
    calls, x = [], torch.zeros(1)

    def run() -> torch.Tensor:
        calls.append(len(calls))
        return x + 1

    replay = Cpu().capture()(run)
    assert not calls
    for value in (1.0, 2.0, 3.0):
        x.fill_(value)
        assert float(replay()) == value + 1 and calls == [0]


def test_the_plan_says_what_is_recorded() -> None:
    """A step is recorded as a whole or not at all."""

    def recorded_ops(**kernels: str) -> set[str]:
        running = LLM("tiny", dtype="float32", device="cpu", kernels=kernels)
        tokens(running)
        return {op for op, entry in running.plan().items() if entry["recorded"]}

    if library_reasons("native_step.c", torch.float32):
        pytest.skip("no C compiler")
    assert {"linear", "rms_norm", "paged_attention_decode", "embedding"} <= recorded_ops() and "sample" not in recorded_ops()
    assert recorded_ops(linear="onednn") == recorded_ops()
    assert recorded_ops(rms_norm="reference") == set()


def test_scratch_that_a_smaller_batch_outgrows_stays() -> None:
    """A small batch is cut into more splits: a recording of more rows must not be left with memory that was freed."""
    asked: list[StorageWeakRef] = []

    def begin_step(batch: ForwardBatch) -> None:
        meta = batch.groups[0].decode
        assert meta is not None
        asked.append(StorageWeakRef(meta.scratch("partials", 64 // meta.num_reqs, torch.float32).untyped_storage()))

    def same(x: torch.Tensor, lora: object) -> torch.Tensor:
        return x

    def capture(run: Replay) -> Replay:
        run()
        return lambda: torch.empty(0)

    model = SimpleNamespace(max_model_len=8, begin_step=begin_step, forward=lambda batch: batch.positions, logits=same)
    rows = RequestRows(4, 8, 1, 4, torch.device("cpu"))
    batches = Batches(rows, lambda *args: args[0], slice(None), [])  # type: ignore[arg-type]
    graphs = DecodeGraphs(model, batches, [1, 2, 4], capture)  # type: ignore[arg-type]
    gc.collect()
    assert len({storage.cdata for storage in asked}) == 3 and not any(storage.expired() for storage in asked)
    del graphs
