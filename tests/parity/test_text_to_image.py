"""The same picture as diffusers, from the same seed, through every option that changes the arithmetic."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import Pipeline

from .reference import LONG_PROMPT, PROMPT, SMALL, Case, Reference, everything, ours, steps_of_255

LARGEST = 2.0  # of 255: what the issue of parity allows in float32
BETWEEN_BATCHES = 1.0  # of 255


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_same_picture_as_diffusers(shapes_pipe: Pipeline, reference: Reference, case: Case) -> None:
    _same(shapes_pipe, reference, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", everything(), ids=str)
def test_same_picture_as_diffusers_in_every_combination(
    shapes_pipe: Pipeline, reference: Reference, case: Case
) -> None:
    _same(shapes_pipe, reference, case)


def test_openvino_fp32_gives_the_same_picture(shapes_bundle: Path, reference: Reference) -> None:
    with Pipeline.load(shapes_bundle, "openvino", precision="fp32") as openvino:
        for case in SMALL[:4]:
            _same(openvino, reference, case)


def test_openvino_with_winograds_convolutions_gives_the_same_picture(
    shapes_bundle: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all convolutions that can be so written; this checkpoint has none that would be faster."""
    from kandinsky22.backends.openvino import winograd

    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "FEWEST_TILES", {winograd.F4: 4, winograd.F2: 1})
    rewritten = []
    rewrite = winograd.winograd

    def counted(model: Any) -> dict[str, Any]:
        given = rewrite(model)
        rewritten.append(bool(given))
        return given

    monkeypatch.setattr(winograd, "winograd", counted)
    with Pipeline.load(shapes_bundle, "openvino", precision="fp32") as openvino:
        for case in (SMALL[0], SMALL[2]):
            _same(openvino, reference, case)
    assert rewritten == [True] * 4  # the UNet and MoVQ, for each of two sizes


@pytest.mark.parametrize("negative", [None, "a green star"])
def test_pictures_of_one_call_equal_single_calls(
    shapes_pipe: Pipeline, reference: Reference, negative: str | None
) -> None:
    other = "a small yellow square at the top of a green background"
    together = shapes_pipe(
        [PROMPT, other],
        negative,
        height=64,
        width=128,
        num_inference_steps=6,
        prior_num_inference_steps=4,
        num_images_per_prompt=2,
        seed=7,
        output_type="np",
    )
    assert together.seeds == [7, 8, 9, 10]
    for i, prompt in enumerate([PROMPT, PROMPT, other, other]):
        case = Case(prompt, negative, 64, 128, steps=6, prior_steps=4, seed=7 + i)
        alone = ours(shapes_pipe, case, reference.scheduler_config(case))
        assert steps_of_255(np.asarray(together.images[i]), alone) <= BETWEEN_BATCHES
        assert steps_of_255(alone, reference.picture(case)) <= LARGEST


def test_pil_pictures_are_rounded_as_diffusers_rounds(shapes_pipe: Pipeline, reference: Reference) -> None:
    case = Case(steps=2, prior_steps=2)
    out = shapes_pipe(PROMPT, height=128, width=128, num_inference_steps=2, prior_num_inference_steps=2, seed=0)
    expected = reference.decoder.numpy_to_pil(reference.picture(case)[None])[0]
    difference = np.abs(np.asarray(out.images[0], np.int16) - np.asarray(expected, np.int16))
    assert difference.max() <= LARGEST
    assert (difference == 0).mean() > 0.99


def test_a_long_prompt_is_cut_with_a_warning_that_names_what_was_lost(shapes_pipe: Pipeline) -> None:
    with pytest.warns(UserWarning, match="this part is lost: .*top left"):
        shapes_pipe.embed(LONG_PROMPT, prior_num_inference_steps=2, seed=0)


def _same(shapes_pipe: Pipeline, reference: Reference, case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the long prompt's
        mine = ours(shapes_pipe, case, reference.scheduler_config(case))
    theirs = reference.picture(case)
    assert theirs.std() > 0.05, "the reference is a flat picture: nothing is compared"
    assert steps_of_255(mine, theirs) <= LARGEST
