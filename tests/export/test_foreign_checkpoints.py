"""Checkpoints of somebody who means no good: nothing is built, fetched, followed or waited for on their word."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kandinsky22.errors import CheckpointError
from kandinsky22_export.architectures.configs import ProcessorConfig, fields_of
from kandinsky22_export.architectures.kandinsky_2_2 import KINDS, Kind
from kandinsky22_export.checkpoints import Checkpoint, open_checkpoint
from kandinsky22_export.tokenizer import write_tokenizer
from tests.export.test_checkpoints import edit

UNET, MOVQ, SCHEDULER = (
    "decoder/unet/config.json",
    "decoder/movq/config.json",
    "decoder/scheduler/scheduler_config.json",
)
PRIOR, TEXT, IMAGE = (f"prior/{name}/config.json" for name in ("prior", "text_encoder", "image_encoder"))
PROCESSOR = "prior/image_processor/preprocessor_config.json"
UNET_WEIGHTS = "decoder/unet/diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "prior/text_encoder/model.safetensors"


def opened(folder: Path) -> Checkpoint:
    """The checkpoint with all that is looked at before weights are read."""
    checkpoint = open_checkpoint(str(folder / "decoder"))
    for network in checkpoint.networks.values():
        network.fetch()
    return checkpoint


def refusal(folder: Path, action: Callable[[Path], object] = opened) -> str:
    with pytest.raises(CheckpointError) as caught:
        action(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("kind", [KINDS[name] for name in ("unet", "movq", "prior", "text_encoder", "image_encoder")])
def test_a_schema_has_the_options_of_the_network_and_its_defaults(kind: Kind) -> None:
    """Where Kandinsky 2.2 leaves no choice there is no default, and the config must say it."""
    theirs = kind.cls if not hasattr(kind.cls, "config_class") else kind.cls.config_class
    parameters = inspect.signature(theirs.__init__).parameters
    if theirs is not kind.cls:  # what all of transformers' configs have says nothing of the network
        parameters = {name: each for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    fields = fields_of(kind.config)
    assert fields.keys() == parameters.keys() - {"self"}
    given = {name: value for name, value in fields.items() if value is not dataclasses.MISSING}
    assert given == {name: parameters[name].default for name in given}


@pytest.mark.parametrize("part", [PRIOR, TEXT, IMAGE, UNET, MOVQ])
def test_options_arrive_as_the_file_has_them(forged: Path, part: str) -> None:
    written = json.loads((forged / part).read_text())
    config = open_checkpoint(str(forged / "decoder")).networks[part.split("/")[1]].config
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()} == {
        key: written.get(key, config[key]) for key in config
    }


HUGE = {
    TEXT: ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"),
    IMAGE: ("num_hidden_layers", "hidden_size", "image_size", "projection_dim", "num_attention_heads"),
    PRIOR: ("num_layers", "attention_head_dim", "num_attention_heads", "num_embeddings", "additional_embeddings"),
    UNET: ("layers_per_block", "cross_attention_dim", "encoder_hid_dim", "in_channels", "sample_size"),
    MOVQ: ("layers_per_block", "latent_channels", "num_vq_embeddings", "vq_embed_dim", "norm_num_groups"),
    SCHEDULER: ("num_train_timesteps", "steps_offset"),
}


@pytest.mark.parametrize("number", [10**6 * 2, 10**30])
@pytest.mark.parametrize(("file", "key"), [(file, key) for file, keys in HUGE.items() for key in keys])
def test_a_number_that_would_take_all_memory_is_refused_by_its_name(
    forged: Path, file: str, key: str, number: int
) -> None:
    edit(forged / file, **{key: number})
    assert key in refusal(forged)


def test_numbers_within_their_bounds_ask_for_no_more_than_the_files_have(forged: Path) -> None:
    edit(forged / TEXT, num_hidden_layers=128, intermediate_size=1 << 16)
    assert "text_encoder lacks" in refusal(forged)
    edit(forged / TEXT, num_hidden_layers=128, intermediate_size=1 << 16, vocab_size=1 << 20, hidden_size=96)
    assert "text_encoder lacks" in refusal(forged)


def test_an_architecture_beyond_all_that_were_published_is_refused(forged: Path) -> None:
    edit(forged / MOVQ, block_out_channels=[8192] * 4, layers_per_block=4)
    assert "billion weights; 8 billion are the most" in refusal(forged)


def test_a_network_smaller_than_its_weights_is_refused(forged: Path) -> None:
    """It would load, and compute something else."""
    edit(forged / PRIOR, num_layers=3)
    assert "weights that its config does not know: 'transformer_blocks.3." in refusal(
        forged, lambda folder: opened(folder).networks["prior"].load()
    )


WRONG: list[tuple[str, dict[str, Any], str]] = [
    *[(PROCESSOR, {"image_std": std}, "image_std") for std in ([1, 1, 1e-60], [1, -1, 1], [True] * 3, 0, [1] * 4)],
    *[(PROCESSOR, {"image_mean": mean}, "image_mean") for mean in ([1e39] * 3, ["0"] * 3, [[0], 0, 0], {})],
    *[(PROCESSOR, {"resample": value}, "resample is") for value in (2, 99, "bicubic", True, 3.0)],
    *[(PROCESSOR, {"crop_size": value}, "crop") for value in (65, {"height": 64}, {"height": 65, "width": 64}, [64])],
    (PROCESSOR, {"size": {"shortest_edge": 63}}, "shortest edge of no fewer"),
    (PROCESSOR, {"size": {"shortest_edge": True}}, "size.shortest_edge is true"),
    (UNET, {"quantization_config": {"quant_method": "bitsandbytes"}}, "has quantization_config"),
    (TEXT, {"auto_map": {"AutoModel": "org/x--code.Model"}}, "has auto_map"),
    (UNET, {"_class_name": ["unet", "MyUNet"]}, "_class_name is a list"),
    (TEXT, {"architectures": "xCLIPTextModelWithProjection"}, "architectures is"),
    (TEXT, {"architectures": [{}]}, "architectures[0] is an object"),
    ("decoder/model_index.json", {"_class_name": ["pipe", "KandinskyV22Pipeline"]}, "_class_name is a list"),
    (SCHEDULER, {"_class_name": {}}, "_class_name is an object"),
    (SCHEDULER, {"sigma_min": {"a": []}}, "sigma_min"),
    (SCHEDULER, {"solver_p": "x" * 10**5}, "solver_p"),
    (IMAGE, {"patch_size": 1, "image_size": 65}, "at most 4096 patches"),
    (IMAGE, {"patch_size": 48}, "expected a multiple"),
    (IMAGE, {"hidden_act": "org/x"}, "hidden_act"),
    (UNET, {"down_block_types": ["DownBlock2D"] * 4}, "down_block_types[0]"),
    (UNET, {"block_out_channels": [32] * 9}, "block_out_channels"),
    (UNET, {"norm_num_groups": 7}, "options of the unet's config do not fit"),
    (UNET, {"class_embed_type": "timestep"}, "class_embed_type"),
]


@pytest.mark.parametrize(("file", "changes", "message"), WRONG)
def test_a_value_that_is_none_of_kandinskys_is_refused(
    forged: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit(forged / file, **changes)
    assert message in refusal(forged)


@pytest.mark.parametrize("text", [b"[" * 10**6, b'{"a":' * 10**5, b"\xff\xfe", b'{"a": NaN}', b"9" * 5000, b"[]", b""])
def test_text_that_is_no_object_is_refused(forged: Path, text: bytes) -> None:
    (forged / UNET).write_bytes(text)
    assert "unet/config.json" in refusal(forged)


def test_a_config_of_many_bytes_is_not_read(forged: Path) -> None:
    os.truncate(forged / UNET, 1 << 40)
    assert "larger than 1 MiB" in refusal(forged)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: object) -> None:
        raise AssertionError("somebody wants to talk to another machine")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


@pytest.mark.usefixtures("no_network")
def test_what_would_fetch_or_run_code_is_not_heard(forged: Path) -> None:
    plain = opened(forged).networks["text_encoder"].load().state_dict()
    (forged / "prior" / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/x"}')
    keys = ("_attn_implementation", "attn_implementation", "_attn_implementation_internal", "transformers_weights")
    edit(forged / TEXT, **dict.fromkeys(keys, "org/x"), trust_remote_code=True, torch_dtype="os.system", dtype=["x"])
    edit(forged / TEXT, fusion_config={"patch_embeddings": True}, kernel_config={"a": "org/x"}, extra_files=["/etc/x"])
    edit(forged / "prior" / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["org/x--a.B", None]})
    checkpoint = opened(forged)
    network: Any = checkpoint.networks["text_encoder"].load()
    assert network.config._attn_implementation == "sdpa"
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=0, atol=0)
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer()("a red circle").input_ids


READ = [
    *("decoder/model_index.json", "decoder/README.md", UNET, MOVQ, SCHEDULER, UNET_WEIGHTS),
    *("prior/model_index.json", PRIOR, TEXT, IMAGE, PROCESSOR, TEXT_WEIGHTS, "prior/scheduler/scheduler_config.json"),
    *(f"prior/tokenizer/{name}" for name in ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt")),
    *(f"prior/tokenizer/{name}" for name in ("special_tokens_map.json", "added_tokens.json")),
]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def unix_socket(path: Path) -> None:
    os.mknod(path, 0o140600)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no such files")
@pytest.mark.parametrize("kind", [fifo, device, folder, nothing, unix_socket])
def test_what_is_no_file_is_not_waited_for(forged: Path, kind: Callable[[Path], None]) -> None:
    for name in READ:
        path = forged / name
        aside = path.with_name("aside")
        path.rename(aside) if path.exists() else None
        kind(path)
        message = refusal(forged, lambda each: (opened(each).tokenizer or int)())
        assert str(path) in message, name
        path.rmdir() if path.is_dir() else path.unlink()
        aside.rename(path) if aside.exists() else None
    opened(forged)


def shards(folder: Path, names: dict[str, str]) -> None:
    """The UNet's weights as two shards, with an index that names them as `names` says."""
    weights = folder / UNET_WEIGHTS
    state = load_file(weights)
    weights.unlink()
    first, second = dict(list(state.items())[:9]), dict(list(state.items())[9:])
    index = {}
    for name, part in (("a", first), ("b", second)):
        save_file(part, weights.with_name(f"{name}.safetensors"))
        index |= dict.fromkeys(part, names.get(name, f"{name}.safetensors"))
    path = weights.with_name("diffusion_pytorch_model.safetensors.index.json")
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_shards_that_are_links_are_read(forged: Path, tmp_path: Path) -> None:
    wanted = opened(forged).networks["unet"].load().state_dict()
    shards(forged, {})
    blob = forged / "decoder" / "unet" / "a.safetensors"
    blob.rename(tmp_path / "blob")
    blob.symlink_to(tmp_path / "blob")
    found = opened(forged).networks["unet"].load().state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/passwd", "x/a.safetensors", "..", "a.bin", "a\0.safetensors"]
)
def test_an_index_stays_in_its_folder(forged: Path, name: str) -> None:
    shards(forged, {"a": name})
    assert "expected the name of a file beside it" in refusal(forged)


