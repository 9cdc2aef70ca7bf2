"""The one OpenVINO of a process, for the backend and for depth maps. It is imported only when it is asked for."""

from __future__ import annotations

import functools
import sys
from typing import Any

_TELEMETRY = "openvino_telemetry"


def imported() -> Any:
    """The module openvino, without its telemetry. Raises ImportError where it is not installed.

    Importing it tells Google Analytics that it was imported, from a forked process, unless the user has refused: a
    runtime asks nothing of the outside, and a fork beside threads can hang. Who has imported it before us decides for
    themselves.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    before = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # an import of it fails, and openvino's own stub is used
    try:
        import openvino
    finally:
        del sys.modules[_TELEMETRY]
        if before is not None:
            sys.modules[_TELEMETRY] = before
    return openvino


@functools.cache
def core() -> Any:
    """OpenVINO, started once and never stopped. Raises ImportError where it is not installed.

    Its CPU plugin gives the thread that starts it an alternate stack for signals, and puts the one before back when it
    stops. Where two of them overlap, the second puts back the memory that the first has freed, and the next signal
    (Ctrl-C, since Python handles signals on that stack) ends the process with a segmentation fault.
    """
    return imported().Core()
