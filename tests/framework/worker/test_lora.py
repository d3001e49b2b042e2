"""Steps of rows with adapters: whoever is in the batch, recorded or not, by seat and slot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.config import CacheConfig, EngineConfig, GraphConfig, LoraConfig, ModelConfig, SchedulerConfig
from framework.engine.step import NewRequest, StepInput, TokenLogprobs
from framework.models.lora.adapter import Adapter, Slice, adaptable_parts
from framework.models.read import read_model
from framework.plan import Recording, record
from framework.sampling_params import SamplingParams
from framework.worker import devices
from framework.worker.adapter_host import AdapterHost
from framework.worker.local_executor import LocalExecutor

from ...tiny_adapters import write_tiny_adapter

MODEL = ModelConfig("tiny", dtype="float32")
BLOCK, SEATS, SLOTS = 16, 6, 3
PARAMS = SamplingParams(temperature=0, logprobs=3, seed=0, detokenize=False)
PROMPTS = [[60 + 7 * i + j for j in range(5 + 9 * i)] for i in range(SEATS)]


def random_adapter(seed: int, rank: int = 4) -> Adapter:
    architecture, generator = read_model(MODEL).architecture, torch.Generator().manual_seed(seed)
    assert architecture is not None
    parts = {}
    for name, part in adaptable_parts(architecture).items():
        columns = part.columns or 0
        sizes = [(part.rows[0], columns)] if name == "embed" else [(columns, rows) for rows in part.rows]
        slices = [
            Slice(
                torch.randn(rank, k, generator=generator) * k**-0.5,
                torch.randn(n, rank, generator=generator) * rank**-0.5,
                torch.rand(rank, generator=generator),
            )
            for k, n in sizes
        ]
        parts[name] = tuple(slices)
    return Adapter(f"adapter {seed}", rank, parts)


ADAPTERS = [random_adapter(seed) for seed in range(SLOTS)]


def executor(lora: bool = True, graphs: bool = True, **kernels: str) -> LocalExecutor:
    config = EngineConfig(
        MODEL,
        CacheConfig(BLOCK, 1 + 8 * SEATS),
        SchedulerConfig(max_num_seqs=SEATS),
        graphs=GraphConfig(enabled=graphs),
        lora=LoraConfig(enabled=True, max_loras=SLOTS, max_rank=8) if lora else LoraConfig(),
        kernels=dict(kernels),
        device="cpu",
        num_threads=1,
    )
    found = LocalExecutor(config, read_model(MODEL))
    if lora:
        assert found._model.lora is not None
        for adapter in ADAPTERS:
            found._model.lora.add(adapter)
    return found


class Steps:
    """Drives an executor by hand. Every row has a seat and 8 blocks of its own."""

    def __init__(self, found: LocalExecutor) -> None:
        self.executor, self._count = found, 0
        self.lengths: dict[int, int] = {}

    def run(self, rows: dict[int, int], new: dict[int, int] | None = None, **more: Any) -> dict[int, tuple[int, TokenLogprobs]]:
        """rows: seat -> tokens; new: seat -> slot. -> seat -> the token and its log-probabilities."""
        requests = [
            NewRequest(
                seat,
                str(seat),
                PROMPTS[seat],
                len(PROMPTS[seat]),
                0,
                [[1 + 8 * seat + i for i in range(8)]],
                PARAMS,
                lora_slot=slot,
            )
            for seat, slot in (new or {}).items()
        ]
        self.lengths |= {request.seat: 0 for request in requests}
        self.lengths |= {seat: self.lengths[seat] + count for seat, count in rows.items()}
        wanted = [int(self.lengths[seat] >= len(PROMPTS[seat])) for seat in rows]
        step = StepInput(self._count, list(rows), list(rows.values()), wanted, requests, **more)
        self._count += 1
        output = self.executor.submit(step).result()
        sampled = [seat for seat, has_logits in zip(rows, wanted) if has_logits]
        return {seat: (token, output.logprobs[i]) for i, (seat, token) in enumerate(zip(sampled, output.token_ids))}


def serve(found: LocalExecutor, slots: dict[int, int], num_tokens: int = 8) -> dict[int, list[tuple[int, TokenLogprobs]]]:
    """Greedy tokens of seats with these slots: prompts, the longer ones in two chunks, then decodes."""
    steps, out = Steps(found), {seat: [] for seat in slots}
    loads = [(slot, adapter.key) for slot, adapter in enumerate(ADAPTERS)] if found._model.lora is not None else []
    chunks = [steps.run({seat: min(20, len(PROMPTS[seat])) for seat in slots}, slots, lora_loads=loads)]
    if rest := {seat: len(PROMPTS[seat]) - 20 for seat in slots if len(PROMPTS[seat]) > 20}:
        chunks.append(steps.run(rest))
    chunks += [steps.run(dict.fromkeys(slots, 1)) for _ in range(num_tokens - 1)]
    for chunk in chunks:
        for seat, sampled in chunk.items():
            out[seat].append(sampled)
    return out


def tokens(found: dict[int, list[tuple[int, TokenLogprobs]]]) -> dict[int, list[int]]:
    return {seat: [token for token, _ in sampled] for seat, sampled in found.items()}


def close(found: list[tuple[int, TokenLogprobs]], expected: list[tuple[int, TokenLogprobs]]) -> bool:
    same = [token for token, _ in found] == [token for token, _ in expected]
    return same and all(abs(a.logprob - b.logprob) < 1e-4 for (_, a), (_, b) in zip(found, expected, strict=True))


MIXED = {0: 0, 1: -1, 2: 1, 3: 2, 4: 0, 5: -1}


@pytest.fixture(scope="module")
def mixed() -> Iterator[dict[int, list[tuple[int, TokenLogprobs]]]]:
    yield serve(executor(), MIXED)


def test_adapters_and_base_rows_in_one_batch_are_each_as_alone(mixed: dict[int, list[tuple[int, TokenLogprobs]]]) -> None:
    assert len({tuple(one) for one in tokens(mixed).values()}) == SEATS
    found = executor()
    for seat, slot in MIXED.items():
        assert close(serve(found, {seat: slot})[seat], mixed[seat])


def test_base_rows_have_the_bits_of_an_engine_without_adapters(mixed: dict[int, list[tuple[int, TokenLogprobs]]]) -> None:
    without = serve(executor(lora=False), dict.fromkeys(MIXED, -1))
    for seat, slot in MIXED.items():
        assert (mixed[seat] == without[seat]) == (slot < 0)
    assert serve(executor(), dict.fromkeys(MIXED, -1)) == without


def test_recorded_steps_give_what_others_do(mixed: dict[int, list[tuple[int, TokenLogprobs]]]) -> None:
    """Steps with and without adapters have recordings of their own, and the adapters of rows differ from replay to replay."""
    found, plain = executor(), executor(graphs=False)
    if not found.plan.recorded:
        pytest.skip("nothing is recorded here")
    assert {"lora_shrink", "lora_expand"} <= found.plan.recorded and not plain.plan.recorded
    for slots in (MIXED, {0: 2, 1: 2, 2: -1}, {3: -1, 4: -1, 5: -1}, {0: -1, 1: 0, 2: 1}, {0: -1, 1: -1, 2: -1}):
        recorded, called = serve(found, slots), serve(plain, slots)
        assert all(close(recorded[seat], called[seat]) for seat in slots)


def test_steps_without_adapters_are_recorded_as_without_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings: list[Recording] = []

    def recorded(*given: Any) -> Recording:
        recordings.append(record(*given))
        return recordings[-1]

    monkeypatch.setattr(devices, "record", recorded)
    kinds = []
    for lora in (True, False):
        recordings.clear()
        if not executor(lora).plan.recorded:
            pytest.skip("nothing is recorded here")
        serve(executor(lora), {0: -1, 1: -1})
        kinds.append([(len(one.parts), one.num_kernels) for one in recordings])
    assert kinds[0] == kinds[1] != []


def test_reading_takes_no_threads_that_steps_need(tmp_path: Path) -> None:
    """OpenMP has threads wait for one another by sleeping as soon as it has more of them than there are processors."""
    slots, before = executor()._model.lora, torch.get_num_threads()
    assert slots is not None
    torch.set_num_threads(2)
    try:
        host = AdapterHost(EngineConfig(MODEL, lora=LoraConfig(enabled=True, max_rank=64)), read_model(MODEL), slots)
        host.load(write_tiny_adapter(tmp_path / "a", 1, 64)).result()
        assert host._thread.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
        host.shutdown()
    finally:
        torch.set_num_threads(before)


def test_prompt_logprobs_are_those_of_the_adapter(mixed: dict[int, list[tuple[int, TokenLogprobs]]]) -> None:
    found = executor()
    for seat in (2, 1):
        prompt, params = PROMPTS[seat] + tokens(mixed)[seat], SamplingParams(temperature=0, prompt_logprobs=0, seed=0)
        new = NewRequest(0, "", prompt, len(prompt), 0, [list(range(1, 9))], params, lora_slot=MIXED[seat])
        output = found.submit(StepInput(0, [0], [len(prompt)], [1], [new], lora_loads=[(1, ADAPTERS[1].key)])).result()
        for got, (_, sampled) in zip(output.prompt_logprobs[0][len(PROMPTS[seat]) - 1 :], mixed[seat], strict=True):
            assert got.token_id == sampled.token_id and abs(got.logprob - sampled.logprob) < 1e-4


def test_an_adapter_waits_until_it_is_dropped_as_often_as_it_was_added() -> None:
    found = executor()
    assert found._model.lora is not None
    found._model.lora.add(ADAPTERS[0])
    found._model.lora.drop(ADAPTERS[0].key)
    found._model.lora.load(0, ADAPTERS[0].key)
    found._model.lora.drop(ADAPTERS[0].key)
    with pytest.raises(KeyError):
        found._model.lora.load(0, ADAPTERS[0].key)


def test_a_slot_has_what_was_loaded_last(mixed: dict[int, list[tuple[int, TokenLogprobs]]]) -> None:
    """Nothing is left of an adapter that had a higher rank and more parts."""
    found = executor()
    assert found._model.lora is not None
    name, slices = next(iter(ADAPTERS[1].parts.items()))
    small = Adapter("small", 1, {name: tuple(one and Slice(one.a[:1], one.b[:, :1], one.scale[:1]) for one in slices)})
    found._model.lora.add(small)
    fresh = Steps(found).run({0: len(PROMPTS[0])}, {0: 0}, lora_loads=[(0, "small")])
    Steps(found).run({0: len(PROMPTS[0])}, {0: 0}, lora_loads=[(0, ADAPTERS[1].key)])
    again = Steps(found).run({0: len(PROMPTS[0])}, {0: 0}, lora_loads=[(0, "small")])
    assert again == fresh
    assert close(serve(found, {3: 2})[3], mixed[3])


def test_slots_count_as_weights() -> None:
    found, without = executor(), executor(lora=False)
    lora = found._model.lora
    assert lora is not None
    assert found.nominal_weight_bytes - without.nominal_weight_bytes == lora.num_bytes > 0
