"""The command line as a whole: help, laziness, mistakes, exit codes; and the verbs that belong to no room."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import os
import re
import shlex
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import structlog
import typer

import fedscale as package
from fedscale import cli, console, errors, identity
from fedscale.cli import doctor, init, lazy, options
from fedscale.cli.examples import EXAMPLES, EXIT_CODES
from fedscale.cli.lazy import Entry
from fedscale.cli.logs import configure
from fedscale.cli.rounds import failure, fraction, results, round_line, totals
from fedscale.errors import Cause, ConfigError, Failure, FedscaleError
from fedscale.flower.deployment import job_of
from fedscale.plan import Plan
from fedscale.record import RoundRecord, RunRecord
from tests.command import Terminal, caught, fedscale, verbs

VERBS = verbs()
GROUPS = ["", *sorted({path.rpartition(" ")[0] for path in VERBS if " " in path})]
PAINT = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# What a command line that only helps has no business to load.
HEAVY = {"torch", "numpy", "pydantic", "sqlmodel", "sqlalchemy", "alembic", "grpc", "cryptography", "structlog", "safetensors", "sklearn"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in [name for name in os.environ if name.startswith("FEDSCALE_")]:
        monkeypatch.delenv(name)


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make ``fedscale doctor`` raise."""

    def doctor(*, json: options.Json = False) -> None:
        raise error

    monkeypatch.setattr(doctor_module(), "doctor", doctor)


def doctor_module() -> Any:
    return sys.modules["fedscale.cli.doctor"]


def loaded_by(*words: str) -> set[str]:
    """Top-level packages that a fresh process has loaded after a command."""
    script = f"import json, sys\nfrom fedscale.cli import main\nmain({list(words)!r})\nprint()\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


# ----------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("path", sorted(VERBS))
def test_every_verb_explains_itself_and_its_options(path: str) -> None:
    command = VERBS[path]
    assert command.help
    documented = [param for param in command.params if isinstance(param, click.Option)]
    assert [param.name for param in documented if not param.help] == []
    done = fedscale(*path.split(), "--help")
    assert (done.code, done.err) == (0, "")
    assert f"fedscale {path}" in done.out
    assert all(max(param.opts, key=len) in done.out for param in documented)


@pytest.mark.parametrize("path", sorted(VERBS))
def test_every_verb_shows_an_example_that_could_be_typed(path: str) -> None:
    words = EXAMPLES[path].split()
    assert " ".join(words).startswith(path)
    assert VERBS[path].make_context("fedscale", shlex.split(EXAMPLES[path])[len(path.split()) :], resilient_parsing=False).command is VERBS[path]
    assert f"Example: fedscale {EXAMPLES[path]}"[:60] in " ".join(fedscale(*path.split(), "--help").out.split())


def test_there_are_no_examples_of_other_verbs_and_exit_codes_are_told() -> None:
    assert set(EXAMPLES) == set(VERBS)
    assert EXIT_CODES in " ".join(fedscale("--help").out.split())


@pytest.mark.parametrize("path", GROUPS)
def test_every_noun_lists_its_verbs(path: str) -> None:
    done = fedscale(*path.split(), "--help")
    listed = {verb.removeprefix(path).split()[0] for verb in VERBS if verb.startswith(path)}
    assert done.code == 0
    assert all(name in done.out for name in listed)


@pytest.mark.parametrize("path", sorted(VERBS))
def test_a_table_says_what_the_verb_itself_says(path: str) -> None:
    parent: Any = typer.main.get_command(cli.app)
    *nouns, verb = path.split()
    for noun in nouns:
        parent = parent.commands[noun]
    assert parent.entries[verb].help == inspect.cleandoc(VERBS[path].help or "").splitlines()[0]


@pytest.mark.parametrize("path", sorted(VERBS))
def test_verbs_share_the_spelling_of_shared_options(path: str) -> None:
    spelled = {param.name: max(param.opts, key=len) for param in VERBS[path].params if isinstance(param, click.Option)}
    shared = {"json": "--json", "dry_run": "--dry-run", "home": "--home", "profile": "--profile", "settings": "--set"}
    assert {name: spelled[name] for name in shared if name in spelled} == {name: text for name, text in shared.items() if name in spelled}


