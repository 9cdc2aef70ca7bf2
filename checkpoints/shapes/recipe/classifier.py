"""A judge of pictures: which shape, colours, size and position one shows. Trained on drawings alone."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recipe import drawing, loop

SEEN_SIZE = 64
STEPS, BATCH, PEAK_RATE = 1500, 64, 2e-3
WIDTHS = (16, 32, 64, 96)


class Classifier(nn.Module):
    """Pictures (n, 3, h, w) in -1..1 of any size to logits of each attribute, in the order of `ATTRIBUTES`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((5, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * 16, 128), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(128, len(values)) for values in drawing.ATTRIBUTES.values())

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Logits (n, values) of each attribute."""
        small = F.interpolate(pictures, (SEEN_SIZE, SEEN_SIZE), mode="area")
        # Where each pixel is, which convolutions cannot know and positions need.
        axis = torch.linspace(-1, 1, SEEN_SIZE)
        places = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).expand(len(small), -1, -1, -1)
        features = self.body(torch.cat([small, places], dim=1))
        return [head(features) for head in self.heads]


def load(path: Path) -> Classifier:
    """The trained classifier from a safetensors file."""
    classifier = Classifier()
    classifier.load_state_dict(load_file(path))
    return classifier.eval()


@torch.no_grad()
def classify(classifier: Classifier, pictures: Tensor) -> Tensor:
    """The scenes (n, 5), int64, that pictures (n, 3, h, w) in -1..1 show."""
    parts = [[rows.argmax(1) for rows in classifier(part)] for part in pictures.split(64)]
    return torch.cat([torch.stack(columns, dim=1) for columns in parts])


def train(work: Path, path: Path) -> float:
    """Train, save to `path`, and return the share of fresh drawings on which every attribute is right."""
    torch.manual_seed(loop.SEED)
    classifier = Classifier()
    loop.train("judge", classifier, lambda step, g: _loss_of(classifier, g), STEPS, PEAK_RATE, work, 0.995)
    save_file(classifier.state_dict(), path)
    return accuracy(classifier)


def accuracy(classifier: Classifier, count: int = 2048) -> float:
    """Share of `count` drawings, of combinations kept out of training too, that are read right in everything."""
    generator = loop.generator_for("test of the judge", 0)
    pool = torch.cat([drawing.TRAINED_SCENES, drawing.HELD_OUT_SCENES])
    scenes = drawing.sample_scenes(count, generator, pool)
    pictures = drawing.draw(scenes, drawing.sample_wobbles(count, generator))
    return (classify(classifier, pictures) == scenes).all(1).float().mean().item()


def _loss_of(classifier: Classifier, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    scenes = drawing.sample_scenes(BATCH, generator)
    pictures = _spoil(drawing.draw(scenes, drawing.sample_wobbles(BATCH, generator), SEEN_SIZE), generator)
    logits = classifier(pictures)
    losses = [F.cross_entropy(rows, scenes[:, i]) for i, rows in enumerate(logits)]
    right = torch.stack([rows.argmax(1) for rows in logits], dim=1) == scenes
    return torch.stack(losses).sum(), {"right": right.all(1).float().mean().item()}


def _spoil(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the pictures and add noise to all: generated ones are never as crisp as drawings."""
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    chosen = torch.rand(len(pictures), 1, 1, 1, generator=generator) < 0.5
    level = 0.15 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    return torch.where(chosen, blurred, pictures) + level * torch.randn(pictures.shape, generator=generator)
