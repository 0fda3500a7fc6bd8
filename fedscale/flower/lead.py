"""A ServerApp that leads a deployed run, in a process of whoever submitted it: a grid whose supernodes are sites.

Every reply is in the coordinator's journal before the ServerApp hears of it. One that was interrupted is started again from its
beginning and is told the same replies: those of a round in the order of the nodes, those that it pulls in the order of the
journal. As long as it asks the same, it is soon where it was, and nobody works twice. So Python's ``random``, by which
Flower samples, is seeded here; whatever else an app draws from, it must seed itself.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedscale.causes import attempted
from fedscale.errors import Cause, ConfigError, FedscaleError, ProtocolError, RunFailed
from fedscale.flower import apps, mail, touches
from fedscale.flower.account import Account
from fedscale.flower.directory import Directory
from fedscale.flower.grid import LOOKS, RAISED, WAIT_SECONDS
from fedscale.flower.nodes import numbers
from fedscale.flower.records import Mail
from fedscale.flower.repeating import repeatable
from fedscale.flower.witness import Outcome, witnessed
from fedscale.letters import Arrival, Letter, Office, Place
from fedscale.wire.codec import digest_of
from fedscale.wire.limits import LETTER_SECONDS

LOOK_SECONDS, LONGEST = 0.5, 2_000
LEAST_SECONDS = 1e-3
UNAVAILABLE = 4  # flwr.common.constant.ErrorCode.REPLY_MESSAGE_UNAVAILABLE


@dataclass(frozen=True, eq=False)
class Led:
    """What a ServerApp came to.

    Args:
        outcome: what its strategy returned.
        metrics: by phase and round, of the replies and of the strategy; those of the latter count.
        reason: why it failed; empty where it did not.
    """

    outcome: Outcome
    metrics: list[tuple[str, int, dict[str, float]]] = field(default_factory=list)
    reason: str = ""


def require_server(directory: Directory) -> None:
    """Import the ServerApp of a directory, to hear now what would keep it from leading.

    Raises:
        AppError: it cannot be imported.
    """
    with _importable(directory.path), touches.muted(), redirect_stdout(sys.stderr):
        apps.server_app(directory)


def lead(directory: Directory, office: Office, seconds: float) -> Led:
    """Let the ServerApp of a directory lead a run to its end.

    Args:
        directory: the app.
        office: the run.
        seconds: for the answer to a message where the ServerApp does not say.

    Raises:
        AppError: the ServerApp cannot be imported.
        FedscaleError: the coordinator cannot be reached, or refuses; the run goes on, and can be led further.
    """
    members = office.members()
    number = int.from_bytes(hashlib.sha256(replace(directory, nodes=len(members)).to_toml().encode()).digest()[:7])
    touches.identify(number)
    outcome = Outcome()
    # What an app prints is for people; stdout is for results.
    with _importable(directory.path), TemporaryDirectory(prefix="fedscale-lead-") as folder, touches.muted(), redirect_stdout(sys.stderr):
        server = apps.server_app(directory)
        grid = SiteGrid(office, members, number, seconds, Path(folder))
        context = Context(run_id=number, node_id=0, node_config={}, state=RecordDict(), run_config=dict(directory.config))
        try:
            # In this very thread, as in Flower: only the main one may say what a signal does.
            with witnessed(outcome), repeatable(number):
                led = attempted(lambda: apps.led(server, grid, context))
            # The legacy server takes any error for a client's and goes on.
            ended = grid.problem or led
        finally:
            grid.close()
    return Led(outcome, grid.account.metrics(outcome), _reason(ended))


class SiteGrid(Grid):
    """A grid whose supernodes are the sites of a led run.

    Attributes:
        problem: why nobody can be asked any more; ``None`` as long as somebody can.

    Args:
        office: the run.
        members: who takes part.
        run: the run's number.
        seconds: for the answer to a message where nobody says.
        folder: where replies wait until the ServerApp asks for them.
    """

    def __init__(self, office: Office, members: Sequence[str], run: int, seconds: float, folder: Path) -> None:
        self._office, self._number, self._seconds, self._folder = office, run, seconds, folder
        self._run, self.account = touches.run_facts(run), Account()
        self._nodes = dict(zip(numbers(run, len(members)), members, strict=True))
        self._places = {node: place for place, node in enumerate(self._nodes)}
        self._next: defaultdict[int, Iterator[int]] = defaultdict(lambda: itertools.count(1))
        self._open: dict[Place, Mail] = {}
        self._here: dict[Place, Arrival] = {}
        self._moved, self._posting = threading.Condition(), threading.Lock()
        self.problem: FedscaleError | None = None
        self._leader, self._looks, self._since = threading.current_thread(), 0, time.monotonic()
        threading.Thread(target=self._listen, name="flower-replies", daemon=True).start()

    def close(self) -> None:
        """Ask nobody any more, and wait for nobody."""
        self._fail(RunFailed("the run was stopped"))

    def set_run(self, run: object) -> None:
        """The run is set already."""

    @property
    def run(self) -> object:
        """Flower's description of the run."""
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """A message to a node; Flower itself calls this deprecated."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The numbers of all sites, which are the same ones from the beginning of the run to its end.

        Raises:
            RunFailed: the ServerApp waits for more of them than there are, or the run was stopped.
        """
        self._looks += threading.current_thread() is self._leader
        if self._looks > LOOKS and time.monotonic() > self._since + WAIT_SECONDS:
            hint = "set clients.wait_for to the number of sites, or lower min_available_nodes"
            raise RunFailed(f"the ServerApp waits for more than the {len(self._nodes)} sites that take part", hint=hint)
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; those to nobody are dropped, as Flower does.

        Raises:
            FedscaleError: the coordinator refuses them, or the run was stopped.
        """
        return [message.metadata.message_id for message in self._sent(messages, self._seconds)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there, each handed out once, in the order of the journal.

        Raises:
            FedscaleError: there will be no more, and why.
        """
        asked = set(message_ids)
        with self._moved:
            self._require_going()
            found = [place for place in self._here if place in self._open and self._open[place].metadata.message_id in asked]
            return [self._reply(place) for place in found]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for the replies, those that arrive in time, in the order of the nodes.

        Raises:
            FedscaleError: the coordinator refuses them, or there will be no replies, and why.
        """
        sent = [self._place(message) for message in self._sent(messages, self._seconds if timeout is None else timeout)]
        with self._moved:
            while not all(place in self._here for place in sent):
                self._require_going()
                self._moved.wait(LOOK_SECONDS)
            failures = {place: self._here[place].failure for place in sent} if timeout is not None else {}
            late = {place for place, failure in failures.items() if failure and failure.cause is Cause.TIMEOUT}
            replies = [(place, self._reply(place)) for place in sent]
        return [reply for place, reply in replies if place not in late]

    def _sent(self, messages: Iterable[Message], seconds: float) -> list[Mail]:
        """Messages to those that there are, in the order of the nodes, each named by its node and how many that node got before."""
        with self._posting:
            known = (message for message in messages if message.metadata.dst_node_id in self._nodes)
            sent = sorted(known, key=lambda message: self._places[message.metadata.dst_node_id])
            # A strategy hands the same records to all nodes: they are packed, named and sent once.
            parcels = {key: mail.packed(content) for key, content in {id(message.content): message.content for message in sent}.items()}
            digests = {key: digest_of(parcel) for key, parcel in parcels.items()}
            letters = [self._letter(message, seconds, digests[id(message.content)], len(parcels[id(message.content)])) for message in sent]
            with self._moved:
                self._require_going()
                self._open |= {letter.place: message for letter, message in zip(letters, sent, strict=True)}
            if letters:
                self._post(letters, {digests[key]: parcel for key, parcel in parcels.items()})
            self._looks, self._since = 0, time.monotonic()
        return sent

    def _post(self, letters: list[Letter], contents: dict[str, bytes]) -> None:
        """Send letters; where that cannot be done, nothing else can, whatever the ServerApp makes of the error."""
        try:
            self._office.post(letters, contents)
        except FedscaleError as error:
            self._fail(error)
            raise

    def _letter(self, message: Mail, seconds: float, digest: str, size: int) -> Letter:
        """A message as it travels."""
        node = int(message.metadata.dst_node_id)
        number = next(self._next[node])
        touches.stamp(message, f"{self._places[node]}-{number}", self._number)
        phase, counted = self.account.sent(self._nodes[node], message)
        allowed = min(max(seconds, LEAST_SECONDS), float(message.metadata.ttl), LETTER_SECONDS)
        return Letter(self._nodes[node], number, mail.envelope(message, self._number), digest, size, allowed, phase, counted)

    def _place(self, message: Mail) -> Place:
        """Site and number behind the name that a message was given."""
        return self._nodes[int(message.metadata.dst_node_id)], int(str(message.metadata.message_id).partition("-")[2])

    def _listen(self) -> None:
        """Take what arrives, from the first reply of the run on, until there is no more."""
        try:
            for arrival in self._office.arrivals():
                with self._moved:
                    if self.problem is not None:  # nobody reads it any more, and the folder may be gone
                        return
                    self._file(arrival.place).write_bytes(arrival.content)
                    self._here[arrival.place] = Arrival(arrival.node, arrival.number, b"", arrival.failure)
                    self._moved.notify_all()
            self._fail(RunFailed("the run is over", hint="see how it ended: fedscale run show RUN"))
        except FedscaleError as error:
            self._fail(error)
        except OSError as error:
            self._fail(ConfigError("replies cannot be kept", where=str(self._folder), why=error.strerror or type(error).__name__))

    def _fail(self, problem: FedscaleError) -> None:
        """Wake whoever waits: there will be no more; the first reason counts."""
        with self._moved:
            self.problem = self.problem or problem
            self._moved.notify_all()

    def _require_going(self) -> None:
        if self.problem is not None:
            raise self.problem

    def _reply(self, place: Place) -> Mail:
        """A reply that is there, handed out once."""
        message, arrival, file = self._open.pop(place), self._here.pop(place), self._file(place)
        content = file.read_bytes()
        file.unlink()
        if arrival.failure is not None:
            code = UNAVAILABLE if arrival.failure.cause in (Cause.LOST, Cause.TIMEOUT) else RAISED
            return Message(Error(code, f"{arrival.node}: {arrival.failure}"), reply_to=message)
        try:
            reply = Message(mail.unpacked(content), reply_to=message)
        except ProtocolError as error:  # one site is not to end the run of all others
            return Message(Error(RAISED, f"{arrival.node}: {error}"), reply_to=message)
        self.account.got(message, reply)
        return reply

    def _file(self, place: Place) -> Path:
        """Where a reply waits; nothing that the coordinator says becomes part of a path."""
        return self._folder / digest_of(repr(place).encode())


def _reason(ended: object) -> str:
    """Why a ServerApp failed; empty where it did not.

    Raises:
        FedscaleError: it was not its own fault.
    """
    if not isinstance(ended, Exception):
        return ""
    if isinstance(ended, RunFailed):
        return str(ended)[:LONGEST]
    if isinstance(ended, FedscaleError):
        raise ended
    return f"the ServerApp failed: {type(ended).__name__}: {ended}"[:LONGEST]


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let Python find the modules of a folder first."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
