"""Small random checkpoints of drafting heads in every layout that is read, beside a random target."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from framework.config import ModelConfig
from framework.models.drafts.head import DraftHead
from framework.models.drafts.load import load_head, read_head
from framework.models.load import load_model
from framework.models.parallel import Parallel
from framework.models.read import ModelInfo, read_model
from framework.plan import KernelPlan

from ..harness import BLOCK, CPU
from .plain import (
    DIM,
    DRAFT_VOCAB,
    HEADS,
    INNER,
    KV_HEADS,
    NUM_LAYERS,
    VOCAB,
    H,
    Plain,
    PlainDeepSeek,
    PlainEagle1,
    PlainEagle3,
    PlainMimo,
    PlainMtp,
    PlainSpeculators,
    layer_shapes,
    random_tensors,
)

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": H,
    "intermediate_size": INNER,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": DIM,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
}
AUX = {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": [1, 3, 5]}
EAGLE3_SHAPES = {
    **layer_shapes("midlayer.", 2 * H),
    "midlayer.hidden_norm.weight": (H,),
    "fc.weight": (H, 3 * H),
    "norm.weight": (H,),
    "lm_head.weight": (DRAFT_VOCAB, H),
}
DEEPSEEK = f"model.layers.{NUM_LAYERS}."


def mtp_shapes(kind: type[PlainMtp], bias: bool = False) -> dict[str, tuple[int, ...]]:
    fc, *norms = (f"{name}.weight" for name in kind.names)
    return {**layer_shapes(kind.prefix, bias=bias), fc: (H, 2 * H), **dict.fromkeys(norms, (H,))}


@dataclass(frozen=True)
class Layout:
    """A kind of checkpoint: shapes of its tensors, config.json beside ``CONFIG``, and what it computes."""

    method: str
    plain: type[Plain]
    shapes: dict[str, tuple[int, ...]]
    config: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    file: str = "model.safetensors"


def speculators(**flags: bool) -> Layout:
    shapes = {name.replace("midlayer.", "layers.0."): shape for name, shape in EAGLE3_SHAPES.items()}
    shapes |= {"input_norm.weight": (3 * H,)} if flags.get("norm_before_fc") else {}
    shapes |= {f"fc_norm.{i}.weight": (H,) for i in range(3)} if flags.get("fc_norm") else {}
    config = {
        "speculators_model_type": "eagle3",
        "transformer_layer_config": {**CONFIG, "num_hidden_layers": 1},
        "draft_vocab_size": DRAFT_VOCAB,
        "eagle_aux_hidden_state_layer_ids": [1, 3, 5],
        **flags,
    }
    return Layout("eagle3", PlainSpeculators, shapes, config, flags)


LAYOUTS = {
    "eagle3": Layout(
        "eagle3", PlainEagle3, EAGLE3_SHAPES, {"num_hidden_layers": 1, "draft_vocab_size": DRAFT_VOCAB, "eagle_config": AUX}
    ),
    "speculators": speculators(norm_before_residual=True),
    "speculators-norms": speculators(norm_before_residual=False, norm_before_fc=True, norm_output=True),
    "speculators-fc-norm": speculators(norm_before_residual=True, norm_before_fc=True, fc_norm=True),
    "eagle1": Layout(
        "eagle",
        PlainEagle1,
        {
            **{name: shape for name, shape in layer_shapes("layers.0.").items() if "input_layernorm" not in name},
            "fc.weight": (H, 2 * H),
            "fc.bias": (H,),
            "embed_tokens.weight": (VOCAB, H),
        },
        {"num_hidden_layers": 1, "bias": True},
        file="pytorch_model.bin",
    ),
    "mtp": Layout("mtp", PlainMtp, mtp_shapes(PlainMtp)),
    "mtp-deepseek": Layout(
        "mtp",
        PlainDeepSeek,
        {
            **mtp_shapes(PlainDeepSeek),
            f"{DEEPSEEK}embed_tokens.weight": (VOCAB, H),
            f"{DEEPSEEK}shared_head.head.weight": (VOCAB, H),
            "model.layers.0.self_attn.q_proj.weight": (H, H),
        },
    ),
    "mtp-mimo": Layout("mtp", PlainMimo, mtp_shapes(PlainMimo, bias=True), {"model_type": "mimo"}),
}


@dataclass(frozen=True)
class Made:
    """A target on disk, a head beside it, and what the head computes."""

    target: Path
    folder: Path
    method: str
    plain: Plain

    @property
    def info(self) -> ModelInfo:
        """The target's."""
        return read_model(ModelConfig(str(self.target)))

    def load(self) -> DraftHead:
        """Our head, in float32."""
        info = self.info
        plan = KernelPlan({}, [], CPU, torch.float32)
        target = load_model(ModelConfig(str(self.target)), info, plan, CPU, Parallel(), BLOCK)
        return load_head(self.method, read_head(self.method, self.folder, info), target, plan, CPU, BLOCK)


def make_target(folder: Path) -> dict[str, Tensor]:
    """Saves a random Llama; its tensors."""
    torch.manual_seed(3)
    config = LlamaConfig(**{k: v for k, v in CONFIG.items() if k not in ("model_type", "torch_dtype")}, tie_word_embeddings=False)
    LlamaForCausalLM(config).float().save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def drafted_ids() -> Tensor:
    """The target's tokens that EAGLE-3 heads draft."""
    return torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))[:DRAFT_VOCAB].sort().values


def make(name: str, folder: Path) -> Made:
    """The target in folder/target, the head in folder/head."""
    layout, target = LAYOUTS[name], make_target(folder / "target")
    tensors = random_tensors(layout.shapes)
    stored = dict(tensors)
    if layout.config.get("draft_vocab_size"):
        ids = drafted_ids()
        stored |= {"d2t": ids - torch.arange(DRAFT_VOCAB), "t2d": torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, ids, True)}
    write(folder / "head", stored, {**CONFIG, **layout.config}, layout.file)
    doubles = {key: tensor.double() for key, tensor in tensors.items()}
    embedding, projection = (target[key].double() for key in ("model.embed_tokens.weight", "lm_head.weight"))
    return Made(folder / "target", folder / "head", layout.method, layout.plain(doubles, embedding, projection, layout.flags))


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], file: str = "model.safetensors") -> None:
    """A checkpoint."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file(tensors, folder / file)
    else:
        torch.save(tensors, folder / file)
