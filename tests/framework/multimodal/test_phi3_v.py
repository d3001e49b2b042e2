"""Phi-3-Vision, of which transformers has no class: the library's CLIP and Phi-3 with what joins them written out below."""

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
from .harness import GREEDY, log_probabilities, serve, with_logprobs

MOST = 4
ROOM: dict[str, Any] = {"num_gpu_blocks_override": 600, "max_model_len": 2048}
CLIP = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 24, "num_attention_heads": 1, "image_size": 336}
CLIP |= {"patch_size": 14, "hidden_act": "quick_gelu"}
CONFIG = {
    **TEXT,
    "model_type": "phi3_v",
    "architectures": ["Phi3VForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"},
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "img_processor": {
        "image_dim_out": 64,
        "model_name": "openai/clip-vit-large-patch14-336",
        "name": "clip_vision_model",
        "num_img_tokens": 144,
    },
}


class Reference:
    """Saves a random checkpoint. wte: the embedding goes by its other name."""

    def __init__(self, folder: Path, wte: bool = False) -> None:
        torch.manual_seed(0)
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        text = {name: CONFIG[name] for name in (*names, "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")}
        config = transformers.Phi3Config(**text, pad_token_id=None, tie_word_embeddings=False)
        self.text: Any = transformers.Phi3ForCausalLM(config).eval()
        self.clip: Any = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP)).eval()
        self.projection = torch.nn.Sequential(torch.nn.Linear(256, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
        for module in (self.text, self.clip, self.projection):
            randomize(module)
        self.glb_GN, self.sub_GN = torch.randn(1, 1, 256), torch.randn(1, 1, 1, 256)
        tower = {"glb_GN": self.glb_GN, "sub_GN": self.sub_GN}
        tower |= {f"img_projection.{name}": weight for name, weight in self.projection.state_dict().items()}
        for name, weight in self.clip.state_dict().items():
            tower[f"img_processor.vision_model.{name.removeprefix('vision_model.')}"] = weight
        found = {f"model.vision_embed_tokens.{name}": weight for name, weight in tower.items()} | self.text.state_dict()
        if wte:
            found["model.vision_embed_tokens.wte.weight"] = found.pop("model.embed_tokens.weight")
        kept = {name: weight.contiguous() for name, weight in found.items()}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / "preprocessor_config.json").write_text(json.dumps({"num_crops": MOST}))
        tokenizer({"image_token": "<|image|>"}).save_pretrained(folder)

    def embeddings(self, image: Image.Image) -> torch.Tensor:
        """[E, 64]."""
        pixels = transformed(image)
        rows, columns = pixels.shape[1] // 336, pixels.shape[2] // 336
        whole = torch.nn.functional.interpolate(pixels[None], size=(336, 336), mode="bicubic")[0]
        crops = {(r, c): pixels[:, 336 * r : 336 * r + 336, 336 * c : 336 * c + 336] for r in range(rows) for c in range(columns)}
        patches = {place: self._patches(crop) for place, crop in crops.items()}
        lines = [self._line([patches[r, c] for c in range(columns)], y) for r in range(rows) for y in range(12)]
        lines += [self.glb_GN[0], *(self._line([self._patches(whole)], y) for y in range(12))]
        return self.projection(torch.cat(lines))

    def _patches(self, crop: torch.Tensor) -> torch.Tensor:
        return self.clip(crop[None], output_hidden_states=True).hidden_states[-2][0, 1:].view(24, 24, 64)

    def _line(self, crops: list[torch.Tensor], y: int) -> torch.Tensor:
        found = [torch.cat([patches[2 * y + i, 2 * x + j] for i in (0, 1) for j in (0, 1)]) for patches in crops for x in range(12)]
        return torch.stack([*found, self.sub_GN[0, 0, 0]])

    def log_probabilities(self, pieces: list[list[int]], images: list[Image.Image], after: list[int]) -> torch.Tensor:
        embed, parts = self.text.get_input_embeddings(), []
        for number, piece in enumerate(pieces):
            parts.append(embed(torch.tensor(piece, dtype=torch.long)))
            if number < len(images):
                parts.append(self.embeddings(images[number]))
        parts.append(embed(torch.tensor(after)))
        return self.text(inputs_embeds=torch.cat(parts)[None]).logits[0].log_softmax(-1)


def transformed(image: Image.Image) -> torch.Tensor:
    """f32 [3, height, width]: the HD transform of the code beside the weights."""
    width, height = image.size
    is_transposed = width < height
    if is_transposed:
        image = image.transpose(Image.Transpose.TRANSPOSE)
        width, height = image.size
    ratio, scale = width / height, 1
    while scale * np.ceil(scale / ratio) <= MOST:
        scale += 1
    scale -= 1
    new_width = int(scale * 336)
    new_height = int(new_width / ratio)
    image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    target = int(np.ceil(new_height / 336) * 336)
    top = int((target - new_height) / 2)
    padded = np.full((target, new_width, 3), 255, dtype=np.uint8)
    padded[top : top + new_height] = np.asarray(image)
    if is_transposed:
        padded = padded.transpose(1, 0, 2)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return torch.from_numpy(((padded / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32))


PROMPTS: list[tuple[list[str], list[Image.Image]]] = [
    (["", "Hello there"], [picture(1)]),
    (["Hi ", " what"], [picture(2, 60, 25)]),
    (["Look: ", ""], [picture(3, 25, 60)]),
    (["", "", "two"], [picture(4), picture(5, 33, 64)]),
]


def test_log_probabilities_are_those_of_the_parts(tmp_path: Path) -> None:
    """Of whole prompts, and in chunks of 16, of which an image takes dozens."""
    theirs, expected, sizes = Reference(tmp_path), list[torch.Tensor](), set()
    for chunk in (2048, 16):
        llm = serve(tmp_path, **ROOM, max_num_batched_tokens=chunk, enable_prefix_caching=False)
        for nth, (pieces, images) in enumerate(PROMPTS):
            text = pieces[0] + "".join(f"<|image_{number}|>{piece}" for number, piece in enumerate(pieces[1:], 1))
            (output,) = llm.generate({"prompt": text, "multi_modal_data": {"image": images}}, with_logprobs(3), use_tqdm=False)
            assert output.prompt_token_ids is not None
            if nth == len(expected):
                with torch.inference_mode():
                    encoded = [llm.get_tokenizer().encode(piece) for piece in pieces]
                    new = list(output.outputs[0].token_ids)
                    expected.append(theirs.log_probabilities(encoded, images, new)[:-1])
            sizes.add(output.prompt_token_ids.count(258))
            torch.testing.assert_close(log_probabilities(output), expected[nth], atol=1e-4, rtol=0)
        assert (llm.engine.stats().num_chunked_prefills > 0) == (chunk == 16)
    assert len(sizes) > 2, "images of several shapes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("phi3_v")
    Reference(found, wte=True)
    return found


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return serve(folder, **ROOM)


def test_placeholders_are_numbered(llm: LLM) -> None:
    images = [picture(1), picture(2)]
    asked = {"prompt": "<|image_1|> and <|image_2|>", "multi_modal_data": {"image": images}}
    assert len(llm.generate(asked, GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 4
    with pytest.raises(ValueError, match=r"has the placeholders <\|image_2\|>, <\|image_1\|>; expected <\|image_1\|>, "):
        llm.generate({**asked, "prompt": "<|image_2|> and <|image_1|>"}, GREEDY, use_tqdm=False)
    template = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    part = {"type": "text", "text": "an <|image_1|>?"}
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, part]} for image in images]
    found = llm.chat(messages, GREEDY, use_tqdm=False, chat_template=template)[0]
    assert found.prompt == "[user]<|image_1|>\nan <|image_1|>?[user]<|image_2|>\nan <|image_1|>?"
    assert found.prompt_token_ids is not None
    assert llm.get_tokenizer().decode(found.prompt_token_ids[-16:]) == "\nan <|image_1|>?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_processor": {**CONFIG["img_processor"], "image_dim_out": 65}}, "image_dim_out=65, expected a multiple of 64"),
        ({"img_processor": None}, "img_processor=None, expected an object"),
        ({"embd_layer": {**CONFIG["embd_layer"], "hd_transform_order": "glb_sub"}}, "embd_layer.hd_transform_order='glb_sub'"),
    ],
)
def test_configs_that_mean_something_else_are_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        serve(folder, hf_overrides=change)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    Reference(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"num_crops": "many"}')
    refusing = serve(tmp_path)
    with pytest.raises(ValueError, match="num_crops='many', expected a positive number"):
        refusing.generate({"prompt": "<|image_1|>", "multi_modal_data": {"image": picture(1)}}, GREEDY, use_tqdm=False)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.vision_embed_tokens.sub_GN"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit its config.json: .*Missing.*sub_GN"):
        serve(tmp_path)
