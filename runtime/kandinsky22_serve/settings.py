"""What the server is told: each setting declared once, given as a flag, in the environment, or in one TOML file."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kandinsky22 import files
from kandinsky22.bundle.manifest import PRECISIONS
from kandinsky22.errors import InputError, shown
from kandinsky22_serve.outside.addresses import check_allowed, check_url

PREFIX = "KANDINSKY22_"
"""What the names of the environment's variables begin with: KANDINSKY22_MAX_QUEUE."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_BYTES = 1 << 20


def seconds(value: object) -> float:
    """A duration: a number of seconds, or a number with s, m, h or d, such as "90", "15m" or "7d"."""
    text = str(value).strip()
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd]?)", text)
    if not found or isinstance(value, bool):
        raise ValueError(f"{shown(value)} is no duration; expected one such as 90s, 15m, 24h or 7d")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def _whole(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        text = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"{shown(value)} is no whole number from {low} to {high}")
        return int(text)

    return read


def _gibibytes(value: object) -> float | str | None:
    if value in ("auto", "none"):
        return None if value == "none" else "auto"
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if isinstance(value, bool) or not 0 < number < 1e9:
        raise ValueError(f"{shown(value)} is no limit; expected GiB such as 4.5, auto, or none")
    return number


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{shown(value)} is no text")
    return value


def _address(value: object) -> str:
    try:
        target = check_url(_text(value), name="the server")
    except InputError as error:
        raise ValueError(str(error).removesuffix(".")) from error
    if "?" in target.path:
        raise ValueError(f"{shown(value)} is no address of a server; expected one such as https://pictures.example.org")
    return str(value)


def _model(value: object) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}", _text(value)):
        raise ValueError(f"{shown(value)} is no model; expected owner/name")
    return str(value)


def _path(value: object) -> Path:
    return Path(_text(value))


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(f"{shown(value)} is neither true nor false")
    return str(value).lower() in ("1", "true", "yes", "on")


def _hosts(value: object) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [each.strip() for each in _text(value).split(",") if each.strip()]
    hosts = tuple(_text(each) for each in found)
    try:
        for each in hosts:
            check_allowed(each)
    except InputError as error:
        raise ValueError(str(error).removesuffix(".")) from error
    return hosts


def _one_of(*names: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in names:
            raise ValueError(f"{shown(value)} is not one of {', '.join(names)}")
        return str(value)

    return read


def _setting(default: Any, read: Callable[[object], Any], text: str, metavar: str | None = None) -> Any:
    return field(default=default, metadata={"read": read, "help": text, "metavar": metavar})


@dataclass(frozen=True)
class Settings:
    """What the server does, and where. `bundle` is the one thing that has no default."""

    bundle: Path
    host: str = _setting("127.0.0.1", _text, "address to listen at; one that others reach needs a token", "ADDRESS")
    port: int = _setting(8022, _whole(0, 65535), "port to listen at; 0 takes a free one", "PORT")
    token_file: Path | None = _setting(
        None, _path, "file with the token that clients must send; lines are tokens", "FILE"
    )
    tls_cert: Path | None = _setting(None, _path, "certificate (PEM), for https", "FILE")
    tls_key: Path | None = _setting(None, _path, "private key (PEM) of the certificate", "FILE")
    public_url: str | None = _setting(
        None, _address, "address that clients reach the server at, for the URLs that it hands out", "URL"
    )
    data: Path = _setting(Path("kandinsky22-data"), _path, "folder of the queue and the pictures", "DIR")
    max_queue: int = _setting(1000, _whole(1, 1_000_000), "most jobs that wait; more are refused", "N")
    max_work: int = _setting(
        2500,
        _whole(1, 1_000_000),
        "most work of a job: megapixels of all its pictures times steps",
        "N",
    )
    max_batch: int = _setting(8, _whole(1, 64), "most pictures that are denoised together", "N")
    keep: float = _setting(86400.0, seconds, "how long pictures stay after their job has ended", "DURATION")
    memory_limit: float | str | None = _setting(
        "auto", _gibibytes, "GiB that a batch may take, by estimate: a number, auto or none", "GIB"
    )
    low_memory: bool = _setting(False, _switch, "load each component when it is needed and free it afterwards")
    backend: str = _setting(
        "auto", _one_of("auto", "tensorrt", "openvino", "onnxruntime"), "what runs the graphs", "NAME"
    )
    precision: str = _setting("auto", _one_of(*PRECISIONS), "what is computed in", "NAME")
    threads: int | None = _setting(None, _whole(1, 1024), "processor threads of the engine", "N")
    model: str = _setting("ai-forever/kandinsky-2.2", _model, "owner/name that the model is listed under", "NAME")
    allow_webhook_host: tuple[str, ...] = _setting(
        (), _hosts, "host[:port] on a private network that webhooks may go to; several by commas", "HOSTS"
    )
    allow_input_host: tuple[str, ...] = _setting(
        (), _hosts, "host[:port] on a private network that pictures may come from; several by commas", "HOSTS"
    )
    ui: bool = _setting(True, _switch, "serve the page at / (needs the extra ui)")

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine reaches the server."""
        return self.host in ("localhost", "::1") or re.fullmatch(r"127(\.[0-9]{1,3}){3}", self.host) is not None


FIELDS = {each.name: each for each in dataclasses.fields(Settings) if each.name != "bundle"}
"""Every setting but the bundle, by name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting; none has a default here, so that what was given can be told from what was not."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="folder that kandinsky22-export wrote")
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings, named as the flags with underscores")
    for name, each in FIELDS.items():
        flag, text = "--" + name.replace("_", "-"), f"{each.metadata['help']} ({_default(each)})"
        if each.metadata["read"] is _switch:
            parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(flag, dest=name, metavar=each.metadata["metavar"], help=text)


def _default(each: dataclasses.Field[Any]) -> str:
    value = each.default
    if value is None or value == ():
        return "none"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def load(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings: flags first, then the environment, then the TOML file, then defaults.

    Raises InputError for a value that cannot be, an unknown name in the file, or a bundle that is not named.
    """
    config = options.config or environment.get(f"{PREFIX}CONFIG")
    table = _table(Path(config)) if config else {}
    found: dict[str, Any] = {}
    for name, each in FIELDS.items():
        variable = PREFIX + name.upper()
        for value, place in (
            (getattr(options, name), "--" + name.replace("_", "-")),
            (environment.get(variable), variable),
            (table.get(name), f"{name} in {config}"),
        ):
            if value is not None and value != "":
                found[name] = _read(each, value, place)
                break
    bundle = options.bundle or environment.get(f"{PREFIX}SERVE_BUNDLE") or table.get("bundle")
    if not isinstance(bundle, str) or not bundle:
        raise InputError("There is no bundle; name the folder that kandinsky22-export wrote.")
    return Settings(bundle=Path(bundle), **found)


def _read(each: dataclasses.Field[Any], value: object, place: str) -> Any:
    try:
        return each.metadata["read"](value)
    except ValueError as error:
        raise InputError(f"{place}: {error}.") from error


def _table(path: Path) -> dict[str, Any]:
    """What a TOML file holds. Raises InputError where it is none, or has a name that is no setting."""
    try:
        table = tomllib.loads(files.read_regular(path, _MOST_BYTES).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is no TOML file ({error}).") from error
    for name in table:
        if name not in FIELDS and name != "bundle":
            raise InputError(f"{path} has {shown(name)}, which is no setting; expected some of {', '.join(FIELDS)}.")
    return table
