"""The table of devices: what is picked, what is refused, what an installed package adds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from framework import EngineConfig
from framework.build import build_engine
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.models.library import library_config, num_library_weights
from framework.models.load import load_model
from framework.models.parallel import Parallel
from framework.models.quantization.unquantized import Unquantized
from framework.models.read import read_model
from framework.models.weights import weight_bytes
from framework.plan import KernelPlan
from framework.study.compose import compose
from framework.worker import local_executor
from framework.worker.devices import Cpu, Cuda, Memory, open_device

from ...claimed_cuda import claimed_cuda

ROOT = Path(__file__).parents[3]
GIB = 1 << 30
SIZES = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "dtype": "float32",
}
EXPERTS = {
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "head_dim": 16,
}


def test_auto_takes_the_best_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(open_device("auto"), Cpu)
    with claimed_cuda():
        assert isinstance(open_device("auto"), Cuda) and open_device("auto").torch == torch.device("cuda")


@pytest.mark.parametrize("name", ["xpu", "tpu", "hpu", "npu:1", "meta", "gpu"])
def test_a_device_of_nobody_is_refused_with_the_door_for_it(name: str) -> None:
    kind = name.partition(":")[0]
    with pytest.raises(
        ValueError, match=f"device={name}: .* are cpu, cuda.*entry point named '{kind}' in the group kernelswap.devices"
    ):
        build_engine(EngineConfig(device=name))


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device=cuda:1 was asked for, but torch .* finds none here"):
        open_device("cuda:1")
    for index in ("1", "x", "-1"):
        with pytest.raises(ValueError, match=f"device=cpu:{index} was asked for, but of cpu there are 1 here"):
            open_device(f"cpu:{index}")
    with claimed_cuda(), pytest.raises(ValueError, match=r"device=cuda:4 .* of cuda there are 1 here"):
        open_device("cuda:4")


def test_the_cpu_knows_its_memory() -> None:
    memory = open_device("cpu").memory()
    assert memory is not None and 0 < memory.available <= memory.total


def test_a_model_larger_than_memory_is_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cpu, "memory", lambda self: Memory(22 * GIB, 24 * GIB))
    monkeypatch.setattr(local_executor, "load_model", lambda *_: pytest.fail("weights were allocated"))
    config = compose(["model=qwen3-30b-a3b", "model.load_format=dummy", "device=cpu"], ROOT / "conf").engine()
    with pytest.raises(ValueError, match=r"has 56\.9 GiB of weights in bfloat16, but cpu has 22\.0 GiB available, of 24\.0"):
        build_engine(config)


def test_heads_larger_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cpu, "memory", lambda self: Memory(4 * GIB, 24 * GIB))
    monkeypatch.setattr(local_executor, "load_model", lambda *_: pytest.fail("weights were allocated"))
    bert = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "num_labels": 10**9}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    model = ModelConfig("none", load_format="dummy", skip_tokenizer=True, architecture={**bert, **sizes})
    with pytest.raises(ValueError, match=r"has 119\.2 GiB of weights in float32, but cpu has 4\.0 GiB available"):
        build_engine(EngineConfig(model, device="cpu"))


@pytest.mark.parametrize("cache", [{"num_blocks": 2_000_000}, {"memory_bytes": 1 << 36}])
def test_a_cache_larger_than_memory_is_refused(cache: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cpu, "memory", lambda self: Memory(GIB // 4, GIB))
    monkeypatch.setattr(local_executor, "allocate_caches", lambda *_: pytest.fail("the cache was allocated"))
    scheduler = SchedulerConfig(max_num_seqs=2000)
    with pytest.raises(ValueError, match=r"KV cache of \d+ blocks takes \d+\.\d GiB, but cpu has 0\.2 GiB available"):
        build_engine(EngineConfig(ModelConfig("tiny"), CacheConfig(16, **cache), scheduler, device="cpu"))


def test_a_model_of_the_library_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cpu, "memory", lambda self: Memory(4 * GIB, 24 * GIB))
    monkeypatch.setattr(local_executor, "load_model", lambda *_: pytest.fail("weights were allocated"))
    architecture = {**SIZES, "model_type": "granite", "vocab_size": 1 << 26, "tie_word_embeddings": True}
    model = ModelConfig("none", load_format="dummy", backend="transformers", architecture=architecture, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"has 8\.0 GiB of weights in bfloat16, but cpu has 4\.0 GiB available, of 24\.0"):
        build_engine(EngineConfig(model, device="cpu"))


@pytest.mark.parametrize("more", [{"model_type": "llama"}, {"model_type": "qwen2", "tie_word_embeddings": True}, EXPERTS])
def test_weights_are_counted_as_they_are_bound(more: dict[str, Any]) -> None:
    """Tied and not, with biases, with experts."""
    info = read_model(ModelConfig("none", load_format="dummy", architecture={**SIZES, **more}))
    plan = KernelPlan({"linear": "torch"}, [], torch.device("cpu"), torch.float32)
    bind, bound = plan.bind, {}

    def spy(op: str, weights: Any = None, *args: Any, **kwargs: Any) -> Any:
        bound.update({id(w): w for name, w in (weights or {}).items() if w is not None and name != "cos_sin"})
        return bind(op, weights, *args, **kwargs)

    plan.bind = spy  # type: ignore[method-assign]
    load_model(ModelConfig("none", load_format="dummy"), info, plan, torch.device("cpu"), Parallel(), 16)
    assert info.architecture is not None
    count = sum(weight.numel() for weight in bound.values())
    assert weight_bytes(info.architecture, Unquantized(), torch.float32, max_len=0) == 4 * count
    given = ModelConfig("none", architecture={**SIZES, **more})
    assert num_library_weights(given, library_config(given, None, more["model_type"])) == count


REPORT = """
import json, warnings
from framework import LLM, SamplingParams
from framework.config import CacheConfig, EngineConfig, ModelConfig
from framework.study.environment import environment
from framework.worker.devices import open_device

