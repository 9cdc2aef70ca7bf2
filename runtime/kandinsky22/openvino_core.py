"""The one OpenVINO of a process, for the backend and for depth maps. It is imported only when it is asked for."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def core() -> Any:
    """OpenVINO, started once and never stopped. Raises ImportError where it is not installed.

    Its CPU plugin gives the thread that starts it an alternate stack for signals, and puts the one before back when it
    stops. Where two of them overlap, the second puts back the memory that the first has freed, and the next signal
    (Ctrl-C, since Python handles signals on that stack) ends the process with a segmentation fault.
    """
    import openvino as ov

    return ov.Core()
