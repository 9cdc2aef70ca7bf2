"""Which components a bundle has, which network each is made of, and their graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kandinsky22_export.checkpoints import Network
from kandinsky22_export.graphs.base import Graph
from kandinsky22_export.graphs.encoders import HintEncoder, ImageEncoder, MovqDecoder, MovqEncoder, TextEncoder
from kandinsky22_export.graphs.steps import ControlnetStep, DecoderStep, InpaintStep, PriorStep

NETWORKS = {
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
    "prior_step": "prior",
    "decoder_step": "unet",
    "hint_encoder": "unet_controlnet",
    "decoder_step_controlnet": "unet_controlnet",
    "decoder_step_inpaint": "unet_inpaint",
    "movq_encoder": "movq",
    "movq_decoder": "movq",
}
"""The network of the checkpoint that each component is made of, in the order of the export."""

Constants = dict[str, Any]
"""Arrays (1, E) of float32, by the names of constants.npz."""


def build_graph(component: str, networks: Mapping[str, Network], ranks: int | None) -> tuple[Graph, Constants]:
    """Load the network of a component: its graph, and the constants that only the loaded network knows.

    `ranks` is K of docs/bundle.md; None where there is no decoder.
    """
    network: Any = networks[NETWORKS[component]].load()
    match component:
        case "text_encoder":
            return TextEncoder(network), {}
        case "image_encoder":
            return ImageEncoder(network), embed_zeros(network)
        case "prior_step":
            constants = {name: getattr(network, name).numpy().copy() for name in ("clip_mean", "clip_std")}
            return PriorStep(network), constants
        case "hint_encoder":
            return HintEncoder(network), {}
        case "movq_encoder":
            return MovqEncoder(network), {}
        case "movq_decoder":
            return MovqDecoder(network), {}
    steps = {
        "decoder_step": DecoderStep,
        "decoder_step_controlnet": ControlnetStep,
        "decoder_step_inpaint": InpaintStep,
    }
    assert ranks is not None  # a UNet comes with its MoVQ, by which they are known
    return steps[component](network, ranks), {}


@torch.no_grad()
def embed_zeros(encoder: Any) -> Constants:
    """`zero_image_embeds` (1, E): what the image encoder makes of zeros, which is no black picture."""
    size = encoder.config.image_size
    return {"zero_image_embeds": encoder(torch.zeros(1, 3, size, size)).image_embeds.numpy()}
