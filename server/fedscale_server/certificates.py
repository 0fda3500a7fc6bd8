"""What the server proves itself with, renewed while it serves: who connects from then on is shown the new certificate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from fedscale.errors import FedscaleError
from fedscale.identity import certificate_pem

if TYPE_CHECKING:
    from fedscale.clock import Clock
    from fedscale_server.home import Home
    from fedscale_server.settings import Settings

log = structlog.get_logger()
LOOK_SECONDS = 3600.0


class Certificates:
    """The server's certificate on all its ports.

    Args:
        home: where it lies, and the authority that makes a new one.
    """

    def __init__(self, home: Home) -> None:
        self._home, self._pair = home, home.server_pems()

    def credentials(self, *, members: bool) -> grpc.ServerCredentials:
        """Credentials of one port.

        Args:
            members: let in only who shows a certificate of the authority.
        """
        roots = certificate_pem(self._home.authority.certificate) if members else None

        shown, lock = [self._pair], Lock()

        # Asked at every handshake, by several threads. gRPC 1.85 can crash where it takes over a certificate while others shake hands, so it
        # is given each one once.
        def newer() -> grpc.ServerCertificateConfiguration | None:
            with lock:
                if shown[0] is self._pair:
                    return None
                shown[0] = self._pair
                return configuration(self._pair)

        def configuration(pair: tuple[bytes, bytes]) -> grpc.ServerCertificateConfiguration:
            return grpc.ssl_server_certificate_configuration([pair], roots)

        fetcher: Callable[[], Any] = newer
        return grpc.dynamic_ssl_server_credentials(configuration(shown[0]), fetcher, require_client_authentication=members)

    async def keep(self, settings: Settings, clock: Clock) -> None:
        """Renew the certificate whenever most of its life is over, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await asyncio.to_thread(self.renew, settings, clock)
            except (FedscaleError, OSError) as error:
                log.warning("the server's certificate is not renewed", error=str(error))

    def renew(self, settings: Settings, clock: Clock) -> None:
        """Renew it if it is time.

        Raises:
            ConfigError: it cannot be read or made.
            OSError: it cannot be written.
        """
        if self._home.refresh(settings, clock.now()):
            self._pair = self._home.server_pems()
            log.info("the server has a new certificate")
