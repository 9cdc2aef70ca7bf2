"""`kandinsky22 doctor --server URL`: whether a server is reached, lets us in, and can make pictures."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky22 import files
from kandinsky22.errors import InputError

_SECONDS = 20.0
"""That the server may be silent, and a test picture's engine."""
_PICTURE_SECONDS = 600.0
_MOST_BYTES = 64 << 20
"""Of an answer."""
_TRIED = {"prompt": "a red circle", "width": 384, "height": 384, "num_inference_steps": 4, "output": "data-uri"}
_METRIC = re.compile(r"kandinsky22_([a-z_]+)(?:\{([^}]*)\})? ([0-9.e+-]+)")


class _NoAnswerError(Exception):
    """The server does not answer; the message says why."""


class Server:
    """A server by its address."""

    def __init__(self, url: str, token_file: str | None = None) -> None:
        """Raises InputError where `url` is no http(s) address, or the file has no token."""
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if host is None or parts.scheme not in ("http", "https") or parts.query or parts.username is not None:
            raise InputError("--server has no address of a server; expected one such as http://127.0.0.1:8022.")
        self.url, self.is_tls = url.rstrip("/"), parts.scheme == "https"
        self._host, self._port, self._path = host, port, parts.path.rstrip("/")
        self._headers = {} if token_file is None else {"Authorization": f"Bearer {_token(Path(token_file))}"}

    def ask(self, method: str, path: str, body: Any = None, seconds: float = _SECONDS) -> tuple[int, bytes]:
        """Status and body of an answer. Raises _NoAnswerError where there is none."""
        kind = http.client.HTTPSConnection if self.is_tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=seconds)
        try:
            headers = {**self._headers, **({} if body is None else {"Content-Type": "application/json"})}
            connection.request(method, self._path + path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_MOST_BYTES)
        except ssl.SSLCertVerificationError as error:
            raise _NoAnswerError(f"its certificate is not trusted ({error.verify_message})") from error
        except ssl.SSLError as error:
            raise _NoAnswerError("it does not speak TLS; try http:// in place of https://") from error
        except (OSError, http.client.HTTPException) as error:
            raise _NoAnswerError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error
        finally:
            connection.close()


def _token(path: Path) -> str:
    text = files.read_regular(path, 1 << 16).decode("latin-1").split()
    if not text:
        raise InputError(f"{path} has no token; expected one on its first line.")
    return text[0]


def report(server: Server, *, try_picture: bool = False) -> dict[str, Any]:
    """What a server says of itself, and what is wrong ("problems", a sentence each)."""
    found: dict[str, Any] = {"url": server.url, "tls": server.is_tls, "problems": []}
    try:
        _ask_all(server, found, try_picture)
    except _NoAnswerError as error:
        found["problems"].append(f"The server {server.url} is not reached: {error}.")
    except (ValueError, KeyError, TypeError, IndexError):
        found["problems"].append(f"What answers at {server.url} is no server of kandinsky22.")
    return found


def _ask_all(server: Server, found: dict[str, Any], try_picture: bool) -> None:
    problems = found["problems"]
    began = time.monotonic()
    status, body = server.ask("GET", "/healthz")
    found["milliseconds"] = round(1000 * (time.monotonic() - began), 1)
    if status == 403:
        problems.append(f"The server {server.url} has no token and answers its own machine alone; ask from there.")
        return
    if status != 200 or json.loads(body) != {"status": "ok"}:
        raise ValueError
    found["engine"] = json.loads(server.ask("GET", "/readyz")[1])["status"]
    if found["engine"] not in ("ready", "busy"):
        problems.append(f"The engine is {found['engine']}: no picture is made now; the server's log has more.")
    status, body = server.ask("GET", "/v1/models")
    if status in (401, 403):
        found["token"] = "refused"
        problems.append("The server does not let us in; give the file of its token with --token-file.")
        return
    found["token"] = "accepted"
    found["model"] = json.loads(body)["data"][0]["id"]
    found |= _metrics(server.ask("GET", "/metrics")[1].decode())
    if try_picture:
        _try(server, found)


def _metrics(text: str) -> dict[str, Any]:
    values = {(name, labels or ""): float(value) for name, labels, value in _METRIC.findall(text)}
    return {
        "waiting": int(values["queue_jobs", ""]),
        "oldest_seconds": round(values["queue_age_seconds", ""], 1),
        "running": int(values["running_jobs", ""]),
        "engine_restarts": int(values["engine_restarts", ""]),
    }


def _try(server: Server, found: dict[str, Any]) -> None:
    """Ask for a small picture, and wait for it."""
    began = time.monotonic()
    status, body = server.ask("POST", "/predictions", {"input": _TRIED}, _PICTURE_SECONDS)
    answer = json.loads(body)
    if status == 200 and answer["status"] == "succeeded" and answer["output"][0].startswith("data:image/"):
        found["picture_seconds"] = round(time.monotonic() - began, 2)
    else:
        reason = answer.get("error") or answer.get("detail") or answer.get("status")
        found["problems"].append(f"A test picture was not made: {str(reason).rstrip('.')}.")


def lines(found: Mapping[str, Any]) -> list[str]:
    """The report for reading."""
    told = [f"server       {found['url']}: " + ("answers" if "milliseconds" in found else "does not answer")]
    if "milliseconds" in found:
        told[0] += f" in {found['milliseconds']} ms, {'with TLS' if found['tls'] else 'without TLS'}"
    if "engine" in found:
        told.append(f"engine       {found['engine']}")
    if "token" in found:
        told.append(f"token        {found['token']}")
    if "model" in found:
        restarts = found["engine_restarts"]
        told.append(f"model        {found['model']}")
        told.append(f"queue        {found['waiting']} wait, the oldest for {found['oldest_seconds']} s; "
                    f"{found['running']} run; the engine was restarted {restarts} times")  # fmt: skip
    if "picture_seconds" in found:
        told.append(f"picture      made in {found['picture_seconds']} s")
    return told
