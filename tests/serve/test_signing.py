"""Signatures of webhooks against the library of Standard Webhooks, and JSON against JavaScript's own."""

from __future__ import annotations

import base64
import json
import math
import random
import shutil
import struct
import subprocess
import time
from typing import Any

import numpy as np
import pytest

from kandinsky22 import InputError
from kandinsky22_serve.outside import signing

NUMBERS = {
    0.0: "0",
    1.0: "1",
    -25.0: "-25",
    0.1: "0.1",
    7.5: "7.5",
    100.25: "100.25",
    1e-06: "0.000001",
    1.5e-06: "0.0000015",
    1e-07: "1e-7",
    1.25e-07: "1.25e-7",
    1e16: "10000000000000000",
    123456789012345680000.0: "123456789012345680000",
    1e20: "100000000000000000000",
    1e21: "1e+21",
    1.5e300: "1.5e+300",
    5e-324: "5e-324",
    2**53: "9007199254740992",
    2**53 + 1: "9007199254740992",
    2**63 - 1: "9223372036854776000",
    -(2**64): "-18446744073709552000",
    10**21: "1e+21",
    42: "42",
}
"""Numbers as ECMAScript's Number::toString writes them."""

NODE = shutil.which("node")


def prediction() -> dict[str, Any]:
    return {
        "id": "abc",
        "version": None,
        "input": {"prompt": 'Бабочка "im" \\ Café\n\u2028 🦋', "guidance_scale": 4.0, "seed": 7, "steps": [25, 0.5]},
        "output": ["https://example.org/a.png"],
        "metrics": {"predict_time": 1e-07, "total_time": 12.0},
        "logs": "\r 50%\x1b\x7f",
        "done": True,
    }


def test_a_signed_webhook_is_verified_by_the_library_of_standard_webhooks() -> None:
    webhooks = pytest.importorskip("standardwebhooks.webhooks")
    secret, body = signing.new_secret(), signing.compact(prediction())
    headers = signing.sign(secret, "msg_1", int(time.time()), body)
    assert webhooks.Webhook(secret).verify(body, headers) == json.loads(body)
    for wrong in (body + b" ", body.replace(b"abc", b"abd")):
        with pytest.raises(webhooks.WebhookVerificationError):
            webhooks.Webhook(secret).verify(wrong, headers)
    for key, value in (("webhook-id", "msg_2"), ("webhook-timestamp", str(int(headers["webhook-timestamp"]) - 1))):
        with pytest.raises(webhooks.WebhookVerificationError):
            webhooks.Webhook(secret).verify(body, headers | {key: value})
    with pytest.raises(webhooks.WebhookVerificationError):
        webhooks.Webhook(signing.new_secret()).verify(body, headers)


def test_a_signature_is_the_one_of_the_specification() -> None:
    """The example of Standard Webhooks' libraries."""
    headers = signing.sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_secrets_differ_and_have_24_bytes() -> None:
    secrets = {signing.new_secret() for _ in range(20)}
    assert len(secrets) == 20
    assert {len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) for secret in secrets} == {24}


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_???", "whsec_abc", "whsec_AA-AA", "whsec_é"]
)
def test_a_secret_that_cannot_be_read_is_refused_and_not_told(secret: str) -> None:
    with pytest.raises(InputError, match="secret of the webhooks") as refused:
        signing.sign(secret, "msg", 1, b"")
    assert len(secret) < 7 or secret not in str(refused.value)


@pytest.mark.parametrize("wrong", ["", "a.b", "a\r\nb", "é"])
def test_an_id_that_could_be_read_in_two_ways_is_refused(wrong: str) -> None:
    with pytest.raises(InputError, match="no id of a webhook"):
        signing.sign(signing.new_secret(), wrong, 1, b"")


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_a_number_is_written_as_javascript_writes_it(number: float) -> None:
    assert signing.compact(number).decode() == NUMBERS[number]


def test_numbers_of_numpy_are_written_alike_and_zero_has_no_sign() -> None:
    assert signing.compact([np.float64(0.5), np.float64(3), -0.0]) == b"[0.5,3,0]"


