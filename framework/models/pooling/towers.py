"""CLIP and SigLIP as the transformers library has them: a tower for texts, one for images, and a space that both lead to."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from ...config import ModelConfig
from ...plan import KernelPlan
from ..read import ModelInfo
from ..transformers_model import library_model, swap_linears


class TowersModel:
    """model: of the library, whose linear layers are swapped for ours."""

    def __init__(self, model: Any, plan: KernelPlan) -> None:
        self.model, self._device = model, next(model.parameters()).device
        swap_linears(model, plan)
        plan.runs_in_library(model)

    def text(self, token_ids: list[int]) -> torch.Tensor:
        """f32 [D]. Padding is among the tokens, and is not masked: models that have it were trained so."""
        found = self.model.get_text_features(input_ids=torch.tensor([token_ids], device=self._device), return_dict=True)
        return self._embedding(found)

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels f32 [3, height, width] -> f32 [D]."""
        return self._embedding(self.model.get_image_features(pixel_values=pixels[None].to(self._device), return_dict=True))

    def _embedding(self, found: Any) -> torch.Tensor:
        features: torch.Tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
        return features[0].float()


def load_towers(config: ModelConfig, info: ModelInfo, found: Any, plan: KernelPlan, device: torch.device, seed: int) -> TowersModel:
    """found: the library's configuration; seed: of dummy weights. Raises ValueError for a checkpoint that does not fit."""
    return TowersModel(library_model(config, info, found, device, seed, transformers.AutoModel), plan)
