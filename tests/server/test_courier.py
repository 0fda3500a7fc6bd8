"""Led runs at a real server: letters to nodes and their replies to the leader, whoever goes away in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedscale.causes import GONE
from fedscale.errors import Cause
from fedscale.identity import Role
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.record import RunRecord
from fedscale.report import model_card
from fedscale.wire.codec import DIGEST_KEY, PUT, RUN_KEY, SIZE_KEY, digest_of, frames
from fedscale_server.courier import Courier
from tests.server.running import PATIENCE, Ask, Node, Receipt, Running, plan_text, refusal, soon, until

MODEL = b"a model, or trees"
REPLY = b"grow" * 300_000  # more than one part, in whole words


class Leader:
    """Leads one run, as a program of somebody's does."""

    def __init__(self, server: Running, run: str) -> None:
        self.server, self.run = server, run
        self._collecting: AsyncIterator[pb.Reply] | None = None

    @classmethod
    async def begin(cls, server: Running, **clients: Any) -> Leader:
        given = {"rejoin": 20.0, "min_per_round": 2, **clients}
        return cls(server, await server.submit(plan_text(strategy={"name": "led", "rounds": 2}, clients=given)))

    async def put(self, content: bytes = MODEL) -> Any:
        metadata: list[tuple[str, str | bytes]] = [(DIGEST_KEY, digest_of(content)), (SIZE_KEY, str(len(content))), (RUN_KEY, self.run)]
        return await soon(self.server.admin.send(PUT, frames(content), metadata))

    async def post(self, *letters: pb.Letter) -> list[str]:
        return list((await soon(self.server.admin.control.Post(pb.PostRequest(run=self.run, letters=letters)))).missing)

    async def ask(self, node: str, number: int = 1, **facts: Any) -> None:
        """One letter, its content stored first."""
        await self.put()
        assert await self.post(letter(node, number, **facts)) == []

    async def collect(self, after: int = 0) -> AsyncIterator[pb.Reply]:
        """The stream of replies, once it is settled who takes part."""
        if self._collecting is None:
            replies = aiter(self.server.admin.control.Collect(pb.CollectRequest(run=self.run, after=after)))
            self.members = list((await soon(anext(replies))).members)
            self._collecting = replies
        return self._collecting

    async def next(self, after: int = 0) -> pb.Reply:
        """The next reply, put together; of a stream that is opened when it is needed."""
        replies, whole = await self.collect(after), b""
        while True:
            part = await soon(anext(replies))
            whole += part.data
            if not part.more:
                part.data = whole
                return part

    async def conclude(self, reason: str = "", metrics: Any = (), model: str = "") -> Any:
        request = pb.ConcludeRequest(run=self.run, reason=reason, metrics=json.dumps(list(metrics)), model=model)
        return await soon(self.server.admin.control.Conclude(request))


def letter(node: str, number: int = 1, **facts: Any) -> pb.Letter:
    given = {"envelope": '{"id": "x"}', "content": digest_of(MODEL), "size": len(MODEL), "seconds": 60.0, "phase": "train", "round": number, **facts}
    return pb.Letter(node=node, number=number, **given)


def _courier(server: Running, leader: Leader) -> Courier:
    """Who carries a leader's letters."""
    courier = server.engine.driver(leader.run)
    assert isinstance(courier, Courier)
    return courier


async def asked(node: Node) -> tuple[Ask, bytes]:
    """What a node is asked, and the content that it fetches."""
    ask = await node.ask("message")
    return ask, await node.fetch(ask.task.model)


async def replied(node: Node, body: bytes = REPLY) -> Any:
    """The receipt for a node's next reply."""
    ask, _ = await asked(node)
    return await node.submit(ask.key, body)


async def answered(server: Running) -> tuple[Leader, Courier]:
    """A led run whose one letter is answered."""
    (ada,) = await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    await leader.ask("ada")
    await replied(ada)
    return leader, _courier(server, leader)


