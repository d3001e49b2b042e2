"""How many of its drafts ``tiny`` takes: each drafter measured alike, on completions of held-out prompts.

Under ``match`` a draft counts only if it is the token that the target samples, and with coupled
noise a drafter samples with the target's noise.  So the target's completion tells all: at every
place the drafts of a chain are compared with what follows, and a walk that skips what was accepted
visits the places at which a run would have drafted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from experiments.tiny.data import Tokens
from experiments.tiny.heads import Head, trunk_features
from triton_kernels.rng import STREAM_TARGET, gumbel_noise

Drafter = Callable[[Tensor], list[Tensor]]
"""tokens int64 [1, L + 1] -> logits [L, V] of each step and slot, see ``heads``; -inf where it cannot draft a token."""


@dataclass(frozen=True)
class Acceptance:
    """mean_length: tokens per verification, the sampled one included; rates: drafts accepted by position, of all verifications."""

    mean_length: float
    rates: tuple[float, ...]


def head_drafter(head: Head, trunk: LlamaForCausalLM, num_drafts: int) -> Drafter:
    """Drafts of a head."""

    def draft(tokens: Tensor) -> list[Tensor]:
        steps = head.unroll(trunk_features(trunk, tokens), num_drafts)
        return [torch.full((len(x[0]), trunk.config.vocab_size), -torch.inf).index_copy_(1, head.target_ids, x[0]) for x in steps]

    return draft


def model_drafter(model: LlamaForCausalLM, num_drafts: int) -> Drafter:
    """Drafts of a model, which are the same in every step: of a token it makes no difference who drafted those before it."""

    def draft(tokens: Tensor) -> list[Tensor]:
        return [model(tokens).logits[0, 1:]] * num_drafts

    return draft


@torch.inference_mode()
def acceptance(drafter: Drafter, texts: Sequence[Tokens], new_tokens: int, temperature: float, num_drafts: int) -> Acceptance:
    """texts: prompts with the target's completions of ``new_tokens`` at that temperature, text i sampled with seed i."""
    accepted = []
    for seed, text in enumerate(texts):
        tokens = torch.from_numpy(text.astype("int64"))[None]
        right = torch.stack([drafted == tokens[0, 2:] for drafted in choices(drafter(tokens), tokens, temperature, seed)])
        accepted += walk(right, len(text) - new_tokens - 1)
    counts = torch.tensor(accepted)
    rates = tuple((counts > position).float().mean().item() for position in range(num_drafts))
    return Acceptance(1 + counts.float().mean().item(), rates)


def choices(steps: list[Tensor], tokens: Tensor, temperature: float, seed: int) -> list[Tensor]:
    """The token that each slot drafts, int64 [L - 1]; the last slot's, of which nothing is known, is left out."""
    if temperature == 0:
        return [logits[:-1].argmax(-1) for logits in steps]
    positions = torch.arange(2, tokens.shape[1])
    noise = gumbel_noise(torch.full_like(positions, seed), positions, STREAM_TARGET, torch.arange(steps[0].shape[1]))
    return [(logits[:-1] / temperature + noise).argmax(-1) for logits in steps]


def walk(right: Tensor, slot: int) -> list[int]:
    """Drafts accepted at each verification. right bool [steps, slots]; slot: of the first chain, the last token of the prompt.

    It ends where a chain would leave what is known.
    """
    num_drafts, num_slots = right.shape
    counts = []
    while slot + num_drafts <= num_slots:
        chain = right[:, slot : slot + num_drafts].diagonal()
        counts.append(int(chain.cumprod(0).sum()))
        slot += counts[-1] + 1
    return counts
