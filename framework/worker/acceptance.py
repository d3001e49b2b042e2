"""How many drafts of a row are right."""

from __future__ import annotations

import torch

from .step_rows import DraftRows, SampleRows


def num_matches(tokens: torch.Tensor, rows: SampleRows, drafts: DraftRows, token_ids: torch.Tensor) -> torch.Tensor:
    """The rule ``match``: a draft is right if it is the token that its row samples anyway, and all before it were right. So tokens
    do not depend on drafts, at any temperature.

    tokens int32 [R'], sampled; token_ids int64 [S, L], with drafts where the tokens that they guess belong. Returns int64 [R].
    """
    right = tokens == token_ids[rows.row_to_seat.long(), rows.position]
    return (right[drafts.grid] & drafts.is_draft).cumprod(1).sum(1)
