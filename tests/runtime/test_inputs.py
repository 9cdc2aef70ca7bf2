"""Pictures as people hand them in: every mode, depth, orientation and wrapping gives the pixels that they see."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_inpainting import prepare_mask_and_masked_image

from kandinsky22 import InputError
from kandinsky22.arrays import Array
from kandinsky22.images import reading


def noise(height: int = 40, width: int = 56, channels: int = 3) -> Array:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def read(value: Any) -> Array:
    return np.asarray(reading.picture("image", value))


RGB = PIL.Image.fromarray(noise())
GREY = PIL.Image.fromarray(noise()[..., 0])


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif"])
def test_files_without_loss_give_their_pixels(suffix: str, tmp_path: Path) -> None:
    source = RGB.quantize(16).convert("RGB") if suffix == "gif" else RGB
    source.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    for path in (tmp_path / f"a.{suffix}", str(tmp_path / f"a.{suffix}")):
        np.testing.assert_array_equal(read(path), np.asarray(source))


def test_arrays_and_pil_pictures_are_the_same() -> None:
    array = np.asarray(RGB)
    for value in (RGB, array, array.astype(np.float32) / 255, array.astype(np.float64) / 255):
        np.testing.assert_array_equal(read(value), array)
    np.testing.assert_array_equal(read(array.astype(np.uint16) * 257), array)
    np.testing.assert_array_equal(read(array[..., 0] > 127), np.repeat((array[..., :1] > 127) * 255, 3, axis=2))


def test_tensors_of_torch_are_arrays() -> None:
    """Also while they record gradients."""
    array = np.asarray(RGB)
    values = torch.from_numpy(array.copy())
    for tensor in (values, values / 255, (values / 255).requires_grad_(), (values / 255).double().requires_grad_() * 1):
        np.testing.assert_array_equal(read(tensor), array)
        np.testing.assert_allclose(reading.depth("hint", tensor), array / np.float32(255), rtol=0, atol=1e-7)
    bools = values[..., 0] > 127
    mask = reading.inpainting_mask("mask_image", bools)
    assert mask.from_array
    np.testing.assert_array_equal(np.asarray(mask.picture) > 127, bools.numpy())
    embeds = torch.randn(2, 5, requires_grad=True)
    for value in (embeds, embeds.tolist(), embeds.detach().numpy()):
        np.testing.assert_array_equal(reading.floats("image_embeds", value, "(n, 5)"), embeds.detach().numpy())


def test_what_is_an_array() -> None:
    embeds = torch.randn(2, 5, requires_grad=True)
    np.testing.assert_array_equal(reading.array("image", embeds), embeds.detach().numpy())  # type: ignore[arg-type]
    for value in (RGB, "a.png", Path("a.png"), [embeds], None, 3):
        assert reading.array("image", value) is None


class Broken:
    """An object whose conversion fails."""

    def __array__(self, *arguments: Any, **options: Any) -> Array:
        raise OSError("gone\nfor good")


UNREADABLE = {
    "ragged": ([[0.1, 0.2], [0.3]], "cannot be read as an array (setting an array element"),
    "object": (object(), "has shape () and type object; expected floats (n, 2)"),
    "objects": ([[object()]], "has shape (1, 1) and type object"),
    "strings": (["a", "b"], "has shape (2,) and type <U1"),
    "complex": (np.ones((2, 2), complex), "has shape (2, 2) and type complex128"),
    "integers": (np.ones((2, 2), int), "has shape (2, 2) and type int64"),
    "None": (None, "has shape () and type object"),
    "shape": (np.ones((3, 2)), "has shape (3, 2) and type float64"),
    "not finite": (np.array([[0.1, np.nan], [0, 0]]), "has values that are not finite in float32"),
    "huge": (np.full((2, 2), 1e300), "has values that are not finite in float32"),
    "bfloat16": (torch.ones(2, 2, dtype=torch.bfloat16), "cannot be read as an array (Got unsupported ScalarType BF"),
    "elsewhere": (torch.ones(2, 2, device="meta"), "cannot be read as an array (can't convert meta device"),
    "broken": (Broken(), "cannot be read as an array (gone); expected floats (n, 2)"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", UNREADABLE)
def test_what_is_no_array_of_floats_is_refused_in_one_sentence(form: str) -> None:
    value, message = UNREADABLE[form]
    with pytest.raises(InputError) as raised:
        reading.floats("image_embeds", value, "(n, 2)", (2, 2))
    assert str(raised.value).startswith(f"image_embeds {message}")
    assert "\n" not in str(raised.value)


NO_PICTURES = {
    "number": (3, "is of type int; expected a path, a PIL picture or a NumPy array"),
    "bytes": (b"a.png", "is of type bytes; expected a path"),
    "nothing": (None, "is of type NoneType; expected a path"),
    "class": (np.ndarray, "is of type type; expected a path"),
    "scalar": (np.float32(1), "has shape (); expected (height, width)"),
    "objects": (np.array([[object()]]), "is of type object; expected bool, uint8"),
    "complex": (np.ones((2, 2), complex), "is of type complex128; expected bool, uint8"),
    "channels first": (torch.ones(3, 8, 8), "has shape (3, 8, 8); expected (height, width)"),
    "huge": (np.full((2, 2), 1e300), "has floats outside 0 to 1"),
    "broken": (Broken(), "cannot be read as an array (gone); expected an array that NumPy can read"),
    "elsewhere": (torch.ones(8, 8, device="meta"), "cannot be read as an array (can't convert meta device"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reader", [reading.picture, reading.inpainting_mask, reading.depth])
@pytest.mark.parametrize("form", NO_PICTURES)
def test_what_is_no_picture_is_refused_in_one_sentence(form: str, reader: Any) -> None:
    value, message = NO_PICTURES[form]
    with pytest.raises(InputError) as raised:
        reader("image", value)
    assert str(raised.value).startswith(f"image {message}")
    assert "\n" not in str(raised.value)


def test_sizes_that_differ_are_refused_but_the_one_that_is_asked_for() -> None:
    reading.same_size("mask_image", (8, 9), "the image", (8, 9))
    reading.same_size("mask_image", (8, 9), "the image", (3, 3), (8, 9))
    with pytest.raises(InputError, match=r"^mask_image is 8x9 and the image is 3x3; expected the same size\.$"):
        reading.same_size("mask_image", (8, 9), "the image", (3, 3))
    with pytest.raises(InputError, match=r"expected the same size, or 4x4, which is asked for\.$"):
        reading.same_size("mask_image", (8, 9), "the image", (3, 3), (4, 4))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    source = RGB.convert(mode)
    np.testing.assert_array_equal(read(source), np.asarray(source.convert("RGB")))


@pytest.mark.parametrize("form", ["RGBA", "LA", "PA", "palette", "array", "floats", "16 bits"])
def test_what_is_transparent_is_white_in_pictures_and_black_in_masks_and_depth_maps(form: str) -> None:
    alpha = np.zeros((40, 56), np.uint8)
    alpha[:, 20:] = 255
    grey = np.full((40, 56), 100, np.uint8)
    rgba = PIL.Image.fromarray(np.dstack([grey, grey, grey, alpha]))
    if form == "palette":
        source: Any = PIL.Image.fromarray((alpha > 0).astype(np.uint8)).convert("P")
        source.putpalette([7, 7, 7, 100, 100, 100])
        source.info["transparency"] = 0
    else:
        array = np.asarray(rgba)
        arrays = {"array": array, "floats": array / np.float32(255), "16 bits": array.astype(np.uint16) * 257}
        source = arrays[form] if form in arrays else rgba.convert(form)
    picture, mask = read(source), np.asarray(reading.inpainting_mask("mask_image", source).picture.convert("L"))
    depth = reading.depth("hint", source)
    assert depth.dtype == np.float32
    assert (depth[:, :20] == 0).all()
    np.testing.assert_allclose(depth[:, 20:], 100 / 255, rtol=0, atol=1e-6)
    assert (picture[:, :20] == 255).all()
    assert (mask[:, :20] == 0).all()
    assert (picture[:, 20:] == 100).all()
    assert (mask[:, 20:] == 100).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_exif_says(orientation: int, tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    RGB.save(tmp_path / "a.png", exif=exif)
    turns = [lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: a.transpose(1, 0, 2)]
    turns += [lambda a: np.rot90(a, 3), lambda a: np.rot90(a, 2).transpose(1, 0, 2), np.rot90]
    np.testing.assert_array_equal(read(tmp_path / "a.png"), turns[orientation - 1](np.asarray(RGB)))


def test_damaged_exif_does_not_hide_the_picture(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.asarray(RGB))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_rounded_in_pictures_and_kept_in_depth_maps(suffix: str, tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 40 * 56).astype(np.uint16).reshape(40, 56)
    PIL.Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    expected = (deep / 65535 * 255).round().astype(np.uint8)
    for value in (tmp_path / f"a.{suffix}", deep):
        np.testing.assert_array_equal(read(value)[..., 1], expected)
        np.testing.assert_array_equal(
            np.asarray(reading.inpainting_mask("mask_image", value).picture.convert("L")), expected
        )
        depth = reading.depth("hint", value)
        assert depth.dtype == np.float32
        assert depth.shape == (40, 56, 3)
        np.testing.assert_allclose(depth[..., 2], deep / 65535, rtol=0, atol=1e-7)


def test_floats_of_tiff_are_taken_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(1).random((12, 9)).astype(np.float32)
    PIL.Image.fromarray(values).save(tmp_path / "a.tiff")
    np.testing.assert_array_equal(reading.depth("hint", tmp_path / "a.tiff")[..., 0], values)


def test_depth_maps_keep_colours_and_repeat_grey() -> None:
    np.testing.assert_array_equal(reading.depth("hint", RGB), np.asarray(RGB, np.float32) / np.float32(255))
    grey = reading.depth("hint", GREY)
    np.testing.assert_array_equal(grey, np.repeat(np.asarray(GREY, np.float32)[..., None] / np.float32(255), 3, axis=2))
    values = np.random.default_rng(2).random((8, 8, 1))
    np.testing.assert_array_equal(reading.depth("hint", values)[..., 0], values[..., 0].astype(np.float32))


def test_a_photograph_with_a_preview_is_one_picture(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.mpo", save_all=True, append_images=[RGB.resize((8, 8))])
    assert read(tmp_path / "a.mpo").shape == (40, 56, 3)


def test_the_user_s_own_picture_is_not_changed() -> None:
    stream = io.BytesIO()
    RGB.save(stream, "PNG")
    source = PIL.Image.open(stream)
    reading.picture("image", source)
    source.load()  # it is open still
    np.testing.assert_array_equal(np.asarray(source), np.asarray(RGB))


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 192)])
@pytest.mark.parametrize("source", [RGB, PIL.Image.fromarray(noise(700, 500)), PIL.Image.fromarray(noise(64, 64))])
def test_pictures_are_resized_as_diffusers_resizes_them(source: PIL.Image.Image, size: tuple[int, int]) -> None:
    processor = VaeImageProcessor(vae_scale_factor=8, resample="bicubic", reducing_gap=1)
    expected = processor.preprocess(source, *size)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(reading.resized_picture(source, *size) * 2 - 1, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 192)])
@pytest.mark.parametrize("form", ["L", "RGB"])
def test_masks_are_resized_as_diffusers_resizes_them(form: str, size: tuple[int, int]) -> None:
    source = PIL.Image.fromarray(noise(300, 200)[..., 0]).resize((90, 70)).convert(form)
    image = PIL.Image.fromarray(noise(70, 90))
    expected, pixels = prepare_mask_and_masked_image(image, source, *size)
    ours = reading.inpainting_mask("mask_image", source).kept(*size)
    np.testing.assert_array_equal(ours[None], expected.numpy())
    assert 0 < ours.mean() < 1
    np.testing.assert_allclose(
        reading.resized_picture(image, *size) * 2 - 1, pixels[0].numpy().transpose(1, 2, 0), rtol=0, atol=2e-7
    )


@pytest.mark.parametrize("size", [(2100, 100), (100, 2100)])
def test_pictures_of_which_one_side_would_fill_the_memory_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"image is {size[0]}x{size[1]}; expected the longer side to be 20 times"):
        reading.not_too_long("image", PIL.Image.new("RGB", size))
    reading.not_too_long("image", PIL.Image.new("RGB", (2000, 100)))


def test_depth_maps_are_resized_without_losing_depth() -> None:
    ramp = np.repeat(np.linspace(0, 1, 4096, dtype=np.float32)[None, :, None], 64, axis=0)
    depth = reading.depth("hint", ramp)
    assert reading.resized_depth(depth, 64, 4096) is depth
    small = reading.resized_depth(depth, 32, 2048)
    assert small.shape == (32, 2048, 3)
    assert len(np.unique(small)) > 1500  # 8 bits would leave 256
    np.testing.assert_allclose(small[0, :, 0], np.linspace(0, 1, 2048), rtol=0, atol=1e-3)