@pytest.mark.parametrize(
    ("index", "message"),
    [({}, "weight_map is null"), ({"weight_map": {}}, "weight_map is empty"), ({"weight_map": {"a": 1}}, "is 1")],
)
def test_an_index_without_names_is_refused(forged: Path, index: dict[str, Any], message: str) -> None:
    shards(forged, {})
    (forged / "decoder/unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert message in refusal(forged)


def test_a_weight_in_two_shards_is_refused(forged: Path) -> None:
    shards(forged, {})
    state = load_file(forged / "decoder/unet/b.safetensors")
    save_file(state | {"conv_in.bias": torch.zeros(32)}, forged / "decoder/unet/b.safetensors")
    first = load_file(forged / "decoder/unet/a.safetensors")
    save_file(first | {"conv_in.bias": torch.zeros(32)}, forged / "decoder/unet/a.safetensors")
    assert "b.safetensors has 'conv_in.bias', which another file" in refusal(forged)


def header(entries: Any, size: int | None = None) -> bytes:
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return struct.pack("<Q", len(text) if size is None else size) + text


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}


DAMAGED = {
    "empty": b"",
    "short": b"\1\0",
    "huge header": header(b"{}", 2**63),
    "long header": header(b"{}", 10**6),
    "no json": header(b"[" * 1000),
    "deep": header(b'{"a":' * 10**5),
    "no object": header([]),
    "offsets beyond": header(entry(data_offsets=[0, 400])) + bytes(4),
    "offsets back": header(entry(data_offsets=[4, 0])) + bytes(4),
    "negative": header(entry(data_offsets=[-4, 0])) + bytes(4),
    "shape": header(entry(shape=[2])) + bytes(4),
    "shape beyond": header(entry(shape=[2**40, 2**40])) + bytes(4),
    "text for shape": header(entry(shape="x")) + bytes(4),
    "dtype": header(entry(dtype="X9")) + bytes(4),
    "dtype of odd kind": header(entry(dtype=[])) + bytes(4),
    "hole": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + bytes(8),
    "more behind": header(entry()) + bytes(8),
    "nothing": header({}),
    "another": header(entry()) + bytes(4),
    "name": header({"\u001b[2J\n" * 50: {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}) + bytes(4),
    "quantised": header(entry(dtype="I32")) + bytes(4),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_weights_are_one_sentence(forged: Path, damage: str) -> None:
    path = forged / UNET_WEIGHTS
    path.unlink()
    path.write_bytes(DAMAGED[damage])
    message = refusal(forged)
    assert str(path.parent) in message
    assert len(message) < 1000


def test_weights_under_no_name_of_the_network_are_one_sentence(forged: Path) -> None:
    path = forged / TEXT_WEIGHTS
    state = load_file(path)
    path.unlink()
    save_file({f"x\x1b\n{name}" * 9: value for name, value in state.items()}, path)
    assert "text_encoder lacks" in refusal(forged, lambda folder: opened(folder).networks["text_encoder"].load())


def test_numbers_of_positions_in_old_checkpoints_are_left_aside(forged: Path) -> None:
    path = forged / TEXT_WEIGHTS
    state = load_file(path)
    path.unlink()
    save_file(state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    opened(forged).networks["text_encoder"].load()


@pytest.mark.parametrize(
    "card", ["prior: /etc/x\n", "prior: ../..\n", "prior: a/b/c\n", "- prior\n", f"{'[' * 500}\n", "a: b\n" * 10**4]
)
def test_a_card_leads_nowhere_else(forged: Path, card: str) -> None:
    (forged / "decoder" / "README.md").write_text(f"---\n{card}---\n")
    assert refusal(forged)


def test_a_silent_processor_config_is_read_as_transformers_does() -> None:
    import transformers

    usual = transformers.CLIPImageProcessor()
    for name, value in fields_of(ProcessorConfig).items():
        theirs = getattr(usual, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            assert {key: each for key, each in dict(theirs).items() if each is not None} == dataclasses.asdict(value)
        else:
            assert (tuple(theirs) if isinstance(value, tuple) else theirs) == value


def test_a_tokenizer_of_more_words_than_the_text_encoder_is_refused(forged: Path, tmp_path: Path) -> None:
    """A prompt would read weights that are not there."""
    edit(forged / TEXT, vocab_size=600)
    message = refusal(forged, lambda folder: write_tokenizer(open_checkpoint(str(folder / "prior")), tmp_path))
    assert "has the token id 664; the text encoder knows those below 600" in message
    assert not (tmp_path / "tokenizer.json").exists()
