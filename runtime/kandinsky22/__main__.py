"""`python -m kandinsky22`: the command line."""

import sys

from kandinsky22.cli.main import main

sys.exit(main())
