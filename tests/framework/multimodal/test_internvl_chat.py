"""InternVL in its original layout: the library's model, whose weights are saved under the original names, after pixels that the
published code would make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from framework import LLM

from .checkpoints import TEXT, picture, randomize, tokenizer
from .harness import GREEDY, log_probabilities, serve, token_ids, with_logprobs
from .test_models import PROMPTS

SIZE, TOKENS, MOST = 28, 4, 4
TOKEN_NAMES = {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>"}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 7,
}
RENAMED = (
    ("model.multi_modal_projector.layer_norm", "mlp1.0"),
    ("model.multi_modal_projector.linear_1", "mlp1.1"),
    ("model.multi_modal_projector.linear_2", "mlp1.3"),
    ("model.vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding"),
    ("model.vision_tower.embeddings.position_embeddings", "vision_model.embeddings.position_embedding"),
    ("model.vision_tower.embeddings.patch_embeddings.projection", "vision_model.embeddings.patch_embedding"),
    ("model.vision_tower.encoder.layer.", "vision_model.encoder.layers."),
    ("attention.projection_layer", "attn.proj"),
    ("attention.q_norm", "attn.q_norm"),
    ("attention.k_norm", "attn.k_norm"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("lambda_1", "ls1"),
    ("lambda_2", "ls2"),
    ("model.language_model.", "language_model.model."),
    ("lm_head", "language_model.lm_head"),
)
INTERNLM2 = (
    ("embed_tokens", "tok_embeddings"),
    ("lm_head", "output"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("mlp.down_proj", "feed_forward.w2"),
)


def make(folder: Path, text: str = "qwen2", rms: bool = False) -> Any:
    """Saves a model in the original layout, and returns the library's. rms: of the kind of InternViT-6B."""
    library = "qwen2" if text == "qwen2" else "llama"
    given = {"norm_type": "rms_norm" if rms else "layer_norm", "use_qk_norm": rms, "attention_bias": not rms}
    config = transformers.InternVLConfig(
        text_config={"model_type": library, **TEXT}, vision_config={**TOWER, **given}, image_token_id=258, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    randomize(model)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in (*RENAMED, *(INTERNLM2 if text == "internlm2" else ())):
            name = name.replace(ours, theirs)
        found[name] = tensor
    for name in [name for name in found if "q_proj" in name]:
        q, k, v = (found.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv")
        if name.startswith("vision_model."):
            found[name.replace("attention.q_proj", "attn.qkv")] = torch.cat((q, k, v))
        elif text == "internlm2":  # for every KV head its queries, its key, its value
            heads = TEXT["num_key_value_heads"]
            groups = torch.cat([part.view(heads, -1, 16, part.shape[1]) for part in (q, k, v)], 1)
            found[name.replace("self_attn.q_proj", "attention.wqkv")] = groups.flatten(0, 2)
        else:
            found |= {name.replace("q_proj", f"{part}_proj"): tensor for part, tensor in (("q", q), ("k", k), ("v", v))}
    save_file(
        {name: tensor.contiguous() for name, tensor in found.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    own = {"bias": False} if text == "internlm2" else {}
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "internvl_chat",
                "architectures": ["InternVLChatModel"],
                "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
                "downsample_ratio": 0.5,
                "dynamic_image_size": True,
                "force_image_size": SIZE,
                "llm_config": {"model_type": text, "tie_word_embeddings": False, **TEXT, **own, "rms_norm_eps": 1e-6},
                "max_dynamic_patch": MOST,
                "min_dynamic_patch": 1,
                "ps_version": "v2",
                "select_layer": -1,
                "torch_dtype": "float32",
                "use_thumbnail": True,
                "vision_config": {
                    "model_type": "intern_vit_6b",
                    "norm_type": given["norm_type"],
                    "qk_normalization": rms,
                    "qkv_bias": not rms,
                    **TOWER,
                },
            }
        )
    )
    tokenizer(TOKEN_NAMES).save_pretrained(folder)
    return model


def tiles(image: Image.Image) -> np.ndarray:
    """f32 [tiles, 3, SIZE, SIZE], as ``dynamic_preprocess`` and ``build_transform`` of the code beside the weights make them."""
    width, height = image.size
    grids = {(i, j) for n in range(1, MOST + 1) for i in range(1, n + 1) for j in range(1, n + 1) if i * j <= MOST}
    best_difference, best = float("inf"), (1, 1)
    for grid in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width / height - grid[0] / grid[1])
        if difference < best_difference:
            best_difference, best = difference, grid
        elif difference == best_difference and width * height > 0.5 * SIZE * SIZE * grid[0] * grid[1]:
            best = grid
    columns, rows = best
    large = image.resize((SIZE * columns, SIZE * rows))
    corners = [(SIZE * (i % columns), SIZE * (i // columns)) for i in range(columns * rows)]
    parts = [large.crop((x, y, x + SIZE, y + SIZE)) for x, y in corners]
    if len(parts) > 1:
        parts.append(image.resize((SIZE, SIZE)))
    pixels = np.stack([np.asarray(part) for part in parts]) / 255
    return ((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2).astype(np.float32)


@pytest.mark.parametrize(("text", "rms"), [("qwen2", False), ("internlm2", False), ("qwen2", True)])
def test_log_probabilities_are_those_of_the_librarys_model(text: str, rms: bool, tmp_path: Path) -> None:
    theirs = make(tmp_path, text, rms)
    llm = serve(tmp_path, max_num_batched_tokens=16)
    prompts = [(prompt.replace("{}", "<image>"), images) for prompt, images in PROMPTS]
    given = [{"prompt": prompt, "multi_modal_data": {"image": images}} for prompt, images in prompts]
    sizes = set()
    for (prompt, images), output in zip(prompts, llm.generate(given, with_logprobs(5), use_tqdm=False)):
        pixels = [tiles(image) for image in images]
        sizes |= {len(each) for each in pixels}
        for each in pixels:
            prompt = prompt.replace("<image>", f"<img>{'<IMG_CONTEXT>' * TOKENS * len(each)}</img>", 1)
        ids = llm.get_tokenizer().encode(prompt)
        assert output.prompt_token_ids == ids
        with torch.inference_mode():
            inputs = torch.tensor([token_ids(output)]), torch.from_numpy(np.concatenate(pixels))
            expected = theirs(input_ids=inputs[0], pixel_values=inputs[1]).logits[0].log_softmax(-1)[:-1]
        torch.testing.assert_close(log_probabilities(output), expected, atol=1e-4, rtol=0)
    assert len(sizes) > 1, "some images are cut, and some are not"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("internvl_chat")
    make(found)
    return found


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return serve(folder)


def test_messages_are_texts(llm: LLM) -> None:
    """Chat templates of this layout take no parts; a placeholder that a user spells is none."""
    template = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    parts = [{"type": "image", "image": picture(1)}, {"type": "text", "text": "an <image>?"}]
    asked = llm.chat([{"role": "user", "content": parts}], GREEDY, use_tqdm=False, chat_template=template)[0]
    assert asked.prompt == "[user]<image>\nan <image>?" and asked.prompt_token_ids is not None
    assert asked.prompt_token_ids.count(258) == TOKENS * len(tiles(picture(1)))
    with pytest.raises(ValueError, match="a message's part must be"):
        llm.chat([{"role": "user", "content": [{"type": "audio"}]}], GREEDY, use_tqdm=False, chat_template=template)


def test_images_without_a_placeholder_are_refused(llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"0 times '<image>'.*1 images"):
        llm.generate({"prompt": "what?", "multi_modal_data": {"image": picture(1)}}, GREEDY, use_tqdm=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ps_version": "v1"}, "ps_version='v1'"),
        ({"use_thumbnail": False}, "use_thumbnail=False"),
        ({"select_layer": -2}, "select_layer=-2"),
        ({"force_image_size": 56}, "force_image_size=56"),
        ({"llm_config": None}, "llm_config=None, expected an object"),
        ({"vision_config": [1]}, r"vision_config=\[1\], expected an object"),
        ({"llm_config": {"model_type": "nobody", "hidden_size": 64}}, "'internvl_chat', is served by the native decoder alone"),
    ],
)
def test_configs_that_mean_something_else_are_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        serve(folder, hf_overrides=change)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for changed, message in (
        ({"mlp1.1.weight": None}, "Missing.*linear_1.weight"),
        ({"vision_model.extra": torch.zeros(1)}, "Unexpected.*vision_model.extra"),
        ({"vision_model.encoder.layers.0.ls1": torch.zeros(5)}, "size mismatch.*lambda_1"),
    ):
        kept = {name: tensor for name, tensor in {**tensors, **changed}.items() if tensor is not None}
        save_file(kept, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"does not fit its config.json: .*{message}"):
            serve(tmp_path)


def test_tokenizers_without_the_token_are_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path)
    tokenizer({}).save_pretrained(tmp_path)
    refusing = serve(tmp_path)
    assert refusing.generate("text alone", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    with pytest.raises(ValueError, match="the tokenizer has no token <IMG_CONTEXT>"):
        refusing.generate({"prompt": "<image>", "multi_modal_data": {"image": picture(1)}}, GREEDY, use_tqdm=False)
