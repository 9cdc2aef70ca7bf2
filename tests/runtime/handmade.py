"""A whole bundle of four little graphs, written in a moment without torch: every input reaches every output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import tokenizers
from onnx import TensorProto

from kandinsky22.arrays import Array
from kandinsky22.bundle.bundle import MANIFEST
from kandinsky22.bundle.checksums import sha256
from kandinsky22.bundle.manifest import (
    Component,
    FileRecord,
    Geometry,
    ImageProcessor,
    Limits,
    Manifest,
    Role,
    TensorSpec,
    Text,
)
from kandinsky22.bundle.reading import CONSTANTS, TOKENIZER

TYPES = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64", TensorProto.BOOL: "bool"}
STATE = {"latents": "latents_next", "x0_before": "x0"}
PER_STEP = ("timestep", "coefficients", "noise", "known_scales", "forecast_weights")
ROLES = {
    "text_encoder": (Role.TEXT_ENCODER, None),
    "image_encoder": (Role.IMAGE_ENCODER, None),
    "prior_step": (Role.PRIOR, "prior"),
    "decoder_step": (Role.DECODER, "decoder"),
    "decoder_step_controlnet": (Role.CONTROLNET_DECODER, "controlnet"),
    "decoder_step_inpaint": (Role.INPAINT_DECODER, "inpaint"),
    "decoder_forecast": (Role.DECODER_FORECAST, "decoder"),
    "decoder_forecast_controlnet": (Role.CONTROLNET_FORECAST, "controlnet"),
    "decoder_forecast_inpaint": (Role.INPAINT_FORECAST, "inpaint"),
    "decoder_step_shallow": (Role.DECODER_SHALLOW, "decoder"),
    "decoder_step_shallow_controlnet": (Role.CONTROLNET_SHALLOW, "controlnet"),
    "decoder_step_shallow_inpaint": (Role.INPAINT_SHALLOW, "inpaint"),
    "hint_encoder": (Role.HINT_ENCODER, None),
    "movq_encoder": (Role.MOVQ_ENCODER, None),
    "movq_decoder": (Role.MOVQ_DECODER, None),
}
"""What each graph is for, and whose scheduler runs it."""

SCHEDULER = """
  a_x, a_m, b_0, b_x, b_m, b_h, log_min, log_max, gate = Split <axis = 0, num_outputs = 9> (coefficients)
  from_x = Mul (a_x, latents)
  from_m = Mul (a_m, m)
  raw = Add (from_x, from_m)
  floor, ceiling, divide = Split <axis = 0, num_outputs = 3> (thresholding)
  sunk = Neg (floor)
  low = Max (raw, sunk)
  x0 = Min (low, floor)
  next_0 = Mul (b_0, x0)
  next_x = Mul (b_x, latents)
  next_m = Mul (b_m, m)
  next_h = Mul (b_h, x0_before)
  spread = Exp (log_min)
  sigma = Mul (spread, gate)
  next_n = Mul (sigma, noise)
  latents_next = Sum (next_0, next_x, next_m, next_h, next_n)
