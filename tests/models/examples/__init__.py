"""A tiny model of every native family, with what can be taken away from it."""

from __future__ import annotations

from ...framework.models.checkpoints import EXAMPLES as FIRST
from . import cohere, deepseek, falcon, gpt, granite, llama, moe, olmo, phi, states

EXAMPLES = FIRST | {
    name: one
    for kin in (llama, gpt, falcon, cohere, granite, olmo, phi, deepseek, moe, states)
    for name, one in kin.EXAMPLES.items()
}
