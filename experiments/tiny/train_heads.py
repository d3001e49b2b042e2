"""Train a drafting head of ``tiny`` on its distributions, the trunk frozen, and export it."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from experiments.tiny.data import HalfAndHalf, Tokens, WindowStream, encode_files
from experiments.tiny.heads import AUX_LAYERS, Eagle3Head, Head, MedusaHead, MtpHead, trunk_features
from experiments.tiny.samples import training_samples
from experiments.tiny.training import Trainer
from framework.corpus import Corpus

log = logging.getLogger(__name__)

PARTS = ("medusa", "eagle3", "mtp")


def train_head(cfg: DictConfig, part: str, corpus: Corpus, tokenizer: Tokenizer, trunk: LlamaForCausalLM) -> None:
    """Train the head that ``part`` names and export it to ``tiny-<part>``."""
    torch.manual_seed(cfg.seed)
    files, samples = encode_files(tokenizer, corpus.train), training_samples(cfg, corpus, tokenizer)
    stream = HalfAndHalf(
        WindowStream(files, [file.generated for file in corpus.train], cfg.generated_share, cfg.seed),
        WindowStream(samples, [False] * len(samples), 1.0, cfg.seed),
    )
    head, options = build_head(cfg, part, trunk, samples), cfg.heads
    temperature = options[part].temperature

    def loss(tokens: Tensor) -> Tensor:
        features = trunk_features(trunk, tokens)
        soft = (features.logits.float() / temperature).softmax(-1)[..., head.target_ids]
        logits = head.unroll(features, options.num_medusa_heads if part == "medusa" else options.unrolled_steps)
        return torch.stack([step_loss(step, rows / temperature, soft) for step, rows in enumerate(logits)]).mean()

    checkpoint = Path(cfg.work_dir) / f"{part}.pt"
    trainer = Trainer(head, stream, options[part].run, checkpoint, loss)
    if cfg.resume and checkpoint.exists():
        trainer.load()
    trainer.fit()
    log.info("%s: %d steps in %.1f minutes", part, trainer.step, trainer.seconds / 60)
    export_head(
        head, head_config(part, head, Path(cfg.assets_dir) / cfg.main.name), Path(cfg.assets_dir) / f"{cfg.main.name}-{part}"
    )


def step_loss(step: int, logits: Tensor, soft: Tensor) -> Tensor:
    """Cross-entropy of a step's drafts [B, L, Vd] against the distributions [B, L, Vd] of the tokens they stand for, whose
    probability outside the draft vocabulary is left out."""
    return F.cross_entropy(logits[:, step:-1].float().flatten(0, 1), soft[:, step + 1 :].flatten(0, 1))


def build_head(cfg: DictConfig, part: str, trunk: LlamaForCausalLM, documents: list[Tokens]) -> Head:
    """The head, fresh. documents: whose most frequent tokens are EAGLE-3's vocabulary."""
    if part == "medusa":
        return MedusaHead(trunk, cfg.heads.num_medusa_heads)
    if part == "mtp":
        return MtpHead(trunk)
    counts = Counter(token for document in documents for token in document.tolist())
    return Eagle3Head(trunk, torch.tensor(sorted(token for token, _ in counts.most_common(cfg.heads.draft_vocab_size))))


def head_config(part: str, head: Head, trunk_folder: Path) -> dict[str, Any]:
    """config.json as the tools write it that made each format known."""
    config = json.loads((trunk_folder / "config.json").read_text(encoding="utf-8"))
    if part == "medusa":
        return {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "hidden_size": config["hidden_size"],
            "num_heads": len(head.blocks),  # type: ignore[arg-type]
            "num_hidden_layers": 1,
            "vocab_size": config["vocab_size"],
            "truncated_vocab_size": config["vocab_size"],
            "original_lm_head": True,
            "medusa_fc_bias": False,
            "torch_dtype": "bfloat16",
        }
    config |= {"torch_dtype": config.pop("dtype"), "rope_theta": config.pop("rope_parameters")["rope_theta"]}
    if part == "mtp":
        return {**config, "architectures": ["LlamaMTP"], "num_nextn_predict_layers": 1}
    return {
        **config,
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
        "draft_vocab_size": len(head.target_ids),
        "target_hidden_size": config["hidden_size"],
        "eagle_config": {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": list(AUX_LAYERS)},
    }


def export_head(head: Head, config: dict[str, Any], folder: Path) -> None:
    """Write bfloat16 weights and config.json."""
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in head.state_dict().items()}
    if isinstance(head, Eagle3Head):
        tensors["d2t"] = head.target_ids - torch.arange(len(head.target_ids))
        tensors["t2d"] = torch.zeros(config["vocab_size"], dtype=torch.bool).index_fill_(0, head.target_ids, True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_head(folder: Path, part: str, trunk: LlamaForCausalLM) -> Head:
    """An exported head in float32, without gradients."""
    tensors = load_file(folder / "model.safetensors")
    head: Head
    if part == "medusa":
        head = MedusaHead(trunk, len(tensors))
    elif part == "mtp":
        head = MtpHead(trunk)
    else:
        offsets, _ = tensors.pop("d2t"), tensors.pop("t2d")
        head = Eagle3Head(trunk, offsets + torch.arange(len(offsets)))
    head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return head.eval().requires_grad_(False)
