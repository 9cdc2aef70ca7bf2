"""The frontier: seconds composed of a request, its rules on made-up points, what is kept, and the report."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("torch", reason="torch is not installed")

from benchmarks import comparisons, frontier, frontier_report, frontier_seconds, picture, subjects
from benchmarks.comparisons import Comparison
from benchmarks.frontier_points import Point, points, recommended, wilson
from benchmarks.frontier_points import frontier as frontier_of
from benchmarks.frontier_scores import Shapes
from benchmarks.frontier_settings import DIFFUSERS, FLOAT, INT8, REFERENCE, SETTINGS, Setting, presets_of
from benchmarks.frontier_store import FrontierMeasurements, Run
from benchmarks.runs import KeptPictures
from kandinsky22 import Pipeline
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.errors import InputError
from kandinsky22.measure.timing import Size
from kandinsky22.request.presets import PRESETS

from ..damaged import damaged
from ..runtime.handmade import SHALLOW_GRAPHS, write_bundle

FAST = {"scheduler": "dpm++-karras", "num_inference_steps": 12, "guidance_interval": (0, 0.5)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(write_bundle(tmp_path_factory.mktemp("engines") / "skipping", SHALLOW_GRAPHS))


# Settings


def test_settings_are_told_apart_by_their_names_and_can_be_asked_for() -> None:
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
    assert all(SETTINGS.count(setting) == 1 for setting in SETTINGS)
    assert SETTINGS[0] == REFERENCE == Setting(DIFFUSERS, {})
    assert REFERENCE.name == "diffusers: DDPM 50"
    assert Setting.of(INT8, **FAST, skip="forecast", prior_num_inference_steps=9, guidance_scale=3).name == (
        "int8: DPM++ Karras 12, guided 0 to 0.5, forecast:2, prior UnCLIP 9, --guidance 3.0"
    )


def test_what_is_the_default_makes_no_other_setting() -> None:
    assert Setting.of(FLOAT, num_inference_steps=50, guidance_interval=(0, 1), scheduler=None) == Setting(FLOAT, {})
    assert Setting.of(FLOAT, **FAST).given == {**FAST, "guidance_interval": [0.0, 0.5]}
    assert Setting.of(FLOAT, **Setting.of(FLOAT, **FAST).given) == Setting.of(FLOAT, **FAST)


def test_presets_are_judged_in_both_precisions() -> None:
    for preset, values in PRESETS.items():
        for subject in (FLOAT, INT8):
            assert preset in presets_of(Setting.of(subject, **values))
            assert Setting.of(subject, **values) in SETTINGS
    assert presets_of(REFERENCE) == []


# Seconds


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        ({}, {"prior_step": 25, "decoder_step": 50}),
        # 4 computed, the 5th, 7th and 9th forecast; unguided from the 11th on, two computed; the last two computed.
        (
            {"scheduler": "ddim", "num_inference_steps": 20, "guidance_interval": (0, 0.5), "skip": "forecast:2",
             "prior_num_inference_steps": 12},
            {"prior_step": 12, "decoder_step": 7, "decoder_step, not guided": 7, "decoder_forecast": 3,
             "decoder_forecast, not guided": 3},
        ),
        (FAST, {"prior_step": 25, "decoder_step": 6, "decoder_step, not guided": 6}),
        ({"guidance_scale": 1, "num_inference_steps": 3}, {"prior_step": 25, "decoder_step, not guided": 3}),
    ],
)  # fmt: skip
def test_runs_are_those_of_the_request(bundle: Bundle, given: dict[str, Any], counted: dict[str, int]) -> None:
    runs = frontier_seconds.runs(Setting.of(FLOAT, **given).request, bundle)
    told = {run.component + ("" if run.guided else ", not guided"): times for run, times in runs.items()}
    assert told == {"text_encoder": 1, "movq_decoder": 1, **counted}


def test_runs_without_guidance_of_the_prior_have_one_text(bundle: Bundle) -> None:
    runs = frontier_seconds.runs(Setting.of(FLOAT, prior_guidance_scale=1).request, bundle)
    assert (runs[Run("text_encoder", False)], runs[Run("prior_step", False)]) == (1, 25)


def stage(component: str, subject: str, *seconds: float, guided: bool = True) -> dict[str, Any]:
    size = {"height": 1024, "width": 1024, "batch": 1, "guided": guided}
    about = {"version": "1.0", "precision": "bf16", "load_seconds": 1.0, "peak_host_memory": 1, "device_memory": 0}
    case = {"case": f"{component} {guided}", "settings": {}, "commit": "abc", "flop": 1e12}
    return {**case, **size, **about, "stage": component, "subject": subject, "seconds": list(seconds)}


STAGES = [
    each
    for subject, times in (("diffusers bf16", 2.0), ("ours openvino", 1.0), ("ours openvino int8", 0.5))
    for each in (
        stage("text_encoder", subject, 0.1 * times),
        stage("prior_step", subject, 0.4 * times, 99, 0.1),
        stage("decoder_step", subject, 8 * times),
        stage("decoder_step", subject, 4 * times, guided=False),
        stage("movq_decoder", subject, 12 * times),
    )
]


def test_seconds_are_medians_by_the_runs_of_the_precision(bundle: Bundle) -> None:
    """Float: a tenth, 25 prior steps of 0.4 s, 6 of 8 s and 6 of 4 s, and 12 s; int8 half of it."""
    runs = frontier_seconds.runs(Setting.of(FLOAT, **FAST).request, bundle)
    for subject, seconds in ((FLOAT, 0.1 + 10 + 48 + 24 + 12), (INT8, 47.05), (DIFFUSERS, 188.2)):
        parts = frontier_seconds.parts({"stages": STAGES}, scored(Setting.of(subject, **FAST), runs))
        assert parts is not None
        assert sum(parts.values()) == pytest.approx(seconds)
        assert parts["decoder_step"] == pytest.approx(72 * seconds / 94.1)


def test_of_diffusers_the_fastest_way_of_each_component_counts(bundle: Bundle) -> None:
    runs = frontier_seconds.runs(REFERENCE.request, bundle)
    more = [stage("decoder_step", "diffusers bf16 compiled", 11), stage("movq_decoder", "diffusers fp32", 90)]
    failed = {**stage("decoder_step", "diffusers fp32"), "error": "killed"}
    del failed["seconds"]
    parts = frontier_seconds.parts({"stages": [*STAGES, *more, failed]}, scored(REFERENCE, runs))
    assert parts == pytest.approx({"text_encoder": 0.2, "prior_step": 20, "decoder_step": 550, "movq_decoder": 24})


def test_without_a_measurement_there_are_no_seconds(bundle: Bundle) -> None:
    runs = frontier_seconds.runs(Setting.of(FLOAT, skip="forecast").request, bundle)
    assert frontier_seconds.parts({"stages": STAGES}, scored(Setting.of(FLOAT, skip="forecast"), runs)) is None


def options(**changed: Any) -> argparse.Namespace:
    asked = {
        "bundle": Path("float"), "int8_bundle": Path("int8"), "fp32_bundle": None, "backend": "openvino",
        "peers": ["diffusers bf16"], "checkpoint": None, "size": (768, 512), "repeat": 3, "quick": False,
        "shapes_int8": Path("shapes-int8"), "settings": None, "pictures": ["fastest"], "prompts": 2, "threads": None,
        "shapes": Path("shapes"), "name": "test",
    }  # fmt: skip
    return argparse.Namespace(**asked | changed)


def test_who_has_a_setting_that_runs_a_component_takes_turns_at_it(bundle: Bundle) -> None:
    settings = [REFERENCE, Setting.of(FLOAT, skip="forecast"), Setting.of(INT8, **FAST)]
    asked, refused = frontier.possible(settings, bundle)
    cases = frontier_seconds.comparisons(options(), asked, comparisons.size_of((768, 512)))
    every = ("diffusers bf16", "ours openvino", "ours openvino int8")
    assert {(case.component, case.size.guided): case.subjects for case in cases} == {
        ("text_encoder", True): every,
        ("prior_step", True): every,
        ("decoder_step", True): every,
        ("movq_decoder", True): every,
        ("decoder_forecast", True): ("ours openvino",),
        ("decoder_step", False): ("ours openvino int8",),
    }
    assert not refused
    assert {(case.size.width, case.size.height, case.repeat) for case in cases} == {(768, 512, 3)}
    assert len({case.key for case in cases}) == len(cases)


def test_a_setting_that_the_bundle_cannot_run_is_told_and_left_out(handmade_bundle: Bundle) -> None:
    """It has no forecasts."""
    asked, refused = frontier.possible([REFERENCE, Setting.of(FLOAT, skip="forecast")], handmade_bundle)
    assert [setting for setting, _ in asked] == [REFERENCE]
    (why,) = refused.values()
    assert "decoder_forecast" in why


def test_a_bundle_in_int8_is_a_subject_of_its_own(bundle: Bundle) -> None:
    spec = comparisons.subject_spec(options(), bundle, "decoder_step", "ours openvino int8")
    assert (spec["bundle"], spec["backend"], spec["precision"]) == ("int8", "openvino", "int8")
    spec = comparisons.subject_spec(options(), bundle, "decoder_step", "ours openvino")
    assert (spec["bundle"], spec.get("precision")) == ("float", None)
    mine = {"stage": "decoder_step", "backend": "onnxruntime", "bundle": str(bundle.path)}
    assert subjects.ours({**mine, "precision": "fp32"})[1]["precision"] == "fp32"
    with pytest.raises(Exception, match="int8"):
        subjects.ours({**mine, "precision": "int8"})


def test_cases_with_and_without_guidance_are_kept_apart() -> None:
    keys = [Comparison("a", Size(64, 64, guided=guided), ("b",), 1).key for guided in (True, False)]
    assert keys == ["a, 64x64: b; 1 turns", "a, 64x64, not guided: b; 1 turns"]


def test_whole_pictures_are_made_of_the_same_parameters(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, _ = frontier.possible(
        [setting for setting in SETTINGS if presets_of(setting) or setting == REFERENCE], bundle
    )
    whole = frontier.pictures(options(pictures=["fastest"]), asked)
    assert [(each["bundle"], each["precision"]) for each in whole] == [("float", "auto"), ("int8", "int8")]
    for each, subject in zip(whole, (FLOAT, INT8), strict=True):
        assert frontier_report._painted_by(each) == Setting.of(subject, **PRESETS["fastest"])
    one = {**whole[0], "bundle": str(bundle.path), "backend": "onnxruntime", "height": 64, "width": 64}
    asked_for, resolve = [], Pipeline.resolve
    monkeypatch.setattr(Pipeline, "resolve", lambda self, request: asked_for.append(request) or resolve(self, request))
    picture.measure(json.loads(json.dumps(one)))
    assert {name: asked_for[0].parameters[name] for name in PRESETS["fastest"]} == dict(PRESETS["fastest"])  # type: ignore[literal-required]


# Rules


@pytest.mark.parametrize(("right", "of"), [(294, 300), (300, 300), (0, 300), (1, 2), (299, 300), (10, 10)])
def test_an_interval_holds_the_shares_that_the_count_does_not_refuse(right: int, of: int) -> None:
    """Its ends are the shares p that lie 1.96 of their own deviations from what was counted."""
    for end in wilson(right, of):
        away = abs(right / of - end)
        assert away == pytest.approx(1.96 * math.sqrt(end * (1 - end) / of), abs=1e-4)
    low, high = wilson(right, of)
    assert 0 <= low <= right / of <= high <= 1
    assert wilson(294, 300) == pytest.approx((0.957, 0.9908), abs=1e-3)


def point(subject: str, steps: int, seconds: float, right: int) -> Point:
    return Point(Setting.of(subject, scheduler="ddim", num_inference_steps=steps), seconds, right, 300)


def test_the_frontier_has_what_no_other_beats() -> None:
    slow, beaten, best, fast, as_good = (
        point(FLOAT, 40, 400, 296), point(FLOAT, 30, 300, 295), point(FLOAT, 20, 200, 296), point(INT8, 10, 100, 290),
        point(INT8, 9, 100, 290),
    )  # fmt: skip
    assert frontier_of([slow, beaten, best, fast, as_good]) == [fast, as_good, best]
    assert frontier_of([]) == []


def test_a_preset_is_the_fastest_that_is_good_enough_in_every_precision() -> None:
    reference = Point(REFERENCE, 900, 294, 300)  # 98 %
    both = [
        point(FLOAT, 20, 200, 295), point(INT8, 20, 100, 294),
        point(FLOAT, 15, 150, 296), point(INT8, 15, 75, 291),  # 97 %: a point below, no more
        point(FLOAT, 12, 120, 296), point(INT8, 12, 60, 290),  # good enough in float alone
        point(FLOAT, 5, 50, 279), point(INT8, 5, 25, 299),  # five points below
        point(FLOAT, 3, 30, 200), point(INT8, 3, 15, 200),
    ]  # fmt: skip
    alone, theirs = [point(FLOAT, 4, 40, 300)], [point(DIFFUSERS, 2, 1, 300)]
    every = [reference, *both, *alone, *theirs]
    assert recommended(every, reference, 1) == both[2:4]
    assert recommended(every, reference, 5) == both[6:8]
    assert recommended(every, reference, 0) == both[:2]
    assert recommended([reference, *both[8:], *theirs], reference, 5) == []
    of_float = [each for each in every if each.setting.subject == FLOAT]
    assert recommended([reference, *of_float], reference, 1) == alone


def test_the_slower_precision_decides() -> None:
    reference = Point(REFERENCE, 900, 294, 300)
    ten = [point(FLOAT, 10, 100, 294), point(INT8, 10, 10, 294)]
    nine = [point(FLOAT, 9, 90, 294), point(INT8, 9, 95, 294)]
    assert recommended([reference, *ten, *nine], reference, 1) == nine


# What is kept


MACHINE = {
    "processor": "Test CPU", "instructions": ["avx512_bf16"], "memory": 24 << 30, "gpu": "", "system": "Linux",
    "date": "2026-01-01", "commit": "abc", "checkpoint": "random weights of the published sizes",
    "command": "python -m benchmarks.frontier",
    "bundle": {
        "name": "test", "precision": "fp16", "source": {}, "files": {},
        "roles": {"text_encoder": "text_encoder", "prior_step": "prior", "decoder_step": "decoder",
                  "decoder_forecast": "decoder_forecast", "movq_decoder": "movq_decoder"},
    },
}  # fmt: skip
COMMON = {
    "backend": "openvino", "width": 1024, "height": 1024, "prompts": 300,
    "bundles": {"shapes": {"name": "shapes", "precision": "fp32", "bytes": 1}},
}  # fmt: skip


def scored(
    setting: Setting, runs: Mapping[Run, int], wrong: int = 0, distance: float | None = None, pictures: int = 300
) -> dict[str, Any]:
    counted = [{**run._asdict(), "times": times} for run, times in runs.items()]
    found = {"pictures": pictures, "wrong": list(range(wrong)), "distance": distance}
    return {"commit": "abc", "setting": setting.as_json(), "runs": counted, **found}


def made(bundle: Bundle) -> dict[str, Any]:
    """A report of made-up scores of all settings: the more is computed, the more is right."""
    scores = []
    for setting in SETTINGS:
        runs = frontier_seconds.runs(setting.request, bundle)
        steps = runs[Run("decoder_step", True)] + runs[Run("decoder_step", False)]
        wrong = 5 + (400 // steps**2) + (3 if len(setting.given) > 2 else 0)
        scores.append(scored(setting, runs, wrong, None if setting.adds_noise else 80 / steps))
    forecasts = [stage("decoder_forecast", "ours openvino", 0.001)]
    fastest = frontier.pictures(options(), [(each, Counter()) for each in SETTINGS if presets_of(each)])
    size = {"width": 1024, "height": 1024, "batch": 1, "guided": True}
    spec = {"subject": "diffusers bf16", "width": 1024, "height": 1024, "steps": 50}
    timings = {"load": 20.0, "decoder_step": 80.0, "total": 120.0}
    one = {**size, "begun": 1.0, "ended": 121.0, "steps": 12, "prior_steps": 25, "timings": timings}
    painted = {
        "imported": 0.1,
        "opened": 0.2,
        "memory": [],
        "pictures": [{**one, "peak_host_memory": 1, "device_memory": 0}],
    }
    entries = [{"commit": "abc", "settings": fastest[0], **painted},
               {"commit": "abc", "settings": fastest[1], "error": "It was killed"}]  # fmt: skip
    data = {
        "machine": MACHINE,
        "settings": COMMON,
        "stages": [*STAGES, *forecasts],
        "pictures": entries,
        "scores": scores,
        "peers": [
            {"commit": "abc", "spec": spec, "seconds": 880.0, "version": "1.0"},
            {"commit": "abc", "spec": {**spec, "subject": "diffusers fp32"}, "error": "It was killed"},
        ],
    }
    return json.loads(json.dumps(data))


class Painter:
    """Stands for `Shapes`: notes what it paints; `patience` is after how many it is stopped."""

    def __init__(self, patience: int = 1000) -> None:
        self.painted: list[Setting] = []
        self.patience, self.closed = patience, False

    def __call__(self, *arguments: Any) -> Painter:
        return self

    def paint(self, setting: Setting) -> np.ndarray[Any, Any]:
        if len(self.painted) == self.patience:
            raise KeyboardInterrupt
        self.painted.append(setting)
        return np.zeros((2, 4, 4, 3), np.float32)

    def reference(self, kept: KeptPictures) -> np.ndarray[Any, Any]:
        return np.ones((2, 4, 4, 3), np.float32)

    def distance(self, pictures: object, reference: object) -> float:
        return 3.0

    def wrong(self, pictures: object) -> list[int]:
        return [1]

    def close(self) -> None:
        self.closed = True


def test_what_is_scored_is_not_scored_again(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, _ = frontier.possible(SETTINGS, bundle)
    first, second, third = Painter(patience=3), Painter(), Painter()

    def score(painter: Painter) -> FrontierMeasurements:
        monkeypatch.setattr(frontier, "Shapes", painter)
        found = FrontierMeasurements(tmp_path / "test-frontier.json", MACHINE, COMMON)
        frontier.measure_scores(found, options(reports=tmp_path), asked)
        return found

    with pytest.raises(KeyboardInterrupt):
        score(first)
    assert first.closed
    score(second)
    assert first.painted + second.painted == list(SETTINGS)
    found = score(third)
    assert third.painted == []
    kept = {each["setting"]["subject"] + str(each["setting"]["given"]): each for each in found.data["scores"]}
    assert len(kept) == len(SETTINGS)
    assert (kept["diffusers{}"]["wrong"], kept["diffusers{}"]["distance"]) == ([1], None)
    assert found.data["scores"][1]["distance"] == 3.0
    assert {"component": "decoder_step", "guided": True, "times": 50} in kept["diffusers{}"]["runs"]


def test_other_settings_are_not_mixed(tmp_path: Path) -> None:
    FrontierMeasurements(tmp_path / "a.json", MACHINE, COMMON).save()
    with pytest.raises(InputError, match=r"with other settings \(prompts 300, not 30\)"):
        FrontierMeasurements(tmp_path / "a.json", MACHINE, {**COMMON, "prompts": 30})
    with pytest.raises(InputError, match="of another processor"):
        FrontierMeasurements(tmp_path / "a.json", {**MACHINE, "processor": "Other"}, COMMON)


# The report


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_report_is_made_of_the_numbers(bundle: Bundle, tmp_path: Path) -> None:
    data = made(bundle)
    report = frontier_report.write(data, tmp_path / "test-frontier", {"int8: shallow": "The bundle has none."})
    text = report.read_text()
    assert text.startswith("# Seconds against quality: Test CPU\n")
    # 0.2 s, 25 steps of 0.8, 50 of 16, and 24 s; 295 of 300 right.
    assert cells(text, "| 1 |")[1:] == [
        "diffusers: DDPM 50", "50 + 0", "844.2", "1.0", "98.3 % (96.2 to 99.3)", "0, 0", "", "",
    ]  # fmt: skip
    values = PRESETS["fastest"]
    fastest, steps = Setting.of(INT8, **values), values["num_inference_steps"]
    guided = sum(step / steps < values["guidance_interval"][1] for step in range(steps))
    whole = 0.1 + 0.4 * values["prior_num_inference_steps"] + 8 * guided + 4 * (steps - guided) + 12
    row = cells(text, f"| {SETTINGS.index(fastest) + 1} |")
    assert row[1].strip("*") == fastest.name
    assert row[2:5] == [f"{guided} + {steps - guided}", f"{whole / 2:.1f}", f"{844.2 / (whole / 2):.1f}"]
    assert row[-1] == "fastest"
    forecast = Setting.of(FLOAT, scheduler="ddim", num_inference_steps=50, skip="forecast:2")
    assert cells(text, f"| {SETTINGS.index(forecast) + 1} |")[2] == "28 + 0 + 22"
    assert "- int8: shallow: The bundle has none." in text
    best = frontier_of(points(data))
    assert text.count("| **") == len(best) > 2
    for each in best:
        assert f"**{each.setting.name}**" in text
    # Of 120 s 20 are loading.
    composed = [f"{whole:.1f}", "100.0", f"{100 / whole:.2f}"]
    assert cells(text, f"| {Setting.of(FLOAT, **values).name} |")[1:] == composed
    assert text.count("| It was killed |") == 2
    # 50 steps of 16 s, and 24 s.
    assert cells(text, "| diffusers bf16, 50 steps")[1:] == ["824.0", "880.0", "1.07"]
    assert cells(text, "| decoder_step, not guided | ours openvino int8")[2:] == ["1", "2", "2 to 2"]
    rule = cells(text, "| `fast` |")
    assert rule[1] == "the fastest at most 1 point below 98.3 %"
    assert rule[4] == Setting.of(FLOAT, **PRESETS["fast"]).words
    assert (tmp_path / "test-frontier.png").stat().st_size > 20_000


def test_a_report_of_parts_is_told(bundle: Bundle, tmp_path: Path) -> None:
    data = made(bundle)
    for lacking in ("stages", "scores", "pictures"):
        text = frontier_report.write({**data, lacking: []}, tmp_path / lacking, {}).read_text()
        assert (tmp_path / f"{lacking}.png").exists() == (lacking == "pictures") == (".png" in text)
    text = (tmp_path / "stages.md").read_text()
    assert cells(text, "| 1 |")[3:6] == ["", "", "98.3 % (96.2 to 99.3)"]
    assert "The rules need diffusers: DDPM 50, which is not measured." in text


def test_pictures_that_are_lost_and_won_are_told(bundle: Bundle, tmp_path: Path) -> None:
    data = made(bundle)
    data["scores"][0]["wrong"], data["scores"][2]["wrong"] = [1, 2, 3], [3, 9]
    text = frontier_report.write(data, tmp_path / "test", {}).read_text()
    assert cells(text, "| 3 |")[6] == "1, 2"


def test_a_damaged_report_is_read_and_told_or_refused_in_one_sentence(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontier_report.frontier_plot, "plot", lambda *_: None)
    monkeypatch.setattr(frontier_report, "write_file", lambda *_: None)
    good = made(bundle)
    good["scores"], good["stages"] = good["scores"][:2], STAGES[2:7:2]
    file, read, refused = tmp_path / "test.json", [], []
    for wrong in (good, *damaged(good)):
        file.write_text(json.dumps(wrong))
        try:
            found = FrontierMeasurements(file, MACHINE, COMMON)
        except InputError as error:
            refused.append(str(error))
            continue
        read.append(wrong)
        frontier_report.write(found.data, tmp_path / "test", {})
    assert good in read
    assert all(why.startswith(str(file)) and why.count("\n") == 0 for why in refused)
    assert len(refused) > 500
    good["scores"][0]["wrong"] = [300]
    file.write_text(json.dumps(good))
    with pytest.raises(InputError, match=r"damaged: scores\[0\] is an object, expected places among all pictures"):
        FrontierMeasurements(file, MACHINE, COMMON)


# The program


def arguments(monkeypatch: pytest.MonkeyPatch, line: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["frontier.py", *shlex.split(line)])
    return frontier._options()


def test_settings_are_chosen_by_words_and_by_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"a --shapes b --reports {tmp_path}"
    both = f"{line} --int8 c --shapes-int8 d"
    assert frontier.chosen(arguments(monkeypatch, both)) == list(SETTINGS)
    assert {each.subject for each in frontier.chosen(arguments(monkeypatch, line))} == {DIFFUSERS, FLOAT}
    for lacking in ("--int8 c", "--shapes-int8 d"):
        assert frontier.chosen(arguments(monkeypatch, f"{line} {lacking}")) == frontier.chosen(
            arguments(monkeypatch, line)
        )
    few = frontier.chosen(arguments(monkeypatch, f"{both} --settings int8: forecast"))
    assert few[0] == REFERENCE
    assert {each.subject for each in few[1:]} == {FLOAT, INT8}
    assert all(each.subject == INT8 or "forecast" in each.name for each in few[1:])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("--prompts 0", "--prompts is 0; expected 1 to 300"), ("--prompts 301", "expected 1 to 300"),
     ("--repeat 0", "must be more than 0"), ("--patience nan", "must be more than 0"),
     ("--pictures faster", "invalid choice: 'faster'"), ("--only speed", "invalid choice: 'speed'"),
     ("--settings DDPM Karas", "--settings has 'Karas', which no setting has in its name")],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, sentence: str
) -> None:
    with pytest.raises(SystemExit):
        arguments(monkeypatch, f"a --shapes b --reports {tmp_path} {line}")
    assert sentence in capsys.readouterr().err


def test_diffusers_and_we_paint_the_same_picture_of_a_setting(shapes_bundle: Path) -> None:
    """In fp32, so that a setting's score is diffusers' own where nothing but the implementation differs."""
    shapes = Shapes({FLOAT: shapes_bundle}, "onnxruntime", 2, 2)
    given = {"scheduler": "dpm++-karras", "num_inference_steps": 4}
    ours, theirs = (shapes.paint(Setting.of(subject, **given)) for subject in (FLOAT, DIFFUSERS))
    assert ours.shape == (2, 128, 128, 3)
    assert np.abs(ours - theirs).max() < 2 / 255
    assert shapes.wrong(ours) == shapes.wrong(theirs)
    assert shapes.distance(ours, ours) == 0
    shapes.close()


def test_what_is_wrong_is_what_the_judge_does_not_read(shapes_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures reach it from -1 to 1; the prompts are spread over the card's."""
    shapes, seen = Shapes({FLOAT: shapes_bundle}, "onnxruntime", 1, 3), []

    def classify(judge: object, pictures: Any) -> Any:
        seen.append(pictures)
        read = shapes._scenes.clone()
        read[1, 4] += 1
        return read

    monkeypatch.setattr("benchmarks.frontier_scores.classifier.classify", classify)
    assert shapes.wrong(np.linspace(0, 1, 3, dtype=np.float32)[:, None, None, None].repeat(3, axis=3)) == [1]
    assert seen[0][:, 0, 0, 0].tolist() == [-1, 0, 1]
    from benchmarks.shapes import text2img

    every, scenes = text2img.unseen_prompts()
    assert shapes.prompts == [every[place] for place in (0, 100, 200)]
    assert shapes._scenes.tolist() == scenes[[0, 100, 200]].tolist()


