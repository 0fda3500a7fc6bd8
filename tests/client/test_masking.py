"""A node's part in secure aggregation: what it checks, what it remembers on disk, and what it never says twice."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from base64 import b64encode
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from fedscale import files, identity
from fedscale.aggregate import Mean
from fedscale.errors import Cause, ConfigError, Failure
from fedscale.events import Answered, Spoke, Tell
from fedscale.identity import Authority
from fedscale.learner import Phase
from fedscale.masked import Ground, MaskedSum, roster_of, terms_for
from fedscale.ring import WORD, Words
from fedscale.round import Round, Status, Terms
from fedscale.secagg import messages as m
from fedscale.secagg.authority import RosterAuthority, claimed
from fedscale.secagg.node import Node as Machine
from fedscale.secagg.node import Reply
from fedscale.secagg.terms import Mark
from fedscale.task import layout_for
from fedscale.update import Update
from fedscale.wire.convert import Key
from fedscale_client import policy
from fedscale_client.answers import Answer
from fedscale_client.connection import Assignment
from fedscale_client.home import NodeHome, NodeSettings, write_toml
from fedscale_client.keys import identity_key
from fedscale_client.masking import Masking, Seat
from fedscale_client.policy import Policy
from tests.circle import MODEL, SCHEMA, plan_of

NAMES = ("ann", "bob", "cid", "dot")
RUN, CODE = "run-1", "cd" * 32
SOON = 60.0


@dataclass
class Site:
    """One node's masking over its home, and what it has told."""

    home: NodeHome
    said: list[tuple[Key, str, bytes]] = field(default_factory=list)
    left: list[tuple[Key, Failure]] = field(default_factory=list)
    seat: Seat | None = None

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """As after a restart: nothing is left but what is on disk."""
        self.masking = Masking(self.home, lambda *told: self.said.append(told), lambda *told: self.left.append(told))

    async def assigned(self, assignment: Assignment) -> None:
        self.seat = self.masking.asked(assignment)
        assert self.seat is not None
        await self.masking.open(assignment, self.seat)


class Ward:
    """A coordinator's round and four sites."""

    def __init__(self, folder: Path, authority: Authority, bits: int = 32) -> None:
        self.plan, self.rosters = plan_of(secagg={"bits": bits}), RosterAuthority.of(authority.key)
        self.sites = {name: Site(home_of(folder / name, name, authority)) for name in NAMES}
        self.keys = {name: claimed(name, site.masking.identity()) for name, site in self.sites.items()}
        self.folder, self.number = folder, 0
        self.next_round()

    def next_round(self, model: str = MODEL) -> None:
        """The coordinator opens a round."""
        self.number += 1
        self.model = model
        layout = layout_for(self.plan, Phase.TRAIN, SCHEMA.size, len(NAMES))
        self.roster = roster_of(NAMES, self.keys)
        terms = terms_for(Ground(RUN, CODE), self.plan, Phase.TRAIN, self.number, layout, SCHEMA, model, self.roster)
        kept = Terms(self.number, Phase.TRAIN, NAMES, 4, 3, 60.0, 5.0, layout, SCHEMA, model)
        self.round = Round.begin(kept, Mean(), MaskedSum.begin(terms, self.roster))

    @property
    def key(self) -> Key:
        return (RUN, Phase.TRAIN, self.number)

    def assignment(self, name: str, **changes: Any) -> Assignment:
        signed = (self.rosters.sign(self.roster), self.rosters.statement)
        return replace(Assignment(self.key, self.plan, self.plan.to_toml(), self.round.tasks((name,)).task(name), 4, CODE, 60.0, signed), **changes)

    async def assign_all(self) -> None:
        for name, site in self.sites.items():
            await site.assigned(self.assignment(name))

    def words(self, name: str) -> Words:
        number = NAMES.index(name) + 1
        layout = self.round.terms.layout
        delta = np.full(layout.size, number / 8, np.float32)
        return layout.encode(Update(delta, float(number), {metric.name: np.full(metric.width, 1.0) for metric in layout.metrics}))

    def plain(self, name: str) -> Answer:
        """What the worker leaves."""
        path = self.folder / f"{name}.answer"
        self.words(name).tofile(path)
        return Answer(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)

    def tells(self) -> dict[str, Tell]:
        return {effect.node: effect for effect in self.round.requests() if isinstance(effect, Tell)}

    async def tell(self, name: str, tell: Tell) -> bytes | None:
        """Tell a site something; what it answers."""
        site = self.sites[name]
        before = len(site.said)
        await site.masking.told(self.key, tell.step, tell.data)
        return site.said[-1][2] if len(site.said) > before else None

    async def step(self, *without: str) -> None:
        """One step with everybody but some."""
        for name, tell in self.tells().items():
            if name in without:
                continue
            data = await self.tell(name, tell)
            if tell.step != "vector":
                assert data is not None
                self.round.handle(Spoke(name, tell.step, b64encode(data).decode()))
            else:
                masked = await self.mask(name)
                assert isinstance(masked, Answer), masked
                self.round.handle(Answered(name, masked.digest, np.fromfile(masked.path, WORD)))

    async def mask(self, name: str) -> Answer | Failure:
        site = self.sites[name]
        assert site.seat is not None
        return await site.masking.mask(site.seat, self.plain(name), asyncio.get_running_loop().time() + SOON)

    async def until(self, step: str) -> None:
        while self.round.masked is not None and self.round.status is Status.OPEN and self.round.masked.step != step:
            await self.step()


