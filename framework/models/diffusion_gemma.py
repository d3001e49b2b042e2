"""DiffusionGemma: the library's own modules, with our attention and linear layers, and both kinds of passes in one.

The model is two in one: an encoder reads known tokens, which see those before them, and a decoder a canvas, whose tokens see each
other as well. Both have the same weights but for a factor of each layer, and the decoder adds to its embeddings what the pass
before said. So the encoder computes all tokens, with the decoder's factors and embeddings for those of canvases.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from ..config import ModelConfig
from ..plan import KernelPlan, LoraMeta
from .batch import ForwardBatch
from .layers.paged_attention import AttentionKernels, PagedAttention
from .paged_model import PagedModel
from .read import ModelInfo
from .transformers_model import (
    attention_of,
    check_boundaries,
    library_model,
    probe,
    run,
    servable_config,
    swap_experts,
    swap_linears,
    with_our_attention,
)


class DiffusionGemma(PagedModel):
    """The interface of ``Decoder`` around the library's model.

    model      whose linear layers and experts are swapped for ours; its decoder's layers and its images' tower are dropped
    attention  of its layers
    """

    decides_on_host = True

    def __init__(self, model: Any, info: ModelInfo, plan: KernelPlan, attention: list[PagedAttention]) -> None:
        super().__init__(attention)
        text = model.config.text_config
        self.dtype, self.vocab_size, self.max_model_len = model.dtype, text.vocab_size, info.max_model_len
        self.hidden_size: int = text.hidden_size
        encoder, decoder = model.model.encoder.language_model, model.model.decoder
        self._softcap: float = text.final_logit_softcapping
        self._factors = [(e.layer_scalar, d.layer_scalar) for e, d in zip(encoder.layers, decoder.layers, strict=True)]
        decoder.layers, model.model.encoder.vision_tower, model.model.encoder.embed_vision = None, None, None
        swap_linears(model, plan)
        swap_experts(model, plan)
        plan.runs_in_library(model)
        self._encoder, self._condition, self._head = encoder, decoder.self_conditioning, model.lm_head

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """As ``Decoder.forward``."""
        hidden = self._encoder.embed_tokens(batch.token_ids)
        canvas = batch.canvas
        if canvas is not None:
            drawn = self._condition(hidden[canvas.tokens], canvas.said)
            hidden = hidden.index_copy(0, canvas.tokens, drawn)
        for layer, (known, redrawn) in zip(self._encoder.layers, self._factors):
            factors = known.expand(batch.num_tokens, 1)
            if canvas is not None:
                factors = factors.index_copy(0, canvas.tokens, redrawn.expand(len(canvas.tokens), 1))
            layer.layer_scalar = factors
        return run(self._encoder, hidden, batch.positions, attention_of(self._attention, batch))

    def logits(self, hidden: torch.Tensor, lora: LoraMeta | None = None) -> torch.Tensor:
        """f32 [T, V]."""
        assert lora is None, "its layers have no slots for adapters"
        capped: torch.Tensor = torch.tanh(self._head(hidden).float() / self._softcap) * self._softcap
        return capped

    def said(self, logits: torch.Tensor) -> torch.Tensor:
        """What the next pass reads of logits f32 [T, V]: the embeddings [T, H] of tokens, weighted by how probable they are."""
        embed = self._encoder.embed_tokens
        probable = logits.to(self.dtype).softmax(-1, dtype=torch.float32).to(self.dtype)
        return probable @ embed.weight * embed.embed_scale.to(self.dtype)


def load_diffusion_gemma(
    config: ModelConfig, info: ModelInfo, plan: KernelPlan, device: torch.device, block_size: int, cache_dtype: str, seed: int
) -> DiffusionGemma:
    """As ``load_transformers_model``."""
    found = with_our_attention(servable_config(config, info))
    model = library_model(config, info, found, device, seed, transformers.AutoModelForMultimodalLM)
    encoder = model.model.encoder.language_model
    kernels = AttentionKernels(plan, block_size, cache_dtype)
    attention = []
    for index, shape in enumerate(probe(config.name, encoder, device)):
        attention.append(kernels.layer(index, shape))
        attention[-1].whole = kernels.of_prompts(shape, causal=False, return_lse=False)
    check_boundaries(config.name, encoder, device)
    return DiffusionGemma(model, info, plan, attention)