def refusing(*_: Any) -> Any:
    """What disks say that are full, or were just pulled."""
    raise OSError("no space left")


async def test_letters_go_out_and_replies_come_back_in_order(server: Running) -> None:
    ada, bob = await server.nodes("ada", "bob")
    leader = await Leader.begin(server)
    assert await leader.post(letter("ada"), letter("bob"), letter("ada", 2)) == [digest_of(MODEL)]
    assert (await leader.put()).verdict == Receipt.ACCEPTED
    assert await leader.post(letter("ada"), letter("bob"), letter("ada", 2)) == []
    ask, content = await asked(bob)
    assert (content, ask.task.number, bob.heard[-1].assignment.envelope) == (MODEL, 1, '{"id": "x"}')
    assert (await bob.submit(ask.key, b"bob.")).verdict == Receipt.ACCEPTED
    assert (await replied(ada)).verdict == Receipt.ACCEPTED
    assert (await replied(ada, b"two.")).verdict == Receipt.ACCEPTED
    told = [await leader.next() for _ in range(3)]
    assert leader.members == ["ada", "bob"]
    assert [(reply.node, reply.number, reply.data, reply.cause) for reply in told] == [
        ("bob", 1, b"bob.", ""),
        ("ada", 1, REPLY, ""),
        ("ada", 2, b"two.", ""),
    ]
    assert [reply.sequence for reply in told] == sorted(reply.sequence for reply in told)
    assert (await leader.conclude(metrics=[("train", 1, {"loss": 0.5})])).status == "completed"
    _, record = await server.over(leader.run)
    first = next(row for row in record["rounds"] if row["number"] == 1)
    assert (first["answered"], first["metrics"], first["bytes_up"]) == (["ada", "bob"], {"loss": 0.5}, len(REPLY) + 4)
    assert (record["nodes"], record["status"]) == (["ada", "bob"], "completed")
    deeds = (server.path / "audit.jsonl").read_text()
    assert '"run led"' in deeds, "who sees single answers is on record"
    # What their apps remember of the run, the nodes may forget.
    await until(lambda: [node.released for node in (ada, bob)] == [[(leader.run, "message", 0)]] * 2)


async def test_what_was_said_is_told_again_after_the_server_came_back(server: Running) -> None:
    ada, bob = await server.nodes("ada", "bob")
    leader = await Leader.begin(server)
    await leader.ask("ada")
    assert (await replied(ada)).verdict == Receipt.ACCEPTED
    await leader.ask("bob")
    await bob.ask("message")
    await server.restart()
    again = Leader(server, leader.run)
    assert (await again.next()).data == REPLY
    assert again.members == ["ada", "bob"]
    assert await again.post(letter("ada"), letter("bob")) == []
    for node in (ada, bob):
        node.channel = node.credentials.channel(server.ready.address)
        await node.connect()
    assert (await replied(bob, b"bob.")).verdict == Receipt.ACCEPTED
    assert (await again.next()).data == b"bob."
    answered = [
        event async for event in server.admin.control.WatchRun(pb.WatchRunRequest(run=leader.run), timeout=PATIENCE) if await _ends(again, event)
    ]
    assert [event.kind for event in answered].count("answered") == 2


async def _ends(leader: Leader, event: pb.RunEvent) -> bool:
    """Keep every event; the run is concluded once all have been seen."""
    if event.kind == "answered" and event.node == "bob":
        await leader.conclude()
    return True


