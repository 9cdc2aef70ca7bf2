"""How much memory a task will take, before it starts: a model, not a promise.

A component takes its weights and, while it runs, activations. Weights are its file, which backends map into memory, and
what a backend makes of each parameter: converted and packed for its kernels. OpenVINO in fp32 leaves wide kernels of
3x3 in the file where maps are large enough for Winograd's algorithm (`kandinsky22.backends.openvino.winograd`), so that
a UNet of larger pictures takes less. Activations grow with the pixels, with the
pictures at once and guidance's branches, and with the network's width, which is taken from its parameters: they grow
with the square of it. Where a backend writes attention's scores out, those grow with the square of the pixels. One
component runs at a time, so that a job's peak is the weights that are held and the largest activations.

`COSTS` was measured on CPUs: MoVQ at its published size (ONNX Runtime 1.31.1 at 512 and 1024 pixels a side, OpenVINO
2026.4.1 in bf16 at 1024 and 2048, in fp32 at 512 to 2048), the UNet at its published size in OpenVINO, and on the tiny
one in ONNX Runtime (512, 1024 and 1536), from which its activations are scaled by the width. What runs on a GPU is not
modelled, and not checked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kandinsky22 import checks
from kandinsky22.batching import runs
from kandinsky22.bundle.manifest import ATTENTION_IN_PARTS, DECODERS, SHALLOWS, SKIPPING_ROLES, Manifest, Role
from kandinsky22.errors import MemoryLimitError
from kandinsky22.machine import available_memory

GIB = 1 << 30

BASE = 0.5 * GIB
"""Of the process, with NumPy, Pillow and a backend."""


@dataclass(frozen=True)
class Cost:
    """Bytes that a backend takes in a precision.

    `weight`: for a parameter, beside the file; `quantised`: for one of a quantised component. `unet`: for a latent
    pixel, a branch and a channel of the UNet's first level. `movq`: for a pixel of a picture and a channel of MoVQ's
    first level. `score`: for each of attention's. `mapped_from`: not bytes, but the pixels that a level's maps must
    have, of all branches together, for its wide kernels to stay in the file.
    """

    weight: float
    unet: float
    movq: float
    score: float
    mapped_from: float = math.inf
    quantised: float = 0.0


COSTS = {
    ("onnxruntime", "fp32"): Cost(weight=8, unet=60, movq=45, score=4),
    ("openvino", "fp32"): Cost(weight=4, unet=60, movq=20, score=0, mapped_from=512),
    ("openvino", "bf16"): Cost(weight=2, unet=60, movq=20, score=0),
    # What is not quantised takes half of it where the processor has bf16.
    ("openvino", "int8"): Cost(weight=4, unet=60, movq=20, score=0, quantised=1),
    ("onnxruntime", "int8"): Cost(weight=8, unet=60, movq=45, score=4, quantised=4),
}


@dataclass(frozen=True)
class Width:
    """Of a published network: channels of its first level, and parameters."""

    channels: int
    parameters: float

    def of(self, parameters: float) -> float:
        """Channels of a network of the same build with so many parameters."""
        return float(self.channels * (parameters / self.parameters) ** 0.5)


UNET = Width(384, 1.283e9)
MOVQ = {Role.MOVQ_ENCODER: Width(128, 27.4e6), Role.MOVQ_DECODER: Width(128, 43.1e6)}
WIDE_KERNELS = (0.024, 0.084, 0.189, 0.374)
"""Shares of the UNet's parameters that are kernels of 3x3 between 256 channels and more, level by level."""
CHANNELS_A_HEAD = 32
"""Channels of the UNet's first level for each head of its second, the first with attention: 12 heads at 384."""


@dataclass(frozen=True)
class Demand:
    """What a job asks of memory: names of components, and for pictures how many there are, of what size.

    `latents` are height and width of a picture's latents. The decoder denoises `at_once` of the `pictures`, and each in
    so many `branches` a step: 2 where it is guided, 1 where it is not, or both where it is in some steps alone.
    """

    components: Sequence[str]
    latents: tuple[int, int] = (0, 0)
    pictures: int = 0
    at_once: int = 0
    branches: Collection[int] = (2,)


