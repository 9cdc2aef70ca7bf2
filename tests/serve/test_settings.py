"""Settings: flags, environment and file, in this order; what cannot be is one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kandinsky22.errors import InputError
from kandinsky22_serve import settings
from kandinsky22_serve.settings import FIELDS, Settings, load, seconds


def told(*flags: str, environment: Mapping[str, str] | None = None) -> Settings:
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser)
    return load(parser.parse_args(flags), environment or {})


def test_flags_come_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    config = tmp_path / "a server.toml"
    config.write_text('bundle = "of-the-file"\nport = 1\nmax_queue = 1\nkeep = "7d"\n')
    environment = {"KANDINSKY22_PORT": "2", "KANDINSKY22_MAX_QUEUE": "2", "KANDINSKY22_HOST": ""}
    found = told("--config", str(config), "--port", "3", environment=environment)
    assert (found.port, found.max_queue, found.keep, found.host) == (3, 2, 7 * 86400, "127.0.0.1")
    assert found.bundle == Path("of-the-file")
    by_environment = {**environment, "KANDINSKY22_CONFIG": str(config), "KANDINSKY22_SERVE_BUNDLE": "of-environment"}
    found = told(environment=by_environment)
    assert (found.port, found.bundle, found.keep) == (2, Path("of-environment"), 7 * 86400)


def test_every_setting_can_be_given_in_each_way(tmp_path: Path) -> None:
    given: dict[str, tuple[str, Any]] = {
        "host": ("::1", "::1"), "port": ("8000", 8000), "token_file": ("t", Path("t")), "tls_cert": ("c", Path("c")),
        "tls_key": ("k", Path("k")), "public_url": ("https://a.example/b", "https://a.example/b"),
        "data": ("d", Path("d")), "max_queue": ("7", 7), "max_work": ("9", 9), "max_batch": ("3", 3),
        "keep": ("90s", 90.0), "memory_limit": ("4.5", 4.5), "low_memory": ("yes", True),
        "backend": ("openvino", "openvino"), "precision": ("fp32", "fp32"), "threads": ("2", 2),
        "model": ("me/mine", "me/mine"), "allow_webhook_host": ("a.test, 10.0.0.1:80", ("a.test", "10.0.0.1:80")),
        "allow_input_host": ("[::1]:80", ("[::1]:80",)), "ui": ("no", False),
    }  # fmt: skip
    assert set(given) == set(FIELDS)
    for name, (text, value) in given.items():
        assert getattr(told("b", environment={f"KANDINSKY22_{name.upper()}": text}), name) == value
        flag = f"--{name.replace('_', '-')}"
        flags = [flag, text] if not isinstance(value, bool) else [flag if value else f"--no-{name}"]
        assert getattr(told("b", *flags), name) == value
        path = tmp_path / "s.toml"
        path.write_text(f'{name} = "{text}"\n')
        assert getattr(told("b", "--config", str(path)), name) == value


def test_a_file_has_numbers_switches_and_lists_too(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        'port = 80\nui = false\nkeep = 90\nmemory_limit = 2.5\nallow_input_host = ["a.test", "b.test:80"]\n'
    )
    found = told("b", "--config", str(path))
    assert (found.port, found.ui, found.keep, found.memory_limit) == (80, False, 90.0, 2.5)
    assert found.allow_input_host == ("a.test", "b.test:80")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"), ("port", "-1"), ("port", "80.5"), ("port", "８０"), ("max_queue", "0"), ("max_batch", "65"),
        ("keep", "forever"), ("keep", "-1"), ("keep", "1w"), ("memory_limit", "0"), ("memory_limit", "nan"),
        ("backend", "cuda"), ("low_memory", "maybe"), ("threads", "0"), ("model", "kandinsky"), ("model", "a/b/c"),
        ("model", "a/b\r\nc"), ("public_url", "pictures.example.org"), ("public_url", "ftp://a.example"),
        ("public_url", "https://a.example/?q"), ("public_url", "http://["), ("public_url", "https://a.example:99999"),
        ("public_url", "https://me:secret@a.example"), ("allow_webhook_host", "http://a.example"),
        ("allow_webhook_host", "*"), ("allow_input_host", "10.0.0.0/8"), ("allow_input_host", "a.test:0"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_one_sentence_with_its_place(name: str, value: str) -> None:
    with pytest.raises(InputError) as error:
        told("b", environment={f"KANDINSKY22_{name.upper()}": value})
    sentence = str(error.value)
    assert sentence.startswith(f"KANDINSKY22_{name.upper()}: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "secret" not in sentence


@pytest.mark.parametrize("text", ["por = 80\n", "[server]\nport = 80\n", "port = \n", "port = true\n", "ui = 'x'\n",
                                  "token_file = 3\n", "host = ''' '''\nallow_input_host = [1]\n"])  # fmt: skip
def test_a_file_that_cannot_be_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        told("b", "--config", str(path))
    assert "s.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bundle_must_be_named() -> None:
    with pytest.raises(InputError, match="There is no bundle"):
        told()


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604800), (" 3s ", 3)])
def test_durations_are_read(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(("host", "is_so"), [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True),
                         ("::1", True), ("0.0.0.0", False), ("::", False), ("127.0.0.1.example.org", False),
                         ("192.168.1.1", False), ("localhost.example.org", False)])  # fmt: skip
def test_only_this_machines_addresses_are_loopback(host: str, is_so: bool) -> None:
    assert Settings(Path("b"), host=host).is_loopback is is_so