async def test_replies_are_unreadable_on_disk_and_gone_with_the_run(server: Running) -> None:
    (ada,) = await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    await leader.ask("ada")
    await replied(ada, b"secret..")
    folder = server.path / "runs" / leader.run
    kept = list((folder / "answers").iterdir())
    assert [path.stat().st_size for path in kept] == [8]
    assert kept[0].read_bytes() != b"secret.."
    assert not any((folder / "blobs" / digest_of(MODEL)).parent.glob("[0-9a-f]*")), "a content goes with its last letter"
    await leader.conclude()
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("spoil", "what"), [(lambda path: path.write_bytes(b"spoilt.."), "damaged"), (lambda path: path.unlink(), "missing")])
async def test_a_reply_that_the_disk_has_lost_holds_up_no_other(server: Running, spoil: Callable[[Path], Any], what: str) -> None:
    (ada,) = await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    await leader.ask("ada")
    await replied(ada, b"first...")
    (file,) = (server.path / "runs" / leader.run / "answers").iterdir()
    spoil(file)
    await leader.ask("ada", 2)
    await replied(ada, b"second..")
    lost, whole = [await leader.next() for _ in range(2)]
    assert (lost.number, lost.data, lost.cause, lost.where) == (1, b"", "lost", "the coordinator's disk")
    assert what in lost.what
    assert (whole.number, whole.data, whole.cause) == (2, b"second..", "")


async def test_a_failure_is_told_and_stands_in_the_record(server: Running) -> None:
    (ada,) = await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    await leader.ask("ada")
    ask = await ada.ask("message")
    ada.fail(ask.key)
    told = await leader.next()
    assert (told.node, told.cause, told.what, told.where, told.hint) == ("ada", "code", "ValueError in the app", "app.py:7", "see the log")
    assert (await ada.submit(ask.key, b"late")).verdict == Receipt.CLOSED
    assert (await leader.conclude("the ServerApp failed")).status == "failed"
    _, record = await server.over(leader.run)
    assert record["rounds"][0]["failures"]["ada"]["cause"] == "code"
    assert record["reason"] == "the ServerApp failed"


async def test_a_letter_has_its_time_and_a_node_that_stays_away_is_lost(server: Running) -> None:
    ada, bob = await server.nodes("ada", "bob")
    leader = await Leader.begin(server, rejoin=0.2)
    await leader.put()
    await leader.post(letter("ada", seconds=0.1), letter("bob"))
    assert (await leader.next()).cause == Cause.TIMEOUT
    await until(lambda: (leader.run, "message", 1) in ada.released)
    await bob.ask("message")
    await bob.leave()
    assert (await leader.next()).cause == Cause.LOST


async def test_an_answer_is_counted_once_and_only_from_whom_it_is_due(server: Running) -> None:
    ada, bob = await server.nodes("ada", "bob")
    leader = await Leader.begin(server)
    await leader.ask("ada")
    ask = await ada.ask("message")
    assert (await bob.submit(ask.key, b"mine")).verdict == Receipt.CLOSED
    error = await refusal(ada.submit(ask.key, b"odd"))
    assert "a reply of 3 bytes" in str(error.details())
    assert (await ada.submit(ask.key, b"ada.")).verdict == Receipt.ACCEPTED
    assert (await ada.submit(ask.key, b"ada.")).verdict == Receipt.DUPLICATE
    assert (await ada.submit(ask.key, b"eve.")).verdict == Receipt.CLOSED
    assert (await leader.next()).data == b"ada."


async def test_a_leader_that_asks_something_else_than_before_is_refused(server: Running) -> None:
    await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    await leader.ask("ada")
    error = await refusal(leader.post(letter("ada", envelope="{}")))
    assert (error.code(), "does not ask what it has asked before" in str(error.details())) == (grpc.StatusCode.ALREADY_EXISTS, True)
    assert (await refusal(leader.post(letter("eve")))).code() is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    "facts",
    [
        {"content": "../" + "a" * 61},
        {"size": (1 << 30) + 1},
        {"seconds": 0.0},
        {"seconds": float("nan")},
        {"phase": "Train/.."},
        {"round": 0},
        {"envelope": "x" * (1 << 17)},
    ],
)
async def test_a_malformed_letter_is_refused(server: Running, facts: dict[str, Any]) -> None:
    await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    error = await refusal(leader.post(letter("ada", **facts)))
    assert (error.code(), "a letter is malformed" in str(error.details())) == (grpc.StatusCode.INVALID_ARGUMENT, True)


