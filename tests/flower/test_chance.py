"""Random numbers of the ServerApp and of its clients: neither disturbs the other's, and each goes on where it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fedscale.flower.chance import Chance

DRAWS: dict[str, tuple[Callable[[int], Any], Callable[[], float]]] = {
    "python": (random.seed, random.random),
    "numpy": (np.random.seed, np.random.random),
}


@pytest.fixture(params=[*DRAWS, pytest.param("torch", marks=pytest.mark.requires("torch"))])
def generator(request: pytest.FixtureRequest) -> Iterator[tuple[Callable[[int], Any], Callable[[], float]]]:
    """How to seed one of the process-wide generators, and to draw from it; as it was afterwards."""
    if request.param == "torch":
        torch = pytest.importorskip("torch")
        yield torch.manual_seed, lambda: float(torch.rand(1))
    else:
        yield DRAWS[request.param]
    random.seed()
    np.random.seed()  # noqa: NPY002 - what apps use


def drawn_from(generator: tuple[Callable[[int], Any], Callable[[], float]], count: int) -> list[float]:
    """The first numbers behind a seed, behind which the generator stands again."""
    seed, draw = generator
    seed(5)
    numbers = [draw() for _ in range(count)]
    seed(5)
    return numbers


def test_a_client_that_seeds_does_not_seed_the_server(generator: tuple[Callable[[int], Any], Callable[[], float]]) -> None:
    seed, draw = generator
    expected, chance, drawn = drawn_from(generator, 4), Chance(), []
    for _ in range(4):
        with chance.of_clients():
            seed(1)
            draw()
        drawn.append(draw())
    assert drawn == expected


def test_clients_go_on_where_they_were_and_begin_where_modules_seeded(generator: tuple[Callable[[int], Any], Callable[[], float]]) -> None:
    _, draw = generator
    expected, chance, drawn = drawn_from(generator, 3), Chance(), []
    for _ in range(3):
        draw()
        with chance.of_clients():
            drawn.append(draw())
    assert drawn == expected


def test_a_client_that_raises_gives_the_numbers_back(generator: tuple[Callable[[int], Any], Callable[[], float]]) -> None:
    seed, draw = generator
    seed(5)
    chance = Chance()

    def failing() -> None:
        with chance.of_clients():
            seed(1)
            raise LookupError

    with pytest.raises(LookupError):
        failing()
    first = draw()
    seed(5)
    assert first == draw()