"""

DECODER_STEP = f"""
<ir_version: 10, opset_import: ["" : 20]>
decoder_step (
  float[B,4,h,w] latents, float[B,4,h,w] x0_before, float[1] timestep, float[9] coefficients, float[B,4,h,w] noise,
  float[G] guidance, float[3] thresholding, int64[2] ranks, float[1] rank_weight, float[G,B,6] image_embeds
) => (float[B,4,h,w] latents_next, float[B,4,h,w] x0) {{
  last = Constant <value_ints = [2]> ()
  first = Constant <value_ints = [0]> ()
  column = Constant <value_ints = [-1, 1]> ()
  pictures = Constant <value_ints = [-1, 1, 1, 1]> ()
  one = Constant <value_ints = [1]> ()
  small = Constant <value_floats = [0.001]> ()
  mean = ReduceMean <keepdims = 0> (image_embeds, last)
  weights = Reshape (guidance, column)
  weighted = Mul (mean, weights)
  pull = ReduceSum <keepdims = 0> (weighted, first)
  pulled = Reshape (pull, pictures)
  places = Cast <to = 1> (ranks)
  place = ReduceSum <keepdims = 1> (places)
  flat = Reshape (place, one)
  ranked = Mul (flat, rank_weight)
  time = Add (timestep, ranked)
  late = Mul (time, small)
  sum = Sum (latents, pulled, late)
  m = Tanh (sum)
{SCHEDULER}
}}
"""

PRIOR_STEP = f"""
<ir_version: 10, opset_import: ["" : 20]>
prior_step (
  float[B,6] latents, float[B,6] x0_before, float[1] timestep, float[9] coefficients, float[B,6] noise,
  float[G] guidance, float[3] thresholding, float[G,B,6] text_embeds, float[G,B,8,3] text_hidden, bool[G,B,8] text_mask
) => (float[B,6] latents_next, float[B,6] x0) {{
  last = Constant <value_ints = [2]> ()
  both = Constant <value_ints = [2, 3]> ()
  first = Constant <value_ints = [0]> ()
  branches = Constant <value_ints = [-1, 1, 1]> ()
  words = Constant <value_ints = [0, 0, 8, 1]> ()
  single = Constant <value_ints = [0, 0, 1]> ()
  small = Constant <value_floats = [0.001]> ()
  seen = Cast <to = 1> (text_mask)
  seen_words = Reshape (seen, words)
  read = Mul (text_hidden, seen_words)
  hidden = ReduceMean <keepdims = 0> (read, both)
  hidden_row = Reshape (hidden, single)
  text = Add (text_embeds, hidden_row)
  weights = Reshape (guidance, branches)
  weighted = Mul (text, weights)
  pull = ReduceSum <keepdims = 0> (weighted, first)
  late = Mul (timestep, small)
  sum = Sum (latents, pull, late)
  m = Tanh (sum)
{SCHEDULER}
}}
"""

TEXT_ENCODER = """
<ir_version: 10, opset_import: ["" : 20]>
text_encoder (int64[B,8] input_ids) => (float[B,6] text_embeds, float[B,8,3] text_hidden) {
  small = Constant <value_floats = [0.01]> ()
  ids = Cast <to = 1> (input_ids)
  scaled = Mul (ids, small)
  waves = Sin (scaled)
  start = Constant <value_ints = [0]> ()
  end = Constant <value_ints = [6]> ()
  axis = Constant <value_ints = [1]> ()
  text_embeds = Slice (waves, start, end, axis)
  words = Constant <value_ints = [0, 8, 1]> ()
  column = Reshape (waves, words)
  steps = Constant <value_floats = [1.0, 2.0, 3.0]> ()
  text_hidden = Mul (column, steps)
}
"""

MOVQ_DECODER = """
<ir_version: 10, opset_import: ["" : 20]>
movq_decoder (float[B,4,h,w] latents) => (float[B,"8*h","8*w",3] image) {
  start = Constant <value_ints = [0]> ()
  end = Constant <value_ints = [3]> ()
  axis = Constant <value_ints = [1]> ()
  colours = Slice (latents, start, end, axis)
  scales = Constant <value_floats = [1.0, 1.0, 8.0, 8.0]> ()
  large = Resize <mode = "nearest"> (colours, , scales)
  values = Sigmoid (large)
  image = Transpose <perm = [0, 2, 3, 1]> (values)
}
"""

IMAGE_ENCODER = """
<ir_version: 10, opset_import: ["" : 20]>
image_encoder (float[B,3,32,32] pixel_values) => (float[B,6] image_embeds) {
  plane = Constant <value_ints = [2, 3]> ()
  mean = ReduceMean <keepdims = 0> (pixel_values, plane)
  most = ReduceMax <keepdims = 0> (pixel_values, plane)
  image_embeds = Concat <axis = 1> (mean, most)
}
"""

MOVQ_ENCODER = """
<ir_version: 10, opset_import: ["" : 20]>
movq_encoder (float[B,"8*h","8*w",3] image) => (float[B,4,h,w] latents) {
  channels = Transpose <perm = [0, 3, 1, 2]> (image)
  small = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (channels)
  axis = Constant <value_ints = [1]> ()
  grey = ReduceMean <keepdims = 1> (small, axis)
  latents = Concat <axis = 1> (small, grey)
}
"""
HINT_ENCODER = (
    MOVQ_ENCODER.replace("movq_encoder", "hint_encoder").replace("image)", "hint)").replace("latents", "hint_latents")
)
CONTROLNET_STEP = (
    DECODER_STEP.replace("decoder_step (", "decoder_step_controlnet (")
    .replace("image_embeds\n)", "image_embeds,\n  float[B,4,h,w] hint_latents\n)")
    .replace("(latents, pulled, late)", "(latents, pulled, late, hint_latents)")
)


def _pasting(step: str, last: str) -> str:
    """A step, whose last input is `last`, with what is known pasted into what it gives."""
    known = "float[B,1,h,w] mask, float[B,4,h,w] known, float[B,4,h,w] known_noise, float[2] known_scales"
    return (
        step.replace(f"{last}\n)", f"{last},\n  {known}\n)")
        .replace(
            "latents_next = Sum",
            """signal, spoil = Split <axis = 0, num_outputs = 2> (known_scales)
  clean = Mul (signal, known)
  noisy = Mul (spoil, known_noise)
  noised = Add (clean, noisy)
  there = Cast <to = 9> (mask)
  following = Sum""",
        )
        .replace("next_h, next_n)\n", "next_h, next_n)\n  latents_next = Where (there, noised, following)\n")
    )


INPAINT_STEP = _pasting(
    DECODER_STEP.replace("decoder_step (", "decoder_step_inpaint (").replace(
        "sum = Sum (latents, pulled, late)", "seen = Mul (known, mask)\n  sum = Sum (latents, pulled, late, seen)"
    ),
    "image_embeds",
)
FORECAST = f"""
<ir_version: 10, opset_import: ["" : 20]>
decoder_forecast (
  float[B,4,h,w] latents, float[B,4,h,w] x0_before, float[B,4,h,w] model_0, float[B,4,h,w] model_1,
  float[2] forecast_weights, float[9] coefficients, float[B,4,h,w] noise, float[3] thresholding
) => (float[B,4,h,w] latents_next, float[B,4,h,w] x0) {{
  weight_0, weight_1 = Split <axis = 0, num_outputs = 2> (forecast_weights)
  from_0 = Mul (weight_0, model_0)
  from_1 = Mul (weight_1, model_1)
  m = Add (from_0, from_1)
{SCHEDULER}
}}
"""
"""Without the inputs that say where a quantile is: no little step looks for one."""

GRAPHS = {
    "text_encoder": TEXT_ENCODER,
    "prior_step": PRIOR_STEP,
    "decoder_step": DECODER_STEP,
    "movq_decoder": MOVQ_DECODER,
}
MORE_GRAPHS = {
    "image_encoder": IMAGE_ENCODER,
    "movq_encoder": MOVQ_ENCODER,
    "hint_encoder": HINT_ENCODER,
    "decoder_step_controlnet": CONTROLNET_STEP,
    "decoder_step_inpaint": INPAINT_STEP,
}
"""What the tasks that begin from pictures need beside GRAPHS."""


def handing_out(step: str) -> str:
    """A step that also gives its network's output, as `model`."""
    return step.replace("float[B,4,h,w] x0)", "float[B,4,h,w] x0, float[B,4,h,w] model)").replace(
        "m = Tanh (sum)", "m = Tanh (sum)\n  model = Identity (m)"
    )


