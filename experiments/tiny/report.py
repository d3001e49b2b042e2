"""Evaluate the exported models and write their model cards."""

import json
import logging
import lzma
import platform
from pathlib import Path

import torch
from omegaconf import DictConfig
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from experiments.tiny.card import TOKENIZE_RULE, CorpusFacts, TrainingFacts, agreement_row, completion_rows, write_card
from experiments.tiny.evaluate import bits_per_byte, greedy_agreement, sample_completions
from experiments.tiny.model import load_exported
from experiments.tiny.tokenizer import encode_file
from experiments.tiny.training import window_shape
from framework.corpus import Corpus, total_bytes

log = logging.getLogger(__name__)


def corpus_facts(corpus: Corpus, tokenizer: Tokenizer) -> CorpusFacts:
    """Sizes and digest of the corpus, and what ``xz`` makes of the held-out part."""
    heldout_tokens = sum(len(encode_file(tokenizer, file.text)) for file in corpus.heldout)
    return CorpusFacts(
        python=platform.python_version(),
        files=len(corpus.files),
        bytes=total_bytes(corpus.files),
        sha256=corpus.sha256(),
        heldout_files=len(corpus.heldout),
        heldout_bytes=total_bytes(corpus.heldout),
        xz=primed_xz_bits_per_byte(corpus),
        bytes_per_token=total_bytes(corpus.heldout) / heldout_tokens,
    )


def primed_xz_bits_per_byte(corpus: Corpus) -> float:
    """Bits per held-out byte that ``xz -9e`` spends once primed with the training text.

    The dictionary (64 MiB) spans the whole corpus, so every training byte stays visible.
    """
    preset = 9 | lzma.PRESET_EXTREME
    train = "".join(file.text for file in corpus.train).encode("utf-8")
    heldout = "".join(file.text for file in corpus.heldout).encode("utf-8")
    extra = len(lzma.compress(train + heldout, preset=preset)) - len(lzma.compress(train, preset=preset))
    return 8.0 * extra / len(heldout)


def training_facts(cfg: DictConfig, spec: DictConfig, teacher: str | None) -> TrainingFacts:
    """Length and duration of a finished run, read from its last checkpoint."""
    state = torch.load(Path(cfg.work_dir) / f"{spec.name}.pt", weights_only=True)
    shapes = [window_shape(step, spec.run) for step in range(state["step"])]
    return TrainingFacts(
        steps=state["step"],
        tokens=sum(length * batch for length, batch in shapes),
        epochs=state["stream"]["epoch"] + 1,
        windows=", ".join(str(stage.length) for stage in spec.run.stages),
        minutes=state["seconds"] / 60,
        hardware=cfg.hardware,
        context=cfg.report.context,
        date=cfg.date,
        teacher=teacher,
    )


def shape_facts(model: LlamaForCausalLM) -> dict[str, int | None]:
    """The model's dimensions under the names the card uses."""
    config = model.config
    return {
        "parameters": model.num_parameters(),
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "intermediate": config.intermediate_size,
        "vocab": config.vocab_size,
    }


def report_main(cfg: DictConfig, corpus: Corpus, tokenizer: Tokenizer, facts: CorpusFacts) -> dict:
    """Measure the main model and write its card."""
    options = cfg.report
    folder = Path(cfg.assets_dir) / cfg.main.name
    model = load_exported(folder)
    bpb = bits_per_byte(model, tokenizer, corpus.heldout, options.context)
    completions = sample_completions(
        model,
        tokenizer,
        corpus.heldout,
        count=options.prompts,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        temperature=options.temperature,
        seed=cfg.seed,
    )
    write_card(
        folder,
        shape_facts(model),
        facts,
        training_facts(cfg, cfg.main, teacher=None),
        bpb=bpb,
        summary=cfg.main.summary,
        extra_rows=completion_rows(completions, options.temperature),
        rule=TOKENIZE_RULE.format(total=completions.total, new_tokens=options.new_tokens, temperature=options.temperature),
    )
    return {"bits_per_byte": bpb, **vars(completions)}


def report_draft(cfg: DictConfig, corpus: Corpus, tokenizer: Tokenizer, facts: CorpusFacts) -> dict:
    """Measure the draft model and write its card."""
    folder = Path(cfg.assets_dir) / cfg.draft.name
    main = load_exported(Path(cfg.assets_dir) / cfg.main.name)
    draft = load_exported(folder)
    context = cfg.report.context
    bpb = bits_per_byte(draft, tokenizer, corpus.heldout, context)
    agreement = greedy_agreement(main, draft, tokenizer, corpus.heldout, context)
    write_card(
        folder,
        shape_facts(draft),
        facts,
        training_facts(cfg, cfg.draft, teacher=cfg.main.name),
        bpb=bpb,
        summary=cfg.draft.summary,
        extra_rows=agreement_row(agreement),
    )
    return {"bits_per_byte": bpb, "greedy_agreement": agreement}


def report(cfg: DictConfig, corpus: Corpus, tokenizer: Tokenizer) -> None:
    """Measure both models, write both cards and log the numbers."""
    facts = corpus_facts(corpus, tokenizer)
    results = {
        "corpus": vars(facts),
        cfg.main.name: report_main(cfg, corpus, tokenizer, facts),
        cfg.draft.name: report_draft(cfg, corpus, tokenizer, facts),
    }
    log.info("%s", json.dumps(results, indent=2))
