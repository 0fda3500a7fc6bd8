"""Open files: as many as the server may need, and a word to people where the system allows too few."""

from __future__ import annotations

import resource

import pytest

from fedscale.wire.limits import CONNECTIONS
from fedscale_server.room import SPARE, make_room

WANTED = CONNECTIONS + SPARE


class System:
    """The limits of a process, which may lower its hard one and raise the soft one up to it."""

    def __init__(self, soft: int, hard: int) -> None:
        self.soft, self.hard = soft, hard

    def getrlimit(self, kind: int) -> tuple[int, int]:
        assert kind == resource.RLIMIT_NOFILE
        return self.soft, self.hard

    def setrlimit(self, kind: int, limits: tuple[int, int]) -> None:
        assert kind == resource.RLIMIT_NOFILE
        assert limits[1] == self.hard
        assert self.hard == resource.RLIM_INFINITY or limits[0] <= self.hard
        self.soft = limits[0]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[str, int]:
    """What people are told on such a system, and its soft limit after that."""
    system = System(*request.param)
    monkeypatch.setattr(resource, "getrlimit", system.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", system.setrlimit)
    return make_room(), system.soft


@pytest.mark.parametrize(
    ("told", "after"),
    [
        ((256, WANTED + 2), WANTED),
        ((WANTED - 1, WANTED), WANTED),
        ((WANTED + 1, WANTED + 2), WANTED + 1),
        ((256, resource.RLIM_INFINITY), WANTED),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), resource.RLIM_INFINITY),
    ],
    indirect=["told"],
)
def test_the_limit_is_raised_as_far_as_is_needed_and_never_lowered(told: tuple[str, int], after: int) -> None:
    assert told == ("", after)


@pytest.mark.parametrize(("told", "files", "nodes"), [((256, 4096), 4096, 1536), ((64, 512), 512, 0)], indirect=["told"])
def test_where_the_system_allows_too_few_people_are_told_for_how_many_nodes(told: tuple[str, int], files: int, nodes: int) -> None:
    hint = "for more, raise 'ulimit -Hn', or LimitNOFILE of the service"
    assert told == (f"the system allows {files} open files, enough for {nodes} nodes; {hint}", files)
