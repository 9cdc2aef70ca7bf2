"""Signatures of webhooks, as the libraries of Standard Webhooks verify them, and the JSON that is signed.

Replicate's JavaScript client parses a body and writes it again before it verifies. So `compact` writes the bytes that
JSON.stringify of JavaScript writes, or the signature is wrong.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import math
import re
import secrets
from collections.abc import Mapping
from typing import Any

from kandinsky22.errors import InputError, shown

PREFIX = "whsec_"

_SECRET_BYTES = 24
"""Standard Webhooks asks for 24 to 64; this many need no padding in base64."""

_ID = re.compile(r"[A-Za-z0-9_-]+")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_INDEX = re.compile(r"0|[1-9][0-9]{0,9}")
_LARGEST_INDEX = 2**32 - 2
"""Largest key that JavaScript takes for an index of an array, which it puts first."""


def new_secret() -> str:
    """A new secret: "whsec_" and 24 random bytes in base64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode("ascii")


def sign(secret: str, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Sign a webhook: the three headers that a receiver verifies it by.

    Args:
        secret: "whsec_" and base64, as `new_secret` makes it.
        id: Of the message, and the same for each attempt to deliver it: letters, digits, "_" and "-".
        timestamp: Of this attempt, in whole seconds since 1970. Receivers refuse one that is minutes off.
        body: The very bytes that are sent.

    Raises:
        InputError: `secret` or `id` is none. The message does not have the secret.
    """
    if not _ID.fullmatch(id):
        raise InputError(f"{shown(id)} is no id of a webhook; expected letters, digits, _ and -.")
    signed = b".".join((id.encode("ascii"), str(timestamp).encode("ascii"), body))
    digest = hmac.new(_key(secret), signed, hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode('ascii')}",
    }


def compact(value: Any) -> bytes:
    """JSON of `value`, equal byte for byte to what JavaScript's JSON.stringify(JSON.parse(…)) makes of it.

    Numbers are JavaScript's: whole floats are written as integers, and integers beyond 2**53 are rounded to what a
    float holds. Keys that are whole numbers come first, by value. None of a prediction's own keys is one.

    Args:
        value: Dictionaries with text as keys, lists, tuples, text, numbers, truth values and None.

    Raises:
        ValueError: A number is not finite, or too large for a float.
        TypeError: A value or key is of another type.
    """
    return _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", _written(value)).encode("utf-8")


def _key(secret: str) -> bytes:
    """The key in a secret."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not key:
        raise InputError(f"The secret of the webhooks cannot be read; expected {PREFIX} and base64 of 24 to 64 bytes.")
    return key


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("expected text as the keys of JSON")
        return f"{{{','.join(f'{_text(key)}:{_written(value[key])}' for key in _in_order(value))}}}"
    raise TypeError(f"expected what JSON has, not {type(value).__name__}")


def _text(value: str) -> str:
    """Text in quotes. Two halves of a character become the one that JavaScript reads them as."""
    joined = value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return json.dumps(joined, ensure_ascii=False)


def _number(value: float) -> str:
    """A number as JavaScript writes it: ECMAScript's Number::toString, of the same shortest digits as Python's."""
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError("expected finite numbers, that a float can hold, in JSON")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    # The value is 0.DIGITS times 10 to the power of `point`.
    point = len(whole) + int(exponent or 0)
    digits = (whole + fraction).lstrip("0")
    point -= len(whole + fraction) - len(digits)
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        return sign + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{rest}e{point - 1:+d}"


def _in_order(keys: Mapping[str, Any]) -> list[str]:
    """Keys in JavaScript's order: indices of an array by value, then the others as they came."""
    indices = [key for key in keys if _INDEX.fullmatch(key) and int(key) <= _LARGEST_INDEX]
    found = set(indices)
    return sorted(indices, key=int) + [key for key in keys if key not in found]