def home_of(folder: Path, name: str, authority: Authority) -> NodeHome:
    """A home that has joined."""
    home = NodeHome(folder)
    folder.mkdir(mode=0o700)
    files.write(home.authority_file, identity.certificate_pem(authority.certificate))
    write_toml(home.settings_file, NodeSettings(name=name, federation="fed", project="p", address="localhost:1").model_dump())
    return home


@pytest.fixture(scope="module")
def authority() -> Authority:
    return identity.new_authority("fed", datetime.now(UTC))


@pytest.fixture
def ward(tmp_path: Path, authority: Authority) -> Ward:
    return Ward(tmp_path, authority)


# ----------------------------------------------------------------------------------------------------------- the whole


async def test_a_round_from_the_first_message_to_the_sum(ward: Ward) -> None:
    await ward.assign_all()
    await ward.until("never")
    assert ward.round.status is Status.CLOSED, ward.round.reason()
    aggregate, outcome = ward.round.result()
    assert (outcome.answered, outcome.weight, aggregate.count) == (NAMES, 10.0, 4)
    assert [site.left for site in ward.sites.values()] == [[]] * 4


async def test_what_was_in_the_clear_is_removed_and_what_travels_is_masked(ward: Ward) -> None:
    await ward.assign_all()
    await ward.until("vector")
    await ward.tell("ann", ward.tells()["ann"])
    masked = await ward.mask("ann")
    assert isinstance(masked, Answer)
    assert not (ward.folder / "ann.answer").exists()
    sent = np.fromfile(masked.path, WORD)
    assert (masked.size, masked.digest) == (sent.nbytes, hashlib.sha256(sent.tobytes()).hexdigest())
    assert not (sent == ward.words("ann")).any()


