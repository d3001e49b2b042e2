"""Recordings of a CPU's calls: a replay computes all that was recorded, from what lies in memory then."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from triton_kernels.impl import Bound
from triton_kernels.impls._shared.native_call import RECORDER
from triton_kernels.impls._shared.native_code import library_reasons
from triton_kernels.impls._shared.recording import Arena, record
from triton_kernels.impls.linear.native import LinearNative
from triton_kernels.impls.rms_norm.native import RmsNormNative
from triton_kernels.impls.silu_and_mul.native import SiluAndMulNative
from triton_kernels.spec import Spec

pytestmark = pytest.mark.skipif(bool(library_reasons("native_step.c", torch.float32)), reason="no C compiler")
SPEC = Spec("cpu", "cpu", torch.float32)


def layers(*weights: torch.Tensor) -> list[Bound]:
    return [LinearNative.bind(SPEC, {"weight": weight}) for weight in weights]


def test_kernels_and_torch_operations_are_replayed_in_order() -> None:
    """A chain of C kernels, an operation of torch that makes a tensor, one in place and a view, and C kernels again."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(8, 5, generator=generator), torch.randn(6, 4, generator=generator)
    up, down = layers(first, second)
    gate = SiluAndMulNative.bind(SPEC)
    x = torch.randn(3, 5, generator=generator)

    def run() -> torch.Tensor:
        hidden = gate(up(x))
        return down((hidden * 2).add_(1)[:, :4])

    recording = record(run, Arena())
    for scale in (1.0, -3.0):
        x.copy_(torch.randn(3, 5, generator=generator) * scale)
        assert torch.equal(recording.replay(), run())
    assert recording.num_kernels == 3 and len(recording.parts) == 4


def test_kernels_without_torch_between_them_are_one_call() -> None:
    up, down = layers(torch.randn(64, 32), torch.randn(32, 64))
    x = torch.randn(2, 32)
    recording = record(lambda: down(up(x)), Arena())
    assert (recording.num_kernels, len(recording.parts)) == (2, 1)


def test_a_temporary_input_lives_as_long_as_the_recording() -> None:
    """A tensor that torch allocated, of which the function keeps nothing, is read again by every replay."""
    (layer,) = layers(torch.eye(4))
    recording = record(lambda: layer(torch.from_numpy(torch.arange(4.0).numpy().copy()).view(1, 4)), Arena())
    gc.collect()
    others = [torch.full((4,), 9.0) for _ in range(100)]
    assert recording.replay().tolist() == [[0, 1, 2, 3]] and len(others) == 100


def test_memory_of_what_is_gone_is_used_again() -> None:
    """A chain of many layers takes the memory of two activations; what is alive is never given away."""
    chain = layers(*(torch.eye(1024) * 0.5 for _ in range(8)))
    arena, x = Arena(), torch.ones(16, 1024)

    def run() -> torch.Tensor:
        out = x
        for layer in chain:
            out = layer(out)
        return out

    outputs = [record(run, arena) for _ in range(2)]
    assert sum(block.nbytes for block in arena._blocks.values()) <= 4 * x.nbytes
    x.fill_(256.0)
    assert all(bool((recording.replay() == 1).all()) for recording in outputs)


def test_a_free_block_serves_only_what_fits() -> None:
    """Of those the smallest, which leaves the others to larger tensors."""
    arena = Arena()
    addresses = {size: arena.empty((size,), torch.float32).data_ptr() for size in (10, 1000, 30)}  # one at a time
    assert addresses[30] == addresses[1000] != addresses[10]
    kept = [arena.empty((size,), torch.float32) for size in (5, 1000)]
    assert [one.data_ptr() for one in kept] == [addresses[10], addresses[1000]] and len(arena._blocks) == 2


def test_what_looks_at_data_is_refused() -> None:
    x = torch.arange(3.0)
    counts = torch.tensor([1, 0, 2])
    functions = (
        lambda: x * float(x.sum()),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: x * 2 if x.sum() > 1 else x,
        lambda: x.repeat_interleave(counts),
    )
    for looks in functions:
        for inference in (False, True):  # in which composite functions are not taken apart
            with torch.inference_mode(inference), pytest.raises(RuntimeError, match="recorded: it looks at data, by aten"):
                record(looks, Arena())
    assert record(lambda: x[torch.tensor([2, 0])], Arena()).replay().tolist() == [2, 0]


