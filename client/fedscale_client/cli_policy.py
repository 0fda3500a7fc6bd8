"""``fedscale node policy``: what a site allows, whatever a job asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from fedscale import console
from fedscale.cli.options import DryRun, Json, at
from fedscale.errors import ConfigError
from fedscale_client import policy
from fedscale_client.declarations import listed
from fedscale_client.home import NodeHome
from fedscale_client.options import HOME, HomeFolder, opened
from fedscale_client.policy import Policy


def show(*, home: HomeFolder = HOME, json: Json = False) -> None:
    """Show what this site allows."""
    rules = policy.load(opened(home))
    console.emit(rules.model_dump(mode="json"), console.facts(_told(rules)), as_json=json)


def set_(
    settings: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="Such as datasets.heart.epsilon=4, require_secagg=true.")],
    *,
    home: HomeFolder = HOME,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Change what this site allows; a running node heeds it from its next task on."""
    node = opened(home)
    _warn(node, _changed(node, lambda: policy.load(node, settings), dry_run=dry_run, as_json=json))


def unset(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Such as datasets.heart or datasets.heart.epsilon.")],
    *,
    home: HomeFolder = HOME,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Go back to the default of a setting, or drop all settings of a dataset."""
    node = opened(home)
    _changed(node, lambda: policy.without(policy.load(node), names), dry_run=dry_run, as_json=json)


def _changed(node: NodeHome, make: Callable[[], Policy], *, dry_run: bool, as_json: bool) -> Policy:
    """Make the next policy, keep it unless this is a trial, and show it."""
    rules = make() if dry_run else policy.change(node, make)
    console.emit({"dry_run": dry_run, "policy": rules.model_dump(mode="json")}, console.facts(_told(rules)), as_json=as_json)
    return rules


def _told(rules: Policy) -> dict[str, object]:
    """A policy as names and values, its datasets one a line."""
    own = {name: value for name, value in rules if name != "datasets"}
    lines = {
        f"datasets.{name}": ", ".join(f"{k} {console.worded(v)}" for k, v in dataset.model_dump(exclude_defaults=True).items())
        for name, dataset in rules.datasets.items()
    }
    return {name: ", ".join(value) or "any" if isinstance(value, tuple) else value for name, value in own.items()} | lines


def _warn(node: NodeHome, rules: Policy) -> None:
    """Say which datasets have rules and do not exist: a slip of the pen would protect nothing."""
    try:
        unknown = sorted(set(rules.datasets) - set(listed(node)))
    except ConfigError:
        return
    if unknown:
        console.note(f"this site has declared no dataset '{unknown[0]}'; see: fedscale node data list {at(node.path)}")
