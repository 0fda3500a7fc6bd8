from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import Cause, Failure, PlanError, ProtocolError, Unreachable
from fedscale.learner import Phase
from fedscale.letters import Letter
from fedscale.proto.v1 import node_pb2 as pb
from fedscale.secagg import messages as m
from fedscale.task import Task, layout_for
from fedscale.wire import codec, convert, limits
from fedscale.wire.codec import Intake, digest_of, frames
from tests.fedscale.world import BROKEN, SCHEMA, plan_of

PLAN = plan_of(strategy={"name": "fedadam"}, evaluate={"metrics": ["auc"]})
KEY = ("heart-1", Phase.TRAIN, 7)


def task_of(phase: Phase) -> Task:
    if phase is Phase.INIT:
        return Task("ada", phase, 0, layout_for(PLAN, phase, 0, 1), None, "")
    return Task("ada", phase, 3, layout_for(PLAN, phase, SCHEMA.size, 5), SCHEMA, "d" * 64)


def sent(phase: Phase = Phase.TRAIN) -> pb.Assignment:
    """An assignment as it comes off the wire."""
    message = convert.assignment_to_proto("heart-1", task_of(phase), PLAN.to_toml(), "b" * 64, 90.0)
    return pb.Assignment.FromString(message.SerializeToString())


