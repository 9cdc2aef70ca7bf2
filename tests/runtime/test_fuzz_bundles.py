"""Manifests, records of plans, records of checked files and reports of `bench`, as anybody may have changed them."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kandinsky22.backends.tensorrt import choice
from kandinsky22.backends.tensorrt.builder import Report
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.backends.tensorrt.records import PlanRecord
from kandinsky22.bundle import checksums
from kandinsky22.bundle.bundle import MANIFEST, Bundle
from kandinsky22.bundle.contents import manifest_files
from kandinsky22.cli import doctor
from kandinsky22.errors import BundleError, InputError, KandinskyError
from kandinsky22.measure.report import Measurements
from kandinsky22.measure.suite import ReportRecord
from kandinsky22.request.request import Request
from kandinsky22.request.resolve import resolve

from ..fuzzing import deep_json, dumped, family, json_values, mutated_bytes, mutated_json, refused, run

REQUESTS = [
    Request.of("text2img", prompt=["a", "b"], seed=1),
    Request.of("embed", prompt="a"),
    Request.of("text2img", prompt="a", scheduler="dpm++", height=64, width=96, num_inference_steps=3),
]
RECORD = PlanRecord(
    component="movq_decoder",
    flavour="tensorrt",
    version="10.12.0",
    device=None,
    targets=("8.6",),
    profile=Profile(384, 1024, 2048),
    shapes={"latents": ((1, 4, 48, 48), (1, 4, 128, 128), (1, 4, 256, 256))},
    onnx={"onnx/movq_decoder.onnx": "0" * 64},
    settings={"tf32": False},
    plan="movq_decoder-0123456789abcdef.plan",
    bytes=10,
    sha256="0" * 64,
    weight_bytes=10,
    seconds=1.5,
    peak_memory=100,
    report=Report({"Half": {"gemm": 1}}, {"Half": 1}, 1, 1, 1),
)

others = json_values.map(dumped) | deep_json
"""Files that are nothing of ours."""


def used(folder: Path) -> None:
    """All that is told and decided of a bundle before a file of it is read."""
    manifest = Bundle(folder).manifest
    doctor._bundle_lines({"path": "a", "problems": ["b"]})
    for request in REQUESTS:
        refused(functools.partial(resolve, request, manifest), KandinskyError)


@family(60)
def test_a_manifest_is_read_or_refused(count: int, handmade_bundle: Bundle, tmp_path: Path) -> None:
    whole = (handmade_bundle.path / MANIFEST).read_bytes()
    folder = tmp_path / "bundle"
    for path in handmade_bundle.path.rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(handmade_bundle.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    used(folder)
    before = sorted(tmp_path.rglob("*"))

    def check(text: bytes) -> None:
        (folder / MANIFEST).write_bytes(text)
        refused(lambda: used(folder), BundleError)
        refused(lambda: manifest_files(folder), ValueError)
        assert sorted(tmp_path.rglob("*")) == before

    run(count, check, text=mutated_json(json.loads(whole)).map(dumped) | mutated_bytes(whole) | others)


def sealed(value: Any) -> bytes:
    """A record whose checksum is right, as whoever changes one can make it."""
    from kandinsky22.backends.tensorrt import records

    if not isinstance(value, dict):
        return dumped(value)
    value.pop("checksum", None)
    return dumped({**value, "checksum": records._checksum(value)})


@family(60)
def test_a_record_of_a_plan_is_read_or_refused(count: int, tmp_path: Path) -> None:
    whole = json.loads(RECORD.to_json())
    path = tmp_path / "movq_decoder.json"

    def check(text: bytes) -> None:
        path.write_bytes(text)
        refused(lambda: choice.read_record(path), BundleError)

    path.write_bytes(sealed(whole))
    assert choice.read_record(path) == RECORD
    texts = mutated_json(whole).map(sealed) | mutated_bytes(dumped(whole)) | others
    run(count, check, text=texts)


@family(60)
def test_what_is_recorded_of_verified_files_is_believed_only_where_it_is_true(
    count: int, handmade_copy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", -1.0)
    path = handmade_copy.graph("decoder_step")
    record = max(
        (each for each in (tmp_path / "cache").rglob("*") if each.is_file()), key=lambda each: each.stat().st_size
    )
    whole = record.read_bytes()
    sound = path.read_bytes()
    altered = sound[:-1] + bytes([sound[-1] ^ 1])

    def check(text: bytes) -> None:
        for data in (sound, altered):
            path.write_bytes(data)
            record.write_bytes(text)
            assert refused(lambda: Bundle(handmade_copy.path).graph("decoder_step"), BundleError) == (data == altered)

    run(count, check, text=mutated_json(json.loads(whole)).map(dumped) | mutated_bytes(whole) | others)


@family(60)
def test_a_report_is_read_or_refused(count: int, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    size = {"width": 64, "height": 64, "batch": 1, "guided": True}
    memory = {"peak_host_memory": 1, "device_memory": 0}
    times = dict.fromkeys(("p50", "p90", "p99", "pictures_a_second", "load_seconds"), 1.0)
    stage = {"stage": "movq_decoder", "seconds": [1.0], **times, **size, **memory}
    picture = {"steps": 2, "prior_steps": 2, "first": True, "timings": {"total": 1.0}, **size, **memory}
    about = {"name": "onnxruntime", "usable": True, "reason": "", "version": "1", "precision": "fp32", "gpu": False}
    whole = {"bundle": {}, "settings": {}, "backends": [{**about, "stages": [stage], "pictures": [picture]}]}
    path.write_bytes(dumped(whole))
    assert Measurements(path, {}, {}, ReportRecord, {}).data == whole

    def check(text: bytes) -> None:
        path.write_bytes(text)
        refused(lambda: Measurements(path, {}, {}, ReportRecord, {}), InputError)
        assert path.read_bytes() == text

    run(count, check, text=mutated_json(whole).map(dumped) | mutated_bytes(dumped(whole)) | others)
