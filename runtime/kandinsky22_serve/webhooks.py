"""Webhooks: a job's events go to the address that its client gave, signed, one after the other.

A call is noted in the store when the event happens, that of the end together with the end. It is made afterwards, with
the job as it then is. The call of the end is repeated until it is taken, also by the next server; the others are made
once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kandinsky22_serve.events import Hearer
from kandinsky22_serve.outside import OutsideError, addresses, client, signing
from kandinsky22_serve.store.records import Delivery, Job, Status
from kandinsky22_serve.store.store import Store

log = logging.getLogger(__name__)

Body = Callable[[Job, str], Mapping[str, Any]]
"""What is sent of a job at an event, as a contract says it."""

EVENTS = ("start", "output", "logs", "completed")
MOST = 32
"""Calls that are made at once."""
MOST_OF_HOST = 8
"""Of them to one host: a slow one does not hold up the others."""
SECONDS = 10.0
"""For one call."""
LOGS_SECONDS = 0.5
"""Least time between two calls of a job's logs."""
LONGEST_PAUSE = 60.0
"""Seconds between two attempts; the pauses grow from one second to this."""
PATIENCE = 86400.0
"""Seconds after which nobody is called any more."""
_KEPT_SECONDS = 86400.0
"""How long calls stay in the store that were made."""
_TIDY_SECONDS = 3600.0
_CHECK_SECONDS = 5.0
_DISK_SECONDS = 5.0
"""Before the store is tried again after it could not be written."""


def secret(store: Store) -> str:
    """What calls are signed with: made once, and kept."""
    return store.fact("webhook_secret", signing.new_secret())


async def check(url: str, allowed_hosts: Iterable[str]) -> None:
    """Raise OutsideError where a webhook must not go to `url`, or there is no such host."""
    target = addresses.check_url(url, name="webhook")
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            await addresses.addresses_of(target, allowed_hosts=allowed_hosts, name="webhook")
    except TimeoutError:
        raise OutsideError("The host of webhook was not found in time; try again.") from None


@dataclass
class _Told:
    """Of a running job's logs: when they were sent last, and whether there are new lines since."""

    sent: float
    behind: bool = False


