"""A ServerApp that leads sites: what its simulation comes to, and again after an interruption, without anybody working twice."""

from __future__ import annotations

import errno
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedscale.errors import AppError, Cause, ConfigError, Conflict, Failure, FedscaleError, Unreachable
from fedscale.flower import account, touches
from fedscale.flower import lead as module
from fedscale.flower.bridge import FlowerLearner
from fedscale.flower.directory import read
from fedscale.flower.lead import Led, SiteGrid, lead, require_server
from fedscale.flower.witness import Outcome
from fedscale.letters import Arrival, Letter, Post
from fedscale.proto.v1 import control_pb2 as pb
from fedscale.wire.codec import digest_of
from fedscale.wire.limits import LETTER_SECONDS
from fedscale_server.services.letters import letter_from_proto, metrics_from_text
from fedscale_simulations.flower import simulate_app
from fedscale_simulations.job import importable
from tests.flower import samples

NAMES = ("ann", "bob", "cat")


@dataclass
class Sites:
    """A coordinator and its sites without any network: the journal is a list, and each site answers at once.

    Args:
        work: what a site answers to the letter of that content.
        most: letters after which the coordinator is away for the leader.
    """

    work: Callable[[Letter, bytes], bytes]
    most: int = 10**9
    names: tuple[str, ...] = NAMES
    journal: list[Arrival] = field(default_factory=list)
    posted: dict[tuple[str, int], Letter] = field(default_factory=dict)
    moved: threading.Condition = field(default_factory=threading.Condition)
    worked: int = 0
    life: int = 0

    def members(self) -> tuple[str, ...]:
        return self.names

    def post(self, letters: Sequence[Letter], contents: Mapping[str, bytes]) -> None:
        with self.moved:
            for letter in letters:
                assert digest_of(contents[letter.content]) == letter.content
                assert len(contents[letter.content]) == letter.size
                known = self.posted.get(letter.place)
                if known not in (None, letter):
                    raise Conflict("the leader does not ask what it has asked before")
                if known is None:
                    if self.worked >= self.most:
                        raise Unreachable("the coordinator cannot be reached")
                    self.posted[letter.place] = letter
                    self._answer(letter, contents[letter.content])
            self.moved.notify_all()

    def _answer(self, letter: Letter, content: bytes) -> None:
        self.worked += 1
        try:
            self.journal.append(Arrival(letter.node, letter.number, self.work(letter, content)))
        except (AppError, ValueError) as error:
            self.journal.append(Arrival(letter.node, letter.number, b"", Failure(Cause.CODE, f"the app raised {type(error).__name__}")))

    def arrivals(self) -> Iterator[Arrival]:
        told, life = 0, self.life
        while True:
            with self.moved:
                while len(self.journal) == told and life == self.life:
                    self.moved.wait(0.05)
                if life != self.life:
                    return
                arrival = self.journal[told]
            told += 1
            yield arrival


