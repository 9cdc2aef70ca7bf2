"""Profiles: the pictures that plans are built for, and the shapes that follow."""

from __future__ import annotations

from dataclasses import dataclass

from kandinsky22.batching import pictures_at_once
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Component, TensorSpec
from kandinsky22.errors import InputError

GUIDANCE_BRANCHES = 2
MAX_BATCH = 64


@dataclass(frozen=True)
class Profile:
    """Pictures that plans are built for: sides in pixels, each on its own, and pictures at once from 1 to `batch`.

    Plans are static in their sizes where `minimum` is `maximum`, and tuned for one picture of `optimum` squared.
    """

    minimum: int
    optimum: int
    maximum: int
    batch: int = 1

    def __str__(self) -> str:
        sides = (self.minimum, self.optimum, self.maximum)
        return "-".join(str(side) for side in dict.fromkeys(sides)) + f"-b{self.batch}"

    @property
    def width(self) -> tuple[int, int, int]:
        """How much it covers, for comparisons: the range of its sides, then pictures at once, then the largest side."""
        return self.maximum - self.minimum, self.batch, self.maximum

    def arguments(self) -> str:
        """This profile as arguments of `kandinsky22 build`."""
        if self.minimum == self.maximum:
            return f"--static {self.minimum} --batch {self.batch}"
        return f"--min {self.minimum} --opt {self.optimum} --max {self.maximum} --batch {self.batch}"

    def check(self, bundle: Bundle) -> None:
        """Raise InputError where no picture has these sizes, or the bundle was exported for smaller ones."""
        block = bundle.manifest.downscale**2
        largest = bundle.manifest.limits.max_size
        sides = (self.minimum, self.optimum, self.maximum)
        if any(side < block or side % block for side in sides) or list(sides) != sorted(sides):
            raise InputError(
                f"The sizes are {', '.join(map(str, sides))}; expected multiples of {block}, the smallest first."
            )
        if self.maximum > largest:
            raise InputError(
                f"The largest size is {self.maximum}, the bundle was exported for {largest}; "
                f"choose a smaller --max, or export with a larger --max-size."
            )
        if not 1 <= self.batch <= MAX_BATCH:
            raise InputError(f"The batch is {self.batch}; expected 1 to {MAX_BATCH}.")

    def shapes(self, spec: TensorSpec, component: Component, pixels: int) -> Range:
        """Smallest, tuned and largest shape of an input of a component, with so many `pixels` a latent, a side.

        Raises BundleError where the input has a symbolic dimension that is not made of B, G, h and w.
        """
        latent = [side // pixels for side in (self.minimum, self.optimum, self.maximum)]
        batches = (1, 1, self._batch(component))
        branches = (1, GUIDANCE_BRANCHES, GUIDANCE_BRANCHES)
        values = [
            {"B": batch, "G": branch, "h": side, "w": side}
            for batch, branch, side in zip(batches, branches, latent, strict=True)
        ]
        smallest, tuned, largest = (spec.resolve(each) for each in values)
        return smallest, tuned, largest

    def _batch(self, component: Component) -> int:
        """Rows of a component at once.

        What works on text alone, or on small pictures of one size, sees two of them for every picture: a prompt and a
        negative prompt. What turns whole pictures into latents or back is never given more than PIXELS_AT_ONCE; a
        larger bound would cost memory for nothing.
        """
        dimensions = {d for spec in (*component.inputs, *component.outputs) for d in spec.shape if isinstance(d, str)}
        if dimensions <= {"B", "G"}:
            return 2 * self.batch
        if not component.state and any("*" in dimension for dimension in dimensions):
            return min(self.batch, pictures_at_once(self.maximum**2))
        return self.batch


def default_profile(bundle: Bundle) -> Profile:
    """384 to 2048 pixels, tuned for 1024, one picture at once.

    Less where the bundle was exported for less, or its UNet was trained on less than the published 512.
    """
    trained = bundle.manifest.default_size
    largest = bundle.manifest.limits.max_size
    return Profile(min(384, trained, largest), min(1024 if trained >= 512 else trained, largest), largest)


Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
"""Smallest shape of an input, the one that a plan is tuned for, and the largest."""
