"""Choices, their resolution, and impls that come from outside the tree."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from triton_kernels.impl import Flags, impl
from triton_kernels.impls._shared.native_code import library_reasons
from triton_kernels.registry import Registry
from triton_kernels.resolve import Choice, Choices, NoKernelError, active_overrides, override, parse_choice, resolve
from triton_kernels.spec import Spec

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "plugins"
CPU = Spec("cpu", "cpu", torch.float32)

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")

PLUGIN_FILE = """
from triton_kernels.impl import impl

@impl("silu_and_mul", "{name}", priority={priority}, options={{"tile": 4}})
def kernel(x, tile):
    return x
"""


@pytest.fixture
def registry() -> Registry:
    return Registry.load()


def write_plugin(folder: Path, name: str, priority: int = 0) -> str:
    path = folder / f"plugin_{name}.py"
    path.write_text(PLUGIN_FILE.format(name=name, priority=priority))
    return str(path)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("auto", "auto", {}),
        ("torch", "torch", {}),
        ("splitkv@num_splits:8", "splitkv", {"num_splits": 8}),
        ("a@x:1.5@y:true@z:fast", "a", {"x": 1.5, "y": True, "z": "fast"}),
    ],
)
def test_choice_is_parsed_and_printed(text: str, name: str, options: dict[str, Any]) -> None:
    choice = parse_choice(text)
    assert choice == Choice(name, options)
    assert [type(v) for v in choice.options.values()] == [type(v) for v in options.values()]
    assert str(choice) == text


def test_of_several_choices_the_first_that_can_serve_runs(registry: Registry) -> None:
    half = Spec("cpu", "cpu", torch.float16)
    assert str(parse_choice("onednn|torch@tile:4")) == "onednn|torch@tile:4"
    for spec, name in ((CPU, "onednn"), (half, "torch")):
        found, choice = resolve(registry, "linear", spec, "onednn|torch")
        assert (found.name, choice) == (name, Choice(name, {}))
    with pytest.raises(NoKernelError, match=r"linear=flashinfer\|torch .*\n.*no impl named 'flashinfer'"):
        resolve(registry, "linear", CPU, "flashinfer|torch")  # a slip, not a wish
    with pytest.raises(NoKernelError, match=r"torch: has no option tile"):
        resolve(registry, "linear", half, "onednn|torch@tile:4")


@pytest.mark.parametrize("text", ["", "@x:1", "a@", "a@x", "a@x:", "a@:1", "a|", "|a"])
def test_unreadable_choice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="choice"):
        parse_choice(text)


def test_every_op_has_a_reference_and_a_torch_impl(registry: Registry) -> None:
    """Between ranks torch has libraries, each an impl of its own."""
    expected = {op: {"torch"} for op in registry.ops} | {op: {"gloo", "nccl", "threads"} for op in COLLECTIVES}
    missing = {op: {"reference", *names} - set(registry.impls(op)) for op, names in expected.items()}
    assert not any(missing.values()), missing
    assert not registry.failures


def test_auto_takes_the_best_priority_without_a_reason_against_it(registry: Registry) -> None:
    compiles = not library_reasons("native_linear.c", torch.float32)
    assert resolve(registry, "linear", CPU)[0].name == ("native" if compiles else "onednn")
    assert resolve(registry, "linear", Spec("cpu", "cpu", torch.float16))[0].name == "torch"


def test_auto_never_takes_an_impl_with_its_own_random_numbers(registry: Registry) -> None:
    own = impl("sample", "dice", priority=99, flags=Flags(rng="own"))(lambda logits: logits)
    registry._add(own)
    assert resolve(registry, "sample", CPU)[0].name != "dice"
    assert resolve(registry, "sample", CPU, "dice")[0] is own


def test_a_name_runs_or_the_error_has_every_reason(registry: Registry, tmp_path: Path) -> None:
    registry.add_package(write_plugin(tmp_path, "mine"))
    registry.add_package("a_module_that_does_not_exist")
    impl_found, choice = resolve(registry, "silu_and_mul", CPU, "mine@tile:8")
    assert (impl_found.name, choice.options) == ("mine", {"tile": 8})

    with pytest.raises(NoKernelError) as unknown:
        resolve(registry, "silu_and_mul", CPU, "nonsense")
    for words in ("'nonsense'", "reference: available", "torch: available", "mine: available", "a_module_that_does_not_exist"):
        assert words in str(unknown.value)

    with pytest.raises(NoKernelError, match=r"mine: has no option speed \(options and defaults: tile:4\)"):
        resolve(registry, "silu_and_mul", CPU, "mine@speed:9")
    with pytest.raises(NoKernelError, match="onednn: runs on cpu, not on cuda"):
        resolve(registry, "linear", Spec("cuda", "sm_90", torch.bfloat16), "onednn")
    with pytest.raises(NoKernelError, match=r"onednn: takes float32 and bfloat16, not torch\.float16"):
        resolve(registry, "linear", Spec("cpu", "cpu", torch.float16), "onednn")
    with pytest.raises(ValueError, match="no op named 'lienar'"):
        resolve(registry, "lienar", CPU)


def test_a_triton_kernel_is_refused_on_a_cpu_unless_interpreted(registry: Registry) -> None:
    kernel = impl("silu_and_mul", "tiles", requires=("triton",))(lambda x: x)
    assert any("interpret=true" in reason for reason in kernel.unsupported(CPU))
    assert not kernel.unsupported(Spec("cpu", "cpu", torch.float32, interpret=True))
    absent = impl("silu_and_mul", "absent", requires=("a_library_that_is_not_installed",))(lambda x: x)
    assert absent.unsupported(CPU) == ["needs the package a_library_that_is_not_installed"]


def test_the_kind_of_a_default_counts_a_name_per_op_comes_first(registry: Registry) -> None:
    kernel = impl("silu_and_mul", "tiles", priority=99, requires=("triton",), options={"tile": 4})(lambda x, tile: x)
    own = impl("silu_and_mul", "dice", priority=100, requires=("triton",), flags=Flags(rng="own"))(lambda x: x)
    registry._add(kernel)
    registry._add(own)
    here = Spec("cpu", "cpu", torch.float32, interpret=True)
    choices = Choices(registry, {"default": "triton", "gelu_and_mul": "auto", "sample": "torch"})
    if importlib.util.find_spec("triton"):
        assert choices.resolve("silu_and_mul", here) == (kernel, Choice("tiles", {}), "default")
    with pytest.raises(
        NoKernelError, match=r"silu_and_mul=triton \(by kernels\.default\)(.|\n)*tiles: .*(.|\n)*Set kernels.silu_and_mul"
    ):
        choices.resolve("silu_and_mul", CPU)
    assert [choices.resolve(op, CPU)[2] for op in ("gelu_and_mul", "sample")] == ["auto", "name"]
    assert set(choices.named) == {"sample"}


@pytest.mark.parametrize(("default", "expected"), [("auto", "auto"), ("triton", "auto"), ("torch", "none"), ("reference", "none")])
def test_what_a_default_means_for_a_fused_op(registry: Registry, default: str, expected: str) -> None:
    choices = Choices(registry, {"default": default})
    assert str(choices.of("qk_norm_rotary_kv_write")) == expected
    assert Choices(registry, {"default": default, "qk_norm_rotary_kv_write": "torch"}).fuse("qk_norm_rotary_kv_write", ()) is True
    with pytest.raises(NoKernelError, match="'none'; fused ops alone take it"):
        Choices(registry, {"default": default, "rotary": "none"})


def test_overrides_nest_and_end() -> None:
    with override(linear="torch", sample="reference"):
        with override(linear="reference"):
            assert active_overrides() == {"linear": "reference", "sample": "reference"}
        assert active_overrides()["linear"] == "torch"
    assert active_overrides() == {}


def test_a_second_impl_of_the_same_name_is_reported_and_the_first_stays(registry: Registry, tmp_path: Path) -> None:
    before = registry.impls("silu_and_mul")["torch"]
    registry.add_package(write_plugin(tmp_path, "torch", priority=99))
    assert registry.impls("silu_and_mul")["torch"] is before
    assert [f for f in registry.failures if "silu_and_mul:torch exists already" in f.error]


def test_a_plugin_file_is_loaded_from_its_path(tmp_path: Path) -> None:
    registry = Registry.load([write_plugin(tmp_path, "best", priority=99), str(tmp_path / "missing.py")])
    assert resolve(registry, "silu_and_mul", CPU)[0].name == "best"
    assert [f for f in registry.failures if "missing.py does not exist" in f.error]


REPORT = """
import json, torch
from triton_kernels.registry import Registry
from triton_kernels.resolve import resolve
from triton_kernels.spec import Spec
registry = Registry.load()
spec = Spec("cpu", "cpu", torch.float32)
chosen = resolve(registry, "silu_and_mul", spec, "example")[0]
x = torch.arange(-4.0, 4.0).reshape(2, 4)
print(json.dumps({
    "names": [i.name for i in registry.impls("silu_and_mul").values()],
    "auto": resolve(registry, "silu_and_mul", spec)[0].name,
    "chosen": [chosen.name, chosen.origin, chosen.version],
    "values": chosen.bind(spec)(x).tolist(),
    "failures": [[f.source, f.error] for f in registry.failures],
}))
"""


@pytest.fixture(scope="module")
def installed_plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh process finds after the example package and a broken one were installed."""
    folder = tmp_path_factory.mktemp("plugins")
    sources = [shutil.copytree(PLUGINS / name, folder / name) for name in ("kernelswap_example", "kernelswap_broken")]
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([*pip, str(site), *map(str, sources)], check=True, timeout=120)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", REPORT], env=env, check=True, capture_output=True, text=True, timeout=120)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_installed_package_adds_an_impl(installed_plugins: dict[str, Any]) -> None:
    assert {"reference", "torch", "example"} <= set(installed_plugins["names"])
    assert installed_plugins["chosen"] == ["example", "kernelswap_example.activation", "1.2.3"]
    assert installed_plugins["auto"] != "example"
    x = torch.arange(-4.0, 4.0).reshape(2, 4)
    expected = torch.nn.functional.silu(x[:, :2]) * x[:, 2:]
    torch.testing.assert_close(torch.tensor(installed_plugins["values"]), expected)


def test_a_broken_package_is_reported_and_harms_nobody(installed_plugins: dict[str, Any]) -> None:
    [[source, error]] = installed_plugins["failures"]
    assert source == "entry point broken = kernelswap_broken:register"
    assert "a_library_that_is_not_installed" in error
