"""Each pair of features, asked of tiny engines together: both do what they do, and those that change no token change none; or a
ValueError names the field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from framework import LLM, EngineConfig, LoRARequest, PoolingParams, SamplingParams, StructuredOutputsParams
from framework.config import CacheConfig, ExecutorConfig, GraphConfig, ModelConfig, ParallelConfig, QuantConfig, SchedulerConfig
from framework.engine.kv_cache.spec import CrossKV
from framework.lora_request import LoraConfig
from framework.server.beams import beam_params
from framework.server.errors import APIError
from framework.server.protocol.common import GenerationBody
from framework.speculation.config import SpeculativeConfig

from .features import NONE, OFF, PAIRS, REFUSED, Pair, cell, markdown
from .framework.engines import finish
from .framework.multimodal.checkpoints import KINDS, MLLAMA, picture, tokenizer
from .tiny_adapters import write_tiny_adapter

TEXT = "one two one two one two"
VOCAB = 2048
"""Of the embedded model, whose tokenizer most borrow."""
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 256}
JAMBA = {**SIZES, "model_type": "jamba", "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8}
MOE = {**SIZES, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MOE |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "rms_norm_eps": 1e-6}
T5 = {"model_type": "t5", "vocab_size": VOCAB, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0, "eos_token_id": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "diffusion": {**SIZES, "model_type": "sdar", "head_dim": 8, "rms_norm_eps": 1e-6, "block_size": 4, "mask_token_id": 2},
    "encoder": T5,
    "states": JAMBA,
    "ep": MOE,
}
"""Of a model for a feature; for two, that of the first."""
UNCHANGED = ("ep", "tp", "pp", "spec", "rec", "prefix", "n", "plp")
"""Features that change no token of the first completion."""
REQUEST = ("images", "prefix", "gram", "beam", "n", "plp")
"""Features that are asked for with a request, of an engine that has the others."""


@dataclass
class Answer:
    """outputs: tokens of each completion, or a vector; fired: features that were seen at work."""

    outputs: list[Any]
    text: str = ""
    fired: set[str] = field(default_factory=set)


class Engines:
    """Made as they are needed, and kept: of features by whose names they go. folder: for what lies in files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made, self._answers = folder, dict[Any, LLM](), dict[Any, Answer]()

    def shutdown(self) -> None:
        for llm in self._made.values():
            llm.shutdown()

    def ask(self, names: frozenset[str], of: frozenset[str]) -> Answer:
        """An answer with these features. of: those whose model and kernels it is, these among them."""
        if (names, of) not in self._answers:
            self._answers[names, of] = self._ask(names, of)
        return self._answers[names, of]

    def _ask(self, names: frozenset[str], of: frozenset[str]) -> Answer:
        own = frozenset(name for name in names if name not in REQUEST or name == "prefix")
        key = own, of & {"images", "rec", *ARCHITECTURES}
        if key not in self._made:
            self._made[key] = LLM(self._config(own, of))
        llm = self._made[key]
        params = SamplingParams(temperature=0.8 * ("n" in of), seed=7, max_tokens=24, ignore_eos=True)
        if "gram" in names:
            params.structured_outputs = StructuredOutputsParams(regex="[a-h]{8}")
        if "n" in names:
            params.n = 3
        if "plp" in names:
            params.prompt_logprobs = 1
        adapter = self._adapter(of) if "lora" in names else None
        before = llm.engine.stats()
        for _ in range(2 if "prefix" in names else 1):
            found = self._answer(llm, names, of, params, adapter)
        stats = llm.engine.stats()
        seen = {
            "images": (images := llm.engine.scheduler.images) is not None and images.num_encoded > 0,
            "encoder": any(isinstance(group.spec, CrossKV) for group in llm.engine.executor.groups),
            "states": getattr(llm.engine.executor, "has_states", False),
            "diffusion": stats.num_denoising_passes > before.num_denoising_passes,
            "pooling": llm.engine.pooling is not None,
            "ep": llm.engine.config.parallel.ep > 1,
            "tp": llm.engine.config.parallel.tp > 1,
            "pp": llm.engine.config.parallel.pp > 1,
            "sim": llm.engine.config.executor.kind == "simulated",
            "quant": any(op.startswith("gemm_") for op in llm.plan()),
            "lora": adapter is not None and bool(llm.list_loras()),
            "spec": sum(stats.drafts.drafts) > sum(before.drafts.drafts),
            "rec": any(entry.get("recorded") for entry in llm.plan().values()) or ("sim" in of and "rec" in names),
            "prefix": stats.prefix_hit_tokens > before.prefix_hit_tokens,
            "gram": bool(re.fullmatch("[a-h]{8}", found.text)),
            "beam": "beam" in names and len(found.outputs) > 1,
            "n": len(found.outputs) == 3,
            "plp": "plp" in found.fired,
        }
        found.fired = {name for name, is_seen in seen.items() if is_seen}
        return found

    def _answer(self, llm: LLM, names: frozenset[str], of: frozenset[str], params: SamplingParams, adapter: Any) -> Answer:
        prompt: Any = TEXT
        if "encoder" in of and "images" not in of:
            prompt = {"encoder_prompt": TEXT, "decoder_prompt": TEXT}
        if "images" in names:
            image = (MLLAMA if "encoder" in of else KINDS["llava"]).template
            prompt = {"prompt": f"{TEXT}{image} {TEXT}", "multi_modal_data": {"image": picture(1)}}
        elif "images" in of:
            prompt = f"{TEXT} {TEXT}"
        if {"pooling", "sim"} <= names:  # without numbers
            llm.engine.add_request("it", prompt, PoolingParams())
            return Answer([output.finished for output in finish(llm.engine).values()])
        if "pooling" in names and not names & {"gram", "beam", "n", "plp"}:
            return Answer([output.outputs.embedding for output in llm.embed(prompt, use_tqdm=False)])
        if "beam" in names:
            engine: Any = llm.engine
            beams = beam_params(
                engine, GenerationBody(use_beam_search=True), params if params.n > 1 else replace(params, n=2, temperature=1.0)
            )
            assert beams is not None
            (result,) = llm.beam_search(prompt, beams, lora_request=adapter)
            return Answer([beam.tokens for beam in result.sequences])
        (output,) = llm.generate(prompt, params, use_tqdm=False, lora_request=adapter)
        fired = {"plp"} if output.prompt_logprobs is not None else set()
        return Answer([completion.token_ids for completion in output.outputs], output.outputs[0].text, fired)

    def _config(self, names: frozenset[str], of: frozenset[str]) -> EngineConfig:
        config = EngineConfig(
            self._model(of),
            CacheConfig(
                block_size=4,
                num_blocks=200,
                prefix_caching="prefix" in names,
                state_snapshots=8 if "prefix" in names and "states" in of else 0,
            ),
            SchedulerConfig(max_num_seqs=4),
            graphs=GraphConfig(enabled="rec" in names),
            kernels={} if of & {"rec", "sim"} else {"default": "reference"},
            num_threads=1,
            device="cpu",
        )
        if "prefix" in names and "states" in of:
            config.cache.state_snapshots = 2
        if "pooling" in names:
            config.model.runner = "pooling"
        tp, pp = 1 + ("tp" in names or "ep" in names), 1 + ("pp" in names)
        if "sim" in names:
            config.executor, config.parallel = ExecutorConfig("simulated"), ParallelConfig(tp, pp, ep=1 + ("ep" in names))
            config.device, config.num_threads = "auto", 0
        elif tp * pp > 1:
            config.executor = ExecutorConfig("distributed")
            config.parallel = ParallelConfig(tp, pp, ep=1 + ("ep" in names), backend="threads")
        if "quant" in names:
            config.quant = QuantConfig("int8-weight")
        if "lora" in names:
            config.lora = LoraConfig(True, 1, 8)
        if "spec" in names:
            spec: dict[str, Any] = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
            if "sim" in names:
                spec |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": [0.5, 0.4, 0.3]}
            config.speculative_config = SpeculativeConfig.of(spec)
        return config

    def _model(self, of: frozenset[str]) -> ModelConfig:
        if "images" in of and "diffusion" not in of:
            return ModelConfig(str(self._llava(of)), dtype="float32", load_format="dummy")
        for name, architecture in ARCHITECTURES.items():
            if name in of:
                return ModelConfig(name, "tiny", dtype="float32", load_format="dummy", architecture=architecture)
        return ModelConfig("tiny", dtype="float32", max_model_len=160)

    def _llava(self, of: frozenset[str]) -> Path:
        """A folder without weights."""
        text, folder = ARCHITECTURES.get("ep" if "ep" in of else ""), self._folder / f"llava{'-ep' * ('ep' in of)}"
        if "encoder" in of:
            folder = self._folder / "mllama"
        if folder.exists():
            return folder
        kind = MLLAMA if "encoder" in of else KINDS["llava"]
        config = kind.config()
        if text is not None:
            config.text_config = transformers.AutoConfig.for_model(**{**text, "vocab_size": 320})
        config.save_pretrained(folder)
        tokenizer(kind.tokens).save_pretrained(folder)
        for name, content in (("processor_config", kind.processor), ("preprocessor_config", kind.preprocessor)):
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    def _adapter(self, of: frozenset[str]) -> LoRARequest:
        model = self._model(of)
        folder = self._folder / f"adapter-{'-'.join(sorted(of & {'images', 'ep', *ARCHITECTURES}))}"
        if folder.exists():
            return LoRARequest("adapter-1", 1, str(folder))
        return write_tiny_adapter(folder, 1, targets=("q_proj", "v_proj"), model=model)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    found = Engines(tmp_path_factory.mktemp("features"))
    yield found
    found.shutdown()


