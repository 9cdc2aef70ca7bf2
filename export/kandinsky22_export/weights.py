"""Weights of a network: safetensors that are looked at before anything is built, then read into the module.

Nothing of diffusers or transformers opens a file here: they would read the config again, follow an index wherever it
leads, and fetch what an adapter's config names. They get checked options and tensors.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors import SafetensorError, safe_open
from torch import nn

from kandinsky22.errors import CheckpointError, shown
from kandinsky22.files import open_regular
from kandinsky22_export.architectures.configs import MOST_PARAMETERS
from kandinsky22_export.architectures.kandinsky_2_2 import Kind
from kandinsky22_export.reading import Shard, checked, read_object, said

MOST_INDEX_BYTES = 4 << 20
"""Size of an index of shards: a line for each weight, of which a network has two thousand at most."""
MOST_WEIGHT_BYTES = 1 << 40

DTYPES = ("F16", "BF16", "F32", "F64")
"""Types of weights as safetensors names them. Others are quantised, and mean something only with their scales."""

_NOT_KEPT = "position_ids"
"""The end of the names of tensors that older versions of transformers stored, and that follow from the config."""

State = dict[str, torch.Tensor]


def files_of(kind: Kind, folder: Path, variant: str | None) -> list[Path]:
    """The safetensors of a network in `folder`: one file, or the shards of an index; none where it has neither.

    Raises CheckpointError where an index is damaged or names something else than files beside it.
    """
    ending = f".{variant}" if variant else ""
    single = folder / f"{kind.stem}{ending}.safetensors"
    if os.path.lexists(single):
        return [single]
    index = folder / f"{kind.stem}.safetensors.index{ending}.json"
    if not os.path.lexists(index):
        return []
    shards = checked(
        dict[str, Shard], read_object(index, MOST_INDEX_BYTES).get("weight_map"), index, "weight_map"
    ).values()
    if not shards:
        raise CheckpointError(f"{index} does not fit: weight_map is empty, expected a file for each weight.")
    return [folder / name for name in sorted(set(shards))]


def require_whole(kind: Kind, config: Mapping[str, Any], files: list[Path]) -> None:
    """Refuse weights that are damaged, or fewer than the config asks for: it is no reason to take all memory."""
    found, wanted = _sizes(files), _wanted(kind, tuple(config.items()))
    count = sum(wanted.values())
    if count > MOST_PARAMETERS:
        raise CheckpointError(
            f"The config in {files[0].parent} asks for {count / 1e9:.3g} billion weights;"
            f" {MOST_PARAMETERS / 1e9:.3g} billion are the most that is exported."
        )
    if count > sum(found.values()):  # names are compared later: older ones are translated
        raise _lacking(files[0].parent, sorted(name for name, size in wanted.items() if found.get(name) != size))


def _lacking(folder: Path, missing: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{folder} lacks {len(missing)} weights that its config asks for, or has them in other shapes:"
        f" {', '.join(missing[:3])}."
    )


def _sizes(files: list[Path]) -> dict[str, int]:
    """How many numbers each tensor has, by the files' headers. Raises CheckpointError where a file is damaged."""
    sizes: dict[str, int] = {}
    for path in files:
        try:
            with open_regular(path, MOST_WEIGHT_BYTES), safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    if name in sizes:
                        raise CheckpointError(f"{path} has {shown(name)}, which another file of the network has too.")
                    sizes[name] = _size(path, name, file.get_slice(name))
        except OSError as error:
            raise CheckpointError(f"{path} could not be read: {error.strerror or said(error)}.") from error
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged or cut short: {said(error)}.") from error
    return sizes


def _size(path: Path, name: str, tensor: Any) -> int:
    dtype = tensor.get_dtype()
    if dtype not in DTYPES and not name.endswith(_NOT_KEPT):
        raise CheckpointError(f"{path} has {shown(name)} in {dtype}; {', '.join(DTYPES)} can be exported.")
    return math.prod(tensor.get_shape())


@functools.cache
def _wanted(kind: Kind, config: tuple[tuple[str, Any], ...]) -> dict[str, int]:
    """How many numbers each weight of a network has, found without memory for them. Raises CheckpointError."""
    with torch.device("meta"):
        network = build(kind, dict(config))
    return {name: parameter.numel() for name, parameter in network.named_parameters()}


def build(kind: Kind, config: Mapping[str, Any]) -> nn.Module:
    """A network of a config that was checked. Raises CheckpointError where its options do not go together."""
    try:
        if issubclass(kind.cls, transformers.PreTrainedModel):
            network: nn.Module = kind.cls(kind.cls.config_class(**config))
        else:
            network = kind.cls(**config)
    except Exception as error:  # whatever the libraries come upon when numbers do not go into each other
        raise CheckpointError(f"The options of the {kind.name}'s config do not fit: {said(error)}.") from error
    return network


def load(kind: Kind, config: Mapping[str, Any], files: list[Path]) -> nn.Module:
    """The module in float32 and evaluation mode with every weight from the files. Raises CheckpointError."""
    folder = files[0].parent
    try:
        state = _read(files)
        read = _into_transformers if issubclass(kind.cls, transformers.PreTrainedModel) else _into_diffusers
        network, missing, foreign = read(kind, config, state)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} could not be loaded: {said(error)}.") from error
    if missing:
        raise _lacking(folder, missing)
    if foreign:
        raise CheckpointError(
            f"{folder} has {len(foreign)} weights that its config does not know: {', '.join(map(shown, foreign[:3]))}."
        )
    return network.eval().requires_grad_(False)


def _read(files: list[Path]) -> State:
    state: State = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                if not name.endswith(_NOT_KEPT):
                    state[name] = file.get_tensor(name).to(torch.float32)
    return state


def _into_transformers(kind: Kind, config: Mapping[str, Any], state: State) -> tuple[nn.Module, list[str], list[str]]:
    """The network, the weights that it lacks (or has in other shapes), and those that it does not know."""
    network, report = kind.cls.from_pretrained(
        None,
        config=kind.cls.config_class(**config),
        state_dict=state,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # reported, as no exception says which
        output_loading_info=True,
    )
    missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    return network, sorted(missing), sorted(report["unexpected_keys"])


def _into_diffusers(kind: Kind, config: Mapping[str, Any], state: State) -> tuple[nn.Module, list[str], list[str]]:
    """The same for a class of diffusers, whose `from_pretrained` takes no tensors."""
    with init_empty_weights():
        network: Any = build(kind, config)
    network._fix_state_dict_keys_on_load(state)  # older names of attention's weights
    wanted = network.state_dict()
    missing = sorted(name for name, each in wanted.items() if name not in state or state[name].shape != each.shape)
    foreign = sorted(state.keys() - wanted.keys())
    if not missing and not foreign:
        network.load_state_dict(state, assign=True)
    return network, missing, foreign
