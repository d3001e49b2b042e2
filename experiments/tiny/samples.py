"""Text that ``tiny`` wrote itself: what its drafting heads see while they serve it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from tokenizers import Tokenizer

from experiments.tiny.data import Tokens
from experiments.tiny.evaluate import choose_prompts
from framework import LLM, SamplingParams
from framework.corpus import Corpus


def training_samples(cfg: DictConfig, corpus: Corpus, tokenizer: Tokenizer) -> list[Tokens]:
    """Completions of prompts cut from the training files, each behind its prompt; the temperatures asked for take turns."""
    options = cfg.samples
    prompts = choose_prompts(tokenizer, corpus.train, options.prompts, options.prompt_tokens, cfg.seed)
    return written(cfg, "samples", prompts, options.temperatures, options.new_tokens)


def written(cfg: DictConfig, name: str, prompts: list[list[int]], temperatures: Sequence[float], new_tokens: int) -> list[Tokens]:
    """Prompt plus completion of ``tiny`` for every prompt, kept in the work folder; prompt i is sampled with seed i."""
    path = Path(cfg.work_dir) / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, *generate(cfg, prompts, temperatures, new_tokens))
    with np.load(path) as stored:
        return [stored[key] for key in stored.files]


def generate(cfg: DictConfig, prompts: list[list[int]], temperatures: Sequence[float], new_tokens: int) -> list[Tokens]:
    """As ``written``; an end of text does not end a completion."""
    llm = LLM(str(Path(cfg.assets_dir) / cfg.main.name), max_num_seqs=cfg.samples.batch)
    params = [
        SamplingParams(
            temperature=temperatures[i % len(temperatures)], seed=i, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        for i in range(len(prompts))
    ]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [np.asarray([*ids, *output.outputs[0].token_ids], np.uint16) for ids, output in zip(prompts, outputs, strict=True)]
