"""A family from outside the tree: Llama under another model_type, whose layers are called blocks on disk."""

from __future__ import annotations

from dataclasses import replace

from framework.models.families import FAMILIES

BACKWARDS_LLAMA = replace(FAMILIES["llama"], layers="blocks")
