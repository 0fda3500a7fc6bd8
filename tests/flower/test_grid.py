"""The parts of the runtime one by one: the grid, its nodes, the records and the diary."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedscale.errors import Cause, RunFailed
from fedscale.flower import grid, records, touches
from fedscale.flower.directory import Directory
from fedscale.flower.grid import LocalGrid
from fedscale.flower.nodes import Nodes
from fedscale.flower.witness import Outcome
from fedscale_simulations import flower
from fedscale_simulations.diary import Diary
from fedscale_simulations.result import Progress
from tests.flower import samples

pytestmark = pytest.mark.requires("flower")

RUN = 77


def echo(message: Message, context: Any) -> Message:
    """Replies with its place and how often it has been asked."""
    calls = context.state["calls"]["count"] + 1 if "calls" in context.state else 1
    context.state["calls"] = MetricRecord({"count": calls})
    if message.content.get("config", {}).get("raise"):
        raise LookupError("nothing here")
    facts = MetricRecord({"place": context.node_config["partition-id"], "calls": calls, "num-examples": 4})
    return Message(RecordDict({"metrics": facts, "kept": context.state["calls"]}), reply_to=message)


def app() -> ClientApp:
    made = ClientApp()
    for phase in (made.train, made.evaluate, made.query):
        phase()(echo)
    return made


class Table:
    """A grid with its nodes and its diary."""

    def __init__(self, count: int = 3) -> None:
        touches.identify(RUN)
        self.seen: list[Progress] = []
        self.nodes = Nodes(app(), {"lr": 0.1}, count, RUN)
        self.diary = Diary(self.nodes, 0, self.seen.append)
        self.grid = LocalGrid(self.nodes, RUN, self.diary)
        self.ids = list(self.grid.get_node_ids())

    def ask(self, kind: str = "train", to: int | None = None, content: dict[str, Any] | None = None, group: str = "") -> list[Message]:
        """Send one message to every node, or to one."""
        to_whom = self.ids if to is None else [self.ids[to]]
        return self.grid.send_and_receive([Message(RecordDict(dict(content or {})), node, kind, group_id=group) for node in to_whom])

    def rounds(self, outcome: Outcome | None = None) -> list[tuple[str, int, int]]:
        record = self.diary.close(Directory(Path(), "x", "a:b", "a:b", {}, len(self.ids)), outcome or Outcome(), "")
        return [(row.phase, row.number, len(row.answered)) for row in record.rounds]


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table()
    yield made
    made.grid.close()


# ------------------------------------------------------------------------------------------------------ grid and nodes


def test_nodes_have_numbers_of_their_own_and_the_same_every_time(table: Table) -> None:
    assert len(set(table.ids)) == 3
    assert table.ids == list(Nodes(app(), {}, 3, RUN).places) != list(Nodes(app(), {}, 3, RUN + 1).places)
    assert all(2 <= number < 2**62 for number in table.ids)
    assert [table.nodes.name(number) for number in table.ids] == ["client-0000", "client-0001", "client-0002"]


def test_replies_come_in_the_order_of_the_nodes_and_say_to_what_they_reply(table: Table) -> None:
    backwards = [Message(RecordDict(), node, "query") for node in reversed(table.ids)]
    replies = table.grid.send_and_receive(backwards)
    assert [reply.content["metrics"]["place"] for reply in replies] == [0, 1, 2]
    assert [reply.metadata.src_node_id for reply in replies] == table.ids
    assert {reply.metadata.reply_to_message_id for reply in replies} == {message.metadata.message_id for message in backwards}
    assert {message.metadata.run_id for message in backwards} == {RUN}


def test_a_message_to_nobody_is_dropped(table: Table) -> None:
    assert table.grid.send_and_receive([Message(RecordDict(), 1, "train")]) == []
    assert list(table.grid.push_messages([Message(RecordDict(), 1, "train")])) == []


def test_state_is_each_nodes_own_and_survives_what_is_done_to_replies(table: Table) -> None:
    for _ in range(2):
        for reply in table.ask(to=1):
            reply.content["kept"]["count"] = 99
    assert [reply.content["metrics"]["calls"] for reply in table.ask()] == [1, 3, 1]


def test_one_record_for_all_nodes_is_a_record_for_each(table: Table) -> None:
    """Strategies hand the same content to everybody; a client that changes it must not be read by the next."""

    def staining(message: Message, _context: Any) -> Message:
        clean = "stain" not in message.content["config"]
        message.content["config"]["stain"] = 1
        return Message(RecordDict({"metrics": MetricRecord({"clean": int(clean)})}), reply_to=message)

    table.nodes._app = ClientApp()
    table.nodes._app.train()(staining)
    shared = RecordDict({"config": ConfigRecord({"n": 1})})
    replies = table.grid.send_and_receive([Message(shared, node, "train") for node in table.ids])
    assert [reply.content["metrics"]["clean"] for reply in replies] == [1, 1, 1]
    assert shared["config"] == ConfigRecord({"n": 1})


def test_who_raises_keeps_the_state_it_had(table: Table) -> None:
    table.ask(to=0)
    failed = table.ask(to=0, content={"config": ConfigRecord({"raise": True})})[0]
    assert failed.has_error()
    assert (failed.error.code, failed.error.reason) == (2, "LookupError: nothing here")
    assert table.ask(to=0)[0].content["metrics"]["calls"] == 2


def test_an_unknown_action_is_an_error_reply(table: Table) -> None:
    assert "No train function registered with name 'other'" in str(table.ask("train.other", to=0)[0].error.reason)


def test_what_was_pushed_is_pulled_once(table: Table) -> None:
    names = list(table.grid.push_messages([Message(RecordDict(), node, "train") for node in table.ids]))
    ends, replies = time.monotonic() + 30, list[Message]()
    while len(replies) < 3 and time.monotonic() < ends:
        replies += list(table.grid.pull_messages(names))
        time.sleep(0.001)
    assert {reply.metadata.reply_to_message_id for reply in replies} == set(names)
    assert list(table.grid.pull_messages([*names, "unknown"])) == []


def test_names_of_what_was_pushed_come_in_the_order_of_the_messages(table: Table) -> None:
    messages = [Message(RecordDict(), node, "train") for node in reversed(table.ids)]
    names = list(table.grid.push_messages(messages))
    assert names == [message.metadata.message_id for message in messages]
    places, ends = dict(zip(names, (2, 1, 0), strict=True)), time.monotonic() + 30
    while places and time.monotonic() < ends:
        for reply in table.grid.pull_messages(set(places)):
            assert reply.content["metrics"]["place"] == places.pop(reply.metadata.reply_to_message_id)
    assert places == {}


def test_a_message_is_the_senders_and_can_be_sent_again(table: Table) -> None:
    """As in Flower, where a client gets a copy: it is delivered, and what it does to the message and its metadata stays with it."""
    got: list[Message] = []

    def staining(message: Message, _context: Any) -> Message:
        got.append(message)
        message.content["config"]["stain"] = 1
        message.metadata.group_id = "mine"
        return Message(RecordDict(), reply_to=message)

    table.nodes._app = ClientApp()
    table.nodes._app.query()(staining)
    sent = Message(RecordDict({"config": ConfigRecord({"n": 1})}), table.ids[0], "query", group_id="4")
    first, again = (table.grid.send_and_receive([sent])[0] for _ in range(2))
    assert sent.content == RecordDict({"config": ConfigRecord({"n": 1})})
    assert (sent.metadata.group_id, sent.metadata.delivered_at) == ("4", "")
    assert all(message.metadata.delivered_at for message in (first, again, *got))
    assert len({message.metadata.message_id for message in (first, again, *got)}) == 4
    assert [reply.metadata.reply_to_message_id for reply in (first, again)] == [message.metadata.message_id for message in got]
    assert again.metadata.dst_node_id == sent.metadata.src_node_id == 1


def test_a_reply_to_a_message_whose_time_was_over_is_an_error(table: Table) -> None:
    def slow(message: Message, _context: Any) -> Message:
        time.sleep(0.02)
        return Message(RecordDict(), reply_to=message)

    table.nodes._app = ClientApp()
    table.nodes._app.train()(slow)
    replies = [table.grid.send_and_receive([Message(RecordDict(), table.ids[0], "train", ttl=ttl, group_id="1")])[0] for ttl in (0.001, 600.0)]
    assert [reply.has_error() and reply.error.code for reply in replies] == [3, False]
    table.ask("train", 1, group="1")
    assert table.rounds() == [("train", 1, 2)]


def test_a_client_finds_no_event_loop_and_no_gradient_mode_of_the_server(table: Table) -> None:
    """Both are a thread's own."""
    where: list[threading.Thread] = []

    def looping(message: Message, _context: Any) -> Message:
        where.append(threading.current_thread())
        asyncio.run(asyncio.sleep(0))
        return Message(RecordDict(), reply_to=message)

    table.nodes._app = ClientApp()
    table.nodes._app.train()(looping)

    async def lead() -> list[Message]:
        return table.ask("train")

    assert not any(reply.has_error() for reply in asyncio.run(lead()))
    assert len(set(where)) == 1
    assert where[0] is not threading.current_thread()


