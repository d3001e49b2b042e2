"""Images on executors without a device: the calls of the real model, what its cache holds, and what the engine has it do."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from framework.build import build_engine
from framework.config import (
    CacheConfig,
    EngineConfig,
    ExecutorConfig,
    GraphConfig,
    ModelConfig,
    QuantConfig,
    SchedulerConfig,
    SpeculativeConfig,
)
from framework.engine.encoding import EncoderInput, ImageViews
from framework.engine.engine import Engine
from framework.engine.kv_cache.spec import CrossKV, PagedKV, block_bytes, group_layers
from framework.engine.step import NewRequest, StepInput
from framework.executor.calls import CallList
from framework.executor.device_memory import activation_bytes
from framework.executor.mirror import Mirror
from framework.models.ranks import stages
from framework.models.read import read_model
from framework.multimodal.items import ImageItem
from framework.sampling_params import SamplingParams

from ..engines import assert_idle, finish
from ..multimodal.checkpoints import make_without_weights, picture
from ..multimodal.cogvlm import Checkpoint
from ..multimodal.test_sized import shape
from .simulations import called

KINDS = {"llava": 2, "qwen2_vl": 2, "gemma3": 2, "mllama": 2, "cogvlm": 4}
"""And seeds of workloads of which no chunk is so short that attention takes it for a decode, as a simulated one does not."""
KERNELS = {"qk_norm_rotary_kv_write": "none"}  # as on a CPU
OPS = ("linear", "rms_norm", "kv_cache_write", "embedding", "slot_mapping", "rotary", "qk_norm_rotary_kv_write", "silu_and_mul")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("images") / request.param
    found.mkdir()
    if request.param == "cogvlm":
        Checkpoint(found)
    else:
        make_without_weights(request.param, found)
    return found


@pytest.fixture(scope="module")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("mllama")
    make_without_weights("mllama", found)
    return found


def build(folder: Path, kind: str = "simulated", **settings: Any) -> Engine:
    device = ExecutorConfig("simulated", "h200", "roofline") if kind == "simulated" else ExecutorConfig(kind)
    given = {
        "cache": CacheConfig(16, num_blocks=200),
        "graphs": GraphConfig(enabled=False),
        "kernels": KERNELS,
        "executor": device,
        **settings,
    }
    model = ModelConfig(str(folder), dtype="float32", load_format="dummy")
    return build_engine(EngineConfig(model, **given))


def num_parameters(folder: Path) -> int:
    """Of the library's model, or, of a type that it has not, in the checkpoint."""
    if (file := folder / "model.safetensors").exists():
        return sum(weight.numel() for name, weight in load_file(file).items() if not name.endswith("inv_freq"))
    with torch.device("meta"):
        library = transformers.AutoModelForImageTextToText.from_config(transformers.AutoConfig.from_pretrained(folder))
    return sum(weight.numel() for weight in library.parameters())


def add(engine: Engine, name: str, rng: random.Random, num_images: int, num_tokens: int, num_output: int) -> None:
    """Images of a few, anywhere in the prompt."""
    assert engine.inputs.image_prompts is not None
    ids = [rng.randrange(3, 200) for _ in range(num_tokens)]
    for _ in range(num_images):
        ids.insert(rng.randint(0, len(ids)), engine.inputs.image_prompts.placeholder_id)
    images = [picture(seed := rng.randrange(4), 24 + 20 * (seed % 3), 32) for _ in range(num_images)]
    prompt = {"prompt_token_ids": ids, "multi_modal_data": {"image": images}}
    engine.add_request(name, prompt, SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True))


def test_a_simulated_run_calls_what_a_real_one_does(folder: Path) -> None:
    """With images, some of which come again, and without, beside each other; in chunks, decodes, and steps of both."""
    kind = folder.name
    found: list[Counter[Any]] = []
    for executor in ("local", "simulated"):
        rng, scheduler = random.Random(KINDS[kind]), SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64, in_flight_steps=1)
        engine = build(folder, executor, scheduler=scheduler, profile=True, num_threads=1 if executor == "local" else 0)
        for i in range(8):
            add(engine, str(i), rng, (1, 0, 1 if kind == "cogvlm" else 2, 1)[i % 4], rng.randint(1, 50), rng.randint(1, 8))
        done = finish(engine)
        assert not any(output.error for output in done.values())
        found.append(called(engine, OPS))
        assert engine.stats().num_image_hits > 0
        engine.shutdown()
    real, simulated = found
    assert simulated - real == Counter() and real - simulated == Counter()
    assert {op for op, *_ in real} > {"linear", "embedding", "paged_attention_decode", "paged_attention_prefill"}


