"""A resident process that serves workloads with one engine: python worker.py ENGINE MODEL DTYPE THREADS KERNELS. ENGINE is
kernelswap, kernelswap/SCHEME (weights quantized on load), or transformers.

One JSON line per message. It writes {"ready": version}, then for every workload read from stdin, [[token ids, output length],
...], the reply {"wall_s": seconds, "outputs": [[token ids], ...]}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

Workload = list[tuple[list[int], int]]
Generate = Callable[[Workload], list[list[int]]]


def kernelswap(model: str, dtype: str, threads: int, kernels: dict[str, str], scheme: str) -> tuple[Generate, str]:
    """Ours, without prefix cache: every prompt token is computed. The tokenizer is never used."""
    import torch

    from framework import LLM, SamplingParams, __version__

    torch.set_num_threads(threads)
    llm = LLM(
        model,
        tokenizer="tiny",
        dtype=dtype,
        device="cpu",
        enable_prefix_caching=False,
        quantization=scheme or None,
        kernels=kernels,
    )

    def generate(workload: Workload) -> list[list[int]]:
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for _, n in workload]
        outputs = llm.generate([{"prompt_token_ids": ids} for ids, _ in workload], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate, __version__


def transformers(model: str, dtype: str, threads: int, kernels: dict[str, str], scheme: str) -> tuple[Generate, str]:
    """The library's ``generate``: one padded batch that runs as long as its longest completion."""
    from transformers import __version__

    assert not scheme, "quantization is measured of our engine alone"
    from experiments.peers.static import StaticBatches
    from experiments.peers.transformers_library import Completion, Library
    from framework.config import EngineConfig, ModelConfig
    from framework.models.read import read_model
    from framework.study.workload import SamplingConfig

    config = EngineConfig(model=ModelConfig(model, dtype=dtype), device="cpu", num_threads=threads)
    library = Library.load(config, read_model(config.model))
    batches = StaticBatches(library, SamplingConfig(), eos_ids=())

    def generate(workload: Workload) -> list[list[int]]:
        for index, (ids, num_tokens) in enumerate(workload):
            batches.add(str(index), ids, num_tokens)
        completions: list[Completion] = []
        while len(completions) < len(workload):
            completions += batches.finished(None)
        return [completion.token_ids for completion in completions]

    return generate, __version__


ENGINES = {"kernelswap": kernelswap, "transformers": transformers}


def main(engine: str, model: str, dtype: str, threads: str, kernels: str) -> None:
    """Loads, warms up, serves until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print; the pipe is for replies only
    name, _, scheme = engine.partition("/")
    generate, version = ENGINES[name](model, dtype, int(threads), json.loads(kernels), scheme)
    generate([([1, 2, 3, 4], 4), (list(range(10, 90)), 4)])
    print(json.dumps({"ready": version}), file=replies)
    for line in sys.stdin:
        workload = json.loads(line)
        start = time.perf_counter()
        outputs = generate(workload)
        print(json.dumps({"wall_s": time.perf_counter() - start, "outputs": outputs}), file=replies)


if __name__ == "__main__":
    main(*sys.argv[1:])