class Learners:
    """The ClientApp at each site, with the state and the node config that it has there."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.directory = read(folder, overrides)
        self.learners = {name: FlowerLearner(self.directory, self.directory.config) for name in NAMES}
        self.states = dict.fromkeys(NAMES, b"")

    def __call__(self, letter: Letter, content: bytes) -> bytes:
        config = {"partition-id": NAMES.index(letter.node), "num-partitions": len(NAMES)}
        done = self.learners[letter.node].reply(Post(letter.envelope, content, self.states[letter.node], config))
        self.states[letter.node] = done.state
        return done.content


def led(folder: Path, sites: Sites, *overrides: str) -> Led:
    with importable(folder):
        try:
            return lead(read(folder, overrides), sites, 60.0)
        finally:
            sites.life += 1


def interrupted(folder: Path, at: int, *overrides: str) -> tuple[Led, Sites]:
    """A run whose leader is interrupted after so many letters, and led to its end by another."""
    sites = Sites(Learners(folder, *overrides), most=at)
    with pytest.raises(Unreachable):
        led(folder, sites, *overrides)
    assert sites.worked == at
    sites.most = 10**9
    return led(folder, sites, *overrides), sites


@pytest.mark.parametrize(
    ("client", "server", "letters"), [(samples.MESSAGES, samples.STRATEGY, 18), (samples.NUMPY, samples.LEGACY, 19)], ids=["messages", "legacy"]
)
@pytest.mark.parametrize("at", [0, 1, 7])
def test_an_app_comes_to_what_its_simulation_comes_to(tmp_path: Path, client: str, server: str, letters: int, at: int) -> None:
    """Interrupted before the first letter, behind it, and in the middle of the second round."""
    folder = samples.write(tmp_path / "app", client, server)
    theirs = simulate_app(folder, len(NAMES))
    ended, sites = interrupted(folder, at)
    assert (ended.reason, sites.worked) == ("", letters)
    assert ended.outcome.arrays.keys() == theirs.arrays.keys()
    for name, array in theirs.arrays.items():
        assert ended.outcome.arrays[name] == pytest.approx(np.asarray(array), abs=1e-6)
    measured = {(str(row.phase), row.number): row.metrics for row in theirs.record.rounds}
    assert {(phase, number) for phase, number, _ in ended.metrics} == measured.keys()
    for phase, number, values in ended.metrics:
        assert values == pytest.approx(measured[phase, number], abs=1e-6)


def test_a_loop_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, push and pull: interrupted anywhere, the same model as simulated."""
    folder = samples.write(tmp_path / "app", samples.MESSAGES, samples.OWN_LOOP)
    monkeypatch.chdir(tmp_path)
    simulate_app(folder, len(NAMES))
    theirs = np.load("model.npy")
    ended, sites = interrupted(folder, 5)
    assert (ended.reason, sites.worked) == ("", 12)
    assert np.load("model.npy") == pytest.approx(theirs, abs=1e-6)
    assert {letter.phase for letter in sites.posted.values()} == {"query", "train"}
    assert sorted({letter.round for letter in sites.posted.values()}) == [1, 2, 3]


def test_a_site_that_fails_is_an_error_reply_of_flowers(tmp_path: Path) -> None:
    broken = samples.MESSAGES.replace("        rounds = context", "        assert place or config['server-round'] != 2\n        rounds = context")
    learners = Learners(samples.write(tmp_path / "app", broken, samples.STRATEGY))

    def work(letter: Letter, content: bytes) -> bytes:
        try:
            return learners(letter, content)
        except AssertionError:
            raise ValueError from None

    ended = led(tmp_path / "app", sites := Sites(work))
    assert ended.reason == ""
    assert [(arrival.node, str(arrival.failure)) for arrival in sites.journal if arrival.failure] == [("ann", "code: the app raised ValueError")]


def test_a_site_whose_replies_are_malformed_ends_nothing(tmp_path: Path) -> None:
    learners = Learners(samples.write(tmp_path / "app", samples.MESSAGES, samples.STRATEGY))
    ended = led(tmp_path / "app", Sites(lambda letter, content: learners(letter, content) if letter.node != "cat" else b"\xff" * 16))
    assert ended.reason == ""
    assert ended.outcome.arrays, "the others' count"


def test_metrics_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    """A run that diverged must come to its end too: the coordinator takes finite numbers only."""
    diverged = samples.MESSAGES.replace(
        "MetricRecord(metrics)", 'MetricRecord({**metrics, "loss": float("nan"), "": 1.0, "n" * 300: 1.0, "good": 2.0})'
    )
    ended = led(samples.write(tmp_path / "app", diverged, samples.STRATEGY), Sites(Learners(tmp_path / "app")))
    assert ended.reason == ""
    assert {values["good"] for phase, _, values in ended.metrics if phase == "train"} == {2.0}
    assert metrics_from_text(json.dumps(ended.metrics)) == ended.metrics


def test_of_more_metrics_than_a_record_has_room_for_the_last_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "METRICS", 100)
    outcome = Outcome({("train", number): {"loss": 1.0} for number in range(1, 20)})
    rows = account.Account().metrics(outcome)
    assert [number for _, number, _ in rows] == [17, 18, 19]
    assert len(json.dumps(rows)) <= 100


def test_the_app_itself_failing_is_why_a_run_failed(tmp_path: Path) -> None:
    server = samples.STRATEGY.replace("        config = context.run_config", "        raise KeyError('what')")
    ended = led(samples.write(tmp_path / "app", samples.MESSAGES, server), Sites(lambda *_: b""))
    assert ended.reason == "the ServerApp failed: KeyError: 'what'"


