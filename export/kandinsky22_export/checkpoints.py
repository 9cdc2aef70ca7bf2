"""Hub repository or folder -> configs, and torch modules when they are asked for; safetensors only.

`random_weights.py` makes a `Checkpoint` of the published sizes without any files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import nn

from kandinsky22 import schedulers
from kandinsky22.bundle.manifest import ImageProcessor
from kandinsky22.errors import CheckpointError, InputError, first_line
from kandinsky22_export.architectures import validate
from kandinsky22_export.architectures.kandinsky_2_2 import KINDS, MOVQ, PIPELINES, SCHEDULERS, UNET, UNETS, Kind

CONFIGS = ("model_index.json", "README.md", "*/*config.json", "*/*token*.json", "*/vocab.json", "*/merges.txt")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Network:
    """A network that can be loaded: its config, and `load()` for the module in float32 and evaluation mode.

    `fetch()` makes sure that its weights are there and whole, before anything is exported.
    """

    config: Mapping[str, Any]
    load: Callable[[], nn.Module]
    fetch: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Checkpoint:
    """What was found: networks by the names of KINDS, the tokenizer, and schedulers' configs.

    The schedulers are those of `prior`, `decoder`, `controlnet` and `inpaint`, as far as they are there.
    `image_processor` is the manifest's record of that name. `zero_image` (1, E) stands in where the image encoder is
    not exported; without it the image encoder is loaded to make one. `movqs` are those of the other decoders, by the
    names of their repositories: their weights must be those of the network `movq`.
    """

    source: dict[str, Any]
    networks: dict[str, Network]
    schedulers: dict[str, dict[str, Any]]
    tokenizer: Callable[[], transformers.CLIPTokenizer] | None
    zero_image: torch.Tensor | None = None
    image_processor: ImageProcessor | None = None
    movqs: Mapping[str, Network] = field(default_factory=dict)


@dataclass(frozen=True)
class Repository:
    """One pipeline in diffusers' layout: a folder here, or a repository on the Hub of which files come when asked for.

    `fetch(patterns)` gives the folder that then holds all files there are of these patterns; `folder` has the configs.
    `record` is what the manifest says of it, `halves` which of `decoder` and `prior` are in it.
    """

    name: str
    folder: Path
    fetch: Callable[[tuple[str, ...]], Path]
    record: dict[str, str]
    halves: tuple[str, ...]

    def part(self, half: str, name: str) -> str:
        """The subfolder of `name`: a combined pipeline marks those of its prior."""
        return f"prior_{name}" if half == "prior" and "decoder" in self.halves else name


def open_checkpoint(
    source: str,
    prior: str | None = None,
    controlnet: str | None = None,
    inpaint: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> Checkpoint:
    """Read the configs of `source`, of its prior, and of decoders for other tasks.

    All are folders or Hub ids. Without `prior`, the model card's `prior:` field is followed where `source` has one.
    `source` may be a decoder of any task: its UNet says which. `variant` is "fp16", "none", or None for the full
    weights where they are there and else fp16. Raises CheckpointError.
    """
    repository = _open(source, revision)
    decoders = _decoders(repository, {"controlnet": controlnet, "inpaint": inpaint})
    priors = _prior(repository, prior)
    homes = {UNETS[purpose]: found for purpose, found in decoders.items()}
    if decoders:
        homes["movq"] = next(iter(decoders.values()))
    for found in priors.values():
        homes |= dict.fromkeys(("prior", "text_encoder", "image_encoder"), found)
    networks = {name: _network(kind, homes[name], variant) for name, kind in KINDS.items() if name in homes}
    repositories = decoders | priors
    samplers = {purpose: _scheduler(purpose, found) for purpose, found in repositories.items()}
    validate.require_fit({name: network.config for name, network in networks.items()}, samplers)
    movqs = {found.name: _network(MOVQ, found, variant) for found in [*decoders.values()][1:]}
    for name, movq in movqs.items():
        validate.require_same_config(networks["movq"].config, name, movq.config)
    return Checkpoint(
        source={purpose: found.record for purpose, found in repositories.items()},
        networks=networks,
        schedulers=samplers,
        tokenizer=_tokenizer_loader(priors["prior"]) if priors else None,
        image_processor=_image_processor(priors["prior"], networks["image_encoder"].config) if priors else None,
        movqs=movqs,
    )


def _decoders(repository: Repository, others: Mapping[str, str | None]) -> dict[str, Repository]:
    """The decoders by what they are for: that of `repository` first, then the `others` that were given."""
    decoders = {_purpose(repository): repository} if "decoder" in repository.halves else {}
    for purpose, name in others.items():
        if name is None:
            continue
        if purpose in decoders:
            raise CheckpointError(
                f"The UNet of {repository.name} is one for {purpose} itself: leave out --{purpose} {name}."
            )
        found = _open(name, None)
        there = _purpose(found) if "decoder" in found.halves else None
        if there != purpose:
            what = f"its UNet is one for {there}" if there else "it is a prior"
            raise CheckpointError(f"{name} was given as --{purpose}, but {what}.")
        decoders[purpose] = found
    return decoders


def _purpose(repository: Repository) -> str:
    return validate.unet_purpose(_config(UNET, repository, UNET.name), _config(MOVQ, repository, MOVQ.name))


def _prior(repository: Repository, prior: str | None) -> dict[str, Repository]:
    """The repository of the prior as `prior`: `repository` itself, the one that was given or that of the card."""
    if "prior" in repository.halves:
        if prior is not None:
            raise CheckpointError(f"{repository.name} has a prior of its own: leave out --prior {prior}.")
        return {"prior": repository}
    found = _open(prior, None) if prior is not None else _prior_of_card(repository)
    if found is None:
        return {}
    if "prior" not in found.halves:
        raise CheckpointError(f"{found.name} was given as the prior, but it is a decoder.")
    return {"prior": found}


def _open(source: str, revision: str | None) -> Repository:
    path = Path(source)
    if path.is_dir():
        # Where the folder lay on this machine is nobody else's business.
        return Repository(source, path, lambda _: path, {"folder": path.resolve().name}, _halves(source, path))
    if path.exists():
        raise CheckpointError(f"{source} is a file: give the folder in diffusers' layout that holds model_index.json.")
    if not HUB_ID.fullmatch(source):
        raise CheckpointError(f"There is no folder {source}, and it is no Hub id (owner/name) either.")
    folder = _download(source, revision, CONFIGS)
    commit = folder.name  # a snapshot's folder is named by it; what comes later is of the same commit
    record = {"hub": source, "revision": commit}
    return Repository(source, folder, lambda files: _download(source, commit, files), record, _halves(source, folder))


def _download(repo: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """The snapshot's folder with the files of `patterns`. Raises CheckpointError, with what to do."""
    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo} is gated: accept its terms on the Hub, then log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo} on the Hub has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo} is neither a folder here nor a repository on the Hub that you may read;"
            " if it is private, log in with `hf auth login`."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{repo} is no folder here and could not be fetched from the Hub: {first_line(error)}."
        ) from error


