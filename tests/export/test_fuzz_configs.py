"""A checkpoint with one file that somebody damaged or forged: it is read, or refused in one sentence, at once.

Each example changes one file of the trained checkpoint. What is read goes on to where the network is built, without
memory for its weights: no number may make that long. KANDINSKY22_FUZZ_EXAMPLES says how many examples to take.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kandinsky22.errors import CheckpointError
from kandinsky22_export.checkpoints import open_checkpoint
from tests.fuzzing import examples

OTHERS = {"controlnet": "controlnet-depth", "inpaint": "inpaint"}
ROOT = Path(__file__).parents[2] / "checkpoints" / "shapes"
FILES = sorted(
    str(path.relative_to(ROOT))
    for part in ("prior", "decoder", *OTHERS.values())
    for path in (ROOT / part).rglob("*.json")
)
TEXTS = ("\0", "\ud800", "\x1b[31m", "a\nb", "../../etc/passwd", "/dev/zero", "org/x", "ы" * 5000, "NaN", "")
KEYS = (
    *("_attn_implementation", "attn_implementation", "auto_map", "quantization_config", "torch_dtype", "dtype"),
    *("trust_remote_code", "transformers_weights", "fusion_config", "kernel_config", "_class_name", "architectures"),
    *("__class__", "self", "\0", "\ud800", "trained_betas", "use_karras_sigmas", "shift_terminal", "added_tokens"),
)
NUMBERS = (0, -1, 1, 2, 7, 1000, 10**6, 2**31, 2**63, 10**400, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"))

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(),
    st.integers(0, 300),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=20),
)
values = st.one_of(
    plain,
    st.recursive(
        plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    st.builds(lambda number, value: [value] * number, st.integers(0, 40), plain),
    st.builds(lambda deep: json.loads("[" * deep + "]" * deep), st.integers(1, 60)),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@st.composite
def changed(draw: st.DrawFn, text: bytes) -> bytes:
    """A file's text with a value changed, removed or added, a key twice, cut short, with other bytes, or another."""
    found = json.loads(text)
    how = draw(st.sampled_from(["change", "change", "swap", "remove", "add", "twice", "cut", "bytes", "whole", "deep"]))
    container, key = draw(st.sampled_from(list(places(found))[:400]))
    if how == "change":
        container[key] = draw(values)
    elif how == "swap":  # a value that is right elsewhere
        other, place = draw(st.sampled_from(list(places(found))[:400]))
        container[key] = json.loads(json.dumps(other[place]))
    elif how == "remove":
        del container[key]
    elif how == "add":
        found[draw(st.sampled_from(KEYS) | st.text(max_size=10))] = draw(values)
    elif how == "whole":
        return json.dumps(draw(values)).encode()
    elif how == "twice":
        return text.rstrip()[:-1] + b', "_class_name": "a", "_class_name": 1}'
    elif how == "cut":
        return text[: draw(st.integers(0, len(text)))]
    elif how == "bytes":
        at = draw(st.integers(0, len(text)))
        return text[:at] + draw(st.binary(min_size=1, max_size=8)) + text[at + draw(st.integers(0, 8)) :]
    else:
        container[key] = 0
        depth = draw(st.sampled_from([40, 2000, 100_000]))
        return json.dumps(found).replace("0", "[" * depth + "]" * depth, 1).encode()
    return json.dumps(found).encode()


damages = st.sampled_from(FILES).flatmap(lambda name: st.tuples(st.just(name), changed((ROOT / name).read_bytes())))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place for temporary files, and for whatever is written where the program happens to be."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def read(folder: Path, name: str) -> None:
    """All that happens before weights are read, of the file `name`."""
    part = name.split("/")[0]
    others = {role: str(folder / home) for role, home in OTHERS.items() if home == part}
    checkpoint = open_checkpoint(str(folder / ("decoder" if others else part)), **others)
    for network in (*checkpoint.networks.values(), *checkpoint.movqs.values()):
        network.fetch()
    if "tokenizer" in name:
        assert checkpoint.tokenizer is not None
        checkpoint.tokenizer()


@given(damages)
@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(
    forged: Path, scratch: Path, damage: tuple[str, bytes]
) -> None:
    name, text = damage
    path = forged / name
    whole = path.read_bytes()
    path.write_bytes(text)
    try:
        read(forged, name)
    except CheckpointError as error:
        message = str(error)
        assert message.endswith(".")
        assert "\n" not in message
        assert len(message) < 1000
        assert message.encode()
    finally:
        path.write_bytes(whole)
    assert not os.listdir(scratch)


def test_the_checkpoint_itself_is_read(forged: Path, scratch: Path) -> None:
    read(forged, "controlnet-depth/")
    read(forged, "prior/tokenizer")
