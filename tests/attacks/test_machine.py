"""The machine breaks nothing of the real nodes, and finds what was planted."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from fedscale.errors import FedscaleError
from fedscale.secagg import keys, node, prg, server, session, terms
from fedscale.secagg import messages as m
from fedscale.secagg.keys import Pair
from fedscale.secagg.parameters import Profile
from tests.attacks import machine, test_secagg

LENGTH = 40
EXAMPLES = 30
# In parts, so that none is long on a slow machine.
STEPS, WALKS = int(os.environ.get("FEDSCALE_ATTACK_STEPS", "100000")), 4
Patch = pytest.MonkeyPatch


def play(kind: type[machine.AnyServer], examples: int, *, derandomize: bool = False) -> None:
    """Let the server do its worst."""
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples,
            derandomize=derandomize,
            stateful_step_count=LENGTH,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("kind", machine.Invariants)
def test_no_server_breaks_an_invariant(kind: type[machine.AnyServer]) -> None:
    play(kind, EXAMPLES)
    assert kind.TestCase is not None


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(WALKS))
@pytest.mark.parametrize("kind", machine.Invariants)
def test_no_server_breaks_an_invariant_however_long_it_tries(kind: type[machine.AnyServer], seed: int) -> None:
    steps = STEPS // WALKS // len(machine.Invariants)
    ended = machine.wander(kind, steps, LENGTH, seed)
    assert ended > steps // LENGTH // 10, "hardly any round came to its end"


def test_the_machine_gets_to_the_end_of_a_round() -> None:
    """Otherwise its invariants would hold for want of anything to break them."""
    run = machine.AnyServer()
    everybody = frozenset(range(machine.COUNT))
    run.begin()
    run.direct(everybody, everybody)
    run.agree(everybody, everybody)
    run.share(everybody, everybody)
    run.survive(everybody, everybody)
    run.consent(everybody, everybody)
    assert set(run.opened) == everybody
    assert run.secrets
    for check in (run.never_both_secrets_of_a_node, run.one_vector_and_one_answer, run.one_set_of_survivors, run.no_secret_leaves):
        check()


# --------------------------------------------------------------------------------------------------------- seeded bugs


def both_shares(patch: Patch) -> None:
    real = node.Unmask.accept

    def accept(self: node.Unmask, message: m.Message) -> tuple[node.State, node.Reply]:
        state, reply = real(self, message)
        opened = m.expect(m.decode(reply.message), m.Opened)
        everything = tuple(m.Item(seat, shares[1]) for seat, shares in sorted(self.shares.items()))
        return state, replace(reply, message=m.encode(replace(opened, pair_shares=everything)))

    patch.setattr(node.Unmask, "accept", accept)


def second_answer(patch: Patch) -> None:
    """The state that has answered stays the state that answers."""
    real = node.Unmask.accept

    def accept(self: node.Unmask, message: m.Message) -> tuple[node.State, node.Reply]:
        _, reply = real(self, message)
        return replace(self, signed=None), reply

    patch.setattr(node.Unmask, "accept", accept)


def no_transcript_signed(patch: Patch) -> None:
    for module in (node, server, machine):
        patch.setattr(module, "consent_text", lambda _, seat: seat.to_bytes(8, "big"))


def no_threshold_of_signatures(patch: Patch) -> None:
    patch.setattr(node.Unmask, "_check_consents", lambda *_: None)


def terms_from_the_server(patch: Patch) -> None:
    real = node.AdvertiseKeys.accept

    def accept(self: node.AdvertiseKeys, message: m.Message) -> tuple[node.State, node.Reply]:
        offered = m.expect(message, m.Open).terms
        return real(replace(self, terms=offered, mark=replace(self.mark, run=offered.run)), message)

    patch.setattr(node.AdvertiseKeys, "accept", accept)


def rounds_used_again(patch: Patch) -> None:
    patch.setattr(terms.Policy, "admit", lambda *_: None)


def nothing_remembered(patch: Patch) -> None:
    patch.setattr(terms.Mark, "masked", lambda self, _: self)


def any_session(patch: Patch) -> None:
    patch.setattr(session.Session, "check_id", lambda *_: None)


def unsigned_keys(patch: Patch) -> None:
    patch.setattr(session, "verify_keys", lambda *_: None)


def low_order_keys(patch: Patch) -> None:
    patch.setattr(keys.SessionKeys, "exchange", lambda *_: bytes(32))


def any_cohort(patch: Patch) -> None:
    patch.setattr(terms.Policy, "admit_cohort", lambda *_: None)


def declared_dead(patch: Patch) -> None:
    """A node that helps to open its own pair masks."""
    real = node.Place.check
    patch.setattr(node.Place, "check", lambda self, session, present, among: real(self, session, present | {self.seat}, among))


def one_key_both_ways(patch: Patch) -> None:
    real = keys.pair

    def pair(*given: Any) -> Pair:
        made = real(*given)
        return Pair(made.up, made.up, made.mask)

    patch.setattr(node, "pair", pair)


def no_self_mask(patch: Patch) -> None:
    real = node.CollectShares.accept

    def accept(self: node.CollectShares, message: m.Message) -> tuple[node.State, None]:
        state, _ = real(self, message)
        assert isinstance(state, node.MaskedInput)
        return replace(state, masks=state.masks[:-1]), None

    patch.setattr(node.CollectShares, "accept", accept)


def round_keys_reused(patch: Patch) -> None:
    """The mask of a pair is the same in every round."""
    real = keys.pair

    def pair(curve: bytes, kem: bytes, text: bytes, transcript: bytes, context: tuple[bytes | int, ...]) -> Pair:
        made = real(curve, kem, text, transcript, context)
        return Pair(made.up, made.down, keys.derive(b"root", b"", bytes(str(context[2:]), "ascii")))

    patch.setattr(node, "pair", pair)


def no_range_check(patch: Patch) -> None:
    patch.setattr(node, "check_range", lambda *_: None)


def no_masks(patch: Patch) -> None:
    patch.setattr(prg.Veil, "lay", lambda _, source, target: np.copyto(target, source))


def secret_in_the_clear(patch: Patch) -> None:
    patch.setattr(session, "seal", lambda key, text, _: text + bytes(16))


Bug = Callable[[Patch], None]
FOUND_BY_ATTACK: list[tuple[Bug, Callable[[], None]]] = [
    (both_shares, lambda: test_secagg.test_01_both_shares_of_one_node(Profile.MALICIOUS)),
    (second_answer, lambda: test_secagg.test_01_both_shares_of_one_node(Profile.CURIOUS)),
    (no_transcript_signed, test_secagg.test_02_different_survivors_for_different_nodes),
    (no_threshold_of_signatures, test_secagg.test_02_different_survivors_for_different_nodes),
    (declared_dead, test_secagg.test_03_a_late_vector_stays_masked_when_its_sender_is_declared_dropped),
    (no_self_mask, test_secagg.test_03_a_late_vector_stays_masked_when_its_sender_is_declared_dropped),
    (rounds_used_again, test_secagg.test_04_replay_of_a_round_or_a_session),
    (any_session, test_secagg.test_04_replay_of_a_round_or_a_session),
    (unsigned_keys, test_secagg.test_05_substituted_keys_and_invented_nodes),
    (low_order_keys, lambda: test_secagg.test_06_keys_of_low_order(bytes(32))),
    (terms_from_the_server, lambda: test_secagg.test_07_parameters_chosen_by_the_server({"adversarial": 0.3})),
    (any_cohort, test_secagg.test_08_a_cohort_smaller_than_the_site_allows),
    (no_range_check, lambda: test_secagg.test_12_words_beyond_the_range(1001)),
    (no_masks, test_secagg.test_13_sparse_updates),
    (nothing_remembered, test_secagg.test_16_a_restart_after_the_vector_was_given_gives_no_second_one),
    (terms_from_the_server, lambda: test_secagg.test_18_downgrade({"profile": Profile.CURIOUS})),
]
FOUND_BY_MACHINE: list[tuple[Bug, str]] = [
    (both_shares, "both secrets of seat"),
    (no_transcript_signed, "two sets of survivors"),
    (no_threshold_of_signatures, "two sets of survivors"),
    (nothing_remembered, "a second vector"),
    (rounds_used_again, "a second vector"),
    (secret_in_the_clear, "a secret key"),
    (second_answer, "two sets of survivors|a second unmask answer|both secrets of seat"),
    (no_masks, "a vector in the clear"),
    (declared_dead, "the pair masks of itself"),
    (unsigned_keys, "forged keys were believed"),
]


@pytest.mark.parametrize(("bug", "attack"), FOUND_BY_ATTACK, ids=[f"{place}-{bug.__name__}" for place, (bug, _) in enumerate(FOUND_BY_ATTACK)])
def test_an_attack_finds_the_bug(bug: Bug, attack: Callable[[], None], monkeypatch: Patch) -> None:
    attack()
    bug(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, FedscaleError)):
        attack()


@pytest.mark.parametrize("bug", [one_key_both_ways, round_keys_reused])
def test_the_count_of_keys_finds_the_bug(bug: Bug, monkeypatch: Patch) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        test_secagg.test_17_no_key_is_used_twice(monkeypatch)


@pytest.mark.parametrize(("bug", "told"), FOUND_BY_MACHINE, ids=[bug.__name__ for bug, _ in FOUND_BY_MACHINE])
def test_the_machine_finds_the_bug(bug: Bug, told: str, monkeypatch: Patch) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError, match=told):
        play(machine.AnyServer, 800, derandomize=True)


@pytest.mark.parametrize(("bug", "told"), FOUND_BY_MACHINE, ids=[bug.__name__ for bug, _ in FOUND_BY_MACHINE])
def test_wandering_finds_the_bug(bug: Bug, told: str, monkeypatch: Patch) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError, match=told):
        machine.wander(machine.AnyServer, STEPS, LENGTH, 0)