async def test_packed_vectors_travel_in_whole_words(tmp_path: Path, authority: Authority) -> None:
    ward = Ward(tmp_path, authority, bits=24)
    await ward.assign_all()
    await ward.until("vector")
    await ward.tell("ann", ward.tells()["ann"])
    masked = await ward.mask("ann")
    assert isinstance(masked, Answer)
    length = ward.round.terms.layout.length
    assert masked.size == -(-3 * length // 4) * 4 == masked.path.stat().st_size
    assert masked.digest == hashlib.sha256(masked.path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("left", "told"), [(b"", "0 words"), (bytes(7), "0 words"), (bytes(8), "2 words")])
async def test_a_worker_that_leaves_no_whole_vector_leaves_nothing_masked(ward: Ward, left: bytes, told: str) -> None:
    await ward.assign_all()
    await ward.until("vector")
    await ward.tell("ann", ward.tells()["ann"])
    site, path = ward.sites["ann"], ward.folder / "ann.answer"
    path.write_bytes(left)
    assert site.seat is not None
    failure = await site.masking.mask(site.seat, Answer(path, "", len(left)), asyncio.get_running_loop().time() + SOON)
    assert isinstance(failure, Failure)
    assert told in failure.what
    assert not list(ward.folder.glob("*.masked"))
    assert not list(site.home.secagg.glob("*.mark"))


async def test_only_tasks_under_secure_aggregation_take_a_seat(ward: Ward) -> None:
    masking = ward.sites["ann"].masking
    assignment = ward.assignment("ann")
    assert masking.asked(replace(assignment, plan=plan_of(secagg={"enabled": False}))) is None
    assert masking.asked(replace(assignment, key=(RUN, Phase.INIT, 0))) is None
    seat = masking.asked(assignment)
    assert seat is not None
    assert masking.asked(assignment) is seat
    assert masking.asked(replace(assignment, key=("other", Phase.TRAIN, 1))) is not seat
    assert masking.asked(assignment) is seat
    masking.asked(replace(assignment, key=(RUN, Phase.TRAIN, 2)))
    assert masking.asked(assignment) is not seat, "a run that has gone on has left its last round"


async def test_seats_are_bounded(ward: Ward) -> None:
    masking, assignment = ward.sites["ann"].masking, ward.assignment("ann")
    first = masking.asked(replace(assignment, key=("run-a", Phase.TRAIN, 1)))
    for number in range(100):
        masking.asked(replace(assignment, key=(f"run-{number}", Phase.TRAIN, 1)))
    assert masking.asked(replace(assignment, key=("run-a", Phase.TRAIN, 1))) is not first


# ------------------------------------------------------------------------------------------------------------ refusals


async def refused(ward: Ward, **changes: Any) -> Failure:
    """Why the first site leaves at once, and that it says nothing afterwards."""
    site = ward.sites["ann"]
    await site.assigned(ward.assignment("ann", **changes))
    assert len(site.left) == 1
    await ward.tell("ann", ward.tells()["ann"])
    assert site.said == []
    assert await ward.mask("ann") == site.left[0][1]
    assert site.left[0][0] == ward.key
    return site.left[0][1]


async def test_a_roster_that_is_not_signed_by_the_pinned_authority(ward: Ward) -> None:
    stranger = RosterAuthority.of(identity.new_authority("fed", datetime.now(UTC)).key)
    failure = await refused(ward, roster=(stranger.sign(ward.roster), stranger.statement))
    assert (failure.cause, failure.what) == (Cause.POLICY, "the authority of the roster is not that of this federation")


async def test_a_roster_with_another_signature(ward: Ward) -> None:
    stranger = RosterAuthority.of(identity.new_authority("fed", datetime.now(UTC)).key)
    failure = await refused(ward, roster=(stranger.sign(ward.roster), ward.rosters.statement))
    assert failure.what == "the signature of the roster is wrong"


@pytest.mark.parametrize("signed", [(b"", b""), (b"x", b"y"), (bytes(200), bytes(96))])
async def test_no_roster_at_all(ward: Ward, signed: tuple[bytes, bytes]) -> None:
    assert (await refused(ward, roster=signed)).cause is Cause.POLICY


async def test_another_key_for_a_node_that_was_seen_before(ward: Ward) -> None:
    await ward.assign_all()
    ward.keys["bob"] = "07" * 32
    ward.next_round()
    site = ward.sites["ann"]
    await site.assigned(ward.assignment("ann"))
    assert site.left[-1][1].what.startswith("the roster lists another identity key for node 'bob' than before")
    assert ward.keys["bob"] not in (site.home.secagg / "members.toml").read_text()


async def test_another_key_for_the_node_itself(ward: Ward) -> None:
    ward.keys["ann"] = "07" * 32
    ward.next_round()
    site = ward.sites["ann"]
    await site.assigned(ward.assignment("ann"))
    await ward.tell("ann", ward.tells()["ann"])
    assert "the roster lists another identity key for this node" in site.left[0][1].what
    assert site.said == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"bundle": "ef" * 32}, "plan"),
        ({"key": ("run-2", Phase.TRAIN, 1)}, "run"),
    ],
)
async def test_terms_that_are_not_what_the_node_computes(ward: Ward, change: dict[str, Any], name: str) -> None:
    site = ward.sites["ann"]
    assignment = ward.assignment("ann", **change)
    await site.assigned(assignment)
    tell = ward.tells()["ann"]
    await site.masking.told(assignment.key, tell.step, tell.data)
    assert f"the server's terms differ in '{name}'" in site.left[0][1].what
    assert site.said == []


