"""The file that keeps what the frontier is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from benchmarks.frontier_settings import SUBJECTS, Setting
from benchmarks.latency import COMPONENT, PICTURE, ComponentMeasurements, ComponentResult, PictureResult
from benchmarks.machine import MachineRecord, complete
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.measure.report import Bytes, Count, Measured, Seconds, Steps
from kandinsky22.schema import NOT_EMPTY, Rule, between, one_of


class Run(NamedTuple):
    """One run of a component; with guidance it has two branches."""

    component: str
    guided: bool


@dataclass(frozen=True)
class SettingRecord:
    """A setting in the report."""

    subject: Annotated[str, one_of(*SUBJECTS)]
    given: dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """How often a picture runs a component, in the report."""

    component: str
    guided: bool
    times: Annotated[int, between(1, 1 << 20)]


Place = Annotated[int, between(0, 1 << 20)]
"""Of a prompt among all that were painted."""


@dataclass(frozen=True)
class ScoreRecord:
    """What a setting painted, in the report: pictures, the places of those that are wrong, and the distance to the
    reference where the sampler is one that comes to the same picture."""

    commit: str
    setting: SettingRecord
    runs: Annotated[tuple[RunRecord, ...], NOT_EMPTY]
    pictures: Count
    wrong: tuple[Place, ...]
    distance: Measured | None


@dataclass(frozen=True)
class PeerSpec:
    """How diffusers' decoder made a picture, in the report."""

    subject: str
    width: Count
    height: Count
    steps: Steps


@dataclass(frozen=True)
class PeerRecord:
    """A picture of diffusers' decoder, in the report."""

    commit: str
    spec: PeerSpec
    error: str = ""
    seconds: Seconds | None = None
    version: str | None = None


PEER = complete("seconds", "version")
AMONG_ALL = Rule("places among all pictures", lambda score: all(place < score.pictures for place in score.wrong))


@dataclass(frozen=True)
class BundleOfFrontier:
    """A bundle in the report."""

    name: str
    precision: str
    bytes: Bytes


@dataclass(frozen=True)
class FrontierSettings:
    """What all measurements have in common: the size that is timed, and what paints the prompts that are scored."""

    backend: str
    width: Count
    height: Count
    prompts: Count
    bundles: dict[str, BundleOfFrontier]


@dataclass(frozen=True)
class FrontierRecord:
    """The report's numbers: components and whole pictures at the published size, and scores of shapes."""

    machine: MachineRecord
    settings: FrontierSettings
    stages: tuple[Annotated[ComponentResult, COMPONENT], ...]
    pictures: tuple[Annotated[PictureResult, PICTURE], ...]
    scores: tuple[Annotated[ScoreRecord, AMONG_ALL], ...]
    peers: tuple[Annotated[PeerRecord, PEER], ...]


class FrontierMeasurements(ComponentMeasurements):
    """What the frontier is made of."""

    def __init__(self, path: Path, machine: dict[str, Any], settings: Mapping[str, Any]) -> None:
        """Read the file where there is one.

        Raises InputError where it is of another machine or bundle, or was made with other settings.
        """
        empty: dict[str, Any] = {"stages": [], "pictures": [], "scores": [], "peers": []}
        super().__init__(path, machine, empty, FrontierRecord, settings)

    def has_score(self, setting: Setting) -> bool:
        """Whether a setting's pictures were scored."""
        return find(self.data, setting) is not None

    def add_score(self, setting: Setting, runs: Counter[Run], score: Mapping[str, Any]) -> None:
        """Keep what a setting's pictures scored, and what one picture runs."""
        counted = [{**run._asdict(), "times": times} for run, times in runs.items()]
        self.keep("scores", {"setting": setting.as_json(), "runs": counted, **score})


def about(bundle: Bundle) -> dict[str, Any]:
    """A bundle in the report."""
    manifest = bundle.manifest
    size = sum(file.bytes for file in manifest.files.values())
    return {"name": manifest.name, "precision": manifest.precision, "bytes": size}


def find(data: Mapping[str, Any], setting: Setting) -> Mapping[str, Any] | None:
    """A setting's score in the report's numbers."""
    wanted = setting.as_json()
    return next((score for score in data["scores"] if score["setting"] == wanted), None)


def runs_of(score: Mapping[str, Any]) -> Counter[Run]:
    """How often one picture of a setting runs each component."""
    return Counter({Run(each["component"], each["guided"]): each["times"] for each in score["runs"]})