SKIPPING_GRAPHS = {
    **{name: handing_out(text) if name.startswith("decoder") else text for name, text in GRAPHS.items()},
    **{name: handing_out(text) if name.startswith("decoder") else text for name, text in MORE_GRAPHS.items()},
    "decoder_forecast": FORECAST,
    "decoder_forecast_controlnet": FORECAST.replace("decoder_forecast (", "decoder_forecast_controlnet ("),
    "decoder_forecast_inpaint": _pasting(
        FORECAST.replace("decoder_forecast (", "decoder_forecast_inpaint ("), "thresholding"
    ),
}
"""All of them, of which the decoders' steps can be forecast."""
_OVER_FEATURES = "deep = ReduceMean <keepdims = 0> (features, first)\n  sum = Sum (deep, "
_FEATURES = """axes = Constant <value_ints = [2, 3, 4]> ()
  wide = Unsqueeze (mean, axes)
  features = Add (wide, latents)
  """


def handing_out_features(step: str) -> str:
    """A step that hands out its network's output, and also gives features that it has of each branch."""
    return step.replace("x0, float[B,4,h,w] model)", "x0, float[B,4,h,w] model, float[G,B,4,h,w] features)").replace(
        "sum = Sum (", _FEATURES + _OVER_FEATURES
    )


def over_features(name: str, step: str) -> str:
    """The shallow step `name` of a step that hands out its network's output: it is given the features."""
    shallow = step.replace(f"{name.replace('_shallow', '')} (", f"{name} (").replace("sum = Sum (", _OVER_FEATURES)
    return shallow.replace("\n) => (", ", float[G,B,4,h,w] features\n) => (")


