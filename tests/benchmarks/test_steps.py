"""Quality against steps: what is kept, what is skipped, and a report of made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kandinsky22.bundle.bundle import Bundle
from kandinsky22.errors import InputError

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("torch", reason="torch is not installed")

from benchmarks import runs, steps, steps_report
from benchmarks.runs import RunMeasurements

from ..damaged import damaged

SETTINGS = {"bundle": "shapes", "backend": "onnxruntime", "prompts": 2}
SECONDS = {
    "rest": 0.5,
    "steps": {name: {"guided": 0.02, "unguided": 0.01} for name in runs.SAMPLERS},
    "processor": "Test CPU, 1 threads",
    "date": "2026-01-01",
}


class Painter:
    """Paints grey that tells the steps, and notes what it painted; `patience` is after how many it is stopped."""

    def __init__(self, patience: int = 1000) -> None:
        self.painted: list[runs.Run] = []
        self.patience = patience

    def __call__(self, run: runs.Run) -> runs.Pictures:
        if len(self.painted) == self.patience:
            raise KeyboardInterrupt
        self.painted.append(run)
        return np.full((2, 4, 4, 3), 1 / run[1], np.float32)


def score(pictures: runs.Pictures) -> dict[str, float]:
    return {"shape": 100.0, "everything": 90.0}


def test_what_is_there_is_not_painted_again(tmp_path: Path) -> None:
    first, second, third = Painter(patience=3), Painter(), Painter()
    with pytest.raises(KeyboardInterrupt):
        steps.run_missing(RunMeasurements(tmp_path, SETTINGS), first, score)
    steps.run_missing(RunMeasurements(tmp_path, SETTINGS), second, score)
    assert first.painted + second.painted == list(runs.RUNS)
    store = RunMeasurements(tmp_path, SETTINGS)
    steps.run_missing(store, third, score)
    assert third.painted == []
    # The distance to the reference, which the second run read from the disk: 255 · (1/50 - 1/500).
    row = runs.find(store.data["runs"], runs.DEFAULT)
    assert row is not None
    assert row["distance"] == pytest.approx(255 * 0.018, rel=1e-5)
    assert row["scores"]["everything"] == 90.0


def test_without_its_pictures_the_reference_is_painted_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        steps.run_missing(RunMeasurements(tmp_path, SETTINGS), Painter(patience=3), score)
    (tmp_path / "steps-reference.tmp").unlink()
    painter, store = Painter(), RunMeasurements(tmp_path, SETTINGS)
    steps.run_missing(store, painter, score)
    assert painter.painted == [runs.REFERENCE, *runs.RUNS[3:]]
    assert [runs.key_of(row) for row in store.data["runs"]] == list(runs.RUNS)


def test_other_settings_are_not_mixed(tmp_path: Path) -> None:
    RunMeasurements(tmp_path, SETTINGS).save()
    with pytest.raises(InputError, match=r"with other settings \(prompts 2, not 3\)"):
        RunMeasurements(tmp_path, {**SETTINGS, "prompts": 3})


@pytest.mark.parametrize(
    ("interval", "counted"),
    [((0.0, 1.0), (20, 0)), ((0.0, 0.5), (10, 10)), ((0.25, 0.75), (10, 10)), ((0.0, 0.0), (0, 20))],
)
def test_evaluations(interval: runs.Interval, counted: tuple[int, int]) -> None:
    assert runs.evaluations(("dpm++", 20, interval)) == counted


def test_karras_levels_are_a_config() -> None:
    config = {"_class_name": "DDPMScheduler", "beta_end": 0.012}
    pipe: Any = SimpleNamespace(bundle=SimpleNamespace(manifest=SimpleNamespace(schedulers={"decoder": config})))
    made = {name: steps.scheduler(pipe, name) for name in runs.SAMPLERS}
    assert made["ddim"]["_class_name"] == "DDIMScheduler"
    assert made["dpm++"]["beta_end"] == 0.012
    assert made["dpm++ karras"] == {**made["dpm++"], "use_karras_sigmas": True}


def test_the_distance_is_of_255() -> None:
    black = np.zeros((2, 4, 4, 3), np.float32)
    half = black.copy()
    half[0] = 1
    assert steps.distance(half, black) == pytest.approx(255 * 0.5**0.5)


def test_the_score_is_of_pictures_from_minus_one_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """White pictures reach the classifier as 1 and black ones as -1; the prompts are spread over the card's."""
    seen: list[Any] = []

    def judged(judge: object, pictures: Any, scenes: Any) -> dict[str, dict[str, float]]:
        seen.append((pictures, scenes))
        return {"all": {"everything": 100.0, "held out": 0.0}}

    monkeypatch.setattr(steps, "RUNS", (runs.REFERENCE,))
    monkeypatch.setattr(steps.text2img, "score", judged)
    monkeypatch.setattr(steps, "paint", lambda pipe, embeds, run: np.eye(2, dtype=np.float32).reshape(2, 1, 2, 1))
    asked: list[list[str]] = []
    pipe: Any = SimpleNamespace(embed=lambda prompts, **_: asked.append(prompts))
    store = RunMeasurements(tmp_path, SETTINGS)
    steps.paint_missing(pipe, store)
    prompts, scenes = steps.text2img.unseen_prompts()
    assert asked == [[prompts[0], prompts[150]]]
    (pictures, judged_scenes) = seen[0]
    assert pictures.flatten().tolist() == [1, -1, -1, 1]
    assert judged_scenes.tolist() == scenes[[0, 150]].tolist()
    assert store.data["runs"][0]["scores"] == {"everything": 100.0}


