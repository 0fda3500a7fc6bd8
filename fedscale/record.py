"""What every run leaves behind: one frozen value, simulated or deployed, that can be stored, read back and reported.

``extra`` carries what only some runs have. The report gives these keys a place of their own, any other key is listed as it is:

``comparison``
    rows such as ``{"kind": "alone", "site": "hospital-a", "examples": 120, "auc": 0.91}``; ``kind`` is ``alone``,
    ``federated`` or ``pooled``, every further key is a column.
``privacy``
    ``{"epsilon": 3.9, "delta": 1e-5, "unit": "record", "sites": {"hospital-a": 3.9}}``.
``ledgers``
    where the privacy ledger of each site ended when its last answer left: ``{"hospital-a": "NUMBER:HASH"}``.
``seeds``, ``versions``, ``hashes``
    what somebody else needs to repeat the run.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, TypeVar, cast

from fedscale.errors import Cause, ConfigError, Failure
from fedscale.lanes import Mark

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Phase: TypeAlias = Literal["train", "evaluate"]
T = TypeVar("T")

PHASES: tuple[Phase, ...] = ("evaluate", "train")
PLAIN = frozenset({str, int, bool, type(None)})
FORMULA = ("=", "+", "-", "@", "\t")


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One phase of one round.

    Args:
        number: the round, from 1.
        phase: ``train`` or ``evaluate``.
        answered: nodes whose answer was counted.
        failures: node to the typed reason why it did not contribute.
        metrics: metric to its value pooled over the nodes that answered; none where they have too few examples together.
        sites: node to metric to value, where the plan lets single sites be seen.
        weight: summed weight of the answers, usually examples; 0 where it is not told.
        seconds: wall time, virtual in a simulation.
        bytes_up: bytes from the nodes.
        bytes_down: bytes to the nodes.
        lanes: node to the marks of its lane in the timeline, see ``fedscale.lanes``; empty in a simulation, and in rounds that are long ago.
    """

    number: int
    phase: Phase
    answered: tuple[str, ...]
    failures: dict[str, Failure]
    metrics: dict[str, float]
    sites: dict[str, dict[str, float]]
    weight: float
    seconds: float
    bytes_up: int
    bytes_down: int
    lanes: dict[str, tuple[Mark, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A whole run, as it ended.

    Args:
        run: the run's id.
        name: the job's name.
        status: how it ended, one word.
        reason: why it ended so, empty when it simply reached its last round.
        plan_toml: the plan as text.
        plan_hash: SHA-256 of the plan, hex.
        nodes: every node the run knew, in order.
        rounds: the phases in the order in which they closed; last, where a round failed, the phase in which it did, with no answer that counts.
        seconds: wall time of the run.
        bytes_up: bytes from the nodes, everything included.
        bytes_down: bytes to the nodes, everything included.
        model_digest: SHA-256 of the final model, hex; empty without one.
        extra: see the module's own words.
    """

    run: str
    name: str
    status: str
    reason: str
    plan_toml: str
    plan_hash: str
    nodes: tuple[str, ...]
    rounds: tuple[RoundRecord, ...]
    seconds: float
    bytes_up: int
    bytes_down: int
    model_digest: str
    extra: dict[str, JSON]

    def to_json(self) -> str:
        """One line of strict JSON: a number that is not finite becomes ``null``."""
        return json.dumps(plain(self), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Read the form of ``to_json`` back; ``null`` for a number becomes NaN.

        Raises:
            ConfigError: not JSON, a field is missing or of another type.
        """
        try:
            return _run(_typed({"record": json.loads(text, parse_constant=_refuse)}, "record", dict))
        except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
            why = f"{error.args[0]} is missing or of another type" if isinstance(error, KeyError | TypeError) else type(error).__name__
            raise ConfigError("a run record is malformed", why=why, hint="give the metrics.json that a run left") from None


def closed_rounds(record: RunRecord) -> int:
    """How many rounds have closed a phase: not the one in which a run failed."""
    rows = record.rounds[:-1] if record.status == "failed" and record.rounds and not record.rounds[-1].answered else record.rounds
    return len({row.number for row in rows})


def finals(record: RunRecord) -> dict[tuple[Phase, str], float]:
    """The last value of each pooled metric, evaluation before training, in order of first appearance."""
    last = {(row.phase, name): value for row in record.rounds for name, value in row.metrics.items()}
    return {key: last[key] for phase in PHASES for key in last if key[0] == phase}


def participants(record: RunRecord) -> tuple[str, ...]:
    """Every node the run names: those it knew, then any other that answered, failed or was measured."""
    seen = dict.fromkeys(record.nodes)
    for row in record.rounds:
        seen |= dict.fromkeys((*row.answered, *row.failures, *row.sites))
    return tuple(seen)


def summary(record: RunRecord) -> dict[str, JSON]:
    """The run on one flat level: counts, totals, hashes and each final metric as ``phase.metric``."""
    flat: dict[str, JSON] = {
        "run": record.run,
        "name": record.name,
        "status": record.status,
        "reason": record.reason,
        "nodes": len(participants(record)),
        "rounds": closed_rounds(record),
        "failures": sum(len(row.failures) for row in record.rounds),
        "seconds": record.seconds,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "plan_hash": record.plan_hash,
        "model_digest": record.model_digest,
    }
    privacy = record.extra.get("privacy")
    if isinstance(privacy, Mapping) and "epsilon" in privacy:
        flat["epsilon"] = privacy["epsilon"]
    secagg = record.extra.get("secagg")
    if isinstance(secagg, Mapping) and "mode" in secagg:
        flat["secagg"] = secagg["mode"]
    flat.update({f"{phase}.{name}": value for (phase, name), value in finals(record).items()})
    return {key: plain(value) for key, value in flat.items()}


def metrics_csv(record: RunRecord) -> str:
    """One line a value, ``round,phase,site,metric,value``; ``site`` is empty for the pooled value, ``value`` where it is not finite."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("round", "phase", "site", "metric", "value"))
    for row in record.rounds:
        for site, metrics in (("", row.metrics), *row.sites.items()):
            for name, value in metrics.items():
                writer.writerow((row.number, row.phase, _cell(site), _cell(name), repr(float(value)) if math.isfinite(value) else ""))
    return out.getvalue()


def _cell(text: str) -> str:
    """A name that a spreadsheet reads neither as a formula nor, at a bare carriage return, as two lines."""
    text = text.replace("\r", " ")
    return f"'{text}" if text.startswith(FORMULA) else text


def plain(value: object) -> JSON:
    """Values of JSON only; numpy's numbers count as numbers."""
    # A long run has millions of values, and to ask of each whether it is of an abstract kind takes many times as long.
    if type(value) in PLAIN or (type(value) is float and math.isfinite(value)):
        return cast("JSON", value)
    match value:
        case str():
            return value
        case dict() | Mapping():
            return {str(key): plain(entry) for key, entry in value.items()}
        case tuple() | list() | Sequence():
            return [plain(entry) for entry in value]
        case Integral():
            return int(value)
        case Real():
            return float(value) if math.isfinite(value) else None
        case _ if is_dataclass(value):
            return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    raise TypeError(f"{type(value).__name__} is not a value of JSON")


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _typed(row: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """The entry at ``key``, which must be of ``kind``; a bool is no number."""
    value = row[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(key)
    return value


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row[key]
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(key)
    return float(value)


def _names(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = _typed(row, key, list)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(key)
    return tuple(names)


def _floats(row: Mapping[str, Any], key: str) -> dict[str, float]:
    values = _typed(row, key, dict)
    return {name: _number(values, name) for name in values}


def _failures(row: Mapping[str, Any]) -> Iterator[tuple[str, Failure]]:
    rows = _typed(row, "failures", dict)
    for node in rows:
        entry = _typed(rows, node, dict)
        texts = {key: _typed(entry, key, str) for key in ("what", "where", "hint", "traceback")}
        yield node, Failure(Cause(entry["cause"]), **texts)


def _lanes(row: Mapping[str, Any]) -> dict[str, tuple[Mark, ...]]:
    lanes = _typed({"lanes": {}, **row}, "lanes", dict)
    return {site: tuple(map(_mark, _typed(lanes, site, list))) for site in lanes}


def _mark(mark: object) -> Mark:
    match mark:
        case [str() as stage, float() | int() as at] if at is not True and at is not False:
            return stage, float(at)
    raise TypeError("lanes")


def _round(row: Mapping[str, Any]) -> RoundRecord:
    sites = _typed(row, "sites", dict)
    if row["phase"] not in PHASES:
        raise TypeError("phase")
    return RoundRecord(
        number=_typed(row, "number", int),
        phase=row["phase"],
        answered=_names(row, "answered"),
        failures=dict(_failures(row)),
        metrics=_floats(row, "metrics"),
        sites={site: _floats(sites, site) for site in sites},
        weight=_number(row, "weight"),
        seconds=_number(row, "seconds"),
        bytes_up=_typed(row, "bytes_up", int),
        bytes_down=_typed(row, "bytes_down", int),
        lanes=_lanes(row),
    )


def _run(row: Mapping[str, Any]) -> RunRecord:
    texts = {key: _typed(row, key, str) for key in ("run", "name", "status", "reason", "plan_toml", "plan_hash", "model_digest")}
    return RunRecord(
        **texts,
        nodes=_names(row, "nodes"),
        rounds=tuple(_round(_typed({"rounds": entry}, "rounds", dict)) for entry in _typed(row, "rounds", list)),
        seconds=_number(row, "seconds"),
        bytes_up=_typed(row, "bytes_up", int),
        bytes_down=_typed(row, "bytes_down", int),
        extra=_typed(row, "extra", dict),
    )