def refused(device, **architecture):
    try:
        LLM(EngineConfig(ModelConfig("tiny", load_format="dummy", architecture=architecture), device=device))
    except ValueError as error:
        return str(error)

def tokens(device):
    llm = LLM(EngineConfig(ModelConfig("tiny"), CacheConfig(num_blocks=20), device=device, num_threads=1))
    (output,) = llm.generate("def f", SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    return output.outputs[0].token_ids, llm.engine.in_flight_steps, llm.engine.executor.plan.spec.arch

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    auto = open_device("auto").name
print(json.dumps({
    "auto": [auto, [str(w.message) for w in caught]],
    "tokens": [tokens("cpu"), tokens("abacus:1")],
    "env": environment(EngineConfig(device="abacus:1"))["env.device"],
    "broken": refused("broken"), "third": refused("abacus:2"), "xpu": refused("xpu"),
    "large": refused("abacus", vocab_size=200_000),
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh process finds after a package with two devices was installed, one of which cannot be loaded."""
    folder = tmp_path_factory.mktemp("plugins")
    source = shutil.copytree(ROOT / "tests" / "plugins" / "kernelswap_abacus", folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([*pip, str(folder / "site"), str(source)], check=True, timeout=120)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", REPORT], env=env, check=True, capture_output=True, text=True, timeout=120)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_installed_package_adds_a_device(installed: dict[str, Any]) -> None:
    (cpu, _, cpu_arch), (abacus, in_flight_steps, arch) = installed["tokens"]
    assert abacus == cpu and in_flight_steps == 3 and (cpu_arch, arch) == ("cpu", "wood")
    assert installed["env"] == "Abacus 1"
    assert "of abacus there are 2 here" in installed["third"]
    assert "there are cpu, cuda, abacus, broken. Another" in installed["xpu"]
    assert "but Abacus 0 has 0.1 GiB available" in installed["large"]
    if not torch.cuda.is_available():
        assert installed["auto"][0] == "Abacus 0"


def test_a_device_that_cannot_be_loaded_harms_only_those_who_ask_for_it(installed: dict[str, Any]) -> None:
    assert "device=broken comes from a_library_that_is_not_installed:Device, which could not be loaded" in installed["broken"]
    (warning,) = installed["auto"][1]
    assert "device=auto passes over a kind" in warning and "a_library_that_is_not_installed" in warning
