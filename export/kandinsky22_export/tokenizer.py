"""The checkpoint's tokenizer as a file of the bundle."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from kandinsky22.bundle.manifest import Text
from kandinsky22.bundle.reading import TOKENIZER
from kandinsky22.errors import CheckpointError
from kandinsky22_export.checkpoints import Checkpoint

PROBES = (
    "",
    "a red circle on a blue background",
    "  A Photo\tof MANY\n spaces, it's 4k!!  ",
    "кот в космосе, 宇宙の猫, 🐱 naïve Ångström",
    "<|startoftext|> special <|endoftext|> tokens",
    "very long " * 60,
)
"""Texts of every kind, which must become the same ids by the bundle's tokenizer as by transformers."""


def write_tokenizer(checkpoint: Checkpoint, folder: Path) -> Text | None:
    """Write tokenizer.json without padding and truncation, which the runtime sets; the manifest's `text`.

    Raises CheckpointError where the file would give other ids than the checkpoint's tokenizer.
    """
    if checkpoint.tokenizer is None:
        return None
    tokenizer = checkpoint.tokenizer()
    length, padding = checkpoint.networks["prior"].config.get("num_embeddings", 77), tokenizer.pad_token_id
    if tokenizer.model_max_length != length or padding is None:
        raise CheckpointError(
            f"The tokenizer's model_max_length is {tokenizer.model_max_length} and its padding {padding};"
            f" the prior needs {length} and a padding token."
        )
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    known, largest = checkpoint.networks["text_encoder"].config["vocab_size"], max(plain.get_vocab().values())
    if largest >= known:
        raise CheckpointError(f"The tokenizer has the token id {largest}; the text encoder knows those below {known}.")
    plain.no_padding()
    plain.no_truncation()
    plain.save(str(folder / TOKENIZER))
    plain.enable_truncation(length)
    plain.enable_padding(length=length, pad_id=padding)
    for probe in PROBES:
        wanted = tokenizer(probe, padding="max_length", max_length=length, truncation=True)
        found = plain.encode(probe)
        if (found.ids, found.attention_mask) != (wanted["input_ids"], wanted["attention_mask"]):
            raise CheckpointError(
                f"The tokenizer could not be converted: {probe!r} gives other ids than in transformers."
            )
    return Text(length, padding)