def estimate(manifest: Manifest, demand: Demand, cost: Cost, kept: Collection[str] = ()) -> float:
    """Bytes at the peak of a job on a CPU, with the `kept` components in memory all the time, others one at a time."""
    weights = {name: _weights(manifest, name, demand, cost) for name in manifest.components}
    peaks = []
    for name in demand.components:
        together = _together(manifest, name, demand)
        held = sum(weights[each] for each in {*together, *kept})
        peaks.append(held + sum(_activations(manifest, each, demand, cost) for each in together))
    return BASE + max(peaks, default=0)


def _together(manifest: Manifest, name: str, demand: Demand) -> list[str]:
    """A component and those that take turns with it: a decoder's steps and what takes some of them in its place."""
    roles = {each: manifest.components[each].role for each in demand.components}
    skipping = [each for each, role in roles.items() if role in SKIPPING_ROLES]
    return [name, *skipping] if roles[name] in DECODERS else [name]


def _weights(manifest: Manifest, name: str, demand: Demand, cost: Cost) -> float:
    """Bytes of a component's file and of what the backend makes of it."""
    component = manifest.components[name]
    mapped = 0.0
    if component.role in DECODERS:
        pixels = min(demand.branches) * math.prod(demand.latents)  # of one picture: the last batch may have no more
        levels = enumerate(WIDE_KERNELS)
        mapped = sum(share for level, share in levels if pixels / 4**level >= cost.mapped_from)
    file = sum(manifest.files[each].bytes for each in component.files)
    weight = cost.weight if component.quantisation is None else cost.quantised
    return file + (1 - mapped) * component.parameters * weight


def _activations(manifest: Manifest, name: str, demand: Demand, cost: Cost) -> float:
    """Bytes that a component takes beside its weights; of those that see no picture they are small beside them."""
    component, latent_pixels = manifest.components[name], math.prod(demand.latents)
    cut_from = {shallow: decoder for decoder, shallow in SHALLOWS.items()}.get(component.role)
    if cut_from is not None and cut_from in manifest.roles():
        # Its maps are of the largest size, as the decoder's are: most of what that one takes.
        return _activations(manifest, manifest.name_of(cut_from), demand, cost)
    if component.role in DECODERS:
        width = UNET.of(component.parameters)
        scores = width / CHANNELS_A_HEAD * (latent_pixels / 4) ** 2
        rows = demand.at_once * max(demand.branches)
        return rows * (latent_pixels * width * cost.unet + scores * cost.score)
    if component.role in MOVQ and latent_pixels:
        pixels = latent_pixels * manifest.downscale**2
        together = math.ceil(demand.pictures / runs(demand.pictures, pixels))
        whole = ATTENTION_IN_PARTS not in component.variants  # its attention has one head
        width = MOVQ[component.role].of(component.parameters)
        return together * (pixels * width * cost.movq + latent_pixels**2 * cost.score * whole)
    return 0.0


def check(manifest: Manifest, demand: Demand, cost: Cost, limit: float, *, low_memory: bool) -> float:
    """Raise MemoryLimitError where a job takes more than `limit` bytes with nothing else in memory; the estimate."""
    needed = estimate(manifest, demand, cost, () if low_memory else demand.components)
    if needed > limit:
        raise MemoryLimitError(_refusal(demand, needed, limit, manifest.downscale, low_memory=low_memory))
    return needed


def _refusal(demand: Demand, needed: float, most: float, downscale: int, *, low_memory: bool) -> str:
    what, remedies = "The prior", []
    if demand.pictures:
        height, width = (side * downscale for side in demand.latents)
        what, remedies = f"{demand.at_once} at once of {width}x{height}", ["a smaller picture"]
    remedies += ["a smaller batch_size"] * (demand.at_once > 1) + ["low_memory"] * (not low_memory)
    ask = f"ask for {' or '.join(remedies)}, or set" if remedies else "set"
    return (
        f"{what} would take about {needed / GIB:.1f} GiB of memory and the limit is {most / GIB:.1f} GiB; {ask} "
        "memory_limit."
    )


def limit(value: object) -> float | None:
    """A user's limit in GiB as bytes; "auto" is what is available now, None where that is unknown.

    Raises InputError where it is neither a number above 0, "auto" nor None.
    """
    if value == "auto":
        return available_memory()
    return None if value is None else checks.positive("memory_limit", value) * GIB
