"""The head only ever moves forward, and knows its own signature."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedscale.errors import ConfigError
from fedscale_client.home import NodeHome
from fedscale_client.ledger.chain import Signer
from fedscale_client.ledger.head import Head, HeadFile

FIRST, SECOND = Head(1, "a" * 64), Head(2, "b" * 64)


@pytest.fixture
def file(site: NodeHome) -> HeadFile:
    made = HeadFile(site.ledger_head, Signer(Ed25519PrivateKey.generate()))
    made.begin()
    return made


def test_it_begins_with_nothing(file: HeadFile) -> None:
    assert file.read() == Head(0, file.signer.origin)


def test_whoever_comes_late_does_not_move_it_back(file: HeadFile) -> None:
    for head in (FIRST, SECOND, FIRST):
        file.advance(head)
    assert file.read() == SECOND


def test_it_is_not_made_anew_when_it_is_gone(file: HeadFile) -> None:
    file.path.unlink()
    with pytest.raises(ConfigError, match="gone or was changed"):
        file.advance(FIRST)
    assert file.read() is None


@pytest.mark.parametrize("change", [{"seq": 2}, {"digest": "c" * 64}, {"signature": "00" * 64}, {"signature": "no hex"}, {"seq": "one"}, {"seq": -1}])
def test_a_head_that_was_changed_is_none(file: HeadFile, change: dict[str, object]) -> None:
    file.advance(FIRST)
    file.path.write_text(json.dumps(json.loads(file.path.read_text()) | change))
    assert file.read() is None


def test_another_key_does_not_know_it(file: HeadFile) -> None:
    assert replace(file, signer=Signer(Ed25519PrivateKey.generate())).read() is None
