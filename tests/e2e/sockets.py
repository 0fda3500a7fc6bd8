"""The sockets of a process, as Linux lists them in /proc."""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

LISTEN = "0A"
TABLES = ("tcp", "tcp6", "udp", "udp6")


@dataclass(frozen=True)
class Socket:
    """One end of a connection, or where connections are waited for."""

    kind: str
    local: tuple[str, int]
    remote: tuple[str, int]
    listens: bool

    @property
    def is_local(self) -> bool:
        """Whether nothing of it leaves this machine; a socket that is bound and connected to nothing has the address 0."""
        ends = (self.local,) if self.listens else (self.local, self.remote) if self.remote[1] else ()
        return all(address(host).is_loopback for host, _ in ends)


def address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address; that of an IPv4 host where it is written as IPv6."""
    read = ipaddress.ip_address(host)
    return getattr(read, "ipv4_mapped", None) or read


def sockets(pid: int) -> set[Socket]:
    """The internet sockets a process has open; none of one that is gone."""
    try:
        links = [str(path.readlink()) for path in Path("/proc", str(pid), "fd").iterdir()]
        tables = {kind: Path("/proc", str(pid), "net", kind).read_text().splitlines()[1:] for kind in TABLES}
    except OSError:
        return set()
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = ((kind, row.split()) for kind, lines in tables.items() for row in lines)
    return {Socket(kind, _end(row[1]), _end(row[2]), row[3] == LISTEN) for kind, row in rows if row[9] in inodes}


def family(pid: int) -> list[int]:
    """A process and everything it has started, as far as it still runs."""
    try:
        threads = list(Path("/proc", str(pid), "task").iterdir())
        children = {int(child) for thread in threads for child in (thread / "children").read_text().split()}
    except OSError:
        return []
    return [pid, *(member for child in children for member in family(child))]


def _end(text: str) -> tuple[str, int]:
    """``0100007F:2116`` as address and port; the address is in words of the machine's own byte order."""
    host, _, port = text.partition(":")
    words = struct.pack(f"={len(host) // 8}I", *(int(host[at : at + 8], 16) for at in range(0, len(host), 8)))
    return socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words), int(port, 16)