class Webhooks(Hearer):
    """Notes the calls, and makes them."""

    def __init__(self, store: Store, bodies: Mapping[str, Body], allowed_hosts: Iterable[str] = ()) -> None:
        """`bodies` are by the contract of the job."""
        self._store, self._bodies, self._allowed = store, bodies, tuple(allowed_hosts)
        self._secret = secret(store)
        self._logs: dict[str, tuple[Job, _Told]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._delivering: asyncio.Task[None] | None = None
        self._calls: dict[str, tuple[Delivery, asyncio.Task[None]]] = {}

    async def start(self) -> None:
        """Make the calls that wait, and go on making calls."""
        self._loop = asyncio.get_running_loop()
        self._delivering = asyncio.create_task(self._deliver())

    async def close(self) -> None:
        """Make no more. What was being made is made again by the next server."""
        tasks = [task for _, task in self._calls.values()]
        if self._delivering is not None:
            tasks.append(self._delivering)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What happens to jobs, from several threads.

    def started(self, job: Job) -> None:
        """Note the start, once for a job that is run again."""
        hook = job.options.webhook
        if hook is None:
            return
        if "logs" in hook.events:
            self._logs[job.id] = (job, _Told(0.0))
        if "start" in hook.events:
            self._note(job, "start", once=True)

    def stepped(self, job: str) -> None:
        """Note that there are new lines, not too often."""
        found = self._logs.get(job)
        if found is None:
            return
        told, now = found[1], time.monotonic()
        told.behind = now - told.sent < LOGS_SECONDS
        if not told.behind:
            told.sent = now
            self._note(found[0], "logs")

    def _note(self, job: Job, event: str, *, once: bool = False) -> None:
        assert job.options.webhook is not None
        try:
            self._store.deliveries.add(job.id, event, job.options.webhook.url, once=once)
        except sqlite3.Error:  # the job goes on; its end is told in any case
            log.exception("the webhook %s of job %s cannot be noted", event, job.id)
        self._wake()

    def ending(self, job: Job) -> None:
        """Note what the end makes known; within its transaction."""
        hook = job.options.webhook
        if hook is None:
            return
        _, told = self._logs.pop(job.id, (job, _Told(0.0)))
        add = self._store.deliveries.add
        if told.behind:
            add(job.id, "logs", hook.url)
        if "output" in hook.events and job.status is Status.SUCCEEDED:
            add(job.id, "output", hook.url)
        if "completed" in hook.events:
            add(job.id, "completed", hook.url, terminal=True)

    def ended(self, job: Job) -> None:
        """The calls of the end are on the disk: make them."""
        if job.options.webhook is not None:
            self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._woken.set)

    # The calls.

    async def _deliver(self) -> None:
        """Begin calls as they are due and there is room."""
        tidied = -math.inf
        while True:
            self._woken.clear()
            pause = _TIDY_SECONDS
            try:
                if time.monotonic() - tidied >= _TIDY_SECONDS:
                    tidied = time.monotonic()
                    await asyncio.to_thread(self._store.deliveries.forget, time.time() - _KEPT_SECONDS)
                while await self._begin():
                    pass
                due = await asyncio.to_thread(self._store.deliveries.next_due)
                if due is not None:
                    pause = min(pause, max(0.0, due - time.time()))
            except sqlite3.Error:
                log.exception("the webhooks cannot be read; they are tried again")
                pause = _DISK_SECONDS
            # Not wait_for: in Python 3.11 it loses a cancel that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()

    async def _begin(self) -> bool:
        """Begin calls that are due; False where there are none, or no room."""
        room = MOST - len(self._calls)
        if room <= 0:
            return False
        hosts = Counter(each.host for each, _ in self._calls.values())
        jobs = {each.job for each, _ in self._calls.values()}
        full = {host for host, calls in hosts.items() if calls >= MOST_OF_HOST}
        found = await asyncio.to_thread(
            self._store.deliveries.due, room, per_host=MOST_OF_HOST, no_jobs=jobs, no_hosts=full
        )
        for each in found:
            if hosts[each.host] < MOST_OF_HOST:
                hosts[each.host] += 1
                self._calls[each.id] = (each, asyncio.create_task(self._make(each)))
        return bool(found)

    async def _make(self, delivery: Delivery) -> None:
        """One attempt of one call, and what becomes of it."""
        try:
            try:
                state, why = await self._attempt(delivery)
            except Exception as error:
                log.exception("the webhook %s of job %s cannot be made", delivery.event, delivery.job)
                state, why = self._failed(delivery), f"could not be made ({type(error).__name__})"
            due = time.time() + self._pause(delivery) if state == "waiting" else None
            log.info("webhook %s of job %s: %s", delivery.event, delivery.job, why)
            await asyncio.to_thread(self._store.deliveries.settle, delivery, state, due)
        except sqlite3.Error:
            log.exception("the webhook %s of job %s cannot be settled", delivery.event, delivery.job)
            await asyncio.sleep(_DISK_SECONDS)
        finally:
            del self._calls[delivery.id]
            self._woken.set()

    async def _attempt(self, delivery: Delivery) -> tuple[str, str]:
        """The state of a call after it was made, and why it is that."""
        body = await asyncio.to_thread(self._body, delivery)
        if body is None:
            return "given up", "there is no such job"
        headers = {
            "Content-Type": "application/json",
            **signing.sign(self._secret, delivery.id, int(time.time()), body),
        }
        try:
            status = await client.post(delivery.url, body, headers, seconds=SECONDS, allowed_hosts=self._allowed)
        except OutsideError as error:
            why = str(error)
        else:
            why = f"answered with {status}"
            if 200 <= status < 300:
                return "delivered", why
        return self._failed(delivery), why

    def _failed(self, delivery: Delivery) -> str:
        """The state of a call that was not taken."""
        again = delivery.terminal and time.time() - delivery.created <= PATIENCE
        return "waiting" if again else "given up"

    def _body(self, delivery: Delivery) -> bytes | None:
        job = self._store.jobs.get(delivery.job)
        return None if job is None else signing.compact(self._bodies[job.contract](job, delivery.event))

    def _pause(self, delivery: Delivery) -> float:
        """Seconds until the next attempt: not of all calls at the same moment."""
        pause: float = min(LONGEST_PAUSE, 2.0 ** min(delivery.attempts, 10))
        return pause * random.uniform(0.75, 1.0)
