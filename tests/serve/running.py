"""A real server in a process of its own, for tests: started, killed, started again on the same folder."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Running:
    """`kandinsky22 serve` on one folder and one port, as often as it is started."""

    def __init__(self, bundle: Path, data: Path, *flags: str, log: Path | None = None) -> None:
        self.port, self.data = free_port(), data
        self.base = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "kandinsky22", "serve", str(bundle), "--port", str(self.port)]
        self._command += ["--data", str(data), "--no-ui", *flags]
        self._log = log or data.parent / f"{data.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 120, verify: ssl.SSLContext | bool = True) -> Running:
        """Start it, and wait until it answers; `verify` are certificates to trust."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        self.wait_for("/healthz", seconds, verify)
        return self

    def wait_for(self, path: str, seconds: float = 120, verify: ssl.SSLContext | bool = True) -> None:
        """Wait until a path answers with 200."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self._log.read_text()[-2000:]
            try:
                if httpx.get(self.base + path, timeout=5, verify=verify).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise TimeoutError(f"{path} did not answer: {self._log.read_text()[-2000:]}")

    def engine(self) -> int | None:
        """The process of the engine: the server's child that runs it."""
        assert self.process is not None
        for child in children(self.process.pid):
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            if b"kandinsky22_serve.engine.worker" in command:
                return child
        return None

    def kill(self, ending: int = signal.SIGKILL) -> int:
        """End it with a signal; the exit code."""
        assert self.process is not None
        self.process.send_signal(ending)
        return self.process.wait(60)

    def stop(self) -> None:
        """End it, however it is."""
        if self.process is not None and self.process.poll() is None:
            self.kill(signal.SIGTERM)

    def __enter__(self) -> Running:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def children(process: int) -> list[int]:
    """Processes that a process started, by Linux' /proc."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdecimal():
            try:
                status = (each / "stat").read_text()
            except OSError:
                continue
            if int(status.rpartition(")")[2].split()[1]) == process:
                found.append(int(each.name))
    return found


def resident(process: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def small(prompt: str, **more: Any) -> dict[str, Any]:
    """Inputs of a picture that is quickly made."""
    return {
        "prompt": prompt,
        "width": 64,
        "height": 64,
        "num_inference_steps": 4,
        "num_inference_steps_prior": 2,
        "output_format": "png",
        **more,
    }