SHALLOW_GRAPHS = {
    **SKIPPING_GRAPHS,
    **{name: handing_out_features(text) for name, text in SKIPPING_GRAPHS.items() if name.startswith("decoder_step")},
    **{
        name: over_features(name, SKIPPING_GRAPHS[name.replace("_shallow", "")])
        for name in ROLES
        if name.startswith("decoder_step_shallow")
    },
}
"""The same, with shallow steps."""
SCHEDULERS: dict[str, dict[str, Any]] = {
    "prior": {
        "_class_name": "UnCLIPScheduler",
        "num_train_timesteps": 1000,
        "variance_type": "fixed_small_log",
        "clip_sample": True,
        "clip_sample_range": 5.0,
        "prediction_type": "sample",
    },
    "decoder": {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "variance_type": "fixed_small",
        "clip_sample": False,
        "prediction_type": "epsilon",
        "thresholding": True,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 2.0,
    },
}


def write_bundle(folder: Path, graphs: Mapping[str, str] = GRAPHS) -> Path:
    """Write the bundle of `graphs` into `folder`, which is made."""
    (folder / "onnx").mkdir(parents=True)
    components = {name: _write_graph(folder, name, text) for name, text in graphs.items()}
    _write_tokenizer(folder / TOKENIZER)
    np.savez(
        folder / CONSTANTS,
        zero_image_embeds=np.linspace(-1, 1, 6, dtype=np.float32)[None],
        clip_mean=np.full((1, 6), 0.1, np.float32),
        clip_std=np.full((1, 6), 1.5, np.float32),
    )
    files = [TOKENIZER, CONSTANTS, *(file for component in components.values() for file in component.files)]
    manifest = Manifest(
        name="handmade",
        precision="fp32",
        opset=20,
        source={},
        components=components,
        files={file: FileRecord((folder / file).stat().st_size, sha256(folder / file)) for file in files},
        schedulers=SCHEDULERS | dict.fromkeys(("controlnet", "inpaint"), SCHEDULERS["decoder"]),
        text=Text(max_length=8, pad_token_id=0),
        geometry=Geometry(
            embedding_dim=6,
            latent_channels=4,
            downscale=8,
            learned_variance=False,
            default_size=128,
            image_size=32,
        ),
        image_processor=ImageProcessor(32, 32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), resample="bicubic"),
        limits=Limits(max_size=512, ranks=200),
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


def feeds(steps: int = 6, size: tuple[int, int] = (8, 12), noiseless: bool = False) -> tuple[Any, Any, Any]:
    """State, rows and constants of a loop whose every step differs."""
    draw = np.random.default_rng(steps)
    shape = (2, 4, *size)

    def normal(*wanted: int) -> Array:
        return draw.standard_normal(wanted).astype(np.float32)

    nothing = np.zeros(shape, np.float32)
    return (
        {"latents": normal(*shape), "x0_before": nothing},
        {
            "timestep": np.arange(steps, 0, -1, dtype=np.float32)[:, None] * 100,
            "coefficients": 0.5 * normal(steps, 9),
            "noise": [nothing if noiseless or step == steps - 1 else normal(*shape) for step in range(steps)],
        },
        {
            "guidance": np.array([-3, 4], np.float32),
            "thresholding": np.array([1.5, 1.5, 0], np.float32),
            "ranks": np.array([3, 4]),
            "rank_weight": np.array([0.25], np.float32),
            "image_embeds": normal(2, 2, 6),
        },
    )


def assert_same(one: Mapping[str, Array], other: Mapping[str, Array]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def _write_graph(folder: Path, name: str, text: str) -> Component:
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    file = f"onnx/{name}.onnx"
    onnx.save(model, folder / file)
    role, scheduler = ROLES[name]
    inputs = tuple(map(_spec, model.graph.input))
    return Component(
        role=role,
        files=(file,),
        inputs=inputs,
        outputs=tuple(map(_spec, model.graph.output)),
        precision="fp32",
        parameters=0,
        scheduler=scheduler,
        state=STATE if scheduler else {},
        per_step=tuple(spec.name for spec in inputs if scheduler and spec.name in PER_STEP),
    )


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorSpec(value.name, TYPES[tensor.elem_type], shape)


def _write_tokenizer(path: Path) -> None:
    words = ["<pad>", "<unk>", "a", "red", "blue", "green", "circle", "star"]
    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
