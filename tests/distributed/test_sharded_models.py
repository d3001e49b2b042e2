"""Models cut among ranks (threads) against the same models whole: logits of the reference kernels are equal bit by bit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from framework.clock import WallClock
from framework.config import EngineConfig, ExecutorConfig, ModelConfig, ParallelConfig, QuantConfig
from framework.distributed.executor import DistributedExecutor
from framework.models.parallel import Parallel, Ranks
from framework.models.parts import Part, all_parts, layer_parts
from framework.models.quantization.canonical import dequantized, scaled_weights
from framework.models.quantization.shares import own_linear, own_weight
from framework.models.quantization.table import read_scheme
from framework.models.quantization.unquantized import float_linear
from framework.models.ranks import rank_architecture
from framework.models.read import read_model
from framework.models.weights import Checkpoint
from triton_kernels.group import ThreadGroup

from ..framework.models.checkpoints import make
from ..framework.models.harness import Session, build, sequences
from ..models.examples import EXAMPLES
from ..models.examples.states import EXAMPLES as STATES
from ..thread_ranks import run_ranks

REFERENCE = {"default": "reference"}
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
FAMILIES = (
    *(
        "llama",
        "gpt-neox",
        "gpt2",
        "gemma2",
        "phi3",
        "mixtral",
        "qwen3-moe",
        "bloom",
        "falcon-40b",
        "cohere2",
        "olmo2",
        "deepseek-v3",
    ),
    *("gpt-oss", "minimax_m2", "llama4", "exaone4", "stablelm-12b", "gpt_bigcode", "qwen2-moe", "dbrx"),
)
MIXTURES = ("mixtral", "qwen3-moe", "deepseek-v3", "gpt-oss", "llama4", "granitemoeshared")
RECURRENT = ("jamba", "mamba2", "qwen3-next", "qwen3.5-moe")
VECTORIZED = {"phi", "starcoder2"}
"""Families whose activation torch computes with other last bits where a row is shorter."""


def logits(config: ModelConfig, parallel: Parallel | None = None, kernels: dict[str, str] = REFERENCE) -> torch.Tensor:
    """Of two prompts, one in two chunks, and a token after the other."""
    session, prompts = (
        Session(build(config, kernels, parallel=parallel), 2),
        [[t % 29 + 2 for t in s] for s in sequences((19, 7))],
    )
    steps = [[(0, prompts[0][:9]), (1, prompts[1][:6])], [(1, prompts[1][6:]), (0, prompts[0][9:])]]
    return torch.cat([found for rows in steps for found in session.step(rows)])


def tensor_parallel(group: ThreadGroup, *, spread_experts: bool = False) -> Parallel:
    ranks = Ranks(group.rank, group.size, group)
    return Parallel(tp=ranks, **({"ep": ranks} if spread_experts else {}))


def check(config: ModelConfig, size: int, *, spread_experts: bool = False) -> None:
    expected = logits(config)
    for found in run_ranks(size, lambda group: logits(config, tensor_parallel(group, spread_experts=spread_experts))):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", (2, 4))
@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_are_cut(name: str, size: int, tmp_path: Path) -> None:
    make(EXAMPLES[name], tmp_path)
    check(ModelConfig(str(tmp_path), dtype="float32" if size == 2 else "bfloat16"), size)


@pytest.mark.parametrize("name", [n if n in RECURRENT else pytest.param(n, marks=pytest.mark.slow) for n in STATES])
def test_states_are_cut_by_heads_or_channels(name: str, tmp_path: Path) -> None:
    make(EXAMPLES[name], tmp_path)
    check(ModelConfig(str(tmp_path), dtype="float32"), 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", (2, 4))
@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - set(FAMILIES) - set(STATES) - {"falcon-rw-six"}))
def test_tensors_of_every_family_are_cut(name: str, size: int, tmp_path: Path) -> None:
    make(EXAMPLES[name], tmp_path)
    config = ModelConfig(str(tmp_path), dtype="float32")
    if read_model(config).config["model_type"] not in VECTORIZED:
        check(config, size)
        return
    expected = logits(config)
    for found in run_ranks(size, lambda group: logits(config, tensor_parallel(group))):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(("linear", "equal"), (("tree", True), ("torch", False)))
def test_sums_in_the_order_of_a_tree_have_the_same_bits_on_1_2_4_and_8_ranks(linear: str, equal: bool, tmp_path: Path) -> None:
    """Others depend on where they are cut."""
    example = EXAMPLES["llama"]
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "intermediate_size": 128}
    make(replace(example, config={**example.config, **heads}), tmp_path)
    config, kernels = ModelConfig(str(tmp_path), dtype="float32"), {**REFERENCE, "linear": linear, "all_reduce": "ordered"}
    expected = logits(config, kernels=kernels)
    found = [x for size in (2, 4, 8) for x in run_ranks(size, lambda group: logits(config, tensor_parallel(group), kernels))]
    assert all(torch.equal(x, expected) for x in found) == equal


@pytest.mark.parametrize("size", (2, 4))
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_spread(name: str, size: int, tmp_path: Path) -> None:
    make(EXAMPLES[name], tmp_path)
    check(ModelConfig(str(tmp_path), dtype="float32"), size, spread_experts=True)


@pytest.mark.parametrize("name", ("ct_w4a16_asym", "gptq_asym", "awq", "ct_w8a8_static_asym", "fp8_static", "bnb_nf4", "ar_mixed"))
def test_quantized_weights_are_cut_by_whole_groups(name: str) -> None:
    check(ModelConfig(str(CHECKPOINTS / {"fp8_static": "ct_fp8_static"}.get(name, name)), dtype="float32", max_model_len=64), 2)


@pytest.mark.parametrize(("name", "spread"), (("ct_mixtral_w4a16", False), ("ct_moe_w4a16_asym", False), ("gptq_moe", True)))
def test_quantized_experts_are_cut_or_spread(name: str, spread: bool) -> None:
    check(ModelConfig(str(CHECKPOINTS / name), dtype="float32", max_model_len=64), 2, spread_experts=spread)


def test_what_cannot_be_cut_is_refused_by_name() -> None:
    config = ModelConfig(str(CHECKPOINTS / "gptq_act_order"), dtype="float32", max_model_len=64)
    with pytest.raises(ValueError, match=r"o_proj cannot be cut among ranks: its columns are ordered by activation \(desc_act\)"):
        run_ranks(2, lambda group: logits(config, tensor_parallel(group)))
    config = ModelConfig(str(CHECKPOINTS / "ar_fp8_block_moe"), dtype="float32", max_model_len=64)
    with pytest.raises(ValueError, match="numbers 0 to 63 are no whole groups of 128 weights with one scale"):
        run_ranks(2, lambda group: logits(config, tensor_parallel(group)))


def test_inputs_that_are_ordered_are_refused_by_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DistributedExecutor, "__init__", None)
    model = ModelConfig(str(CHECKPOINTS / "gptq_act_order"), dtype="float32", max_model_len=64)
    config = EngineConfig(model, executor=ExecutorConfig("distributed"), parallel=ParallelConfig(tp=2))
    with pytest.raises(ValueError, match=r"o_proj cannot be cut among ranks: its columns are ordered by activation \(desc_act\)"):
        DistributedExecutor.open(config, read_model(model), WallClock())


@contextmanager
def sources_of() -> Iterator[list[Checkpoint]]:
    """Those that are opened inside."""
    found: list[Checkpoint] = []
    keep = Checkpoint.__init__

    def noting(weights: Checkpoint, *given: object) -> None:
        keep(weights, *given)  # type: ignore[arg-type]
        found.append(weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "__init__", noting)
        yield found


@pytest.mark.parametrize("name", ("llama", "gpt2", "mixtral", "gemma2", "qwen2-moe", "mamba2"))
def test_a_rank_reads_its_share_only(name: str, tmp_path: Path) -> None:
    make(EXAMPLES[name], tmp_path)
    config = ModelConfig(str(tmp_path), dtype="float32")
    with sources_of() as read:
        run_ranks(2, lambda group: logits(config, tensor_parallel(group)))
    architecture = read_model(config).architecture
    assert architecture is not None
    own = sum(bytes_of(part) for part in all_parts(rank_architecture(architecture, ParallelConfig(tp=2))))
    assert len(read) == 2
    for weights in read:
        assert 0.9 * own < weights.files.num_bytes_read <= 1.02 * own


@pytest.mark.parametrize("name", ("gptq_asym", "awq", "ct_w4a16_asym", "ct_w8a8_static_asym", "ct_fp8_static", "ct_mixtral_w4a16"))
def test_a_rank_reads_its_share_of_what_is_quantized(name: str) -> None:
    """Of matrices half, of vectors (norms, scales of rows, biases), routers and a short vocabulary at most all."""
    config = ModelConfig(str(CHECKPOINTS / name), dtype="float32", max_model_len=64)
    with sources_of() as read:
        run_ranks(2, lambda group: logits(config, tensor_parallel(group)))
    tensors = {key: t for file in (CHECKPOINTS / name).glob("*.safetensors") for key, t in load_file(file).items()}
    whole = {key for key, t in tensors.items() if t.dim() == 1 or min(t.shape) == 1 or key.endswith(WHOLE)}
    own = sum(t.nbytes if key in whole else t.nbytes // 2 for key, t in tensors.items())
    assert len(read) == 2
    for weights in read:
        assert 0.9 * own < weights.files.num_bytes_read <= 1.02 * own


STORED = (
    *("gptq_asym", "gptq_act_order", "gptq_w2_asym", "gptq_w3", "gptq_w8", "ar_w3", "awq", "ct_w4a16_asym", "ct_w8a16_asym"),
    *("ct_g_idx_asym", "ct_w8a8_static_asym", "ct_w8a8_dynamic", "ct_fp8_block", "fp8_block", "fp8_tensor", "bnb_nf4"),
)


@pytest.mark.parametrize("name", STORED)
def test_shares_of_what_is_stored(name: str) -> None:
    """A share is what is cut from the whole; so are rows of a module that are several pieces, and those that are no whole words."""
    info = read_model(ModelConfig(str(CHECKPOINTS / name), dtype="float32"))
    scheme = read_scheme(info.quantization, QuantConfig())
    assert info.architecture is not None and info.folder is not None
    source = Checkpoint(info.folder, info.architecture.family, torch.device("cpu"), torch.float32, scheme)
    parts = [part for part in layer_parts(info.architecture, 0).values() if part.quantizable and not part.num_experts]
    up = next(part for part in parts if len(part.sources) == 2)
    rows = up.rows[0]
    for pieces in ((rows // 2, rows // 4, rows // 4), (rows // 2 - 4, rows // 2 + 4)):
        parts.append(replace(up, sources=up.sources[:1], rows=(rows,), pieces=pieces))
    for whole in parts:
        by_rows = replace(whole, rows=tuple(n // 2 for n in whole.rows), pieces=tuple(n // 2 for n in whole.pieces))
        by_columns = replace(whole, columns=(whole.columns or 0) // 2)
        for own, rank in product((by_rows, by_columns), range(2)):
            share = replace(own, share=(whole, Ranks(rank, 2)))
            try:
                expected = own_linear(scheme.linear(whole, source), share)
            except ValueError as error:
                with pytest.raises(ValueError, match=re.escape(str(error))):
                    source.load(share)
                continue
            found = source.load(share)
            assert torch.equal(*(torch.cat([dequantized(part) for part in parts]) for parts in (found, expected)))
            assert [part.input is None for part in found] == [part.input is None for part in expected]


WHOLE = ("gate.weight", "embed_tokens.weight", "lm_head.weight")


def bytes_of(part: Part) -> int:
    elements = 1
    for size in part.shape:
        elements *= size
    return 4 * (elements + (sum(part.rows) * max(part.num_experts, 1) if part.bias else 0)) if part.sources else 0


def test_blocks_of_scales_are_not_cut_where_the_last_is_shorter() -> None:
    """96 of 192 columns are half of two scales, but not one block of 128."""
    whole, own = Part(("m",), (128,), 192, pieces=(128,)), Part(("m",), (128,), 96, pieces=(128,))
    weight = torch.zeros(128, 192, dtype=torch.float8_e4m3fn)
    loaded = scaled_weights("gemm_fp8", weight, torch.tensor([[1.0, 2.0]]), torch.float32, blocks=True)
    with pytest.raises(ValueError, match="m cannot be cut among ranks: numbers 0 to 95 are no whole groups of 128"):
        own_linear([loaded], replace(own, share=(whole, Ranks(0, 2))))


def test_a_share_of_padded_rows_is_zero_beyond_the_whole() -> None:
    whole, own = Part(("m",), (5,), 4), Part(("m",), (3,), 4)
    last = replace(own, share=(whole, Ranks(1, 2)))
    assert last.own == ([range(3, 5)], range(0, 4), range(0, 0))
    weight = torch.arange(20.0).view(5, 4)
    padded = torch.cat((weight[3:], torch.zeros(1, 4)))
    for found in (own_weight(weight, last), own_linear([float_linear(weight, None)], last)[0].tensors["weight"]):
        assert torch.equal(found, padded)
    (nothing,) = own_linear([float_linear(weight, torch.ones(5))], replace(own, share=(whole, Ranks(3, 4))))
    assert not nothing.tensors["weight"].any() and not nothing.tensors["bias"].any() and nothing.num_rows == 3
