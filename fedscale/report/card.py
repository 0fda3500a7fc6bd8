"""The card of a model: what it was trained on, how, at what cost in privacy, how good it is and where it is worst.

``model_card`` is the whole of it as a value of JSON; ``markdown`` and ``page`` show the same. What only people know, what the model
is for and what not, is left for them to fill in. No number in it stands for fewer people than the plan's smallest cell or, where nobody
says for how many, for a single site.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedscale.errors import Conflict
from fedscale.metrics import HIGHER_IS_BETTER
from fedscale.record import JSON, RunRecord, closed_rounds, finals, participants, plain
from fedscale.report.figures import FULL_NAMES, flat, metric_title, plain_text
from fedscale.report.markup import Markup, pairs, table, tag
from fedscale.report.page import document, replaced, section
from fedscale.report.units import data_size, duration, number, ranges

FORMAT = "fedscale/model-card/1"
FILES = ("card.html", "card.md", "card.json")
TO_FILL = {
    "purpose": "What the model is for, and who is meant to use it",
    "out_of_scope": "What it must not be used for",
    "population": "Whose data it was trained on, and who is not among them",
    "limits": "Known limits and risks, and how they were looked for",
    "contact": "Who answers for it",
}
SMALLEST = 10
TIMED = ("rounds", "seconds")
PER_SITE = ("answered", "failed", "examples", "epsilon", "delta")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a card: a table with a head, or names and values without one, and what is to be said about it."""

    title: str
    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()
    note: str = ""