STREAMS = {"node start", "server start"}
CHANGE = (
    {"init", "server init", "project create", "project invite", "project revoke", "node join", "node data add", "node data remove"}
    | {
        "node policy set",
        "node policy unset",
        "node pause",
        "node resume",
        "privacy free",
        "server user add",
        "server user remove",
    }
    | {f"run {verb}" for verb in ("submit", "lead", "stop", "pause", "resume")}
)


@pytest.mark.parametrize("path", sorted(VERBS))
def test_what_changes_something_can_be_tried_and_what_answers_answers_programs(path: str) -> None:
    names = {param.name for param in VERBS[path].params}
    assert ("dry_run" in names) == (path in CHANGE)
    assert "json" in names or path in STREAMS


def test_no_words_at_all_show_the_help() -> None:
    done = fedscale()
    assert done.code == 2
    assert "simulate" in done.out + done.err


def test_the_version() -> None:
    done = fedscale("--version")
    assert (done.code, done.out, done.err) == (0, f"fedscale {package.__version__}\n", "")


# ------------------------------------------------------------------------------------------------------------- laziness


@pytest.mark.parametrize("words", [(), ("run",), ("node",), ("node", "data"), ("server",), ("project",)], ids=" ".join)
def test_help_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    assert loaded_by(*words, "--help") & HEAVY == set()


@pytest.mark.parametrize("words", [("run", "list"), ("project", "list"), ("server", "status")], ids=" ".join)
def test_asking_a_coordinator_loads_neither_numbers_nor_a_database(words: tuple[str, ...], tmp_path: Path) -> None:
    loaded = loaded_by(*words, "--profile", str(tmp_path))
    assert "grpc" in loaded
    assert loaded & (HEAVY - {"grpc", "cryptography"}) == set()


# They read and write a database of this machine themselves; all others ask somebody who has it open.
KEEPERS = {f"server user {verb}" for verb in ("add", "list", "remove")} | {f"privacy {verb}" for verb in ("ledger", "spent", "statement")}


@pytest.mark.parametrize("path", sorted(VERBS))
def test_no_verb_imports_what_trains_or_stores_for_its_help(path: str) -> None:
    stores = set() if path in KEEPERS | {"node receipts"} else {"sqlmodel", "alembic"}
    assert loaded_after_import(path) & ({"torch", "sklearn"} | stores) == set()


def loaded_after_import(path: str) -> set[str]:
    """What the module of a verb imports at its top, followed through our own modules that are not asked for later."""
    callback: Any = VERBS[path].callback
    return imports_of(inspect.getmodule(callback).__file__, set())  # type: ignore[union-attr,arg-type]


def imports_of(file: str, seen: set[str]) -> set[str]:
    if file in seen:
        return set()
    seen.add(file)
    found: set[str] = set()
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            found.add(name.partition(".")[0])
            module = sys.modules.get(name)
            if name.startswith("fedscale") and module is not None and module.__file__:
                found |= imports_of(module.__file__, seen)
    return found


@pytest.mark.parametrize(
    ("words", "completed"), [("fedscale s", {"simulate", "server"}), ("fedscale run su", {"submit"}), ("fedscale node data ", {"add"})]
)
def test_shells_complete_nouns_and_verbs(
    words: str, completed: set[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_FEDSCALE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - (not words.endswith(" "))))
    with pytest.raises(SystemExit):
        cli.main([])
    assert completed <= set(capsys.readouterr().out.split())


def test_a_loaded_command_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: Any = typer.main.get_command(cli.app)
    first = commands.commands["doctor"]
    monkeypatch.setattr(lazy, "load", pytest.fail)
    assert commands.commands["doctor"] is first


