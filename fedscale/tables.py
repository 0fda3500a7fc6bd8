"""TOML files read into validated models: every problem with file, line and the closest name that would have been right."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from fedscale.errors import FedscaleError, PlanError

Model = TypeVar("Model", bound=BaseModel)

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
APP = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
FORMS = {
    NAME: "a name is 1 to 63 letters, digits, '.', '_' and '-', a letter or digit first",
    APP: "write module:attribute, as in 'app:app'",
    "model_type": "this is a table, with settings of its own",
    "tuple_type": 'this is a list, as in ["accuracy"]',
}


@dataclass(frozen=True)
class Document:
    """A TOML file that has been parsed; make one with ``Document.of`` or ``Document.load``.

    Args:
        file: its name in errors.
        tree: what stands in it, with the overrides applied.
        lines: where each table and key stands: dotted path to line number, or to the override.
        forms: what to say of a value that does not fit a pattern, by the pattern; besides ``FORMS``.
    """

    file: str
    tree: dict[str, Any]
    lines: Mapping[tuple[str, ...], str]
    forms: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str, file: str, overrides: Iterable[str] = (), forms: Mapping[str, str] | None = None) -> Document:
        """Parse a text; ``overrides`` are ``a.b=value`` settings that win over it, values in TOML (bare words are strings).

        Raises:
            PlanError: no TOML, or an override that cannot be applied.
        """
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            place = re.search(r"line (\d+)", str(error))
            line = place[1] if place else text.count("\n") + 1
            raise PlanError("not valid TOML", where=f"{file}:{line}", why=str(error)) from None
        lines = _lines(text)
        for override in overrides:
            lines |= {_override(tree, override): f"--set {override}"}
        return cls(file, tree, lines, forms or {})

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = (), forms: Mapping[str, str] | None = None) -> Document:
        """Parse a file.

        Raises:
            PlanError: unreadable, or as ``of``.
        """
        try:
            # Editors of some systems begin a text with a mark of its encoding.
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            hint = "give the path of a job.toml"
            raise PlanError("cannot read the plan", where=str(path), why=error.strerror or type(error).__name__, hint=hint) from None
        except UnicodeDecodeError:
            raise PlanError("cannot read the plan", where=str(path), why="it is not UTF-8 text", hint="save it as UTF-8") from None
        return cls.of(text, str(path), overrides, forms)

    def read(self, model: type[Model], within: str = "", besides: Iterable[str] = ()) -> Model:
        """The document, or its table ``within``, as a model.

        Args:
            model: what it must be.
            within: a table of the document; all of it without.
            besides: tables that are somebody else's.

        Raises:
            PlanError: with file and line of the first problem.
        """
        prefix = (within,) if within else ()
        tree = self.tree.get(within, {}) if within else {name: table for name, table in self.tree.items() if name not in besides}
        try:
            return model.model_validate(tree)
        except ValidationError as error:
            raise self.explained(error, model, prefix) from None
        except FedscaleError as error:
            where = self.where((*prefix, *error.where.split(".")))
            raise PlanError(error.what, where=where, why=error.why, hint=error.hint) from None

    def where(self, path: tuple[str, ...]) -> str:
        """``file:line`` of the closest place to a dotted path that the text names."""
        while path:
            if path in self.lines:
                return self.lines[path] if self.lines[path].startswith("--set") else f"{self.file}:{self.lines[path]}"
            path = path[:-1]
        return self.file

    def explained(self, error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...] = ()) -> PlanError:
        """The first problem of a validation as an error people can act on."""
        problems = error.errors()
        first = problems[0]
        if first["type"] == "missing":
            # A mistyped name is missing and unknown, and the latter says what was meant.
            first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), first)
        inside = self._inside(prefix, first["loc"])
        path = (*prefix, *inside)
        name, hint = ".".join(path), ""
        problem, forms = first.get("ctx", {}).get("pattern", first["type"]), {**FORMS, **self.forms}
        what = f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}".replace("value error, ", "")
        if problem in forms:
            what = f"{name}: {forms[problem]}"
            known = _fields(model, inside) if problem == "model_type" else []
            hint = f"known: {', '.join(known)}" if known else ""
        elif first["type"] == "extra_forbidden":
            what, hint = f"'{name}' is not a setting", suggest(path[-1], _fields(model, inside[:-1]))
        elif first["type"] == "missing":
            what = f"'{name}' is missing"
        more = f"and {len(problems) - 1} more" if len(problems) > 1 else ""
        return PlanError(what, where=self.where(path), why=more, hint=hint)

    def _inside(self, prefix: tuple[str, ...], places: Iterable[object]) -> tuple[str, ...]:
        """Where a problem is, without what only pydantic's own words for kinds of values say."""
        found: list[str] = []
        tree: Any = self.tree
        for part in prefix:
            tree = tree.get(part, {})
        for place in map(str, places):
            if place.isidentifier() or (isinstance(tree, dict) and place in tree):
                found.append(place)
                tree = tree.get(place) if isinstance(tree, dict) else None
        return tuple(found)


class Section(BaseModel):
    """A table of settings, frozen, in which nothing unknown passes; what is wrong with one that is made in Python is said as of one in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **settings: Any) -> None:
        """Check the settings.

        Raises:
            PlanError: one is missing, unknown or out of its range.
        """
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise Document(type(self).__name__, {}, {}).explained(error, type(self)) from None

    # A table within another is checked as part of it and not by this, so that an error names the whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def suggest(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` or the list of what is known."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


def _lines(text: str) -> dict[tuple[str, ...], str]:
    """Where each table and key of a TOML text stands: dotted path to line number."""
    found: dict[tuple[str, ...], str] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([\w.\-\"' ]+?)\s*\]\]?", line):
            table = tuple(part.strip(" \"'") for part in header[1].split("."))
            found.setdefault(table, str(number))
        elif key := re.match(r"\s*([\w.\-\"']+)\s*=", line):
            path = (key[1].strip("\"'"),) if key[1][0] in "\"'" else tuple(part.strip("\"'") for part in key[1].split("."))
            found[*table, *path] = str(number)
    return found


def dotted(name: str) -> tuple[str, ...]:
    """The parts of ``a.b`` or, where a part holds a dot itself, ``a."b.c"``."""
    return tuple(quoted or bare.strip() for quoted, bare in re.findall(r'(?:^|\.)\s*(?:"([^"]*)"\s*(?=\.|$)|([^.]*))', name))


def _override(tree: dict[str, Any], setting: str) -> tuple[str, ...]:
    """Apply ``a.b=value`` to the tree and return the path."""
    key, equals, value = setting.partition("=")
    path = dotted(key)
    if not equals or not all(path):
        raise PlanError(f"cannot read the setting '{setting}'", hint="write it as table.key=value")
    try:
        parsed = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise PlanError(f"cannot apply the setting '{setting}'", why=f"'{part}' is not a table")
    tree[path[-1]] = parsed
    return path


def _fields(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """Names of the settings in a table of a model."""
    parts = iter(path)
    for part in parts:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
            next(parts, None)  # the name that the file's author gave
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not kinds:
            return []
        model = kinds[0]
    return list(model.model_fields)
