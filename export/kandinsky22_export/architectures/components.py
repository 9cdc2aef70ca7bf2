"""Which components a bundle has, which network each is made of, and their graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kandinsky22_export.checkpoints import Network
from kandinsky22_export.graphs.base import Graph
from kandinsky22_export.graphs.encoders import HintEncoder, ImageEncoder, MovqDecoder, MovqEncoder, TextEncoder
from kandinsky22_export.graphs.forecast import ControlnetForecast, DecoderForecast, ForecastStep, InpaintForecast
from kandinsky22_export.graphs.steps import ControlnetStep, DecoderStep, InpaintStep, PriorStep, UNetStep
from kandinsky22_export.preview import fit_preview

_MADE_OF: dict[type[Graph], str] = {
    TextEncoder: "text_encoder",
    ImageEncoder: "image_encoder",
    PriorStep: "prior",
    DecoderStep: "unet",
    DecoderForecast: "unet",
    HintEncoder: "unet_controlnet",
    ControlnetStep: "unet_controlnet",
    ControlnetForecast: "unet_controlnet",
    InpaintStep: "unet_inpaint",
    InpaintForecast: "unet_inpaint",
    MovqEncoder: "movq",
    MovqDecoder: "movq",
}
GRAPHS = {graph.name: graph for graph in _MADE_OF}
"""The graph of each component, in the order of the export."""
NETWORKS = {graph.name: network for graph, network in _MADE_OF.items()}
"""The network of the checkpoint that each component is made of, in the order of the export."""

Constants = dict[str, Any]
"""Arrays of float32, by the names of constants.npz."""


def build_graph(component: str, networks: Mapping[str, Network], ranks: int | None) -> tuple[Graph, Constants]:
    """Load the network of a component: its graph, and the constants that only the loaded network knows.

    `ranks` is K of docs/bundle.md; None where there is no decoder. A forecast takes nothing of a network but its
    config: none is loaded.
    """
    graph: Any = GRAPHS[component]
    if issubclass(graph, ForecastStep):
        unet, movq = networks[NETWORKS[component]].config, networks["movq"].config
        return graph(ranks, movq["latent_channels"], unet["out_channels"]), {}
    network: Any = networks[NETWORKS[component]].load()
    constants: Constants = {}
    if graph is ImageEncoder:
        constants = embed_zeros(network)
    if graph is PriorStep:
        constants = {name: getattr(network, name).numpy().copy() for name in ("clip_mean", "clip_std")}
    if graph is MovqDecoder:
        constants = fit_preview(network)  # while it has its encoder still
    if issubclass(graph, UNetStep):
        assert ranks is not None  # a UNet comes with its MoVQ, by which they are known
        return graph(network, ranks, hand_out_model=True), constants
    return graph(network), constants


@torch.no_grad()
def embed_zeros(encoder: Any) -> Constants:
    """`zero_image_embeds` (1, E): what the image encoder makes of zeros, which is no black picture."""
    size = encoder.config.image_size
    return {"zero_image_embeds": encoder(torch.zeros(1, 3, size, size)).image_embeds.numpy()}