def test_a_group_of_one_is_still_a_group() -> None:
    made = typer.main.get_command(lazy.group("One.", {"doctor": Entry("fedscale.cli.doctor:doctor", "Check.")}))
    assert list(getattr(made, "commands", {})) == ["doctor"]


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "what", "hint"),
    [
        (["simulat"], "there is no command 'fedscale simulat'", "did you mean 'fedscale simulate'?"),
        (["run", "sumbit"], "there is no command 'fedscale run sumbit'", "did you mean 'fedscale run submit'?"),
        (["node", "data", "lst"], "there is no command 'fedscale node data lst'", "did you mean 'fedscale node data list'?"),
        (["zzz"], "there is no command 'fedscale zzz'", "see: fedscale --help"),
        (["--versoin"], "no such option", "did you mean '--version'?"),
        (["init", "--templat", "image"], "no such option", "did you mean '--template'?"),
        (["init", "--zzz"], "no such option", "see: fedscale init --help"),
        (["init", "--template", "weather"], "'weather' is not one of", "see: fedscale init --help"),
        (["init", "--template", "tabluar"], "invalid value for '--template': 'tabluar' is not one of", "did you mean 'tabular'?"),
        (["simulate"], "missing argument", "see: fedscale simulate --help"),
        (["simulate", "job.toml", "--clients", "0"], "0 is not in the range", "see: fedscale simulate --help"),
        (["run", "watch", "r1", "--after", "x"], "'x' is not a valid int", "see: fedscale run watch --help"),
    ],
)
def test_a_mistyped_command_gets_a_next_step(words: list[str], what: str, hint: str) -> None:
    done = fedscale(*words)
    assert (done.code, done.out) == (2, "")
    assert what in done.err
    assert done.err.splitlines()[-1] == f"  next  {hint}"
    as_json = fedscale(*words, "--json")
    assert (as_json.code, as_json.error["hint"]) == (2, hint)


@pytest.mark.parametrize("kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, FedscaleError)])
def test_errors_of_any_command_end_with_their_code(kind: type[FedscaleError], monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, kind("it broke", hint="mend it"))
    done, as_json = fedscale("doctor"), fedscale("doctor", "--json")
    assert (done.code, done.out, done.err) == (kind.exit_code, "", "error: it broke\n  next  mend it\n")
    assert (as_json.err, as_json.error["type"], as_json.error["exit_code"]) == ("", kind.__name__, kind.exit_code)


def test_a_bug_ends_with_70_and_leaves_its_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raising(monkeypatch, ZeroDivisionError("of patient seven"))
    done = fedscale("doctor")
    (kept,) = (tmp_path / "state/fedscale").iterdir()
    assert done.code == 70
    assert str(kept) in done.err
    assert "patient seven" not in done.err
    assert "ZeroDivisionError" in kept.read_text()


@pytest.mark.parametrize(("hint", "told"), [("", "interrupted\n"), ("go on with: x", "interrupted; go on with: x\n")])
def test_an_interrupt_ends_with_130(hint: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, KeyboardInterrupt(hint) if hint else KeyboardInterrupt())
    done, as_json = fedscale("doctor"), fedscale("doctor", "--json")
    assert (done.code, done.out, done.err) == (130, "", told)
    assert as_json.error["hint"] == hint


@pytest.mark.parametrize(("package", "extra"), [("torch", "torch"), ("sklearn.datasets", "demo"), ("psycopg", "postgres"), ("flwr", "flower")])
def test_a_missing_package_is_asked_for_by_its_extra(package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ModuleNotFoundError("gone", name=package))
    assert fedscale("doctor", "--json").error["hint"] == f"pip install 'fedscale-fl[{extra}]'"


def test_a_missing_package_of_ours_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ModuleNotFoundError("gone", name="fedscale.gone"))
    assert fedscale("doctor").code == 70


@pytest.mark.parametrize(("code", "step"), [(13, "run as its owner"), (28, "free some space"), (30, "can be written"), (24, "ulimit"), (5, "")])
def test_what_the_system_refuses_comes_with_a_next_step(code: int, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, OSError(code, os.strerror(code), "/etc/x"))
    hint = fedscale("doctor", "--json").error["hint"]
    assert step in hint
    assert bool(step) == bool(hint)


def test_what_the_system_refuses_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, PermissionError(13, "Permission denied", "/etc/x"))
    error = fedscale("doctor", "--json").error
    assert (error["type"], error["what"], error["where"]) == ("ConfigError", "the system refused: Permission denied", "/etc/x")


