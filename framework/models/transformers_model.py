"""Models that the native decoder does not cover: the transformers library's own modules, with our attention,
linear layers and experts.

The library's attention interface calls :func:`_attention` in place of its own; keywords given to a model's forward arrive
there, which is how a step gets in. A probe run at load time tells which layers attend, with which shapes and parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
import transformers.integrations.moe

from ..config import LoraConfig, ModelConfig, QuantConfig
from ..plan import BoundKernel, KernelPlan, LoraMeta
from .batch import ForwardBatch
from .families.diffusion import LIBRARY_DENOISERS
from .layers.linear import bind_linear
from .layers.paged_attention import AttentionKernels, AttentionShape, PagedAttention
from .library import library_config
from .paged_model import PagedModel
from .quantization.unquantized import float_experts, float_linear
from .read import ModelInfo

INTERFACE = "kernelswap"
KEYWORD = "kernelswap_step"
_BATCH_ROPES = ("dynamic", "longrope")
_UNKNOWN_KINDS = ("position_bias", "head_mask", "alibi")

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]


class TransformersModel(PagedModel):
    """The interface of ``Decoder`` around a model of the transformers library.

    model      a causal language model, whose linear layers and experts are swapped for ours
    attention  of its layers
    """

    decides_on_host = True

    def __init__(self, model: Any, info: ModelInfo, plan: KernelPlan, attention: list[PagedAttention]) -> None:
        super().__init__(attention)
        self.dtype, self.vocab_size, self.max_model_len = model.dtype, model.config.vocab_size, info.max_model_len
        swap_linears(model, plan)
        swap_experts(model, plan)
        plan.runs_in_library(model)
        self._base, self._head = _split_head(model)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """As ``Decoder.forward``: the tokens of all requests are one row of the library's batch."""

        return run(self._base, batch.token_ids, batch.positions, attention_of(self._attention, batch))

    def logits(self, hidden: torch.Tensor, lora: LoraMeta | None = None) -> torch.Tensor:
        """The library's own head, which may scale or cap: its inner model is one that returns what it is given."""
        assert lora is None, "its layers have no slots for adapters"
        return self._head(inputs_embeds=hidden[None], use_cache=False).logits[0]


def attention_of(layers: Mapping[int, PagedAttention], batch: ForwardBatch) -> Attend:
    """Ours, of a step."""

    def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
        q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
        layers[layer].write(k, v, batch)
        return layers[layer].attend(q, batch)[None]

    return attend


def load_transformers_model(
    config: ModelConfig, info: ModelInfo, plan: KernelPlan, device: torch.device, block_size: int, cache_dtype: str, seed: int
) -> TransformersModel:
    """Loads a model, finds out how it attends, and binds its kernels. cache_dtype: a name of torch's. Raises ValueError with the
    reason if it cannot work."""
    found = servable_config(config, info)
    model = library_model(config, info, with_our_attention(found), device, seed)
    kernels = AttentionKernels(plan, block_size, cache_dtype)
    attention = [kernels.layer(index, shape) for index, shape in enumerate(probe(config.name, model, device))]
    check_boundaries(config.name, model, device)
    return TransformersModel(model, info, plan, attention)


def check_as_it_is(info: ModelInfo, quant: QuantConfig, lora: LoraConfig | None) -> None:
    """Raises ValueError for quantized weights and for adapters, neither of which models have that the library's modules run."""
    if info.quantization is not None or quant.scheme != "none":
        raise ValueError(
            f"model {info.name!r} cannot have quantized weights: it runs through the transformers library ({info.reason}), "
            "whose layers are loaded as floats; take a checkpoint of floats, with quant.scheme=none"
        )
    if lora is not None and lora.enabled:
        raise ValueError(
            f"model {info.name!r} cannot have adapters: it runs through the transformers library ({info.reason}), whose "
            "layers have no slots for them; set lora.enabled=false, or merge the adapter into the checkpoint"
        )


def with_our_attention(found: Any) -> Any:
    """The library's configuration object, whose models attend as they are told."""
    transformers.AttentionInterface.register(INTERFACE, _attention)
    transformers.AttentionMaskInterface.register(INTERFACE, _no_mask)
    found._attn_implementation = INTERFACE
    return found


def servable_config(config: ModelConfig, info: ModelInfo) -> Any:
    """The library's configuration object of a model. Raises ValueError with the reason if it cannot be served."""
    found = library_config(config, info.folder, info.config["model_type"])
    if reason := refusal(found):
        raise ValueError(f"model {config.name!r} cannot run: {reason}")
    return found


