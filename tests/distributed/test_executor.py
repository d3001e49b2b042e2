"""Steps on several workers give what one process gives; failures end what they must; what differs is refused. Ranks are threads,
most of them without a model."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
import re
import socket
import struct
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import framework.distributed.worker
from framework import LLM, EngineConfig, SamplingParams
from framework.build import build_engine
from framework.cli import main
from framework.clock import WallClock
from framework.config import ExecutorConfig, ParallelConfig
from framework.distributed import handshake
from framework.distributed.executor import DistributedExecutor
from framework.distributed.handshake import OWN_FACTS, versions
from framework.distributed.kinds import LauncherKind
from framework.distributed.messages import FACTS, Place, Start
from framework.distributed.questions import Question, RanksLoad
from framework.distributed.workers import Silence, Workers
from framework.engine.engine import Engine
from framework.engine.errors import DeviceLostError, EngineDeadError
from framework.engine.executor import LoadedAdapter
from framework.engine.inputs import InputProcessor
from framework.engine.step import StepInput
from framework.executor.null import DoneStep, NullExecutor
from framework.lora_request import LoraConfig, LoRARequest
from framework.worker.rank import own_gpu

from ..framework.engines import assert_idle, finish, token_params, tokens_of
from .ranks import (
    APART,
    ENDED,
    FAULTY,
    HOSTS,
    LATE,
    LOST,
    SHAPE,
    FailingLayer,
    MeetingRanks,
    adapter_rank,
    failing_start,
    make_config,
    make_engine,
    null_rank,
    odd_vocabulary,
    planned_rank,
    small_last_rank,
    tiny_config,
    tiny_on_output_rank,
)


def served(engine: Engine, num_requests: int = 20) -> dict[str, list[list[int]]]:
    for i in range(num_requests):
        params = token_params(max_tokens=3 + i % 7, ignore_eos=True, seed=i, n=1 + i % 2, temperature=1.0)
        engine.add_request(str(i), [i % 5] * (1 + 6 * i % 50), params)
    found = {name: tokens_of(output) for name, output in finish(engine).items()}
    assert_idle(engine)
    return found


@pytest.mark.parametrize(("size", "pp", "in_flight"), [(3, 1, 0), (1, 3, 0), (2, 2, 1), (2, 1, 4)])
def test_outputs_are_those_of_one_process(size: int, pp: int, in_flight: int) -> None:
    config = make_config(size, "threads", pp=pp, in_flight_steps=in_flight)
    alone = Engine(config, NullExecutor(config, SHAPE), InputProcessor(None, {}, ()), WallClock())
    engine = make_engine(config, null_rank)
    assert engine.in_flight_steps == (in_flight or pp)
    assert served(engine) == served(alone)
    assert not engine.executor._outputs and not engine.executor._failures, "nothing is kept of steps that are done"  # type: ignore[attr-defined]
    engine.shutdown()
    with pytest.raises(EngineDeadError, match="shut down"):
        engine.add_request("late", [1], token_params())
        engine.step()
        engine.step()


def test_the_benchmark_goes_round(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "executor", "--backend", "threads", "--workers", "2", "--steps", "3", "--rows", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()[:1].isdigit()}
    assert all(int(size) <= 8 * int(num_rows) + 200 for num_rows, (size, *_) in rows.items() if num_rows != "2")
    assert {"1", "64", "256", "1024", "2"} <= set(rows)


@pytest.mark.parametrize(("dp", "pp", "tp"), [(1, 3, 2), (3, 1, 2), (2, 3, 1), (2, 3, 4), (1, 1, 1)])
def test_places_count_by_scheduler_and_stage(dp: int, pp: int, tp: int) -> None:
    grid = np.arange(dp * pp * tp).reshape(dp, pp, tp)
    places = [Place(rank, grid.size, tp, dp=dp) for rank in range(grid.size)]
    for place, (scheduler, stage, tp_rank) in zip(places, np.ndindex(dp, pp, tp), strict=True):
        assert (place.dp_rank, place.stage, place.tp_rank, place.num_stages) == (scheduler, stage, tp_rank, pp)
        assert [list(peers) for peers in place.peers] == [
            grid[scheduler, stage].tolist(),
            grid[scheduler, :, tp_rank].tolist(),
            grid[:, stage, tp_rank].tolist(),
        ]
    assert [place.rank for place in places if place.is_output] == grid[:, -1, 0].tolist()


def test_ranks_take_gpus_after_the_first_counted_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = make_config(3)
    config.parallel.first_device = 2
    assert [own_gpu(config, Place(rank, 3, 3)) for rank in range(3)] == ["cuda:2", "cuda:3", "cuda:0"]


def test_only_output_ranks_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(make_config(2, "threads", pp=2), null_rank)
    workers, told = engine.executor._workers, []  # type: ignore[attr-defined]
    receive = workers.receive

    def spy(ready: Any) -> Any:
        messages, ended = receive(ready)
        told.extend(rank for rank, _ in messages)
        return messages, ended

    monkeypatch.setattr(workers, "receive", spy)
    served(engine)
    engine.plan_report()  # all that was said is heard
    assert set(told[:-4]) == {2} and sorted(told[-4:]) == [0, 1, 2, 3]
    engine.shutdown()


# Failures


def rank_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if re.fullmatch(r"kernelswap-rank-\d+", thread.name)}


def failed(engine: Engine, fault: int, rank: int) -> str:
    engine.add_request("fault", [fault, rank, 0], token_params(max_tokens=5000, ignore_eos=True))
    error = finish(engine)["fault"].error
    assert error is not None
    return error


def test_an_error_of_all_ranks_ends_the_requests_of_its_step_alone() -> None:
    engine = make_engine(make_config(2, "threads", max_num_seqs=1))
    engine.add_request("first", [1, 9, 9], token_params(max_tokens=6))
    engine.add_request("fault", [FAULTY, 0, 0], token_params(max_tokens=6))
    engine.add_request("after", [2, 9, 9], token_params(max_tokens=6))
    found = finish(engine)
    assert found["fault"].error in [f"RuntimeError: rank {r}: FloatingPointError: the kernel failed" for r in (0, 1)]
    assert [len(found[name].outputs[0].token_ids) for name in ("first", "after")] == [6, 6]
    assert_idle(engine)
    assert engine.errored is None
    engine.shutdown()


@pytest.mark.parametrize("fault", [FAULTY, LATE])
def test_an_error_of_one_rank_ends_the_engine(fault: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the output rank had told of the step."""
    monkeypatch.setattr("framework.distributed.executor.FAILURE_S", 0.2)
    engine = make_engine(make_config(3, "threads"))
    engine.add_request("other", [1, 2, 3], token_params(max_tokens=5000, ignore_eos=True))
    engine.step()
    error = failed(engine, fault, 1)
    assert error.startswith("DeviceLostError: rank 1: FloatingPointError: the kernel failed; not all ranks failed like that")
    assert isinstance(engine.errored, DeviceLostError)
    engine.shutdown()