@pytest.mark.parametrize(("hint", "next_step"), [("", "free some space, or choose a place with more"), ("ask the owner", "ask the owner")])
def test_an_error_of_ours_behind_which_the_system_refused_has_a_next_step(monkeypatch: pytest.MonkeyPatch, hint: str, next_step: str) -> None:
    error = ConfigError("a file cannot be written", hint=hint)
    error.__cause__ = OSError(28, "No space left on device")
    raising(monkeypatch, error)
    assert fedscale("doctor", "--json").error["hint"] == next_step


def test_the_module_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "fedscale", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no command 'fedscale nothing'")


def test_a_terminal_that_lacks_a_letter_gets_an_escape(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedscale", "init", "Zürich-病院", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == r"would write Z\xfcrich-\u75c5\u9662/app.py"


def test_a_narrow_terminal_folds_and_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    with caught(Terminal(), Terminal()) as (out, _):
        assert cli.main(["doctor", "--server-home", "none", "--node-home", "none"]) == 0
    assert max(len(PAINT.sub("", line)) for line in out.getvalue().splitlines()) <= 20


def test_a_command_closed_early_does_not_fail_loudly() -> None:
    done = subprocess.run(f"{sys.executable} -m fedscale --help | head -n 1", shell=True, capture_output=True, text=True, check=True)  # noqa: S602
    assert "Traceback" not in done.stderr


# ----------------------------------------------------------------------------------------------------------------- init

TEMPLATES = ["tabular", "image", "text", "survival", "sklearn", "hospitals"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_becomes_a_job(template: str, tmp_path: Path) -> None:
    done = fedscale("init", "My Job", "--template", template, "--json")
    assert done.data == {"template": template, "files": ["My Job/app.py", "My Job/job.toml"], "dry_run": False}
    plan = Plan.load(tmp_path / "My Job/job.toml")
    assert plan.job.name == "my-job"
    names = {getattr(node, "name", "") for node in ast.parse((tmp_path / "My Job/app.py").read_text()).body}
    assert "population" in names
    assert names & {"model", "Reader", "Logistic"}
    assert "fedscale simulate 'My Job/job.toml'" in done.err
    steps = re.findall("^#   fedscale (.*)", (tmp_path / "My Job/job.toml").read_text(), flags=re.MULTILINE)
    assert [" ".join(step.split()[:2]) for step in steps] == ["simulate job.toml", "run submit", "run submit"]


def test_the_template_of_a_flower_app_is_a_directory(tmp_path: Path) -> None:
    done = fedscale("init", "My App", "--template", "flower", "--json")
    own = ["app/__init__.py", "app/client_app.py", "app/server_app.py", "app/task.py"]
    assert done.data["files"] == [f"My App/{name}" for name in (*own, "pyproject.toml")]
    assert "try it: fedscale simulate 'My App'" in done.err
    app, plan = job_of(tmp_path / "My App")
    assert (app.name, app.nodes, plan.strategy.rounds, plan.clients.min_per_round) == ("my-app", 4, 8, 2)
    steps = re.findall("^#   fedscale (.*)", (tmp_path / "My App/pyproject.toml").read_text(), flags=re.MULTILINE)
    assert [" ".join(step.split()[:2]) for step in steps] == ["simulate .", "run submit", "run lead"]


@pytest.mark.requires("torch")
@pytest.mark.parametrize("template", [template for template in TEMPLATES if template != "sklearn"])
def test_a_site_needs_nothing_but_torch_for_the_app_of_a_template(template: str, tmp_path: Path) -> None:
    fedscale("init", "job", "--template", template)
    script = "import sys; sys.modules['sklearn'] = None; sys.path.insert(0, 'job'); import app; print(type(app.app).__name__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("App\n", "")


@pytest.mark.parametrize("template", [*TEMPLATES, "flower"])
def test_a_template_is_clean_code(template: str, tmp_path: Path, root: Path) -> None:
    files = fedscale("init", "job", "--template", template, "--json").data["files"]
    code = [path for path in files if path.endswith(".py")]
    ruff = [sys.executable, "-m", "ruff"]
    for check in (["check", "--config", str(root / "pyproject.toml"), "--ignore", "INP001,I001"], ["format", "--check", "--line-length", "150"]):
        done = subprocess.run([*ruff, *check, *code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_init_can_be_tried_first(tmp_path: Path) -> None:
    done = fedscale("init", "job", "--dry-run")
    assert done.out == "would write job/app.py\nwould write job/job.toml\n"
    assert list(tmp_path.iterdir()) == []


def test_init_writes_nothing_over(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("mine")
    error = fedscale("init", "--json").error
    assert (error["type"], error["where"], error["exit_code"]) == ("Conflict", "job.toml", 6)
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]


def test_init_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert fedscale("init", "file/job", "--json").error["where"] == "file/job/app.py"


@pytest.mark.parametrize(
    ("folder", "name"), [("Heart Risk 2", "heart-risk-2"), ("_x_", "x"), ("Übungs-Fluß", "ubungs-fluss"), ("病院", "my-job"), ("a" * 60, "a" * 40)]
)
def test_a_job_is_named_after_its_folder(folder: str, name: str) -> None:
    assert init.job_name(Path(folder)) == name


# --------------------------------------------------------------------------------------------------------------- doctor


def checks(*words: object) -> dict[str, dict[str, str]]:
    done = fedscale("doctor", *words, "--json")
    data = json.loads(done.out)["data"]
    assert data["healthy"] == (done.code == 0)
    return {check["name"]: check for check in data["checks"]}


def test_the_doctor_looks_at_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOM_BYTES", 0)
    found = checks()
    cards = {name for name in found if name.startswith("gpu")}
    assert set(found) - cards == {"python", "grpc", "torch", "scikit-learn", "psycopg", "disk", "loopback", "ports", "database"}
    assert cards
    assert {name: check["state"] for name, check in found.items() if name not in cards | {"ports"} and check["state"] != "ok"} == {}
    assert "SQLite" in found["database"]["found"]
    assert "python" in fedscale("doctor").out


def test_a_fault_is_an_error_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FINE", doctor.FAULT)
    done = fedscale("doctor")
    assert done.code == 2
    assert "python" in done.out
    assert "checks failed" in done.err


def test_missing_packages_are_named_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {finding.name: finding for finding in doctor.packages()}
    assert {name: finding.state for name, finding in found.items()} == {
        "grpc": "fault",
        "torch": "warning",
        "scikit-learn": "warning",
        "psycopg": "ok",
    }
    assert "fedscale-fl[torch]" in found["torch"].hint


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str, torch: str = "2.13.0") -> list[doctor.Finding]:
    """What is found of the GPUs where the driver's command is a script and torch of that version."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: torch)
    return list(doctor.gpus())


TWO = "echo NVIDIA H200, 143771, 140288\necho Tesla T4, 15360, 512"


def test_gpus_are_listed_with_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert driver(tmp_path, monkeypatch, TWO) == [
        doctor.Finding("gpu 0", "ok", "NVIDIA H200, 140 GiB, 137 GiB free"),
        doctor.Finding("gpu 1", "ok", "Tesla T4, 15 GiB, 0 GiB free"),
    ]


def test_a_torch_that_cannot_use_the_gpu_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = driver(tmp_path, monkeypatch, TWO, "2.13.0+cpu")
    assert [finding.state for finding in found] == ["warning", "warning"]
    assert "install one with CUDA" in found[0].hint


@pytest.mark.parametrize("script", ["exit 9", "echo No devices were found", "exec sleep 60", "echo NVIDIA H200, [N/A], [N/A]"])
def test_a_driver_that_does_not_answer_is_a_warning(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DRIVER_SECONDS", 2.0)
    (found,) = driver(tmp_path, monkeypatch, script)
    assert (found.name, found.state, found.hint) == ("gpu", "warning", "look at: nvidia-smi")


def test_a_machine_without_a_driver_has_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = doctor.gpus()
    assert (found.state, found.hint) == ("ok", "")
    assert found.found.startswith("none")


def test_a_taken_port_is_a_warning_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(doctor, "TICKET_PORT", taken.getsockname()[1])
        found = checks()["ports"]
    assert found["state"] == "warning"
    assert f"{doctor.TICKET_PORT} taken" in found["found"]
    assert "fedscale server init --port" in found["hint"]


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOM_BYTES", 1 << 62)
    assert checks()["disk"]["state"] == "warning"


def test_a_machine_that_cannot_reach_itself_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_connection", refuse)
    found = checks()["loopback"]
    assert (found["state"], found["found"]) == ("fault", "Permission denied")


def test_a_broken_database_is_found(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/server.db").write_text("no database at all, and much longer than a header, so that it is read as one" * 20)
    assert checks("--server-home", tmp_path / "home")["database"]["state"] == "fault"


def test_the_coordinators_own_database_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    sqlite3.connect(tmp_path / "own.db").close()
    (tmp_path / "home/server.toml").write_text(f'database = "sqlite:///{tmp_path}/own.db"')
    assert checks("--server-home", tmp_path / "home")["database"]["state"] == "ok"
    (tmp_path / "home/server.toml").write_text(f'database = "sqlite:///{tmp_path}/none/own.db"')
    assert checks("--server-home", tmp_path / "home")["database"]["state"] == "fault"


def test_a_database_server_that_is_away_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text('database = "postgresql+psycopg://nobody@127.0.0.1:1/none"')
    found = checks("--server-home", tmp_path)["database"]
    assert (found["state"], "127.0.0.1" in found["found"]) == ("fault", False)


@pytest.mark.parametrize(("left", "state"), [(timedelta(days=30), "ok"), (timedelta(hours=1), "warning"), (timedelta(hours=-1), "fault")])
def test_certificates_are_told_by_the_time_they_have_left(tmp_path: Path, left: timedelta, state: str) -> None:
    now = datetime.now(UTC)
    authority = identity.new_authority("testers", now)
    (tmp_path / "deep").mkdir()
    certificate = authority.issue_server(identity.new_key().public_key(), ["localhost"], now, 60)
    (tmp_path / "deep/cert.pem").write_bytes(identity.certificate_pem(certificate))
    (tmp_path / "key.pem").write_bytes(authority.to_pems()[0])
    (found,) = doctor.certificates(tmp_path, certificate.not_valid_after_utc - left)
    assert (found.name, found.state) == (f"certificate {tmp_path / 'deep/cert.pem'}", state)
    assert bool(found.hint) == (state != "ok")
    (found,) = doctor.certificates(tmp_path, certificate.not_valid_before_utc - timedelta(days=2))
    assert (found.state, found.hint) == ("fault", "set this machine's clock")
    assert found.found.endswith(f"and this machine's clock says {certificate.not_valid_before_utc - timedelta(days=2):%Y-%m-%d %H:%M} UTC")


# --------------------------------------------------------------------------------------------------------------- rounds

LOST = Failure(Cause.LOST, "the connection broke", hint="see its log")


def record(**changes: Any) -> RunRecord:
    rounds = (
        RoundRecord(1, "train", ("north", "south"), {"west": LOST}, {"loss": 0.5}, {}, 9.0, 2.0, 1000, 2000),
        RoundRecord(1, "evaluate", ("north", "south"), {}, {"loss": 0.4, "auc": 0.9}, {"north": {"auc": 0.8}}, 9.0, 1.0, 10, 20),
    )
    values: dict[str, Any] = {"status": "completed", "reason": "", "nodes": ("north", "south", "west"), "rounds": rounds} | changes
    return RunRecord("r1", "risk", plan_toml="", plan_hash="", seconds=3.0, bytes_up=1010, bytes_down=2020, model_digest="", extra={}, **values)


@pytest.mark.parametrize(
    ("place", "done"),
    [
        ((0, 4, "init", 0.5), 0.0),
        ((1, 4, "train", 0.0), 0.0),
        ((1, 4, "train", 1.0), 0.1875),
        ((1, 4, "evaluate", 1.0), 0.25),
        ((4, 4, "evaluate", 1.0), 1.0),
    ],
)
def test_a_run_moves_on_with_its_rounds(place: tuple[int, int, str, float], done: float) -> None:
    assert fraction(*place) == pytest.approx(done)


def test_a_failure_in_one_line() -> None:
    assert failure({"cause": "data", "what": "no column 'age'", "where": "default", "hint": "add it"}) == "data: default: no column 'age'; add it"
    assert failure({}) == "unknown: "


def test_a_round_in_one_line() -> None:
    detail = {"answered": ["a", "b"], "failures": {"c": {}}, "metrics": {"auc": 0.9}, "seconds": 2.0, "bytes_up": 1000, "bytes_down": 500}
    assert round_line("train 1/3", detail) == "train 1/3       2 of 3 nodes  auc 0.900  2 s  1.5 kB"
    assert round_line("train 1/3", {}) == "train 1/3       0 of 0 nodes    0 s  0 B"


def test_results_show_all_sites_and_each() -> None:
    with caught() as (out, _):
        console.emit({}, results(record()), as_json=False)
    rows = {
        " ".join(line.split()[:-1]) if line.split()[0] == "all" else line.split()[0]: line.split()
        for line in out.getvalue().splitlines()
        if line.strip()
    }
    assert rows["site"] == ["site", "answers", "failures", "loss", "(held", "out)", "auc", "(held", "out)", "loss", "(training)"]
    assert rows["north"] == ["north", "2", "0", "0.800"]
    assert rows["west"] == ["west", "0", "1"]


def test_results_of_a_crowd_are_cut() -> None:
    crowd = record(nodes=tuple(f"n{number}" for number in range(100)), rounds=())
    with caught() as (out, _):
        console.emit({}, results(crowd), as_json=False)
    assert "and 40 more" in out.getvalue()


def test_totals_in_one_line() -> None:
    assert totals(record()) == "run r1 completed after 1 round in 3 s; 1.01 kB from the nodes, 2.02 kB to them"


def test_an_error_of_an_unknown_kind_is_shown_as_a_bug_never_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ConfigError("first"))
    assert fedscale("doctor").code == 2
    raising(monkeypatch, RuntimeError("second"))
    assert fedscale("doctor").code == 70


# ---------------------------------------------------------------------------------------------------------------- logs


@pytest.fixture
def log() -> Iterator[Any]:
    """A logger, and afterwards the settings as they were."""
    yield structlog.get_logger()
    structlog.reset_defaults()


def test_a_log_for_programs_is_one_object_a_line(log: Any) -> None:
    with caught() as (out, err):
        configure("json")
        log.info("connected", node="north", datasets=["a"])
        try:
            raise ZeroDivisionError("no")
        except ZeroDivisionError:
            log.exception("it broke")
    first, second = (json.loads(line) for line in err.getvalue().splitlines())
    assert {key: first[key] for key in ("event", "level", "node", "datasets")} == {
        "event": "connected",
        "level": "info",
        "node": "north",
        "datasets": ["a"],
    }
    assert datetime.fromisoformat(first["timestamp"]).tzinfo is not None
    assert "ZeroDivisionError: no" in second["exception"]
    assert out.getvalue() == ""


def test_a_log_for_people_is_plain_off_a_terminal_and_painted_on_it(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with caught() as (_, plain):
        configure("text")
        log.warning("disconnected", node="north")
    with caught(err=Terminal()) as (_, painted):
        configure("text")
        log.warning("disconnected", node="north")
    assert "[warning  ] disconnected" in plain.getvalue()
    assert "node=north" in plain.getvalue()
    assert "\x1b[" not in plain.getvalue()
    assert "\x1b[" in painted.getvalue()


def test_an_exception_in_a_log_for_people_shows_no_values(log: Any) -> None:
    with caught() as (_, err):
        configure("text")
        secret = "patient 42"  # noqa: F841 - a local that a rich traceback would print
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            log.exception("it broke")
    assert "ZeroDivisionError" in err.getvalue()
    assert "patient 42" not in err.getvalue().replace('secret = "patient 42"', "")
