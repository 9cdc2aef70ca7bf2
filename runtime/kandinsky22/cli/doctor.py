"""`kandinsky22 doctor`: what this machine can run, and whether a bundle is sound and what it can do."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky22 import machine
from kandinsky22.bundle.manifest import FORECASTS, SHALLOWS, Role
from kandinsky22.cli.printable import printable
from kandinsky22.errors import BundleError, InputError
from kandinsky22.version import VERSION

if TYPE_CHECKING:
    from kandinsky22.bundle.bundle import Bundle

_TO_EMBEDDING = (Role.TEXT_ENCODER, Role.PRIOR)
_TO_PICTURE = (Role.DECODER, Role.MOVQ_DECODER)
TASKS = {
    "text to image": (*_TO_EMBEDDING, *_TO_PICTURE),
    "image to image": (*_TO_EMBEDDING, Role.MOVQ_ENCODER, *_TO_PICTURE),
    "inpainting": (*_TO_EMBEDDING, Role.MOVQ_ENCODER, Role.INPAINT_DECODER, Role.MOVQ_DECODER),
    "depth to image": (*_TO_EMBEDDING, Role.HINT_ENCODER, Role.CONTROLNET_DECODER, Role.MOVQ_DECODER),
    "mixing": (*_TO_EMBEDDING, Role.IMAGE_ENCODER, *_TO_PICTURE),
    "variations": (Role.IMAGE_ENCODER, *_TO_PICTURE),
    "text to embedding": _TO_EMBEDDING,
    "embedding to image": _TO_PICTURE,
}
TASKS |= {
    f"{task}, with {steps} steps": (*TASKS[task], roles[decoder])
    for steps, roles in (("forecast", FORECASTS), ("shallow", SHALLOWS))
    for task, decoder in (
        ("text to image", Role.DECODER),
        ("inpainting", Role.INPAINT_DECODER),
        ("depth to image", Role.CONTROLNET_DECODER),
    )
}
"""What components are needed for, by task."""
PROCESSOR_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve", "bf16")
"""Instructions that decide how fast a processor is here, as Linux calls them: x86 first, then ARM."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "The exit code is 1 where nothing can run, where the bundle is damaged or can do nothing, "
        "and where the server cannot make pictures."
    )
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="folder to check, every byte of it")
    parser.add_argument("--server", metavar="URL", help="a running server to ask, in place of this machine")
    parser.add_argument("--token-file", metavar="FILE", help="the server's token")
    parser.add_argument("--try", action="store_true", dest="try_picture", help="have the server make a small picture")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Print the report; the exit code."""
    if options.server is None and (options.token_file is not None or options.try_picture):
        raise InputError("--token-file and --try are about a server; name it with --server.")
    if options.server is not None:
        return _run_server(options)
    report = _machine(None if options.bundle is None else Path(options.bundle))
    problems = []
    if report["auto"] is None and any(each["usable"] for each in report["installed"]):
        problems.append("No backend can run this bundle here; what each of them lacks is told above.")
    elif report["auto"] is None:
        problems.append("No backend can run here; install one: pip install kandinsky22[cpu].")
    if options.bundle is not None:
        report["bundle"] = _bundle(Path(options.bundle))
        problems += report["bundle"]["problems"]
    return _told(json.dumps(report, indent=2) if options.json else _text(report), problems)


def _run_server(options: argparse.Namespace) -> int:
    from kandinsky22.cli import doctor_server

    if options.bundle is not None:
        raise InputError("A bundle and --server were given; name one of them.")
    server = doctor_server.Server(options.server, options.token_file)
    report = doctor_server.report(server, try_picture=options.try_picture)
    text = "\n".join(map(printable, doctor_server.lines(report)))
    return _told(json.dumps(report, indent=2) if options.json else text, report["problems"])


def _told(text: str, problems: Sequence[str]) -> int:
    """Print a report and what is wrong; the exit code."""
    print(text)
    sys.stdout.flush()
    for problem in problems:
        print("error:", printable(problem), file=sys.stderr)
    return 1 if problems else 0


def _machine(path: Path | None) -> dict[str, Any]:
    """Versions, processor, memory, disk, GPU, and what can run here: the bundle in `path`, where it is one."""
    from kandinsky22 import backends
    from kandinsky22.bundle.bundle import Bundle

    bundle = None
    if path is not None:
        with contextlib.suppress(BundleError):  # what is wrong with it is told with the bundle
            bundle = Bundle(path)
    installed = backends.survey(None)
    survey = installed if bundle is None else backends.survey(bundle)
    processor, total, available = machine.processor(), machine.total_memory(), machine.available_memory()
    return {
        "kandinsky22": VERSION,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": {
            "name": processor.name,
            "cores": machine.cores(),
            "features": [name for name in PROCESSOR_FEATURES if name in processor.flags],
        },
        "memory": None if total is None else {"total": total, "available": available},
        "disk": {"folder": str(Path.cwd()), "free": shutil.disk_usage(Path.cwd()).free},
        "nvidia_gpus": machine.nvidia_gpus(),
        "installed": [dataclasses.asdict(each) for each in installed],
        "backends": [dataclasses.asdict(each) for each in survey],
        "auto": next((each.name for each in survey if each.usable), None),
    }


def _bundle(path: Path) -> dict[str, Any]:
    """What a bundle holds and can do, and what is wrong with it ("problems", a sentence each)."""
    from kandinsky22.bundle.bundle import Bundle

    try:
        bundle = Bundle(path)
    except BundleError as error:
        return {"path": str(path), "problems": [str(error)]}
    manifest = bundle.manifest
    roles = manifest.roles()
    tasks = {task: [role for role in needed if role not in roles] for task, needed in TASKS.items()}
    problems = _verify(bundle)
    if all(tasks.values()):
        problems.append(f"The bundle {path} can do nothing: no task has all of its components.")
    return {
        "path": str(path),
        "name": manifest.name,
        "source": manifest.source,
        "precision": manifest.precision,
        "max_size": manifest.limits.max_size,
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "components": {
            name: {
                "role": component.role,
                "precision": component.precision,
                "quantisation": None if component.quantisation is None else dataclasses.asdict(component.quantisation),
                "parameters": component.parameters,
                "bytes": sum(manifest.files[file].bytes for file in component.files),
            }
            for name, component in manifest.components.items()
        },
        "missing_for": tasks,
        "problems": problems,
    }


def _verify(bundle: Bundle) -> list[str]:
    """Compare every file with its SHA-256; a sentence for each that is wrong."""
    from tqdm import tqdm

    files = bundle.manifest.files
    problems = []
    with tqdm(
        total=sum(record.bytes for record in files.values()), unit="B", unit_scale=True, desc="checking", disable=None
    ) as bar:
        for name, record in files.items():
            try:
                bundle.verified(name, afresh=True)
            except BundleError as error:
                problems.append(str(error))
            bar.update(record.bytes)
    return problems


def _text(report: Mapping[str, Any]) -> str:
    """The report for reading."""
    processor, memory, disk = report["processor"], report["memory"], report["disk"]
    lines = [
        f"kandinsky22  {report['kandinsky22']}, Python {report['python']}, {report['system']}",
        f"processor    {processor['name']}, {processor['cores']} cores, {' '.join(processor['features'])}",
        f"memory       {_gigabytes(memory['available'])} free of {_gigabytes(memory['total'])}" if memory else "",
        f"disk         {_gigabytes(disk['free'])} free in {disk['folder']}",
        f"NVIDIA GPUs  {'; '.join(report['nvidia_gpus']) or 'none seen'}",
    ]
    for backend in report["backends"]:
        version = f" {backend['version']} in {backend['precision']}" if backend["usable"] else " cannot run here"
        taken = "; auto takes it" if backend["name"] == report["auto"] else ""
        lines.append(f"backend      {backend['name']}{version}: {backend['reason']}{taken}")
    if "bundle" in report:
        lines += _bundle_lines(report["bundle"])
    return "\n".join(printable(line) for line in lines if line)


def _bundle_lines(bundle: Mapping[str, Any]) -> list[str]:
    sound = "damaged or unusable" if bundle["problems"] else "every file is as it was exported"
    lines = [f"bundle       {bundle['path']}: {sound}"]
    if "name" not in bundle:
        return lines
    lines.append(
        f"             {bundle['name']}, {bundle['precision']}, {_gigabytes(bundle['bytes'])}, "
        f"pictures up to {bundle['max_size']} pixels a side"
    )
    for name, component in bundle["components"].items():
        lines.append(
            f"component    {name}: {component['parameters'] / 1e6:,.1f} M parameters, {_precision(component)}, "
            f"{_gigabytes(component['bytes'])}"
        )
    for task, missing in bundle["missing_for"].items():
        lines.append(f"task         {task}: {'no, it lacks ' + ', '.join(missing) if missing else 'yes'}")
    return lines


def _precision(component: Mapping[str, Any]) -> str:
    """What a component's weights are in."""
    quantisation = component["quantisation"]
    if quantisation is None:
        return str(component["precision"])
    kept = f", {len(quantisation['kept'])} layers kept in {component['precision']}" if quantisation["kept"] else ""
    return f"{quantisation['type']}{kept}"


def _gigabytes(count: int) -> str:
    """Bytes for reading."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
