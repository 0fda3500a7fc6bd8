"""``fedscale explain``: every cause and every error has an explanation that leads somewhere."""

from __future__ import annotations

import re

import pytest
import typer

from fedscale import cli
from fedscale.advice import ADVICE, next_step
from fedscale.errors import Cause
from tests.command import fedscale


def test_every_cause_has_its_advice() -> None:
    assert set(ADVICE) == set(Cause)
    for cause, advice in ADVICE.items():
        assert advice.means, cause
        assert advice.often, cause
        assert advice.steps, cause
        assert next_step(cause) == advice.steps[0]


def test_every_command_that_is_advised_exists() -> None:
    found = [step for advice in ADVICE.values() for step in advice.steps if "fedscale " in step]
    assert len(found) >= 10
    for step in found:
        command = typer.main.get_command(cli.app)
        words = re.findall(r"[a-z-]+", step.partition("fedscale ")[2])
        while subcommands := getattr(command, "commands", None):
            assert words[0] in subcommands, step
            command = subcommands[words.pop(0)]


@pytest.mark.parametrize("cause", list(Cause))
def test_a_cause_is_explained(cause: Cause) -> None:
    done = fedscale("explain", cause.value)
    assert done.out.startswith(f"{cause.value}: {ADVICE[cause].means}.")
    assert f"1. {ADVICE[cause].steps[0]}" in done.out
    assert fedscale("explain", cause.value, "--json").data["steps"] == list(ADVICE[cause].steps)


def test_all_are_listed() -> None:
    assert set(fedscale("explain", "--json").data) == {cause.value for cause in Cause}


def test_an_error_is_explained_with_its_exit_code() -> None:
    assert fedscale("explain", "policyrefusal").out == "PolicyRefusal: The owner of a site does not allow what a job asks. Exit code 5: policy.\n"
    assert fedscale("explain", "PlanError", "--json").data["exit_code"] == 2


def test_a_slip_of_the_pen_is_understood() -> None:
    done = fedscale("explain", "polic", "--json").error
    assert (done["exit_code"], done["hint"]) == (6, "did you mean 'policy'?")
