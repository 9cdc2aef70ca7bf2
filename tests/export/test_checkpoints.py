"""What is read of a checkpoint, and every refusal: one sentence that says what was wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file

from kandinsky22.errors import CheckpointError
from kandinsky22_export import checkpoints
from kandinsky22_export.checkpoints import open_checkpoint
from tests import tiny

DECODER = {"unet", "movq"}
OTHERS = {"controlnet": "unet_controlnet", "inpaint": "unet_inpaint"}
PRIOR = {"prior", "text_encoder", "image_encoder"}


@pytest.fixture
def copy(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A copy of the tiny checkpoint that a test may alter."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def read_everything(source: str, **options: Any) -> None:
    checkpoint = open_checkpoint(source, **options)
    for network in checkpoint.networks.values():
        network.fetch()
    for network in checkpoint.networks.values():
        network.load()
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer()


def refusal(source: Path | str, **options: Any) -> str:
    """The message with which a checkpoint is refused: when it is opened or when its weights are fetched or loaded."""
    with pytest.raises(CheckpointError) as caught:
        read_everything(str(source), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def same(network: checkpoints.Network, module: torch.nn.Module, tolerance: float = 0) -> None:
    state = network.load().state_dict()
    expected = module.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=tolerance, atol=tolerance)


def test_the_card_finds_the_prior_beside_the_decoder(tiny_checkpoint: Path, tiny_parts: tiny.Parts) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint / "decoder"))
    assert checkpoint.networks.keys() == DECODER | PRIOR
    assert checkpoint.source == {"decoder": {"folder": "decoder"}, "prior": {"folder": "prior"}}
    assert checkpoint.schedulers["prior"]["clip_sample_range"] == 5.0
    assert checkpoint.schedulers["decoder"]["variance_type"] == "learned_range"
    for name in DECODER | PRIOR:
        same(checkpoint.networks[name], getattr(tiny_parts, name))
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer()("a red circle").input_ids == tiny_parts.tokenizer("a red circle").input_ids


def test_prior_option_wins_over_the_card(copy: Path) -> None:
    shutil.move(copy / "prior", copy / "elsewhere")
    (copy / "decoder" / "README.md").write_text("---\nprior: someone/else\n---\n")
    checkpoint = open_checkpoint(str(copy / "decoder"), prior=str(copy / "elsewhere"))
    assert checkpoint.source["prior"] == {"folder": "elsewhere"}


@pytest.mark.parametrize(
    "card", [None, "# No front matter\n", "---\nlicense: apache-2.0\n---\n", "---\nprior: []\n---\n"]
)
def test_a_decoder_without_a_prior(copy: Path, card: str | None) -> None:
    readme = copy / "decoder" / "README.md"
    readme.unlink() if card is None else readme.write_text(card)
    checkpoint = open_checkpoint(str(copy / "decoder"))
    assert checkpoint.networks.keys() == DECODER
    assert checkpoint.tokenizer is None
    assert checkpoint.schedulers.keys() == {"decoder"}


def test_a_prior_alone(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint / "prior"))
    assert checkpoint.networks.keys() == PRIOR
    assert checkpoint.schedulers.keys() == {"prior"}


def test_decoders_of_other_tasks_join_the_first(tiny_checkpoint: Path, tiny_parts: tiny.Parts) -> None:
    others = {role: str(tiny_checkpoint / role) for role in OTHERS}
    checkpoint = open_checkpoint(str(tiny_checkpoint / "decoder"), **others)
    assert checkpoint.networks.keys() == DECODER | PRIOR | set(OTHERS.values())
    assert checkpoint.source.keys() == checkpoint.schedulers.keys() == {"decoder", "prior", *OTHERS}
    assert checkpoint.source["inpaint"] == {"folder": "inpaint"}
    assert checkpoint.movqs.keys() == set(others.values())
    for name in OTHERS.values():
        same(checkpoint.networks[name], getattr(tiny_parts, name))


@pytest.mark.parametrize("role", OTHERS)
def test_a_decoder_of_another_task_is_a_source_itself(tiny_checkpoint: Path, tiny_parts: tiny.Parts, role: str) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint / role))
    assert checkpoint.networks.keys() == {OTHERS[role], "movq"} | PRIOR
    assert checkpoint.schedulers.keys() == {role, "prior"}
    assert checkpoint.movqs == {}
    same(checkpoint.networks[OTHERS[role]], getattr(tiny_parts, OTHERS[role]))


def test_a_decoder_given_as_another_is_refused(tiny_checkpoint: Path) -> None:
    decoder, controlnet, inpaint, prior = (
        str(tiny_checkpoint / name) for name in ("decoder", "controlnet", "inpaint", "prior")
    )
    assert "--controlnet, but its UNet is one for decoder" in refusal(decoder, controlnet=decoder)
    assert "--controlnet, but its UNet is one for inpaint" in refusal(decoder, controlnet=inpaint)
    assert "--inpaint, but it is a prior" in refusal(decoder, inpaint=prior)
    assert f"is one for controlnet itself: leave out --controlnet {controlnet}." in refusal(
        controlnet, controlnet=controlnet
    )


def test_a_hint_needs_eight_pixels_a_latent(tmp_path: Path) -> None:
    tiny.parts(movq_channels=(32, 64)).save(tmp_path)
    assert "one latent of 2 pixels a side; a ControlNet's hint needs 8" in refusal(tmp_path / "controlnet")


DIFFERENT: dict[str, tuple[str, dict[str, Any], str]] = {
    "movq": ("inpaint/movq/config.json", {"norm_type": "group"}, r"another one .*norm_type is 'group', not 'spatial'"),
    "embedding": ("inpaint/unet/config.json", {"encoder_hid_dim": 50}, "inpaint unet's encoder_hid_dim is 50; 48 is"),
    "scheduler": (
        "inpaint/scheduler/scheduler_config.json",
        {"_class_name": "Euler"},
        "scheduler of the inpaint is a 'E",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_decoders_that_do_not_belong_together(copy: Path, case: str) -> None:
    file, changes, message = DIFFERENT[case]
    edit(copy / file, **changes)
    assert re.search(message, refusal(copy / "decoder", inpaint=str(copy / "inpaint")))


def test_a_config_that_leaves_out_what_is_usual_is_the_same(copy: Path) -> None:
    edit(copy / "inpaint" / "movq" / "config.json", act_fn=None, norm_num_groups=None, sample_size=7)
    assert open_checkpoint(str(copy / "decoder"), inpaint=str(copy / "inpaint")).movqs.keys() == {str(copy / "inpaint")}


def test_a_combined_checkpoint(tiny_parts: tiny.Parts, tmp_path: Path) -> None:
    tiny_parts.combined_pipeline().save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.networks.keys() == DECODER | PRIOR
    same(checkpoint.networks["prior"], tiny_parts.prior)
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer().pad_token_id == tiny_parts.tokenizer.pad_token_id


def test_shards(tiny_parts: tiny.Parts, tmp_path: Path) -> None:
    tiny_parts.save(tmp_path, max_shard_size="100KB")
    assert len(list((tmp_path / "decoder" / "unet").glob("*-of-*.safetensors"))) > 3
    checkpoint = open_checkpoint(str(tmp_path / "decoder"))
    for name in DECODER | PRIOR:
        same(checkpoint.networks[name], getattr(tiny_parts, name))
    next((tmp_path / "prior" / "text_encoder").glob("*-00002-of-*.safetensors")).unlink()
    assert "00002" in refusal(tmp_path / "prior")


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "100KB"}])
def test_the_fp16_variant_is_read_where_there_are_no_full_weights(
    tiny_parts: tiny.Parts, tmp_path: Path, shards: dict[str, str]
) -> None:
    tiny.parts().half().save(tmp_path, variant="fp16", **shards)
    checkpoint = open_checkpoint(str(tmp_path / "decoder"))
    for name in DECODER | PRIOR:
        same(checkpoint.networks[name], getattr(tiny_parts, name), tolerance=2e-3)
        assert {value.dtype for value in checkpoint.networks[name].load().parameters()} == {torch.float32}
    assert "no safetensors of the full weights" in refusal(tmp_path / "decoder", variant="none")


def test_the_variant_decides_where_both_are_there(tiny_parts: tiny.Parts, tmp_path: Path) -> None:
    tiny_parts.save(tmp_path)
    tiny.parts(seed=1).half().save(tmp_path, variant="fp16")
    for variant, seed in ((None, 0), ("none", 0), ("fp16", 1)):
        checkpoint = open_checkpoint(str(tmp_path / "decoder"), variant=variant)
        same(checkpoint.networks["movq"], tiny.parts(seed).movq, tolerance=2e-3)


@pytest.mark.parametrize("pickled", ["decoder/unet/diffusion_pytorch_model", "prior/text_encoder/model"])
def test_pickled_weights_are_refused(copy: Path, pickled: str) -> None:
    weights = copy / f"{pickled}.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    message = refusal(copy / "decoder")
    assert "has no safetensors" in message
    assert "(.bin) are not read" in message


@pytest.mark.parametrize("name", ["unet", "movq"])
def test_truncated_weights(copy: Path, name: str) -> None:
    weights = copy / "decoder" / name / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert f"{weights} is damaged or cut short" in refusal(copy / "decoder")


@pytest.mark.parametrize("path", ["decoder/unet/diffusion_pytorch_model", "prior/image_encoder/model"])
@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_do_not_fit_their_config(copy: Path, path: str, change: str) -> None:
    weights = copy / f"{path}.safetensors"
    state = load_file(weights)
    name = sorted(state)[2]
    if change == "missing":
        del state[name]
    else:
        state[name] = torch.zeros(3, 5)
    save_file(state, weights, metadata={"format": "pt"})
    message = refusal(copy / "decoder")
    assert str(weights.parent) in message
    assert name in message


NOTHING: dict[str, Callable[[Path], object]] = {
    "There is no folder": lambda path: path / "nowhere" / "at" / "all",
    "is a file": lambda path: path / "decoder" / "model_index.json",
    "model_index.json: a checkpoint in diffusers' layout has one": lambda path: path,
}


@pytest.mark.parametrize("message", NOTHING)
def test_what_is_no_checkpoint(tiny_checkpoint: Path, message: str) -> None:
    assert message in refusal(str(NOTHING[message](tiny_checkpoint)))


BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "pipeline": ("decoder/model_index.json", {"_class_name": "StableDiffusionPipeline"}, "holds a 'StableDiffusionPip"),
    "2.1": ("decoder/model_index.json", {"_class_name": "KandinskyInpaintPipeline"}, "cannot be exported"),
    "unet class": ("decoder/unet/config.json", {"_class_name": "UNet2DModel"}, "expected a UNet2DConditionModel"),
    "text class": ("prior/text_encoder/config.json", {"architectures": ["CLIPModel"]}, "is a 'CLIPModel'; expected"),
    "text unet": (
        "decoder/unet/config.json",
        {"addition_embed_type": "text"},
        'addition_embed_type is "text", expected one of image',
    ),
    "hint": (
        "decoder/unet/config.json",
        {"addition_embed_type": "image_hint"},
        "controlnet unet's in_channels is 4; 8",
    ),
    "in_channels": ("decoder/unet/config.json", {"in_channels": 10}, "unet's in_channels is 10; 4 is needed"),
    "inpainting": ("decoder/unet/config.json", {"in_channels": 9}, "other shapes: conv_in.weight"),
    "out_channels": ("decoder/unet/config.json", {"out_channels": 4}, "out_channels is 4"),
    "no out_channels": (
        "decoder/unet/config.json",
        {"out_channels": None},
        "unet/config.json does not fit: out_channels is missing",
    ),
    "codebook": ("decoder/movq/config.json", {"lookup_from_codebook": True}, "codebook"),
    "text size": ("prior/prior/config.json", {"embedding_dim": 64}, "hidden_size is 48; 64 is needed"),
    "scheduler": ("decoder/scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, "is a 'PNDMScheduler"),
    "option": ("decoder/scheduler/scheduler_config.json", {"beta_schedule": "cosine9"}, "not supported: .*cosine9"),
    "image size": ("prior/image_encoder/config.json", {"projection_dim": 64}, "projection_dim is 64; 48 is needed"),
    "crop": ("prior/image_processor/preprocessor_config.json", {"crop_size": 64}, "crops to 64 x 64; 32 pixels a side"),
    "resize": (
        "prior/image_processor/preprocessor_config.json",
        {"size": {"height": 32}},
        "size.height is not known, expected only shortest_edge",
    ),
    "resample": (
        "prior/image_processor/preprocessor_config.json",
        {"resample": 2},
        "resample is 2, expected 3",
    ),
    "rescale": (
        "prior/image_processor/preprocessor_config.json",
        {"rescale_factor": 1},
        "rescale_factor is 1, expected 1/255",
    ),
    "normalize": (
        "prior/image_processor/preprocessor_config.json",
        {"do_normalize": False},
        "do_normalize is false, expected true",
    ),
    "mean": (
        "prior/image_processor/preprocessor_config.json",
        {"image_mean": [0.5]},
        "image_mean is a list of 1, expected a list of 3",
    ),
    "nan": ("prior/image_processor/preprocessor_config.json", {"image_mean": [1, 1, "x"]}, r"\[2\] is \"x\", expected"),
    "std": (
        "prior/image_processor/preprocessor_config.json",
        {"image_std": [1, 0, 1]},
        r"image_std\[1\] is 0, expected",
    ),
    "unclip": ("prior/scheduler/scheduler_config.json", {"prediction_type": "v"}, "scheduler of the prior"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_checkpoints_that_are_something_else(copy: Path, case: str) -> None:
    file, changes, message = BROKEN[case]
    edit(copy / file, **changes)
    assert re.search(message, refusal(copy / "decoder"))


@pytest.mark.parametrize(
    "part", ["decoder/movq", "prior/text_encoder", "decoder/scheduler", "prior/tokenizer", "prior/image_processor"]
)
def test_a_missing_component(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    assert str(copy / part) in refusal(copy / "decoder")


def test_a_broken_config(copy: Path) -> None:
    (copy / "decoder" / "unet" / "config.json").write_text("{")
    assert "config.json could not be read" in refusal(copy / "decoder")


def test_a_broken_tokenizer(copy: Path) -> None:
    (copy / "prior" / "tokenizer" / "tokenizer.json").write_text("{}")
    assert "is no CLIP tokenizer" in refusal(copy / "prior")


def test_cards_that_lead_nowhere(copy: Path) -> None:
    card = copy / "decoder" / "README.md"
    card.write_text("---\nprior: ../nowhere/there\n---\n")
    assert "names '../nowhere/there' as its prior" in refusal(copy / "decoder")
    card.write_text("---\nprior: [\n---\n")
    assert "The front matter of" in refusal(copy / "decoder")


def test_priors_and_decoders_are_not_mixed_up(tiny_checkpoint: Path) -> None:
    decoder, prior = (str(tiny_checkpoint / name) for name in ("decoder", "prior"))
    assert "it is a decoder" in refusal(decoder, prior=decoder)
    assert "has a prior of its own" in refusal(prior, prior=prior)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tmp_path: Path) -> list[tuple[str, str | None, str]]:
    """A Hub with the repositories me/decoder and me/prior, which gives only the files that are asked for."""
    calls: list[tuple[str, str | None, str]] = []

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        snapshot = tmp_path / repo / "snapshots" / "0123abc"
        for path in (tiny_checkpoint / repo.split("/")[1]).rglob("*"):
            name = path.relative_to(tiny_checkpoint / repo.split("/")[1])
            if path.is_file() and any(Path(name).match(p) or name.as_posix() == p for p in allow_patterns):
                calls.append((repo, revision, name.as_posix()))
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / name)
                if name.name == "README.md":
                    (snapshot / name).write_text("---\nprior:\n- me/prior\n---\n")
        return str(snapshot)

    monkeypatch.setattr(checkpoints.huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_the_hub(hub: list[tuple[str, str | None, str]], tiny_parts: tiny.Parts) -> None:
    checkpoint = open_checkpoint("me/decoder", revision="v1")
    assert checkpoint.source == {
        "decoder": {"hub": "me/decoder", "revision": "0123abc"},
        "prior": {"hub": "me/prior", "revision": "0123abc"},
    }
    assert {revision for repo, revision, _ in hub if repo == "me/decoder"} == {"v1"}
    assert {revision for repo, revision, _ in hub if repo == "me/prior"} == {None}
    assert not [file for _, _, file in hub if file.endswith(".safetensors")]
    hub.clear()
    same(checkpoint.networks["movq"], tiny_parts.movq)
    assert hub == [("me/decoder", "0123abc", "movq/diffusion_pytorch_model.safetensors")]
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer()("red").input_ids == tiny_parts.tokenizer("red").input_ids


RESPONSE = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "me/decoder is gated: accept its terms on the Hub"),
        (RepositoryNotFoundError, "me/decoder is neither a folder here nor a repository on the Hub that you may read"),
        (RevisionNotFoundError, "me/decoder on the Hub has no revision 'v2'."),
        (LocalEntryNotFoundError, "me/decoder is no folder here and could not be fetched from the Hub: first line"),
        (ConnectionError, "me/decoder is no folder here and could not be fetched from the Hub: first line"),
    ],
)
def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, error: Any, message: str) -> None:
    def snapshot_download(*arguments: Any, **keywords: Any) -> str:
        options = {"response": RESPONSE} if issubclass(error, HfHubHTTPError) else {}
        raise error("first line.\nsecond line", **options)

    monkeypatch.setattr(checkpoints.huggingface_hub, "snapshot_download", snapshot_download)
    assert message in refusal("me/decoder", revision="v2")
