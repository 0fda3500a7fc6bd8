from __future__ import annotations

import pytest

from fedscale import errors
from fedscale.errors import FedscaleError, ProtocolError
from fedscale.wire.faults import ERROR_KEY, LONGEST, packed, unpacked

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FedscaleError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_with_its_class_and_words(kind: type[FedscaleError]) -> None:
    key, sent = packed(kind("it broke", where="run r1", why="d\u00e9j\u00e0 vu", hint="mend it"))
    arrived = unpacked(sent)
    assert key == ERROR_KEY
    assert type(arrived) is kind
    assert vars(arrived).items() >= {"what": "it broke", "where": "run r1", "why": "d\u00e9j\u00e0 vu", "hint": "mend it"}.items()


@pytest.mark.parametrize(
    "sent", [None, b"", b"not json", b"[]", b"7", b'{"what": "no type"}', b'{"type": "NotFound"}', b'{"type": 7}', b"\xff", b"[" * 100_000]
)
def test_what_cannot_be_read_is_no_error_of_ours(sent: bytes | None) -> None:
    assert unpacked(sent) is None


@pytest.mark.parametrize("name", ["SystemExit", "annotations", "Failure", "Future", "__builtins__"])
def test_another_kind_is_the_peers_mistake(name: str) -> None:
    arrived = unpacked(f'{{"type": "{name}", "what": "trick", "where": "", "why": "", "hint": ""}}')
    assert type(arrived) is ProtocolError
    assert arrived.what == "trick"


def test_long_texts_are_cut() -> None:
    arrived = unpacked(packed(ProtocolError("x" * 10_000))[1])
    assert arrived is not None
    assert len(arrived.what) == LONGEST
