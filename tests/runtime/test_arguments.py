"""What `Pipeline` refuses: one sentence that names the argument and what was expected, before any graph is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError, InputError, KandinskyError, Pipeline, checks
from kandinsky22.components import Run

QUICK: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2}
NAN, INFINITY = float("nan"), float("inf")


def refused(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, Any]) -> str:
    monkeypatch.delattr(Run, "use")  # nothing may be loaded, let alone run
    quick = {name: value for name, value in QUICK.items() if "image_embeds" not in changes or "prior" not in name}
    with pytest.raises(InputError) as raised:
        pipe(**{"prompt": "a", **quick, **changes})
    assert isinstance(raised.value, ValueError | KandinskyError)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["height", "width"])
@pytest.mark.parametrize("value", [0, -1, 100_000, 64.0, "64", True, NAN])
def test_sizes(name: str, value: object, shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = f"{name} is {value!r}; expected a whole number from 1 to "
    assert expected in refused(shapes_pipe, monkeypatch, {name: value})


@pytest.mark.parametrize("name", ["num_inference_steps", "prior_num_inference_steps"])
@pytest.mark.parametrize("value", [0, -1, 1001, 2.5, "2", None])
def test_steps(name: str, value: object, shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{name} is {value!r}; expected" in refused(shapes_pipe, monkeypatch, {name: value})


def test_one_step_of_the_prior(shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers divides by zero."""
    assert "2" in refused(shapes_pipe, monkeypatch, {"prior_num_inference_steps": 1})


