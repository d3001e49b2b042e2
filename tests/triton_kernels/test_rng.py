"""Philox against published completions and against a plain-integer version; the noise against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch

from triton_kernels.rng import MIN_UNIFORM, NOISE_SPAN, gumbel_noise, philox, quad_noise, token_uniform, uniform

# Random123's known completions for philox4x32-10: counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
PLACES = [(0, 0, 0), (-1, 2**63 - 1, 3), (2**63 - 1, 2**32, 1), (-(2**63), 2**32 - 1, 2), (1234567890123, 5 * 2**32 + 17, 0)]
TOKENS = [0, 1, 2, 3, 4, 7, 1023, 150000, 262143]


def plain_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """The algorithm as the paper writes it, on Python integers."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (p1 >> 32) ^ b ^ k0, p1 % 2**32, (p0 >> 32) ^ d ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return a, b, c, d


def plain_uniform(seed: int, position: int, stream: int, token: int) -> float:
    counter = (token >> 2, position % 2**32, position >> 32, stream)
    word = plain_philox(counter, (seed % 2**32, (seed >> 32) % 2**32))[token & 3]
    return (word if word < 2**31 else 2**32 - 1 - word) / 2**31


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_published_completions(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert plain_philox(counter, key) == expected
    seed = torch.tensor([key[0] | key[1] << 32 if key[1] < 2**31 else (key[0] | key[1] << 32) - 2**64])
    words = philox(seed, *(torch.tensor([word]) for word in counter))
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize(("seed", "position", "stream"), PLACES)
def test_the_counter_is_what_the_contract_says(seed: int, position: int, stream: int) -> None:
    got = token_uniform(torch.tensor([seed]), torch.tensor([position]), stream, torch.tensor(TOKENS))[0]
    expected = torch.tensor([plain_uniform(seed, position, stream, token) for token in TOKENS], dtype=torch.float64)
    torch.testing.assert_close(got.double(), expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize(("seed", "position", "stream"), PLACES)
def test_both_ways_to_the_noise_agree_with_its_formula(seed: int, position: int, stream: int) -> None:
    seeds, positions, tokens = torch.tensor([seed, 5]), torch.tensor([position, 9]), torch.arange(4096)
    one = gumbel_noise(seeds, positions, stream, tokens)
    other = quad_noise(seeds[:, None], positions[:, None], stream, torch.arange(1024)).flatten(1)
    u = token_uniform(seeds, positions, stream, tokens).double().clamp_min(MIN_UNIFORM)
    expected = -torch.log(-torch.log1p(-u))
    torch.testing.assert_close(one.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(other.double(), expected, rtol=1e-6, atol=1e-6)


def test_uniforms_are_as_in_triton() -> None:
    words = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
    assert uniform(words).tolist() == pytest.approx([0, 2**-31, 1 - 2**-24, 1 - 2**-24, 2**-31, 0], rel=1e-7, abs=0)
    assert float(uniform(words).max()) < 1


def test_noise_is_finite_and_no_wider_than_its_span() -> None:
    least, most = (-math.log(-math.log1p(-u)) for u in (1 - 2**-24, MIN_UNIFORM))
    assert most - least < NOISE_SPAN < most - least + 0.01


def test_noise_is_gumbel() -> None:
    noise = gumbel_noise(torch.arange(8), torch.arange(8), 0, torch.arange(25000)).double().flatten()
    assert float(noise.mean()) == pytest.approx(0.5772157, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)
    below = (noise[:, None] <= torch.tensor([-1.0, 0.0, 1.0, 3.0])).double().mean(0)
    assert below.tolist() == pytest.approx([math.exp(-math.exp(-x)) for x in (-1, 0, 1, 3)], abs=0.005)


def test_every_part_of_the_counter_matters() -> None:
    base = token_uniform(torch.tensor([7]), torch.tensor([11]), 0, torch.arange(64))
    for seed, position, stream in ((8, 11, 0), (7 + 2**40, 11, 0), (7, 12, 0), (7, 11 + 2**32, 0), (7, 11, 1)):
        other = token_uniform(torch.tensor([seed]), torch.tensor([position]), stream, torch.arange(64))
        assert int((base == other).sum()) == 0
