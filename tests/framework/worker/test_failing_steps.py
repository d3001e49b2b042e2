"""Steps in flight that fail at any place, beside requests that come, are preempted and aborted: those whose steps failed end with
the cause, and all others say what they say alone. Of requests with images, encoders, states and canvases."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from unittest.mock import Mock, patch

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from framework import EngineConfig, SamplingParams
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.engine.diffusion import DiffusionConfig
from framework.engine.engine import Engine
from framework.engine.step import StepInput
from framework.worker.local_executor import LocalExecutor

from ...models import test_block_diffusion, test_diffusion_gemma, test_encoder_decoders
from ..engines import assert_idle, finish, tokens_of
from ..multimodal.checkpoints import KINDS as IMAGE_KINDS
from ..multimodal.checkpoints import MLLAMA, make, picture
from .test_states import JAMBA, MAMBA2

Job = tuple[Any, SamplingParams]
PLANTED = "planted"


@dataclass
class Kind:
    """What is served.

    jobs     five
    room     tokens of the longest job in each KV group, at most
    groups   KV groups of its model
    scheduler, cache  what settings are drawn from
    more     of the engine's configuration
    """

    model: Callable[[Path], ModelConfig]
    jobs: list[Job]
    room: int
    groups: int = 1
    most_in_flight: int = 2
    budgets: tuple[int, ...] = (18, 33, 512)
    scheduler: dict[str, list[Any]] = field(default_factory=dict)
    cache: dict[str, list[Any]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def params(index: int) -> SamplingParams:
    drawn: dict[str, Any] = {"temperature": 0.9, "n": 2 if index == 2 else 1} if index > 1 else {"temperature": 0.0}
    return SamplingParams(**drawn, seed=index, max_tokens=(20, 3, 12, 20, 7)[index], ignore_eos=True)


def with_images(name: str, room: int, groups: int = 1, **scheduler: list[Any]) -> Kind:
    mark = (MLLAMA if name == "mllama" else IMAGE_KINDS[name]).template
    jobs = []
    for index, (text, numbers) in enumerate(
        (("a{}b{}", (1, 2)), ("a{}", (1,)), ("{}c", (3,)), ("text alone", ()), ("{}{}", (4, 1)))
    ):
        images = [picture(number, 24 + 8 * (number % 3), 32) for number in numbers]
        jobs.append(({"prompt": text.replace("{}", mark), "multi_modal_data": {"image": images}}, params(index)))

    def model(folder: Path) -> ModelConfig:
        make(name, folder)
        return ModelConfig(str(folder), dtype="float32", max_model_len=160)

    cache = {} if name == "mllama" else {"prefix_caching": [True, False]}
    return Kind(model, jobs, room, groups, scheduler={"encoder_budget": [1, 20, 4096], **scheduler}, cache=cache)


def of_tokens(architecture: dict[str, Any], **more: Any) -> Kind:
    """Prompts that begin alike."""
    shared = [(7 * i) % 300 + 3 for i in range(29)]
    jobs = [
        ({"prompt_token_ids": [*shared[:count], 50 * index + count]}, params(index))
        for index, count in enumerate((29, 18, 0, 29, 5))
    ]
    model = ModelConfig("made up", dtype="float32", load_format="dummy", skip_tokenizer=True, architecture=architecture)
    return Kind(lambda folder: model, jobs, **{"room": 30 + 20, "budgets": (8, 18, 512), **more})


def kinds() -> dict[str, Kind]:
    chunked = [True, True, False]
    images = {"chunked_prefill": chunked, "encoder_cache": [40, 4096]}
    encoded = [{"prompt_token_ids": test_encoder_decoders.some_tokens(count, count)} for count in (30, 3, 17, 60)]
    begun = {"encoder_prompt": encoded[0], "decoder_prompt": {"prompt_token_ids": test_encoder_decoders.some_tokens(9)}}
    t5 = [(given, params(index)) for index, given in enumerate((*encoded, begun))]
    cached, kept = {"prefix_caching": [True, False]}, {"state_snapshots": [0, 1, 3]}
    gemma, passes = test_diffusion_gemma.ARCHITECTURE, {"diffusion": DiffusionConfig(max_passes=3)}
    return {
        "llava": with_images("llava", 55, **images),
        "qwen2_vl": with_images("qwen2_vl", 60, **images),
        "gemma3": with_images("gemma3", 72, 2, **images),
        "mllama": with_images("mllama", 90, 2, chunked_prefill=chunked),
        "t5": Kind(saved(test_encoder_decoders.example, "t5"), t5, 42, 2, scheduler={"encoder_budget": [1, 40, 4096]}),
        "jamba": of_tokens(JAMBA, cache=kept),
        "mamba2": of_tokens(MAMBA2, cache=kept),
        "sdar": replace(of_tokens({}, room=53, most_in_flight=1, cache=cached), model=saved(test_block_diffusion.example, "sdar")),
        "diffusion_gemma": of_tokens(gemma, room=61, groups=3, most_in_flight=1, cache=cached, more=passes),
    }


def saved(example: Callable[[str, Path], Any], name: str) -> Callable[[Path], ModelConfig]:
    return lambda folder: ModelConfig(str(example(name, folder).folder), dtype="float32", skip_tokenizer=True)


KINDS = kinds()


@functools.cache
def model_of(name: str, folder: Path) -> ModelConfig:
    (own := folder / name).mkdir()
    return KINDS[name].model(own)


def build(name: str, folder: Path, cache: CacheConfig, scheduler: SchedulerConfig) -> Engine:
    cache.check_invariants = True
    model, more = model_of(name, folder), KINDS[name].more
    return build_engine(EngineConfig(model, cache, scheduler, kernels={"default": "reference"}, num_threads=1, **more))


@functools.cache
def alone(name: str, folder: Path) -> Engine:
    return build(name, folder, CacheConfig(num_blocks=100, prefix_caching=False), SchedulerConfig(max_num_seqs=2))


@functools.cache
def expected(name: str, folder: Path, index: int) -> list[list[int]]:
    """What a job says alone."""
    engine = alone(name, folder)
    engine.add_request("alone", *KINDS[name].jobs[index])
    output = finish(engine)["alone"]
    assert output.error is None
    return tokens_of(output)


class Failing:
    """An executor around another one whose next submission fails, if it is told where: "before" the rest of it, when the model
    "computes", "after" all; or its "result"; or what it first "encodes", which ends only requests that it is for.

    failed  ids of requests that are to end with an error
    """

    def __init__(self, inner: LocalExecutor) -> None:
        self.inner, self.place = inner, ""
        self.failed: set[str] = set()
        self._names: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def submit(self, step: StepInput) -> Any:
        place, self.place = self.place, ""
        self._names.update((request.seat, request.request_id.partition("_")[2]) for request in step.new)
        rows = {self._names[seat] for seat in step.seats}
        if place == "encodes":
            return self._encode_once(step)
        self.failed |= rows if place else set()
        if place == "before":
            raise RuntimeError(PLANTED)
        if place == "computes":
            with patch.object(self.inner._model, "forward", side_effect=RuntimeError(PLANTED)):
                return self.inner.submit(step)
        handle = self.inner.submit(step)
        if place == "after":
            raise RuntimeError(PLANTED)
        if place == "result":
            return SimpleNamespace(result=Mock(side_effect=RuntimeError(PLANTED)))
        return handle

    def _encode_once(self, step: StepInput) -> Any:
        encoder = self.inner._encoder or self.inner._tower
        if encoder is None:
            return self.inner.submit(step)
        encode, calls = encoder.encode, list[Any]()

        def failing(given: Any) -> Any:
            calls.append(given)
            if len(calls) == 1:
                raise RuntimeError(PLANTED)
            return encode(given)

        with patch.object(encoder, "encode", failing):
            handle = self.inner.submit(step)
        result = handle.result

        def told() -> Any:
            output = result()
            self.failed |= {names[row] for row in output.failed}
            return output

        names = [self._names[seat] for seat in step.seats]
        handle.result = told
        return handle


class Serving(RuleBasedStateMachine):
    name: ClassVar[str]
    folder: ClassVar[Path]

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        kind = KINDS[self.name]

        def draw(*values: Any) -> Any:
            return data.draw(st.sampled_from(values))

        chosen = {name: draw(*values) for name, values in kind.scheduler.items()}
        whole = not chosen.get("chunked_prefill", True)
        chosen["max_num_batched_tokens"] = 512 if whole else draw(*kind.budgets)
        size = draw(4, 16)
        blocks = 2 + kind.groups * -(-kind.room // size) + draw(0, 0, 3, 60)
        cache = CacheConfig(size, blocks, **{name: draw(*values) for name, values in kind.cache.items()})
        in_flight = draw(*range(1, kind.most_in_flight + 1))
        scheduler = SchedulerConfig(max_num_seqs=draw(2, 6), in_flight_steps=in_flight, **chosen)
        self.engine = build(self.name, self.folder, cache, scheduler)
        self.executor = Failing(cast(LocalExecutor, self.engine.executor))
        self.engine.executor = cast(Any, self.executor)
        self.asked: dict[str, int] = {}
        self.ended: set[str] = set()

    @precondition(lambda self: len(self.asked) - len(self.ended) < 8)
    @rule(indices=st.lists(st.integers(0, 4), min_size=1, max_size=5))
    def ask(self, indices: list[int]) -> None:
        for index in indices:
            request_id = str(len(self.asked))
            self.engine.add_request(request_id, *KINDS[self.name].jobs[index])
            self.asked[request_id] = index

    @rule(
        count=st.integers(1, 8), place=st.sampled_from(["", "", "", "before", "computes", "after", "result", "encodes", "encodes"])
    )
    def step(self, count: int, place: str) -> None:
        self.executor.place = place
        for _ in range(count):
            self._step()
        self.executor.place = ""

    @precondition(lambda self: len(self.asked) > len(self.ended))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        doomed = data.draw(st.sampled_from(sorted(self.asked.keys() - self.ended)))
        self.engine.abort([doomed])
        self.ended.add(doomed)

    def teardown(self) -> None:
        """What was asked comes to its end, and nothing is left of it; and so what is asked then."""
        if not hasattr(self, "engine"):
            return
        for _ in range(2):
            for _ in range(3000):
                if not self.engine.has_unfinished():
                    break
                self._step()
            assert not self.engine.has_unfinished(), "no progress"
            assert_idle(self.engine)
            images = self.engine.scheduler.images
            assert images is None or not images._holders, "room is kept for images of nobody"
            assert len(set(self.engine.scheduler._free_seats)) == self.engine.config.scheduler.max_num_seqs
            self.ask([*range(5)])
        self.engine.abort(self.asked)

    def _step(self) -> None:
        for output in self.engine.step():
            name = output.request_id
            if not output.finished:
                continue
            assert name not in self.ended, "it ends once"
            self.ended.add(name)
            if output.error is not None:
                assert PLANTED in output.error and name in self.executor.failed, "an error of others"
            else:
                assert name not in self.executor.failed
                assert tokens_of(output) == expected(self.name, self.folder, self.asked[name])
        images, runner = self.engine.scheduler.images, self.executor.inner._runner
        if images is not None and runner.images is not None:
            assert set(runner.images._embeddings._kept) <= {*images._kept, *images._forgotten}, "embeddings that nobody knows of"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failing-steps")


def check(name: str, folder: Path, num_examples: int) -> None:
    machine = type(name, (Serving,), {"name": name, "folder": folder})
    chosen = settings(
        max_examples=num_examples, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=chosen)


@pytest.mark.parametrize("name", ["qwen2_vl", "t5", "jamba"])
def test_others_say_what_they_say_alone(name: str, folder: Path) -> None:
    check(name, folder, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_others_say_what_they_say_alone_in_many_mixes(name: str, folder: Path) -> None:
    check(name, folder, 150)


@pytest.mark.parametrize("name", ["qwen2_vl", "t5"])
def test_a_device_that_is_lost_while_it_encodes_ends_all(name: str, folder: Path) -> None:
    engine = build(name, folder, CacheConfig(num_blocks=200), SchedulerConfig(max_num_seqs=2))
    executor = cast(LocalExecutor, engine.executor)
    for index, job in enumerate(KINDS[name].jobs):
        engine.add_request(str(index), *job)
    with patch.object(executor._encoder or executor._tower, "encode", side_effect=torch.AcceleratorError("CUDA error")):
        done = finish(engine)
    assert len(done) == 5 and all("DeviceLostError: CUDA error" in str(output.error) for output in done.values())
    assert engine.errored is not None


def test_what_a_failed_step_was_to_forget_is_forgotten_by_the_next(folder: Path) -> None:
    engine = build("llava", folder, CacheConfig(num_blocks=100), SchedulerConfig(max_num_seqs=2, encoder_cache=16))
    failing = Failing(cast(LocalExecutor, engine.executor))
    engine.executor = cast(Any, failing)
    errors = []
    for index, failing.place in ((1, ""), (2, "before"), (3, "")):
        engine.add_request(str(index), *KINDS["llava"].jobs[index])
        errors.append(finish(engine)[str(index)].error is not None)
    images = failing.inner._runner.images
    assert errors == [False, True, False] and images is not None and not images._embeddings._kept
