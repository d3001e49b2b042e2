"""Images beside diffusers' own pipelines: the same latents from the same folder and noise."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from framework import EngineConfig, ImagePipeline
from framework.config import CacheConfig, ModelConfig, SchedulerConfig

needs_diffusers = pytest.mark.skipif(not __import__("importlib.util").util.find_spec("diffusers"), reason="needs diffusers")
PROMPTS = ["a lighthouse", "two red boats on the sea, by night"]
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
UNET: dict[str, Any] = {
    "block_out_channels": (80, 160),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "attention_head_dim": 2,  # which here is how many there are: of 40 and 80 elements
    "cross_attention_dim": 32,
    "sample_size": 12,
}
SD = {"unet": UNET, "vae": {"block_out_channels": [8, 8, 8, 8]}, "text_encoder": TEXT}
XL_UNET = UNET | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 64,
}
XL = SD | {"unet": XL_UNET, "text_encoder_2": TEXT | {"projection_dim": 16}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    pytest.importorskip("diffusers")
    from experiments.made_up_pipeline import write_pipeline

    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("pipelines") / kind
            write_pipeline(made[kind], {"sd": SD, "xl": XL}[kind], seed=0)
        return made[kind]

    return of


@pytest.fixture(scope="module")
def pipeline(folder: Callable[[str], Path]) -> ImagePipeline:
    return ImagePipeline(str(folder("sd")), device="cpu")


def by_diffusers(folder: Path, prompts: list[str], seed: int, **given: Any) -> tuple[np.ndarray, np.ndarray]:
    """(latents, images in 0 .. 255) of the library alone."""
    import diffusers
    import torch

    library: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    library.set_progress_bar_config(disable=True)
    last: dict[str, Any] = {}

    def keep(_: Any, __: int, ___: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        last.update(tensors)
        return tensors

    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    images = library(prompts, generator=generators, callback_on_step_end=keep, output_type="np", **given).images
    return last["latents"].numpy(), images * 255


@pytest.mark.parametrize(
    ("kind", "kernels", "given"),
    [
        ("sd", "auto", {"guidance_scale": 7.5}),
        ("sd", "torch", {"guidance_scale": 7.5, "negative_prompt": "blurred"}),
        ("sd", "reference", {"guidance_scale": 1.0, "height": 32, "width": 64}),
        ("sd", "auto", {"guidance_scale": 3.0, "height": 104, "width": 64, "negative_prompt": ["a", "b"]}),
        ("xl", "auto", {"guidance_scale": 5.0}),
    ],
)
def test_latents_and_images_are_those_of_diffusers(
    kind: str, kernels: str, given: dict[str, Any], folder: Callable[[str], Path]
) -> None:
    found = ImagePipeline(str(folder(kind)), kernels={"default": kernels}, device="cpu").generate(
        PROMPTS, num_inference_steps=4, seed=5, use_tqdm=False, **given
    )
    if isinstance(negative := given.get("negative_prompt"), str):
        given = given | {"negative_prompt": [negative] * 2}
    latents, images = by_diffusers(folder(kind), PROMPTS, 5, num_inference_steps=4, **given)
    assert np.abs(found.latents.numpy() - latents).max() < 1e-4 and np.abs(latents).max() > 0.1
    assert found.latents.shape == (2, 4, given.get("height", 96) // 8, given.get("width", 96) // 8)
    assert np.abs(latents[0] - latents[1]).max() > 0.1
    for image, expected in zip(found.images, images):
        assert np.abs(np.asarray(image) - expected).max() <= 1
    assert found.flagged == [False, False] and len(found.step_seconds) == 4 and min(found.step_seconds) > 0
    impls = {op: found.plan[op]["impl"] for op in ("linear", "paged_attention_prefill")}
    assert kernels == "auto" or set(impls.values()) == {kernels}


def test_the_plan_names_what_ran(pipeline: ImagePipeline) -> None:
    """Two attention layers of one block down, of two up, and in the middle; at each of three steps, once for all prompts."""
    for _ in range(2):
        plan = pipeline.generate("a", num_inference_steps=3, use_tqdm=False).plan
        assert plan["paged_attention_prefill"]["calls"] == 2 * (1 + 2 + 1) * 3, "of this image"
    assert plan["linear"]["calls"] > 0 and set(plan) == {"paged_attention_prefill", "linear", "library"}
    assert plan["library"]["impl"] == "diffusers+transformers"
    assert {"UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"} <= set(plan["library"]["note"].split("+"))


def test_an_image_depends_on_its_own_seed_alone(pipeline: ImagePipeline) -> None:
    given: dict[str, Any] = {"num_inference_steps": 2, "use_tqdm": False}
    together = pipeline.generate(PROMPTS, seed=3, **given).latents
    alone = pipeline.generate(PROMPTS[1], seed=4, **given).latents
    other = pipeline.generate(PROMPTS[1], seed=5, **given).latents
    assert (together[1] - alone[0]).abs().max() < 1e-4 < (alone - other).abs().max()
    assert pipeline.generate("a", **given).latents.equal(pipeline.generate("a", seed=0, **given).latents), "the pipeline's seed"


def test_bfloat16_runs(folder: Callable[[str], Path]) -> None:
    import torch

    made = ImagePipeline(str(folder("sd")), device="cpu", dtype="bfloat16").generate("a", num_inference_steps=2, use_tqdm=False)
    assert made.latents.dtype == torch.float32 and made.latents.isfinite().all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": 5}, "prompt=5"),
        ({"prompt": []}, "prompt="),
        ({"prompt": ["a", None]}, "prompt="),
        ({"prompt": ["a"] * 65}, "prompt=.*1 to 64"),
        ({"prompt": "a\ud800"}, "prompt=.*UTF-8"),
        ({"prompt": ["a" * 10**6] * 65}, "^prompt=.{1,300}$"),
        ({"negative_prompt": "\ud800"}, "negative_prompt=.*UTF-8"),
        ({"prompt": "a" * 200}, "prompt=.*202 tokens.*77"),
        ({"negative_prompt": "b" * 200}, "negative_prompt=.*77"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt=.*one text, or 1"),
        ({"negative_prompt": 3}, "negative_prompt=3"),
        ({"negative_prompt": "a", "guidance_scale": 1}, "guidance_scale=1 .*negative_prompt"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_inference_steps": 2.0}, "num_inference_steps=2.0"),
        ({"num_inference_steps": True}, "num_inference_steps=True"),
        ({"num_inference_steps": 1001}, "num_inference_steps=1001.*1000"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"guidance_scale": -1}, "guidance_scale=-1"),
        ({"guidance_scale": "7"}, "guidance_scale='7'"),
        ({"height": 100}, "height=100 .*multiple of 8"),
        ({"height": 0}, "height=0"),
        ({"width": -8}, "width=-8"),
        ({"width": 1 << 20}, "width=1048576"),
        ({"width": 96.0}, "width=96.0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1 << 64}, "seed="),
        ({"seed": "1"}, "seed='1'"),
    ],
)
def test_arguments_that_cannot_work_are_refused_by_name(given: dict[str, Any], said: str, pipeline: ImagePipeline) -> None:
    with pytest.raises(ValueError, match=said):
        pipeline.generate(**{"prompt": "a", "num_inference_steps": 1, "use_tqdm": False} | given)


def test_kernels_that_cannot_serve_are_refused(folder: Callable[[str], Path]) -> None:
    from triton_kernels.resolve import NoKernelError

    with pytest.raises(NoKernelError, match="paged_attention_prefill=tma"):
        ImagePipeline(str(folder("sd")), kernels={"paged_attention_prefill": "tma"}, device="cpu")
    with pytest.raises(NoKernelError, match=r"rms_norm=torch would never run.*calls linear, paged_attention_prefill"):
        ImagePipeline(str(folder("sd")), kernels={"rms_norm": "torch"}, device="cpu")


@needs_diffusers
@pytest.mark.parametrize(
    ("config", "said"),
    [
        (EngineConfig(cache=CacheConfig(block_size=32)), "cache.block_size=32"),
        (EngineConfig(scheduler=SchedulerConfig(max_num_seqs=3)), "scheduler.max_num_seqs=3"),
        (EngineConfig(ModelConfig(max_model_len=5)), "model.max_model_len=5"),
        (EngineConfig(profile=True), "profile=True"),
        (EngineConfig(ModelConfig(dtype="int8")), "model.dtype='int8'"),
        (EngineConfig(device="abacus"), "device=abacus"),
    ],
)
def test_keys_that_say_nothing_here_are_refused(config: EngineConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImagePipeline(config)


def test_an_engine_config_says_it_all(folder: Callable[[str], Path]) -> None:
    config = EngineConfig(ModelConfig(str(folder("sd"))), kernels={"default": "torch"}, device="cpu", seed=3)
    made = ImagePipeline(config, kernels={"linear": "auto"}).generate("a", num_inference_steps=1, use_tqdm=False)
    assert made.plan["paged_attention_prefill"]["impl"] == "torch" and made.plan["linear"]["impl"] != "torch"
    with pytest.raises(ValueError, match="seed cannot be given beside an EngineConfig"):
        ImagePipeline(config, seed=4)


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"diffusers, which cannot be imported.*pip install 'kernelswap\[diffusers\]'"):
        ImagePipeline(str(tmp_path), device="cpu")


def change_weights(part: Path, name: str) -> None:
    """Of a part's first weight that begins with the name: it is no number any more."""
    from safetensors.torch import load_file, save_file

    file = next(part.glob("*.safetensors"))
    weights = load_file(file)
    first = min(key for key in weights if key.startswith(name))
    weights[first] *= float("nan")
    save_file(weights, file, metadata={"format": "pt"})


