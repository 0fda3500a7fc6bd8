"""A port for browsers, and a server that leaves signals, logs and the loop to whoever runs it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

BACKLOG = 128
GRACE_SECONDS = 2


def listen(host: str, port: int) -> socket.socket:
    """An open port.

    Raises:
        OSError: taken, or not an address of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def is_loopback(host: str) -> bool:
    """Whether an address cannot be reached from other machines."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def server(app: Any) -> Any:
    """A uvicorn for an ASGI application, its configuration loaded."""
    import uvicorn

    class Quiet(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Whoever runs the loop has handlers of their own."""
            yield

    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False, "lifespan": "off", "ws": "none"}
    config = uvicorn.Config(app, timeout_graceful_shutdown=GRACE_SECONDS, **quiet)
    config.load()
    return Quiet(config)
