"""Whatever the OpenAPI document allows, and what it does not: answers are as it says, and none is a failure of ours."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from .quick import Serving, serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
SECONDS = 20


@pytest.fixture(scope="module")
def server(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with (
        pytest.MonkeyPatch.context() as patch,
        serving(shapes_bundle, tmp_path_factory.mktemp("schemathesis") / "data") as found,
    ):
        patch.setattr(socket, "getaddrinfo", _nobody)  # names that are made up are not looked up
        found.engine.most_side = 8
        yield found


def _nobody(host: Any, *rest: Any, **more: Any) -> Any:
    if host in ("127.0.0.1", b"127.0.0.1"):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(rest[0])))]
    raise socket.gaierror(socket.EAI_NONAME, "no names are known here")


def failures(server: Serving, examples: int) -> list[str]:
    """What schemathesis finds wrong at each operation, with so many valid requests and as many invalid ones."""
    document = schemathesis.openapi.from_url(f"{server.base}/openapi.json")
    found = []
    for result in document.get_all_operations():
        operation = result.ok()
        # What has no body and no query is a path, about which nothing can be wrong.
        can_be_wrong = operation.body or operation.query
        for mode in GenerationMode if can_be_wrong else [GenerationMode.POSITIVE]:
            try:
                _try(operation, mode, examples)
            except FailureGroup as group:
                found += [f"{mode.value} {operation.label}: {each}" for each in group.exceptions if not _is_read(each)]
    return found


def _is_read(failure: BaseException) -> bool:
    """Whether all that is wrong was the type: "7" is read as 7, also where it is not a form that says it."""
    told = str(failure)
    return "Schema-violating request accepted" in told and ("violates `type`" in told or "violates `anyOf`" in told)


def _try(operation: Any, mode: GenerationMode, examples: int) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def tried(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=SECONDS)

    tried()


def test_a_few_requests_of_every_kind_are_answered_as_documented(server: Serving) -> None:
    assert not failures(server, 3)


@pytest.mark.slow
def test_many_requests_of_every_kind_are_answered_as_documented(server: Serving) -> None:
    assert not failures(server, 150)
