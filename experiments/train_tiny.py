"""Train, evaluate and export the models shipped in ``framework/assets``.

    python experiments/train_tiny.py

trains the tokenizer, then ``tiny``, then ``tiny-draft`` (distilled from ``tiny``) on the
source text of the running interpreter's standard library, and writes both with their model
cards.  ``part=main``, ``part=draft`` and ``part=report`` run one part; ``resume=true``
continues from the checkpoint in ``work_dir``.  ``part=medusa``, ``part=eagle3`` and ``part=mtp``
train a drafting head of ``tiny`` as it is shipped, measure it and write its card.
"""

import logging
import sys
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.tiny.data import WindowStream, encode_files
from experiments.tiny.model import build_model, export_model, load_exported
from experiments.tiny.report import report
from experiments.tiny.report_heads import report_head
from experiments.tiny.tokenizer import train_tokenizer
from experiments.tiny.train_heads import PARTS, train_head
from experiments.tiny.training import Trainer, language_model_loss
from framework.corpus import Corpus, load_corpus

log = logging.getLogger(__name__)


def prepare_tokenizer(cfg: DictConfig, corpus: Corpus) -> Tokenizer:
    """The tokenizer in the work folder, trained on hand-written training files where missing."""
    path = Path(cfg.work_dir) / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    texts = (file.text for file in corpus.train if not file.generated)
    tokenizer = train_tokenizer(texts, cfg.vocab_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


def train_model(
    cfg: DictConfig, spec: DictConfig, corpus: Corpus, tokenizer: Tokenizer, teacher: LlamaForCausalLM | None = None
) -> LlamaForCausalLM:
    """Train one model, export it and return it."""
    torch.manual_seed(cfg.seed)
    model = build_model(spec.shape, tokenizer)
    stream = WindowStream(
        encode_files(tokenizer, corpus.train), [file.generated for file in corpus.train], cfg.generated_share, cfg.seed
    )
    checkpoint = Path(cfg.work_dir) / f"{spec.name}.pt"
    trainer = Trainer(model, stream, spec.run, checkpoint, language_model_loss(model, teacher))
    if cfg.resume and checkpoint.exists():
        trainer.load()
    log.info("%s: %d parameters", spec.name, model.num_parameters())
    trainer.fit()
    log.info("%s: %d steps in %.1f minutes", spec.name, trainer.step, trainer.seconds / 60)
    export_model(model, tokenizer, Path(cfg.assets_dir) / spec.name)
    return model


@hydra.main(config_path="../conf", config_name="train_tiny", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run what ``part`` names."""
    torch.set_num_threads(cfg.threads)
    corpus = load_corpus(cfg.heldout_percent)
    if cfg.part in PARTS:
        shipped = Path(cfg.assets_dir) / cfg.main.name
        tokenizer, trunk = Tokenizer.from_file(str(shipped / "tokenizer.json")), load_exported(shipped)
        train_head(cfg, cfg.part, corpus, tokenizer, trunk)
        return report_head(cfg, cfg.part, corpus, tokenizer, trunk)
    tokenizer = prepare_tokenizer(cfg, corpus)
    if cfg.part in ("all", "main"):
        train_model(cfg, cfg.main, corpus, tokenizer)
    if cfg.part in ("all", "draft"):
        teacher = load_exported(Path(cfg.assets_dir) / cfg.main.name)
        train_model(cfg, cfg.draft, corpus, tokenizer, teacher)
    if cfg.part in ("all", "report"):
        report(cfg, corpus, tokenizer)


if __name__ == "__main__":
    main()
