"""The store: what was accepted is there after a kill, ends once, and leaves nothing behind."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kandinsky22.errors import InputError
from kandinsky22_serve.store.database import Database
from kandinsky22_serve.store.jobs import NewJob, QueueFullError
from kandinsky22_serve.store.records import File, Options, Status, Webhook, new_id
from kandinsky22_serve.store.store import Store


def new_job(job: str = "", key: str = "k", pictures: int = 1) -> NewJob:
    request = {"task": "text2img", "prompt": "a", "seed": 1}
    demand = {"components": ["a"], "latents": [8, 8], "branches": [2]}
    return NewJob(job or new_id(), "test", request, {"prompt": "a"}, Options(), key, pictures, demand, (1,))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "data")
    yield store
    store.close()


def output(job: str) -> File:
    return File(new_id(), "output", "out-0.png", "image/png", 3, "0" * 64, 0.0, None, job, 0)


def test_a_job_comes_back_as_it_was_accepted(store):
    hook = Webhook("https://example.org/hook", ("start", "completed"))
    options = Options("webp", 80, data_uris=True, previews=True, webhook=hook, base="http://a", extra={"n": 1})
    accepted = store.jobs.accept(replace(new_job(), options=options, seconds=60.0), 10)
    assert store.jobs.get(accepted.id) == accepted
    assert accepted.options == options
    assert accepted.status is Status.STARTING
    assert accepted.deadline == pytest.approx(accepted.created + 60)


def test_a_job_of_a_known_id_is_not_added_again(store):
    first = store.jobs.accept(new_job("one"), 10)
    assert store.jobs.accept(new_job("one", key="other"), 10) == first
    assert store.jobs.count(Status.STARTING) == 1


def test_no_more_jobs_wait_than_are_allowed(store):
    for _ in range(3):
        store.jobs.accept(new_job(), 3)
    with pytest.raises(QueueFullError):
        store.jobs.accept(new_job(), 3)


def test_a_job_ends_once(store):
    job = store.jobs.accept(new_job(), 10)
    store.jobs.start([job.id])
    told = []
    ended = store.jobs.end(job.id, Status.SUCCEEDED, outputs=[output(job.id)], keep=5, then=told.append)
    assert ended is not None
    assert told == [ended]
    for status in (Status.FAILED, Status.CANCELED, Status.SUCCEEDED):
        assert store.jobs.end(job.id, status, error="late", then=told.append) is None
    assert store.jobs.get(job.id) == ended
    assert len(told) == 1


def test_threads_that_end_a_job_at_once_end_it_once(store):
    job = store.jobs.accept(new_job(), 10)
    ended = []
    threads = [threading.Thread(target=lambda: ended.append(store.jobs.end(job.id, Status.CANCELED))) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sum(each is not None for each in ended) == 1


def test_what_belongs_to_an_end_is_written_with_it_or_not_at_all(store):
    job = store.jobs.accept(new_job(), 10)

    def fail(_):
        store.deliveries.add(job.id, "completed", "http://a", terminal=True)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.jobs.end(job.id, Status.SUCCEEDED, outputs=[output(job.id)], then=fail)
    assert store.jobs.get(job.id) == job
    assert store.files.of_job(job.id, "output") == []
    assert store.deliveries.due() == []


def test_a_canceled_job_does_not_start(store):
    job = store.jobs.accept(new_job(), 10)
    store.jobs.end(job.id, Status.CANCELED)
    assert store.jobs.start([job.id]) == []


def test_an_engine_that_dies_under_several_jobs_lets_each_run_alone(store):
    jobs = [store.jobs.accept(new_job(), 10).id for _ in range(2)]
    store.jobs.start(jobs)
    store.jobs.put_back(jobs, died=True)
    found = [store.jobs.get(job) for job in jobs]
    assert [(job.status, job.alone, job.deaths) for job in found] == [(Status.STARTING, True, 0)] * 2


def test_an_engine_that_dies_under_one_job_is_counted(store):
    job = store.jobs.accept(new_job(), 10).id
    for deaths in (1, 2):
        store.jobs.start([job])
        store.jobs.put_back([job], died=True)
        assert store.jobs.get(job).deaths == deaths


def test_a_server_that_is_ended_counts_as_no_death(store):
    job = store.jobs.accept(new_job(), 10).id
    store.jobs.start([job])
    store.jobs.put_back([job], died=False)
    found = store.jobs.get(job)
    assert (found.status, found.alone, found.deaths) == (Status.STARTING, False, 0)


def test_pages_of_jobs_hold_each_once_the_newest_first(store):
    ids = [store.jobs.accept(new_job(), 100).id for _ in range(7)]
    seen, before = [], None
    while page := store.jobs.newest(3, before):
        seen += [job.id for job in page]
        before = page[-1].seq
    assert seen == ids[::-1]


def test_expired_files_go_and_their_job_stays(store):
    job = store.jobs.accept(new_job(), 10)
    upload = store.files.add(b"png", "image/png", "upload", "a", 60)
    record = output(job.id)
    store.files.path(record).write_bytes(b"png")
    store.jobs.end(job.id, Status.SUCCEEDED, outputs=[record], keep=-1)
    assert store.files.remove_expired() == 1
    assert not store.files.path(record).exists()
    assert store.files.path(upload).exists()
    assert store.jobs.get(job.id).status is Status.SUCCEEDED


def test_an_input_of_a_job_that_waits_does_not_expire(store):
    upload = store.files.add(b"png", "image/png", "upload", "a", -1)
    store.jobs.accept(replace(new_job(), files=(upload.id,)), 10)
    assert store.files.remove_expired() == 0
    assert store.files.path(upload).exists()


def test_files_that_no_row_names_are_swept(store):
    upload = store.files.add(b"png", "image/png", "upload", "a", 60)
    (store.files.folder / f"{new_id()}.png").write_bytes(b"stray")
    (store.files.folder / ".x.png.0123456789abcdef.part").write_bytes(b"half")
    assert store.files.sweep() == 2
    assert [path.name for path in store.files.folder.iterdir()] == [store.files.path(upload).name]


def test_one_folder_is_one_servers(store):
    with pytest.raises(InputError, match="another running server"):
        Store(store.folder)


def test_the_folder_is_free_again_when_the_store_is_closed(tmp_path):
    Store(tmp_path).close()
    Store(tmp_path).close()


def test_a_queue_of_another_version_is_refused(tmp_path):
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "queue.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="version 99"):
        Store(tmp_path)


def test_a_file_that_is_no_queue_is_refused(tmp_path):
    (tmp_path / "queue.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match="cannot be used as the queue"):
        Store(tmp_path)


def test_others_cannot_read_what_is_stored(store):
    assert store.folder.stat().st_mode & 0o077 == 0
    assert (store.folder / "queue.sqlite3").stat().st_mode & 0o077 == 0
    assert store.files.folder.stat().st_mode & 0o077 == 0


def test_a_fact_is_made_once(store):
    assert store.fact("secret", "first") == "first"
    assert store.fact("secret", "second") == "first"


_ACCEPTS = """
import sys
from pathlib import Path
from tests.serve.test_store import new_job
from kandinsky22_serve.store.store import Store
store = Store(Path(sys.argv[1]))
while True:
    print(store.jobs.accept(new_job(), 10**6).id, flush=True)