@pytest.mark.parametrize(
    "metrics",
    [
        "{",
        "[" * 100_000,
        '"x"',
        '[["train", 1, {"a": "b"}]]',
        '[["dance", 1, {}]]',
        '[["train", -1, {}]]',
        '[["train", 1, {"a": NaN}]]',
        '[["train", 1, {"a": 1' + "0" * 400 + "}]]",
        '[["train", 1, {"": 1}]]',
    ],
)
async def test_malformed_metrics_end_nothing(server: Running, metrics: str) -> None:
    await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    error = await refusal(server.admin.control.Conclude(pb.ConcludeRequest(run=leader.run, metrics=metrics)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await leader.conclude()).status == "completed"


async def test_the_record_says_which_model_its_leader_keeps(server: Running) -> None:
    """It is nobody else's to fetch, but whoever is given a file can tell whether it is the one."""
    leader, _ = await answered(server)
    for malformed in ("abc", "g" * 64, "A" * 64):
        error = await refusal(leader.conclude(model=malformed))
        assert (error.code(), "the digest of a led run's model" in str(error.details())) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    await leader.conclude(model=digest_of(MODEL))
    _, record = await server.over(leader.run)
    assert (record["extra"]["hashes"], record["model_digest"]) == ({"model.safetensors": digest_of(MODEL)}, "")
    card = model_card(RunRecord.from_json(json.dumps(record)))
    assert card["hashes"]["model.safetensors"] == digest_of(MODEL)


async def test_a_run_waits_for_its_sites_and_ends_when_they_do_not_come(server: Running) -> None:
    leader = await Leader.begin(server, min_per_round=2, deadline=0.3)
    await server.nodes("ada")
    _, record = await server.over(leader.run)
    assert (record["status"], record["reason"]) == ("failed", "too few nodes were there within 0.3 s")
    assert (await refusal(leader.next())).code() is grpc.StatusCode.ALREADY_EXISTS


async def test_who_takes_part_is_settled_once(server: Running) -> None:
    await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=2)
    waiting = asyncio.create_task(leader.next())
    await server.nodes("bob")
    await until(lambda: hasattr(leader, "members"))
    await server.nodes("eve")
    assert leader.members == ["ada", "bob"]
    assert "'eve' takes no part" in str((await refusal(leader.post(letter("eve")))).details())
    waiting.cancel()


async def test_a_paused_run_hands_nothing_out_and_a_stopped_one_is_over_for_its_leader(server: Running) -> None:
    (ada,) = await server.nodes("ada")
    leader, control = await Leader.begin(server, min_per_round=1), server.admin.control
    await control.SteerRun(pb.SteerRunRequest(run=leader.run, action="pause"))
    await leader.ask("ada")
    courier = _courier(server, leader)
    assert (courier.involves("ada"), ada.asks) == (False, [])
    await control.SteerRun(pb.SteerRunRequest(run=leader.run, action="resume"))
    ask = await ada.ask("message")
    await control.SteerRun(pb.SteerRunRequest(run=leader.run, action="stop", reason="enough"))
    await until(lambda: (leader.run, "message", ask.task.number) in ada.released)
    with pytest.raises(grpc.aio.AioRpcError):
        await leader.next()
    assert (await leader.conclude("too late")).reason == "enough"


async def test_others_may_not_lead_and_no_site_reads_what_another_replied(server: Running) -> None:
    ada, bob = await server.nodes("ada", "bob")
    auditor = await server.person(Role.AUDITOR)
    leader = await Leader.begin(server)
    await leader.ask("ada")
    await replied(ada)
    for person in (auditor, bob):
        for call in (person.control.Post(pb.PostRequest(run=leader.run)), person.control.Conclude(pb.ConcludeRequest(run=leader.run))):
            assert (await refusal(call)).code() is grpc.StatusCode.PERMISSION_DENIED
        assert (await refusal(anext(aiter(person.control.Collect(pb.CollectRequest(run=leader.run)))))).code() is grpc.StatusCode.PERMISSION_DENIED
    assert (await refusal(bob.fetch(digest_of(REPLY)))).code() is grpc.StatusCode.NOT_FOUND


