"""Little bundles for tests of plans, written in a moment without torch, and plans that no TensorRT has made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser

from kandinsky22.backends.cuda.gpu import Device
from kandinsky22.backends.tensorrt import library
from kandinsky22.backends.tensorrt.builder import Built, Report
from kandinsky22.bundle.bundle import MANIFEST, Bundle
from kandinsky22.bundle.checksums import sha256
from kandinsky22.bundle.manifest import Component, FileRecord, Geometry, Limits, Manifest, Role, TensorSpec, Text
from kandinsky22.bundle.reading import TOKENIZER

HEADER = '<ir_version: 10, opset_import: ["" : 23]>'
GPU = Device("NVIDIA Test 4090", (8, 9))


def text_encoder(precision: str = "fp16", head: int = 16) -> onnx.ModelProto:
    """Tokens to an embedding, through one attention with heads of the size `head`."""
    wide = 2 * head
    model = onnx.parser.parse_model(f"""{HEADER} text_encoder (
        int64[B,7] input_ids
    ) => (float[B,7,{wide}] text_hidden) {{
        tokens = Gather (table, input_ids)
        q = MatMul (tokens, w_q)
        k = MatMul (tokens, w_k)
        v = MatMul (tokens, w_v)
        mixed = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)
        text_hidden = Cast <to = 1> (mixed)
    }}""")
    return _with_weights(model, precision, table=(11, wide), w_q=(wide, wide), w_k=(wide, wide), w_v=(wide, wide))


def decoder_step(precision: str = "fp16", seed: int = 0) -> onnx.ModelProto:
    """A step of a picture: every input that has a symbolic dimension, and a convolution."""
    network = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    model = onnx.parser.parse_model(f"""{HEADER} decoder_step (
        float[B,4,h,w] latents, float[G] guidance, float[G,B,6] image_embeds
    ) => (float[B,4,h,w] latents_next) {{
        x = Cast <to = {network}> (latents)
        m = Conv <pads = [1, 1, 1, 1]> (x, kernel)
        m_32 = Cast <to = 1> (m)
        first = Constant <value_ints = [0]> ()
        last = Constant <value_ints = [2]> ()
        column = Constant <value_ints = [-1, 1]> ()
        picture = Constant <value_ints = [-1, 1, 1, 1]> ()
        means = ReduceMean <keepdims = 0> (image_embeds, last)
        weights = Reshape (guidance, column)
        weighted = Mul (means, weights)
        pull = ReduceSum <keepdims = 0> (weighted, first)
        pulled = Reshape (pull, picture)
        latents_next = Add (m_32, pulled)
    }}""")
    return _with_weights(model, precision, seed, kernel=(4, 4, 3, 3))


def movq_decoder(precision: str = "fp16", layers: int = 0) -> onnx.ModelProto:
    """Latents to a picture eight times as large; a thousand layers before that take seconds to build."""
    network = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    deep = "".join(
        f"c_{layer} = Conv <pads = [1, 1, 1, 1]> (x_{layer}, kernel_{layer})\nx_{layer + 1} = Sigmoid (c_{layer})\n"
        for layer in range(layers)
    )
    model = onnx.parser.parse_model(
        f"""{HEADER} movq_decoder (
        float[B,4,h,w] latents
    ) => (float[B,"8*h","8*w",3] image) {{
        x_0 = Cast <to = {network}> (latents)
        {deep}
        depth = Conv (x_{layers}, kernel)
        large = DepthToSpace <blocksize = 8, mode = "DCR"> (depth)
        rows = Transpose <perm = [0, 2, 3, 1]> (large)
        image = Cast <to = 1> (rows)
    }}""".replace('"8*h","8*w"', "H,W")
    )
    kernels = {f"kernel_{layer}": (4, 4, 3, 3) for layer in range(layers)}
    return _with_weights(model, precision, kernel=(192, 4, 1, 1), **kernels)


SPECS: dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {
    "text_encoder": (
        (TensorSpec("input_ids", "int64", ("B", 7)),),
        (TensorSpec("text_hidden", "float32", ("B", 7, 32)),),
    ),
    "decoder_step": (
        (
            TensorSpec("latents", "float32", ("B", 4, "h", "w")),
            TensorSpec("guidance", "float32", ("G",)),
            TensorSpec("image_embeds", "float32", ("G", "B", 6)),
        ),
        (TensorSpec("latents_next", "float32", ("B", 4, "h", "w")),),
    ),
    "movq_decoder": (
        (TensorSpec("latents", "float32", ("B", 4, "h", "w")),),
        (TensorSpec("image", "float32", ("B", "8*h", "8*w", 3)),),
    ),
}
STATE = {"decoder_step": {"latents": "latents_next"}}
ROLES = {
    "text_encoder": Role.TEXT_ENCODER,
    "decoder_step": Role.DECODER,
    "movq_decoder": Role.MOVQ_DECODER,
}


def write_bundle(
    folder: Path, models: dict[str, onnx.ModelProto], precision: str = "fp16", **components: Any
) -> Bundle:
    """A bundle of these graphs, with weights in files of their own; `components` replaces what the manifest says."""
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        data = f"{name}.onnx.data"
        (folder / "onnx" / data).unlink(missing_ok=True)
        whole = onnx.ModelProto.FromString(model.SerializeToString())  # saving takes the weights out of what it saves
        onnx.save(whole, folder / "onnx" / f"{name}.onnx", save_as_external_data=True, location=data, size_threshold=0)
    described = {
        name: components.get(name)
        or Component(
            role=ROLES[name],
            files=(f"onnx/{name}.onnx", f"onnx/{name}.onnx.data"),
            inputs=SPECS[name][0],
            outputs=SPECS[name][1],
            precision=precision,
            parameters=1,
            scheduler="decoder" if name in STATE else None,
            state=STATE.get(name, {}),
        )
        for name in models
    }
    files = {
        file: FileRecord((folder / file).stat().st_size, sha256(folder / file))
        for component in described.values()
        for file in component.files
    }
    if "text_encoder" in models:  # which is refused without a tokenizer, although nothing here reads it
        (folder / TOKENIZER).write_text("{}")
        files[TOKENIZER] = FileRecord(2, sha256(folder / TOKENIZER))
    manifest = Manifest(
        name="handmade",
        precision=precision,
        opset=23,
        source={},
        components=described,
        files=files,
        schedulers={"decoder": {}},
        text=Text(max_length=7, pad_token_id=0),
        geometry=Geometry(embedding_dim=6, latent_channels=4, downscale=8, learned_variance=False, default_size=512),
        limits=Limits(max_size=2048, ranks=16),
        image_processor=None,
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle(folder)


def all_models(precision: str = "fp16") -> dict[str, onnx.ModelProto]:
    return {name: make(precision) for name, make in MAKERS.items()}


MAKERS: dict[str, Any] = {"text_encoder": text_encoder, "decoder_step": decoder_step, "movq_decoder": movq_decoder}


def fake_flavour(name: str = "tensorrt-rtx", version: str = "1.7.0") -> library.Flavour:
    """A flavour that knows its targets, and nothing else of TensorRT."""
    targets = dict.fromkeys(("NONE", "CURRENT", "SM75", "SM86", "SM89"))
    return library.Flavour(name, SimpleNamespace(ComputeCapability=SimpleNamespace(__members__=targets)), version)  # type: ignore[arg-type]


def fake_build(plan: bytes, calls: list[str] | None = None) -> Callable[..., Built]:
    """What stands in for `build_plan`: it writes `plan`, and notes in `calls` the name of the graph it was given."""

    def build_plan(
        flavour: library.Flavour, graph: Path, component: Component, shapes: Any, options: Any, sink: Any, *_: Any
    ) -> Built:
        if calls is not None:
            calls.append(graph.stem)
        half = len(plan) // 2
        sink(plan[:half])
        sink(memoryview(plan)[half:])
        return Built(Report({"Half": {"gemm": 3}}, {"Half": 3}, attention=1, fusable=1, fused=1), 1.5, 1 << 20, b"")

    return build_plan


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _with_weights(model: onnx.ModelProto, precision: str, seed: int = 0, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    random = np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = random.standard_normal(shape).astype(np.float16 if precision == "fp16" else np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model