"""


def test_every_job_that_was_acknowledged_is_there_after_a_kill(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", _ACCEPTS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    told = [process.stdout.readline().strip() for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    told += [line for line in process.stdout.read().split("\n") if len(line) == 26]
    process.wait()
    store = Store(tmp_path)
    assert all(store.jobs.get(job) is not None for job in told)
    store.close()


def test_readers_do_not_wait_for_a_writer(tmp_path):
    database = Database(tmp_path / "q")
    with database.write() as connection:
        connection.execute("INSERT INTO facts VALUES ('a', 'b')")
        started = time.monotonic()
        found = []
        reader = threading.Thread(target=lambda: found.append(database.rows("SELECT * FROM facts")))
        reader.start()
        reader.join(10)
        assert found == [[]]
        assert time.monotonic() - started < 10
    database.close()


def test_options_survive_json():
    options = Options("jpeg", 50, webhook=Webhook("u", ("logs",)), extra={"a": [1, None]})
    assert Options.from_json(json.dumps(json.loads(options.to_json()))) == options


def test_ids_are_not_alike():
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[a-z2-7]{26}", each) for each in ids)


def test_names_on_the_disk_are_ours_alone(store):
    file = store.files.add(b"x", "image/webp", "upload", "../../etc/passwd", 60)
    assert store.files.path(file).parent == Path(store.files.folder)
    assert file.name == "../../etc/passwd"