async def test_only_a_led_run_takes_letters(server: Running) -> None:
    (ada,) = await server.nodes("ada")
    run, _ = await server.begun(ada)
    plain = Leader(server, run)
    for call in (plain.put(), plain.post(letter("ada")), plain.conclude()):
        assert (await refusal(call)).code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_server_that_keeps_nothing_leads_nothing(sqlite_at_head: Any, tmp_path: Any) -> None:
    server = await Running.start(tmp_path / "server", sqlite_at_head, durability="resend")
    try:
        error = await refusal(server.submit(plan_text(strategy={"name": "led"})))
        assert "this server keeps no replies" in str(error.details())
    finally:
        await server.close()


async def test_a_led_run_does_not_go_on_where_replies_are_not_kept(server: Running) -> None:
    """Its coordinator comes back with another durability: what would be answered from now on could be told to nobody."""
    (ada,) = await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    await leader.ask("ada")
    await replied(ada)
    server.settings = server.settings.model_copy(update={"durability": "resend"})
    await server.restart()
    _, record = await server.over(leader.run)
    assert (record["status"], "this server keeps no replies" in record["reason"]) == ("failed", True)
    folder = server.path / "runs" / leader.run
    assert [*(folder / "answers").iterdir(), *folder.glob("*.key")] == []