@pytest.mark.parametrize(("code", "reason"), [("0", ""), ("3", "the ServerApp called sys.exit(3)")])
def test_a_server_app_that_would_end_its_process_ends_its_run(tmp_path: Path, code: str, reason: str) -> None:
    server = samples.STRATEGY.replace("        print(", f"        raise SystemExit({code})\n        print(")
    ended = led(samples.write(tmp_path / "app", samples.MESSAGES, server), Sites(Learners(tmp_path / "app")))
    assert (ended.reason, bool(ended.outcome.arrays)) == (reason, True)


def test_a_server_app_says_what_a_signal_does(tmp_path: Path) -> None:
    """As in Flower, where it has the main thread: one that leaves well when the machine goes down must be allowed to."""
    before = signal.getsignal(signal.SIGUSR1)
    server = samples.STRATEGY.replace(
        "        config = context.run_config",
        """        import os
        import signal

        heard = []
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [1]
        config = context.run_config""",
    )
    try:
        ended = led(samples.write(tmp_path / "app", samples.MESSAGES, server), Sites(Learners(tmp_path / "app")))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (ended.reason, bool(ended.outcome.arrays)) == ("", True)


def test_a_server_app_that_cannot_be_loaded_says_so_before_there_is_a_run(tmp_path: Path) -> None:
    folder = samples.write(tmp_path / "app", samples.MESSAGES, samples.STRATEGY.replace("    app = ", "    import no_such_package\n    app = ", 1))
    with importable(folder), pytest.raises(AppError, match="no_such_package"):
        require_server(read(folder))


def test_replies_that_the_leader_cannot_keep_are_no_fault_of_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own disk is full: the run waits for it to come back with room, instead of having failed."""
    written = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.parent.name.startswith("fedscale-lead-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, content)

    folder = samples.write(tmp_path / "app", samples.MESSAGES, samples.STRATEGY)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match=r"replies cannot be kept \(No space left on device\)"):
        led(folder, Sites(Learners(folder)))


def test_queries_before_the_first_round_belong_to_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a loop that does not say which round it is in."""
    monkeypatch.chdir(tmp_path)
    server = samples.OWN_LOOP.replace('ConfigRecord({"server-round": number})', 'ConfigRecord({"server-round": number} if number > 9 else {})')
    client = samples.MESSAGES.replace('"round": config["server-round"]', '"round": 1')
    sites = Sites(Learners(samples.write(tmp_path / "app", client, server)))
    assert led(tmp_path / "app", sites).reason == ""
    assert sorted({(letter.phase, letter.round) for letter in sites.posted.values()}) == [("query", 1), ("train", 1), ("train", 2), ("train", 3)]


def test_a_leader_that_draws_otherwise_is_refused_and_ends_nothing(tmp_path: Path) -> None:
    drawn = samples.STRATEGY.replace("np.zeros((2, 3), np.float32)", "np.full((2, 3), __import__('time').monotonic(), np.float64)")
    folder = samples.write(tmp_path / "app", samples.MESSAGES, drawn)
    with pytest.raises(Conflict, match="does not ask what it has asked before"):
        interrupted(folder, 4)


def test_sampling_is_the_same_in_every_life(tmp_path: Path) -> None:
    server = samples.STRATEGY.replace("min_available_nodes=2", "min_available_nodes=3, fraction_train=0.4, fraction_evaluate=0.4, min_train_nodes=1")
    ended, sites = interrupted(samples.write(tmp_path / "app", samples.MESSAGES, server), 3, "num-server-rounds=5")
    assert ended.reason == ""
    assert len({letter.node for letter in sites.posted.values() if letter.phase == "train"}) > 1


def test_an_app_that_waits_for_more_sites_than_there_are_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKS", 0)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    server = samples.STRATEGY.replace("min_available_nodes=2", "min_available_nodes=9")
    ended = led(samples.write(tmp_path / "app", samples.MESSAGES, server), Sites(lambda *_: b""))
    assert ended.reason.startswith("the ServerApp waits for more than the 3 sites that take part")


