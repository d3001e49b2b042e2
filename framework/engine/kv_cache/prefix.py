"""Prefix hashes: a chain over full blocks, so that equal hashes mean equal tokens from the first one on."""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import Final

from ..request import Request

ROOT: Final = bytes(16)
"""Parent of the first block's hash."""


def chain_hash(parent: bytes, token_ids: list[int], keys: tuple[bytes, ...] = ()) -> bytes:
    """Hash of a block, 16 bytes, given the hash of the block before and what else its content depends on."""
    digest = blake2b(parent, digest_size=16)
    digest.update(array("q", token_ids).tobytes())
    for key in keys:  # with its length, so that no two lists of keys read the same
        digest.update(len(key).to_bytes(4, "little") + key)
    return digest.digest()


def extend_hashes(request: Request, num_blocks: int, block_size: int) -> list[bytes]:
    """Computes ``request.block_hashes`` up to ``num_blocks`` full blocks of known tokens, and returns them."""
    hashes, ids = request.block_hashes, request.token_ids
    assert num_blocks * block_size <= len(ids), "only blocks full of known tokens have a hash"
    for block in range(len(hashes), num_blocks):
        start, stop = block * block_size, (block + 1) * block_size
        keys = tuple(key for first, key in request.extra_keys if start <= first < stop) if request.extra_keys else ()
        hashes.append(chain_hash(hashes[-1] if hashes else ROOT, ids[start:stop], keys))
    return hashes


ExtraKeys = tuple[tuple[int, bytes], ...]


def extra_keys(cache_salt: str | None = None, lora: str | None = None, media: ExtraKeys = ()) -> ExtraKeys:
    """What a request's cache content depends on besides its tokens; media as (first token, hash of the content)."""
    named = [(0, f"{kind}:{value}".encode()) for kind, value in (("lora", lora), ("salt", cache_salt)) if value is not None]
    return (*named, *((first, b"media:" + key) for first, key in sorted(media)))
