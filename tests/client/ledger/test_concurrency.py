"""Many at once: the cap admits exactly what fits, and the chain stays one chain."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedscale.errors import PolicyRefusal
from fedscale.privacy.accountant import epsilon
from fedscale_client.home import NodeHome
from fedscale_client.ledger.book import Ledger
from fedscale_client.ledger.claims import Cap
from tests.client.ledger.samples import DELTA, SPEND, claim, finish

ASKING, FITTING = 64, 11
CAP = Cap(epsilon([SPEND] * FITTING, DELTA), DELTA, "record")

# Eight processes of eight threads each, all let go at the same moment.
CROWD = """
import json, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from fedscale.errors import PolicyRefusal
from fedscale_client.home import NodeHome
from fedscale_client.ledger.book import Ledger
from tests.client.ledger.samples import claim
from tests.client.ledger.test_concurrency import CAP

site, children, (gate, door) = NodeHome(Path(sys.argv[1])), [], os.pipe()

def ask(number):
    try:
        return Ledger.open(site).reserve(claim(number), CAP)
    except PolicyRefusal as refusal:
        return refusal.what

for part in range(8):
    receiving, sending = os.pipe()
    if os.fork() == 0:
        os.close(door)
        os.read(gate, 1)
        with ThreadPoolExecutor(8) as pool:
            os.write(sending, json.dumps(list(pool.map(ask, range(8 * part, 8 * part + 8)))).encode())
        os._exit(0)
    os.close(sending)
    children.append(receiving)
os.close(door)
told = []
for receiving in children:
    with os.fdopen(receiving, "rb") as answers:
        told += json.loads(answers.read())
for _ in children:
    assert os.wait()[1] == 0
print(json.dumps(told))
"""


def refusals(told: list[object]) -> list[object]:
    return [answer for answer in told if not isinstance(answer, int)]


def test_sixty_four_reservations_from_eight_processes(site: NodeHome, root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CROWD, str(site.path)], cwd=root, capture_output=True, text=True, check=True, timeout=100)
    told = json.loads(done.stdout)
    assert refusals(told) == ["the privacy cap of this site would be passed"] * (ASKING - FITTING)
    ledger = Ledger.open(site)
    assert sorted(set(told) - set(refusals(told))) == [item.seq for item in ledger.items()] == list(range(1, FITTING + 1))
    assert ledger.verify() == ""


def test_sixty_four_threads_of_one_ledger(ledger: Ledger) -> None:
    def ask(number: int) -> int | str:
        try:
            return ledger.reserve(claim(number), CAP)
        except PolicyRefusal as refusal:
            return refusal.what

    with ThreadPoolExecutor(ASKING) as pool:
        told = list(pool.map(ask, range(ASKING)))
    assert len(refusals(list(told))) == ASKING - FITTING
    assert ledger.verify() == ""


def test_the_head_never_falls_behind_whoever_comes_last(site: NodeHome, ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: finish(Ledger.open(site), number), range(16)))
    assert json.loads(site.ledger_head.read_bytes())["seq"] == 48
    assert ledger.verify() == ""


def test_the_first_users_of_a_ledger_make_one(site: NodeHome) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda number: Ledger.open(site).reserve(claim(number), None), range(8)))
    assert sorted(numbers) == list(range(1, 9))
    assert Ledger.open(site).verify() == ""


def test_a_cap_is_no_wider_for_many(ledger: Ledger) -> None:
    for number in range(FITTING):
        ledger.reserve(claim(number), CAP)
    with pytest.raises(PolicyRefusal):
        ledger.reserve(claim(FITTING), CAP)