# --------------------------------------------------------------------------------------------------------------- the grid


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[tuple[SiteGrid, Sites]]:
    """A grid whose sites send back what they get, but for those that are late."""

    def echo(letter: Letter, content: bytes) -> bytes:
        if letter.seconds < 1:
            raise ValueError
        return content

    sites = Sites(echo)
    made = SiteGrid(sites, NAMES, 7, 60.0, tmp_path)
    yield made, sites
    made.close()
    sites.life += 1


def messages(grid: SiteGrid, kind: str = "query") -> list[Message]:
    touches.identify(7)
    return [Message(RecordDict(), node, kind) for node in grid.get_node_ids()]


def test_replies_that_are_pulled_are_handed_out_once_in_the_order_of_the_journal(grid: tuple[SiteGrid, Sites]) -> None:
    made, sites = grid
    sent = messages(made)
    first = list(made.push_messages(reversed(sent[1:])))
    second = list(made.push_messages(sent[:1]))
    replies: list[Message] = []
    ends = time.monotonic() + 30
    while len(replies) < 3 and time.monotonic() < ends:
        replies += made.pull_messages([*second, *first])
    assert [reply.metadata.reply_to_message_id for reply in replies] == [*first, *second] == ["1-1", "2-1", "0-1"]
    assert list(made.pull_messages([*first, *second])) == []
    assert [arrival.node for arrival in sites.journal] == ["bob", "cat", "ann"]


def test_messages_to_nobody_are_dropped(grid: tuple[SiteGrid, Sites]) -> None:
    made, sites = grid
    messages(made)
    assert list(made.push_messages([Message(RecordDict(), 5, "query")])) == []
    assert (list(made.send_and_receive([])), sites.posted) == ([], {})


def test_who_is_late_for_a_timeout_is_left_out_and_otherwise_an_error(grid: tuple[SiteGrid, Sites]) -> None:
    made, sites = grid
    assert len(made.send_and_receive(messages(made), timeout=0.5)) == 3, "these failed, in time"
    late = Failure(Cause.TIMEOUT, "no answer")

    def timing_out(letter: Letter, _: bytes) -> None:
        sites.journal.append(Arrival(letter.node, letter.number, b"", late))

    sites._answer = timing_out  # type: ignore[method-assign, assignment]
    assert made.send_and_receive(messages(made), timeout=0.5) == []
    errors = made.send_and_receive(messages(made))
    assert [reply.error.code for reply in errors] == [module.UNAVAILABLE] * 3


def test_what_an_app_asks_for_fits_what_a_coordinator_takes(grid: tuple[SiteGrid, Sites]) -> None:
    """A group that is a time of day is no round, and a time without end or begin is one all the same."""
    made, sites = grid
    asked = [Message(RecordDict(), node, "train", ttl=50.0, group_id="1763676000") for node in made.get_node_ids()]
    made.send_and_receive(asked, timeout=0.0)
    list(made.push_messages([Message(RecordDict(), node, "train", ttl=50.0) for node in made.get_node_ids()]))
    made.send_and_receive([Message(RecordDict(), node, "train", ttl=1e12) for node in made.get_node_ids()], timeout=math.inf)
    assert [letter.seconds for letter in sites.posted.values()] == [*[0.001] * 3, *[50.0] * 3, *[LETTER_SECONDS] * 3]
    for letter in sites.posted.values():
        assert letter_from_proto(pb.Letter(**asdict(letter))) == letter


def test_nothing_that_a_coordinator_says_becomes_part_of_a_path(grid: tuple[SiteGrid, Sites], tmp_path: Path) -> None:
    made, sites = grid
    sites.journal.append(Arrival("../outside", 1, b"x"))
    assert len(made.send_and_receive(messages(made))) == len(NAMES)
    assert list(tmp_path.parent.glob("outside*")) == []


def test_a_run_that_is_over_wakes_whoever_waits(grid: tuple[SiteGrid, Sites]) -> None:
    made, sites = grid
    sites._answer = lambda *_: None  # type: ignore[method-assign]
    ended: list[FedscaleError] = []

    def wait() -> None:
        try:
            made.send_and_receive(messages(made))
        except FedscaleError as error:
            ended.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    sites.life += 1
    waiting.join(30)
    assert [error.what for error in ended] == ["the run is over"]
