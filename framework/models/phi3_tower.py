"""The tower of Phi-3-Vision: the library's CLIP, and what joins its crops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers

from .phi3_v import GRID, HEAD_DIM, SIDE


class Phi3VisionTower(torch.nn.Module):
    """Modules have the names of the checkpoint. clip_size: of CLIP's hidden states; hidden_size: of embeddings."""

    def __init__(self, clip_size: int, hidden_size: int) -> None:
        super().__init__()
        self.img_processor: Any = transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                hidden_size=clip_size,
                intermediate_size=4 * clip_size,
                num_hidden_layers=24,
                num_attention_heads=clip_size // HEAD_DIM,
                image_size=SIDE,
                patch_size=SIDE // (2 * GRID),
                hidden_act="quick_gelu",
            )
        )
        width = 4 * clip_size
        self.glb_GN, self.sub_GN = (torch.nn.Parameter(torch.zeros(*ones, width)) for ones in ((1, 1), (1, 1, 1)))
        layers = torch.nn.Linear(width, hidden_size), torch.nn.GELU(), torch.nn.Linear(hidden_size, hidden_size)
        self.img_projection = torch.nn.Sequential(*layers)

    def get_image_features(self, pixel_values: torch.Tensor, grid: torch.Tensor, return_dict: bool) -> Any:
        """As the library's of this name. pixel_values [1 + rows * columns, 3, SIDE, SIDE]: the whole image, then its crops; grid:
        int64 [2], rows and columns. ``pooler_output`` [E, H]: lines of the crops, each with a separator behind it, a separator,
        and the lines of the whole."""
        rows, columns = grid.tolist()
        hidden = self.img_processor(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]
        # Four neighbours become one.
        squares = hidden.unflatten(1, (GRID, 2, GRID, 2)).transpose(2, 3).flatten(3)
        crops = squares[1:].unflatten(0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        joined = torch.cat((self._lines(crops), self.glb_GN[0], self._lines(squares[0])))
        return SimpleNamespace(pooler_output=self.img_projection(joined))

    def _lines(self, squares: torch.Tensor) -> torch.Tensor:
        """[rows, columns, width] -> [rows * (columns + 1), width]."""
        return torch.cat((squares, self.sub_GN[0].expand(len(squares), -1, -1)), 1).flatten(0, 1)
