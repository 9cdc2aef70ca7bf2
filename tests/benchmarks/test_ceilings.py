"""The machine's own limits: what they are measured on."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from benchmarks import ceilings


def test_a_copy_on_a_gpu_is_from_its_memory_to_its_memory() -> None:
    """torch's "meta" device stands for any that is not the processor."""
    copy = ceilings.Ceiling({"what": "copy", "precision": "", "device": "meta"})
    assert {copy.source.device.type, copy.target.device.type} == {"meta"}
    assert copy.source.numel() == 1 << 30
    assert 0 < copy.run() < 1


@pytest.mark.parametrize(
    ("what", "seconds", "side"),
    [
        # Four times the side is 64 times the work of a product, 16 times that of a convolution.
        ("matmul", 0.3, 4096),
        ("matmul", 0.4, 2048),
        ("matmul", 2.6, 1024),
        ("matmul", 100.0, 1024),
        ("convolution", 1.2, 64),
        ("convolution", 1.3, 32),
        ("convolution", 5.1, 16),
    ],
)
def test_a_limit_is_measured_on_what_takes_no_minutes(what: str, seconds: float, side: int) -> None:
    """Where bf16 is emulated, a product of 4096 takes eight minutes."""
    assert ceilings.largest_side(what, seconds) == side
