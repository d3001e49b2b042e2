"""A resident process that serves workloads with one engine: python worker.py ENGINE MODEL DTYPE THREADS KERNELS.

One JSON line per message. It writes {"ready": version}, then for every workload read from stdin, [[token ids, output length],
...], the answer {"wall_s": seconds, "outputs": [[token ids], ...]}.
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


def kernelswap(model: str, dtype: str, threads: int, kernels: dict[str, str]) -> tuple[Generate, str]:
    """Ours, without prefix cache: every prompt token is computed. The tokenizer is never used."""
    import torch

    from framework import LLM, SamplingParams, __version__

    torch.set_num_threads(threads)
    llm = LLM(model, tokenizer="tiny", dtype=dtype, device="cpu", enable_prefix_caching=False, kernels=kernels)

    def generate(workload: Workload) -> list[list[int]]:
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for _, n in workload]
        outputs = llm.generate([{"prompt_token_ids": ids} for ids, _ in workload], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate, __version__


def transformers(model: str, dtype: str, threads: int, kernels: dict[str, str]) -> tuple[Generate, str]:
    """The library's ``generate``: one padded batch that runs as long as its longest answer."""
    import torch
    from transformers import AutoModelForCausalLM, __version__

    torch.set_num_threads(threads)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
    network.generation_config.eos_token_id = None

    @torch.inference_mode()
    def generate(workload: Workload) -> list[list[int]]:
        longest = max(len(ids) for ids, _ in workload)
        tokens = torch.zeros(len(workload), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, (ids, _) in enumerate(workload):
            tokens[row, longest - len(ids) :] = torch.tensor(ids)
            mask[row, longest - len(ids) :] = 1
        num_new = max(n for _, n in workload)
        found = network.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=num_new, pad_token_id=0)
        return [found[row, longest : longest + n].tolist() for row, (_, n) in enumerate(workload)]

    return generate, __version__


ENGINES = {"kernelswap": kernelswap, "transformers": transformers}


def main(engine: str, model: str, dtype: str, threads: str, kernels: str) -> None:
    """Loads, warms up, serves until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print; the pipe is for answers only
    generate, version = ENGINES[engine](model, dtype, int(threads), json.loads(kernels))
    generate([([1, 2, 3, 4], 4), (list(range(10, 90)), 4)])
    print(json.dumps({"ready": version}), file=answers)
    for line in sys.stdin:
        workload = json.loads(line)
        start = time.perf_counter()
        outputs = generate(workload)
        print(json.dumps({"wall_s": time.perf_counter() - start, "outputs": outputs}), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
