"""The inpainting UNet: the UNet fine-tuned to repaint a masked area of a picture, given the rest.

Its input is what diffusers' KandinskyV22InpaintPipeline hands over: noisy latents, the known picture's latents times
the mask, and the mask, which is 1 where the picture is kept. The embedding is of the whole picture that is asked for.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel, VQModel
from torch import Tensor

from recipe import drawing, loop
from recipe.dataset import PART, PARTS, Dataset, encoded
from recipe.unet import conditions, denoising_loss, widened

STEPS, BATCH, PEAK_RATE = 2800, 32, 6e-4
CELLS = 16
# Drawings of the first parts are asked for in place of another picture; those of the rest are repainted as they were.
OTHER_PARTS = PARTS // 2
RECOLOURED, REGROUNDED, REPLACED = range(3)
WIDEST_MARGIN = 4


def train(data: Dataset, work: Path, decoder: Path, out: Path) -> None:
    """Fine-tune the UNet of `decoder` and save `unet` and `scheduler` in `out`."""
    torch.manual_seed(loop.SEED)
    unet = widened(decoder / "unet", in_channels=9)
    levels = DDPMScheduler.from_pretrained(decoder / "scheduler")
    movq = VQModel.from_pretrained(decoder / "movq")
    others = encoded(movq, work / "inpaint", OTHER_PARTS, lambda i: drawing.draw(*_others(data, i)[:2]))
    known = torch.cat([others, data.latents[len(others) :]])
    changes = torch.cat([_changed_cells(data, index) for index in range(OTHER_PARTS)])

    def loss_of(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return _loss_of(unet, levels, data, known, changes, generator)

    loop.train("inpaint", unet, loss_of, STEPS, PEAK_RATE, work, 0.998)
    unet.save_pretrained(out / "unet")
    levels.save_pretrained(out / "scheduler")


def _others(data: Dataset, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scenes, wobbles and kinds of change of the pictures in place of which part `index` of the drawings is asked for.

    Kinds: the same figure in another colour, the same figure on another ground, another figure on the same ground.
    """
    generator = loop.generator_for("inpaint-others", index)
    rows = slice(index * PART, (index + 1) * PART)
    asked, wobbles = data.scenes[rows], data.wobbles[rows]
    kinds = torch.randint(3, (PART,), generator=generator)
    preference = torch.rand(PART, len(drawing.COLOURS), generator=generator)
    preference.scatter_(1, asked[:, 2:3], -1.0)
    replacing = drawing.sample_scenes(PART, generator)
    replacing[:, 1], replacing[:, 2] = preference.argmax(1), asked[:, 2]
    preference.scatter_(1, asked[:, 1:2], -1.0)
    changed = asked.clone().repeat(3, 1, 1)
    changed[RECOLOURED, :, 1] = changed[REGROUNDED, :, 2] = preference.argmax(1)
    changed[REPLACED] = replacing
    fresh = drawing.sample_wobbles(PART, generator)
    shifted = wobbles.clone().repeat(3, 1, 1)
    shifted[RECOLOURED, :, drawing.FIGURE_TINT] = fresh[:, drawing.FIGURE_TINT]
    shifted[REGROUNDED, :, drawing.GROUND_TINT] = fresh[:, drawing.GROUND_TINT]
    shifted[REPLACED, :, : drawing.GROUND_TINT.start] = fresh[:, : drawing.GROUND_TINT.start]
    picked = torch.arange(PART)
    return changed[kinds, picked], shifted[kinds, picked], kinds


def _changed_cells(data: Dataset, index: int) -> Tensor:
    """Where part `index` of the drawings differs from the pictures that it replaces, bool (n, 16, 16)."""
    rows = slice(index * PART, (index + 1) * PART)
    scenes, wobbles, kinds = _others(data, index)
    asked, before = figure_cells(data.scenes[rows], data.wobbles[rows]), figure_cells(scenes, wobbles)
    return torch.where((kinds == REGROUNDED)[:, None, None], ~asked, asked | before)


def figure_cells(scenes: Tensor, wobbles: Tensor) -> Tensor:
    """The figures as masks, bool (n, 16, 16): the first pixel of each cell, as the nearest neighbour picks it."""
    first = (0.5 / drawing.PICTURE_SIZE - 0.5 / CELLS) * 2.0 - 1.0
    return drawing.edge_distances(scenes, wobbles, CELLS, torch.full((len(scenes), 2), first)) < 0


