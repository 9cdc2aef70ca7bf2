"""`python -m kandinsky22`: the command line."""

import sys

from kandinsky22.cli.program import run

sys.exit(run())