def library_model(
    config: ModelConfig, info: ModelInfo, found: Any, device: torch.device, seed: int, kind: Any = transformers.AutoModelForCausalLM
) -> Any:
    """The library's model for its configuration ``found``, made by ``kind``, on the device: random weights with load_format=dummy,
    else those of the checkpoint. Raises ValueError for a checkpoint that does not fit."""
    dtype = getattr(torch, info.dtype)
    if config.load_format == "dummy":
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            model: Any = kind.from_config(found, dtype=dtype)
    else:
        assert info.folder is not None
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # the latter, too, are in the report
        loaded: Any = kind.from_pretrained(info.folder, config=found, dtype=dtype, **told)
        model, report = loaded
        if wrong := {key: sorted(map(str, names))[:20] for key, names in report.items() if names}:
            raise ValueError(f"the checkpoint in {info.folder} does not fit its config.json: {wrong}")
        model.to(device=device)
    return model.eval()


def refusal(config: Any) -> str | None:
    """Why a model cannot be served, as far as the library's configuration object tells."""
    if config.is_encoder_decoder:
        return "it is an encoder-decoder; only decoders can be served"
    if getattr(config.get_text_config(), "cross_attention_layers", None):
        return "its decoder attends to images in layers of their own (cross_attention_layers), which the native decoder has"
    if config.model_type in LIBRARY_DENOISERS:
        return None
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        return f"transformers has no causal language model for model_type {config.model_type!r}"
    model_class: Any = transformers.AutoModelForCausalLM._model_mapping[type(config)]
    if not getattr(model_class, "_supports_attention_backend", False):
        return f"{model_class.__name__} does not use the attention interface of transformers, so our attention cannot be put in"
    if getattr(config, "is_decoder", True) is False:
        return "its attention is not causal (is_decoder is off)"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of kind {', '.join(sorted(kinds))}; only full and sliding-window attention can be served"
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in {str(p.get("rope_type")) for p in (rope, *rope.values()) if isinstance(p, dict)} & set(_BATCH_ROPES):
        return f"its rotary embedding ({kind}) depends on the longest sequence of a batch, which a shared cache cannot follow"
    return None


def probe(name: str, model: Any, device: torch.device) -> list[AttentionShape]:
    """Runs two tokens through the model and records how each layer attends."""
    seen: dict[int, AttentionShape] = {}
    problems: list[str] = []
    kinds = getattr(model.config, "layer_types", None)

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
        window, softcap = keywords.get("sliding_window"), keywords.get("softcap")
        scale = keywords["scaling"] if keywords.get("scaling") is not None else q.shape[-1] ** -0.5
        sinks = keywords.get("s_aux")
        problems.extend(f"layer {layer} attends with {key}" for key in _UNKNOWN_KINDS if keywords.get(key) is not None)
        if keywords.get("is_causal") is False or keywords["module_is_causal"] is False:
            problems.append(f"attention of layer {layer} is not causal")
        if kinds and kinds[layer] == "sliding_attention" and window is None:
            problems.append(f"layer {layer} is windowed but does not say so to its attention")
        seen[layer] = AttentionShape(
            q.shape[1],
            k.shape[1],
            q.shape[3],
            v.shape[3],
            float(scale),
            window,
            softcap,
            None if sinks is None else sinks.detach().float(),
        )
        return v.new_zeros(1, q.shape[2], q.shape[1], v.shape[3])

    with torch.inference_mode():
        run(model.get_decoder(), torch.zeros(2, dtype=torch.int64, device=device), torch.arange(2, device=device), attend)
    silent = sorted(set(range(model.config.num_hidden_layers)) - set(seen))
    if silent:
        problems.append(f"layers {', '.join(map(str, silent))} do not attend (they keep another kind of state)")
    if problems:
        raise ValueError(f"model {name!r} cannot run: {'; '.join(problems)}")
    return [seen[layer] for layer in range(len(seen))]


_APART = (5, 7)
"""Lengths of the two sequences of the check."""


