"""Pictures by their ids: what is sent with them, parts of them, and that they expire."""

from __future__ import annotations

import pytest

from .conftest import App

PICTURE = bytes(range(256)) * 8


def kept(app: App, seconds: float = 60) -> str:
    """The path of a picture that is kept for so long."""
    file = app.service.store.files.add(PICTURE, "image/png", "output", "out-0.png", seconds)
    return f"/files/{file.id}.png"


def test_a_picture_is_sent_so_that_no_browser_takes_it_for_anything_else(shared_app: App) -> None:
    path = kept(shared_app)
    answer = shared_app.client.get(path)
    assert (answer.status_code, answer.content) == (200, PICTURE)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"].startswith("private")
    head = shared_app.client.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(PICTURE)))


@pytest.mark.parametrize(
    ("asked", "status", "sent"),
    [
        ("bytes=0-9", 206, PICTURE[:10]),
        ("bytes=-5", 206, PICTURE[-5:]),
        ("bytes=2040-99999", 206, PICTURE[2040:]),
        ("bytes=99999-", 416, None),
        ("bytes=9-3", 400, None),
        ("bytes=a-b", 400, None),
        ("lines=0-3", 400, None),
    ],
)
def test_a_part_of_a_picture_is_sent_where_it_has_that_part(
    shared_app: App, asked: str, status: int, sent: bytes | None
) -> None:
    answer = shared_app.client.get(kept(shared_app), headers={"range": asked})
    assert answer.status_code == status
    assert sent is None or answer.content == sent
    assert len(answer.content) < 2 * len(PICTURE)


def test_a_thousand_parts_of_a_picture_are_not_more_than_the_picture(shared_app: App) -> None:
    answer = shared_app.client.get(kept(shared_app), headers={"range": "bytes=" + ",".join(["0-"] * 1000)})
    assert len(answer.content) < 2 * len(PICTURE)


def test_a_picture_that_has_expired_is_gone(app: App) -> None:
    path = kept(app, -1)
    app.service.store.files.remove_expired()
    answer = app.client.get(path)
    assert (answer.status_code, answer.json()["detail"]) == (404, "There is no such file, or it has expired.")


def test_a_picture_whose_bytes_are_gone_already_is_gone_too(app: App) -> None:
    path = kept(app)
    (app.service.store.files.folder / path.rpartition("/")[2]).unlink()
    assert app.client.get(path).status_code == 404