def test_the_reference_is_painted_once_and_of_few_prompts(shapes_bundle: Path, tmp_path: Path) -> None:
    shapes = Shapes({FLOAT: shapes_bundle}, "onnxruntime", 1, 90)
    asked: list[slice] = []

    def paint(subject: str, precision: str, given: Mapping[str, Any], which: slice) -> np.ndarray[Any, Any]:
        asked.append(which)
        assert (subject, precision, given["num_inference_steps"]) == (FLOAT, "fp32", 500)
        return np.ones((30, 4, 4, 3), np.float32)

    shapes._by_us = paint  # type: ignore[method-assign,assignment]
    kept = KeptPictures(tmp_path / "reference.tmp")
    for _ in range(2):
        reference = shapes.reference(kept)
    assert asked == [slice(None, None, 3)]
    far = np.zeros((90, 4, 4, 3), np.float32)
    far[1::3] = 7  # not compared
    assert shapes.distance(far, reference) == 255
    kept.write(np.ones((29, 4, 4, 3), np.float32))
    shapes.reference(kept)
    assert len(asked) == 2


@pytest.mark.slow
def test_from_bundles_to_a_report(shapes_bundle: Path, shapes_checkpoint: Path, tmp_path: Path) -> None:
    """Few prompts of the trained checkpoint, which is timed too; what is there is not made again."""
    words = [str(shapes_bundle), "--shapes", str(shapes_bundle), "--checkpoint", str(shapes_checkpoint / "decoder"),
             "--reports", str(tmp_path), "--name", "test", "--quick", "--prompts", "2", "--backend", "onnxruntime",
             "--peers", "diffusers fp32"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["frontier.py", *words, "--slow-peer"])
        frontier.main()
        data = json.loads((tmp_path / "test-frontier.json").read_text())
        assert not [each for each in (*data["stages"], *data["pictures"], *data["peers"]) if "error" in each]
        found = points(data)
        assert {each.setting.subject for each in found} == {DIFFUSERS, FLOAT}
        assert all(each.seconds > 0 and each.pictures == 2 for each in found)
        text = (tmp_path / "test-frontier.md").read_text()
        assert "| `fast` |" in text
        assert "| diffusers fp32, 50 steps, without text encoder and prior |" in text
        patch.setattr(frontier.latency.workers, "Worker", MagicMock(side_effect=AssertionError("measured again")))
        patch.setattr(frontier, "Shapes", MagicMock(side_effect=AssertionError("scored again")))
        frontier.main()
        assert json.loads((tmp_path / "test-frontier.json").read_text()) == data
