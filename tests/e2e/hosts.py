"""Several hosts on this machine: network namespaces behind a switch, each with an address of its own and a cable that can be pulled out.

Where a cable is out, what is sent is gone: no reset, no refusal and no end of a connection ever reaches the other side.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

from tests.e2e.federation import LOCAL, Federation, Process

SUBNET, MASK = "192.0.2.", 24  # set aside for documentation, so it is nobody's
DESK = "desk"
PORT = "eth0"


def ip(*words: object) -> None:
    """One command of iproute2."""
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, timeout=30)


@cache
def permitted() -> bool:
    """Whether this process may make namespaces and connect them: some containers do not let anybody."""
    with suppress(OSError, subprocess.SubprocessError), Switch() as switch:
        switch.host("probe", 1)
        return True
    return False


class Switch:
    """Hosts that reach each other; everything is gone when the ``with`` block ends."""

    def __init__(self) -> None:
        self._name = f"fs{secrets.token_hex(4)}"
        self._spaces: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._space(self._name)
            ip("-n", self._name, "link", "add", "switch", "type", "bridge")
            ip("-n", self._name, "link", "set", "switch", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for space in reversed(self._spaces):
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True, timeout=30)

    def _space(self, name: str) -> None:
        ip("netns", "add", name)
        self._spaces.append(name)
        ip("-n", name, "link", "set", "lo", "up")

    def space(self, host: str) -> str:
        """The namespace of a host."""
        return f"{self._name}-{host}"

    def host(self, host: str, number: int) -> None:
        """A new host with the address of this number, its cable in the switch."""
        self._space(self.space(host))
        ip("-n", self._name, "link", "add", host, "type", "veth", "peer", "name", PORT, "netns", self.space(host))
        ip("-n", self._name, "link", "set", host, "master", "switch", "up")
        ip("-n", self.space(host), "link", "set", PORT, "up")
        self.give(host, number)

    def give(self, host: str, number: int) -> None:
        """Let a host have an address, and all others hear of it."""
        ip("netns", "exec", self.space(host), "sysctl", "-qw", f"net.ipv4.conf.{PORT}.arp_notify=1")
        ip("-n", self.space(host), "address", "add", f"{address(number)}/{MASK}", "dev", PORT)

    def pull(self, host: str) -> None:
        """Pull a host's cable out."""
        ip("-n", self._name, "link", "set", host, "down")

    def plug(self, host: str) -> None:
        """Put it in again."""
        ip("-n", self._name, "link", "set", host, "up")


def address(number: int) -> str:
    """The address of a host."""
    return f"{SUBNET}{number}"


class Hosts(Federation):
    """A federation whose coordinator and nodes each run on a host of their own; whoever steers it sits at another one.

    Args:
        folder: where everything lies; all hosts see it.
        switch: what connects the hosts.
        nodes: the names of the nodes, which are those of their hosts.
    """

    def __init__(self, folder: Path, switch: Switch, nodes: Sequence[str]) -> None:
        super().__init__(folder)
        self.switch, self.coordinator = switch, "one"
        self.listening = ("--host", address(1), "--hosts", address(1))
        for number, name in enumerate((self.coordinator, DESK, *nodes), 1):
            switch.host(name, number)
        self._homes = {str(self.node_home(name)): name for name in nodes}

    def through(self, words: Sequence[object]) -> list[str]:
        """Each command on the host that it belongs to."""
        here = next((host for word in words if (host := self._homes.get(str(word)))), DESK)
        host = self.coordinator if words[:2] == ("server", "start") else here
        unproxied = [f"{name}={LOCAL},{address(1)}" for name in ("NO_PROXY", "no_proxy")]
        return ["ip", "netns", "exec", self.switch.space(host), "env", *unproxied]


def heard(process: Process, word: str) -> int:
    """How often a process has logged something."""
    return process.told().count(word)
