"""Train checkpoints/shapes from nothing, in one command: seeded, and resumable at any moment.

    python checkpoints/shapes/train.py

Each stage keeps its state in `work/` (ignored by git), saves it once a minute, and is passed over once it is done.
About two and a half hours on two cores that do nothing else. To train anew, remove `work/` and `prior/`.
"""

import argparse
from pathlib import Path

import torch
from diffusers import (
    DDPMScheduler,
    KandinskyV22ControlnetPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from recipe import classifier, clip, controlnet, dataset, inpaint, loop, movq, prior, tokenizer, unet

HERE = Path(__file__).parent

CARD = """---
license: apache-2.0
pipeline_tag: text-to-image
prior:
- ../prior
---
The {} of [checkpoints/shapes](../README.md). Its prior is the folder beside it.
"""
DECODERS = {
    "decoder": (KandinskyV22Pipeline, "decoder"),
    "controlnet-depth": (KandinskyV22ControlnetPipeline, "depth ControlNet"),
    "inpaint": (KandinskyV22InpaintPipeline, "inpainting UNet"),
}


def main() -> None:
    """Run every stage that is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE,
        help="where prior/, decoder/, controlnet-depth/ and inpaint/ go (default: %(default)s)",
    )
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where states go (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    prior_folder, decoder = options.out / "prior", options.out / "decoder"
    movq.train(options.work, decoder / "movq")
    if not (prior_folder / "tokenizer" / "vocab.json").exists():
        # Once the towers are trained on its tokens' numbers, others would be other words to them.
        tokenizer.build(prior_folder / "tokenizer", loop.SEED)
    clip.train(options.work, prior_folder)
    accuracy = classifier.train(options.work, options.out / "classifier.safetensors")
    print(f"the classifier reads {accuracy:.2%} of drawings right in everything")
    data = dataset.load(options.work, prior_folder, decoder)
    prior.train(data, options.work, prior_folder)
    unet.train(data, options.work, decoder)
    controlnet.train(data, options.work, decoder, options.out / "controlnet-depth")
    inpaint.train(data, options.work, decoder, options.out / "inpaint")
    assemble(options.out)


def assemble(out: Path) -> None:
    """Make the folders repositories in diffusers' layout: their indexes, and the cards of those with a UNet.

    UNets, two thirds of all bytes, are stored in half precision; diffusers loads them as float32 again.
    """
    folder = out / "prior"
    KandinskyV22PriorPipeline(
        prior=PriorTransformer.from_pretrained(folder / "prior"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder"),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=UnCLIPScheduler.from_pretrained(folder / "scheduler"),
        image_processor=CLIPImageProcessor.from_pretrained(folder / "image_processor"),
    ).save_pretrained(folder)
    for path in folder.rglob("*.json"):
        _tidy(path)
    for name, (pipeline, what) in DECODERS.items():
        folder = out / name
        pipeline(
            unet=UNet2DConditionModel.from_pretrained(folder / "unet").half(),
            scheduler=DDPMScheduler.from_pretrained(folder / "scheduler"),
            movq=VQModel.from_pretrained(out / "decoder" / "movq"),
        ).save_pretrained(folder)
        (folder / "README.md").write_text(CARD.format(what), encoding="utf-8")
        for path in folder.rglob("config.json"):
            _tidy(path)


def _tidy(path: Path) -> None:
    """Make a saved JSON file the same wherever it was saved.

    diffusers notes the folder that a model came from, and without torchvision the image processor's class has another
    name than in the published repositories.
    """
    text = path.read_text(encoding="utf-8").replace("CLIPImageProcessorPil", "CLIPImageProcessor")
    lines = [line for line in text.splitlines() if '"_name_or_path"' not in line]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
