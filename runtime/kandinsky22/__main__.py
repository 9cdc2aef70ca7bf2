"""`python -m kandinsky22`: the command line."""

import sys

from kandinsky22.cli import main

sys.exit(main())