def _loss_of(
    unet: UNet2DConditionModel,
    levels: DDPMScheduler,
    data: Dataset,
    known: Tensor,
    changes: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    rows = torch.randint(len(known), (BATCH,), generator=generator)
    repaint = torch.where(
        (rows < len(changes))[:, None, None],
        _masks_around(changes[rows.clamp(max=len(changes) - 1)], generator),
        _masks_anywhere(figure_cells(data.scenes[rows], data.wobbles[rows]), generator),
    )
    keep = keep_mask(repaint)
    kept = known[rows] * keep
    # What the sampler works towards: it pastes the known latents, and they have traces of what was there before.
    clean = kept + data.latents[rows] * (1 - keep)

    def denoise(noisy: Tensor, times: Tensor) -> Tensor:
        sample = torch.cat([noisy, kept, keep], dim=1)
        return unet(sample, times, None, added_cond_kwargs={"image_embeds": conditions(data, rows, generator)}).sample

    # What the model says of the known area is pasted over.
    return denoising_loss(denoise, levels, clean, generator, 1 - keep)


def keep_mask(repaint: Tensor) -> Tensor:
    """Bool (n, h, w), true where to repaint, to the mask (n, 1, h, w) that the model reads: 1 keep, 0 repaint.

    As diffusers' `prepare_mask`: the area grows by six of the eight neighbours, all but those up right and down left.
    """
    padded = F.pad(repaint, (1, 1, 1, 1))
    height, width = repaint.shape[1:]
    shifts = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    grown = torch.stack([padded[:, y : y + height, x : x + width] for y, x in shifts]).any(0)
    return (~grown)[:, None].float()


def _masks_anywhere(figures: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle, strokes, the figure or its ground, one for each of `figures`, bool (n, 16, 16)."""
    count = len(figures)
    kinds = torch.stack([_rectangles(count, generator), _strokes(count, generator), figures, ~figures])
    return kinds[torch.randint(len(kinds), (count,), generator=generator), torch.arange(count)]


def _masks_around(cells: Tensor, generator: torch.Generator) -> Tensor:
    """Masks, bool (n, 16, 16), that hold all of `cells`: these alone, with a rectangle, with strokes, or a box."""
    count = len(cells)
    kinds = torch.stack(
        [
            cells,
            cells | _rectangles(count, generator),
            cells | _strokes(count, generator),
            _spread(cells.any(2), generator)[:, :, None] & _spread(cells.any(1), generator)[:, None, :],
        ]
    )
    return kinds[torch.randint(len(kinds), (count,), generator=generator), torch.arange(count)]


def _spread(line: Tensor, generator: torch.Generator) -> Tensor:
    """From the first true value to the last one, bool (n, cells), and a random margin on both sides."""
    margins = torch.randint(WIDEST_MARGIN + 1, (2, len(line), 1), generator=generator)
    first = line.int().argmax(1, keepdim=True) - margins[0]
    last = CELLS - 1 - line.flip(1).int().argmax(1, keepdim=True) + margins[1]
    place = torch.arange(CELLS)
    return (place >= first) & (place <= last)


def _rectangles(count: int, generator: torch.Generator) -> Tensor:
    """Random rectangles, bool (count, 16, 16), at least three cells wide and high; many reach a border."""
    ends = torch.rand(2, 2, count, 1, generator=generator) * (CELLS + 4) - 2
    low, high = ends.min(0).values, ends.max(0).values
    centre, half = (low + high) / 2, ((high - low) / 2).clamp(min=1.5)
    place = torch.arange(CELLS) + 0.5
    inside = (place - centre.clamp(1.5, CELLS - 1.5)).abs() <= half
    return inside[0][:, :, None] & inside[1][:, None, :]


def _strokes(count: int, generator: torch.Generator) -> Tensor:
    """Three strokes a mask, bool (count, 16, 16), each from one random point to another, one to four cells thick."""
    ends = torch.rand(3, 2, count, 2, 1, 1, generator=generator) * CELLS
    radius = 0.5 + 1.5 * torch.rand(3, count, 1, 1, generator=generator)
    axis = torch.arange(CELLS) + 0.5
    place = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    start, along = ends[:, 0], ends[:, 1] - ends[:, 0]
    share = ((place - start) * along).sum(2, keepdim=True) / along.square().sum(2, keepdim=True)
    gap = place - start - share.clamp(0, 1) * along
    return (gap.square().sum(2).sqrt() <= radius).any(0)
