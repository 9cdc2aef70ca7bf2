"""A checkpoint's tokenizer: its files are read and checked here, and transformers gets copies of them alone."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import transformers

from kandinsky22 import schema
from kandinsky22.errors import CheckpointError
from kandinsky22_export.reading import checked, picked, read_bytes, read_object, said

MOST_BYTES = 16 << 20
"""Size of a file of a tokenizer. CLIP's own have up to 4 million bytes."""

_Text = Annotated[str, schema.Rule("a text of up to 256 characters", lambda text: len(text) <= 256)]
_Token = _Text | dict[_Text, _Text | bool]
_Id = Annotated[int, schema.between(0, 1 << 20)]
_CONFIG: dict[str, Any] = {
    "model_max_length": Annotated[int | float, schema.Rule("a number of 1 or more", lambda value: value >= 1)],
    "add_prefix_space": bool,
    "do_lower_case": bool,
    "errors": Annotated[str, schema.one_of("replace", "strict", "ignore")],
    "added_tokens_decoder": dict[Annotated[str, schema.matching(r"[0-9]{1,7}", "a number")], _Token],
}
_SPECIAL: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), _Token | None)
"""Keys of tokenizer_config.json and special_tokens_map.json that are read; the rest is dropped."""


def load_tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    """The CLIP tokenizer of a folder in transformers' layout. Raises CheckpointError."""
    with tempfile.TemporaryDirectory(prefix="kandinsky22-") as copy:
        for name, content in _contents(folder).items():
            (Path(copy) / name).write_bytes(content)
        try:
            tokenizer: transformers.CLIPTokenizer = transformers.CLIPTokenizer.from_pretrained(
                copy, local_files_only=True
            )
        except Exception as error:  # tokenizers raises bare Exceptions
            raise CheckpointError(
                f"{folder} is no CLIP tokenizer: {said(error).replace(copy, str(folder))}."
            ) from error
    return tokenizer


def _contents(folder: Path) -> dict[str, bytes]:
    """The files that a tokenizer is made of, checked. Raises CheckpointError where there are not those of any."""
    contents = {"tokenizer_config.json": _dump(_known(folder / "tokenizer_config.json", _CONFIG | _SPECIAL))}
    if _is_there(folder / "special_tokens_map.json"):
        contents["special_tokens_map.json"] = _dump(_known(folder / "special_tokens_map.json", _SPECIAL))
    for name in ("vocab.json", "added_tokens.json"):
        if _is_there(folder / name):
            found = read_object(folder / name, MOST_BYTES)
            contents[name] = _dump(checked(dict[str, _Id], found, folder / name))
    if _is_there(folder / "tokenizer.json"):
        contents["tokenizer.json"] = _dump(read_object(folder / "tokenizer.json", MOST_BYTES))
    if _is_there(folder / "merges.txt"):
        contents["merges.txt"] = read_bytes(folder / "merges.txt", MOST_BYTES)
    if "tokenizer.json" not in contents and not {"vocab.json", "merges.txt"} <= contents.keys():
        raise CheckpointError(
            f"{folder} is no CLIP tokenizer: it has neither tokenizer.json nor vocab.json and merges.txt."
        )
    return contents


def _known(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    """The keys of a JSON file that are known, each of its kind."""
    found = picked(read_object(path), kinds)
    return {key: checked(kinds[key], value, path, key) for key, value in found.items()}


def _is_there(path: Path) -> bool:
    """Whether a name is there, of whatever kind: what is no file is refused, and not taken for absent."""
    return os.path.lexists(path)


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()
