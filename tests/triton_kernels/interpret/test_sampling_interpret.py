"""The Triton sampling kernels and their random numbers, run by Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from triton_kernels.impls._shared.float_key import float_key, key_float
from triton_kernels.impls._shared.philox import block_noise, gumbel, token_noise
from triton_kernels.impls.sample._scores import noisy_winner, scores_of
from triton_kernels.lab import conformance
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.rng import MIN_UNIFORM, gumbel_noise, philox, uniform

SAMPLING = ("apply_penalties", "sample", "filter_logits", "gather_logprobs")
SMALL_BLOCKS = (
    ("apply_penalties", "mask", {"block": 32}),
    ("apply_penalties", "no_mask", {"block": 32}),
    ("sample", "strided", {"block": 64, "group": 8, "sets": 16, "tile": 64, "survivors": 32}),
    ("sample", "tiny", {"block": 4, "group": 4, "sets": 16, "tile": 64, "survivors": 16}),
    ("sample", "small", {"block": 16, "group": 4, "sets": 16, "tile": 64, "survivors": 32}),
    ("filter_logits", "strided", {"block": 64, "group": 8, "sets": 16, "tile": 64, "survivors": 32}),
    ("filter_logits", "tiny", {"block": 4, "group": 4, "sets": 16, "tile": 64, "survivors": 16}),
    ("gather_logprobs", "top_5", {"block": 64}),
    ("gather_logprobs", "ties", {"block": 32}),
)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("op", SAMPLING)
def test_every_case_conforms(registry: Registry, op: str, dtype: torch.dtype) -> None:
    largest = 100000 if dtype == torch.float32 else 600  # beside the loads, all is float32
    for case in OPS[op].cases:
        if "bench" not in case.tags and case.dims["vocab_size"] <= largest:
            result = conformance.check(OPS[op], registry.impls(op)["triton"], case, dtype, interpret=True)
            assert result.ok and not result.skipped, f"{case.name}: {result.message}"


@pytest.mark.parametrize(("op", "name", "options"), SMALL_BLOCKS, ids=str)
def test_many_small_blocks(registry: Registry, op: str, name: str, options: dict[str, int]) -> None:
    case = next(case for case in OPS[op].cases if case.name == name)
    impl = registry.impls(op)["triton"]
    result = conformance.check(OPS[op], impl, case, torch.float32, interpret=True, options=options)
    assert result.ok, result.message


@triton.jit
def _words_kernel(out_ptr, seed_ptr, counter_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    c0, c1, c2, c3 = (tl.load(counter_ptr + i * BLOCK + at) for i in tl.static_range(4))
    a, b, c, d = tl.philox(tl.load(seed_ptr), c0, c1, c2, c3)
    tl.store(out_ptr + at, a.to(tl.int64))
    tl.store(out_ptr + BLOCK + at, b.to(tl.int64))
    tl.store(out_ptr + 2 * BLOCK + at, c.to(tl.int64))
    tl.store(out_ptr + 3 * BLOCK + at, d.to(tl.int64))


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
def test_words_are_those_of_tl_philox(seed: int) -> None:
    counter = torch.randint(-(2**31), 2**31, (4, 2048), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    out, seeds = torch.zeros(4, 2048, dtype=torch.int64), torch.tensor([seed])
    _words_kernel[(1,)](out, seeds, counter, BLOCK=2048)
    expected = philox(seeds, *(counter.long() & 0xFFFFFFFF))
    assert torch.equal(out, torch.stack(expected))


@triton.jit
def _uniform_kernel(words_ptr, uniform_ptr, noise_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    words = tl.load(words_ptr + at)
    tl.store(uniform_ptr + at, tl.random.uint_to_uniform_float(words))
    tl.store(noise_ptr + at, gumbel(words))


def test_uniforms_are_those_of_tl_rand_and_noise_is_exact_at_both_ends() -> None:
    ends = torch.arange(2048) ** 3 // 4  # dense near 0, up to 2^31
    words = torch.cat([ends, 2**31 - 1 - ends, 2**32 - 1 - ends, torch.randint(0, 2**32, (2048,))])
    got, noise = torch.zeros(8192), torch.zeros(8192)
    _uniform_kernel[(1,)]((words - 2**32 * (words >= 2**31)).int(), got, noise, BLOCK=8192)
    assert torch.equal(got, uniform(words))
    u = uniform(words).double().clamp_min(MIN_UNIFORM)
    torch.testing.assert_close(noise.double(), -torch.log(-torch.log1p(-u)), rtol=3e-7, atol=3e-7)


@triton.jit
def _noise_kernel(block_ptr, token_ptr, seed_ptr, position_ptr, stream, first, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    seed, position = tl.load(seed_ptr), tl.load(position_ptr)
    tl.store(block_ptr + at, block_noise(seed, position, stream, first, BLOCK))
    tl.store(token_ptr + at, token_noise(seed, position, stream, first + BLOCK - 1 - at))


@pytest.mark.parametrize(("seed", "position", "stream"), [(3, 5, 0), (-(2**62), 2**40 + 3, 2), (2**62 + 1, 2**32 - 1, 3)])
def test_noise_of_blocks_and_of_tokens_is_the_contract_s(seed: int, position: int, stream: int) -> None:
    block, token = torch.zeros(256), torch.zeros(256)
    seeds, positions = torch.tensor([seed]), torch.tensor([position])
    _noise_kernel[(1,)](block, token, seeds, positions, stream, 1024, BLOCK=256)
    expected = gumbel_noise(seeds, positions, stream, 1024 + torch.arange(256))[0]
    torch.testing.assert_close(block, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(token, expected.flip(0), rtol=1e-6, atol=1e-6)


@triton.jit
def _winner_kernel(logits_ptr, words_ptr, temperature_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    logits, words, temperature = tl.load(logits_ptr + at), tl.load(words_ptr + at), tl.load(temperature_ptr)
    tl.store(out_ptr + 2 * tl.program_id(0), noisy_winner(logits, temperature, words, BLOCK))
    noisy = scores_of(logits, temperature) + gumbel(words)
    tl.store(out_ptr + 2 * tl.program_id(0) + 1, tl.argmax(noisy, 0, tie_break_left=True))


@pytest.mark.parametrize(("temperature", "shift"), [(1.0, 0.0), (0.3, 1e5)])
def test_bounds_of_noise_find_the_token_that_exact_noise_finds(temperature: float, shift: float) -> None:
    """Of every size of noise, tokens whose noisy scores nearly tie: further apart than scores round, closer than bounds are off."""
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(0, 2**31, (400, 4), generator=generator) >> torch.randint(0, 32, (400, 4), generator=generator)
    words = torch.where(torch.rand(400, 4, generator=generator) < 0.5, words, 2**32 - 1 - words)
    noise = -torch.log(-torch.log1p(-uniform(words).double().clamp_min(MIN_UNIFORM)))
    apart = torch.rand(400, 4, generator=generator) * 10.0 ** torch.randint(-6, 1, (400, 1), generator=generator)
    logits = (temperature * (apart - noise) + shift).float()
    logits[::5, 1:3], logits[::7, 0], logits[::11] = -float("inf"), float("inf"), 0.0
    words[::11, 1:] = words[::11, :1]
    out = torch.zeros(400, 2, dtype=torch.int32)
    _winner_kernel[(400,)](logits, (words - 2**32 * (words >= 2**31)).int(), torch.tensor([temperature]), out, BLOCK=4)
    assert torch.equal(out[:, 0], out[:, 1])


@triton.jit
def _keys_kernel(values_ptr, keys_ptr, back_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    keys = float_key(tl.load(values_ptr + at))
    tl.store(keys_ptr + at, keys)
    tl.store(back_ptr + at, key_float(keys))


def test_keys_have_the_order_of_floats() -> None:
    values = torch.tensor([-float("inf"), -3e38, -1.5, -1e-40, -0.0, 0.0, 1e-40, 7.0])
    keys, back = torch.zeros(8, dtype=torch.int32), torch.zeros(8)
    _keys_kernel[(1,)](values, keys, back, BLOCK=8)
    assert torch.equal(back, values)
    assert keys.tolist() == sorted(keys.tolist()) and len(set(keys.tolist())) == 7 and keys[4] == 0


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.2}], ids=str)
def test_broken_rows_give_minus_one_and_harm_no_other(registry: Registry, filters: dict[str, float]) -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    logits[1, 7], logits[2], logits[3, 49], logits[4, 1:] = float("nan"), -float("inf"), float("inf"), -float("inf")
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    args: dict[str, Any] = {name: torch.full((1,), value) for name, value in (defaults | filters).items()}
    args |= {"logits": logits, "row_to_seat": torch.tensor([0, 0, 0, 0, 0, -1, 0], dtype=torch.int32)}
    args |= {"top_k": args["top_k"].int(), "seed": torch.tensor([9]), "position": torch.arange(7), "stream": 0}
    expected = OPS["sample"].reference(**args)
    got = registry.impls("sample")["triton"].target(**args, block=16, group=4, sets=16, tile=64, survivors=16)
    assert got.tolist() == expected.tolist()
    assert expected[1:6].tolist() == [-1, -1, -1, 0, -1]


def test_logprobs_of_ties_and_broken_rows(registry: Registry) -> None:
    logits = torch.zeros(5, 70)
    logits[1, 3], logits[2], logits[3, 65] = float("nan"), -float("inf"), float("inf")
    for num_top in (3, 70):
        args = (logits, torch.tensor([4, 4, 4, 4, -1]), num_top)
        got = registry.impls("gather_logprobs")["triton"].target(*args, block=32)
        for a, b in zip(got, OPS["gather_logprobs"].reference(*args), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)
