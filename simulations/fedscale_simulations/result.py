"""What a simulation shows while it runs and leaves behind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from safetensors.numpy import save

from fedscale import report
from fedscale.errors import NotFound, RunFailed
from fedscale.metrics import HIGHER_IS_BETTER
from fedscale.record import RoundRecord, RunRecord, closed_rounds, finals
from fedscale.report.units import data_size, duration, number
from fedscale.tables import suggest
from fedscale.vector import Schema, Vector
from fedscale_simulations.files import replace_file

MODEL_FILE = "model.safetensors"
FEW = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a simulation is; handed to ``on_progress`` after every client and every closed round.

    Args:
        number: the round under way, from 1; 0 while the first model is made.
        rounds: how many the plan has.
        phase: ``init``, ``train`` or ``evaluate``.
        done: clients that have answered or failed in this phase.
        asked: clients that were asked.
        closed: the record of the phase that has just ended, or ``None``.
    """

    number: int
    rounds: int
    phase: str
    done: int
    asked: int
    closed: RoundRecord | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """Pictures of a run: a notebook shows them, ``save`` writes them down.

    Args:
        page: a self-contained HTML page.
    """

    page: str

    def _repr_html_(self) -> str:
        """For notebooks: a frame of its own, so that neither style touches the other."""
        return f'<iframe srcdoc="{escape(self.page)}" sandbox style="width: 100%; height: 32em; border: 0" title="metrics by round"></iframe>'

    def save(self, path: str | Path) -> Path:
        """Write the page and return its path.

        Raises:
            ConfigError: the file cannot be written.
        """
        replace_file(Path(path), self.page.encode("utf-8", "replace"))
        return Path(path)


@dataclass(frozen=True, eq=False)
class Simulation:
    """A simulated run that has ended.

    Args:
        record: what every run leaves.
        schema: the parts of the model; ``None`` when there never was one.
        vector: the final model, flat.
    """

    record: RunRecord
    schema: Schema | None
    vector: Vector | None

    def __repr__(self) -> str:
        """How it ended, in a line."""
        return f"<{self.summary().splitlines()[0]}>"

    @property
    def status(self) -> str:
        """``completed`` or ``failed``."""
        return self.record.status

    @property
    def digest(self) -> str:
        """SHA-256 of the final model's bytes: equal digests are equal models."""
        return self.record.model_digest

    @property
    def metrics(self) -> dict[str, float]:
        """The last pooled value of each metric by ``phase.metric``."""
        return {f"{phase}.{name}": value for (phase, name), value in finals(self.record).items()}

    @property
    def model(self) -> Mapping[str, Vector]:
        """The final model by tensor name; torch reads it with ``load_state_dict(..., strict=False)``.

        Raises:
            RunFailed: the run ended before there was a model.
        """
        if self.schema is None or self.vector is None:
            raise RunFailed("the run ended before there was a model", why=self.record.reason)
        return self.schema.unpack(self.vector)

    def reached(self, metric: str, value: float) -> float | None:
        """Seconds, virtual where devices are simulated, until a pooled metric first was at least, or for a loss at most, a value.

        Args:
            metric: ``phase.metric``, as in ``evaluate.accuracy``.
            value: to be reached.

        Returns:
            ``None`` when it never was.

        Raises:
            NotFound: the run has no such metric.
        """
        if self.metrics and metric not in self.metrics:
            raise NotFound(f"the run has no metric '{metric}'", hint=suggest(metric, self.metrics))
        return reached(self.record, metric, value)

    def summary(self) -> str:
        """A few lines for people: how it ended, the last metrics, failures and traffic."""
        record = self.record
        rounds = closed_rounds(record)
        ended = f"{record.status} after {rounds} round{'' if rounds == 1 else 's'} with {_clients(record):,} clients in {duration(record.seconds)}"
        lines = [f"{record.name}: {ended}" + (f": {record.reason}" if record.reason else "")]
        for phase in ("evaluate", "train"):
            values = [f"{name} {number(value)}" for (of, name), value in finals(record).items() if of == phase]
            lines += [f"{phase:<10}{', '.join(values)}"] if values else []
        causes = Counter(str(failure.cause) for row in record.rounds for failure in row.failures.values())
        lines += [f"{'failures':<10}{', '.join(f'{count} {cause}' for cause, count in sorted(causes.items()))}"] if causes else []
        lines += _privacy(record)
        secagg = record.extra.get("secagg")
        lines += [f"{'secagg':<10}{secagg['mode']} ({secagg['why']})"] if isinstance(secagg, Mapping) else []
        lines.append(f"{'traffic':<10}{data_size(record.bytes_up)} up, {data_size(record.bytes_down)} down")
        return "\n".join([*lines, *([f"{'model':<10}sha256 {record.model_digest}"] if record.model_digest else [])])

    def report(self, path: str | Path) -> Path:
        """Write the report, one self-contained HTML page, and return its path.

        Raises:
            ConfigError: the file cannot be written.
        """
        return Plot(report.html(self.record)).save(path)

    def plot(self) -> Plot:
        """The metric curves, pooled and of each site, by round."""
        return Plot(report.curves(self.record))

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write summary, metrics, report, model card and model into a folder; a card that people have filled in stays as it is.

        Returns:
            The name of each file and where it lies.

        Raises:
            ConfigError: the folder cannot be written.
        """
        files = report.write(self.record, Path(folder)) | report.card_beside(self.record, Path(folder))
        if self.schema is not None and self.vector is not None:
            files[MODEL_FILE] = Path(folder, MODEL_FILE)
            replace_file(files[MODEL_FILE], save(dict(self.model)))
        return files


def _privacy(record: RunRecord) -> list[str]:
    """What the clients have spent, one by one where they are few."""
    spent = record.extra.get("privacy")
    if not isinstance(spent, Mapping):
        return []
    epsilon, planned, delta = (figure if isinstance(figure := spent.get(name), float) else math.nan for name in ("epsilon", "planned", "delta"))
    sites = spent.get("sites")
    each = {name: value for name, value in sites.items() if isinstance(value, float)} if isinstance(sites, Mapping) else {}
    head = f"{'privacy':<10}epsilon {number(epsilon)} of {number(planned)} at delta {delta:g} for each {spent.get('unit')} ({spent.get('mechanism')})"
    return [head, *(f"{'':<10}{name}: epsilon {number(value)}" for name, value in each.items() if len(each) <= FEW)]


def reached(record: RunRecord, metric: str, value: float) -> float | None:
    """Seconds until a pooled metric of a run was as good as a value; ``None`` when it never was."""
    phase, _, name = metric.partition(".")
    sign, passed = (1.0 if name in HIGHER_IS_BETTER else -1.0), 0.0
    for row in record.rounds:
        passed += row.seconds
        if row.phase == phase and name in row.metrics and sign * row.metrics[name] >= sign * value:
            return passed
    return None


def _clients(record: RunRecord) -> int:
    """How many clients there were, listed or not."""
    facts = record.extra.get("population")
    count = facts.get("clients") if isinstance(facts, Mapping) else None
    return count if isinstance(count, int) else len(record.nodes)