def ask_both(engines: Engines, pair: Pair) -> Answer:
    return engines.ask(frozenset(pair), frozenset(pair))


ASKED = [pair for pair in PAIRS if cell(pair) in ("works", "off")]


@pytest.mark.parametrize(
    "pair", [pytest.param(pair, marks=() if nth % 8 == 1 else pytest.mark.slow) for nth, pair in enumerate(ASKED)], ids="-".join
)
def test_pairs_work_together(pair: Pair, engines: Engines) -> None:
    both, of = ask_both(engines, pair), frozenset(pair)
    assert set(pair) - both.fired == ({OFF[pair]} if pair in OFF else set()), "what is not seen at work"
    if "sim" in pair:
        return  # it makes tokens up
    for name, other in (pair, pair[::-1]):
        alone = engines.ask(frozenset({other}), of)
        if name in UNCHANGED and pair != ("beam", "n"):
            assert both.outputs[0] == alone.outputs[0], f"{name} changes what {other} gives"
        elif name in ("images", "lora", "gram") and set(pair) != {"lora", "gram"}:
            assert both.outputs != alone.outputs, f"{name} changes nothing"


@pytest.mark.parametrize("pair", REFUSED, ids="-".join)
def test_pairs_are_refused_by_name(pair: Pair, engines: Engines) -> None:
    with pytest.raises((ValueError, APIError), match=REFUSED[pair]):
        ask_both(engines, pair)


def test_the_table_is_of_pairs() -> None:
    assert {*REFUSED, *OFF, *NONE} <= set(PAIRS) and not REFUSED.keys() & OFF.keys() | NONE.keys() & (REFUSED.keys() | OFF.keys())


def test_the_readme_shows_the_table() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert markdown() in readme, "run python -m tests.features"
