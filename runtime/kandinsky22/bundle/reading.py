"""A manifest from elsewhere: checked as a whole before anything of it is used."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from kandinsky22 import schema
from kandinsky22.bundle.manifest import (
    DECODERS,
    FEATURES,
    FORECASTS,
    FORMAT_VERSION,
    LATENT_ROLES,
    MODEL,
    SHALLOWS,
    SKIPPING_ROLES,
    STEP_ROLES,
    Component,
    Manifest,
    Role,
    TensorSpec,
)
from kandinsky22.errors import BundleError
from kandinsky22.schema import SchemaError, mismatch, shown

TOKENIZER = "tokenizer.json"
CONSTANTS = "constants.npz"

Verify = Literal["auto", "always"]
"""When files are read to be verified: unless they were before and nobody wrote to them since, or at each load."""
VERIFY: tuple[Verify, ...] = get_args(Verify)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FOLDER = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


def read_manifest(text: bytes, folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`, whose manifest.json holds `text`.

    Raises BundleError where the bundle is of another format, SchemaError where the text is no manifest: not JSON, not
    of the schema that the classes of `kandinsky22.bundle.manifest` are, or with parts that do not belong together.
    """
    data = schema.parse(text)
    if not isinstance(data, dict):
        raise mismatch("", data, "an object")
    if "format_version" not in data:
        raise SchemaError(f"format_version is missing, expected {FORMAT_VERSION}")
    version = data["format_version"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(
            f"{folder} has bundle format {shown(version)}, this kandinsky22 reads {FORMAT_VERSION}; "
            f"export it again: {export_command(data, folder)}"
        )
    manifest = schema.read(Manifest, data)
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Raise SchemaError where parts of a manifest, each of which is right alone, do not belong together."""
    roles: dict[Role, str] = {}
    for name, component in manifest.components.items():
        if component.role in roles:
            place = f"components.{name}.role"
            raise mismatch(place, component.role, f"another role than that of {roles[component.role]}")
        roles[component.role] = name
        _check_component(f"components.{name}", name, component, manifest)
    for others, output in ((FORECASTS, MODEL), (SHALLOWS, FEATURES)):
        for decoder, other in others.items():
            if decoder in roles and other in roles:
                _check_handing_out(manifest, roles[decoder], output, other)
    for decoder, shallow in SHALLOWS.items():
        if decoder in roles and shallow in roles:
            _check_shallow(manifest, roles[decoder], roles[shallow])
    for place, value, reason in _needed(manifest, frozenset(roles)):
        if value is None:
            raise SchemaError(f"{place} is null, expected a value, since the bundle has {reason}")


def _check_component(place: str, name: str, component: Component, manifest: Manifest) -> None:
    for index, file in enumerate(component.files):
        if file not in manifest.files:
            raise mismatch(f"{place}.files[{index}]", file, "a file that the manifest lists in files")
    for variant, file in component.variants.items():
        if file not in component.files:
            raise mismatch(f"{place}.variants.{variant}", file, "one of the component's files")
    for part, specs in (("inputs", component.inputs), ("outputs", component.outputs)):
        seen: set[str] = set()
        for index, spec in enumerate(specs):
            if spec.name in seen:
                raise mismatch(f"{place}.{part}[{index}].name", spec.name, "a name that no other has")
            seen.add(spec.name)
    if component.quantisation is not None and component.quantisation.type != manifest.precision:
        raise mismatch(f"{place}.quantisation.type", component.quantisation.type, f"the precision {manifest.precision}")
    shared = component.shares_weights_with
    if shared is not None and (shared not in manifest.components or shared == name):
        raise mismatch(f"{place}.shares_weights_with", shared, "the name of another component, or null")
    _check_step(place, component, manifest)


def _check_step(place: str, component: Component, manifest: Manifest) -> None:
    """How a step graph is repeated; a plain graph says nothing of it."""
    if component.role not in STEP_ROLES:
        if component.scheduler is not None or component.state or component.per_step:
            raise SchemaError(
                f"{place} is a {component.role} and has a scheduler, a state or inputs per step, expected none"
            )
        return
    if component.scheduler not in manifest.schedulers:
        expected = f"one of schedulers ({', '.join(manifest.schedulers) or 'none'})"
        raise mismatch(f"{place}.scheduler", component.scheduler, expected)
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (component.inputs, component.outputs))
    for before, after in component.state.items():
        if before not in inputs:
            raise mismatch(f"a key of {place}.state", before, "an input of the component")
        if after not in outputs or not _alike(inputs[before], outputs[after]):
            raise mismatch(f"{place}.state.{before}", after, f"an output of the type and shape of {before}")
    for index, changing in enumerate(component.per_step):
        if changing not in inputs or changing in component.state:
            raise mismatch(f"{place}.per_step[{index}]", changing, "an input of the component that is no state")


def _check_handing_out(manifest: Manifest, decoder: str, output: str, other: Role) -> None:
    """A decoder hands out what the component for `other`, which takes its steps, is made from."""
    names = [spec.name for spec in manifest.components[decoder].outputs]
    if output not in names:
        raise SchemaError(
            f"components.{decoder}.outputs are {', '.join(names)}, expected {output} too, since the bundle has a "
            f"component for the role {str(other)!r}"
        )


def _check_shallow(manifest: Manifest, decoder: str, shallow: str) -> None:
    """What a decoder hands out is what its shallow step takes in."""
    given = next(spec for spec in manifest.components[decoder].outputs if spec.name == FEATURES)
    if given not in manifest.components[shallow].inputs:
        raise SchemaError(f"components.{shallow}.inputs lack features as they are in components.{decoder}.outputs")


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def _needed(manifest: Manifest, roles: frozenset[Role]) -> Iterator[tuple[str, object, str]]:
    """What must be there because of the components that there are: place, value, and because of which."""
    geometry, files = manifest.geometry, manifest.files
    if roles & (DECODERS | LATENT_ROLES | SKIPPING_ROLES):
        reason = "components for latents"
        yield "geometry.latent_channels", geometry.latent_channels, reason
        yield "geometry.downscale", geometry.downscale, reason
    if roles & (DECODERS | SKIPPING_ROLES):
        yield "geometry.learned_variance", geometry.learned_variance, "a decoder"
        yield "geometry.default_size", geometry.default_size, "a decoder"
        yield "limits.ranks", manifest.limits.ranks, "a decoder"
    if Role.TEXT_ENCODER in roles:
        yield "text", manifest.text, "a text encoder"
        yield f'files["{TOKENIZER}"]', files.get(TOKENIZER), "a text encoder"
    if Role.PRIOR in roles:
        yield f'files["{CONSTANTS}"]', files.get(CONSTANTS), "a prior"
    if Role.IMAGE_ENCODER in roles:
        yield "image_processor", manifest.image_processor, "an image encoder"
        yield "geometry.image_size", geometry.image_size, "an image encoder"


def export_command(data: Mapping[str, Any], folder: Path) -> str:
    """The command that exports the bundle in `folder` anew, as far as the JSON of its manifest says what it is made of.

    It is for a user to copy, and the manifest may be from anybody: nothing of it is in the command but Hub ids, names
    of folders and numbers.
    """
    source = data.get("source")
    words = ["kandinsky22-export", *_sources(source if isinstance(source, dict) else {})]
    precision = data.get("precision")
    if precision in ("fp16", "int8", "fp8"):
        words += ["--precision", precision]
    if _has_shallow_steps(data.get("components")):
        words.append("--shallow")
    limits = data.get("limits")
    size = limits.get("max_size") if isinstance(limits, dict) else None
    if type(size) is int and 64 <= size <= 2**16 and size != 2048:
        words += ["--max-size", str(size)]
    return " ".join([*words, "-o", shlex.quote(str(folder)), "--force"])


def _has_shallow_steps(components: object) -> bool:
    records = components.values() if isinstance(components, dict) else ()
    return any(isinstance(record, dict) and record.get("role") in SHALLOWS.values() for record in records)


def _sources(source: Mapping[str, Any]) -> list[str]:
    """The arguments that name checkpoints."""
    seed, architecture = source.get("random_weights"), source.get("architecture")
    if type(seed) is int and seed.bit_length() <= 64:
        named = isinstance(architecture, str) and _FOLDER.fullmatch(architecture)
        return ["--random-weights", str(seed), *(["--architecture", str(architecture)] if named else [])]
    names = {role: _checkpoint(record) for role, record in source.items() if role != "versions"}
    first = next((role for role in names if role != "prior"), "prior")
    words = [names.get(first, "SOURCE")]
    for role in ("controlnet", "inpaint", "prior"):
        # A pipeline of both has its prior in the same repository, which is found without being named.
        if role in names and role != first and source[role] != source[first]:
            words += [f"--{role}", names[role]]
    return words


def _checkpoint(record: object) -> str:
    """A Hub id, or a folder whose name alone is known; SOURCE where neither is."""
    found = record if isinstance(record, dict) else {}
    hub, folder = found.get("hub"), found.get("folder")
    if isinstance(hub, str) and _HUB_ID.fullmatch(hub):
        return hub
    if isinstance(folder, str) and _FOLDER.fullmatch(folder):
        return f"path/to/{folder}"
    return "SOURCE"