def made(seconds: dict[str, Any]) -> dict[str, Any]:
    def row(run: runs.Run) -> dict[str, Any]:
        right = 100 - 40 / run[1] - (run[2] != runs.ALWAYS)
        return {**runs.row_of(run), "distance": 100 / run[1], "scores": {"everything": right}}

    return json.loads(json.dumps({"settings": SETTINGS, "seconds": seconds, "runs": [row(run) for run in runs.RUNS]}))


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_report_is_made_of_the_numbers(tmp_path: Path) -> None:
    steps_report.write(made({}), tmp_path)
    text = (tmp_path / "steps.md").read_text()
    assert cells(text, "| DDPM | 50") == ["DDPM", "50", "100", "99.2 %", "2.00"]
    assert cells(text, "| DPM-Solver++ (2M) | 20 | 25%")[2:] == ["25% to 75%", "30", "25%", "97.0 %", "5.00"]
    assert cells(text, "| DPM-Solver++ (2M) | 20 | none")[2:5] == ["none", "20", "50%"]
    assert "Seconds are not measured yet" in text
    plain = (tmp_path / "steps.png").stat().st_size
    assert plain > 5000
    (tmp_path / "steps.md").write_text(text.replace("None yet.", "Ten are enough."))
    steps_report.write(made(SECONDS), tmp_path)
    text = (tmp_path / "steps.md").read_text()
    # 0.5 s and 50 · 0.02 s; 0.5 s, 10 · 0.02 s and 10 · 0.01 s.
    assert cells(text, "| DDPM | 50")[-1] == "1.50"
    assert cells(text, "| DPM-Solver++ (2M) | 20 | 0%")[-1] == "0.80"
    assert text.endswith("## Conclusion\n\nTen are enough.\n")
    assert (tmp_path / "steps.png").stat().st_size > plain


def test_a_damaged_report_is_read_and_told_or_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_report, "plot", lambda *_: None)
    good = made(SECONDS)
    good["runs"] = [row for row in good["runs"] if row["steps"] == 20][:2]
    read, refused = [], []
    for wrong in (good, *damaged(good)):
        (tmp_path / "steps.json").write_text(json.dumps(wrong))
        try:
            found = RunMeasurements(tmp_path, SETTINGS)
        except InputError as error:
            refused.append(str(error))
            continue
        read.append(wrong)
        steps_report.write(found.data, tmp_path)
        list(map(found.has, runs.RUNS))
    assert good in read
    assert any("seconds is an object, expected seconds of all samplers, or none" in why for why in refused)
    assert all(why.startswith(str(tmp_path)) and why.count("\n") == 0 for why in refused)
    assert len(refused) > 300


def test_the_published_report_is_read_and_told_as_it_was_published(tmp_path: Path) -> None:
    published = Path(__file__).parents[2] / "benchmarks" / "reports"
    (tmp_path / "steps.json").write_bytes((published / "steps.json").read_bytes())
    settings = json.loads((published / "steps.json").read_text())["settings"]
    steps_report.write(RunMeasurements(tmp_path, settings).data, tmp_path)
    made, expected = ((folder / "steps.md").read_text() for folder in (tmp_path, published))
    tables = [[line for line in text.splitlines() if line.startswith("| ")] for text in (made, expected)]
    assert tables[0] == tables[1]
    assert len(tables[0]) > 40


def test_seconds_are_medians_of_warm_calls(handmade_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first turn loads, and two in the middle are disturbed: none of them counts."""
    calls: list[dict[str, Any]] = []
    cases = 2 * len(runs.SAMPLERS)

    class Pipe:
        bundle = handmade_bundle

        def __call__(self, prompt: str, **options: Any) -> Any:
            calls.append(options)
            guided = options["guidance_interval"] == runs.ALWAYS
            step = 0.2 if guided else 0.1
            step *= 50 if len(calls) <= cases or 2 * cases < len(calls) <= 4 * cases else 1
            decoder = step * options["num_inference_steps"]
            return SimpleNamespace(timings={"decoder_step": decoder, "total": decoder + 0.3})

    monkeypatch.setattr(steps, "scheduler", lambda pipe, sampler: sampler)
    found = steps.measure_seconds(Pipe())  # type: ignore[arg-type]
    assert found["rest"] == pytest.approx(0.3)
    assert found["steps"]["ddim"] == pytest.approx({"guided": 0.2, "unguided": 0.1})
    assert len(calls) == cases * (1 + runs.TIMED_CALLS)
