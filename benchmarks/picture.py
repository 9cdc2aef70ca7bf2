"""Whole pictures in a process of its own, with its memory over time: `python benchmarks/picture.py '{"bundle": …}'`.

Prints one JSON object: seconds from the start of Python to the picture, by stage, and samples of resident memory.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "runtime")]
INTERVAL = 0.2


def main() -> None:
    """Make `pictures` pictures one after the other."""
    spec = json.loads(sys.argv[1])
    from kandinsky22 import Pipeline
    from kandinsky22.errors import MemoryLimitError
    from kandinsky22.measure import timing

    samples: list[tuple[float, int]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(INTERVAL):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            samples.append((time.perf_counter() - STARTED, pages * 4096))

    threading.Thread(target=watch, daemon=True).start()
    imported = time.perf_counter() - STARTED
    pipe = Pipeline.load(
        spec["bundle"],
        spec["backend"],
        precision=spec.get("precision", "auto"),
        low_memory=spec.get("low_memory", False),
    )
    opened = time.perf_counter() - STARTED
    size = timing.Size(spec["height"], spec["width"], spec.get("batch", 1))
    pictures: list[dict[str, Any]] = []
    for _ in range(spec.get("pictures", 1)):
        begun = time.perf_counter() - STARTED
        try:
            picture = timing.time_picture(
                pipe,
                size,
                steps=spec["steps"],
                prior_steps=spec["prior_steps"],
                scheduler=spec.get("scheduler"),
                first=not pictures,
            )
        except MemoryLimitError as error:
            print(json.dumps({"refused": str(error)}))
            return
        pictures.append({"begun": begun, "ended": time.perf_counter() - STARTED, **timing.as_json(picture)})
    ended.set()
    result = {"imported": imported, "opened": opened, "pictures": pictures, "memory": samples[::5]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
