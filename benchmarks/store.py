"""Measurements in a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kandinsky22.files import write_file


class JsonStore:
    """What was measured, in `data`: read from the file where there is one, so that a run that was stopped goes on."""

    def __init__(self, path: Path, empty: dict[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else empty

    def save(self) -> None:
        """Write the file, whole or not at all."""
        write_file(self.path, (json.dumps(self.data, indent=1) + "\n").encode())


class MachineStore(JsonStore):
    """Measurements of one machine and bundle (`run.machine`), each with the commit that it was made at."""

    def __init__(self, path: Path, machine: dict[str, Any], **empty: Any) -> None:
        super().__init__(path, {"machine": machine, **empty})
        self._commit = machine["commit"]
        for key in ("processor", "bundle"):
            if self.data["machine"][key] != machine[key]:
                raise SystemExit(f"{path} has measurements of another {key}; choose another --name, or remove it.")

    def keep(self, kind: str, *results: dict[str, Any]) -> None:
        """Add results to those of a kind, and write the file."""
        self.data[kind] += [{"commit": self._commit, **result} for result in results]
        self.save()