async def test_fewer_nodes_than_the_owner_asks_for(ward: Ward) -> None:
    policy.save(ward.sites["ann"].home, Policy(min_cohort=5))
    await ward.assign_all()
    await ward.step()
    await ward.tell("ann", ward.tells()["ann"])
    (left,) = ward.sites["ann"].left
    assert "a sum over 4 nodes is not opened (the site asks for at least 5)" in left[1].what
    assert left[1].cause is Cause.POLICY


async def test_a_message_out_of_turn_ends_the_nodes_part(ward: Ward) -> None:
    await ward.assign_all()
    await ward.sites["ann"].masking.told(ward.key, "opening", m.encode(m.Survivors(bytes(32), frozenset((0, 1, 2)))))
    (left,) = ward.sites["ann"].left
    assert "a message 'Survivors' out of turn" in left[1].what
    await ward.tell("ann", ward.tells()["ann"])
    assert (ward.sites["ann"].said, len(ward.sites["ann"].left)) == ([], 1)


async def test_a_vector_that_never_becomes_due(ward: Ward) -> None:
    site = ward.sites["ann"]
    await site.assigned(ward.assignment("ann"))
    assert site.seat is not None
    failure = await site.masking.mask(site.seat, ward.plain("ann"), asyncio.get_running_loop().time() + 0.01)
    assert isinstance(failure, Failure)
    assert failure.cause is Cause.TIMEOUT
    assert not (ward.folder / "ann.answer").exists()


@pytest.mark.parametrize("due", [False, True])
async def test_a_task_that_is_dropped_leaves_no_vector_behind(ward: Ward, monkeypatch: pytest.MonkeyPatch, due: bool) -> None:
    """While it waits for the others, and while its vector is being masked in a thread."""
    begun, dropped = Event(), Event()
    submit = Machine.submit

    def slow(*given: Any) -> Reply:
        begun.set()
        assert dropped.wait(SOON)
        return submit(*given)

    monkeypatch.setattr(Machine, "submit", slow)
    await ward.assign_all()
    if due:
        await ward.until("vector")
        await ward.tell("ann", ward.tells()["ann"])
    task = asyncio.create_task(ward.mask("ann"))
    async with asyncio.timeout(SOON):
        while not begun.is_set() and (due or not list(ward.folder.glob("*.answer"))):
            await asyncio.sleep(0.005)
    task.cancel()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
    dropped.set()
    async with asyncio.timeout(SOON):
        while list(ward.folder.glob("ann.*")) or (due and not list(ward.sites["ann"].home.secagg.glob("*.mark"))):
            await asyncio.sleep(0.005)


# ------------------------------------------------------------------------------------------------------------- memory


