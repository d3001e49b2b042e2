"""Hooks around kernel calls, on the tiny model: what they see, what they slow down, and that without one nothing is wrapped."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from framework.build import build_engine
from framework.config import EngineConfig
from framework.engine.engine import Engine
from framework.plan import BoundKernel
from framework.sampling_params import SamplingParams
from framework.worker.probes import _Probed

PROMPT = list(range(5, 25))


def engine(**keys: Any) -> Engine:
    config = EngineConfig(num_threads=1, **{key: value for key, value in keys.items() if key != "op_scale"})
    config.executor.op_scale = keys.get("op_scale", {})
    config.cache.num_blocks = 64
    return build_engine(config)


def serve(built: Engine, num_tokens: int = 6) -> list[int]:
    built.add_request("a", {"prompt_token_ids": PROMPT}, SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True))
    tokens: list[int] = []
    while built.has_unfinished():
        for output in built.step():
            tokens = output.outputs[0].token_ids
    return list(tokens)


def bound(built: Engine) -> list[BoundKernel]:
    return built.executor.plan.bound  # type: ignore[attr-defined]


def test_without_a_hook_nothing_is_wrapped() -> None:
    built = engine()
    assert built.executor.call_times is None
    assert not any(isinstance(kernel.run, _Probed) for kernel in bound(built))


def test_only_what_was_asked_for_is_wrapped() -> None:
    built = engine(capture=["linear"])
    assert {kernel.op for kernel in bound(built) if isinstance(kernel.run, _Probed)} == {"linear"}


def test_replays_are_seen_and_tokens_stay_the_same() -> None:
    """One prefill and five decodes, of which all but the first replay a recording: every call of every step is there, with the
    length that the request had then."""
    built, plain = engine(profile=True), engine()
    assert serve(built) == serve(plain)
    num_layers = len(built.executor.groups[0].layers)
    times = built.executor.call_times
    assert times is not None and times.source == "wall"
    calls: Counter[str] = Counter()
    lengths = []
    for call, _, seconds, count in times:
        assert seconds > 0 and count == 1
        calls[call.op] += 1
        if call.op == "paged_attention_decode":
            lengths.append(call.ctx_lens)
    assert calls["paged_attention_prefill"] == num_layers and calls["paged_attention_decode"] == 5 * num_layers
    assert calls["silu_and_mul"] == 6 * num_layers and calls["sample"] == 6
    assert lengths == [(len(PROMPT) + i,) for i in range(1, 6) for _ in range(num_layers)]


def test_an_op_is_slowed_down_by_its_factor() -> None:
    """Of the time between the calls of one layer and the next, that of the slowed op is three times what its call took."""
    built = engine(profile=True, op_scale={"silu_and_mul": 3.0})
    serve(built)  # records
    times = built.executor.call_times
    assert times is not None
    times.clear()
    serve(built, 20)
    calls = list(times)
    ratios = [
        (after[1] - start_s) / seconds
        for (call, start_s, seconds, _), after in pairwise(calls)
        if call.op == "silu_and_mul" and seconds > 2e-6
    ]
    assert min(ratios) >= 3.0
    others = [(after[1] - start_s) / seconds for (call, start_s, seconds, _), after in pairwise(calls) if call.op == "linear"]
    assert sorted(others)[len(others) // 4] < 3.0


def test_the_host_is_slowed_down_too() -> None:
    slow, plain = engine(profile=True, op_scale={"host": 6.0}), engine(profile=True)
    spent = {}
    for name, built in (("slow", slow), ("plain", plain)):
        serve(built)
        times = built.executor.call_times
        assert times is not None
        times.clear()
        serve(built, 40)
        calls = list(times)
        spent[name] = calls[-1][1] - calls[0][1] - sum(seconds for _, _, seconds, _ in calls)
    assert spent["slow"] > 2 * spent["plain"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"capture": ["rms_norm", "layer_norm"]}, "capture names 'layer_norm', which this model never calls"),
        ({"op_scale": {"attention": 2.0}}, "executor.op_scale names 'attention'"),
        ({"op_scale": {"linear": 0.5}}, "1 or more for executor.kind=local .it cannot make kernels faster"),
    ],
)
def test_hooks_on_nothing_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine(**keys)


def test_an_executor_without_kernels_has_no_hooks() -> None:
    config = EngineConfig(profile=True)
    config.executor.kind = "null"
    with pytest.raises(ValueError, match=r"executor\.kind=null calls no kernels"):
        build_engine(config)
