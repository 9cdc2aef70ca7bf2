"""The linear map from latents to RGB that an export fits: the best one there is, and always the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from kandinsky22.bundle.bundle import Bundle
from kandinsky22.errors import ExportError
from kandinsky22_export import export, preview
from kandinsky22_export.dead_leaves import dead_leaves
from kandinsky22_export.graphs.encoders import MovqDecoder
from tests import tiny

NAMES = ["preview_bias", "preview_weight"]


class LinearMovq:
    """A MoVQ of four pixels a latent that is linear: latents are mixed mean colours, and decoded to flat blocks."""

    config = SimpleNamespace(block_out_channels=(1, 2, 3))
    mix = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.5, 1.0], [-1.0, 0.25, 3.0]])

    def encode(self, sample: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        assert not return_dict
        return (torch.einsum("ij,njhw->nihw", self.mix, functional.avg_pool2d(sample, 4)) + 0.5,)

    def decode(self, latents: torch.Tensor, force_not_quantize: bool, return_dict: bool) -> tuple[torch.Tensor]:
        assert force_not_quantize
        assert not return_dict
        colours = torch.einsum("ij,njhw->nihw", torch.linalg.inv(self.mix), latents - 0.5)
        return (functional.interpolate(colours, scale_factor=4),)


def test_of_a_linear_movq_the_map_is_its_own() -> None:
    constants = preview.fit_preview(LinearMovq())
    back = np.linalg.inv(LinearMovq.mix.numpy().astype(np.float64)) / 2  # values are -1..1, colours 0..1
    assert {name: (values.dtype, values.shape) for name, values in constants.items()} == {
        "preview_weight": (np.dtype(np.float32), (3, 3)),
        "preview_bias": (np.dtype(np.float32), (3,)),
    }
    np.testing.assert_allclose(constants["preview_weight"], back.T, atol=1e-5)
    np.testing.assert_allclose(constants["preview_bias"], 0.5 - back.sum(1) * 0.5, atol=1e-5)


def test_no_affine_map_is_nearer_to_what_the_decoder_s_graph_makes(
    tiny_parts: tiny.Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The normal equations in float64, over the decodings of the graph that is exported."""
    monkeypatch.setattr(preview, "PICTURES", 2)
    constants = preview.fit_preview(tiny_parts.movq)
    generator = np.random.default_rng(0)
    pictures = [torch.tensor(dead_leaves(64, generator), dtype=torch.float32) for _ in range(2)]
    # One at a time: norms of nearly flat pictures make much of a batch's other rounding.
    encoded = torch.cat([tiny_parts.movq.encode(each.permute(2, 0, 1)[None] * 2 - 1).latents for each in pictures])
    pixels = MovqDecoder(tiny_parts.movq)(encoded).numpy().astype(np.float64)
    colours = pixels.reshape(2, 8, 8, 8, 8, 3).mean((2, 4)).reshape(-1, 3)
    rows = encoded.permute(0, 2, 3, 1).reshape(-1, 4).double().numpy()
    known = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    best = np.linalg.solve(known.T @ known, known.T @ colours)
    fitted = rows @ constants["preview_weight"] + constants["preview_bias"]
    np.testing.assert_allclose(fitted, known @ best, atol=1e-4)
    assert np.ptp(fitted, axis=0).min() > 0.05


def test_a_movq_that_makes_no_numbers_is_refused() -> None:
    class Damaged(LinearMovq):
        mix = torch.full((3, 3), torch.nan)

    with pytest.raises(ExportError, match=r"^The checkpoint's MoVQ gives numbers that are not finite .*: get them"):
        preview.fit_preview(Damaged())


def test_synthetic_pictures_are_colours_and_differ() -> None:
    one, again = (np.random.default_rng(3) for _ in range(2))
    pictures = [dead_leaves(24, one) for _ in range(8)]
    assert all(picture.shape == (24, 24, 3) for picture in pictures)
    assert 0 <= np.min(pictures) < 0.1 < 0.9 < np.max(pictures) <= 1
    assert np.std(np.mean(pictures, axis=(1, 2)), axis=0).min() > 0.1
    np.testing.assert_array_equal(pictures, [dead_leaves(24, again) for _ in range(8)])


@pytest.mark.usefixtures("no_tracing")
@pytest.mark.parametrize("role", ["decoder", "inpaint"])
def test_a_bundle_with_movq_s_decoder_has_the_map_and_each_export_the_same(
    tmp_path: Path, tiny_checkpoint: Path, role: str
) -> None:
    found: list[Any] = []
    for name in ("one", "other"):
        export(str(tiny_checkpoint / role), tmp_path / name, components=["movq_decoder"])
        found.append(Bundle(tmp_path / name).constants())
    assert sorted(found[0]) == [*NAMES, "zero_image_embeds"]
    assert found[0]["preview_weight"].shape == (4, 3)
    assert (tmp_path / "one" / "constants.npz").read_bytes() == (tmp_path / "other" / "constants.npz").read_bytes()


@pytest.mark.usefixtures("no_tracing")
def test_a_bundle_without_movq_s_decoder_has_no_map(tmp_path: Path, tiny_checkpoint: Path) -> None:
    export(str(tiny_checkpoint / "decoder"), tmp_path / "out", components=["movq_encoder", "prior_step"])
    assert sorted(Bundle(tmp_path / "out").constants()) == ["clip_mean", "clip_std", "zero_image_embeds"]
