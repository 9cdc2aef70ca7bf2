"""What the tasks refuse: one sentence that names the input and what was expected, before any graph is loaded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler

from kandinsky22 import BundleError, InputError, KandinskyError, Pipeline
from kandinsky22.components import Run

from .handmade import GRAPHS, MORE_GRAPHS, ROLES, SCHEDULERS, write_bundle

QUICK: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 4, "prior_num_inference_steps": 2}
IMAGE = np.full((48, 40, 3), 90, np.uint8)
MASK = np.zeros((48, 40), np.uint8)
MASK[10:30, 10:30] = 255
HINT = np.full((48, 40), 0.5, np.float32)
NAN = float("nan")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = write_bundle(tmp_path_factory.mktemp("engines") / "tasks", GRAPHS | MORE_GRAPHS)
    with Pipeline.load(folder, "onnxruntime", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are no single picture of a sensible size."""
    folder = tmp_path_factory.mktemp("files")
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "webp", "tiff"):
        picture.save(folder / f"whole.{suffix}")
        data = (folder / f"whole.{suffix}").read_bytes()
        (folder / f"truncated.{suffix}").write_bytes(data[: len(data) // 2])
    (folder / "bomb.png").write_bytes(_bomb(60_000, 60_000))
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    other = picture.rotate(90)
    picture.save(folder / "animated.gif", save_all=True, append_images=[other])
    picture.save(folder / "animated.webp", save_all=True, append_images=[other])
    picture.save(folder / "animated.png", save_all=True, append_images=[other])
    picture.save(folder / "pages.tiff", save_all=True, append_images=[other])
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>")
    (folder / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    PIL.Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(folder / "wide.tiff")
    return folder


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has `width` x `height` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def img2img(**changes: Any) -> Callable[[Pipeline], Any]:
    return lambda pipe: pipe.img2img(**{"prompt": "a", "image": IMAGE, **QUICK, **changes})


def inpaint(**changes: Any) -> Callable[[Pipeline], Any]:
    return lambda pipe: pipe.inpaint(**{"prompt": "a", "image": IMAGE, "mask_image": MASK, **QUICK, **changes})


def controlnet(**changes: Any) -> Callable[[Pipeline], Any]:
    return lambda pipe: pipe.controlnet(**{"prompt": "a", "hint": HINT, **QUICK, **changes})


def mix(parts: Any, weights: Any, **changes: Any) -> Callable[[Pipeline], Any]:
    return lambda pipe: pipe.mix(parts, weights, **{**QUICK, **changes})


def emb2emb(**changes: Any) -> Callable[[Pipeline], Any]:
    return lambda pipe: pipe.emb2emb(**{"prompt": "a", "image": IMAGE, **changes})


REFUSED: list[tuple[str, Callable[[Pipeline], Any]]] = [
    # strength
    ("strength is 1.5; expected a number from 0 to 1", img2img(strength=1.5)),
    ("strength is -0.1; expected a number from 0 to 1", img2img(strength=-0.1)),
    ("strength is nan; expected a number from 0 to 1", img2img(strength=NAN)),
    ("strength is '0.5'; expected a number from 0 to 1", img2img(strength="0.5")),
    ("strength 0 leaves none of 4 steps", img2img(strength=0)),
    ("strength 0.2 leaves none of 4 steps; ask for more steps", img2img(strength=0.2)),
    ("strength 0.3 leaves none of 2 steps", emb2emb(strength=0.3, prior_num_inference_steps=2)),
    ("strength was given without image; give both, or neither.", controlnet(strength=0.5)),
    # pictures
    ("image is missing; expected a path, a PIL picture or a NumPy array", img2img(image=None)),
    ("image is an empty list", img2img(image=[])),
    ("image is of type dict; expected a path", img2img(image={})),
    ("image is of type bytes; expected a path", img2img(image=b"abc")),
    ("image: there is no file nowhere.png", img2img(image="nowhere.png")),
    (
        "image is an address on the web, https://example.org/a.png; download it",
        img2img(image="https://example.org/a.png"),
    ),
    ("image has shape (4,); expected (height, width)", img2img(image=np.zeros(4, np.uint8))),
    ("image has shape (8, 8, 2); expected (height, width)", img2img(image=np.zeros((8, 8, 2), np.uint8))),
    ("image has shape (0, 8, 3); expected (height, width)", img2img(image=np.zeros((0, 8, 3), np.uint8))),
    ("image is of type int64; expected bool, uint8, uint16, or floats", img2img(image=np.zeros((8, 8, 3), np.int64))),
    ("image has floats outside 0 to 1 (from 0.0 to 255.0); scale them first", img2img(image=np.array([[0, 255.0]]))),
    ("image has floats outside 0 to 1 (from nan to nan)", img2img(image=np.full((8, 8), NAN))),
    ("image has latents of (4, 8, 9) a picture; expected (4, 8, 8)", img2img(image=np.zeros((1, 4, 8, 9), "f4"))),
    ("image[1] is of type int; expected a path", img2img(prompt=["a", "red"], image=[IMAGE, 3])),
    (
        "image has 2 pictures for 3 prompts; expected one for all, or one a prompt",
        img2img(prompt=["a"] * 3, image=[IMAGE] * 2),
    ),
    ("image has 2 pictures for 1 prompts", emb2emb(image=[IMAGE] * 2)),
    # masks
    ("mask_image is missing", inpaint(mask_image=None)),
    ("mask_image is 40x47 and the image is 40x48; expected the same size", inpaint(mask_image=MASK[1:])),
    ("mask_image is 40x48 and the image is 40x47", inpaint(prompt=["a", "red"], image=[IMAGE, IMAGE[1:]])),
    ("mask_image[1] is 40x47 and the image is 40x48", inpaint(prompt=["a", "red"], mask_image=[MASK, MASK[1:]])),
    ("mask_image is empty: nothing is white", inpaint(mask_image=np.zeros_like(MASK))),
    ("mask_image is empty: nothing is white", inpaint(mask_image=(MASK > 0).astype(np.uint8))),  # 1 of 255
    ("mask_image has shape (48, 40, 5)", inpaint(mask_image=np.zeros((48, 40, 5), np.uint8))),
    ("mask_image[1] is empty", inpaint(prompt=["a", "red"], mask_image=[MASK, np.zeros_like(MASK)])),
    ("mask_image has 3 pictures for 2 prompts", inpaint(prompt=["a", "red"], mask_image=[MASK] * 3)),
    ("image is missing", inpaint(image=None)),
    # hints
    ("hint is missing", controlnet(hint=None)),
    (
        "hint has floats outside 0 to 1 (from 0.0 to 3.0); scale them first",
        controlnet(hint=np.linspace(0, 3, 64).reshape(8, 8)),
    ),
    ("hint has 2 pictures for 1 prompts", controlnet(hint=[HINT, HINT])),
    # mixtures
    ("There is nothing to mix", mix([], [])),
    ("There is nothing to mix", mix("a red circle", [1])),
    ("weights has 1 numbers; expected a list of 2", mix(["a", IMAGE], [1])),
    ("weights is 1; expected a list of numbers, one for each prompt or picture", mix(["a"], 1)),
    ("weights has nan; expected finite numbers", mix(["a", "red"], [1, NAN])),
    ("weights has '1'; expected finite numbers", mix(["a"], ["1"])),
    ("images_and_prompts[1] is of type NoneType; expected a path", mix(["a", None], [1, 1])),
    ("negative_prompt is 3; expected a string", mix(["a"], [1], negative_prompt=3)),
    ("negative_prior_prompt is ['b']; expected a string", mix(["a"], [1], negative_prior_prompt=["b"])),
    ("mix does not use image_embeds; leave it out.", mix(["a"], [1], image_embeds=np.zeros((1, 6), "f4"))),
    # what all of them take
    ("Both a prompt and image_embeds were given", img2img(image_embeds=np.zeros((1, 6), "f4"))),
    (
        "latents has shape (1, 4, 8, 9) and type float32; expected floats (1, 4, 8, 8), noise",
        inpaint(latents=np.zeros((1, 4, 8, 9), "f4")),
    ),
    ("latents has values that are not finite", inpaint(latents=np.full((1, 4, 8, 8), NAN))),
    (
        "prior_latents has shape (1, 6) and type float32; expected floats (2, 6), noise",
        img2img(negative_prompt="b", prior_latents=np.zeros((1, 6), "f4")),
    ),
    ("height is 0; expected a whole number", inpaint(height=0)),
    ("seed is 1000", inpaint(seed=10**400)),
    ("guidance_scale is 1000", inpaint(guidance_scale=10**400)),
    ("strength is 1000", img2img(strength=10**400)),
    ("seed is a value of type int; expected a whole number", inpaint(seed=10**5000)),
    ("weights has 1000", mix(["a"], [10**400])),
    ("scheduler is 3; expected a name", inpaint(scheduler=3)),
    ("scheduler is ['DDIM']; expected a name", inpaint(scheduler=["DDIM"])),
    ("scheduler is the class DDIMScheduler; pass an object of it", inpaint(scheduler=DDIMScheduler)),
    ("scheduler is a UnCLIPScheduler, which runs the prior", inpaint(scheduler={"_class_name": "UnCLIPScheduler"})),
    ("callback_on_step_end is 3; expected something that can be called", inpaint(callback_on_step_end=3)),
    ("prior_num_inference_steps is 1; expected a whole number from 2 to 1000", inpaint(prior_num_inference_steps=1)),
    ("image_embeds ", lambda pipe: pipe(image_embeds=[[1.0], [1.0, 2.0]])),
    ("prompt is None; expected a string", controlnet(prompt=None)),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), REFUSED, ids=[f"{i}-{each[0][:40]}" for i, each in enumerate(REFUSED)])
def test_bad_inputs_are_one_sentence(
    message: str, call: Callable[[Pipeline], Any], pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Run, "use")  # nothing may be loaded, let alone run
    _refused(message, lambda: call(pipe), InputError)


FILES = [
    ("truncated.png", "cannot be read"),
    ("truncated.jpg", "cannot be read"),
    ("truncated.webp", "cannot be read"),
    ("truncated.tiff", "cannot be read"),
    ("bomb.png", "has more than 178 million pixels, which is the limit; scale it down first"),
    ("text.png", "cannot be read (it is no picture of these formats); expected one picture as PNG"),
    ("empty.png", "cannot be read (it is no picture of these formats)"),
    ("animated.gif", "has several frames or pages; expected one picture: save the one you mean as PNG"),
    ("animated.webp", "has several frames or pages"),
    ("animated.png", "has several frames or pages"),
    ("pages.tiff", "has several frames or pages"),
    ("drawing.svg", "cannot be read (it is no picture of these formats)"),
    ("script.eps", "cannot be read (it is no picture of these formats)"),
    ("wide.tiff", "has values from 70000 to 70000; expected 16 bits, 0 to 65535"),
    (".", "cannot be read"),
]


@pytest.mark.parametrize(("name", "message"), FILES)
@pytest.mark.parametrize("role", ["image", "mask_image", "hint", "mix", "emb2emb"])
def test_bad_files_are_one_sentence(
    role: str, name: str, message: str, files: Path, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Run, "use")
    path = files / name
    calls = {
        "image": img2img(image=path),
        "mask_image": inpaint(mask_image=path),
        "hint": controlnet(hint=path),
        "mix": mix([path], [1.0]),
        "emb2emb": emb2emb(image=path),
    }
    _refused(message, lambda: calls[role](pipe), InputError)


def test_a_mask_that_is_too_fine_for_the_latents_is_refused(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Run, "use")
    fine = np.zeros((64, 64), bool)
    fine[3, 3] = True
    image = np.zeros((64, 64, 3), np.uint8)
    message = "mask_image has nothing left to repaint at 64x64: its white is finer than the 8 pixels"
    _refused(message, lambda: inpaint(image=image, mask_image=fine)(pipe), InputError)


@pytest.mark.parametrize(
    ("missing", "call"),
    [
        ("movq_encoder", img2img(strength=0.5)),
        ("movq_encoder", inpaint()),
        ("inpaint_decoder", inpaint()),
        ("hint_encoder", controlnet()),
        ("controlnet_decoder", controlnet()),
        ("movq_encoder", controlnet(image=IMAGE, strength=0.5)),
        ("image_encoder", mix([IMAGE], [1.0])),
        ("image_encoder", emb2emb(strength=0.5)),
        ("prior", mix(["a", IMAGE], [1, 1])),
        ("decoder", mix([IMAGE], [1])),
    ],
)
def test_a_bundle_without_the_component_says_which(
    missing: str, call: Callable[[Pipeline], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = {name: text for name, text in {**GRAPHS, **MORE_GRAPHS}.items() if ROLES[name][0] != missing}
    with Pipeline.load(write_bundle(tmp_path / "bundle", graphs), "onnxruntime") as pipe:
        monkeypatch.delattr(Run, "use")
        _refused(f"has no component for the role {missing!r}", lambda: call(pipe), BundleError)


def test_variations_need_no_prior(tmp_path: Path) -> None:
    names = ("image_encoder", "decoder_step", "movq_decoder")
    graphs = {name: {**GRAPHS, **MORE_GRAPHS}[name] for name in names}
    with Pipeline.load(write_bundle(tmp_path / "bundle", graphs), "onnxruntime") as pipe:
        out = pipe.variations(IMAGE, height=64, width=64, num_inference_steps=2, output_type="np")
        assert np.shape(out.images) == (1, 64, 64, 3)


def test_an_unknown_argument_is_python_s_own_error(pipe: Pipeline) -> None:
    with pytest.raises(TypeError, match="no argument 'widht'"):
        pipe.img2img("a", IMAGE, widht=64)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="needs image"):
        pipe.emb2emb("a")
    with pytest.raises(TypeError, match="embed takes 2 arguments by position"):
        pipe.embed("a", None, 3)
    with pytest.raises(TypeError, match="prompt was given twice"):
        pipe.embed("a", prompt="b")


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("mix does not use prior_strength; leave it out", mix(["a"], [1], prior_strength=0.5)),
        ("embed does not use height; leave it out", lambda pipe: pipe.embed("a", height=64)),
        ("inpaint does not use strength; leave it out", inpaint(strength=0.5)),
        ("variations does not use prompt; leave it out", lambda pipe: pipe.variations(IMAGE, prompt="a")),
        ("overlay was given without mask_image", lambda pipe: pipe.inpaint("a", IMAGE, overlay=True)),
        ("depth_model was given without hint", lambda pipe: pipe.controlnet("a", depth_model="a.onnx")),
        ("prior_guidance_scale was given beside image_embeds, which need no prior",
         lambda pipe: pipe(image_embeds=np.zeros((1, 6), "f4"), prior_guidance_scale=3)),
    ],
)  # fmt: skip
def test_what_a_task_does_not_use_is_refused(
    message: str, call: Callable[[Pipeline], Any], pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Run, "use")
    _refused(message, lambda: call(pipe), InputError)


def _refused(message: str, call: Callable[[], Any], kind: type[KandinskyError]) -> None:
    with pytest.raises(kind) as raised:
        call()
    told = str(raised.value)
    assert message in told
    assert "\n" not in told
    assert told.endswith(".")


def test_a_scheduler_of_diffusers_is_taken_as_it_is(pipe: Pipeline) -> None:
    own = {key: value for key, value in SCHEDULERS["decoder"].items() if not key.startswith(("_", "variance"))}
    scheduler = DDIMScheduler(**own, steps_offset=1)
    options: dict[str, Any] = {**QUICK, "seed": 1, "output_type": "np"}
    one = pipe("a", scheduler=scheduler, **options).images
    stored = {**scheduler.config, "_class_name": "DDIMScheduler"}
    np.testing.assert_array_equal(one, pipe("a", scheduler=stored, **options).images)
    with pytest.raises(InputError, match=r"config without _class_name.*pass the scheduler object itself"):
        pipe("a", scheduler=scheduler.config, **options)


def test_a_tensor_that_requires_a_gradient_is_read(pipe: Pipeline) -> None:
    options: dict[str, Any] = {**QUICK, "seed": 1, "output_type": "np"}
    noise = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    tensor = torch.from_numpy(noise).requires_grad_()
    np.testing.assert_array_equal(
        pipe("a", latents=tensor, **options).images, pipe("a", latents=noise, **options).images
    )
    embeds = torch.ones(1, 6, requires_grad=True)
    options.pop("prior_num_inference_steps")
    np.testing.assert_array_equal(
        pipe(image_embeds=embeds, **options).images, pipe(image_embeds=np.ones((1, 6), "f4"), **options).images
    )


@pytest.mark.parametrize("latents", ["x", None, [[1], [1, 2]], {"a": 1}, object()])
def test_a_callback_that_returns_no_numbers_is_refused(pipe: Pipeline, latents: Any) -> None:
    with pytest.raises(InputError, match=r"The callback returned latents .*; expected "):
        pipe("a", **QUICK, callback_on_step_end=lambda *_: {"latents": latents})
