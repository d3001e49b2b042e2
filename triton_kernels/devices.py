"""What is known about device models without having one: sizes for launch configurations and gates, ceilings for rooflines."""

from __future__ import annotations

from dataclasses import dataclass

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
"""Architectures that kernels are compiled for ahead of time, without a device."""


@dataclass(frozen=True)
class DeviceModel:
    """A device model.

    arch             architecture name as in ``Spec.arch``
    num_sms          streaming multiprocessors (NVIDIA) or compute units (AMD)
    shared_bytes     largest shared memory of one program
    registers        32-bit registers per thread that can be addressed
    copy_bytes_s     bytes per second of a large copy, reads plus writes
    flops_s          by number format: dense operations per second of the matrix units
    memory_bytes     of the device, as a program finds it
    link_bytes_s     bytes per second to another device of the same machine, one way
    source           where these ceilings come from: the vendor's datasheet, or a measurement
    """

    name: str
    arch: str
    num_sms: int
    shared_bytes: int
    registers: int
    copy_bytes_s: float
    flops_s: dict[str, float]
    memory_bytes: int
    link_bytes_s: float
    source: str


DEVICE_MODELS: dict[str, DeviceModel] = {
    device.name: device
    for device in (
        DeviceModel(
            "a100",
            "sm_80",
            108,
            163 * 1024,
            255,
            2.0e12,
            {"fp32": 19.5e12, "bf16": 312e12, "int8": 624e12},
            79 * 2**30,
            300e9,
            "datasheet",
        ),
        DeviceModel(
            "rtx4090",
            "sm_89",
            128,
            99 * 1024,
            255,
            1.0e12,
            {"fp32": 83e12, "bf16": 165e12, "fp8": 330e12, "int8": 660e12},
            23 * 2**30,
            25e9,
            "datasheet",
        ),
        DeviceModel(
            "h200",
            "sm_90",
            132,
            227 * 1024,
            255,
            4.3e12,
            {"fp32": 67e12, "bf16": 780e12, "fp8": 1979e12, "int8": 1979e12},
            139 * 2**30,
            450e9,
            "copy and bf16 measured, 8192^3 of random data; the others from the datasheet",
        ),
        DeviceModel(
            "b200",
            "sm_100",
            148,
            227 * 1024,
            255,
            8.0e12,
            {"fp32": 75e12, "bf16": 2250e12, "fp8": 4500e12, "int8": 4500e12},
            178 * 2**30,
            900e9,
            "datasheet",
        ),
        DeviceModel(
            "mi300x",
            "gfx942",
            304,
            64 * 1024,
            512,
            5.3e12,
            {"fp32": 163e12, "bf16": 1307e12, "fp8": 2615e12, "int8": 2615e12},
            191 * 2**30,
            448e9,
            "datasheet",
        ),
    )
}


def by_arch(arch: str) -> DeviceModel:
    """The device that stands for an architecture. Launch configurations take its sizes, so that they need no GPU and do
    not depend on a device's name; an architecture without an entry gets the smallest shared memory of NVIDIA's."""
    return next((device for device in DEVICE_MODELS.values() if device.arch == arch), DEVICE_MODELS["rtx4090"])