# ---------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("size", [0, 1, limits.FRAME - 1, limits.FRAME, limits.FRAME + 1, 3 * limits.FRAME])
def test_frames_are_the_whole_and_not_too_large(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    cut = list(frames(data))
    assert b"".join(cut) == data
    assert [len(frame) for frame in cut[:-1]] == [limits.FRAME] * (len(cut) - 1)
    assert b"".join(frames(data, size // 2)) == data[size // 2 :]
    assert list(frames(data, size)) == []


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_frame_that_was_damaged_is_found_out(frame: bytes, data: st.DataObject) -> None:
    """GMAC finds every error within one block of 16 bytes, and any other one as surely as a key of 128 bits is hard to guess."""
    sent = codec.sealed(frame)
    assert codec.intact(codec.unsealed(sent)) == frame
    at, mask = data.draw(st.integers(0, len(sent) - 1)), data.draw(st.integers(1, 255))
    damaged = bytearray(sent)
    damaged[at] ^= mask
    assert codec.unsealed(bytes(damaged)) == b""
    with pytest.raises(Unreachable, match="damaged"):
        codec.opened(bytes(damaged))


@given(st.binary(min_size=1, max_size=200))
def test_a_frame_is_opened_without_a_copy_and_sealed_from_a_view(frame: bytes) -> None:
    sent = codec.sealed(memoryview(frame))
    assert sent == codec.sealed(frame)
    view = codec.opened(sent)
    assert (view.obj is sent, bytes(view)) == (True, frame)


@pytest.mark.parametrize("sent", [bytes(count) for count in (0, 1, codec.SEAL - 1, codec.SEAL)])
def test_what_is_too_short_for_a_frame_is_damaged(sent: bytes) -> None:
    with pytest.raises(Unreachable, match=r"a frame was damaged on its way \(its seal differs\); send it again"):
        codec.intact(codec.unsealed(sent))
    with pytest.raises(Unreachable, match="damaged"):
        codec.opened(sent)


@given(st.binary(max_size=70))
def test_a_frame_carries_the_tag_of_an_empty_message(frame: bytes) -> None:
    """As NIST SP 800-38D has it, computed bit by bit; that of no bytes at all is the first published test case of GCM."""
    assert codec.sealed(b"").hex() == "58e2fccefa7e3061367f1d57a4e7455a"
    point, total = encrypted(bytes(16)), 0
    blocks = [frame[at : at + 16].ljust(16, b"\0") for at in range(0, len(frame), 16)] + [(8 * len(frame)).to_bytes(8) + bytes(8)]
    for block in blocks:
        total = product(total ^ int.from_bytes(block), point)
    assert codec.sealed(frame) == (total ^ encrypted(bytes(15) + b"\1")).to_bytes(16) + frame


def encrypted(block: bytes) -> int:
    """By AES-128 under a key of zeros."""
    return int.from_bytes(Cipher(algorithms.AES128(bytes(16)), modes.CTR(block)).encryptor().update(bytes(16)))


def product(left: int, right: int) -> int:
    """Of two elements of the field of GCM, whose first bit is the lowest coefficient."""
    found = 0
    for bit in range(127, -1, -1):
        found ^= right * (left >> bit & 1)
        right = right >> 1 ^ 0xE1 << 120 if right & 1 else right >> 1
    return found


@given(st.binary(max_size=60), st.integers(0, 60))
def test_an_intake_goes_on_behind_what_is_known(whole: bytes, cut: int) -> None:
    file = io.BytesIO()
    intake = Intake(file, len(whole), digest_of(whole))
    intake.known(whole[:cut])
    intake.take(whole[cut:])
    intake.done()
    assert file.getvalue() == whole[cut:]


def test_frames_count_in_bytes_whatever_the_items() -> None:
    words = np.arange(limits.FRAME // 4 + 1, dtype=np.uint32)
    cut = list(frames(words.data, 4))
    assert [len(frame) for frame in cut] == [limits.FRAME]
    assert b"".join(cut) == words[1:].tobytes()


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_an_intake_keeps_what_was_announced(parts: list[bytes]) -> None:
    whole, file = b"".join(parts), io.BytesIO()
    intake = Intake(file, len(whole), hashlib.sha256(whole).hexdigest())
    for part in parts:
        intake.take(part)
    intake.done()
    assert file.getvalue() == whole


@pytest.mark.parametrize(
    ("announced", "digest", "parts", "message"),
    [
        (5, b"hello", [b"hel"], "a stream ended 2 bytes too early"),
        (5, b"hello", [], "a stream ended 5 bytes too early"),
        (5, b"hello", [b"hel", b"lo", b"!"], "a stream is longer than it announced"),
        (5, b"hello", [b"hello!"], "a stream is longer than it announced"),
        (5, b"hello", [b"jello"], "a stream does not have the content it announced (its SHA-256 differs)"),
        (0, b"x", [], "a stream does not have the content it announced (its SHA-256 differs)"),
    ],
)
def test_an_intake_refuses_anything_else(announced: int, digest: bytes, parts: list[bytes], message: str) -> None:
    file = io.BytesIO()
    intake = Intake(file, announced, digest_of(digest))
    with pytest.raises(ProtocolError) as caught:  # noqa: PT012 - the frame or the end may be the fault
        for part in parts:
            intake.take(part)
        intake.done()
    assert str(caught.value) == message
    assert len(file.getvalue()) <= announced


def test_the_bulk_methods_belong_to_the_service() -> None:
    service = "fedscale.v1.Frames"
    assert {codec.FETCH, codec.SUBMIT, codec.PUT, codec.OFFSET} == {f"/{service}/{name}" for name in ("Fetch", "Submit", "Put", "Offset")}
    assert codec.SCHEMA_KEY.endswith("-bin")


def test_messages_hold_a_frame() -> None:
    assert limits.FRAME < limits.MESSAGE
    assert limits.HEARTBEAT_SECONDS < limits.SILENCE_SECONDS
    assert dict(limits.SERVER_OPTIONS)["grpc.max_receive_message_length"] == limits.MESSAGE


# ------------------------------------------------------------------------------------------------------------------ keys


@given(st.from_regex(r"[a-z0-9][a-z0-9.-]{0,30}", fullmatch=True), st.sampled_from(Phase), st.integers(0, 2**31))
def test_keys_survive_text_and_proto(run: str, phase: Phase, number: int) -> None:
    key = (run, phase, number)
    assert convert.key_from_text(convert.key_text(key)) == key
    assert convert.key_from_proto(pb.TaskKey.FromString(convert.key_to_proto(key).SerializeToString())) == key
    assert convert.key_text(KEY) == "heart-1/train/7"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a/train",
        "a/train/",
        "a/train/x",
        "a/train/-1",
        "a/train/1.5",
        "a/train/1/2",
        "a/tran/1",
        "a/Train/1",
        "a//1",
        "a/train/²",
        "a/train/1 ",
    ]
    + [f"a/train/{'9' * n}" for n in (11, 5000)],
)
def test_malformed_keys(text: str) -> None:
    with pytest.raises(ProtocolError, match="^a task key is malformed$"):
        convert.key_from_text(text)


def test_a_key_of_an_unknown_phase() -> None:
    with pytest.raises(ProtocolError, match="^a task key names an unknown phase$"):
        convert.key_from_proto(pb.TaskKey(run="a", phase="dance", number=1))


# ----------------------------------------------------------------------------------------------------------- assignments


@pytest.mark.parametrize("phase", set(Phase) - {Phase.MESSAGE})
def test_a_task_survives_the_wire(phase: Phase) -> None:
    run, plan, task = convert.assignment_from_proto(sent(phase), "ada")
    assert (run, plan, task) == ("heart-1", PLAN, task_of(phase))
    assert plan.digest == PLAN.digest
    assert task.layout.length == task_of(phase).layout.length


LED = plan_of(strategy={"name": "led"})
LETTER = Letter("ada", 7, '{"id": "x"}', "d" * 64, 12, 60.0, "train", 2)


def test_a_letter_survives_the_wire() -> None:
    message = convert.letter_to_proto("heart-1", LETTER, LED.to_toml(), "b" * 64, 30.0)
    run, plan, task = convert.assignment_from_proto(pb.Assignment.FromString(message.SerializeToString()), "ada")
    assert (run, plan, task.phase, task.number, task.model, task.schema) == ("heart-1", LED, Phase.MESSAGE, 7, "d" * 64, None)
    assert (message.envelope, message.size, message.bundle, message.deadline_seconds) == ('{"id": "x"}', 12, "b" * 64, 30.0)


@pytest.mark.parametrize("phase", [Phase.MESSAGE, Phase.TRAIN])
def test_no_plan_lets_an_answer_out_in_another_way_than_it_says(phase: Phase) -> None:
    """A coordinator cannot have single answers under a plan that promises masks, nor sums under one that is led."""
    bad = sent() if phase is Phase.TRAIN else convert.letter_to_proto("heart-1", LETTER, PLAN.to_toml(), "b" * 64, 30.0)
    bad.plan = (LED if phase is Phase.TRAIN else PLAN).to_toml()
    with pytest.raises(ProtocolError, match="an assignment asks for what its plan does not"):
        convert.assignment_from_proto(bad, "ada")


def test_the_rest_of_an_assignment() -> None:
    message = sent()
    assert (message.bundle, message.deadline_seconds, message.terms) == ("b" * 64, 90.0, 5)


@pytest.mark.parametrize(
    ("phase", "changes", "message"),
    [
        (Phase.TRAIN, {"schema": ""}, "run heart-1: an assignment lacks the model, or carries one where the first is asked for"),
        (Phase.TRAIN, {"model": ""}, "run heart-1: an assignment lacks the model, or carries one where the first is asked for"),
        (Phase.INIT, {"model": "d"}, "run heart-1: an assignment lacks the model, or carries one where the first is asked for"),
        (Phase.INIT, {"schema": "[]"}, "run heart-1: an assignment lacks the model, or carries one where the first is asked for"),
        (Phase.TRAIN, {"schema": "[[1]]"}, "a model schema is malformed (ValueError)"),
        (Phase.TRAIN, {"schema": "{"}, "a model schema is malformed (JSONDecodeError)"),
        (Phase.TRAIN, {"key": pb.TaskKey(run="heart-1", phase="dance", number=1)}, "a task key names an unknown phase"),
        (Phase.TRAIN, {"key": pb.TaskKey()}, "a task key names an unknown phase"),
    ],
)
def test_assignments_that_contradict_themselves(phase: Phase, changes: dict[str, Any], message: str) -> None:
    bad = sent(phase)
    for name, value in changes.items():
        if name == "key":
            bad.key.CopyFrom(value)
        else:
            setattr(bad, name, value)
    with pytest.raises(ProtocolError) as caught:
        convert.assignment_from_proto(bad, "ada")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("", "plan of run heart-1: 'job' is missing"),
        ("[job]\nname = 1\n", "plan of run heart-1:2: job.name: input should be a valid string"),
        ("\0", "plan of run heart-1:1: not valid TOML (Invalid statement (at line 1, column 1))"),
    ],
)
def test_an_assignment_with_a_bad_plan(plan: str, message: str) -> None:
    bad = sent()
    bad.plan = plan
    with pytest.raises(PlanError) as caught:
        convert.assignment_from_proto(bad, "ada")
    assert str(caught.value) == message


