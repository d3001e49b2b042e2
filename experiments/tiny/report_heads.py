"""Measure the drafting heads beside ``tiny-draft`` and write their model cards."""

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from experiments.tiny.acceptance import Acceptance, acceptance, head_drafter, model_drafter
from experiments.tiny.evaluate import choose_prompts
from experiments.tiny.model import load_exported
from experiments.tiny.samples import written
from experiments.tiny.train_heads import load_head
from framework.corpus import Corpus

log = logging.getLogger(__name__)

TEMPLATE = """---
license: apache-2.0
language: code
---

# {name}

{summary}

| | |
|---|---|
| drafts for | `tiny`, whose embedding{shared} it shares |
| parameters | {parameters:,} (bfloat16) |
| layout | {layout} |
| date | {date} |

## Training

* `tiny` is frozen. Half of the windows are cut from the training files of its corpus (its card says which), half from {samples} \
completions that it wrote to prompts cut from these files, at temperatures {temperatures}.
* {steps} steps, {tokens:,} tokens in windows of {length}, against the distributions of `tiny` at temperature \
{temperature}{unrolled}; Muon for the \
matrices and AdamW for the rest, bfloat16 autocast.
* Hardware: {hardware}; {minutes:.1f} minutes in {threads} thread{s}.
* Command: `{command}`

## Held-out acceptance

{prompts} prompts cut from held-out files, {new_tokens} tokens of `tiny` each, {drafts} drafts at a time, accepted if they \
equal the token that `tiny` samples; drafts are sampled with its noise. Acceptance by position counts a draft only if \
those before it were accepted; the mean length includes the token that `tiny` adds.

| drafter | temperature | first | second | third | mean length |
|---|---|---|---|---|---|
{rows}

Weights: Apache-2.0.
"""

SUMMARIES = {
    "medusa": "Four Medusa heads of `tiny`: each a residual block before its projection to the vocabulary.",
    "eagle3": "The EAGLE-3 head of `tiny`: one layer over its embedding and its states before layers 1, 3 and 5.",
    "mtp": "The multi-token prediction module of `tiny`: one layer over its embedding and its last state.",
}
LAYOUTS = {
    "medusa": "`blocks.{i}.layers.0`, without biases; `original_lm_head`",
    "eagle3": "EAGLE-3: `midlayer`, `fc` [256, 768], a draft vocabulary of 1,024 with `d2t` and `t2d`",
    "mtp": "the names of Qwen3-Next, `mtp.*`; norms and attention are those of Llama",
}


def report_head(cfg: DictConfig, part: str, corpus: Corpus, tokenizer: Tokenizer, trunk: LlamaForCausalLM) -> None:
    """Measure a trained head and ``tiny-draft`` and write the head's card."""
    options, run = cfg.heads.measured, cfg.heads[part].run
    folder = Path(cfg.assets_dir) / f"{cfg.main.name}-{part}"
    head, draft = load_head(folder, part, trunk), load_exported(Path(cfg.assets_dir) / cfg.draft.name)
    drafters = {folder.name: head_drafter(head, trunk, options.drafts), cfg.draft.name: model_drafter(draft, options.drafts)}
    prompts = choose_prompts(tokenizer, corpus.heldout, options.prompts, options.prompt_tokens, cfg.seed)
    rows = []
    for temperature in options.temperatures:
        texts = written(cfg, f"heldout-{temperature}", prompts, [temperature], options.new_tokens)
        for name, drafter in drafters.items():
            rows.append(table_row(name, temperature, acceptance(drafter, texts, options.new_tokens, temperature, options.drafts)))
            log.info("%s", rows[-1])
    state = torch.load(Path(cfg.work_dir) / f"{part}.pt", weights_only=True)
    (stage,) = run.stages
    text = TEMPLATE.format(
        name=folder.name,
        command=cfg.heads[part].command,
        summary=SUMMARIES[part],
        shared="" if part == "eagle3" else " and projection to the vocabulary",
        parameters=sum(parameter.numel() for parameter in head.parameters()),
        layout=LAYOUTS[part],
        date=cfg.heads.date,
        samples=cfg.samples.prompts,
        temperatures=" and ".join(map(str, cfg.samples.temperatures)),
        steps=state["step"],
        tokens=state["step"] * stage.length * stage.batch,
        length=stage.length,
        temperature=cfg.heads[part].temperature,
        unrolled="" if part == "medusa" else f", unrolled over {cfg.heads.unrolled_steps} steps",
        hardware=cfg.hardware,
        minutes=state["seconds"] / 60,
        threads=cfg.threads,
        s="" if cfg.threads == 1 else "s",
        prompts=options.prompts,
        new_tokens=options.new_tokens,
        drafts=options.drafts,
        rows="\n".join(rows),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def table_row(name: str, temperature: float, found: Acceptance) -> str:
    """Row of the card's table."""
    return f"| `{name}` | {temperature} | {' | '.join(f'{rate:.3f}' for rate in found.rates)} | {found.mean_length:.2f} |"