def test_weights_and_blocks_are_those_of_a_real_one(folder: Path) -> None:
    budget = {"cache": CacheConfig(16, memory_bytes=3_000_000)}
    real, simulated, null = (build(folder, name, **budget).executor for name in ("local", "simulated", "null"))
    assert simulated.weight_bytes == 4 * num_parameters(folder)
    assert simulated.num_blocks == real.num_blocks == null.num_blocks
    assert simulated.groups == real.groups == null.groups


def test_a_request_takes_nothing_over_from_who_had_its_seat(folder: Path) -> None:
    """Text behind images takes as long as text alone."""
    took, device = [], ExecutorConfig("simulated", "h200", "roofline", 1.0, 0.0, 0.0, 0.0)
    for num_before in (0, 1):
        engine = build(folder, scheduler=SchedulerConfig(max_num_seqs=1), executor=device)
        for i in range(num_before):
            add(engine, str(i), random.Random(4), 1, 30, 4)
            finish(engine)
        begin_s = engine.clock.now()
        text = {"prompt_token_ids": [7] * 60}
        engine.add_request("text", text, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
        finish(engine)
        took.append(engine.clock.now() - begin_s)
    assert took[1] == pytest.approx(took[0], rel=1e-6)


def test_norms_before_visual_experts_quantize_for_neither(tmp_path: Path) -> None:
    """Each product quantizes its own rows, but the last of the MLP, whose activation does."""
    Checkpoint(tmp_path)
    config = EngineConfig(ModelConfig(str(tmp_path), load_format="dummy"), quant=QuantConfig("int8"))
    info = read_model(config.model)
    assert info.architecture is not None
    (stage,) = stages(info.architecture, 1)
    calls = CallList(info, info.architecture, config, fused=False).stage(stage)
    found = {(call.op, call.rows): count for call, count in calls.items() if dict(call.dims).get("out_bytes") == 1}
    assert found == {("silu_and_mul", rows): 2 for rows in ("language", "vision")}
    quantized = Counter(dict.fromkeys(("language", "vision"), 0))
    for call, count in calls.items():
        quantized[call.rows] += count * (call.op == "quantize_activation")
    assert +quantized == {"language": 2 * 3, "vision": 2 * 3}


def test_the_published_number_of_parameters() -> None:
    """Of Llama 3.2 11B Vision, 448 pixels a tile; with the 560 of its Instruct it would have 10,670,220,835."""
    config = shape("llama-3.2-11b-vision")
    config.executor.device = "h200"
    assert build_engine(config).executor.weight_bytes == 2 * 10_642_941_475


def test_larger_images_leave_less_room() -> None:
    """As their embeddings are kept, and while a tower computes them."""
    room, needed = [], []
    for kept in (100, 16000):
        config = shape("qwen2-vl-7b")
        config.executor.device, config.cache.num_blocks = "h200", None
        config.scheduler = SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=64, encoder_cache=kept)
        engine = build_engine(config)
        room.append(engine.executor.num_blocks * block_bytes(engine.executor.groups, config.cache.block_size))
        info, patches = read_model(config.model), 4 * kept
        assert info.architecture is not None
        of_step = activation_bytes(info.architecture, config, info.dtype)
        needed.append(max(of_step, 2 * patches * (2 * 1280 + 2 * 5120)) + 2 * kept * 3584)
    assert room[0] - room[1] == pytest.approx(needed[1] - needed[0], rel=0.01)


