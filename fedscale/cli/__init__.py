"""The command line: nouns and verbs, each imported when it is asked for.

Exit codes: 0 done, 1 a run failed, 2 usage or configuration, 3 unreachable, 4 access, 5 policy, 6 conflict or not found,
70 a bug of ours, 130 interrupted.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import click
import typer

import fedscale
from fedscale import console
from fedscale.cli import process
from fedscale.cli.examples import below_help
from fedscale.cli.lazy import Entry, Lazy, group
from fedscale.errors import ConfigError, FedscaleError

NOUNS = {
    "init": Entry("fedscale.cli.init:init", "Write a runnable job into a folder."),
    "simulate": Entry("fedscale_simulations.cli:simulate", "Run a job with virtual clients on this machine."),
    "sweep": Entry("fedscale_simulations.cli_sweep:sweep", "Search the settings of a job by simulation."),
    "demo": Entry("fedscale_simulations.demo:demo", "Train on real medical data with a coordinator and four hospital nodes on this machine."),
    "server": Entry("fedscale_server.nouns:server", "Run a coordinator."),
    "project": Entry("fedscale_server.nouns:project", "Group sites and runs, invite sites."),
    "node": Entry("fedscale_client.nouns:node", "Run a site: join a federation, declare data, train."),
    "run": Entry("fedscale_server.nouns:run", "Submit, watch and steer runs, fetch their results."),
    "secagg": Entry("fedscale.cli.secagg:secagg", "Plan secure aggregation."),
    "privacy": Entry("fedscale.cli.privacy:privacy", "Plan and account for differential privacy."),
    "chaos": Entry("fedscale_simulations.chaos.nouns:chaos", "Break a federation of your own on this machine and see what is lost."),
    "audit": Entry("fedscale.cli.audit:audit", "Check that what is promised is kept, and see who did what."),
    "explain": Entry("fedscale.cli.explain:explain", "Explain a cause of failure or an error: what it means, what is behind it, what to do."),
    "doctor": Entry("fedscale.cli.doctor:doctor", "Check what fedscale needs on this machine."),
}
# What to do about what the system refuses.
REFUSALS = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "run as its owner, or choose a place that this user may use"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or choose a place with more"),
    errno.EROFS: "choose a place that can be written to",
    errno.EMFILE: "allow more open files: ulimit -n 65536",
}
EXTRAS = {"torch": "torch", "sklearn": "demo", "psycopg": "postgres", "flwr": "flower", "optuna": "sweep", "ray": "ray"}


class Root(Lazy):
    """All nouns; knows what Ctrl-C means."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an interrupt that carries a text says with it how to go on."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            return console.interrupted(str(stop), as_json="--json" in ctx.obj)


def version(asked: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    """Print the version and stop."""
    if asked:
        console.screen().print(f"fedscale {fedscale.__version__}")
        raise typer.Exit


def root(*, version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")] = False) -> None:
    """Options of the command line as a whole."""


app = group(
    "Federated learning for hospitals: simulate a job, deploy it, watch it.", NOUNS, callback=root, cls=Root, completion=True, epilog=below_help("")
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; without ``arguments`` it is what the process was started with, and all it does."""
    return process.whole(lambda: _run(sys.argv[1:])) if arguments is None else _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    """Run one command; all errors end here."""
    words = list(arguments)
    as_json = "--json" in words
    # What gRPC has to say of a broken connection stands in our own error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    console.forgive_encoding()
    try:
        status = typer.main.get_command(app).main(words, prog_name="fedscale", standalone_mode=False, obj=words)
    except click.Abort:
        return console.interrupted("", as_json=as_json)
    except click.exceptions.NoArgsIsHelpError as asked:
        asked.show()
        return asked.exit_code
    except Exception as error:  # noqa: BLE001 - the process boundary: whatever was not foreseen is our bug and is reported as one
        explained = _explained(error)
        return console.crash(error, as_json=as_json) if explained is None else console.refuse(explained, as_json=as_json)
    return status if isinstance(status, int) else 0


def _explained(error: Exception) -> FedscaleError | None:
    """An error in our terms; None for one that nobody foresaw."""
    if isinstance(error, FedscaleError):
        if isinstance(error.__cause__, OSError):
            error.hint = error.hint or REFUSALS.get(error.__cause__.errno or 0, "")
        return error
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] in EXTRAS:
        package = error.name.partition(".")[0]
        return ConfigError(f"this needs the package '{package}'", hint=f"pip install 'fedscale-fl[{EXTRAS[package]}]'")
    if isinstance(error, OSError) and error.strerror:
        return ConfigError(f"the system refused: {error.strerror}", where=str(error.filename or ""), hint=REFUSALS.get(error.errno or 0, ""))
    return None


def _choices(error: click.ClickException) -> list[str]:
    """What was probably meant by a value that is none of a few."""
    kind = error.param.type if isinstance(error, click.BadParameter) and error.param else None
    given = re.match(r"'(.*)' is not one of", str(error))
    return difflib.get_close_matches(given[1], map(str, kind.choices), n=1) if given and isinstance(kind, click.Choice) else []


def _usage(error: click.ClickException) -> ConfigError:
    """A misused command, with the closest option or the command's help as the next step."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "fedscale"
    close = getattr(error, "possibilities", None)
    meant = min(close or _choices(error), default="")
    hint = f"did you mean '{meant}'?" if meant else f"see: {path} --help"
    what = error.message if close else error.format_message()
    return ConfigError(what[:1].lower() + what[1:].rstrip("."), where=path, hint=hint)
