"""The random numbers of sampling on a device: the published completions, and the same bits as on a CPU."""

from __future__ import annotations

import pytest
import torch

from triton_kernels.rng import gumbel_noise, philox, quad_noise, token_uniform

from ..triton_kernels.test_rng import KNOWN, PLACES, TOKENS, plain_philox, plain_uniform

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_torch_gives_the_published_completions(
    device: str, counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    seed = torch.tensor([signed(key[0] | key[1] << 32)], device=device)
    assert tuple(int(word) for word in philox(seed, *(torch.tensor([word], device=device) for word in counter))) == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("seed", "position", "stream"), PLACES)
def test_uniforms_are_those_of_plain_integers(device: str, seed: int, position: int, stream: int) -> None:
    where = [torch.tensor(value, device=device) for value in ([seed], [position], TOKENS)]
    got = token_uniform(where[0], where[1], stream, where[2])[0].double().cpu()
    expected = torch.tensor([plain_uniform(seed, position, stream, token) for token in TOKENS], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=2e-7, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize(("seed", "position", "stream"), PLACES)
def test_the_noise_of_a_gpu_is_that_of_a_cpu(seed: int, position: int, stream: int) -> None:
    seeds, positions, tokens = torch.tensor([seed, 5]), torch.tensor([position, 9]), torch.arange(4096)
    expected = gumbel_noise(seeds, positions, stream, tokens)
    got = quad_noise(seeds.cuda()[:, None], positions.cuda()[:, None], stream, torch.arange(1024, device="cuda")).flatten(1)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(("seed", "position", "stream"), PLACES)
def test_triton_draws_the_same_bits(seed: int, position: int, stream: int) -> None:
    from ._philox_kernel import triton_noise, triton_words

    words = triton_words(seed, position, stream, 1024).cpu()
    for quad in (0, 1, 255, 1023):
        expected = plain_philox((quad, position % 2**32, position >> 32, stream), (seed % 2**32, (seed >> 32) % 2**32))
        assert tuple(int(word) & 0xFFFFFFFF for word in words[:, quad]) == expected
    expected_noise = gumbel_noise(torch.tensor([seed]), torch.tensor([position]), stream, torch.arange(4096))[0]
    torch.testing.assert_close(triton_noise(seed, position, stream, 4096).cpu(), expected_noise, rtol=2e-6, atol=2e-6)