def test_looking_for_nodes_while_one_works_is_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "LOOKS", 2)
    monkeypatch.setattr(grid, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(grid, "LEADER", threading.current_thread().name)
    table, done = Table(), threading.Event()

    def slow(message: Message, _context: Any) -> Message:
        assert done.wait(60)
        return Message(RecordDict(), reply_to=message)

    table.nodes._app = ClientApp()
    table.nodes._app.train()(slow)
    name = next(iter(table.grid.push_messages([Message(RecordDict(), table.ids[0], "train")])))
    assert all(len(list(table.grid.get_node_ids())) == 3 for _ in range(9))
    done.set()
    ends = time.monotonic() + 30
    while not list(table.grid.pull_messages([name])) and time.monotonic() < ends:
        time.sleep(0.001)
    with pytest.raises(RunFailed, match="waits for more than the 3 clients"):
        [table.grid.get_node_ids() for _ in range(9)]
    table.grid.close()


def test_clients_never_work_at_the_same_time() -> None:
    busy, most = 0, 0

    def count(message: Message, _context: Any) -> Message:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        time.sleep(0.002)
        busy -= 1
        return Message(RecordDict(), reply_to=message)

    table = Table(6)
    table.nodes._app = ClientApp()
    table.nodes._app.train()(count)
    table.grid.push_messages([Message(RecordDict(), node, "train") for node in table.ids])
    threads = [threading.Thread(target=table.ask, kwargs={"to": place}) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    table.grid.close()
    assert most == 1


def test_a_grid_that_was_closed_asks_nobody(table: Table) -> None:
    table.grid.close()
    with pytest.raises(RunFailed, match="the run was stopped"):
        table.ask()


def test_a_grid_knows_its_run_and_makes_messages(table: Table) -> None:
    table.grid.set_run(None)
    made = table.grid.create_message(RecordDict(), "train", table.ids[0], "4", ttl=9.0)
    assert (table.grid.run.run_id, made.metadata.group_id, made.metadata.ttl) == (RUN, "4", 9.0)


def test_ctrl_c_stops_an_app_between_two_clients(app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    started, done = threading.Event(), list[Progress]()

    def watch(progress: Progress) -> None:
        done.append(progress)
        started.set()

    def interrupted(_led: object) -> None:
        assert started.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(flower, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        flower.simulate_app(app(), 50, ["num-server-rounds=100000"], on_progress=watch)
    assert done[-1].number < 100_000


# -------------------------------------------------------------------------------------------------------------- records


def test_a_copy_shares_bytes_and_nothing_else() -> None:
    first = RecordDict(
        {
            "arrays": ArrayRecord([np.arange(3.0)]),
            "config": ConfigRecord({"n": 1, "names": ["a", "b"], "raw": b"x"}),
            "metrics": MetricRecord({"m": 1.5, "curve": [1.0, 2.0]}),
        }
    )
    second = records.apart(first)
    assert second == first
    assert second["arrays"]["0"].data is first["arrays"]["0"].data
    second["config"]["names"].append("c")
    second["metrics"]["m"] = 2.0
    second["arrays"]["0"].data = b""
    second["arrays"]["1"] = Array(np.zeros(1))
    del second["metrics"]["curve"]
    assert first["config"] == ConfigRecord({"n": 1, "names": ["a", "b"], "raw": b"x"})
    assert first["metrics"] == MetricRecord({"m": 1.5, "curve": [1.0, 2.0]})
    assert list(first["arrays"]) == ["0"]
    assert first["arrays"].to_numpy_ndarrays()[0].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "examples", "values"),
    [
        ({"metrics": MetricRecord({"num-examples": 5, "loss": 0.5, "curve": [1.0]})}, 5.0, {"loss": 0.5}),
        ({"a": MetricRecord({"num-examples": 5}), "b": MetricRecord({"auc": 1})}, 5.0, {"auc": 1.0}),
        ({"metrics": MetricRecord({"auc": 0.75})}, 1.0, {"auc": 0.75}),
        ({"fitres.num_examples": MetricRecord({"num_examples": 7}), "fitres.metrics": ConfigRecord({"f1": 0.5, "note": "x"})}, 7.0, {"f1": 0.5}),
        ({"fitres.metrics": ConfigRecord({"flag": True, "n": 2}), "config": ConfigRecord({"lr": 0.1})}, 1.0, {"n": 2.0}),
        ({}, 1.0, {}),
    ],
)
def test_what_a_reply_measured(content: dict[str, Any], examples: float, values: dict[str, float]) -> None:
    assert records.measured(RecordDict(content)) == (examples, values)


def test_arrays_travel_there_and_back() -> None:
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(3), "half": np.ones(2, np.float16)}
    record = records.record_of(arrays)
    again = records.numpy_of(record)
    assert {name: (array.dtype, array.tolist()) for name, array in again.items()} == {n: (a.dtype, a.tolist()) for n, a in arrays.items()}
    assert records.nbytes(RecordDict({"arrays": record, "more": record})) == 2 * sum(len(array.data) for array in record.values())


# ---------------------------------------------------------------------------------------------------------------- diary


def test_rounds_are_told_by_the_groups_of_a_legacy_server(table: Table) -> None:
    for number in ("1", "2"):
        for place in range(3):
            table.ask("train", place, group=number)
        table.ask("evaluate", group=number)
    assert table.rounds() == [("train", 1, 3), ("evaluate", 1, 3), ("train", 2, 3), ("evaluate", 2, 3)]


def test_rounds_are_told_by_the_config(table: Table) -> None:
    for number in (1, 2, 5):
        table.ask("train", content={"c": ConfigRecord({"server-round": number})})
    assert table.rounds() == [("train", 1, 3), ("train", 2, 3), ("train", 5, 3)]


def test_rounds_that_nobody_names_are_told_by_who_is_asked_again(table: Table) -> None:
    for _ in range(2):
        for place in range(3):
            table.ask("train", place)
        table.ask("query")
        table.ask("evaluate", 0)
    table.ask("train")
    table.ask("train")
    expected = [("train", 1, 3), ("evaluate", 1, 1), ("train", 2, 3), ("evaluate", 2, 1), ("train", 3, 3), ("train", 4, 3)]
    assert table.rounds() == expected


def test_a_strategys_own_metrics_win_and_its_own_evaluation_has_a_row(table: Table) -> None:
    table.ask("train", group="1")
    outcome = Outcome()
    outcome.note("train", 1, {"calls": 9.0, "text": "no number"})
    outcome.note("evaluate", 1, {"auc": 0.5}, "server_")
    outcome.note("evaluate", 0, {"auc": 0.1}, "server_")
    record = table.diary.close(Directory(Path(), "x", "a:b", "a:b", {}, 3), outcome, "it broke")
    assert (record.status, record.reason) == ("failed", "it broke")
    assert [(row.phase, row.number, row.metrics) for row in record.rounds] == [
        ("train", 1, {"place": 1.0, "calls": 9.0, "count": 1.0}),
        ("evaluate", 1, {"server_auc": 0.5}),
    ]
    assert record.rounds[0].weight == 12.0
    assert record.extra["versions"]["flwr"]  # type: ignore[index, call-overload]


def test_failures_are_typed_and_nobody_is_counted_twice(table: Table) -> None:
    raising = {"config": ConfigRecord({"raise": True, "server-round": 1})}
    table.ask("train", 0, raising)
    table.ask("train", 1, {"config": ConfigRecord({"server-round": 1})})
    late = Message(RecordDict({"config": ConfigRecord({"server-round": 1})}), table.ids[1], "train")
    table.diary.late(late)
    row = table.diary.close(Directory(Path(), "x", "a:b", "a:b", {}, 3), Outcome(), "").rounds[0]
    assert row.answered == ()
    assert {name: failure.cause for name, failure in row.failures.items()} == {"client-0000": Cause.CODE, "client-0001": Cause.TIMEOUT}
    assert row.metrics == {}
    assert table.seen[-1].closed == row


def test_a_reply_that_is_an_error_is_a_failure(table: Table) -> None:
    def refusing(message: Message, _context: Any) -> Message:
        flwr: Any = pytest.importorskip("flwr.app")
        return Message(flwr.Error(7, "not today"), reply_to=message)

    table.nodes._app = ClientApp()
    table.nodes._app.train()(refusing)
    assert [reply.error.code for reply in table.ask("train", group="1")] == [7, 7, 7]
    row = table.diary.close(Directory(Path(), "x", "a:b", "a:b", {}, 3), Outcome(), "").rounds[0]
    assert {failure.what for failure in row.failures.values()} == {"not today"}


def test_an_app_that_returns_no_message_fails(app: Callable[..., Path]) -> None:
    client = samples.MESSAGES.replace("app = ClientApp(mods=[doubling])", "app = ClientApp()").replace("train(mods=[adding])", "train()")
    client = client.replace("place, config = context", "return 5\n        place, config = context")
    ended = flower.simulate_app(app(client), overrides=["num-server-rounds=1"])
    assert {failure.what for failure in ended.record.rounds[0].failures.values()} == {
        "the ClientApp did not answer (it returned int, a Message is expected)"
    }
