"""The program `kandinsky22`: what its script and `python -m kandinsky22` import, and nothing else does.

Importing it decides what signals do in this process, before anything that takes time is imported.
"""

from kandinsky22.cli import signals

signals.end_at_once()


def run() -> int:
    """Run the command line of this process; the exit code. Where a signal has stopped it, the process dies of it."""
    from kandinsky22.cli import streams
    from kandinsky22.cli.main import fail, main

    code = main() if streams.prepare() else fail(streams.CLOSED)
    signals.end_silently()
    if code - 128 in signals.SIGNALS:
        signals.die(code - 128)
    return code
