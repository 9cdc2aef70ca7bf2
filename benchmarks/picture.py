"""Whole pictures in a process of its own, with its memory over time: `python -m benchmarks.picture '{"bundle": …}'`.

Prints one JSON object: seconds from the start of Python to the picture, by component, and samples of resident memory.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
"""Before anything else is imported: the import of the runtime counts."""
INTERVAL = 0.2


def since_start() -> float:
    """Seconds since the start of Python."""
    return time.perf_counter() - STARTED


def main() -> None:
    """Make pictures as the argument says, and print what was measured, or the sentence that refused them."""
    settings = json.loads(sys.argv[1])
    samples: list[tuple[float, int]] = []
    threading.Thread(target=_watch, args=(samples,), daemon=True).start()
    print(json.dumps(measure(settings) | {"memory": samples[::5]}))


def _watch(samples: list[tuple[float, int]]) -> None:
    """Note resident memory until the process ends."""
    while True:
        time.sleep(INTERVAL)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        samples.append((since_start(), pages * 4096))


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Make `pictures` pictures, one after the other."""
    from kandinsky22 import Pipeline
    from kandinsky22.errors import MemoryLimitError
    from kandinsky22.measure import timing

    imported = since_start()
    machine = {"precision": settings.get("precision", "auto"), "low_memory": settings["low_memory"]}
    pipe = Pipeline.load(settings["bundle"], settings["backend"], **machine)
    opened = since_start()
    size = timing.Size(settings["height"], settings["width"])
    how = {name: settings[name] for name in ("steps", "prior_steps", "scheduler")} | settings.get("given", {})
    pictures: list[dict[str, Any]] = []
    for index in range(settings["pictures"]):
        begun = since_start()
        try:
            picture = timing.time_picture(pipe, size, **how, first=index == 0)
        except MemoryLimitError as error:
            return {"refused": str(error)}
        pictures.append({"begun": begun, "ended": since_start(), **timing.as_json(picture)})
    return {"imported": imported, "opened": opened, "pictures": pictures}


if __name__ == "__main__":
    main()
