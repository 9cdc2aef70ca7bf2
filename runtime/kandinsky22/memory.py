"""How much memory a task will take, before it starts: a model, not a promise.

A component takes its weights and, while it runs, activations. Weights are its parameters times the bytes that a backend
holds for each at its peak, while it loads. Activations grow with the pixels, with the pictures at once and guidance's
branches, and with the network's width, which is taken from its parameters: they grow with the square of it. Where a
backend writes attention's scores out, those grow with the square of the pixels. One component runs at a time, so that
a task's peak is the weights that are held and the largest activations.

`COSTS` was measured on CPUs: MoVQ at its published size (ONNX Runtime 1.31.1 at 512 and 1024 pixels a side, OpenVINO
2026.4.1 in bf16 at 1024 and 2048), the UNet's weights at the published size (OpenVINO) and its activations on the tiny
one (ONNX Runtime at 512, 1024 and 1536, OpenVINO in fp32 at 512 and 1024), from which they are scaled by the width.
OpenVINO maps the weights of an fp16 bundle and copies those of an fp32 one: 4.9 and 8.1 GiB for the published UNet in
bf16, between which the model stands. What runs on a GPU is not modelled, and not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kandinsky22 import arguments
from kandinsky22.bundle import ATTENTION_IN_PARTS, Manifest
from kandinsky22.errors import InputError
from kandinsky22.plan_files import available_memory
from kandinsky22.stages import Stages

GIB = 1 << 30

BASE = 0.5 * GIB
"""Of the process, with NumPy, Pillow and a backend."""


@dataclass(frozen=True)
class Cost:
    """Bytes that a backend takes in a precision.

    `weight`: for a parameter, at the peak of loading. `unet`: for a latent pixel, a branch and a channel of the UNet's
    first level. `movq`: for a pixel of a picture and a channel of MoVQ's first level. `score`: for each of attention's.
    """

    weight: float
    unet: float
    movq: float
    score: float


COSTS = {
    ("onnxruntime", "fp32"): Cost(weight=8, unet=60, movq=45, score=4),
    ("openvino", "fp32"): Cost(weight=8, unet=100, movq=36, score=0),
    ("openvino", "bf16"): Cost(weight=5, unet=60, movq=20, score=0),
}


@dataclass(frozen=True)
class Width:
    """Of a published network: channels of its first level, and parameters."""

    channels: int
    parameters: float

    def of(self, parameters: float) -> float:
        """Channels of a network of the same build with so many parameters."""
        return float(self.channels * (parameters / self.parameters) ** 0.5)


UNET = Width(384, 1.253e9)
MOVQ = {"movq_encoder": Width(128, 27.4e6), "movq_decoder": Width(128, 40.4e6)}
CHANNELS_A_HEAD = 32
"""Channels of the UNet's first level for each head of its second, the first with attention: 12 heads at 384."""


def estimate(
    manifest: Manifest,
    components: Sequence[str],
    latent_pixels: int,
    pictures: int,
    *,
    guided: bool,
    cost: Cost,
    low_memory: bool,
) -> float:
    """Bytes at the peak of a run on a CPU.

    Args:
        manifest: Of the bundle.
        components: Names of all that is run.
        latent_pixels: Height times width of a picture's latents.
        pictures: How many the decoder denoises at once.
        guided: Whether each is denoised twice a step.
        cost: Of the backend and the precision.
        low_memory: Whether only one component is held at a time.
    """
    rows = pictures * (2 if guided else 1)
    downscale = int(manifest.geometry["downscale"])
    parameters = {name: manifest.components[name].parameters for name in components}
    weights = {name: count * cost.weight for name, count in parameters.items()}
    held = 0.0 if low_memory else sum(weights.values())
    peaks = []
    for name, count in parameters.items():
        activations = 0.0  # of the others they are small beside the weights
        if name.startswith("decoder_step"):
            width = UNET.of(count)
            scores = width / CHANNELS_A_HEAD * (latent_pixels / 4) ** 2
            activations = rows * (latent_pixels * width * cost.unet + scores * cost.score)
        elif name in MOVQ:  # large pictures go through it one by one; its attention has one head
            pixels = latent_pixels * downscale**2
            whole = ATTENTION_IN_PARTS not in manifest.components[name].variants
            activations = pixels * MOVQ[name].of(count) * cost.movq + latent_pixels**2 * cost.score * whole
        peaks.append((weights[name] if low_memory else held) + activations)
    return BASE + max(peaks)


def check(
    stages: Stages, components: Sequence[str], shape: tuple[int, int, int], pictures: int, *, guided: bool
) -> None:
    """Raise InputError where `estimate` is more than `stages.memory_limit`, in bytes; None checks nothing."""
    most = stages.memory_limit
    cost = COSTS.get((stages.backend_name, stages.precision))
    if most is None or cost is None:
        return
    needed = estimate(
        stages.bundle.manifest,
        components,
        shape[1] * shape[2],
        pictures,
        guided=guided,
        cost=cost,
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
    """A user's limit in GiB as bytes; "auto" is what is available now, None where that is unknown.

    Raises InputError where it is neither a number above 0, "auto" nor None.
    """
    if value == "auto":
        return available_memory()
    return None if value is None else arguments.positive("memory_limit", value) * GIB
