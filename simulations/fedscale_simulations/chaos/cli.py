"""``fedscale chaos``: is anything lost when things break?"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from fedscale.cli.options import Json
from fedscale_simulations.chaos.campaign import Setting, conduct
from fedscale_simulations.chaos.disk import LONGEST, Disk, Shortage
from fedscale_simulations.chaos.jump import MOST_HOURS, Jump
from fedscale_simulations.chaos.kill import Kill, Who
from fedscale_simulations.chaos.network import LONGEST_FAULT, Break, storm
from fedscale_simulations.chaos.pause import LONG, Pause

Nodes: TypeAlias = Annotated[int, typer.Option(min=1, max=64, help="How many nodes.")]
Rounds: TypeAlias = Annotated[int, typer.Option(min=1, help="Rounds of one run; runs follow each other until all faults are done.")]
Seed: TypeAlias = Annotated[int | None, typer.Option(help="Decides when, whom and how; drawn unless given, and part of the result.")]
Database: TypeAlias = Annotated[str, typer.Option(help="URL of an empty database for the coordinator; SQLite in its folder by default.")]
Out: TypeAlias = Annotated[Path | None, typer.Option(help="Keep everything in this folder; by default it goes when nothing was found.")]
Faults: TypeAlias = Annotated[int, typer.Option(min=1, help="How many faults.")]
Whom: TypeAlias = Annotated[Who, typer.Option("--who", help="Whom they meet.")]
Hours: TypeAlias = Annotated[float, typer.Option(min=0.0, max=MOST_HOURS, help="How far from the right time at most, either way.")]
Longest: TypeAlias = Annotated[float, typer.Option(min=0.05, help="Seconds that a fault lasts at most.")]


def _setting(*, nodes: Nodes = 8, rounds: Rounds = 25, seed: Seed = None, database: Database = "", out: Out = None, json: Json = False) -> Setting:
    """What all verbs have in common, from options that all of them have."""
    return Setting(nodes, rounds, seed, database, out, json)


def verb(conducted: Callable[..., int]) -> Callable[..., None]:
    """A verb with the options of ``conducted``, which takes a setting and returns the exit code, and behind them those that all verbs have."""
    own, common = (inspect.signature(function, eval_str=True).parameters for function in (conducted, _setting))

    def command(**options: Any) -> None:
        setting = _setting(**{name: options.pop(name) for name in common})
        raise typer.Exit(conducted(setting, **options))

    command.__doc__ = conducted.__doc__
    vars(command)["__signature__"] = inspect.Signature([*list(own.values())[1:], *common.values()])
    return command


@verb
def kill(setting: Setting, *, kills: Annotated[int, typer.Option(min=1, help="How many kills.")] = 150, who: Whom = Who.BOTH) -> int:
    """Kill coordinator and nodes at random moments and count what is lost."""
    return conduct("kill", setting, kills, lambda _: nullcontext(Kill(who)))


@verb
def pause(setting: Setting, *, faults: Faults = 20, who: Whom = Who.BOTH, longest: Longest = LONG) -> int:
    """Freeze coordinator and nodes at random moments and count what is lost."""
    return conduct("pause", setting, faults, lambda _: nullcontext(Pause(who, longest)))


@verb
def clock(setting: Setting, *, faults: Faults = 20, who: Whom = Who.BOTH, hours: Hours = MOST_HOURS) -> int:
    """Let the wall clocks of coordinator and nodes jump at random moments and count what is lost."""
    return conduct("clock", setting, faults, lambda _: nullcontext(Jump(who, hours)), clocks=True)


@verb
def partition(
    setting: Setting,
    *,
    faults: Faults = 20,
    kinds: Annotated[list[Break] | None, typer.Option("--kind", help="What may happen to the network; may be repeated, all by default.")] = None,
    longest: Longest = LONGEST_FAULT,
) -> int:
    """Break the network between nodes and coordinator at random moments and count what is lost."""
    chosen = tuple(kinds or Break)
    return conduct("partition", setting, faults, lambda troupe: storm(troupe, chosen, longest))


@verb
def disk(
    setting: Setting,
    *,
    faults: Faults = 20,
    who: Whom = Who.SERVER,
    kinds: Annotated[list[Shortage] | None, typer.Option("--kind", help="What may run out; may be repeated, all by default.")] = None,
    longest: Longest = LONGEST,
) -> int:
    """Fill the disk of coordinator and nodes at random moments and count what is lost."""
    trouble = Disk(who, tuple(kinds or Shortage), longest)
    # A node whose disk refuses says so and is out of the round: there rounds must do without some, and no two runs give the same bits.
    strict = who is Who.SERVER
    job = setting.job() if strict else setting.job(quorum=max(setting.nodes // 4, 1))
    return conduct("disk", setting, faults, lambda _: nullcontext(trouble), job, strict=strict)
