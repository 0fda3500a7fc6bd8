"""A line to a stock supernode: Flower's own connection code pulls our messages and pushes its replies; strangers are sent away."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedscale.errors import AccessDenied, ConfigError, ProtocolError, Unreachable
from fedscale.flower import directory, fab, signatures
from fedscale.flower.deployment import job_of
from fedscale.identity import certificate_pem, key_pem, new_authority
from fedscale_simulations.flower import simulate_app
from fedscale_simulations.job import importable
from fedscale_simulations.simulator import simulate
from tests.flower import samples

# The gateway itself is made of the newest protocol; supernodes that connect to it may be older.
pytest.importorskip("flwr.supernode.fleet_http_client")
pytestmark = pytest.mark.requires("flower")

KEY = ec.generate_private_key(ec.SECP384R1())
STRANGER = ec.generate_private_key(ec.SECP384R1())


def public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return signatures._pem(key.public_key())


def signed(key: ec.EllipticCurvePrivateKey = KEY, at: datetime | None = None, claimed: ec.EllipticCurvePrivateKey | None = None) -> dict[str, bytes]:
    """What a supernode with this key says of itself."""
    stamp = (at or datetime.now(UTC)).isoformat().encode()
    return {signatures.TIME: stamp, signatures.KEY: public(claimed or key), signatures.SIGNATURE: key.sign(stamp, ec.ECDSA(hashes.SHA256()))}


@pytest.fixture
def gate() -> Iterator[Any]:
    from fedscale.flower.gateway import Gateway

    made = Gateway(seconds=60)
    yield made
    made.close()


class OverHttp:
    """Calls as supernodes from flwr 1.40 on make them, by Flower's own client."""

    def __init__(self, gate: Any, key: ec.EllipticCurvePrivateKey) -> None:
        client: Any = pytest.importorskip("flwr.supernode.fleet_http_client", exc_type=ImportError)
        auth: Any = pytest.importorskip("flwr.supernode.node_auth_http_interceptor", exc_type=ImportError)
        interceptor = auth.NodeAuthHttpInterceptor(key, key.public_key())
        self._client = client.FleetHttpClient.from_server_address(gate.http, True, None, [interceptor])

    def __call__(self, call: str, request: Any) -> Any:
        return getattr(self._client, call)(request)

    def close(self) -> None:
        self._client.close()


class OverRpc:
    """Calls as supernodes up to flwr 1.39 make them."""

    def __init__(self, gate: Any, key: ec.EllipticCurvePrivateKey) -> None:
        import grpc

        stubs: Any = pytest.importorskip("flwr.proto.fleet_pb2_grpc")
        self._channel = grpc.insecure_channel(gate.rpc)
        self._key, self._stub = key, stubs.FleetStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def __call__(self, call: str, request: Any) -> Any:
        said = signed(self._key)
        head = ((f"{signatures.KEY}-bin", said[signatures.KEY]), (f"{signatures.SIGNATURE}-bin", said[signatures.SIGNATURE]))
        stamp = (signatures.TIME, said[signatures.TIME].decode())
        return getattr(self._stub, call)(request, metadata=(*head, stamp), wait_for_ready=True, timeout=60)


