"""What goes to which stream, in which form, for a person, a pipe or a program."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fedscale import console, errors
from fedscale.errors import ConfigError, FedscaleError, NotFound
from fedscale.progress import Bar
from tests.command import Terminal, caught

PAINT = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.parametrize("kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, FedscaleError)])
def test_an_error_ends_with_its_exit_code(kind: type[FedscaleError]) -> None:
    with caught() as (out, err):
        code = console.refuse(kind("it broke"), as_json=False)
    assert code == kind.exit_code
    assert (out.getvalue(), err.getvalue()) == ("", "error: it broke\n")


def test_an_error_says_what_where_why_and_what_next() -> None:
    with caught() as (_, err):
        console.refuse(ConfigError("no such plan", where="job.toml:3", why="it is empty", hint="run: fedscale init"), as_json=False)
    assert err.getvalue().splitlines() == ["error: no such plan", "  where job.toml:3", "  why   it is empty", "  next  run: fedscale init"]


def test_an_error_as_an_envelope_is_alone_on_stdout() -> None:
    with caught() as (out, err):
        code = console.refuse(NotFound("no run 'x'", hint="did you mean 'y'?"), as_json=True)
    told = {"type": "NotFound", "what": "no run 'x'", "where": "", "why": "", "hint": "did you mean 'y'?", "exit_code": 6}
    assert (code, err.getvalue()) == (6, "")
    assert json.loads(out.getvalue()) == {"ok": False, "error": told}


def test_a_failed_command_may_have_a_result() -> None:
    with caught() as (out, _):
        console.refuse(NotFound("gone"), as_json=True, data={"rounds": 3})
    assert json.loads(out.getvalue())["data"] == {"rounds": 3}


def test_results_go_to_stdout_for_people_or_programs() -> None:
    with caught() as (out, err):
        console.emit({"a": 1}, "one a", as_json=False)
        console.emit({"a": "é"}, "one a", as_json=True)
    assert out.getvalue() == 'one a\n{"ok": true, "data": {"a": "é"}}\n'
    assert err.getvalue() == ""


@pytest.mark.parametrize(
    ("value", "said"),
    [(True, "yes"), (False, "no"), (None, "none"), ([], "none"), (("a", "b"), "a, b"), ([1, 2], "1, 2"), (0, "0"), ("", ""), (4.5, "4.5")],
)
def test_facts_are_told_in_words(value: object, said: str) -> None:
    with caught() as (out, _):
        console.emit({}, console.facts({"name": value}), as_json=False)
    assert out.getvalue().split(maxsplit=1)[1:] == ([f"{said}\n"] if said else [])


def test_an_envelope_is_strict_json() -> None:
    with caught(), pytest.raises(ValueError, match="JSON compliant"):
        console.emit({"auc": float("nan")}, "", as_json=True)


def test_notes_and_lines_go_their_own_ways() -> None:
    with caught() as (out, err):
        console.note("working")
        console.line({"kind": "opened"})
    assert (out.getvalue(), err.getvalue()) == ('{"kind": "opened"}\n', "working\n")


def test_off_a_terminal_nothing_is_wrapped_or_painted() -> None:
    long = "x" * 500
    with caught() as (out, err):
        console.emit({}, console.table(("name", ">count"), [(long, 3), ("[bold]y[/bold] :smile:", 4)]), as_json=False)
        console.note(long)
    header, *rows = [line for line in out.getvalue().splitlines() if line.strip()]
    assert header.split() == ["name", "count"]
    assert any(long in row and row.split()[-1] == "3" for row in rows)
    assert "[bold]y[/bold] :smile:" in out.getvalue()
    assert not PAINT.search(out.getvalue() + err.getvalue())
    assert err.getvalue() == long + "\n"


def test_on_a_terminal_errors_are_painted_unless_colour_is_unwanted(monkeypatch: pytest.MonkeyPatch) -> None:
    with caught(err=Terminal()) as (_, painted):
        console.refuse(ConfigError("no"), as_json=False)
    monkeypatch.setenv("NO_COLOR", "1")
    with caught(err=Terminal()) as (_, plain):
        console.refuse(ConfigError("no"), as_json=False)
    assert "31m" in painted.getvalue()
    assert "31m" not in plain.getvalue()


@pytest.mark.parametrize("hostile", ["\x1b]0;owned\x07", "\x1b[2J", "a\rb", "\u202egnp.exe", "\x9b31m"])
def test_texts_from_elsewhere_cannot_steer_the_terminal(hostile: str) -> None:
    with caught(Terminal(), Terminal()) as (out, err):
        console.emit({}, console.table(("site",), [(hostile,)]), as_json=False)
        console.emit({}, console.facts({"site": hostile}), as_json=False)
        console.note(hostile)
        console.refuse(ConfigError(hostile, where=hostile, why=hostile, hint=hostile), as_json=False)
        with Bar("run") as bar:
            bar.note(hostile)
            bar.update(0.5, hostile, 0.0)
    assert console.clean(hostile) != hostile
    assert hostile not in out.getvalue() + err.getvalue()


def test_clean_leaves_words_of_any_language_and_line_ends() -> None:
    assert console.clean("Zürich 病院\nnext") == "Zürich 病院\nnext"
    assert console.clean(3) == "3"


def test_the_closest_word_is_suggested() -> None:
    assert console.closest("hart", ["heart", "lung"]) == "did you mean 'heart'?"
    assert console.closest("zzz", ["heart", "lung"]) == "known: heart, lung"
    assert console.closest("zzz", []) == "known: none"


def test_a_crash_is_kept_where_only_its_owner_reads_it(tmp_path: Path) -> None:
    try:
        raise ZeroDivisionError("secret value 42")
    except ZeroDivisionError as error:
        with caught() as (out, err):
            code = console.crash(error, as_json=False)
    (kept,) = (tmp_path / "state/fedscale").iterdir()
    assert code == 70
    assert out.getvalue() == ""
    assert str(kept) in err.getvalue()
    assert "ZeroDivisionError" in err.getvalue()
    assert "secret value" not in err.getvalue()
    assert "test_console.py" in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0


def test_a_crash_is_kept_elsewhere_when_the_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with caught() as (out, _):
        console.crash(KeyError("x"), as_json=True)
    kept = Path(json.loads(out.getvalue())["error"]["hint"].rpartition(" ")[2])
    assert "KeyError" in kept.read_text()
    kept.unlink()


def test_an_interrupt_says_how_to_go_on() -> None:
    with caught() as (out, err):
        assert console.interrupted("resume with: x", as_json=False) == 130
        assert console.interrupted("", as_json=False) == 130
    assert (out.getvalue(), err.getvalue()) == ("", "interrupted; resume with: x\ninterrupted\n")
    with caught() as (out, err):
        assert console.interrupted("again", as_json=True) == 130
    assert json.loads(out.getvalue())["error"]["exit_code"] == 130


def test_a_dumb_terminal_is_not_animated(monkeypatch: pytest.MonkeyPatch) -> None:
    with caught(err=Terminal()):
        assert console.animated()
        monkeypatch.setenv("TERM", "dumb")
        assert not console.animated()
    with caught():
        assert not console.animated()
