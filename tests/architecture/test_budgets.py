"""The budgets of the house: about the best of the codebases that the field holds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture import measure
from tests.architecture.measure import Module


@pytest.fixture(scope="module")
def modules(root: Path) -> list[Module]:
    found = measure.read_rooms(root)
    assert {module.name for module in found} >= {"fedscale", "fedscale_server", "fedscale_client", "fedscale_simulations", "fedscale.vector"}
    return found


@pytest.fixture(scope="module")
def checks(root: Path) -> list[Module]:
    return measure.read_tests(root)


def longest(sizes: dict[str, int], count: int = 10) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: -item[1])[:count]


def test_functions_are_short(modules: list[Module]) -> None:
    lengths = measure.function_lengths(modules)
    assert measure.percentile(lengths.values(), 0.95) <= 30, longest(lengths)


def test_files_are_short(modules: list[Module]) -> None:
    lengths = {module.path: module.lines for module in modules if module.lines > 3}
    assert measure.percentile(lengths.values(), 0.95) <= 300, longest(lengths)
    assert max(lengths.values()) <= 600, longest(lengths)


def test_inheritance_is_flat(modules: list[Module]) -> None:
    assert [name for name, depth in measure.inheritance(modules).items() if depth > 2] == []


def test_no_import_cycles(modules: list[Module]) -> None:
    assert measure.cycle(measure.import_graph(modules)) == []


def test_no_local_imports_of_our_own(modules: list[Module]) -> None:
    assert measure.local_imports(modules) == []


def test_little_is_repeated(modules: list[Module]) -> None:
    assert measure.repeated_percent(modules) <= 3


def test_everything_is_annotated(modules: list[Module]) -> None:
    assert measure.unannotated(modules) == []


def test_everything_public_is_documented(modules: list[Module]) -> None:
    assert measure.undocumented(modules) == []


def test_few_places_catch_everything(modules: list[Module]) -> None:
    found = measure.broad_excepts(modules)
    assert len(found) <= 5, found


def test_nothing_turns_bytes_into_code(modules: list[Module]) -> None:
    assert measure.unsafe(modules) == []


def test_nothing_is_left_unfinished(modules: list[Module]) -> None:
    assert measure.unfinished(modules) == []


def test_every_test_can_fail(checks: list[Module]) -> None:
    assert measure.toothless(checks) == []


def test_there_are_enough_tests(modules: list[Module], checks: list[Module]) -> None:
    source, test = (sum(module.lines for module in group) for group in (modules, checks))
    assert test >= 1.2 * source, f"{test} lines of test for {source} of source"
