"""The program `kandinsky22-export`: what its script imports, and nothing else does.

Importing it decides what signals do in this process, before anything that takes time is imported.
"""

import sys

from kandinsky22_export import signals

if "multiprocessing.spawn" not in sys.modules:  # a process of `parallel` imports its parent's script, and is ended
    signals.end_at_once()


def run() -> int:
    """Run the command line of this process; the exit code. Where a signal has stopped it, the process dies of it."""
    from kandinsky22_export.cli import main

    code = main()
    signals.end_silently()
    if code - 128 in signals.SIGNALS:
        signals.die(code - 128)
    return code