async def test_what_cannot_be_stored_is_told_to_nobody(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when a reply arrives: the node hears that it should come back, and the leader hears nothing until it has."""
    (ada,) = await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    await leader.ask("ada")
    ask = await ada.ask("message")
    courier = _courier(server, leader)

    def full(*_: Any) -> Any:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(courier.book, "append", full)
        assert (await refusal(ada.submit(ask.key, b"ada."))).code() is grpc.StatusCode.UNAVAILABLE
        assert courier.book.run.after(0) == []
    assert (await ada.submit(ask.key, b"ada.")).verdict == Receipt.ACCEPTED
    assert (await leader.next()).data == b"ada."


async def test_a_pause_costs_nobody_an_answer_nor_a_letter_its_time(server: Running) -> None:
    (ada, _) = await server.nodes("ada", "bob")
    leader, control = await Leader.begin(server), server.admin.control
    await leader.put()
    await leader.post(letter("ada"), letter("bob"))
    ask = await ada.ask("message")
    await control.SteerRun(pb.SteerRunRequest(run=leader.run, action="pause"))
    assert (await ada.submit(ask.key, b"ada.")).verdict == Receipt.ACCEPTED
    assert (await leader.next()).data == b"ada."
    courier = _courier(server, leader)
    courier._give_up(("bob", 1), GONE)
    await courier.errands.settled()
    assert courier.book.run.open["bob"], "its time stands still"
    before = courier.book.posted_at["bob", 1]
    await control.SteerRun(pb.SteerRunRequest(run=leader.run, action="resume"))
    assert courier.book.posted_at["bob", 1] > before
    courier._give_up(("bob", 1), GONE)
    assert (await leader.next()).cause == Cause.LOST
    await server.restart()
    assert _courier(server, leader).book.posted_at == courier.book.posted_at, "the journal alone says it"


async def test_a_paused_run_that_is_stopped_lets_its_nodes_go(server: Running) -> None:
    (ada,) = await server.nodes("ada")
    leader, control = await Leader.begin(server, min_per_round=1), server.admin.control
    await leader.ask("ada")
    await ada.ask("message")
    for action in ("pause", "stop"):
        await control.SteerRun(pb.SteerRunRequest(run=leader.run, action=action))
    await until(lambda: (leader.run, "message", 1) in ada.released)
    assert (await server.over(leader.run))[1]["status"] == "stopped"


async def test_a_paused_run_waits_for_its_sites_beyond_their_time(server: Running) -> None:
    leader, control = await Leader.begin(server), server.admin.control
    await control.SteerRun(pb.SteerRunRequest(run=leader.run, action="pause"))
    courier = _courier(server, leader)
    await courier._alone()
    assert courier.book.run.status == "running"
    await control.SteerRun(pb.SteerRunRequest(run=leader.run, action="resume"))
    await courier._alone()
    _, record = await server.over(leader.run)
    assert record["reason"] == "too few nodes were there within 600 s"


async def test_only_whoever_began_to_lead_is_told_single_answers(server: Running) -> None:
    (ada,) = await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    await leader.ask("ada")
    await replied(ada)
    await server.restart()
    other = await server.person(Role.RESEARCHER)
    metadata: list[tuple[str, str | bytes]] = [(DIGEST_KEY, digest_of(b"x")), (SIZE_KEY, "1"), (RUN_KEY, leader.run)]
    for call in (
        other.control.Post(pb.PostRequest(run=leader.run)),
        other.control.Conclude(pb.ConcludeRequest(run=leader.run)),
        anext(aiter(other.control.Collect(pb.CollectRequest(run=leader.run)))),
        other.send(PUT, frames(b"x"), metadata),
    ):
        error = await refusal(call)
        assert (error.code(), "somebody else leads this run" in str(error.details())) == (grpc.StatusCode.PERMISSION_DENIED, True)
    assert (await Leader(server, leader.run).next()).data == REPLY


@pytest.mark.parametrize(("where", "name"), [("store", "finish"), ("spool", "clear")])
async def test_an_end_that_cannot_be_stored_is_tried_again(server: Running, monkeypatch: pytest.MonkeyPatch, where: str, name: str) -> None:
    leader, courier = await answered(server)
    with monkeypatch.context() as patched:
        patched.setattr(getattr(courier.book, where), name, refusing)
        assert (await refusal(leader.conclude())).code() is grpc.StatusCode.UNAVAILABLE
    assert (await leader.conclude()).status == "completed"
    assert [path for path in (server.path / "runs" / leader.run).rglob("*") if path.is_file()] == []
    assert server.engine.driver(leader.run) is None


async def ended_by_halves(server: Running, monkeypatch: pytest.MonkeyPatch) -> Leader:
    """The leader of a run whose coordinator was killed before it had written down its end, and is back."""
    leader, courier = await answered(server)
    with monkeypatch.context() as patched:
        patched.setattr(courier.book, "close", refusing)
        await refusal(leader.conclude())
        await server.restart()
    return leader


async def test_a_crash_before_the_end_is_written_down_leaves_no_reply(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    leader = await ended_by_halves(server, monkeypatch)
    assert (await server.over(leader.run))[1]["status"] == "completed"
    assert [path for path in (server.path / "runs" / leader.run).rglob("*") if path.is_file()] == []


async def test_a_content_that_cannot_be_dropped_holds_nobody_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    (ada,) = await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    await leader.ask("ada")
    assert await leader.post(letter("ada", 2, content=digest_of(REPLY), size=len(REPLY))) == [digest_of(REPLY)]
    await leader.put(REPLY)
    await leader.post(letter("ada", 2, content=digest_of(REPLY), size=len(REPLY)))
    courier = _courier(server, leader)

    def refused(_: str) -> None:
        raise OSError("read-only")

    with monkeypatch.context() as patched:
        patched.setattr(courier.book.spool.blobs, "delete", refused)
        assert (await replied(ada)).verdict == Receipt.ACCEPTED
    while (ask := await ada.ask("message")).task.number != 2:
        pass  # the first one, again
    assert await ada.fetch(ask.task.model) == REPLY, "the next one comes all the same"


async def test_lines_that_were_stored_without_a_word_count(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database commits and breaks off: what is sent again is in the journal, and is taken from there."""
    (ada,) = await server.nodes("ada")
    leader = await Leader.begin(server, min_per_round=1)
    await leader.put()
    courier = _courier(server, leader)
    append = courier.book.append

    def breaking(*given: Any) -> Any:
        append(*given)
        raise OSError("the connection is gone")

    with monkeypatch.context() as patched:
        patched.setattr(courier.book, "append", breaking)
        assert (await refusal(leader.post(letter("ada")))).code() is grpc.StatusCode.UNAVAILABLE
    assert await leader.post(letter("ada")) == []
    assert (await replied(ada)).verdict == Receipt.ACCEPTED
    assert (await leader.next()).data == REPLY


async def test_phases_of_a_round_that_are_no_training_are_one_in_the_record(server: Running) -> None:
    """Pages know a phase by its round: two of the same name would hide each other's metrics."""
    nodes = await server.nodes("ada", "bob")
    leader = await Leader.begin(server)
    for number, phase in enumerate(("query", "train", "evaluate"), 1):
        for node in nodes:
            await leader.ask(node.name, number, phase=phase, round=1)
            assert (await replied(node)).verdict == Receipt.ACCEPTED
    await leader.conclude(metrics=[("evaluate", 1, {"loss": 0.5})])
    _, record = await server.over(leader.run)
    assert sorted((row["phase"], row["number"], row["metrics"]) for row in record["rounds"]) == [("evaluate", 1, {"loss": 0.5}), ("train", 1, {})]


async def test_what_a_leader_makes_of_a_single_site_is_neither_kept_nor_shown_as_of_all(server: Running) -> None:
    ada, bob = await server.nodes("ada", "bob")
    leader = await Leader.begin(server)
    for node, number, of_round in ((ada, 1, 1), (ada, 2, 2), (bob, 1, 2)):
        await leader.ask(node.name, number, round=of_round)
        assert (await replied(node)).verdict == Receipt.ACCEPTED
    await leader.conclude(metrics=[("train", 1, {"loss": 0.5}), ("train", 2, {"loss": 0.25}), ("evaluate", 2, {"loss": 0.125})])
    _, record = await server.over(leader.run)
    found = {(row["phase"], row["number"]): (row["answered"], row["metrics"]) for row in record["rounds"]}
    assert found == {("train", 1): (["ada"], {}), ("train", 2): (["ada", "bob"], {"loss": 0.25}), ("evaluate", 2): ([], {"loss": 0.125})}
    kept = [line.payload["event"]["rows"] for line in server.engine.store.journal(leader.run) if line.kind == "note.metrics"]
    assert kept == [[["train", 2, {"loss": 0.25}], ["evaluate", 2, {"loss": 0.125}]]]


async def test_what_a_site_answers_besides_counts_neither_for_nor_against_a_metric(server: Running) -> None:
    """A legacy server asks one of them for the first parameters, which belongs to the page of the first evaluation."""
    ada, bob = await server.nodes("ada", "bob")
    leader = await Leader.begin(server)
    for node, number, phase, of_round in ((ada, 1, "get_parameters", 1), (bob, 1, "evaluate", 1), (ada, 2, "query", 2)):
        await leader.ask(node.name, number, phase=phase, round=of_round)
        assert (await replied(node)).verdict == Receipt.ACCEPTED
    await leader.conclude(metrics=[("evaluate", 1, {"loss": 0.5}), ("evaluate", 2, {"server_loss": 0.25})])
    _, record = await server.over(leader.run)
    found = {(row["phase"], row["number"]): (row["answered"], row["metrics"]) for row in record["rounds"]}
    assert found == {("evaluate", 1): (["ada", "bob"], {}), ("evaluate", 2): (["ada"], {"server_loss": 0.25})}