async def test_a_node_that_restarts_after_its_vector_gives_no_second_one(ward: Ward) -> None:
    await ward.assign_all()
    await ward.until("consent")
    site = ward.sites["ann"]
    site.start()
    await site.assigned(ward.assignment("ann"))
    await ward.tell("ann", Tell("ann", ward.number, "train", "keys", m.encode(m.Open(ward.round.masked.server.terms))))  # type: ignore[union-attr]
    assert "is not after round 1, for which a vector was given" in site.left[0][1].what


async def test_the_mark_is_on_disk_before_anything_is_said(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    await ward.assign_all()
    await ward.until("opening")
    site = ward.sites["ann"]

    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("fedscale_client.masking.files.write", full)
    said = len(site.said)
    await ward.tell("ann", ward.tells()["ann"])
    assert len(site.said) == said
    assert site.left[-1][1].cause is Cause.DISK


@pytest.mark.parametrize("step", ["agreement", "shares", "vector", "consent"])
async def test_a_node_that_restarts_in_between_drops_out_with_the_reason(ward: Ward, step: str) -> None:
    await ward.assign_all()
    await ward.until(step)
    site = ward.sites["dot"]
    site.start()
    if step != "consent":
        await site.assigned(ward.assignment("dot"))
    said = len(site.said)
    await ward.tell("dot", ward.tells()["dot"])
    assert len(site.said) == said
    (left,) = site.left
    expected = "the node was restarted in this round" if step == "consent" else "out of turn"
    assert expected in left[1].what


async def test_a_node_that_restarts_repeats_its_one_unmask_answer(ward: Ward) -> None:
    await ward.assign_all()
    await ward.until("opening")
    tell, site = ward.tells()["ann"], ward.sites["ann"]
    first = await ward.tell("ann", tell)
    site.start()
    assert await ward.tell("ann", tell) == first
    other = m.decode(tell.data)
    assert isinstance(other, m.Consents)
    assert await ward.tell("ann", replace(tell, data=m.encode(replace(other, items=other.items[:-1])))) is None
    assert "the node was restarted in this round" in site.left[0][1].what


async def test_the_next_round_goes_on_after_a_restart(ward: Ward) -> None:
    await ward.assign_all()
    await ward.until("never")
    for site in ward.sites.values():
        site.start()
    ward.next_round("ee" * 32)
    await ward.assign_all()
    await ward.until("never")
    assert ward.round.status is Status.CLOSED, ward.round.reason()
    marks = [Mark.decode(file.read_bytes()) for file in ward.sites["ann"].home.secagg.glob("*.mark")]
    assert [(mark.run, mark.round, mark.cohort) for mark in marks] == [(RUN, 3, NAMES)]


async def test_the_same_model_is_answered_once(ward: Ward) -> None:
    await ward.assign_all()
    await ward.until("never")
    ward.next_round()
    await ward.assign_all()
    await ward.tell("ann", ward.tells()["ann"])
    assert "a vector was given for this very model before" in ward.sites["ann"].left[0][1].what


async def test_everything_that_is_kept_is_private(ward: Ward) -> None:
    await ward.assign_all()
    await ward.until("never")
    home = ward.sites["ann"].home
    kept = [home.identity_file, *home.secagg.iterdir()]
    assert len(kept) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
    assert stat.S_IMODE(home.secagg.stat().st_mode) == 0o700


# ------------------------------------------------------------------------------------------------------------ identity


def test_an_identity_key_is_made_once(ward: Ward) -> None:
    home = ward.sites["ann"].home
    assert identity_key(home).public_key() == identity_key(home).public_key()
    assert len({claimed(name, site.masking.identity()) for name, site in ward.sites.items()}) == 4


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_an_identity_key_that_is_damaged(ward: Ward, content: bytes | None) -> None:
    home = ward.sites["ann"].home
    home.identity_file.write_bytes(identity.key_pem(identity.new_key()) if content is None else content)
    with pytest.raises(ConfigError, match="the node's identity key"):
        identity_key(home)
