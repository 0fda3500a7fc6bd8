"""The part of the demonstration that trains in its own process, apart from it because it loads torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.numpy import load_file

from fedscale.data import from_csv
from fedscale.plan import Plan
from fedscale_simulations.comparison import Comparison, compare, write_csv
from fedscale_simulations.job import assemble, importable


def write_tables(job: Path, table: Callable[[str], Path], label: str) -> tuple[str, ...]:
    """Write each hospital's patients of the app's own population as CSV; returns the hospitals."""
    with importable(job.parent):
        population = assemble(Plan.load(job), job.parent, None, None).data
    for site, patients in population.items():
        write_csv(table(site), patients, label)
    return tuple(population)


def compare_with(job: Path, tables: Mapping[str, Path], label: str, model: Path) -> Comparison:
    """The federation's model in a file beside those that its hospitals could have trained without it."""
    plan = Plan.load(job)
    with importable(job.parent):
        learner = assemble(plan, job.parent, None, None).learner
        return compare(learner, plan, {site: from_csv(path, label) for site, path in tables.items()}, load_file(model))
