"""The noise is torch's noise: compared with torch.randn itself, draw for draw."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from kandinsky22.checks import MAX_SEED
from kandinsky22.errors import InputError, shown
from kandinsky22.noise import Generator

# torch's vectorised path is the one that Generator follows bit for bit.
EXACT = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
SEEDS = [0, 1, 2, 42, 1234, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 42, 2**53 + 1, MAX_SEED - 1, MAX_SEED]


def torch_generator(seed):
    return torch.Generator("cpu").manual_seed(seed)


def assert_same(ours, theirs):
    theirs = theirs.numpy()
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    if EXACT:
        np.testing.assert_array_equal(ours, theirs)
    else:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (2, 1280), (17,), (3, 5, 7), (15,), ()])
def test_one_draw(seed, shape):
    assert_same(Generator(seed).randn(shape), torch.randn(shape, generator=torch_generator(seed)))


def test_many_seeds():
    for seed in np.random.default_rng(0).integers(0, MAX_SEED, 300, endpoint=True).tolist():
        assert_same(Generator(seed).randn(100), torch.randn(100, generator=torch_generator(seed)))


def test_every_size_around_the_blocks():
    for size in range(100):
        assert_same(Generator(size).randn(size), torch.randn(size, generator=torch_generator(size)))


def test_the_rarest_values():
    """Four million values reach the far ends of the logarithm: u near 0 and u = 1 - 2**-24."""
    ours, theirs = Generator(7), torch_generator(7)
    for _ in range(16):
        assert_same(ours.randn((4, 256, 256)), torch.randn(4, 256, 256, generator=theirs))


def test_draws_follow_one_another():
    """A pipeline's order, then every way in which the value kept by a small draw can meet others."""
    ours, theirs = Generator(3), torch_generator(3)
    sizes = [1280, 1280, 4096, 1, 16, 1, 3, 17, 100, 2, 0, 1, 1, 15, 31, 5, 5, 4096, 1]
    for size in sizes:
        assert_same(ours.randn(size), torch.randn(size, generator=theirs))


def test_random_sequences():
    rng = np.random.default_rng(1)
    for seed in range(30):
        ours, theirs = Generator(seed), torch_generator(seed)
        for size in rng.choice([0, 1, 2, 3, 8, 15, 16, 17, 33, 256], 30).tolist():
            assert_same(ours.randn(size), torch.randn(size, generator=theirs))


def test_torch_keeps_only_the_low_half_of_a_seed():
    np.testing.assert_array_equal(Generator(5).randn(64), Generator(5 + 2**32).randn(64))


def test_generators_do_not_share_state():
    first, second = Generator(0), Generator(0)
    np.random.seed(5)
    np.testing.assert_array_equal(first.randn(50), second.randn(50))
    assert not np.array_equal(first.randn(50), Generator(0).randn(50))


def test_numpy_integers_are_seeds():
    assert Generator(np.int64(9)).seed == 9
    np.testing.assert_array_equal(Generator(np.uint64(9)).randn(20), Generator(9).randn(20))


@pytest.mark.parametrize(
    "seed",
    [-1, 2**63, 2**64, 1.0, 1.5, "1", None, True, False, np.bool_(True), float("nan"), 10**400, 10**5000],
    ids=shown,
)
def test_refused_seeds(seed):
    with pytest.raises(InputError, match=r"seed must be an integer from 0 to 2\*\*63 - 1"):
        Generator(seed)


def test_torch_is_not_imported():
    code = "import sys, kandinsky22.noise; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
