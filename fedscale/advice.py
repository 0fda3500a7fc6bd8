"""What each cause of failure means, and what the site, the researcher and the coordinator can do about it."""

from __future__ import annotations

from dataclasses import dataclass

from fedscale.errors import Cause


@dataclass(frozen=True, slots=True)
class Advice:
    """What to know of one cause.

    Args:
        means: what happened at the site.
        often: what is behind it most of the time.
        steps: what to do, the likeliest first; commands stand behind a colon.
        run: what becomes of the run meanwhile.
    """

    means: str
    often: str
    steps: tuple[str, ...]
    run: str = "the round goes on without the site; it is asked again in the next one"


ADVICE: dict[Cause, Advice] = {
    Cause.DATA: Advice(
        "the site's dataset cannot be read, or not in the form that the app wants",
        "a file that was moved, a missing value, a cell that is no number, a column of another name, too few rows",
        (
            "at the site, read it as a job would: fedscale node data check NAME",
            "declare it anew if the file or its columns have changed: fedscale node data add NAME --path FILE.csv --label COLUMN",
            "let rows with missing values be left out: fedscale node data add NAME --missing drop",
        ),
    ),
    Cause.CODE: Advice(
        "the app raised an error, or returned something that is no answer",
        "a package that the site lacks, a column or shape that the app does not expect, a metric that one class alone cannot have",
        (
            "try the same job with virtual sites: fedscale simulate job.toml",
            "at the site, the full message with its values stays in log/worker.log of the node's folder",
            "correct the app and submit it again: fedscale run submit job.toml",
        ),
    ),
    Cause.MEMORY: Advice(
        "memory ran out at the site, of the machine or of its accelerator",
        "a batch or a model that is too large, or several runs at the same time",
        ("make the batch smaller: train.batch_size in the job file", "at the site, let fewer workers run at a time: workers in node.toml"),
    ),
    Cause.DISK: Advice(
        "a disk at the site is full, over quota or cannot be written",
        "old models, bundles and logs in the node's folder",
        ("at the site, see how much is left: fedscale node doctor", "keep less there: cache_bytes in node.toml"),
    ),
    Cause.NETWORK: Advice(
        "the app or the model did not arrive whole at the site",
        "a slow or interrupted line, or a proxy that cuts long transfers",
        ("at the site, see whether the coordinator answers: fedscale node doctor", "give slow sites more time: clients.deadline in the job file"),
    ),
    Cause.POLICY: Advice(
        "the owner of the site does not allow what the job asks",
        "an app that is not approved, a missing promise of privacy, a budget that is spent, or a site that is paused",
        (
            "the failure names the rule; change the job so that it keeps it",
            "or ask the site's owner, who sees and changes the rules with: fedscale node policy show",
            "what is left of the budget is told at the site by: fedscale privacy spent",
        ),
    ),
    Cause.TIMEOUT: Advice(
        "the site did not answer before the round's deadline",
        "a machine that is slow or busy, or a deadline that is too tight for the first round, in which packages are loaded",
        ("give more time: clients.deadline in the job file", "ask for less: train.epochs", "do not wait for the slowest: clients.over_select"),
    ),
    Cause.DIVERGED: Advice(
        "training has blown up at the site: values that are not finite, or far beyond what the plan allows",
        "a learning rate that is too high, or features of very different scale",
        ("lower the learning rate: train.optimizer.lr", "scale the features in the app", "allow larger changes: aggregate.bound"),
    ),
    Cause.REJECTED: Advice(
        "the answer of the site does not fit the run, and is not counted",
        "an app whose model has other names, shapes or types in training than at first, or releases that differ",
        (
            "let the app return exactly the arrays that it was given, changed",
            "bring the site to the coordinator's release; both are told by: fedscale server status",
        ),
    ),
    Cause.LOST: Advice(
        "the connection to the site broke and did not come back in time",
        "a machine that was restarted or fell asleep, or a network that was down",
        (
            "at the site, see that the node runs and reaches the coordinator: fedscale node doctor",
            "let it be started with the machine, and again when it ends",
            "wait longer for lost sites: clients.rejoin in the job file",
        ),
    ),
    Cause.WORKER: Advice(
        "the process that does the work at the site ended by itself, or does not speak as it should",
        "a crash in native code, an app that ends the process, or more runs than the site takes at a time",
        ("at the site, what led to it stands in log/worker.log of the node's folder", "start fewer runs at a time, or raise workers in node.toml"),
    ),
}


def next_step(cause: Cause) -> str:
    """The likeliest step against a cause, for failures that name none of their own."""
    return ADVICE[cause].steps[0]
