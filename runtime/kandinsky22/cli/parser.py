"""argparse without a fault of its own, for all command lines."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Any


class ArgumentParser(argparse.ArgumentParser):
    """argparse, which before Python 3.13 makes a list without values of `--flag=--`."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """See argparse; `--flag=--` is a mistake."""
        given = sys.argv[1:] if args is None else list(args)
        for argument in itertools.takewhile(lambda each: each != "--", given):
            flag, _, value = argument.partition("=")
            if flag.startswith("-") and value == "--":
                self.error(f"argument {flag}: the value is --, which ends the flags; expected another one")
        return super().parse_known_args(given, namespace)
