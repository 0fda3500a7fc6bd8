"""Whole rounds: every cohort of the complete graph, a thousand nodes on the random one, and the statistics of what leaves."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import pytest

from fedscale.aggregate import Mean
from fedscale.errors import FedscaleError, PlanError, RunFailed, UpdateRejected
from fedscale.ring import WORD
from fedscale.secagg import messages as m
from fedscale.secagg.node import Node, Reply
from fedscale.secagg.parameters import Profile
from fedscale.secagg.simulate import Step, plain, population, run, steps
from fedscale.secagg.terms import Policy, Suite
from fedscale.update import Layout, Update
from tests.fedscale.secagg.samples import World, make_terms, names, total, vectors_for


@pytest.mark.parametrize("nodes", range(3, 51))
def test_every_cohort_of_the_complete_graph(nodes: int) -> None:
    """One in ten drops out, at a random stage; under a curious server in the even cohorts, to save time."""
    rng = random.Random(nodes)
    profile = Profile.CURIOUS if nodes % 2 == 0 else Profile.MALICIOUS
    sites = population(names(nodes), Policy(curious=True))
    terms = make_terms(sites, profile=profile, length=5)
    vectors = vectors_for(sites, terms, nodes)
    drops = {name: rng.choice(steps(terms)) for name in rng.sample(names(nodes), nodes // 10)}
    outcome = run(terms, sites, vectors, drops)
    np.testing.assert_array_equal(outcome.words, total(vectors, outcome.survivors))
    early = {name for name, step in drops.items() if step in {Step.KEYS, Step.AGREEMENT, Step.SHARES, Step.VECTOR}}
    assert set(outcome.survivors) == set(names(nodes)) - early
    assert set(outcome.dropped) == {name for name, step in drops.items() if step is Step.VECTOR}


def test_many_nodes_on_the_random_graph() -> None:
    """A thousand of them: tests/simulations/test_masks.py."""
    nodes, rng = 100, random.Random(7)
    sites = population(names(nodes), Policy(curious=True))
    terms = make_terms(sites, suite=Suite.GRAPH, profile=Profile.CURIOUS, adversarial=0.05, dropout=0.1, length=10)
    vectors = vectors_for(sites, terms)
    drops = {name: rng.choice(steps(terms)) for name in rng.sample(names(nodes), nodes // 10)}
    outcome = run(terms, sites, vectors, drops)
    np.testing.assert_array_equal(outcome.words, total(vectors, outcome.survivors))
    assert len(outcome.survivors) >= nodes * 9 // 10
    assert outcome.dropped


def test_the_fast_mode_gives_the_same_bits_and_says_what_it_is() -> None:
    world = World(5)
    fast = plain(world.terms, world.vectors)
    np.testing.assert_array_equal(fast.words, world.finish())
    assert world.server.outcome.masked
    assert not fast.masked
    assert fast.survivors == tuple(world.names)


def test_the_fast_mode_refuses_what_nodes_refuse() -> None:
    world = World(5, limit=1000)
    with pytest.raises(UpdateRejected, match="beyond the agreed range"):
        plain(world.terms, world.vectors | {"site-0000": np.full(24, 1001, WORD)})
    with pytest.raises(PlanError, match="not for 2"):
        plain(world.terms, {name: world.vectors[name] for name in world.names[:2]})


def test_the_mean_of_updates_is_bit_equal_with_and_without() -> None:
    """The same words, the same sum, the same model: weights and all travel inside the vector."""
    layout = Layout(200, (), terms=5, bound=8.0, weight_cap=100.0)
    rng = np.random.default_rng(3)
    sites = population(names(5))
    words = {name: layout.encode(Update(rng.normal(0, 0.1, 200).astype(np.float32), 10.0 * at + 7)) for at, name in enumerate(sites)}
    terms = make_terms(sites, length=layout.length, limit=(1 << 30) // 5)
    summed, mean = run(terms, sites, words).words, Mean()
    partial = mean.zero(layout)
    for vector in words.values():
        mean.add(partial, vector)
    np.testing.assert_array_equal(summed, partial.words)
    assert layout.tail(summed)[0] == sum(10.0 * at + 7 for at in range(5))


def test_too_few_nodes_open_nothing() -> None:
    world = World(4)
    with pytest.raises(RunFailed, match="the sum cannot be opened .*2 neighbours left, the threshold is 3"):
        run(world.terms, world.sites, world.vectors, {"site-0000": Step.VECTOR, "site-0001": Step.VECTOR})


# Out of twelve nodes, how many must be left at each stage; at the first one that is what the terms let drop out.
LEAST = {Profile.MALICIOUS: (0.34, 8), Profile.CURIOUS: (0.4, 7)}
STAGES = [(profile, step) for profile in Profile for step in Step if profile is Profile.MALICIOUS or step is not Step.CONSENT]


def until(profile: Profile, step: Step) -> tuple[World, int]:
    """A round of twelve that has come to a stage, and how many it needs from there on."""
    dropout, least = LEAST[profile]
    world = World(12, profile=profile, dropout=dropout)
    world.until(step)
    return world, max(least, 8) if step is Step.KEYS else least


@pytest.mark.parametrize(("profile", "step"), STAGES)
def test_any_stage_may_lose_all_but_the_threshold(profile: Profile, step: Step) -> None:
    world, least = until(profile, step)
    lost, there = world.names[:-least], world.names[-least:]
    heard = world.names if step in {Step.CONSENT, Step.OPENING} else there
    np.testing.assert_array_equal(world.finish(lost), total(world.vectors, heard))
    assert world.server.outcome.survivors == tuple(heard)


@pytest.mark.parametrize(("profile", "step"), STAGES)
def test_one_less_than_the_threshold_opens_nothing(profile: Profile, step: Step) -> None:
    world, least = until(profile, step)
    with pytest.raises(FedscaleError):
        world.finish(world.names[: 1 - least])
    opened = [reply for _, reply in world.replies if isinstance(m.decode(reply.message), m.Opened)]
    assert len(opened) == (least - 1 if step is Step.OPENING else 0), "fewer than a threshold, or nobody was asked at all"
    with pytest.raises(RunFailed, match="the sum is not open"):
        _ = world.server.outcome


def test_a_node_with_nothing_to_say_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3)
    monkeypatch.setattr(Node, "handle", lambda *_: None)
    with pytest.raises(RunFailed, match="nothing to say"):
        run(world.terms, world.sites, world.vectors)


# ---------------------------------------------------------------------------------------------------------- statistics

LENGTH = 65_536


def uploads(vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the server receives."""
    world = World(4, length=LENGTH, limit=(1 << 31) // 4 - 1)
    world.vectors = dict(vectors)
    world.until(Step.VECTOR)
    replies: dict[str, Reply] = {name: world.answer(name, data) for name, data in world.outbox.items()}
    return {name: np.asarray(reply.body) for name, reply in replies.items()}


def test_masked_constants_are_uniform() -> None:
    """Chi-square over the 256 values of each of the four bytes, and every bit balanced; the limits are beyond six sigma."""
    for body in uploads({name: np.full(LENGTH, 12_345, WORD) for name in names(4)}).values():
        for place in range(4):
            counts = np.bincount(body.view(np.uint8).reshape(-1, 4)[:, place], minlength=256)
            chi = ((counts - LENGTH / 256) ** 2 / (LENGTH / 256)).sum()
            assert 255 - 6 * np.sqrt(510) < chi < 255 + 6 * np.sqrt(510)
        bits = np.unpackbits(body.view(np.uint8)).reshape(-1, 32).mean(axis=0)
        assert np.abs(bits - 0.5).max() < 6 * 0.5 / np.sqrt(LENGTH)


def test_masked_constants_pass_kolmogorov_and_smirnov() -> None:
    for body in uploads({name: np.zeros(LENGTH, WORD) for name in names(4)}).values():
        values = np.sort(body) / 2.0**32
        distance = np.abs(values - (np.arange(LENGTH) + 0.5) / LENGTH).max() * np.sqrt(LENGTH)
        assert distance < 2.7


def test_a_masked_vector_has_nothing_of_the_truth() -> None:
    rng = np.random.default_rng(1)
    truth = {name: rng.integers(-(2**28), 2**28, LENGTH, np.int32) for name in names(4)}
    bodies = uploads({name: vector.view(WORD) for name, vector in truth.items()})
    seen = [np.corrcoef(bodies[name].view(np.int32).astype(float), truth[other].astype(float))[0, 1] for name in truth for other in truth]
    assert np.abs(seen).max() < 0.02
    assert abs(np.mean(seen)) < 0.01
    sums = sum((bodies[name] for name in truth), np.zeros(LENGTH, WORD))
    assert abs(np.corrcoef(sums.view(np.int32).astype(float), sum(truth.values()).astype(float))[0, 1]) < 0.02  # type: ignore[union-attr]