def test_text_that_sees_no_image_takes_its_time() -> None:
    """Tables of measured attention have no contexts of nothing."""
    engine = build_engine(shape("llama-3.2-11b-vision"))
    engine.add_request("", {"prompt_token_ids": [5] * 100}, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    (output,) = finish(engine).values()
    assert output.error is None and len(output.outputs[0].token_ids) == 2


def test_one_image_of_several_requests_is_encoded_once(mllama: Path) -> None:
    """And each request stores keys and values of its own."""
    found = {}
    for count in (1, 8):
        engine = build(mllama, "simulated", profile=True, scheduler=SchedulerConfig(max_num_seqs=8))
        for i in range(count):
            prompt = {"prompt_token_ids": [258, i], "multi_modal_data": {"image": picture(1, 56, 28)}}
            engine.add_request(str(i), prompt, SamplingParams(temperature=0, max_tokens=1))
        finish(engine)
        calls = ((*dims, n) for (op, dims, *rows), n in called(engine, ("linear",)).items() if rows == [2 * 17])  # of two tiles
        found[count] = {(in_features, out_features): n for (_, in_features), (_, out_features), n in calls}
    projector, keys_and_values = (96, 64), (64, 64)
    assert found == {1: {projector: 1, keys_and_values: 2}, 8: {projector: 1, keys_and_values: 2 * 8}}


def test_what_is_only_predicted_computes_no_images(tmp_path: Path) -> None:
    """Where the depth of drafts is chosen by the time of steps: at contexts of some, which others have images at."""
    make_without_weights("gemma3", tmp_path)
    spec = {"method": "ngram", "num_speculative_tokens": 3, "adaptive_depth": True, "rejection_sample_method": "synthetic"}
    spec |= {"synthetic_acceptance_rates": [0.9, 0.5, 0.2]}
    engine = build(tmp_path, profile=True, speculative_config=SpeculativeConfig(**spec), scheduler=SchedulerConfig(max_num_seqs=4))
    assert engine.inputs.image_prompts is not None
    image = engine.inputs.image_prompts.placeholder_id
    for i in range(4):
        shown = {"prompt_token_ids": [*[5 + i] * 40, image], "multi_modal_data": {"image": picture(i, 56, 56)}}
        text = {"prompt_token_ids": [5 + i] * 41}
        engine.add_request(str(i), text if i else shown, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    finish(engine)
    done: Counter[str] = Counter()
    for call, _, _, count in engine.executor.call_times or ():
        done[call.op] += count
    report = engine.executor.plan_report()
    assert done == {op: found["calls"] for op, found in report.items()} and done["paged_attention_prefill"]


def test_a_head_that_drafts_has_no_visual_experts() -> None:
    """It is a layer of Llama's: on text, a model without the experts costs as much more."""
    extra = []
    for name, model in (("cogvlm-chat", {"limit_mm_per_prompt": {"image": 0}}), ("llama-2-7b", {})):
        found = []
        for method in (None, "eagle"):
            config = shape(name, **model)
            config.executor = ExecutorConfig("simulated", "h200", "roofline")
            if method is not None:
                rates = {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": [0.9, 0.5, 0.2]}
                config.speculative_config = SpeculativeConfig(method=method, num_speculative_tokens=3, **rates)
            engine = build_engine(config)
            engine.add_request("", {"prompt_token_ids": [5] * 20}, SamplingParams(temperature=0, max_tokens=1))
            finish(engine)
            found.append((engine.executor.weight_bytes, engine.executor.op_times()["linear"].calls, engine.clock.now()))
        extra.append([more - less for less, more in zip(*found)])
    assert extra[0] == pytest.approx(extra[1]) and extra[0][1] > 0


@pytest.mark.parametrize("calibration", [{"calibration": "roofline", "efficiency": 1.0, "kernel_overhead_s": 0.0}, {}])
def test_what_images_take(calibration: dict[str, Any], mllama: Path) -> None:
    """Tokens that see more tiles take longer, and so do steps that encode these."""
    first, later = [], []
    for width in (None, 28, 56, 112):
        device = ExecutorConfig("simulated", "h200", step_overhead_s=0.0, launch_s=0.0, **calibration)
        engine = build(mllama, scheduler=SchedulerConfig(max_num_seqs=8, in_flight_steps=1), executor=device)
        images = [picture(1, width, 28)] if width else []
        prompt = {"prompt_token_ids": [258, 5] if width else [5, 5], "multi_modal_data": {"image": images}}
        engine.add_request("", prompt, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
        times = []
        while engine.has_unfinished():
            begin_s = engine.clock.now()
            engine.step()
            times.append(engine.clock.now() - begin_s)
        first.append(times[0])
        later.append(times[-1])
    assert first == sorted(set(first)) and later == sorted(later) and later[0] < later[-1]


@pytest.mark.parametrize("seed", range(12))
def test_mixes_keep_the_protocol(seed: int, mllama: Path) -> None:
    """Of images and text, preempted and aborted, against the mirror of the cache; tokens depend on nothing else."""
    rng = random.Random(seed)
    size = rng.choice([2, 4, 16])
    one = 3 * -(-68 // size) + 2 * -(-64 // size) + 1
    jobs = [(rng.randrange(3), rng.randint(1, 30), rng.randint(1, 25), rng.random()) for _ in range(rng.randint(4, 12))]
    add_all = partial(_add_all, jobs=jobs)
    alone = build(mllama, "null", cache=CacheConfig(size, num_blocks=one + 300, check_invariants=True))
    expected = {}
    for i in range(len(jobs)):
        add_all(alone, only=i)
        expected |= finish(alone)
    scheduler = SchedulerConfig(max_num_seqs=rng.choice([2, 8]), max_num_batched_tokens=rng.choice([8, 17, 256]))
    scheduler.encoder_cache, scheduler.encoder_budget = rng.choice([1, 40, 100, 16384]), rng.choice([1, 70, 4096])
    cache = CacheConfig(size, num_blocks=one + rng.choice([0, 5, 12, 300]), check_invariants=True)
    engine = build(mllama, "null", cache=cache, scheduler=scheduler)
    add_all(engine)
    aborted, done = {str(i) for i in range(len(jobs)) if rng.random() < 0.2}, {}
    while engine.has_unfinished():
        done |= {output.request_id: output for output in engine.step() if output.finished}
        if aborted and rng.random() < 0.3:
            engine.abort([aborted.pop()])
    for name, output in done.items():
        if output.outputs[0].finish_reason != "abort":
            assert output.outputs[0].token_ids == expected[name].outputs[0].token_ids
    assert_idle(engine)


def _add_all(engine: Engine, jobs: list[tuple[int, int, int, float]], only: int | None = None) -> None:
    for i, (num_images, num_tokens, num_output, own) in enumerate(jobs):
        if only in (None, i):
            add(engine, str(i), random.Random(own), num_images, num_tokens, num_output)


CROSS = group_layers([PagedKV(1, 8, 8, "float32"), CrossKV(1, 8, 8, "float32")])
TILES = ImageItem(0, 1, b"tiles", {"aspect_ratio_mask": np.ones((1, 1, 2))})


def mirrored(mirror: Mirror, step_id: int, *new: NewRequest, seats: tuple[int, ...] = (0,), **more: Any) -> None:
    counts = [len(each.token_ids) for each in new] or [1] * len(seats)
    mirror.apply(StepInput(step_id, list(seats), counts, [1] * len(seats), list(new), **more))


def test_the_mirror_sees_what_is_wrong_with_images() -> None:
    """Six vectors of two tiles, to which a request of two tokens attends, in blocks of four."""
    given = ImageViews(3, 4).encoder_input([TILES])
    assert given is not None

    def request(seat: int, *blocks: list[int], encoded: EncoderInput | None = given) -> NewRequest:
        return NewRequest(seat, str(seat), [5, 6], 2, 0, list(blocks), SamplingParams(seed=seat), encoder_input=encoded)

    mirror = partial(Mirror, 2, 9, 4, 50, CROSS, sees_images=True)
    with pytest.raises(AssertionError, match="image at token 0 is not encoded"):
        mirrored(mirror(encoder_cache=6), 0, request(0, [1], [2, 3]))
    kept = mirror(encoder_cache=5)
    mirrored(kept, 0, request(0, [1], [2, 3]), images=list(given.images))
    with pytest.raises(AssertionError, match="more embeddings are kept"):
        mirrored(kept, 1)
    passing = mirror(encoder_cache=5)
    mirrored(passing, 0, request(0, [1], [2, 3]), images=list(given.images))
    mirrored(passing, 1, forgotten=[given.images[0].key])
    with pytest.raises(AssertionError, match="image at token 0 is not encoded"):
        mirrored(passing, 2, request(1, [4], [5, 6]), seats=(1,))
    overwritten = mirror(encoder_cache=6)
    mirrored(overwritten, 0, request(0, [1], [2, 3]), images=list(given.images))
    mirrored(overwritten, 1, request(1, [2], [], encoded=None), seats=(1,))
    with pytest.raises(AssertionError, match="block 2 does not hold token 0"):
        mirrored(overwritten, 2)
