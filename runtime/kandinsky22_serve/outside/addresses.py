"""Addresses that strangers give: the one parser of URLs, and the one judge of where they lead.

An address is read once, into a Target. Its host is looked up once, and every address that the lookup gives must be
public: whoever owns a name may let it lead into our network, for one address of several, or from the second lookup on.
Hosts that an operator allows by name may lead anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
import threading
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import idna

from kandinsky22.errors import InputError, shown
from kandinsky22_serve.outside import OutsideError

Resolver = Callable[[str], Awaitable[Sequence[str]]]
"""Looks up a host's name: its IP addresses as text. Raises OSError where there are none."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LONGEST = 8000
"""Most characters of a URL; servers take about as many."""

DEFAULT_PORTS = {"http": 80, "https": 443}
MOST_LOOKUPS = 32
"""Most names that are looked up at once. A lookup cannot be broken off: each has a thread for as long as it takes."""

_LONGEST_NAME = 253
"""Most characters of a host's name, without the dot at its end."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^][:@]+)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PRINTABLE_ASCII = "".join(map(chr, range(0x21, 0x7F)))

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # between carriers and their customers; metadata of Alibaba's machines
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # the host of Azure's machines, as seen from inside
        "169.254.0.0/16",  # link-local; metadata of most clouds' machines
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; metadata of Oracle's machines
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "2001::/23",  # protocol assignments, Teredo among them, which has an IPv4 address inside
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which has an IPv4 address inside
        "3ffe::/16",  # given back
        "3fff::/20",  # documentation
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that IPv6 has given out. Outside are loopback, link-local, site-local, ULA, multicast, mapped and the rest."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 as machines without it reach it: the last 32 bits say where it leads."""

_lookups = threading.BoundedSemaphore(MOST_LOOKUPS)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """What a URL names: `host` is lower-case ASCII, or an IP address without brackets; `path` has the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as the header Host has them: brackets around IPv6, and no port that is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS.get(self.scheme) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL in one spelling, without the fragment."""
        return f"{self.scheme}://{self.authority}{self.path}"


def check_url(url: str, *, schemes: Sequence[str] = ("http", "https"), name: str = "image") -> Target:
    """Read a URL. Nothing is looked up: `addresses_of` judges where it leads.

    Args:
        url: At most `LONGEST` characters: scheme, host, an optional port, path and query. A fragment is dropped, names
            and paths beyond ASCII are encoded.
        schemes: Those that are possible, of `DEFAULT_PORTS`.
        name: What the address is of, for messages.

    Raises:
        OutsideError: It is too long, has spaces, control characters, a user's name, another scheme, or a host that is
            neither a name nor an IP address in its usual spelling.
    """
    if len(url) > LONGEST:
        raise OutsideError(f"The address of {name} has {len(url)} characters; expected {LONGEST} at most.")
    found = _URL.fullmatch(url) if url.isprintable() and " " not in url else None
    if found is None or found[1].lower() not in schemes:
        raise OutsideError(
            f"The address of {name} is no URL that can be used; expected one that begins with "
            f"{' or '.join(f'{each}://' for each in schemes)}, without spaces and control characters."
        )
    scheme = found[1].lower()
    if "@" in found[2]:
        raise OutsideError(f"The address of {name} has a user's name or password; expected none.")
    authority = _read_authority(found[2])
    if authority is None:
        raise OutsideError(
            f"The address of {name} has no host that can be used; expected a name or an IP address in its usual "
            "spelling, and a port of 1 to 65535 or none."
        )
    host, port = authority
    path = urllib.parse.quote((found[3] or "/") + (found[4] or ""), safe=_PRINTABLE_ASCII)
    return Target(scheme, host, DEFAULT_PORTS[scheme] if port is None else port, path)


def check_allowed(entry: str) -> tuple[str, int | None]:
    """Read an entry of a list of allowed hosts, `host` or `host:port`: the host, and None for every port.

    Raises InputError where it is neither: an operator is to see it when the server starts.
    """
    read = _read_authority(entry if entry.count(":") < 2 or "[" in entry else f"[{entry}]")
    if read is None:
        raise InputError(f"{shown(entry)} is no host; expected its exact name or IP address, as host or host:port.")
    return read