def broken(source: Path, target: Path, change: Callable[[Path], None]) -> str:
    shutil.copytree(source, target)
    change(target)
    return str(target)


def without(part: str, name: str) -> Callable[[Path], None]:
    """A change that takes the weights away whose names end so."""
    return lambda folder: rewritten(folder / part, lambda found: {key: x for key, x in found.items() if not key.endswith(name)})


def with_more(part: str) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder / part, lambda found: {**found, "another": next(iter(found.values())).clone()})


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    path = next(folder.glob("*.safetensors"))
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: next((folder / "unet").glob("*.safetensors")).unlink(), "diffusers .* refuses it"),
        (lambda folder: next((folder / "vae").glob("*.safetensors")).write_bytes(b"\0" * 64), "diffusers .* refuses it"),
        (lambda folder: (folder / "unet" / "config.json").write_text("{"), "diffusers .* refuses it"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "names tokenizer"),
        (without("unet", "conv_in.bias"), "weights of unet do not fit.*missing_keys.*conv_in.bias"),
        (without("text_encoder", "final_layer_norm.bias"), "weights of text_encoder do not fit.*final_layer_norm.bias"),
        (with_more("vae"), "weights of vae do not fit.*unexpected_keys.*another"),
    ],
)
def test_broken_folders_are_refused(
    change: Callable[[Path], None], said: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"(?s)cannot make images.*{said}"):
        ImagePipeline(broken(folder("sd"), tmp_path / "broken", change), device="cpu")


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_images_that_are_no_numbers_are_none(part: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Those of the vae come after latents that are."""
    name = broken(folder("sd"), tmp_path / "broken", lambda folder: change_weights(folder / part, "decoder" * (part == "vae")))
    with pytest.raises(RuntimeError, match="no numbers"):
        ImagePipeline(name, device="cpu").generate("a", num_inference_steps=1, use_tqdm=False)


@pytest.mark.parametrize("size", [None, 12.5, [], [12], "x"])
def test_sizes_that_the_model_does_not_tell_must_be_given(size: Any, pipeline: ImagePipeline, monkeypatch: Any) -> None:
    unet = SimpleNamespace(config=SimpleNamespace(sample_size=size))
    library = SimpleNamespace(unet=unet, scheduler=pipeline.library.scheduler, vae_scale_factor=8)
    monkeypatch.setattr(pipeline, "_pipeline", SimpleNamespace(library=library))
    with pytest.raises(ValueError, match=r"height=None .*sample_size"):
        pipeline.generate("a", num_inference_steps=1, use_tqdm=False)


def test_calls_of_threads_wait_for_each_other(pipeline: ImagePipeline) -> None:
    """The schedule of steps is the library's, and one."""
    start = threading.Barrier(2)

    def make(steps: int, *, wait: bool) -> Any:
        if wait:
            start.wait()
        return pipeline.generate("a", num_inference_steps=steps, use_tqdm=False)

    expected = [make(steps, wait=False) for steps in (3, 6)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda steps: make(steps, wait=True), (3, 6)))
    for ours, alone in zip(found, expected):
        assert ours.latents.equal(alone.latents) and len(ours.step_seconds) == len(alone.step_seconds)
        assert ours.plan["linear"]["calls"] == alone.plan["linear"]["calls"]


def test_attention_that_ours_has_not_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from experiments.made_up_pipeline import write_pipeline

    kinds = {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}
    write_pipeline(tmp_path / "m", SD | {"unet": UNET | kinds}, seed=0)
    with pytest.raises(ValueError, match=r"down_blocks.0.attentions.0 attends with group_norm, residual_connection"):
        ImagePipeline(str(tmp_path / "m"), device="cpu")
