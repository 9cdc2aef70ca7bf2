"""What README.md of a repository says in its front matter."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from kandinsky22.errors import CheckpointError
from kandinsky22_export.reading import read_bytes, said

MOST_CHARACTERS = 32_000
"""Length of a front matter that is read: YAML takes its time. Those that were published have a few hundred."""


def prior_of(folder: Path) -> str | None:
    """The prior that the card of a decoder in `folder` names; None where there is no card, or it names none."""
    card = folder / "README.md"
    if not os.path.lexists(card):
        return None
    front = REGEX_YAML_BLOCK.search(read_bytes(card).decode("utf-8-sig", "replace"))
    if front and len(front[2]) > MOST_CHARACTERS:
        raise CheckpointError(
            f"The front matter of {card} has {len(front[2])} characters, and at most {MOST_CHARACTERS} are read:"
            " give the prior with --prior, and a folder whose card is shorter."
        )
    try:
        metadata = huggingface_hub.metadata_load(card) or {}
    except Exception as error:  # YAML's errors share no base with others
        raise CheckpointError(f"The front matter of {card} could not be read: {said(error)}.") from error
    priors = metadata.get("prior")
    name = priors[0] if isinstance(priors, list) and priors else priors
    return name if isinstance(name, str) else None