def is_allowed(target: Target, allowed_hosts: Iterable[str]) -> bool:
    """Whether an operator allowed a target's host: by its exact name, and for this port or every port."""
    return any(host == target.host and port in (None, target.port) for host, port in map(check_allowed, allowed_hosts))


def is_public(address: Address | str) -> bool:
    """Whether an IP address is one of the public internet's. What is not known to be public is not.

    IPv4 inside IPv6 is judged for NAT64 by the IPv4 address, as machines without IPv4 reach everything by it; where it
    is mapped, or inside 6to4 or Teredo, it is refused. Raises ValueError for what is no address.
    """
    address = ipaddress.ip_address(address)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.version == 6 and (address not in _GLOBAL_UNICAST or address.scope_id is not None):
        return False
    return not any(address in network for network in _NOT_PUBLIC)


async def resolve(host: str) -> list[str]:
    """Look up a host's IP addresses, in the order in which they are to be tried. Raises OSError where there are none.

    Whoever calls limits the time: the lookup goes on in a thread of its own, of which there are `MOST_LOOKUPS`, so that
    names that never answer do not take the threads that the server needs.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()
    if not _lookups.acquire(blocking=False):
        raise OSError(f"{MOST_LOOKUPS} names are being looked up")
    threading.Thread(target=_look_up, args=(host, loop, answer), name="look up", daemon=True).start()
    return await answer


async def addresses_of(
    target: Target,
    *,
    allowed_hosts: Iterable[str] = (),
    resolver: Resolver = resolve,
    is_public: Callable[[str], bool] = is_public,
    name: str = "image",
) -> tuple[str, ...]:
    """Look up where a target leads, once. An IP address leads to itself.

    Raises:
        OutsideError: The host is not found, or one of its addresses is not public and the host is not in
            `allowed_hosts`. Both have the same message: names of our network are nobody's business.
    """
    try:
        found = tuple(await resolver(target.host)) if _literal(target.host) is None else (target.host,)
    except OSError as error:
        _log.info("The host %s of %s is not found: %s", target.host, name, error)
        found = ()
    if found and not is_allowed(target, allowed_hosts) and not all(map(is_public, found)):
        _log.info("The host %s of %s is not public: %s", target.host, name, ", ".join(found))
        found = ()
    if not found:
        raise OutsideError(f"The address of {name} is not public or does not exist; expected a public host.")
    return found


def _look_up(host: str, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[list[str]]) -> None:
    """Look up in a thread, and tell the loop, where that still waits."""

    def settle(found: list[str] | OSError) -> None:
        if answer.done():  # nobody waits any more
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    try:
        rows = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
        found: list[str] | OSError = list(dict.fromkeys(str(row[4][0]) for row in rows))
    except OSError as error:
        found = error
    except UnicodeError:
        found = OSError("no name")
    finally:
        _lookups.release()
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(settle, found)


def _read_authority(text: str) -> tuple[str, int | None] | None:
    """Host and port of `host`, `host:port` or `[IPv6]:port`; None where it is no such thing."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    host, port = _read_host(found[1]), None if found[2] is None else int(found[2])
    return (host, port) if host is not None and (port is None or 1 <= port <= 65535) else None


def _read_host(text: str) -> str | None:
    """A host in one spelling: an IP address, or a name in lower-case ASCII without the dot at its end; or None."""
    if text.startswith("["):
        literal = _literal(text[1:-1])
        return literal if literal is not None and ":" in literal else None
    if len(text) > _LONGEST_NAME + 1:
        return None
    if not text.isascii():
        try:
            text = idna.encode(text, uts46=True).decode("ascii")
        except UnicodeError:  # of which IDNAError is one
            return None
    text = text.lower().removesuffix(".")
    labels = text.split(".")
    if _NUMBER.fullmatch(labels[-1]):  # what others read as an IPv4 address: 0177.1, 0x7f000001, 2130706433
        return _literal(text)
    return text if len(text) <= _LONGEST_NAME and all(map(_LABEL.fullmatch, labels)) else None


def _literal(host: str) -> str | None:
    """The IP address that a host is, in its usual spelling; None where it is none. Zones are no part of one."""
    try:
        return None if "%" in host else str(ipaddress.ip_address(host))
    except ValueError:
        return None
