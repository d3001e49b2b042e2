"""Embeds texts of many lengths, and lets transformers do the same with padded batches: the same weights, threads and vectors.

BERT-base's shape with random weights, float32, means of the tokens, normalized. transformers takes batches in the given order, and
sorted by length. All three take their turns, a part of the texts at a time, so that what else the machine does befalls each.

    python experiments/embed.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework import LLM, EngineConfig
from framework.config import CacheConfig, ModelConfig, SchedulerConfig
from framework.study.environment import environment

Tokens = list[int]


@dataclass
class System:
    """What embeds: token ids of some texts -> f32 [texts, H]. order: of all texts, in which it takes them; seconds so far, on the
    clock and of processors, which busy neighbours stretch less."""

    name: str
    embed: Callable[[Sequence[Tokens]], np.ndarray]
    order: list[int]
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def random_texts(count: int, shortest: int, longest: int, vocab_size: int, seed: int) -> list[Tokens]:
    """Lengths are uniform."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1000, vocab_size, length).tolist() for length in rng.integers(shortest, longest + 1, count)]


def padded_batches(model: transformers.PreTrainedModel, batch_size: int) -> Callable[[Sequence[Tokens]], np.ndarray]:
    """Means of the last hidden states of padded batches, normalized."""

    @torch.inference_mode()
    def embed(texts: Sequence[Tokens]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), batch_size):
            rows = [torch.tensor(text) for text in texts[start : start + batch_size]]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            states = model(ids, attention_mask=mask).last_hidden_state
            means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            found.append(torch.nn.functional.normalize(means, dim=-1).numpy())
        return np.concatenate(found)

    return embed


def engine(folder: Path, arguments: argparse.Namespace) -> Callable[[Sequence[Tokens]], np.ndarray]:
    """This project's."""
    model = ModelConfig(str(folder), skip_tokenizer=True, pooler={"pooling_type": "MEAN"})
    scheduler = SchedulerConfig(max_num_batched_tokens=arguments.step_tokens)
    config = EngineConfig(model, CacheConfig(num_blocks=1 + arguments.step_tokens // 8), scheduler, num_threads=arguments.threads)
    llm = LLM(config)

    def embed(texts: Sequence[Tokens]) -> np.ndarray:
        outputs = llm.embed([{"prompt_token_ids": text} for text in texts], use_tqdm=False)
        return np.array([output.outputs.embedding for output in outputs], dtype=np.float32)

    return embed


def measure(systems: list[System], texts: Sequence[Tokens], num_turns: int) -> dict[str, np.ndarray]:
    """Adds up their seconds; returns the vectors of each, in the order of ``texts``."""
    found = {system.name: np.zeros((len(texts), 0), dtype=np.float32) for system in systems}
    size = -(-len(texts) // num_turns)
    for turn in range(num_turns):
        for system in systems[turn % len(systems) :] + systems[: turn % len(systems)]:  # nobody is always first
            mine = system.order[turn * size : (turn + 1) * size]
            start_s, cpu_start_s = time.perf_counter(), time.process_time()
            vectors = system.embed([texts[i] for i in mine])
            system.seconds += time.perf_counter() - start_s
            system.cpu_seconds += time.process_time() - cpu_start_s
            if not found[system.name].shape[1]:
                found[system.name] = np.zeros((len(texts), vectors.shape[1]), dtype=np.float32)
            found[system.name][mine] = vectors
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--shortest", type=int, default=5)
    parser.add_argument("--longest", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=32, help="of transformers")
    parser.add_argument("--step-tokens", type=int, default=2048, help="of this engine's steps")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    config = transformers.BertConfig(num_hidden_layers=arguments.layers)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    texts = random_texts(arguments.texts, arguments.shortest, arguments.longest, config.vocab_size, arguments.seed)
    given = list(range(len(texts)))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        padded = padded_batches(model, arguments.batch_size)
        systems = [
            System("kernelswap", engine(Path(folder), arguments), given),
            System("transformers, given order", padded, given),
            System("transformers, by length", padded, sorted(given, key=lambda i: len(texts[i]))),
        ]
        for system in systems:  # once, so that nobody compiles or allocates while the clock runs
            system.embed(texts[:2])
        vectors = measure(systems, texts, arguments.turns)
    report = compare(systems, vectors, texts)
    if arguments.out is not None:
        given_arguments = {name: value for name, value in vars(arguments).items() if name != "out"}
        found = {"arguments": given_arguments, "systems": report, "environment": environment(None)}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def compare(systems: Sequence[System], vectors: dict[str, np.ndarray], texts: Sequence[Tokens]) -> list[dict[str, object]]:
    """Prints a line for each, and returns the same: what it took, and its least cosine with the first."""
    num_tokens = sum(map(len, texts))
    first, mine = systems[0], vectors[systems[0].name].astype(np.float64)
    print(f"{len(texts)} texts, {num_tokens} tokens")
    rows: list[dict[str, object]] = []
    for system in systems:
        other = vectors[system.name].astype(np.float64)
        cosine = float(((mine * other).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(other, axis=1)).min())
        times, cpu_times = system.seconds / first.seconds, system.cpu_seconds / first.cpu_seconds
        print(
            f"{system.name:28} {system.seconds:7.1f} s {num_tokens / system.seconds:7.0f} tokens/s {times:5.2f}x   "
            f"{system.cpu_seconds:7.1f} s of processors {cpu_times:5.2f}x   least cosine {cosine:.9f}"
        )
        row = {"seconds": system.seconds, "cpu_seconds": system.cpu_seconds, "times": times, "cpu_times": cpu_times}
        rows.append({"system": system.name, **row, "cosine": cosine})
    return rows


if __name__ == "__main__":
    main()
