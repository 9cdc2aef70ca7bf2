"""`python -m kandinsky22_export` is `kandinsky22-export`."""

import sys

from kandinsky22_export.program import run

if __name__ == "__main__":  # and not where a process of `parallel` imports it
    sys.exit(run())