def test_ranks_that_fail_in_different_ways_end_the_engine() -> None:
    """They may have come differently far."""
    engine = make_engine(make_config(2, "threads"))
    error = failed(engine, APART, 0)
    assert re.search("rank [01]: .*; rank [01]: .*; not all ranks failed like that", error)
    assert isinstance(engine.errored, DeviceLostError)


@pytest.mark.parametrize("ranks", [(0, 1), (1,), (0,)])
def test_what_a_rank_sends_is_never_taken_for_that_of_another_step(ranks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer fails after others have passed their collectives."""
    monkeypatch.setattr("framework.distributed.executor.FAILURE_S", 0.5)
    before, config = rank_threads(), tiny_config(2)
    engine = Engine(config, DistributedExecutor(config, FailingLayer(2, ranks)), InputProcessor(None, {}, ()), WallClock())
    params = token_params(max_tokens=6, ignore_eos=True)
    engine.add_request("before", [5, 6, 7], params)
    tokens = tokens_of(finish(engine)["before"])
    engine.add_request("fault", [FailingLayer.token, 6, 7], params)
    error = str(finish(engine)["fault"].error)
    assert ("not all ranks failed" in error) == (len(ranks) == 1)
    if len(ranks) == 1:
        assert isinstance(engine.errored, DeviceLostError)
        assert rank_threads() <= before, "a rank waits for one that failed"
        return
    engine.add_request("after", [5, 6, 7], params)
    assert tokens_of(finish(engine)["after"]) == tokens
    engine.shutdown()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("fault", "text"), [(LOST, "rank 1: .*fell off the bus"), (ENDED, "rank 1 .thread .* ended with an exc")])
def test_a_rank_that_is_lost_ends_the_engine(fault: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.distributed.workers.KILL_S", 0.1)  # the others sleep
    engine = make_engine(make_config(2, "threads"))
    error = failed(engine, fault, 1)
    assert error.startswith("DeviceLostError: rank 1") and engine.errored is not None
    assert re.search(text, error)
    with pytest.raises(EngineDeadError, match="rank 1"):
        engine.add_request("next", [1], token_params())


# The handshake


def test_what_lies_before_a_sign_of_life_is_not_lost() -> None:
    executor = DistributedExecutor(make_config(2, "threads", in_flight_steps=3), null_rank)
    workers = executor._workers
    handles = [executor.submit(StepInput(0, [], [], []))]
    assert workers._workers[0].pipe.poll(60)
    for step_id in (1, 2):
        workers._pinged_s = -3600.0
        handles.append(executor.submit(StepInput(step_id, [], [], [])))
    assert [handle.result().step_id for handle in handles] == [0, 1, 2]
    executor.shutdown()


class FailingSubmission(NullExecutor):
    """Of step 1; waits before it takes any."""

    go = threading.Event()

    def submit(self, step: StepInput) -> DoneStep:
        self.go.wait()
        if step.step_id == 1:
            raise FloatingPointError("the kernel failed")
        return super().submit(step)


class SilentLauncher:
    """Of workers of which only the ends of their pipes are there."""

    host = ""

    def __init__(self) -> None:
        self.theirs: list[Any] = []

    def launch(self, start: Start) -> Any:
        pipe, theirs = multiprocessing.Pipe()
        self.theirs.append(theirs)
        return SimpleNamespace(pipe=pipe, sentinel=None, name=f"stub {start.place.rank}", join=lambda _: True, kill=lambda: None)

    def close(self) -> None:
        pass


def silent_workers(size: int) -> tuple[Workers, list[Any]]:
    launcher = SilentLauncher()
    workers = Workers(launcher, 0.2)
    workers.start([Start(Place(rank, size), EngineConfig(), null_rank) for rank in range(size)])
    return workers, launcher.theirs


def test_a_message_that_is_broken_off_is_waited_for_no_longer_than_a_step() -> None:
    workers, theirs = silent_workers(2)
    os.write(theirs[1].fileno(), struct.pack("!i", 100) + b"half of it")
    with pytest.raises(Silence, match=r"^rank 1 .stub 1. broke off a message, and did not go on within 0.2 s"):
        workers.receive(workers.wait(60))
    workers.kill()


def test_who_takes_no_message_is_waited_for_no_longer_than_a_step() -> None:
    workers, _ = silent_workers(1)
    with pytest.raises(Silence, match=r"^rank 0 .stub 0. took no message within 0.2 s"):
        for _ in range(1000):
            workers.send(bytes(1 << 16))
    workers.kill()


def test_what_a_step_that_failed_may_sample_is_not_for_the_one_before() -> None:
    executor = DistributedExecutor(make_config(2, "threads", in_flight_steps=2), lambda config, _: FailingSubmission(config, SHAPE))
    before, failed = (executor.submit(StepInput(step_id, [], [], [])) for step_id in (0, 1))
    failed.sample(np.zeros((1, 2), dtype=np.int32))
    FailingSubmission.go.set()
    assert before.result().step_id == 0
    with pytest.raises(RuntimeError, match=r"rank .: FloatingPointError: the kernel failed"):
        failed.result()
    executor.shutdown()


def test_the_cache_is_as_large_as_the_smallest_of_a_rank_and_plans_are_put_together() -> None:
    executor = DistributedExecutor(make_config(3, "threads"), small_last_rank)
    assert (executor.num_blocks, executor.weight_bytes, executor.nominal_weight_bytes) == (77, 3, 3)
    executor.shutdown()
    executor = DistributedExecutor(make_config(2, "threads"), planned_rank)
    report = executor.plan_report()
    assert set(report) == {"sample", "op_0", "op_1"} and report["sample"]["calls"] == 0
    executor.shutdown()


def test_ranks_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size differs: 50 on rank 0, 51 on rank 1"):
        make_engine(make_config(2, "threads"), odd_vocabulary)
    message = "kernel of sample differs: torch@tiles:1 1 on rank 0, torch@tiles:2 1 on rank 2; choose it by name .kernels.sample."
    with pytest.raises(ValueError, match=message):
        make_engine(make_config(3, "threads"), planned_rank)


@pytest.mark.parametrize("fact", sorted(set(FACTS) - set(OWN_FACTS)))
def test_ranks_that_differ_in_a_fact_are_refused(fact: str) -> None:
    class Different(NullExecutor):
        def __init__(self, config: EngineConfig, place: Place) -> None:
            super().__init__(config, SHAPE)
            if place.rank == 2:
                setattr(self, fact, 12345)

    with pytest.raises(ValueError, match=f"{fact} differs: .* on rank 0, 12345 on rank 2; are the model's files the same"):
        make_engine(make_config(3, "threads"), Different)


def test_ranks_with_other_versions_of_a_kernel_are_refused() -> None:
    class Different(NullExecutor):
        def __init__(self, config: EngineConfig, place: Place) -> None:
            super().__init__(config, SHAPE)
            self._rank = place.rank

        def plan_report(self) -> dict[str, dict[str, Any]]:
            return {"sample": {"impl": "torch", "choice": "torch", "version": f"1+tuned.{self._rank // 2}", "calls": 0}}

    with pytest.raises(ValueError, match=r"the kernel of sample differs: torch 1\+tuned.0 on rank 0, torch 1\+tuned.1 on rank 2"):
        make_engine(make_config(3, "threads"), Different)


def test_versions_are_those_of_all_that_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert {name: found[name] for name in ("torch", "triton", "numpy")} == {
        name: importlib.metadata.version(name) for name in ("torch", "triton", "numpy")
    }
    monkeypatch.setattr(handshake, "__file__", str(tmp_path / "framework" / "distributed" / "handshake.py"))
    seen = {found["kernelswap"]}
    for source in ("framework/worker/runner.py", "triton_kernels/impls/sample.py"):
        (tmp_path / source).parent.mkdir(parents=True)
        for text in ("x = 1", "x = 2"):
            (tmp_path / source).write_text(text)
            seen.add(versions()["kernelswap"])
    assert len(seen) == 5


@pytest.mark.parametrize("name", ["python", "kernelswap", "torch", "triton", "numpy"])
def test_other_versions_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framework.distributed.worker, "versions", lambda: versions() | {name: "0.9"})
    with pytest.raises(ValueError, match=rf"{name} differs: 0.9 in the worker of rank ., .* in the engine's process; install"):
        make_engine(make_config(2, "threads"), null_rank)


def test_other_configurations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = framework.distributed.worker.flat
    monkeypatch.setattr(framework.distributed.worker, "flat", lambda config: flat(config) | {"cache.prefix_caching": "False"})
    with pytest.raises(ValueError, match=r"cache.prefix_caching differs: False in the worker of rank 0, None in the engine's proc"):
        make_engine(make_config(2, "threads"), null_rank)


def test_what_a_rank_cannot_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.distributed.workers.KILL_S", 0.1)  # the others sleep
    with pytest.raises(ValueError, match=r"kernels.sample='nonsense'") as caught:
        make_engine(make_config(2, "threads"), failing_start)
    assert caught.value.__notes__ == ["This was on rank 1 of 2."]


def test_a_rank_that_cannot_start_leaves_nobody_waiting() -> None:
    before = rank_threads()
    with pytest.raises(ValueError, match=r"kernels.sample='nonsense'"):
        make_engine(make_config(2, "threads"), MeetingRanks())
    assert rank_threads() <= before


# Interrupts, as by Ctrl-C


def interrupt_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The next call of a method."""

    def interrupted(*given: Any) -> Any:
        monkeypatch.setattr(owner, name, whole)
        raise KeyboardInterrupt

    whole = getattr(owner, name)
    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("pp", [1, 2])
def test_an_interrupt_while_a_step_runs_gives_up_that_step_alone(pp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(make_config(2, "threads", pp=pp), null_rank)
    expected = served(engine)
    for _ in range(3):
        engine.add_request("given up", [1, 2, 3], token_params(max_tokens=50, ignore_eos=True))
        engine.step()
        interrupt_once(monkeypatch, engine.executor._workers, "wait")  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            finish(engine)
        engine.abort(["given up"])
        assert served(engine) == expected and engine.errored is None
    engine.shutdown()


@pytest.mark.parametrize(("place", "name"), [(1, "send_bytes"), (0, "recv_bytes")])
def test_an_interrupt_amid_messages_ends_the_engine(place: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank would have a step that the other has not, or the rest of a message would be taken for the next."""
    engine = make_engine(make_config(2, "threads"), null_rank)
    pipe = engine.executor._workers._workers[place].pipe  # type: ignore[attr-defined]
    engine.add_request("r", [1, 2, 3], token_params())
    interrupt_once(monkeypatch, pipe, name)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.add_request("next", [1, 2, 3], token_params())
    assert "KeyboardInterrupt came between the messages" in str(finish(engine)["next"].error)
    assert isinstance(engine.errored, DeviceLostError)


# The surface


def test_a_model_gives_the_same_from_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt log-probabilities, masks of structured output, and several steps in flight cross the border."""
    params = [
        SamplingParams(temperature=0, max_tokens=8, prompt_logprobs=2, logprobs=3),
        SamplingParams(temperature=1, seed=3, max_tokens=8, structured_outputs={"regex": "[0-9]{3} [a-z]{2}"}),
        SamplingParams(temperature=1, seed=4, max_tokens=8, frequency_penalty=1),
    ]
    prompts = ["def add(a, b):", "The number is ", "import "]
    alone = LLM("tiny", num_gpu_blocks_override=64)
    expected = alone.generate(prompts, params, use_tqdm=False)
    monkeypatch.setattr(DistributedExecutor, "open", classmethod(lambda cls, config, *_: cls(config, tiny_on_output_rank)))
    parallel = ParallelConfig(tp=2, backend="threads")
    config = replace(alone.engine.config, executor=ExecutorConfig("distributed"), parallel=parallel)
    llm = LLM(config)
    found = llm.generate(prompts, params, use_tqdm=False)
    assert [output.outputs for output in found] == [output.outputs for output in expected]
    assert found[0].prompt_logprobs == expected[0].prompt_logprobs
    assert min(engine.plan()["sample"]["calls"] for engine in (llm, alone)) > 0  # how many depends on when the grammar was compiled
    llm.shutdown()


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = EngineConfig(executor=ExecutorConfig("distributed"), parallel=ParallelConfig(port=port))
        with pytest.raises(ValueError, match=f"parallel.port={port} cannot work: Address already in use"):
            build_engine(config)


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_launcher").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    kind = LauncherKind("a_launcher", "Launcher", package="a_launcher", extra="launching")
    assert kind.reason == "the package a_launcher is not installed: pip install 'kernelswap[launching]'"
    (tmp_path / "a_launcher" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert kind.reason is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parallel": ParallelConfig(backend="mpi")}, "parallel.backend='mpi' .* one of processes, threads, ray"),
        ({"parallel": ParallelConfig(backend="ray")}, r"parallel.backend=ray cannot work: .* pip install 'kernelswap\[ray\]'"),
        ({"parallel": ParallelConfig(placement="far")}, "parallel.placement='far' .* one of pack, spread"),
        ({"parallel": ParallelConfig(placement="spread")}, "placement='spread' .*backend=processes does not read it; ray does"),
        ({"parallel": ParallelConfig(step_timeout_s=0.0)}, "parallel.step_timeout_s=0.0 .* from 0.001 to 1000000"),
        ({"parallel": ParallelConfig(step_timeout_s=1e7)}, "parallel.step_timeout_s=10000000.0 .* from 0.001 to 1000000"),
        ({"parallel": ParallelConfig(start_timeout_s=float("inf"))}, "parallel.start_timeout_s=inf .* from 0.001 to 1000000"),
        ({"parallel": ParallelConfig(port=-1)}, "parallel.port=-1"),
        ({"parallel": ParallelConfig(dp=2, port=65535)}, "parallel.port=65535 .* one for each engine"),
        ({"profile": True}, "profile=True .* calls its kernels elsewhere"),
        ({"executor": ExecutorConfig("distributed", op_scale={"linear": 2.0})}, "executor.op_scale=.* calls its kernels elsewhere"),
        ({"executor": ExecutorConfig(), "parallel": ParallelConfig(backend="threads")}, "backend.*local does not read it; distrib"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.distributed.kinds.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        EngineConfig(**{"executor": ExecutorConfig("distributed"), **given}).validate()


def test_all_ranks_read_adapters_or_none_keeps_them() -> None:
    HOSTS.clear()
    config = replace(make_config(3, "threads"), lora=LoraConfig(True, 2, 16, 2))
    engine = make_engine(config, adapter_rank)

    def lora(number: int, path: str) -> LoRARequest:
        return LoRARequest(f"adapter-{number}", number, path)

    engine.add_lora(lora(1, "/good"))
    with pytest.raises(ValueError, match=r"/bad/1 has no adapter_config.json") as failed:
        engine.add_lora(lora(2, "/bad/1"))
    assert failed.value.__notes__ == ["This was on rank 1 of 3."]
    with pytest.raises(ValueError, match="the ranks read 3 different adapters from /different"):
        engine.add_lora(lora(3, "/different"))
    for i, adapter in enumerate([lora(1, "/good"), lora(2, "/bad/2"), lora(4, "/other"), lora(5, "/third")]):
        engine.add_request(str(i), [1, 2], token_params(max_tokens=4, seed=i), lora_request=adapter)
    found = finish(engine)
    assert [found[str(i)].error for i in range(4)] == [None, "/bad/2 has no adapter_config.json", None, None]
    engine.plan_report()  # the ranks have done all that they were told
    assert len(engine.list_loras()) == 2
    assert [held.total() for held in HOSTS] == [2, 2, 2]
    engine.shutdown()


def test_an_adapter_takes_the_bytes_of_all_ranks() -> None:
    question = Question(2, lambda _: None)
    question.found = {1: LoadedAdapter("key", 8, 12), 0: LoadedAdapter("key", 8, 10)}
    assert RanksLoad("/good", question, print).result() == LoadedAdapter("key", 8, 22)