def model_card(record: RunRecord, statements: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Everything the coordinator can say about a run's model.

    Args:
        record: the run.
        statements: what sites state about their part in it, as ``fedscale privacy statement RUN --json`` prints it; those of other runs are left out.
    """
    plan = _plan(record)
    told = {
        "format": FORMAT,
        "model": {"name": record.name, "run": record.run, "status": record.status, "reason": record.reason, "sha256": record.model_digest},
        "intended_use": dict.fromkeys(TO_FILL, ""),
        "data": _data(record, plan),
        "training": {"rounds": closed_rounds(record), "seconds": record.seconds, **_tables(plan)},
        "privacy": _privacy(record, plan, statements),
        "secure_aggregation": {"enabled": bool(plan.get("secagg", {}).get("enabled")), **_mapping(record.extra.get("secagg"))},
        "metrics": _metrics(record),
        "rounds": [
            {
                "round": row.number,
                "phase": row.phase,
                "answered": len(row.answered),
                "failed": {site: str(f.cause) for site, f in row.failures.items()},
            }
            for row in record.rounds
        ],
        "traffic": {"bytes_up": record.bytes_up, "bytes_down": record.bytes_down},
        "hashes": {"model": record.model_digest, "plan": record.plan_hash, **_mapping(record.extra.get("hashes"))},
        "versions": _mapping(record.extra.get("versions")),
        "plan": record.plan_toml,
    }
    return {name: plain(value) for name, value in told.items()}


def _plan(record: RunRecord) -> dict[str, Any]:
    """The plan's tables; none where it is not one."""
    try:
        return tomllib.loads(record.plan_toml)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def _tables(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plan[name] for name in ("job", "strategy", "clients", "train") if name in plan}


def _mapping(value: JSON) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _data(record: RunRecord, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Who took part with what; a count that is smaller than the smallest cell is told as such."""
    cell = _cell(plan)
    answered = Counter(site for row in record.rounds for site in row.answered)
    failed = Counter(site for row in record.rounds for site in row.failures)
    shown = {site for row in record.rounds for site in row.sites}
    compared = record.extra.get("comparison")
    rows = [row for row in compared if isinstance(row, Mapping)] if isinstance(compared, Sequence) and not isinstance(compared, str) else []
    known = {str(row["site"]): row.get("examples") for row in rows if row.get("kind") == "alone" and "site" in row}
    sites = {
        site: {"answered": answered[site], "failed": failed[site], "examples": _examples(known.get(site), cell, at_least=site in shown)}
        for site in participants(record)
    }
    last = next((row for row in reversed(record.rounds) if row.phase == "train" and row.answered), None)
    whole = f"{last.weight:.0f}" if last is not None and _weighed(plan) and last.weight >= cell else ""
    return {"dataset": plan.get("job", {}).get("data", "default"), "smallest_cell": cell, "examples_in_last_round": whole, "sites": sites}


def _cell(plan: Mapping[str, Any]) -> int:
    """Of how few people no number may tell."""
    return int(plan.get("evaluate", {}).get("min_cell", SMALLEST))


def _weighed(plan: Mapping[str, Any]) -> bool:
    """Whether the weight of a round of training is a number of examples: not where all sites count the same, as they do under privacy."""
    return "privacy" not in plan and plan.get("strategy", {}).get("weighting", "examples") == "examples"


def _examples(count: JSON, cell: int, *, at_least: bool) -> str:
    """How many examples a site has, as far as it may be told."""
    if isinstance(count, int):
        return str(count) if count >= cell else f"fewer than {cell}"
    return f"at least {cell}" if at_least else ""


def _privacy(record: RunRecord, plan: Mapping[str, Any], statements: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What was promised, and what each site states to have spent."""
    stated = {str(one.get("site")): one for one in statements if one.get("run") == record.run}
    wanted = ("epsilon", "delta", "unit", "relation", "sampling", "accountant", "not_covered")
    sites = {site: {name: one[name] for name in wanted if name in one} for site, one in sorted(stated.items())}
    promised = {name: value for name, value in _mapping(record.extra.get("privacy")).items() if name != "sites"}
    spent = _mapping(_mapping(record.extra.get("privacy")).get("sites"))
    sites |= {site: {"epsilon": epsilon} for site, epsilon in spent.items() if site not in sites}
    return {"enabled": "privacy" in plan or bool(promised), "promised": promised, "sites": sites, "ledgers": _mapping(record.extra.get("ledgers"))}


def _metrics(record: RunRecord) -> list[dict[str, Any]]:
    """Each metric of all sites together, and its spread over those that may be seen, with the worst one by name."""
    newest: dict[tuple[str, str], dict[str, float]] = {}
    for row in record.rounds:
        for site, values in row.sites.items():
            for name, value in values.items():
                newest.setdefault((row.phase, name), {})[site] = value
    found = []
    for (phase, name), value in finals(record).items():
        sites = newest.get((phase, name), {})
        worst = (min if name in HIGHER_IS_BETTER else max)(sites, key=sites.__getitem__, default="")
        found.append({"phase": phase, "name": name, "all": value, "worst_site": worst, "worst": sites.get(worst), "sites": sites})
    return found


def card_files(told: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Leave a card as ``card.html``, ``card.md`` and ``card.json`` in a folder, in place of one that nobody has touched; returns where each lies.

    Raises:
        ConfigError: the folder cannot be written.
        Conflict: a card lies there that people have filled in.
    """
    if there := _touched(folder):
        hint = "move it away, or name another folder"
        raise Conflict("there is a card already", where=str(there), why="what people have filled in would be lost", hint=hint)
    return replaced(folder, _texts(told))


def card_beside(record: RunRecord, folder: Path) -> dict[str, Path]:
    """Leave the card of a run beside its other files; one that people have filled in stays as it is, and none is returned.

    Raises:
        ConfigError: the folder cannot be written.
    """
    with suppress(Conflict):
        return card_files(model_card(record), folder)
    return {}


def _texts(told: Mapping[str, Any]) -> dict[str, str]:
    text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return {"card.html": card_page(told), "card.md": markdown(told), "card.json": text}


def _touched(folder: Path) -> Path | None:
    """What of a card in a folder is not as it was left there, or cannot be told to be."""
    there = [path for name in FILES if (path := folder / name).exists()]
    try:
        left = _texts(json.loads((folder / "card.json").read_text("utf-8")))
        return next((path for path in there if path.read_bytes() != left[path.name].encode("utf-8", "replace")), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return next(iter(there), None)


# ------------------------------------------------------------------------------------------------------------ to be read


def _parts(told: Mapping[str, Any]) -> Iterator[Part]:
    model, data, privacy = told["model"], told["data"], told["privacy"]
    yield Part("Intended use", [(text, told["intended_use"][name] or "to be filled in") for name, text in TO_FILL.items()])
    state = f"{model['status']}{': ' if model['reason'] else ''}{model['reason']}"
    yield Part(
        "Model", [("run", model["run"]), ("status", state), ("SHA-256", model["sha256"] or "no model"), ("signature", "none; compare the SHA-256")]
    )
    rows = [_site(site, facts, privacy["sites"].get(site, {})) for site, facts in data["sites"].items()]
    note = f"Dataset '{data['dataset']}'. A count of fewer than {data['smallest_cell']} is not told; an empty one is not known to the coordinator."
    note += f" Examples in the last round of training: {data['examples_in_last_round']}." if data["examples_in_last_round"] else ""
    yield Part("Data", rows, ("Site", "Answers", "Failures", "Examples", "Epsilon", "Delta"), note)
    training = told["training"]
    timed = [("rounds", str(training["rounds"])), ("time", duration(training["seconds"] or 0.0))]
    yield Part("Training", [*timed, *flat({name: _exact(training[name]) for name in training if name not in TIMED}).items()])
    told_privacy = "Epsilon of a site is what its own ledger states; where it is empty, ask there: fedscale privacy statement RUN."
    promised = list(flat(privacy["promised"]).items()) or [("differential privacy", "yes" if privacy["enabled"] else "none")]
    yield Part("Privacy", promised, note=told_privacy if privacy["enabled"] else "")
    yield Part("Secure aggregation", list(flat(told["secure_aggregation"]).items()))
    yield Part("Metrics", [_metric(each) for each in told["metrics"]], ("Metric", "All sites", "Worst site", "Its value", "Sites shown"))
    yield Part("Contributors", list(_contributors(told["rounds"])), ("Phase", "Rounds", "Sites that answered", "Failed"))
    traffic = f"{data_size(told['traffic']['bytes_up'])} from the sites, {data_size(told['traffic']['bytes_down'])} to them"
    hashes = [(f"{name} hash", text) for name, text in flat(told["hashes"]).items() if text]
    yield Part("To repeat it", [("traffic", traffic), *hashes, *flat(told["versions"]).items()])


def _exact(setting: JSON) -> JSON:
    """A setting as it was written; what was measured is rounded, this is not."""
    if isinstance(setting, Mapping):
        return {name: _exact(entry) for name, entry in setting.items()}
    return f"{setting:g}" if isinstance(setting, float) else setting


def _site(site: str, facts: Mapping[str, Any], spent: Mapping[str, Any]) -> list[str]:
    joined = {**facts, **spent}
    return [site, *(plain_text(joined.get(name)) for name in PER_SITE)]


def _metric(each: Mapping[str, Any]) -> list[str]:
    worst = number(each["worst"]) if each["worst"] is not None else ""
    name = f"{metric_title(each['name'])}, {FULL_NAMES[each['phase']]}"
    return [name, number(each["all"]) if each["all"] is not None else "", each["worst_site"], worst, str(len(each["sites"]))]


def _contributors(rounds: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Rounds in which the same number answered and the same sites failed, together."""
    alike: dict[tuple[str, int, str], list[int]] = {}
    for row in rounds:
        failed = ", ".join(f"{site} ({cause})" for site, cause in row["failed"].items())
        alike.setdefault((FULL_NAMES[row["phase"]], row["answered"], failed), []).append(row["round"])
    for (phase, answered, failed), numbers in alike.items():
        yield [phase, ranges(numbers), str(answered), failed]


def markdown(told: Mapping[str, Any]) -> str:
    """A card as Markdown, to be filled in and kept beside the model."""
    blocks = [f"# Model card: {_escaped(told['model']['name'])}"]
    for part in _parts(told):
        head = part.head or ("", "")
        lines = [f"| {' | '.join(map(_escaped, row))} |" for row in (head, *part.rows)]
        lines.insert(1, "|" + " --- |" * len(head))
        blocks += [f"## {part.title}", *([part.note] if part.note else []), "\n".join(lines) if part.rows else "none"]
    fence = "`" * max(3, *(len(run) + 1 for run in _ticks(told["plan"])))
    return "\n\n".join([*blocks, f"## Plan\n\n{fence}toml\n{told['plan'].strip()}\n{fence}"]) + "\n"


def _escaped(text: str) -> str:
    """A text that ends no cell, begins no markup, and steers no terminal it is shown in."""
    printable = "".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return " ".join("".join(f"\\{c}" if c in "\\|`*_<>[]#" else c for c in printable).split())


def _ticks(text: str) -> list[str]:
    """The runs of backticks in a text."""
    return "".join(c if c == "`" else " " for c in text).split() or [""]


def card_page(told: Mapping[str, Any]) -> str:
    """A card as a page of its own in the style of the reports, to be printed."""
    head = tag("header", tag("p", "Model card", class_="kicker"), tag("h1", told["model"]["name"] or told["model"]["run"]))
    plan = section("Plan", tag("pre", told["plan"]))
    return document(f"{told['model']['name']}: model card", head, *map(_section, _parts(told)), plan)


def _section(part: Part) -> Markup:
    note = tag("p", part.note, class_="note") if part.note else ""
    if not part.rows:
        return section(part.title, note, tag("p", "none", class_="empty"))
    if not part.head:
        return section(part.title, note, pairs((name, text) for name, text in part.rows))
    rows = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", text) for text in row[1:])) for row in part.rows]
    return section(part.title, note, table(part.head, rows))