def _halves(name: str, folder: Path) -> tuple[str, ...]:
    """Which of `decoder` and `prior` a repository holds, by its pipeline's class."""
    pipeline = _read_json(folder / "model_index.json").get("_class_name")
    if pipeline not in PIPELINES:
        raise CheckpointError(
            f"{name} holds a {pipeline}, which cannot be exported; expected one of {', '.join(PIPELINES)}."
        )
    return PIPELINES[pipeline]


def _prior_of_card(repository: Repository) -> Repository | None:
    """The prior that the front matter of README.md names, or None: a Hub id, or a path from a folder's own place."""
    card = repository.folder / "README.md"
    if not card.is_file():
        return None
    try:
        metadata = huggingface_hub.metadata_load(card) or {}
    except Exception as error:  # YAML's errors share no base with others
        raise CheckpointError(f"The front matter of {card} could not be read: {first_line(error)}.") from error
    priors = metadata.get("prior")
    name = priors[0] if isinstance(priors, list) and priors else priors
    if not isinstance(name, str):
        return None
    beside = Path(os.path.normpath(repository.folder / name))
    local = "folder" in repository.record and beside.is_dir()
    if not local and not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{card} names {name} as its prior, which is not there: give one with --prior.")
    return _open(str(beside) if local else name, None)


def _scheduler(purpose: str, repository: Repository) -> dict[str, Any]:
    """The scheduler's config, of a class and with options that the runtime can solve."""
    half = "prior" if purpose == "prior" else "decoder"
    config = _read_json(repository.folder / repository.part(half, "scheduler") / "scheduler_config.json")
    name = config.get("_class_name")
    if name not in SCHEDULERS[half]:
        raise CheckpointError(f"The scheduler of the {purpose} is a {name}; expected {' or '.join(SCHEDULERS[half])}.")
    try:
        schedulers.solve(config, 2)  # any number of steps reads every option
    except InputError as error:
        raise CheckpointError(
            f"The scheduler of the {purpose} in {repository.name} is not supported: {first_line(error)}."
        ) from error
    return config