def test_after_a_failed_recording_all_is_as_before() -> None:
    """Its calls are forgotten, its memory is free, and the next one succeeds."""
    (layer,) = layers(torch.eye(4))
    arena, x, broken = Arena(), torch.ones(1, 4), True

    def run() -> torch.Tensor:
        out = layer(layer(x))
        if broken:
            raise ValueError("once")
        return out

    with pytest.raises(ValueError, match="once"):
        record(run, arena)
    assert RECORDER.get() is None
    broken = False
    recording = record(run, arena)
    x.fill_(3.0)
    assert recording.replay().tolist() == [[3.0] * 4] and recording.num_kernels == 2
    assert RECORDER.get() is None and len(arena._blocks) == 2


def test_a_recording_keeps_the_memory_that_its_kernels_work_in() -> None:
    """Also where nothing else does: of what they allocate, nothing is returned."""
    (layer,), norm = layers(torch.eye(4)), RmsNormNative.bind(SPEC, {"weight": torch.ones(4)}, {"eps": 1e-5})
    arena, x, total = Arena(), torch.ones(1, 4), torch.zeros(1, 4)

    def run() -> None:
        norm(layer(x), total)

    recording = record(run, arena)
    alive = weakref.ref(arena)
    del arena
    gc.collect()
    assert alive() is not None
    recording.replay()
    assert total.tolist() == [[2.0] * 4]


def test_tensors_that_are_not_plain_memory_are_left_as_they_are() -> None:
    """Empty ones, some without an element, of another layout, of another device; and several outputs of one operation."""

    def run() -> list[torch.Tensor]:
        ones = torch.empty_like(torch.ones(3, 4).t())
        return [ones, torch.empty(0, 5), torch.empty((), dtype=torch.int64), torch.empty(2, device="meta"), *x.sort()]

    x = torch.tensor([2.0, 1.0])
    recording = record(run, Arena())
    assert [(out.shape, out.stride(), out.device.type) for out in recording.output] == [
        (out.shape, out.stride(), out.device.type) for out in run()
    ]
    x[1] = 5.0
    assert [out.tolist() for out in recording.replay()[-2:]] == [[2, 5], [0, 1]]


@pytest.mark.parametrize(
    "flags", [(), ("-mno-amx-bf16",), ("-mno-avx512f",)], ids=["this_machine", "without_amx", "without_avx512"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_native_gemm_at_every_number_of_rows(
    dtype: torch.dtype, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole and partial tiles, blocks of rows and of K, outputs that do not fill a panel; and a row's bits are its own."""
    from triton_kernels.impls._shared import native_call
    from triton_kernels.impls.linear import native

    if flags and library_reasons("native_linear.c", dtype, *flags):
        pytest.skip("this machine's compiler has no such option")
    for module in (native, native_call):
        library = module.library
        monkeypatch.setattr(module, "library", lambda source, dtype, *d, library=library: library(source, dtype, *flags, *d))
    generator = torch.Generator().manual_seed(1)
    depth = native._constant(dtype, "linear_depth")
    for num_outputs, num_inputs in ((70, 34), (64, 2050), (1, 2), (193, 640)):
        num_inputs += -num_inputs % depth
        weight = (torch.randn(num_outputs, num_inputs, generator=generator) / num_inputs**0.5).to(dtype)
        bias = torch.randn(num_outputs, generator=generator).to(dtype)
        layer = LinearNative.bind(Spec("cpu", "cpu", dtype), {"weight": weight, "bias": bias})
        for num_rows in (0, 1, 2, 5, 6, 7, 13, 17, 47, 48, 49, 63, 64, 100, 530):
            x = torch.randn(num_rows, num_inputs, generator=generator).to(dtype)
            out = layer(x)
            exact = x.double() @ weight.double().T + bias.double()
            error = (out.double() - exact).norm() / exact.norm().clamp_min(1e-30)
            assert error <= (3e-6 if dtype == torch.float32 else 5e-3), (num_outputs, num_inputs, num_rows)
            if num_rows:
                assert torch.equal(layer(x[-1:]), out[-1:])
                assert torch.equal(layer(x[num_rows // 2 :].repeat(2, 1))[: num_rows - num_rows // 2], out[num_rows // 2 :])
