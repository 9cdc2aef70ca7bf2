"""What `kandinsky22 compare` tells: the report as JSON and as a table, and the text on its sheets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kandinsky22.cli.printable import printable
from kandinsky22.cli.tables import columns
from kandinsky22.version import VERSION

if TYPE_CHECKING:
    from kandinsky22.measure.compare import Comparison, Pair, Statistics, Which

NAMES = ("first", "second")
"""Of the sides, in files and flags."""
LONGEST_PROMPT = 60
"""Characters of a prompt in the table."""


def caption(place: int, pair: Pair) -> list[str]:
    """What was measured of a pair, and its prompt: two lines for a sheet."""
    psnr = "identical" if pair.identical else f"PSNR {pair.psnr:.2f} dB"
    cosine = "" if pair.cosine is None else f"  CLIP {pair.cosine:.4f}"
    seconds = ", ".join(f"{each:.2f} s" for each in pair.seconds)
    return [
        f"{place + 1}  seed {pair.case.seed}  {psnr}  SSIM {pair.ssim:.4f}{cosine}  {seconds}",
        printable(pair.case.prompt),
    ]


def as_json(
    about: Sequence[dict[str, Any]], found: Comparison, names: Sequence[Sequence[str]], sheets: Sequence[str]
) -> dict[str, Any]:
    """The report: what each side is, and all that was measured; `names` are of each pair's files.

    PSNR is null for pictures that are equal, and in the summary it is of those that differ.
    """
    sides: list[Which] = [0, 1]
    return {
        "kandinsky22": VERSION,
        **{NAMES[side]: {**about[side], "load_seconds": found.load_seconds[side]} for side in sides},
        "without_cosine": found.without_cosine or None,
        "pictures": [
            {
                "prompt": pair.case.prompt,
                "seed": pair.case.seed,
                "files": dict(zip(NAMES, files, strict=True)),
                "identical": pair.identical,
                "psnr": None if pair.identical else pair.psnr,
                "ssim": pair.ssim,
                "cosine": pair.cosine,
                "seconds": dict(zip(NAMES, pair.seconds, strict=True)),
            }
            for pair, files in zip(found.pairs, names, strict=True)
        ],
        "summary": {
            "identical": found.identical,
            "psnr": _statistics(found.psnr()),
            "ssim": _statistics(found.ssim()),
            "cosine": _statistics(found.cosine()),
            "seconds": {NAMES[side]: _statistics(found.seconds(side)) for side in sides},
        },
        "sheets": list(sheets),
    }


def _statistics(found: Statistics | None) -> dict[str, float] | None:
    return None if found is None else dataclasses.asdict(found)


def table(told: dict[str, Any]) -> str:
    """A report as text: a line a pair, then the mean, the median and the worst of each measure."""
    rows = [("", "seed", "PSNR dB", "SSIM", "CLIP", *(f"{name} s" for name in NAMES), "prompt")]
    for place, each in enumerate(told["pictures"], 1):
        prompt = each["prompt"][:LONGEST_PROMPT] + ("..." if len(each["prompt"]) > LONGEST_PROMPT else "")
        psnr = "identical" if each["identical"] else _number(each["psnr"], 2)
        rows.append((str(place), str(each["seed"]), psnr, *_numbers(each), prompt))
    summary = told["summary"]
    for name in ("mean", "median", "worst"):
        of = {key: None if summary[key] is None else summary[key][name] for key in ("psnr", "ssim", "cosine")}
        of["seconds"] = {side: summary["seconds"][side][name] for side in NAMES}
        psnr = "identical" if of["psnr"] is None else _number(of["psnr"], 2)
        rows.append((name, "", psnr, *_numbers(of), ""))
    equal = summary["identical"]
    note = f"\nPSNR is of the pictures that differ; {equal} of {len(told['pictures'])} are identical." if equal else ""
    return columns(rows) + note


def _numbers(of: dict[str, Any]) -> list[str]:
    seconds = [_number(of["seconds"][side], 2) for side in NAMES]
    return [_number(of["ssim"], 4), _number(of["cosine"], 4), *seconds]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
