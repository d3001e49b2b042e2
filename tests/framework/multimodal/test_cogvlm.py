"""CogVLM and CogVLM2, whose layers have weights of their own for tokens of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from framework import LLM

from .checkpoints import picture
from .cogvlm import BOS, NUM_IMAGE, PAD, VISION, Checkpoint
from .cogvlm_reference import Reference
from .harness import GREEDY, log_probabilities, serve, token_ids, with_logprobs

PROMPTS: list[tuple[list[str], Image.Image | None]] = [
    (["", "Hello there"], picture(1)),
    (["Hi ", " what"], picture(2, 60, 25)),
    (["Look: ", ""], picture(3, 25, 60)),
    (["text alone"], None),
]
"""Text around an image, which is at the start, in the middle, at the end."""


def asked(pieces: list[str], image: Image.Image | None) -> Any:
    return "<image>".join(pieces) if image is None else {"prompt": "<image>".join(pieces), "multi_modal_data": {"image": image}}


def tokens(llm: LLM, *prompts: Any) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(list(prompts), GREEDY, use_tqdm=False)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("cogvlm")
    Checkpoint(found)
    return found


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return serve(folder)


@pytest.mark.parametrize("second", [False, True])
def test_log_probabilities_are_those_of_the_published_code(second: bool, tmp_path: Path) -> None:
    """Of whole prompts, and in chunks of 16, which end within images of 18 tokens; all together, one of text alone among them."""
    theirs = Reference(Checkpoint(tmp_path, second))
    for chunk in (512, 16):
        llm = serve(tmp_path, max_num_batched_tokens=chunk, enable_prefix_caching=False)
        outputs = llm.generate([asked(*prompt) for prompt in PROMPTS], with_logprobs(5), use_tqdm=False)
        assert (llm.engine.stats().num_chunked_prefills > 0) == (chunk == 16)
        for (pieces, image), output in zip(PROMPTS, outputs):
            encoded = [llm.get_tokenizer().encode(piece, add_special_tokens=False) for piece in pieces]
            behind = [PAD] * NUM_IMAGE + encoded[1] if image else []
            assert output.prompt_token_ids == [BOS, *encoded[0], *behind]
            expected = theirs.log_probabilities(token_ids(output), image)[:-1].float()
            torch.testing.assert_close(log_probabilities(output), expected, atol=1e-4, rtol=0)
        llm.shutdown()


def test_the_prefix_cache_tells_pixels_apart(folder: Path) -> None:
    llm = serve(folder)
    assert llm.engine.scheduler.images is not None
    for image, hit in ((picture(1), 0), (picture(1), 28), (picture(2), 4), (picture(2), 28)):
        output = llm.generate(asked(["abcd", "what is"], image), GREEDY, use_tqdm=False)[0]
        assert output.num_cached_tokens == hit, "<s>, 4 tokens of text, 18 of the image, 7 of text; 4 a block"
    assert llm.engine.scheduler.images.num_encoded == 2


def test_what_is_around_an_image_does_not_matter(folder: Path) -> None:
    """Whatever is set: weights rounded as they are loaded, below a norm that could round its output, too, requests that give way
    to others, decodes recorded or not."""
    jobs = [asked([text, "of it"], picture(number)) for number, text in enumerate(("a", "bcd", "ef"))]
    jobs.insert(1, "only text")
    rounded = {"quantization": "int8", "kernels": {"rms_norm": "torch"}}
    for given in ({}, rounded, {"enforce_eager": True}, {"num_gpu_blocks_override": 18, "max_model_len": 64}):
        llm = serve(folder, enable_prefix_caching=False, **given)
        together = tokens(llm, *jobs)
        assert together == [tokens(llm, job)[0] for job in jobs] and len({tuple(found) for found in together}) == 4
        assert (llm.engine.stats().num_preemptions > 0) == ("num_gpu_blocks_override" in given)
        if not given:
            assert any(entry.get("recorded") for entry in llm.plan().values()), "without images a step is as of any model"
        llm.shutdown()


def test_ranks_share_visual_experts(folder: Path, llm: LLM) -> None:
    parallel = {"tensor_parallel_size": 2, "distributed_executor_backend": "threads"}
    pair = serve(folder, **parallel)
    jobs = [asked(["a", "of it"], picture(1)), "only text", asked(["", "what?"], picture(2))]
    assert tokens(pair, *jobs) == tokens(llm, *jobs)
    pair.shutdown()


def test_a_prompt_has_one_image(llm: LLM) -> None:
    given = {"prompt": "<image> and <image>", "multi_modal_data": {"image": [picture(1), picture(2)]}}
    with pytest.raises(ValueError, match="the prompt has 2 images, but models of type 'cogvlm' read one"):
        llm.generate(given, GREEDY, use_tqdm=False)
    template = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    parts = [{"type": "image", "image": picture(1)}, {"type": "text", "text": "an <image>, a <pad>?"}]
    found = llm.chat([{"role": "user", "content": parts}], GREEDY, use_tqdm=False, chat_template=template)[0]
    assert found.prompt == "[user]<image>\nan <image>, a <pad>?" and found.prompt_token_ids is not None
    assert found.prompt_token_ids.count(PAD) == NUM_IMAGE
    assert llm.get_tokenizer().decode(found.prompt_token_ids[-20:]) == "\nan <image>, a <pad>?"[-20:]


def test_dummy_weights_need_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_text(path.read_text())
    assert tokens(serve(tmp_path, load_format="dummy"), asked(["", "x"], picture(1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": None}, "vision_config=None, expected an object"),
        ({"intermediate_size": None}, "intermediate_size=None, expected a positive whole number"),
        ({"vision_config": {**VISION, "image_size": "28"}}, "vision_config.image_size='28', expected a positive whole number"),
        ({"vision_config": {**VISION, "image_size": 28, "hidden_act": "relu"}}, "vision_config.hidden_act='relu', but"),
        (
            {"vision_config": {**VISION, "image_size": 28, "num_heads": 5}},
            r"vision_config\.num_heads=5, of which 32 is no multiple",
        ),
        ({"vision_config": {**VISION, "image_size": 30}}, r"vision_config\.patch_size=7, of which 30 is no multiple"),
        ({"vision_config": {**VISION, "image_size": 28, "layer_norm_eps": "x"}}, "layer_norm_eps='x', expected a positive number"),
        ({"pad_token_id": [258]}, r"pad_token_id=\[258\], expected a token id"),
        ({"pad_token_id": 5000}, "this engine takes none: the tokenizer has no token 5000"),
    ],
)
def test_configs_that_mean_something_else_are_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tokens(serve(folder, hf_overrides=change), asked(["", "x"], picture(1)))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"lora\.enabled=true cannot work: layers of .* have weights of their own for tokens of"):
        serve(tmp_path, enable_lora=True)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, message in (
        ("model.vision.boi", "does not fit its config.json: .*Missing.*boi"),
        ("model.layers.1.mlp.vision_mlp.up_proj.weight", "vision_mlp.up_proj.weight"),
    ):
        kept = {key: tensor for key, tensor in tensors.items() if key != name}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            serve(tmp_path)
