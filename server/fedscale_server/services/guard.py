"""The guard: who may call what, from the client certificate alone, and how errors leave the server.

``RIGHTS`` is the whole authorisation table. A method that is not in it is refused, so a new RPC is closed until somebody
opens it here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc
import structlog
from sqlalchemy.exc import SQLAlchemyError

from fedscale import errors
from fedscale.errors import AccessDenied, Busy, FedscaleError, Unreachable
from fedscale.identity import Identity, Role
from fedscale.wire.faults import RETRY_KEY, packed
from fedscale_server.registry import Registry

log = structlog.get_logger()
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

CHECK_SECONDS = 0.5
OPERATORS = frozenset({Role.COORDINATOR, Role.RESEARCHER})
READERS = OPERATORS | {Role.AUDITOR}
COORDINATOR = frozenset({Role.COORDINATOR})
NODE = frozenset({Role.NODE})

RIGHTS: dict[str, frozenset[Role]] = {
    "/fedscale.v1.Node/Connect": NODE,
    "/fedscale.v1.Node/Renew": READERS | NODE,
    "/fedscale.v1.Frames/Fetch": OPERATORS | NODE,
    "/fedscale.v1.Frames/Submit": NODE,
    "/fedscale.v1.Frames/Put": OPERATORS,
    "/fedscale.v1.Frames/Offset": NODE,
    "/fedscale.v1.Control/Status": READERS,
    "/fedscale.v1.Control/CreateProject": COORDINATOR,
    "/fedscale.v1.Control/ListProjects": READERS,
    "/fedscale.v1.Control/Invite": COORDINATOR,
    "/fedscale.v1.Control/ListNodes": READERS,
    "/fedscale.v1.Control/Revoke": COORDINATOR,
    "/fedscale.v1.Control/SubmitRun": OPERATORS,
    "/fedscale.v1.Control/ListRuns": READERS,
    "/fedscale.v1.Control/GetRun": READERS,
    "/fedscale.v1.Control/WatchRun": READERS,
    "/fedscale.v1.Control/SteerRun": OPERATORS,
    "/fedscale.v1.Control/Post": OPERATORS,
    "/fedscale.v1.Control/Collect": OPERATORS,
    "/fedscale.v1.Control/Conclude": OPERATORS,
}

STATUS: dict[type[FedscaleError], grpc.StatusCode] = {
    errors.AccessDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.TicketError: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.PolicyRefusal: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unreachable: grpc.StatusCode.UNAVAILABLE,
    errors.Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_caller: ContextVar[Identity] = ContextVar("caller")


def caller() -> Identity:
    """Who makes the current call."""
    return _caller.get()


async def abort(context: Context, error: FedscaleError) -> None:
    """End a call with an error whose class and words arrive at the other side."""
    later = ((RETRY_KEY, str(round(1000 * error.seconds))),) if isinstance(error, Busy) else ()
    await context.abort(STATUS.get(type(error), grpc.StatusCode.INVALID_ARGUMENT), str(error), (packed(error), *later))


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Checks every call of an mTLS port before its body is read, and turns errors into statuses.

    Args:
        registry: knows who is revoked; ``None`` on the enrolment port, where nobody has a certificate yet.
        serving: raises while another coordinator is to be asked.
    """

    def __init__(self, registry: Registry | None, serving: Callable[[], None] = lambda: None) -> None:
        self._registry, self._serving = registry, serving

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Wrap the method's handler, whatever its arity."""
        handler = await continuation(details)
        if handler is None:
            return None
        kind = ("stream" if handler.request_streaming else "unary") + "_" + ("stream" if handler.response_streaming else "unary")
        inner = getattr(handler, kind)
        wrapped = self._streaming(details.method, inner) if handler.response_streaming else self._single(details.method, inner)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(wrapped, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer)

    def _admit(self, method: str, context: Context) -> Identity | None:
        """Find out who calls and whether they may; nobody is asked on the enrolment port.

        Raises:
            Unreachable: another coordinator leads.
            AccessDenied: no certificate, not known, revoked, or not for this role.
        """
        self._serving()
        if self._registry is None:
            return None
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        if pem is None:
            raise AccessDenied("a client certificate is needed", hint="join first: fedscale node join TICKET")
        identity = self._registry.admit(pem)
        if identity.role not in RIGHTS.get(method, frozenset()):
            raise AccessDenied(f"role '{identity.role}' may not call {method.rpartition('/')[2]}")
        _caller.set(identity)
        return identity

    def _still(self, identity: Identity | None) -> None:
        """Whether who was admitted is still a member, and to be served here; from memory.

        Raises:
            Unreachable: another coordinator leads since.
            AccessDenied: revoked since.
        """
        self._serving()
        if self._registry is not None and identity is not None:
            self._registry.check(identity)

    def _request(self, request: Any, identity: Identity | None) -> Any:
        """The request; a stream of them ends when its sender is shut out."""

        async def admitted() -> AsyncIterator[Any]:
            async for message in request:
                self._still(identity)
                yield message

        return admitted() if hasattr(request, "__aiter__") else request

    async def _response(self, messages: AsyncGenerator[Any, None], identity: Identity | None) -> AsyncGenerator[Any, None]:
        """A stream of answers, which ends when its reader is shut out, even while there is nothing to read."""
        turn: asyncio.Future[Any] | None = None
        try:
            while True:
                turn = asyncio.ensure_future(anext(messages, None))
                while not turn.done():
                    await asyncio.wait({turn}, timeout=CHECK_SECONDS)
                    self._still(identity)
                message = turn.result()
                if message is None:
                    return
                yield message
        finally:
            if turn is not None and not turn.done():
                turn.cancel()
                await asyncio.wait({turn})
            await messages.aclose()

    def _single(self, method: str, inner: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            try:
                identity = self._admit(method, context)
                return await inner(self._request(request, identity), context)
            except FedscaleError as error:
                await abort(context, error)
            except (OSError, SQLAlchemyError) as error:
                log.exception("disk or database refuse", method=method)
                await abort(context, _refused(error))

        return call

    def _streaming(self, method: str, inner: Callable[[Any, Context], AsyncGenerator[Any, None]]) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                identity = self._admit(method, context)
                async with aclosing(self._response(inner(self._request(request, identity), context), identity)) as messages:
                    async for message in messages:
                        yield message
            except FedscaleError as error:
                await abort(context, error)
            except (OSError, SQLAlchemyError) as error:
                log.exception("disk or database refuse", method=method)
                await abort(context, _refused(error))

        return call


def _refused(error: OSError | SQLAlchemyError) -> Unreachable:
    """What a caller is told of a disk or a database that refuses: enough to come back, and nothing of what was to be stored."""
    why = error.strerror if isinstance(error, OSError) else ""
    return Unreachable("the server cannot store this at the moment", why=why or type(error).__name__, hint="try again; see the server's log")
