"""How much memory a task will take, before it starts: a model, not a promise.

A component takes its weights and, while it runs, activations. Weights are `parameters` times the bytes that a backend
holds for each at its peak, while it loads. Activations grow with the pixels, the pictures at once, guidance's branches,
and the network's width, which is taken from its parameters: the published UNet has 384 channels at 1.25 billion, the
published MoVQ 128 at 68 million, and parameters grow with the square of the width. Only one component runs at a time,
so that a task's peak is the weights that are held and the largest activations.

The figures below were measured on CPUs, see docs/bundle.md; the backends on a GPU are not modelled, and not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kandinsky22 import arguments
from kandinsky22.bundle import Manifest
from kandinsky22.errors import InputError
from kandinsky22.stages import Stages

GIB = 1 << 30

BASE = 0.5 * GIB
"""Of the process, with NumPy, Pillow and a backend."""
WEIGHT_BYTES = {"fp32": 8.0, "bf16": 6.0}
"""A parameter at the peak of loading, by the precision that is computed in."""
UNET_CHANNELS, UNET_PARAMETERS = 384, 1.253e9
UNET_BYTES = {"fp32": 60.0, "bf16": 40.0}
"""For each latent pixel, channel of the first level and branch."""
MOVQ_CHANNELS, MOVQ_PARAMETERS = 128, 67.8e6
MOVQ_BYTES = {"fp32": 45.0, "bf16": 22.0}
"""For each pixel of a picture and channel of the first level."""


def estimate(
    manifest: Manifest,
    components: Sequence[str],
    latent_pixels: int,
    pictures: int,
    *,
    guided: bool,
    precision: str,
    low_memory: bool,
) -> float:
    """Bytes at the peak of a run on a CPU.

    Args:
        manifest: Of the bundle.
        components: Names of all that is run.
        latent_pixels: Height times width of a picture's latents.
        pictures: How many the decoder denoises at once.
        guided: Whether each is denoised twice a step.
        precision: What the backend computes in, "fp32" or "bf16".
        low_memory: Whether only one component is held at a time.
    """
    weights: dict[str, float] = {}
    activations: dict[str, float] = {}
    for name in components:
        parameters = manifest.components[name].parameters
        weights[name] = parameters * WEIGHT_BYTES[precision]
        if name.startswith("decoder_step"):
            channels = UNET_CHANNELS * (parameters / UNET_PARAMETERS) ** 0.5
            rows = latent_pixels * pictures * (2 if guided else 1)
            activations[name] = rows * channels * UNET_BYTES[precision]
        elif name.startswith("movq"):
            channels = MOVQ_CHANNELS * (parameters / MOVQ_PARAMETERS) ** 0.5
            pixels = latent_pixels * int(manifest.geometry["downscale"]) ** 2
            activations[name] = pixels * channels * MOVQ_BYTES[precision]  # large pictures go one by one
        else:
            activations[name] = 0.0
    held = 0.0 if low_memory else sum(weights.values())
    return BASE + max((weights[name] if low_memory else held) + activations[name] for name in components)


def check(
    stages: Stages, components: Sequence[str], shape: tuple[int, int, int], pictures: int, *, guided: bool
) -> None:
    """Raise InputError where `estimate` is more than `stages.memory_limit`, in bytes; None checks nothing."""
    most = stages.memory_limit
    if most is None or stages.precision not in WEIGHT_BYTES:
        return
    needed = estimate(
        stages.bundle.manifest,
        components,
        shape[1] * shape[2],
        pictures,
        guided=guided,
        precision=stages.precision,
        low_memory=stages.low_memory,
    )
    if needed > most:
        downscale = stages.bundle.manifest.geometry["downscale"]
        remedies = ["a smaller picture", *(["a smaller batch_size"] if pictures > 1 else [])]
        remedies += [] if stages.low_memory else ["low_memory"]
        raise InputError(
            f"{pictures} at once of {shape[2] * downscale}x{shape[1] * downscale} would take about "
            f"{needed / GIB:.1f} GiB of memory and the limit is {most / GIB:.1f} GiB; ask for "
            f"{' or '.join(remedies)}, or set memory_limit."
        )


def limit(value: object) -> float | None:
    """A user's limit in GiB as bytes; "auto" is what is available now. Raises InputError where it is neither."""
    if value == "auto":
        return available()
    return None if value is None else arguments.positive("memory_limit", value) * GIB


def available() -> int | None:
    """Bytes that this process may still take on this machine: the kernel's estimate and the cgroup's limit; or None.

    None where neither can be read, as on systems other than Linux.
    """
    found = [value for value in (_kernel(), _cgroup()) if value is not None]
    return min(found, default=None)


def _kernel() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left of a container's memory (cgroup version 2); caches can be given up, and count as left."""
    try:
        most = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        lines = (root / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    if most == "max":
        return None
    statistics = dict(line.split() for line in lines)
    return max(0, int(most) - used + int(statistics.get("inactive_file", 0)))
