"""Quality against steps and time, on checkpoints/shapes: fewer steps for the same picture.

    python benchmarks/steps.py engines/shapes

paints prompts of the model card with every sampler and number of steps, and compares with 500 steps of DDIM from the
same noise: whether the classifier reads everything that was asked for, and how far the pixels are. Writes
reports/steps.json, steps.md and steps.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
SHAPES = HERE.parent / "checkpoints" / "shapes"
sys.path[:0] = [str(HERE.parent / "runtime"), str(SHAPES)]

from kandinsky22 import Pipeline  # noqa: E402
from recipe import classifier  # noqa: E402
from scores import text2img  # noqa: E402

REFERENCE = ("ddim", 500)
STEPS = (4, 6, 8, 10, 15, 20, 25, 50)
SAMPLERS = ("ddpm", "ddim", "dpm++")
HALF = (0.0, 0.5)


def main() -> None:
    """Paint, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=int, default=64, help="how many (%(default)s)")
    parser.add_argument("--reports", type=Path, default=HERE / "reports")
    options = parser.parse_args()
    prompts, scenes = text2img.unseen_prompts()
    every = max(len(prompts) // options.prompts, 1)  # the first ones are all of held-out combinations
    prompts, scenes = prompts[::every][: options.prompts], scenes[::every][: options.prompts]
    judge = classifier.load(SHAPES / "classifier.safetensors")
    runs: list[tuple[str, int, tuple[float, float]]] = [
        (*REFERENCE, (0.0, 1.0)),
        *((sampler, steps, (0.0, 1.0)) for sampler in SAMPLERS for steps in STEPS),
        *(("dpm++", steps, HALF) for steps in (10, 20)),
    ]
    rows: list[dict[str, Any]] = []
    with Pipeline.load(options.bundle) as pipe:
        embeds = pipe.embed(prompts, seed=0, batch_size=16)
        reference = None
        for sampler, steps, interval in tqdm(runs, unit="run"):
            out = pipe(
                image_embeds=embeds,
                seed=0,
                num_inference_steps=steps,
                scheduler=sampler,
                guidance_interval=interval,
                output_type="np",
                batch_size=16,
            )
            pictures = np.asarray(out.images)
            reference = pictures if reference is None else reference
            right = text2img.score(judge, torch.from_numpy(pictures).permute(0, 3, 1, 2), scenes)
            rows.append(
                {
                    "sampler": sampler,
                    "steps": steps,
                    "interval": interval,
                    "seconds": out.timings["decoder_step"] / len(prompts),
                    "distance": 255 * float(np.sqrt(np.square(pictures - reference).mean())),
                    "scores": right,
                }
            )
    options.reports.mkdir(parents=True, exist_ok=True)
    (options.reports / "steps.json").write_text(json.dumps({"prompts": len(prompts), "runs": rows}, indent=1))
    write(rows, len(prompts), options.reports)


def everything(row: dict[str, Any]) -> float:
    """Percent of pictures of which the classifier reads everything right."""
    return float(row["scores"]["all"]["everything"])


def write(rows: list[dict[str, Any]], count: int, folder: Path) -> None:
    """The table and the plot."""
    lines = [
        f"# Quality against steps: checkpoints/shapes, {count} unseen prompts",
        "",
        "Distance: root mean square of the difference to 500 steps of DDIM from the same noise, of 255. DDPM adds "
        "noise of its own, so that it is another picture, not a worse one. Made by "
        "`python benchmarks/steps.py engines/shapes`.",
        "",
        "| sampler | steps | guided | everything right | distance | UNet seconds a picture |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        guided = "all" if row["interval"][1] == 1 else "first half"
        cells = (row["sampler"], row["steps"], guided, f"{everything(row):.1f} %", f"{row['distance']:.2f}")
        lines.append("| " + " | ".join(map(str, (*cells, f"{row['seconds']:.2f}"))) + " |")
    (folder / "steps.md").write_text("\n".join([*lines, "", "![quality against steps](steps.png)", ""]))
    figure, (quality, distance) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for sampler in SAMPLERS:
        points = [row for row in rows[1:] if row["sampler"] == sampler and row["interval"][1] == 1]
        quality.plot([row["steps"] for row in points], [everything(row) for row in points], marker="o", label=sampler)
        distance.plot(
            [row["seconds"] for row in points], [row["distance"] for row in points], marker="o", label=sampler
        )
    quality.set(xlabel="steps", ylabel="everything right, %", xscale="log")
    distance.set(xlabel="UNet seconds a picture", ylabel="distance to 500 steps of DDIM, of 255", yscale="log")
    quality.legend()
    figure.savefig(folder / "steps.png", dpi=110)


if __name__ == "__main__":
    main()
