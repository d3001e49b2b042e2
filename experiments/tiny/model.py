"""Llama models of the shipped shapes, and their export in Hugging Face layout."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from experiments.tiny.tokenizer import BOS, EOS, PAD, save_tokenizer, token_id


def build_model(shape: DictConfig, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A freshly initialised Llama of the given shape; residual outputs start at zero."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=token_id(tokenizer, BOS),
        eos_token_id=token_id(tokenizer, EOS),
        pad_token_id=token_id(tokenizer, PAD),
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def export_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write bf16 weights, configurations and tokenizer files to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig.from_dict(model.config.to_dict())
    config.use_cache = True
    exported = LlamaForCausalLM(config)
    exported.load_state_dict(model.state_dict())
    exported.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    exported.bfloat16()
    exported.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder, config.max_position_embeddings)


def load_exported(folder: Path) -> LlamaForCausalLM:
    """An exported model in float32 and evaluation mode, without gradients."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval().requires_grad_(False)