def _image_processor(repository: Repository, encoder: Mapping[str, Any]) -> ImageProcessor:
    """How pictures are made ready for the image encoder: the manifest's record."""
    folder = repository.folder / repository.part("prior", "image_processor")
    found = _read_json(folder / "preprocessor_config.json")
    return validate.image_processor(repository.name, found, encoder["image_size"])


def _network(kind: Kind, repository: Repository, variant: str | None) -> Network:
    folder = repository.part(kind.half, kind.name)
    config = _config(kind, repository, folder)

    def fetch() -> tuple[Path, str | None]:
        return _weights(kind, repository, folder, variant)

    return Network(config, lambda: _load(kind, *fetch()), fetch)


def _config(kind: Kind, repository: Repository, folder: str) -> dict[str, Any]:
    """The content of config.json, of the right class and with all that is asked of it later."""
    config = _read_json(repository.folder / folder / "config.json")
    names = config.get("architectures") or [config.get("_class_name")]
    if kind.cls.__name__ not in names:
        raise CheckpointError(
            f"{folder} of {repository.name} is a {names[0]}; expected a {kind.cls.__name__}, as in Kandinsky 2.2."
        )
    missing = [key for key in kind.needs if key not in config]
    if missing:
        raise CheckpointError(f"The config of {folder} in {repository.name} has no {' and no '.join(missing)}.")
    if issubclass(kind.cls, transformers.PreTrainedModel):
        config = kind.cls.config_class(**config).to_dict()  # the file may leave out what is as usual
    return config


def _weights(kind: Kind, repository: Repository, folder: str, variant: str | None) -> tuple[Path, str | None]:
    """The folder of the weights, downloaded and whole, and the variant that is there (None: the full weights)."""
    wanted: tuple[str | None, ...] = {None: (None, "fp16"), "none": (None,)}.get(variant, (variant,))
    for candidate in wanted:
        ending = f".{candidate}" if candidate else ""
        single = f"{kind.stem}{ending}.safetensors"
        index = f"{kind.stem}.safetensors.index{ending}.json"
        shards = f"{kind.stem}{ending}-*-of-*.safetensors"
        path = repository.fetch(tuple(f"{folder}/{name}" for name in (single, index, shards))) / folder
        if (path / single).is_file():
            _require_whole(path / single)
            return path, candidate
        if (path / index).is_file():
            for shard in sorted(set(_read_json(path / index).get("weight_map", {}).values())):
                _require_whole(path / shard)
            return path, candidate
    names = " or ".join("the full weights" if name is None else f"the {name} variant" for name in wanted)
    raise CheckpointError(
        f"{folder} of {repository.name} has no safetensors of {names}; pickled weights (.bin) are not read,"
        " since unpickling runs code: convert them with save_pretrained(…, safe_serialization=True)."
    )


def _require_whole(path: Path) -> None:
    """Read the header of a safetensors file, which says how long the file must be."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut short: {first_line(error)}.") from error


def _load(kind: Kind, path: Path, variant: str | None) -> nn.Module:
    """The module in float32 with every weight from the file. Raises CheckpointError."""
    if issubclass(kind.cls, transformers.PreTrainedModel):
        options = {
            "dtype": torch.float32,
            "ignore_mismatched_sizes": True,
        }  # reported below, as no exception says which
    else:
        options = {"torch_dtype": torch.float32}
    try:
        module, report = kind.cls.from_pretrained(
            path, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path} could not be loaded: {first_line(error)}.") from error
    wrong = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if wrong:
        raise CheckpointError(
            f"{path} lacks {len(wrong)} weights that its config asks for, or has them in other shapes:"
            f" {', '.join(wrong[:3])}."
        )
    network: nn.Module = module.eval().requires_grad_(False)
    return network


def _tokenizer_loader(repository: Repository) -> Callable[[], transformers.CLIPTokenizer]:
    folder = repository.folder / repository.part("prior", "tokenizer")
    if not folder.is_dir():
        raise CheckpointError(f"There is no {folder}: the prior needs its CLIP tokenizer.")

    def load() -> transformers.CLIPTokenizer:
        try:
            tokenizer: transformers.CLIPTokenizer = transformers.CLIPTokenizer.from_pretrained(
                folder, local_files_only=True
            )
        except Exception as error:  # tokenizers raises bare Exceptions
            raise CheckpointError(f"{folder} is no CLIP tokenizer: {first_line(error)}.") from error
        return tokenizer

    return load


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no {path}: a checkpoint in diffusers' layout has one.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} could not be read: {first_line(error)}.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return data
