"""What a failed call means, and how long to wait after one."""

from __future__ import annotations

import json
from typing import Any

import grpc
import grpc.aio
import pytest

from fedscale.errors import AccessDenied, Conflict, FedscaleError, NotFound, PlanError, ProtocolError, Unreachable
from fedscale.wire import faults
from fedscale_client import rpc

Code = grpc.StatusCode


def failed(code: Code, details: str = "", **trailing: Any) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*((key.replace("_", "-"), value) for key, value in trailing.items()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details=details)


def packed(**body: str) -> bytes:
    return json.dumps({"type": "PlanError", "what": "w", "where": "f:1", "why": "y", "hint": "h", **body}).encode()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.UNAUTHENTICATED, AccessDenied),
        (Code.PERMISSION_DENIED, AccessDenied),
        (Code.NOT_FOUND, NotFound),
        (Code.ALREADY_EXISTS, Conflict),
        (Code.UNAVAILABLE, Unreachable),
        (Code.RESOURCE_EXHAUSTED, Unreachable),
        (Code.INVALID_ARGUMENT, ProtocolError),
        (Code.UNIMPLEMENTED, ProtocolError),
    ],
)
def test_statuses(code: Code, kind: type[FedscaleError]) -> None:
    error = rpc.error_of(failed(code, "details"), "host:1")
    assert type(error) is kind
    assert error.where == "host:1"


@pytest.mark.parametrize(
    ("details", "why"),
    [
        ("ipv4:127.0.0.1:1: Failed to connect to remote host: Connection refused", "nothing listens there"),
        ("Tls handshake failed (TSI): SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: unable", "the server's certificate is not the federation's"),
        ("SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: self signed certificate", "the server's certificate is not the federation's"),
        ("Hostname Verification Check failed.", "the server's certificate is for another host"),
        ("address lookup failed for nosuch.invalid:1: Domain name not found", "the host name is not known"),
        ("Deadline Exceeded", "no answer in time"),
        ("something new", "unavailable"),
    ],
)
def test_why_a_server_cannot_be_reached(details: str, why: str) -> None:
    error = rpc.error_of(failed(Code.UNAVAILABLE, details), "host:1")
    assert (error.why, error.hint) == (why, rpc.REACH)


def test_a_request_of_another_release_is_told_as_such() -> None:
    error = rpc.error_of(failed(Code.UNIMPLEMENTED, "Method not found!"), "host:1")
    assert (type(error), error.why, error.hint) == (ProtocolError, "it runs another release", rpc.RELEASES)


def test_no_answer_at_all() -> None:
    error = rpc.error_of(TimeoutError(), "host:1")
    assert isinstance(error, Unreachable)
    assert str(error).startswith("host:1: the server does not answer (no answer in time)")


def test_the_servers_own_error_arrives() -> None:
    error = rpc.error_of(failed(Code.INVALID_ARGUMENT, "all in one", fedscale_error_bin=packed()), "host:1")
    assert type(error) is PlanError
    assert str(error) == "f:1: w (y); h"


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", packed(type="").replace(b'"w"', b"[1]", 1)])
def test_an_error_that_cannot_be_read_falls_back_on_the_status(body: bytes) -> None:
    error = rpc.error_of(failed(Code.NOT_FOUND, "no such run", fedscale_error_bin=body), "host:1")
    assert type(error) is NotFound
    assert error.what == "no such run"


def test_what_a_server_says_is_cut() -> None:
    long = "x" * 10_000
    assert len(rpc.error_of(failed(Code.NOT_FOUND, long), "h:1").what) == rpc.LONGEST
    assert len(rpc.error_of(failed(Code.NOT_FOUND, "", fedscale_error_bin=packed(what=long)), "h:1").what) == faults.LONGEST


@pytest.mark.parametrize(("error", "passing"), [(TimeoutError(), True), (failed(Code.UNAVAILABLE), True), (failed(Code.NOT_FOUND), False)])
def test_what_may_pass(error: rpc.CallError, passing: bool) -> None:
    assert rpc.is_passing(error) is passing


def test_pauses_grow_and_are_jittered() -> None:
    pauses = [[rpc.pause(attempt) for _ in range(50)] for attempt in (0, 1, 3, 20, 10_000)]
    for of_attempt, most in zip(pauses, (0.1, 0.2, 0.8, 5.0, 5.0), strict=True):
        assert most / 2 <= min(of_attempt) < max(of_attempt) <= most


@pytest.mark.parametrize(("asked", "least", "most"), [("2000", 2.0, 3.0), ("900000", 60.0, 90.0), ("soon", 0.05, 0.1), ("-5", 0.05, 0.1)])
def test_the_server_may_ask_for_a_pause(asked: str, least: float, most: float) -> None:
    pauses = [rpc.pause(0, failed(Code.RESOURCE_EXHAUSTED, retry_after_ms=asked)) for _ in range(50)]
    assert least <= min(pauses) < max(pauses) <= most