def test_json_is_compact_and_keeps_letters_of_every_alphabet() -> None:
    value = {"a": [1.0, "é🦋", None, True], "b": {}, "c": ()}
    assert signing.compact(value) == '{"a":[1,"é🦋",null,true],"b":{},"c":[]}'.encode()


def test_what_is_written_is_read_back_by_python() -> None:
    assert json.loads(signing.compact(prediction())) == prediction()


def test_halves_of_a_character_are_joined_or_escaped() -> None:
    assert signing.compact(["\ud83e\udd8b", "\udd8b", "a\ud83e"]) == '["🦋","\\udd8b","a\\ud83e"]'.encode()


def test_keys_that_are_whole_numbers_come_first() -> None:
    keys = ["b", "10", "2", "01", "-1", "4294967294", "4294967295", "a", "0"]
    written = signing.compact(dict.fromkeys(keys, 1)).decode()
    assert list(json.loads(written)) == ["0", "2", "10", "4294967294", "b", "01", "-1", "4294967295", "a"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, [1, {"a": math.nan}]], ids=str)
def test_numbers_that_json_does_not_have_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        signing.compact(value)


@pytest.mark.parametrize("value", [b"x", {1: 2}, {1}, pytest.param(object(), id="an object")], ids=str)
def test_values_that_json_does_not_have_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="expected"):
        signing.compact(value)


def samples() -> list[Any]:
    """Values that reach every branch: floats of every size, integers, text of every plane, keys of every kind."""
    chance = random.Random(0)
    floats = [struct.unpack("<d", chance.randbytes(8))[0] for _ in range(2000)]
    found: list[Any] = [value for value in floats if math.isfinite(value)]
    found += [chance.uniform(-1, 1) * 10.0**power for power in range(-30, 30) for _ in range(20)]
    found += [round(chance.uniform(0, 100), digits) for digits in range(8) for _ in range(50)]
    found += [sign * (2**bits + chance.randint(-3, 3)) for bits in range(70) for sign in (1, -1)]
    found += ["".join(map(chr, range(start, start + 256))) for start in range(0, 0x11000, 256)]
    found += [chr(chance.randrange(0x110000)) + chr(chance.randrange(0xD800, 0xE000)) for _ in range(300)]
    keys = ["0", "00", "7", "4294967294", "4294967295", "99999999999", "-1", "1.5", "", "__proto__", "toString", "é"]
    found += [{key: [{}, []] for key in chance.sample(keys, len(keys))} for _ in range(100)]
    return [*found, *NUMBERS, -0.0, prediction()]


@pytest.mark.skipif(NODE is None, reason="needs Node.js (node), which writes the JSON that is compared with")
def test_node_writes_the_same_bytes() -> None:
    ours = [signing.compact(value) for value in samples()]
    program = (
        "for (const line of require('fs').readFileSync(0, 'utf8').split('\\0'))"
        "process.stdout.write(JSON.stringify(JSON.parse(line)) + '\\0')"
    )
    assert NODE is not None
    answer = subprocess.run([NODE, "-e", program], input=b"\0".join(ours), capture_output=True, check=True).stdout
    assert answer.split(b"\0")[:-1] == ours


@pytest.mark.skipif(NODE is None, reason="needs Node.js (node), in which Replicate's client verifies")
def test_a_receiver_in_node_that_writes_the_body_anew_finds_the_same_signature() -> None:
    secret, body = signing.new_secret(), signing.compact(prediction())
    headers = signing.sign(secret, "msg_1", 1700000000, body)
    program = (
        "const [secret, id, time] = process.argv.slice(1);"
        "const body = JSON.stringify(JSON.parse(require('fs').readFileSync(0, 'utf8')));"
        "const key = Buffer.from(secret.split('_')[1], 'base64');"
        "process.stdout.write('v1,' + require('crypto').createHmac('sha256', key)"
        ".update(`${id}.${time}.${body}`).digest('base64'))"
    )
    assert NODE is not None
    command = [NODE, "-e", program, secret, "msg_1", "1700000000"]
    found = subprocess.run(command, input=body, capture_output=True, check=True).stdout.decode()
    assert found == headers["webhook-signature"]