class Supernode(threading.Thread):
    """Pulls, works and pushes as a stock one does, with the ClientApp in this process."""

    def __init__(self, call: Callable[[str, Any], Any], app: Any, place: dict[str, Any], key: ec.EllipticCurvePrivateKey = KEY) -> None:
        super().__init__(daemon=True)
        self.call, self.app, self.place, self.key = call, app, place, public(key)
        self.over, self.fabs, self.overrides = threading.Event(), list[bytes](), list[Any]()

    def run(self) -> None:
        from flwr.proto import fleet_pb2, node_pb2

        self.call("RegisterNode", fleet_pb2.RegisterNodeFleetRequest(public_key=self.key))
        number = self.call("ActivateNode", fleet_pb2.ActivateNodeRequest(public_key=self.key, heartbeat_interval=30.0)).node_id
        self.node = node_pb2.Node(node_id=number)
        while not self.over.is_set():
            got = self.call("PullMessages", fleet_pb2.PullMessagesRequest(node=self.node))
            if got.messages_list:
                self._work(got.messages_list[0], got.message_object_trees[0])
            time.sleep(0.01)
        self.call("DeactivateNode", fleet_pb2.DeactivateNodeRequest(node_id=number))
        self.call("UnregisterNode", fleet_pb2.UnregisterNodeFleetRequest(node_id=number))

    def _work(self, envelope: Any, tree: Any) -> None:
        from flwr.app import Context, Message, RecordDict
        from flwr.common.serde import message_to_proto
        from flwr.proto import fab_pb2, fleet_pb2, message_pb2, run_pb2
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        run = self.call("GetRun", run_pb2.GetRunRequest(node=self.node, run_id=envelope.metadata.run_id)).run
        self.overrides.append({name: value.double for name, value in run.override_config.items() if value.HasField("double")})
        self.fabs.append(self.call("GetFab", fab_pb2.GetFabRequest(node=self.node, hash_str=run.fab_hash, run_id=run.run_id)).fab.content)
        parts = {}
        for each in iterate_object_tree(tree):
            request = message_pb2.PullObjectRequest(node=self.node, run_id=run.run_id, object_id=each.object_id)
            parts[each.object_id] = self.call("PullObject", request).object_content
        self.call(
            "ConfirmMessageReceived", message_pb2.ConfirmMessageReceivedRequest(node=self.node, run_id=run.run_id, message_object_id=tree.object_id)
        )
        message: Any = inflate_object_from_contents(tree.object_id, parts)
        message.metadata.__dict__["_message_id"] = tree.object_id
        config = {"lr": 0.5, **self.overrides[-1]}
        context = Context(run_id=run.run_id, node_id=self.node.node_id, node_config=self.place, state=RecordDict(), run_config=config)
        reply = self.app(message, context)
        assert isinstance(reply, Message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        proto, objects = message_to_proto(reply), get_all_nested_objects(reply)
        pushed = fleet_pb2.PushMessagesRequest(node=self.node, messages_list=[proto], message_object_trees=[get_object_tree(reply)])
        for name in self.call("PushMessages", pushed).objects_to_push:
            part = message_pb2.PushObjectRequest(node=self.node, run_id=run.run_id, object_id=name, object_content=objects[name].deflate())
            assert self.call("PushObject", part).stored


@contextmanager
def at_work(call: OverHttp | OverRpc, app: Any, place: int, of: int, key: ec.EllipticCurvePrivateKey = KEY) -> Iterator[Supernode]:
    made = Supernode(call, app, {"partition-id": place, "num-partitions": of}, key)
    made.start()
    try:
        yield made
    finally:
        made.over.set()
        made.join(60)
        call.close()


def test_supernodes_do_the_work_of_nodes_by_both_doors(app: Callable[..., Path]) -> None:
    """One over HTTP and one over gRPC in a native run, which comes to what Flower's ServerApp comes to with the same two."""
    from fedscale.flower import apps, bridge
    from fedscale.flower.gateway import Gateway

    folder = app(samples.MESSAGES.replace('context.state["seen"]["rounds"] + 1 if', "1 if"))
    told, plan = job_of(folder, ["lr=0.25", 'evaluate.metrics=["score"]', "num-server-rounds=2"])
    gates = {"east": Gateway(seconds=60), "west": Gateway(seconds=60)}
    try:
        with importable(folder), warnings.catch_warnings():
            client = apps.client_app(told)
            east, west = OverHttp(gates["east"], KEY), OverRpc(gates["west"], KEY)
            with at_work(east, client, 0, 2) as first, at_work(west, client, 1, 2) as second:
                ours = simulate(bridge.FlowerLearner(told, told.config), gates, plan=plan, engine="sequential")
    finally:
        for gate in gates.values():
            gate.close()
    assert (ours.status, ours.record.reason) == ("completed", "")
    theirs = simulate_app(folder, 2, ["lr=0.25", "num-server-rounds=2"])
    assert np.asarray(ours.model["0"]) == pytest.approx(np.asarray(theirs.arrays["0"]), rel=1e-5)
    assert {parcel == fab.pack(folder).content for node in (first, second) for parcel in node.fabs} == {True}
    assert {each["lr"] for node in (first, second) for each in node.overrides} == {0.25}


def test_nobody_answers(gate: Any, app: Callable[..., Path], messages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedscale.flower import touches

    touches.identify(1)
    monkeypatch.setattr(gate, "_seconds", 0.05)
    told = directory.read(app())
    asked = messages.Message(messages.RecordDict(), 2, "train")
    with pytest.raises(Unreachable, match="no supernode has connected"):
        gate.ask(asked, told, {}, 5)
    gate.answer("RegisterNode", _registration(), public(KEY))
    with pytest.raises(Unreachable, match="the supernode has not answered"):
        gate.ask(asked, told, {}, 5)


def _pulling(number: int) -> bytes:
    from flwr.proto import fleet_pb2, node_pb2

    content: bytes = fleet_pb2.PullMessagesRequest(node=node_pb2.Node(node_id=number)).SerializeToString()
    return content


def _number(gate: Any, key: ec.EllipticCurvePrivateKey) -> int:
    """A supernode's number, which it has once it has registered."""
    from flwr.proto import fleet_pb2

    return int(fleet_pb2.RegisterNodeFleetResponse.FromString(gate.answer("RegisterNode", _registration(key), public(key))).node_id)


@pytest.mark.parametrize("goodbyes", [("DeactivateNode",), ("DeactivateNode", "UnregisterNode")], ids=["leaves", "is forgotten"])
@pytest.mark.parametrize("again", [KEY, STRANGER], ids=["the same key", "a new key"])
def test_a_message_is_for_the_supernode_that_starts_again(
    gate: Any, app: Callable[..., Path], messages: Any, again: ec.EllipticCurvePrivateKey, goodbyes: tuple[str, ...]
) -> None:
    """Without a key of its own a stock supernode has another number each time."""
    from flwr.proto import fleet_pb2

    from fedscale.flower import touches

    touches.identify(1)
    content = messages.RecordDict({"told": messages.ConfigRecord({"lr": 0.5})})
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gate.ask, messages.Message(content, 2, "train"), directory.read(app()), {}, 5)
        number, ends = _number(gate, KEY), time.monotonic() + 60
        while not gate.answer("PullMessages", _pulling(number), public(KEY)):
            assert time.monotonic() < ends
        for call in goodbyes:
            gate.answer(call, fleet_pb2.DeactivateNodeRequest(node_id=number).SerializeToString(), public(KEY))

        def echo(message: Any, _: Any) -> Any:
            return messages.Message(message.content, reply_to=message)

        with at_work(OverHttp(gate, again), echo, 0, 1, again) as node:
            reply = answer.result(60)
    assert (reply.content["told"]["lr"], reply.metadata.src_node_id) == (0.5, node.node.node_id)
    assert (node.node.node_id == number) is (again is KEY)


def test_a_supernode_goes_on_with_the_gateway_of_the_next_run(gate: Any) -> None:
    """It registers once in its life, and ends when it is refused."""
    from fedscale.flower.fleet import Fleet

    number, later = _number(gate, KEY), Fleet()
    for body, key in ((_pulling(number), STRANGER), (_pulling(number + 1), KEY)):
        with pytest.raises(AccessDenied, match="not the supernode"):
            later.answer("PullMessages", body, public(key))
    assert later.answer("PullMessages", _pulling(number), public(KEY)) == b""
    other = _number(Fleet(), STRANGER)
    with pytest.raises(AccessDenied, match="not the supernode"):
        later.answer("PullMessages", _pulling(other), public(STRANGER))


def _asked(key: ec.EllipticCurvePrivateKey) -> Any:
    from flwr.proto import fleet_pb2

    return fleet_pb2.RegisterNodeFleetRequest(public_key=public(key))


def _registration(key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    content: bytes = _asked(key).SerializeToString()
    return content


def test_who_is_not_the_supernode_is_sent_away(gate: Any) -> None:
    from flwr.proto import fleet_pb2, node_pb2

    with pytest.raises(AccessDenied):
        gate.answer("RegisterNode", _registration(STRANGER), public(KEY))
    gate.answer("RegisterNode", _registration(), public(KEY))
    with pytest.raises(AccessDenied, match="another supernode is connected"):
        gate.answer("RegisterNode", _registration(STRANGER), public(STRANGER))
    number = fleet_pb2.ActivateNodeResponse.FromString(gate.answer("ActivateNode", _registration(), public(KEY))).node_id
    pull = fleet_pb2.PullMessagesRequest(node=node_pb2.Node(node_id=number)).SerializeToString()
    assert gate.answer("PullMessages", pull, public(KEY)) == b""
    other = fleet_pb2.PullMessagesRequest(node=node_pb2.Node(node_id=number + 1)).SerializeToString()
    for body, key in ((pull, STRANGER), (other, KEY)):
        with pytest.raises(AccessDenied, match="not the supernode"):
            gate.answer("PullMessages", body, public(key))
    # One that has gone makes room for another.
    gate.answer("DeactivateNode", fleet_pb2.DeactivateNodeRequest(node_id=number).SerializeToString(), public(KEY))
    assert gate.answer("RegisterNode", _registration(STRANGER), public(STRANGER))


def test_requests_that_make_no_sense(gate: Any) -> None:
    from flwr.proto import fab_pb2, node_pb2, run_pb2

    for call, body in (("Nothing", b""), ("RegisterNode", b"\xff\xff\xff")):
        with pytest.raises(ProtocolError):
            gate.answer(call, body, public(KEY))
    gate.answer("RegisterNode", _registration(), public(KEY))
    node = node_pb2.Node(node_id=gate._fleet._node)
    asked = {"GetRun": run_pb2.GetRunRequest(node=node, run_id=1), "GetFab": fab_pb2.GetFabRequest(node=node, hash_str="x", run_id=1)}
    for call, request in asked.items():
        with pytest.raises(ProtocolError, match="before it has got a message"):
            gate.answer(call, request.SerializeToString(), public(KEY))


def test_both_doors_say_what_is_wrong(gate: Any) -> None:
    import grpc
    import httpx

    with httpx.Client(base_url=f"http://{gate.http}", trust_env=False, timeout=60) as client:
        assert client.post("/v1/fleet/pull-messages", content=b"").status_code == 401
        head = {signatures.TIME: "now", signatures.KEY: "=", signatures.SIGNATURE: "="}
        assert client.post("/v1/fleet/pull-messages", content=b"", headers=head).status_code == 401
    connection = http.client.HTTPConnection(gate.http, timeout=60)
    connection.putrequest("POST", "/v1/fleet/pull-messages")
    connection.putheader("content-length", str(1 << 40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    stubs: Any = pytest.importorskip("flwr.proto.fleet_pb2_grpc")
    from flwr.proto import fleet_pb2

    with grpc.insecure_channel(gate.rpc) as channel, pytest.raises(grpc.RpcError) as caught:
        stubs.FleetStub(channel).PullMessages(fleet_pb2.PullMessagesRequest(), wait_for_ready=True, timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "said",
    [
        lambda: signed(claimed=STRANGER),
        lambda: signed(at=datetime.now(UTC) - timedelta(minutes=6)),
        lambda: signed(at=datetime.now(UTC) + timedelta(minutes=1)),
        lambda: signed(at=datetime.now()),  # noqa: DTZ005 - without a zone
        lambda: signed() | {signatures.KEY: b"nothing"},
        lambda: signed() | {signatures.TIME: b"yesterday"},
        lambda: signed() | {signatures.SIGNATURE: b""},
    ],
    ids=["another's key", "old", "early", "no zone", "no key", "no time", "no signature"],
)
def test_signatures_that_prove_nothing(said: Callable[[], dict[str, bytes]]) -> None:
    check = signatures.Check(frozenset())
    assert check(signed()) == public(KEY)
    with pytest.raises(AccessDenied):
        check(said())


def test_only_known_keys(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_bytes(public(KEY))
    check = signatures.Check(frozenset([signatures.read(tmp_path / "a.pub")]))
    assert check(signed()) == public(KEY)
    with pytest.raises(AccessDenied, match="not known here"):
        check(signed(STRANGER))
    for name, content in (("b.pub", b"nothing"), ("c.pub", b"-----BEGIN PUBLIC KEY-----\nx\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read"):
            signatures.read(tmp_path / name)


# ---------------------------------------------------------------------------------------------- strangers at the doors


def _head(size: int, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """The head of a request over HTTP, signed where there is a key."""
    said = signed(key) if key else {}
    lines = [f"{name}: {value.decode() if name == signatures.TIME else b64encode(value).decode()}" for name, value in said.items()]
    return "\r\n".join(["POST /v1/fleet/register-node HTTP/1.1", f"content-length: {size}", *lines, "", ""]).encode()


def _call_on(gate: Any) -> socket.socket:
    host, _, port = gate.http.rpartition(":")
    return socket.create_connection((host, int(port)), 60)


def _ended(line: socket.socket) -> bool:
    """Whether the other side hangs up on one who says a drop at a time, and never all."""
    line.settimeout(0.05)
    ends = time.monotonic() + 45
    while time.monotonic() < ends:
        try:
            line.sendall(b"x")
            if line.recv(1) == b"":
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def test_nothing_is_read_of_who_may_not_come(gate: Any) -> None:
    with _call_on(gate) as line:
        line.sendall(_head(1 << 20))
        answer = b"".join(iter(lambda: line.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 401 "), "without a byte of the body"
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize(("name", "said"), [("SILENT", lambda: b"POST /"), ("BODY", lambda: _head(1 << 20, KEY))], ids=["head", "body"])
def test_a_request_has_its_time_in_all(gate: Any, monkeypatch: pytest.MonkeyPatch, name: str, said: Callable[[], bytes]) -> None:
    from fedscale.flower import gateway

    monkeypatch.setattr(gateway, f"{name}_SECONDS", 0.3)
    with _call_on(gate) as line:
        line.sendall(said())
        assert _ended(line)


def test_there_are_never_more_connections_than_allowed(gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedscale.flower import gateway

    monkeypatch.setattr(gateway, "MOST_CALLS", 2)
    with _call_on(gate) as first, _call_on(gate):
        with _call_on(gate) as third:
            assert third.recv(1) == b""
        first.shutdown(socket.SHUT_RDWR)
        ends, said = time.monotonic() + 45, b""
        while not said and time.monotonic() < ends:
            with _call_on(gate) as again, suppress(ConnectionError):
                again.sendall(_head(0))
                said = again.recv(12)
    assert said == b"HTTP/1.1 401"


class Silent:
    """Calls over gRPC whose message never comes."""

    def __init__(self, gate: Any) -> None:
        import grpc

        self.over, self.channel = threading.Event(), grpc.insecure_channel(gate.rpc)
        self._method: Any = self.channel.stream_unary("/flwr.proto.Fleet/RegisterNode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.channel.close()

    def begin(self, key: ec.EllipticCurvePrivateKey | None = None) -> Any:
        said = {name if name == signatures.TIME else f"{name}-bin": value for name, value in signed(key).items()} if key else {}
        head = tuple((name, value if name.endswith("-bin") else value.decode()) for name, value in said.items())
        return self._method.future(self._never(), metadata=head, wait_for_ready=True)

    def _never(self) -> Iterator[bytes]:
        self.over.wait()
        yield from ()


def test_who_may_not_come_keeps_no_thread_over_grpc(gate: Any) -> None:
    import grpc

    with Silent(gate) as silent:
        codes = {call.exception(60).code() for call in [silent.begin() for _ in range(20)]}
    assert codes == {grpc.StatusCode.UNAUTHENTICATED}


def test_calls_over_grpc_that_are_stuck_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import grpc

    from fedscale.flower import gateway

    monkeypatch.setattr(gateway, "BODY_SECONDS", 0.5)
    made = gateway.Gateway()
    try:
        with Silent(made) as silent:
            codes = {call.exception(60).code() for call in [silent.begin(KEY) for _ in range(gateway.THREADS)]}
        assert codes == {grpc.StatusCode.UNAVAILABLE}
        other, ends, number = OverRpc(made, KEY), time.monotonic() + 60, 0
        while not number and time.monotonic() < ends:
            with suppress(grpc.RpcError):  # its connection may be as old
                number = other("RegisterNode", _asked(KEY)).node_id
        other.close()
        assert number
    finally:
        made.close()


def test_there_are_never_more_calls_over_grpc_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    import grpc

    from fedscale.flower import gateway

    monkeypatch.setattr(gateway, "MOST_CALLS", 2)
    made = gateway.Gateway()
    try:
        with Silent(made) as silent:
            calls = [silent.begin(KEY) for _ in range(3)]
            ends = time.monotonic() + 60
            while not (refused := [call for call in calls if call.done()]) and time.monotonic() < ends:
                time.sleep(0.01)
            assert [call.exception().code() for call in refused] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
    finally:
        made.close()


@pytest.mark.parametrize(
    ("address", "what"),
    [("0.0.0.0:0", "in the clear"), ("[::]:0", "in the clear"), ("127.0.0.1", "no host:port"), ("no-such-host.invalid:1", "there is no host")],
)
def test_beyond_this_machine_it_wants_tls_and_keys(address: str, what: str) -> None:
    from fedscale.flower.gateway import Gateway

    for http_door, rpc_door in ((address, ""), ("", address)):
        with pytest.raises(ConfigError) as caught:
            Gateway(http_door, rpc_door)
        assert what in caught.value.what


def test_a_port_that_is_taken(gate: Any) -> None:
    from fedscale.flower.gateway import Gateway

    for http_door, rpc_door in ((gate.http, ""), ("", gate.rpc)):
        with pytest.raises(ConfigError, match="cannot listen"):
            Gateway(http_door, rpc_door)


def test_tls(tmp_path: Path) -> None:
    """With a certificate both doors speak TLS alone."""
    import httpx

    from fedscale.flower.gateway import Gateway

    authority, key = new_authority("trial", datetime.now(UTC)), ec.generate_private_key(ec.SECP256R1())
    certificate = authority.issue_server(key.public_key(), ("127.0.0.1",), datetime.now(UTC))
    for name, content in (("key", key_pem(key)), ("cert", certificate_pem(certificate)), ("ca", authority.to_pems()[1]), ("pub", public(KEY))):
        (tmp_path / name).write_bytes(content)
    made = Gateway("0.0.0.0:0", "0.0.0.0:0", tls=(str(tmp_path / "key"), str(tmp_path / "cert")), keys=[str(tmp_path / "pub")])
    try:
        port = made.http.rpartition(":")[2]
        context = ssl.create_default_context(cafile=str(tmp_path / "ca"))
        with httpx.Client(verify=context, trust_env=False, timeout=60) as client:
            assert client.post(f"https://127.0.0.1:{port}/v1/fleet/pull-messages").status_code == 401
        with httpx.Client(trust_env=False, timeout=60) as client, pytest.raises(httpx.TransportError):
            client.post(f"http://127.0.0.1:{port}/v1/fleet/pull-messages")
    finally:
        made.close()


# ------------------------------------------------------------------------------------------------------------ the archive


def test_the_archive_is_one_that_flower_takes(app: Callable[..., Path]) -> None:
    folder = app()
    (folder / "sample" / "__pycache__").mkdir()
    for name in ("sample/__pycache__/x.py", ".secret.py", "data.csv"):
        (folder / name).write_text("x")
    parcel = fab.pack(folder)
    assert (parcel.id, parcel.version, fab.pack(folder).digest) == ("somebody/sample-app", "1.0.0", parcel.digest)
    with zipfile.ZipFile(io.BytesIO(parcel.content)) as archive:
        names = set(archive.namelist())
        assert "federations" not in archive.read("pyproject.toml").decode()
    assert names == {"pyproject.toml", "sample/__init__.py", "sample/client_app.py", "sample/server_app.py", ".info/CONTENT"}
    config: Any = pytest.importorskip("flwr.common.config")
    assert config.get_fab_config(parcel.content)["project"]["name"] == "sample-app"


def test_an_app_that_no_supernode_would_take(app: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="the app has no publisher"):
        fab.pack(app(project=samples.PROJECT.replace('publisher = "somebody"', "")))


def test_nothing_listens_unasked() -> None:
    code = "import sys, fedscale.flower, fedscale.flower.directory; sys.exit('fedscale.flower.gateway' in sys.modules or 'flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
