"""Requests as JSON, configs of schedulers, and prompts: whatever they hold, a request, a schedule and tokens, or no."""

from __future__ import annotations

import argparse
import base64
import functools
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Role
from kandinsky22.cli import compare
from kandinsky22.cli.prompts import read_prompts
from kandinsky22.conditioning.tokenizer import Tokenizer
from kandinsky22.errors import InputError, KandinskyError
from kandinsky22.request.parameters import PARAMETERS, TASKS
from kandinsky22.request.request import Request
from kandinsky22.request.resolve import decoder_schedule, resolve
from kandinsky22.schedulers import configs

from ..fuzzing import TEXTS, deep_values, family, json_values, mutated_bytes, mutated_json, refused, run


def file_of(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def picture() -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), "red").save(stream, "PNG")
    return stream.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


NPY, PNG = file_of(np.zeros((1, 6), np.float32)), picture()
WHOLE: list[dict[str, Any]] = [
    {"task": "text2img", "prompt": ["a", "b"], "negative_prompt": "c", "seed": [1, 2], "height": 64, "width": 64,
     "num_inference_steps": 3, "prior_num_inference_steps": 2, "guidance_scale": 4.0, "guidance_interval": [0, 0.5],
     "scheduler": {"_class_name": "DDIMScheduler", "steps_offset": 1}, "eta": 0.5, "batch_size": 2},
    {"task": "img2img", "prompt": "a", "image": {"png": text(PNG)}, "strength": 0.5, "height": 64, "width": 64},
    {"task": "inpaint", "prompt": "a", "image": {"png": text(PNG)}, "mask_image": {"png": text(PNG)}, "overlay": True},
    {"task": "controlnet", "prompt": "a", "hint": {"png": text(PNG)}},
    {"task": "mix", "images_and_prompts": [{"text": "a"}, {"image": {"png": text(PNG)}}], "weights": [0.5, 0.5]},
    {"task": "variations", "image": {"npy": text(file_of(np.zeros((8, 8, 3), np.uint8)))}},
    {"task": "text2img", "image_embeds": {"npy": text(NPY)}, "negative_image_embeds": {"npy": text(NPY)}},
]  # fmt: skip
binary = st.one_of(
    mutated_bytes(NPY).map(lambda data: {"npy": text(data)}),
    mutated_bytes(PNG).map(lambda data: {"png": text(data)}),
    st.binary(max_size=40).map(lambda data: {"npy": text(b"\x93NUMPY\x01\0" + data)}),
)
names = st.sampled_from([*PARAMETERS, *TEXTS])
requests = st.one_of(
    st.sampled_from(WHOLE).flatmap(mutated_json),
    st.builds(
        lambda whole, name, value: {**whole, name: value},
        st.sampled_from(WHOLE),
        names,
        json_values | binary | deep_values,
    ),
    st.builds(
        lambda task, given: {**given, "task": task},
        st.sampled_from([*TASKS]),
        st.dictionaries(names, json_values, max_size=4),
    ),
    json_values | deep_values,
)


@family(40)
def test_a_request_of_json_is_a_job_or_refused(count: int, handmade_bundle: Bundle, shapes_bundle: Path) -> None:
    manifests = [handmade_bundle.manifest, Bundle(shapes_bundle).manifest]

    def check(data: Any) -> None:
        found: list[Request] = []
        if refused(lambda: found.append(Request.from_json(data)), InputError):
            return
        (request,) = found
        again = Request.from_json(json.loads(json.dumps(request.to_json())))
        assert json.dumps(again.to_json()) == json.dumps(request.to_json())
        for manifest in manifests:
            refused(functools.partial(resolve, request, manifest), KandinskyError)

    for whole in WHOLE:
        Request.from_json(whole)
    for task in TASKS:
        check({"task": task})
    run(count, check, data=requests)


CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "thresholding": False,
    "trained_betas": None,
}
classes = st.sampled_from(["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "UnCLIPScheduler"])
options = st.sampled_from([*configs.SchedulerOptions.__dataclass_fields__])
schedulers = st.one_of(
    st.builds(
        lambda name, config: {"_class_name": name, **config} if isinstance(config, dict) else config,
        classes,
        mutated_json(CONFIG),
    ),
    st.builds(
        lambda name, given: {**CONFIG, **given, "_class_name": name},
        classes,
        st.dictionaries(options, json_values, max_size=3),
    ),
    json_values,
)


@family(100)
def test_a_config_of_a_scheduler_is_a_schedule_or_refused(count: int, handmade_bundle: Bundle) -> None:
    manifest = handmade_bundle.manifest

    def check(scheduler: Any, steps: int, eta: float) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # a number that is none is no schedule
            refused(lambda: decoder_schedule(manifest, Role.DECODER, scheduler, steps, eta), InputError)

    run(count, check, scheduler=schedulers, steps=st.integers(1, 1000), eta=st.floats(0, 1))


@family(60)
def test_a_file_of_prompts_is_prompts_or_refused(count: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        found: list[str] = []
        if refused(lambda: found.extend(read_prompts(str(path))), InputError):
            with pytest.raises(UnicodeDecodeError):
                data.decode()
            return
        assert all(prompt == prompt.strip() != "" and "\n" not in prompt for prompt in found)
        assert " ".join(found).split() == data.decode("utf-8-sig").split()

    check("\ufeffa\r\n\n b".encode())
    run(
        count,
        check,
        data=st.binary(max_size=60) | st.lists(st.text(max_size=9)).map(lambda all: "\n".join(all).encode()),
    )


@family(60)
def test_settings_of_a_side_are_flags_of_generate_or_refused(count: int) -> None:
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)

    def check(text: str) -> None:
        options = parser.parse_args(["bundle", f"--second={text}"])
        found: list[argparse.Namespace] = []
        if not refused(lambda: found.append(compare._settings(options, "second")), InputError):
            for name in ("output", "force", "bundle", "other", "prompts_file", "prompt", "json", "quiet"):
                assert getattr(found[0], name) == getattr(options, name)
            assert not hasattr(found[0], "seed")

    check("--steps 4 --low-memory --size 64x64")
    flags = st.sampled_from([*filter(None, (each.flag for each in PARAMETERS.values())), "--output", "--force", "-o"])
    words = st.one_of(flags, st.text(max_size=6), st.sampled_from(["4", "0.5", "64x64", "ddim", "'", '"', "--", "="]))
    run(count, check, text=st.lists(words, max_size=6).map(" ".join) | st.text(max_size=20))


WORDS = ("a red circle ", "word ", "'s", "<|startoftext|>", "<|endoftext|>", "</w>", "\u00a0", "\ufb01", "\u0130", "ß")
pieces = st.text(max_size=12) | st.sampled_from((*TEXTS, *WORDS, "\ud55c", "\ufffd", "0123"))
prompts = st.lists(pieces, max_size=40).map("".join)


@family(60)
def test_a_prompt_has_the_tokens_that_transformers_gives_it(
    count: int, shapes_bundle: Path, shapes_checkpoint: Path
) -> None:
    ours, theirs = (
        Tokenizer(Bundle(shapes_bundle)),
        CLIPTokenizer.from_pretrained(shapes_checkpoint / "prior" / "tokenizer"),
    )

    def check(prompt: str) -> None:
        if refused(lambda: Request.of("text2img", prompt=prompt), InputError):
            return
        expected = theirs([prompt], padding="max_length", max_length=theirs.model_max_length, truncation=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            ids, mask = ours([prompt])
        np.testing.assert_array_equal(ids, expected["input_ids"])
        np.testing.assert_array_equal(mask, np.array(expected["attention_mask"], bool))

    run(count, check, prompt=prompts)
