"""What watchers of a run get, and that none of them can hold it up."""

from __future__ import annotations

import json
import math

from fedscale.proto.v1 import control_pb2 as pb
from fedscale_server.feed import QUEUE, End, Feed, Watcher, run_event


def drained(queue: Watcher) -> list[pb.RunEvent | End]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


def lines(count: int, start: int = 1) -> list[pb.RunEvent]:
    return [pb.RunEvent(sequence=n, kind="answered") for n in range(start, start + count)]


async def test_every_watcher_gets_everything_from_now_on() -> None:
    feed = Feed()
    early = feed.watch()
    first, second = lines(2)
    feed.publish(first)
    late = feed.watch()
    feed.publish(second)
    feed.close(End.OVER)
    assert drained(early) == [first, second, End.OVER]
    assert drained(late) == [second, End.OVER]


async def test_whoever_leaves_or_comes_late_hears_nothing_but_the_end() -> None:
    feed = Feed()
    left = feed.watch()
    feed.leave(left)
    feed.leave(left)
    feed.publish(lines(1)[0])
    feed.close(End.DOWN)
    feed.close(End.OVER)
    assert drained(left) == []
    assert drained(feed.watch()) == [End.DOWN]


async def test_a_watcher_that_does_not_read_is_cut_off_and_others_are_not() -> None:
    feed = Feed()
    asleep, awake = feed.watch(), feed.watch()
    got: list[pb.RunEvent | End] = []
    for event in lines(2 * QUEUE):
        feed.publish(event)
        got += drained(awake)
    feed.close(End.OVER)
    kept = drained(asleep)
    assert kept[-1] is End.BEHIND
    assert kept[:-1] == lines(QUEUE - 1)
    assert got + drained(awake) == [*lines(2 * QUEUE), End.OVER]


async def test_passing_signs_never_push_out_what_is_journaled() -> None:
    feed = Feed()
    queue = feed.watch()
    for _ in range(3 * QUEUE):
        feed.publish(pb.RunEvent(kind="progress"))
    for event in lines(QUEUE // 2 - 1):
        feed.publish(event)
    feed.close(End.OVER)
    seen = drained(queue)
    assert seen[-1] is End.OVER
    assert [e for e in seen[:-1] if isinstance(e, pb.RunEvent) and e.sequence] == lines(QUEUE // 2 - 1)
    assert sum(isinstance(e, pb.RunEvent) and not e.sequence for e in seen) == QUEUE // 2


def test_an_event_carries_strict_json() -> None:
    detail = {"metrics": {"auc": math.nan, "loss": 0.5}, "list": [math.inf, 1], "cohort": ("ada",), "none": None}
    event = run_event(7, 1.5, "closed", ("train", 3), detail, "ada")
    assert (event.sequence, event.at, event.kind, event.phase, event.number, event.node) == (7, 1.5, "closed", "train", 3, "ada")
    assert event.detail == '{"metrics":{"auc":null,"loss":0.5},"list":[null,1],"cohort":["ada"],"none":null}'
    assert json.loads(event.detail)["metrics"] == {"auc": None, "loss": 0.5}
