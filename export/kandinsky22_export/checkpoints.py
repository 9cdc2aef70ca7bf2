"""Hub repository or folder -> configs, and torch modules when they are asked for; safetensors only.

`random_weights.py` makes a `Checkpoint` of the published sizes without any files.
"""

from __future__ import annotations

import functools
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
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn

from kandinsky22 import schedulers
from kandinsky22.bundle.manifest import ImageProcessor
from kandinsky22.errors import CheckpointError, InputError, shown
from kandinsky22_export import weights
from kandinsky22_export.architectures import configs, validate
from kandinsky22_export.architectures.kandinsky_2_2 import KINDS, MOVQ, PIPELINES, SCHEDULERS, UNET, UNETS, Kind
from kandinsky22_export.model_card import prior_of
from kandinsky22_export.reading import checked, picked, read_object, said
from kandinsky22_export.tokenizer_files import load_tokenizer

CONFIGS = ("model_index.json", "README.md", "*/*config.json", "*/*token*.json", "*/vocab.json", "*/merges.txt")
HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_CLASSES: Any = tuple[str, ...] | None


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
    if os.path.isdir(path):
        # Where the folder lay on this machine is nobody else's business.
        return Repository(source, path, lambda _: path, {"folder": path.resolve().name}, _halves(source, path))
    if os.path.exists(path):
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
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"{repo} is no folder here and could not be fetched from the Hub: {said(error)}."
        ) from error


def _halves(name: str, folder: Path) -> tuple[str, ...]:
    """Which of `decoder` and `prior` a repository holds, by its pipeline's class."""
    path = folder / "model_index.json"
    pipeline = checked(str, read_object(path).get("_class_name"), path, "_class_name")
    if pipeline not in PIPELINES:
        raise CheckpointError(
            f"{name} holds a {shown(pipeline)}, which cannot be exported; expected one of {', '.join(PIPELINES)}."
        )
    return PIPELINES[pipeline]


def _prior_of_card(repository: Repository) -> Repository | None:
    """The prior that the front matter of README.md names, or None: a Hub id, or a path from a folder's own place."""
    name = prior_of(repository.folder)
    if name is None:
        return None
    beside = Path(os.path.normpath(repository.folder / name))
    local = "folder" in repository.record and not Path(name).is_absolute() and os.path.isdir(beside)
    if not local and not HUB_ID.fullmatch(name):
        card = repository.folder / "README.md"
        raise CheckpointError(f"{card} names {shown(name)} as its prior, which is not there: give one with --prior.")
    return _open(str(beside) if local else name, None)


def _scheduler(purpose: str, repository: Repository) -> dict[str, Any]:
    """The scheduler's config, of a class and with options that the runtime can solve."""
    half = "prior" if purpose == "prior" else "decoder"
    path = repository.folder / repository.part(half, "scheduler") / "scheduler_config.json"
    config = read_object(path)
    name = checked(str, config.get("_class_name"), path, "_class_name")
    if name not in SCHEDULERS[half]:
        raise CheckpointError(
            f"The scheduler of the {purpose} is a {shown(name)}; expected {' or '.join(SCHEDULERS[half])}."
        )
    try:
        schedulers.solve(config, 2)  # any number of steps reads every option
    except InputError as error:
        raise CheckpointError(
            f"The scheduler of the {purpose} in {repository.name} is not supported: {said(error)}."
        ) from error
    return validate.scheduler(path, config)


def _image_processor(repository: Repository, encoder: Mapping[str, Any]) -> ImageProcessor:
    """How pictures are made ready for the image encoder: the manifest's record."""
    path = repository.folder / repository.part("prior", "image_processor") / "preprocessor_config.json"
    known = picked(read_object(path), configs.fields_of(configs.ProcessorConfig))
    return validate.image_processor(
        repository.name, checked(configs.ProcessorConfig, known, path), encoder["image_size"]
    )


def _network(kind: Kind, repository: Repository, variant: str | None) -> Network:
    folder = repository.part(kind.half, kind.name)
    config = _config(kind, repository, folder)

    def fetch() -> list[Path]:
        files = _weights(kind, repository, folder, variant)
        weights.require_whole(kind, config, files)
        return files

    return Network(config, lambda: weights.load(kind, config, fetch()), fetch)


def _config(kind: Kind, repository: Repository, folder: str) -> dict[str, Any]:
    """Every option of config.json, checked and filled in; the keys that the network's constructor takes."""
    path = repository.folder / folder / "config.json"
    found = read_object(path)
    names = checked(_CLASSES, found.get("architectures"), path, "architectures") or (
        checked(str, found.get("_class_name"), path, "_class_name"),
    )
    if kind.cls.__name__ not in names:
        raise CheckpointError(
            f"{folder} of {repository.name} is a {shown(names[0])};"
            f" expected a {kind.cls.__name__}, as in Kandinsky 2.2."
        )
    if (key := configs.refused(found)) is not None:
        raise CheckpointError(
            f"{path} has {key}: its weights are quantised, or code of its own reads them; expected the plain weights."
        )
    return configs.options_of(checked(kind.config, picked(found, configs.fields_of(kind.config)), path))


def _weights(kind: Kind, repository: Repository, folder: str, variant: str | None) -> list[Path]:
    """The files of the weights, downloaded: those of the variant, or the full ones where they are there."""
    wanted: tuple[str | None, ...] = {None: (None, "fp16"), "none": (None,)}.get(variant, (variant,))
    for candidate in wanted:
        ending = f".{candidate}" if candidate else ""
        names = (
            f"{kind.stem}{ending}.safetensors",
            f"{kind.stem}.safetensors.index{ending}.json",
            f"{kind.stem}{ending}-*-of-*.safetensors",
        )
        home = repository.fetch(tuple(f"{folder}/{name}" for name in names)) / folder
        if files := weights.files_of(kind, home, candidate):
            return files
    called = " or ".join("the full weights" if name is None else f"the {name} variant" for name in wanted)
    raise CheckpointError(
        f"{folder} of {repository.name} has no safetensors of {called}; pickled weights (.bin) are not read,"
        " since unpickling runs code: convert them with save_pretrained(…, safe_serialization=True)."
    )


def _tokenizer_loader(repository: Repository) -> Callable[[], transformers.CLIPTokenizer]:
    folder = repository.folder / repository.part("prior", "tokenizer")
    if not os.path.isdir(folder):
        raise CheckpointError(f"There is no {folder}: the prior needs its CLIP tokenizer.")
    return functools.partial(load_tokenizer, folder)
