"""TensorRT as it is installed here: its flavours, and the classes of ours that it calls (log, monitor, writer)."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from kandinsky22.errors import BackendError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Flavours by name, and what each is imported as. The names are also those of the extras that install them."""


@dataclass(frozen=True)
class Flavour:
    """TensorRT ("tensorrt") or TensorRT for RTX ("tensorrt-rtx"), imported: one API, plans that do not mix."""

    name: str
    module: ModuleType
    version: str

    @property
    def needs_gpu(self) -> bool:
        """Whether building needs the GPU that the plan is for. TensorRT for RTX builds anywhere, for many GPUs."""
        return self.name == "tensorrt"


def flavours() -> list[Flavour]:
    """The flavours that import here, TensorRT first. Never raises."""
    found = []
    for name, module_name in MODULES.items():
        try:
            module = importlib.import_module(module_name)
        except (ImportError, OSError):  # OSError: the package is there, a library that it loads is not
            continue
        found.append(Flavour(name, module, module.__version__))
    return found


def flavour(name: str) -> Flavour:
    """The flavour `name`, or the first one that imports for "auto". Raises BackendError where it does not import."""
    if name != "auto" and name not in MODULES:
        raise BackendError(f"There is no TensorRT flavour {name!r}; choose one of auto, {', '.join(MODULES)}.")
    for each in flavours():
        if name in ("auto", each.name):
            return each
    wanted = "TensorRT" if name == "auto" else f"The flavour {name} of TensorRT"
    extras = " or ".join(f"pip install kandinsky22[{extra}]" for extra in MODULES if name in ("auto", extra))
    raise BackendError(f"{wanted} does not import here; install it: {extras}.")


def rtx_targets(module: Any, *, turing: bool = False) -> tuple[str, ...]:
    """Compute capabilities that TensorRT for RTX builds for, as "8.6"; Turing's 7.5 must be asked for."""
    names = (name[2:] for name in module.ComputeCapability.__members__ if name.startswith("SM"))
    targets = tuple(f"{name[:-1]}.{name[-1]}" for name in names)
    return targets if turing else tuple(target for target in targets if target != "7.5")


@functools.cache
def logger(module: Any) -> Any:
    """The one ILogger of this process, which prints nothing and keeps what matters.

    One, because TensorRT says that a second differs from the first while it holds the lock that its destructors take.
    Python may destroy something of TensorRT's in that very call (a collection of garbage begins anywhere, another
    thread lets go of an engine), and would wait for itself for ever.

    `errors` are messages, `layers` and `tensors` the lines that describe a finished engine and its border, and
    `failure` is the exception that went through it, which TensorRT would drop; all of them since `clear()`.
    """
    error = module.ILogger.Severity.ERROR

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.clear()

        def clear(self) -> None:
            self.errors: list[str] = []
            self.layers: list[str] = []
            self.tensors: list[str] = []
            self.failure: BaseException | None = None

        def log(self, severity: Any, message: str) -> None:
            try:
                if severity <= error:
                    self.errors.append(message)
                elif "LayerType: " in message or "IOMode: " in message:
                    lines = message.splitlines()
                    self.layers += [line for line in lines if "LayerType: " in line]
                    self.tensors += [line for line in lines if "IOMode: " in line]
            except BaseException as failure:
                self.failure = self.failure or failure

    return Log()


def make_monitor(module: Any, on_progress: Callable[[str, int, int], None] | None) -> Any:
    """An IProgressMonitor that calls `on_progress(phase, steps done, steps known)`, and stops a build by `cancel()`.

    `failure` is the exception that `on_progress` raised, which also stops the build: TensorRT would drop it.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.failure: BaseException | None = None
            self._cancelled = threading.Event()
            self._lock = threading.Lock()  # TensorRT calls from several threads
            self._open: dict[str, list[int]] = {}
            self._done = self._known = 0

        def cancel(self) -> None:
            self._cancelled.set()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._open[phase_name] = [0, num_steps]
                self._known += num_steps
            self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._open:
                    self._open[phase_name][0] += 1
                    self._done += 1
            self._tell(phase_name)
            return not self._cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                done, steps = self._open.pop(phase_name, (0, 0))
                self._done += steps - done
            self._tell(phase_name)

        def _tell(self, phase: str) -> None:
            if on_progress is None or self.failure is not None:
                return
            try:
                on_progress(phase, self._done, self._known)
            except BaseException as failure:
                self.failure = failure
                self._cancelled.set()

    return Monitor()


def make_writer(module: Any, sink: Callable[[bytes | memoryview], None]) -> Any:
    """An IStreamWriter that hands what is written to `sink`; `failure` is the exception that `sink` raised."""

    class Writer(module.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.failure: BaseException | None = None

        def write(self, data: bytes) -> int:
            if self.failure is None:
                try:
                    sink(data)
                    return len(data)
                except BaseException as failure:
                    self.failure = failure
            return 0  # fewer bytes than there were: TensorRT stops

    return Writer()
