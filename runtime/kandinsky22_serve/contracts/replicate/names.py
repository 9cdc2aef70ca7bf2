"""What the model and its version are called."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from kandinsky22.bundle.bundle import MANIFEST
from kandinsky22_serve.problems import Problem
from kandinsky22_serve.service import Service

PUBLISHED = "ai-forever/kandinsky-2.2"
PUBLISHED_VERSIONS = (
    "ad9d7879fbffa2874e1d909d1d37d9bc682889cc65b31f7bb00d2362619f194a",
    "ea1addaab376f4dc227f5368bbd8eff901820fd1cc14ed8cad63b29249e9d463",
)
"""Versions of the published model that programs and articles name. They mean ours, so that such code runs as it is."""


@dataclass(frozen=True)
class Names:
    """The model's `owner` and `name`, and the id of the one version that there is: of the bundle's manifest."""

    owner: str
    name: str
    version: str

    @property
    def model(self) -> str:
        """As clients write it."""
        return f"{self.owner}/{self.name}"

    def require(self, owner: str, name: str) -> None:
        """Raise Problem where this is not our model."""
        if (owner, name) != (self.owner, self.name):
            raise Problem(404, f"There is no such model; this server has {self.model}.")

    def is_version(self, version: str) -> bool:
        """Whether an id is our version's, or one of the published model's that stand for it."""
        return version == self.version or (self.model == PUBLISHED and version in PUBLISHED_VERSIONS)

    def is_ours(self, reference: str) -> bool:
        """Whether a reference (`id`, `owner/name:id` or `owner/name`) is of our version."""
        if "/" not in reference:
            return self.is_version(reference)
        model, colon, version = reference.partition(":")
        return model == self.model and (self.is_version(version) if colon else True)


def names(service: Service) -> Names:
    """What the model that is served is called."""
    owner, _, name = service.settings.model.partition("/")
    manifest = (service.bundle.path / MANIFEST).read_bytes()
    return Names(owner, name or owner, hashlib.sha256(manifest).hexdigest())