@torch.inference_mode()
def check_boundaries(name: str, model: Any, device: torch.device) -> None:
    """Two sequences in one row must give what they give alone, where attention keeps them apart: nothing else may look across.
    Raises ValueError with the numbers for a model in which something does; on the meta device there are none."""
    if device.type == "meta":
        return

    def attend_in(lengths: tuple[int, ...]) -> Attend:
        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
            parts = zip(*(heads.split(lengths, dim=2) for heads in (q, k, v)))
            attention = torch.nn.functional.scaled_dot_product_attention
            out = [attention(query, keys, values, is_causal=True, enable_gqa=True) for query, keys, values in parts]
            return torch.cat(out, dim=2).transpose(1, 2)

        return attend

    base, vocab = model.get_decoder(), model.config.get_text_config().vocab_size
    tokens = torch.tensor([(7 + 31 * i) % vocab for i in range(sum(_APART))], device=device).split(_APART)
    positions = [torch.arange(length, device=device) for length in _APART]
    alone = torch.cat([run(base, ids, at, attend_in((len(ids),))) for ids, at in zip(tokens, positions)]).float()
    together = run(base, torch.cat(tokens), torch.cat(positions), attend_in(_APART)).float()
    error, limit = float((together - alone).norm() / alone.norm()), 1e-3 if model.dtype == torch.float32 else 0.1
    if not error <= limit:
        raise ValueError(
            f"model {name!r} cannot run: two sequences side by side differ from each alone by {error:.2g} of the hidden states "
            f"(at most {limit:.2g} is rounding): something in {type(base).__name__} of transformers, beside its attention, mixes "
            "the tokens of a row"
        )


def run(base: Any, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
    """An inner model over tokens, int64 [T], or their embeddings [T, H]. Returns hidden states [T, H]."""
    keywords: dict[str, Any] = {KEYWORD: attend, "inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens[None]}
    out = base(position_ids=positions[None], use_cache=False, **keywords)
    return out.last_hidden_state[0]


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, **keywords: Any
) -> tuple[torch.Tensor, None]:
    """The library's attention interface. query, key, value [1, heads, T, D] -> [1, T, heads, Dv]."""
    attend = keywords.pop(KEYWORD, None)
    if attend is None:
        raise ValueError(
            f"this model cannot run: {type(module).__name__} of transformers gets no keywords from its model, so our "
            "attention cannot be put in"
        )
    keywords["module_is_causal"] = getattr(module, "is_causal", True)
    return attend(module.layer_idx, query, key, value, keywords), None


def _no_mask(*args: Any, **keywords: Any) -> None:
    """Our attention knows the positions; it takes no mask."""


class _KernelLinear(torch.nn.Module):
    """A linear layer of ours in the place of one of the library's."""

    def __init__(self, theirs: torch.nn.Linear, plan: KernelPlan) -> None:
        super().__init__()
        bias = theirs.bias.detach() if theirs.bias is not None else None
        self.linear = bind_linear(plan, [float_linear(theirs.weight.detach(), bias)])
        self.in_features, self.out_features = theirs.in_features, theirs.out_features  # some models ask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class _KernelExperts(torch.nn.Module):
    """Experts of ours in the place of some of the library's."""

    def __init__(self, experts: BoundKernel) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x [T, H]; ids and weights [T, k], as the library's experts take them."""
        return self.experts(x, weights.float(), ids.int())


class _Hidden:
    """The output of an inner model: hidden states, and nothing of what else it may return."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        """past_key_values, router_logits, ..."""
        return None


class _Given(torch.nn.Module):
    """An inner model that returns its input embeddings as the final hidden states."""

    def forward(self, input_ids: None = None, *args: Any, inputs_embeds: torch.Tensor, **keywords: Any) -> _Hidden:
        return _Hidden(inputs_embeds)


def swap_linears(model: torch.nn.Module, plan: KernelPlan) -> None:
    """Puts ours in the place of the library's linear layers."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, _KernelLinear(child, plan))


def swap_experts(model: torch.nn.Module, plan: KernelPlan) -> None:
    """Those that the library's ``use_experts_implementation`` marks, and that compute what ``moe_experts`` does."""
    for parent in list(model.modules()):
        children: list[tuple[str, Any]] = list(parent.named_children())
        for name, child in children:
            if _are_swiglu(child):
                experts = float_experts(child.gate_up_proj.detach(), child.down_proj.detach())
                setattr(parent, name, _KernelExperts(plan.bind(experts.op, experts.tensors, {"expert_start": 0})))


def _are_swiglu(module: Any) -> bool:
    kind = [getattr(module, name, None) for name in ("has_gate", "is_concatenated", "has_bias", "is_transposed")]
    if kind != [True, True, False, False] or getattr(module, "has_post_expert_norm", False):
        return False
    silu = isinstance(getattr(module, "act_fn", None), torch.nn.SiLU | transformers.activations.SiLUActivation)
    return silu and type(module)._apply_gate is transformers.integrations.moe._default_apply_gate


def _split_head(model: Any) -> tuple[Any, Any]:
    """(inner model, the model whose inner model is replaced by one that returns what it is given)."""
    inner = model.get_decoder()
    parent, name = next((p, n) for p in model.modules() for n, child in p.named_children() if child is inner)
    setattr(parent, name, _Given())
    return inner, model