@pytest.mark.parametrize("name", ["guidance_scale", "prior_guidance_scale"])
@pytest.mark.parametrize("value", [NAN, INFINITY, -0.1, "4", None, True])
def test_guidance(name: str, value: object, shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{name} is {value!r}; expected a finite number" in refused(shapes_pipe, monkeypatch, {name: value})


@pytest.mark.parametrize("value", [-1, 2**63, 1.5, "1", [1, 2], [], [-1], True])
def test_seeds(value: object, shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "seed" in refused(shapes_pipe, monkeypatch, {"seed": value})


def test_the_last_seed_must_be_one_too(shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"seed": 2**63 - 1, "num_images_per_prompt": 2}
    assert "seed of the last picture" in refused(shapes_pipe, monkeypatch, changes)


@pytest.mark.parametrize("value", [[], (), None, 7, ["a", 7], [None], b"a", {"a"}, "a\ud800", ["a", "\udcff"]])
def test_prompts(value: object, shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(shapes_pipe, monkeypatch, {"prompt": value}).startswith("prompt is ")


@pytest.mark.parametrize("value", [[], ["a", "b"], 7, [7], "\ud800", ["\ud800"]])
def test_negative_prompts(value: object, shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(shapes_pipe, monkeypatch, {"negative_prompt": value}).startswith("negative_prompt is ")


@pytest.mark.parametrize("name", ["num_images_per_prompt", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.0, "1", 10**6])
def test_counts(name: str, value: object, shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{name} is {value!r}; expected" in refused(shapes_pipe, monkeypatch, {name: value})


@pytest.mark.parametrize(
    ("scheduler", "word"),
    [
        ("Euler", "'Euler'"),
        ("", "DDPM, DDIM, DPM++ or DPM++ Karras"),
        ({}, "_class_name"),
        ({"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler"),
        ({"_class_name": "DDIMScheduler", "shift": 3}, "'shift'"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "cosine"}, "beta_schedule"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "flow"}, "prediction_type"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 0}, "num_train_timesteps"),
        ({"_class_name": "DDPMScheduler", "beta_end": NAN}, "beta_end"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "variance_type"),
    ],
)
def test_schedulers(scheduler: object, word: str, shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert word in refused(shapes_pipe, monkeypatch, {"scheduler": scheduler})


OWN = {"num_train_timesteps": 1000, "prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("DPM++ Karras", "The prior_scheduler must be UnCLIP, DDIM or DPM++, not 'DPM++ Karras'."),
        (3, "prior_scheduler is 3; expected a name (UnCLIP, DDIM or DPM++), a config, or a scheduler object of"),
        (int, "prior_scheduler is the class int; pass an object of it, or the name of one of UnCLIP, DDIM and DPM++."),
        (OWN, "prior_scheduler is a config without _class_name"),
        ({1: 2}, "prior_scheduler is a config with the key 1;"),
        ({"_class_name": "DDPMScheduler"}, "prior_scheduler is of the class 'DDPMScheduler', which is not supported; "),
        ({"_class_name": "DDIMScheduler"}, "prior_scheduler has the prediction_type 'epsilon', and this prior predict"),
        ({"_class_name": "DDIMScheduler", **OWN, "thresholding": True}, "prior_scheduler has thresholding, which the "),
        ({"_class_name": "DDIMScheduler", **OWN, "shift": 3}, "The DDIMScheduler config has an option 'shift'"),
    ],
)
def test_schedulers_of_the_prior(
    scheduler: object, message: str, shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(shapes_pipe, monkeypatch, {"prior_scheduler": scheduler}).startswith(message)


def test_a_scheduler_of_the_prior_beside_embeddings(shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"prompt": None, "image_embeds": np.zeros((1, 96), np.float32), "prior_scheduler": "DDIM"}
    assert "prior_scheduler was given beside image_embeds" in refused(shapes_pipe, monkeypatch, given)


@pytest.mark.parametrize("eta", [-0.1, 1.1, NAN, "0", None])
def test_eta(eta: object, shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "eta" in refused(shapes_pipe, monkeypatch, {"scheduler": "DDIM", "eta": eta})


def test_eta_is_of_ddim_alone(shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "DDIM" in refused(shapes_pipe, monkeypatch, {"scheduler": "DDPM", "eta": 0.5})


@pytest.mark.parametrize("value", ["jpeg", None, 1])
def test_output_types(value: object, shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected one of pil, np, latent" in refused(shapes_pipe, monkeypatch, {"output_type": value})


@pytest.mark.parametrize(
    ("shape", "dtype", "fill"), [((48,), "f4", 0), ((0, 48), "f4", 0), ((1, 7), "f4", 0), ((1, 48), "i8", 0)]
)
def test_embeddings(shape: Any, dtype: str, fill: float, shapes_pipe: Pipeline, monkeypatch: Any) -> None:
    wide = shapes_pipe.bundle.manifest.geometry.embedding_dim
    shape = tuple(wide if size == 48 else size for size in shape)
    changes = {"prompt": None, "image_embeds": np.full(shape, fill, dtype)}
    assert f"expected floats (n, {wide})" in refused(shapes_pipe, monkeypatch, changes)


def test_embeddings_are_finite_and_come_alone(shapes_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = shapes_pipe.bundle.manifest.geometry.embedding_dim
    broken, sound = np.full((1, wide), NAN, np.float32), np.zeros((1, wide), np.float32)
    assert "not finite" in refused(shapes_pipe, monkeypatch, {"prompt": None, "image_embeds": broken})
    monkeypatch.undo()
    assert "one of them" in refused(shapes_pipe, monkeypatch, {"image_embeds": sound})
    monkeypatch.undo()
    two = np.zeros((2, wide), np.float32)
    changes = {"prompt": None, "image_embeds": sound, "negative_image_embeds": two}
    assert "1 image_embeds and 2 negative_image_embeds" in refused(shapes_pipe, monkeypatch, changes)
    monkeypatch.undo()
    assert "without image_embeds" in refused(shapes_pipe, monkeypatch, {"negative_image_embeds": sound})
    monkeypatch.undo()
    changes = {"prompt": None, "image_embeds": sound, "prior_latents": sound}
    assert "need no prior" in refused(shapes_pipe, monkeypatch, changes)
    monkeypatch.undo()
    assert "without prior_image" in refused(shapes_pipe, monkeypatch, {"prior_strength": 0.5})
    monkeypatch.undo()
    changes = {"prompt": None, "image_embeds": sound, "prior_image": sound}
    assert "need no prior" in refused(shapes_pipe, monkeypatch, changes)
    with pytest.raises(InputError, match="mix does not use negative_image_embeds"):
        shapes_pipe.mix(["a"], [1.0], negative_image_embeds=sound)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"backend": "torch"}, BackendError, "choose one of auto, "),
        ({"precision": "fp8"}, InputError, "expected one of auto, fp32, bf16"),
        ({"threads": 0}, InputError, "threads is 0; expected"),
        ({"backend": "onnxruntime", "precision": "bf16"}, BackendError, "have no bf16"),
    ],
)
def test_settings(options: dict[str, Any], error: type[Exception], word: str, shapes_bundle: Path) -> None:
    with pytest.raises(error, match=word):
        Pipeline.load(shapes_bundle, **options)("a", **QUICK)


def test_seeds_count_on_from_the_first_and_a_list_is_taken_as_it_is() -> None:
    assert checks.seeds(5, 3) == [5, 6, 7]
    assert checks.seeds([9, 0], 2) == [9, 0]
    assert checks.seeds(2**63 - 2, 2) == [2**63 - 2, 2**63 - 1]
    drawn = checks.seeds(None, 2)
    assert drawn[1] == drawn[0] + 1


def test_numpy_s_numbers_are_numbers() -> None:
    assert checks.whole("steps", np.int64(3), 1, 5) == 3
    assert checks.scale("scale", np.float32(1.5)) == 1.5