# -------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("cause", Cause)
def test_failures_survive_the_wire(cause: Cause) -> None:
    failure = replace(BROKEN, cause=cause, traceback="a\nb")
    message = pb.Failed.FromString(convert.failure_to_proto(KEY, failure).SerializeToString())
    assert convert.failure_from_proto(message) == failure
    assert convert.key_from_proto(message.key) == KEY


@pytest.mark.parametrize("cause", ["", "bad luck", "CODE"])
def test_a_cause_nobody_knows_is_the_workers(cause: str) -> None:
    assert convert.failure_from_proto(pb.Failed(cause=cause, what="x")) == Failure(Cause.WORKER, "x")


def test_texts_of_a_peer_are_cut() -> None:
    long = "é" * (convert.LONGEST + 1)
    failure = convert.failure_from_proto(pb.Failed(cause="code", what=long, where=long, hint=long, traceback=long))
    assert [len(text) for text in (failure.what, failure.where, failure.hint, failure.traceback)] == [convert.LONGEST] * 4


# ------------------------------------------------------------------------------------------- messages of secure aggregation


@pytest.mark.parametrize("size", [0, 1, limits.TOLD_PART - 1, limits.TOLD_PART, limits.TOLD_PART + 1, 5 * limits.TOLD_PART + 7])
def test_a_message_of_any_length_comes_through_in_parts(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    sent = [pb.ServerMessage(told=part).SerializeToString() for part in convert.told_to_proto(KEY, "agreement", data)]
    assert len(sent) == max(1, -(-size // limits.TOLD_PART))
    assert max(map(len, sent)) < limits.MESSAGE / 2
    parts = convert.Parts()
    for _ in range(2):
        *first, last = [pb.ServerMessage.FromString(part).told for part in sent]
        assert [parts.whole(part) for part in first] == [None] * len(first)
        assert parts.whole(last) == data
        assert (convert.key_from_proto(last.key), last.step) == (KEY, "agreement")


def test_a_message_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "TOLD", 10)
    parts = convert.Parts()
    assert parts.whole(pb.Told(data=bytes(6), more=True)) is None
    with pytest.raises(ProtocolError, match="too long"):
        parts.whole(pb.Told(data=bytes(5), more=True))


def test_the_keys_of_ten_thousand_nodes_fit() -> None:
    """1,280 bytes a node; before they came in parts, a little more than 3,000 nodes were the end."""
    entries = (m.Keys(member, bytes(32), bytes(1184), bytes(64)) for member in range(10_000))
    directory = m.encode(m.Directory.of(entries))
    parts = convert.Parts()
    *_, whole = [parts.whole(part) for part in convert.told_to_proto(KEY, "agreement", directory)]
    assert len(directory) > 3 * limits.MESSAGE
    assert whole == directory
