"""What the command line answers when something is not as it should be: exit codes, envelopes, and what to do next."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Done
from tests.e2e.conftest import declared, plan_of, write_job, write_table
from tests.e2e.federation import PROJECT, Federation, until


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """One site, ``ann``."""
    folder = tmp_path_factory.mktemp("usage")
    with Federation(folder) as made:
        made.join("ann", declared(write_table(folder / "ann.csv", "ann")))
        yield made


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("job") / "job", plan_of(rounds=1))


def refused(done: Done, code: int, kind: str) -> dict[str, str]:
    """The error of a command, the same as JSON and for people."""
    assert done.code == code, done
    assert done.error["type"] == kind
    assert done.error["what"]
    return done.error


def test_a_ticket_works_once(federation: Federation, tmp_path: Path) -> None:
    ticket = federation.invite("zoe")
    assert federation.ask("node", "join", ticket, "--home", tmp_path / "first")["name"] == "zoe"
    error = refused(federation.fedscale("node", "join", ticket, "--home", tmp_path / "second", "--json"), 4, "TicketError")
    assert "used" in error["what"] + error["why"]
    assert not (tmp_path / "second" / "node.toml").exists()


def test_a_ticket_that_was_spoilt_on_the_way_is_not_sent(federation: Federation, tmp_path: Path) -> None:
    ticket = federation.invite("yan")
    error = refused(federation.fedscale("node", "join", ticket[:-3], "--home", tmp_path / "node", "--json"), 4, "TicketError")
    assert error["hint"]
    assert federation.fedscale("node", "join", "-", "--home", tmp_path / "node", "--json", stdin=ticket).data["name"] == "yan"


def test_an_unreachable_coordinator(tmp_path: Path) -> None:
    with Federation(tmp_path / "gone") as gone:
        ticket = gone.invite("xia")
        gone.server.stop()
        asked = gone.fedscale("run", "list", "--json", "--profile", gone.profile)
        assert "fedscale server start" in refused(asked, 3, "Unreachable")["hint"]
        joining = ("node", "join", ticket, "--home", tmp_path / "node", "--json")
        assert "outbound" in refused(gone.fedscale(*joining), 3, "Unreachable")["hint"]
        gone.start_server()
        assert gone.fedscale(*joining).data["name"] == "xia"


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("run", "show", "nobody-000000"), 6, "NotFound"),
        (("run", "watch", "nobody-000000"), 6, "NotFound"),
        (("run", "export", "nobody-000000"), 6, "NotFound"),
        (("run", "stop", "nobody-000000"), 6, "NotFound"),
        (("project", "create", PROJECT), 6, "Conflict"),
        (("project", "create", "Not A Name"), 2, "ConfigError"),
        (("project", "invite", "no-such-project"), 6, "NotFound"),
        (("project", "revoke", "nobody"), 6, "NotFound"),
        (("run", "submit", "no-such-file.toml"), 2, "PlanError"),
        (("run", "watch"), 2, "ConfigError"),
        (("run", "wacht", "x"), 2, "ConfigError"),
    ],
)
def test_what_is_not_there_or_wrong(federation: Federation, words: tuple[str, ...], code: int, kind: str) -> None:
    refused(federation.fedscale(*words, "--json", "--profile", federation.profile), code, kind)
    told = federation.fedscale(*words, "--profile", federation.profile)
    assert (told.code, told.out) == (code, "")
    assert told.err.startswith("error: ")


def test_a_bad_plan_is_refused_with_its_line(federation: Federation, job: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "job.toml"
    lines = job.read_text().replace("rounds = 1", "runds = 1").splitlines()
    spoilt.write_text("\n".join(lines))
    (tmp_path / "trial.py").write_text((job.parent / "trial.py").read_text())
    error = refused(federation.fedscale("run", "submit", spoilt, "--json", "--profile", federation.profile), 2, "PlanError")
    assert error["where"] == f"{spoilt}:{lines.index('runds = 1') + 1}"


def test_a_command_without_a_profile_says_how_to_get_one(federation: Federation, tmp_path: Path) -> None:
    error = refused(federation.fedscale("run", "list", "--json", "--profile", tmp_path), 2, "ConfigError")
    assert "fedscale server init" in error["hint"]


def test_a_node_is_not_a_coordinator(federation: Federation, tmp_path: Path) -> None:
    home, profile = federation.node_home("ann"), tmp_path / "profile"
    profile.mkdir()
    for name in ("key.pem", "cert.pem", "ca.pem"):
        (profile / name).write_bytes((home / name).read_bytes())
    (profile / "address").write_text((federation.profile / "address").read_text())
    error = refused(federation.fedscale("run", "list", "--json", "--profile", profile), 4, "AccessDenied")
    assert "'node'" in error["what"]


def test_a_run_is_an_envelope_from_its_submission_to_its_report(federation: Federation, job: Path, tmp_path: Path) -> None:
    call = ("--json", "--profile", federation.profile)
    forecast = federation.fedscale("run", "submit", job, "--dry-run", *call).data
    assert (forecast["nodes"], forecast["starts"], forecast["dry_run"]) == (["ann"], "at once", True)
    submitted = federation.fedscale("run", "submit", job, "--key", "once", *call).data
    again = federation.fedscale("run", "submit", job, "--key", "once", *call).data
    assert again["run"] == submitted["run"]
    watched = federation.fedscale("run", "watch", submitted["run"], *call).data
    assert watched["run"]["status"] == "completed"
    assert watched["record"] == federation.fedscale("run", "show", submitted["run"], *call).data["record"]
    files = federation.fedscale("run", "report", submitted["run"], "--out", tmp_path / "report", *call).data
    assert set(files) == {"summary.json", "metrics.csv", "metrics.json", "report.html"}
    assert json.loads(Path(files["summary.json"]).read_text())["model_digest"] == watched["record"]["model_digest"]
    exported = federation.fedscale("run", "export", submitted["run"], "--out", tmp_path / "model.safetensors", *call).data
    assert exported["digest"] == watched["record"]["model_digest"]
    assert [run["run"] for run in federation.fedscale("run", "list", *call).data].count(submitted["run"]) == 1


def test_a_person_gets_the_result_on_stdout_and_the_rest_on_stderr(federation: Federation, job: Path) -> None:
    done = federation.fedscale("run", "submit", job, "--profile", federation.profile)
    assert re.fullmatch(r"trial-[0-9a-f]{6}\n", done.out)
    assert f"fedscale run watch {done.out.strip()}" in done.err
    followed = federation.fedscale("run", "watch", done.out.strip(), "--profile", federation.profile)
    assert followed.code == 0
    assert "completed" in followed.err
    assert "loss" in followed.out
    assert "\x1b" not in followed.out + followed.err


def test_a_home_is_for_one_node_at_a_time(federation: Federation) -> None:
    second = federation.begin("second", "node", "start", "--home", federation.node_home("ann")).wait()
    assert second.code == 6
    assert "stop it first" in second.err


def test_a_revoked_node_is_out_and_says_so(federation: Federation, tmp_path: Path) -> None:
    federation.join("wim", declared(write_table(tmp_path / "wim.csv", "wim")))
    federation.manage("project", "revoke", "wim")
    out = federation.nodes["wim"].wait()
    assert out.code == 4
    assert "revoked" in out.err
    assert {site["name"]: site["revoked"] for site in federation.manage("project", "nodes", PROJECT)}["wim"]


def test_a_node_that_waits_for_its_coordinator_still_ends_when_told(tmp_path: Path) -> None:
    with Federation(tmp_path / "lonely") as lonely:
        lonely.join("ann", {})
        lonely.server.kill()
        until(lambda: "disconnected" in lonely.nodes["ann"].told(), "the end of the connection")
        lonely.nodes["ann"].send(signal.SIGINT)
        assert lonely.nodes["ann"].wait().code == 0
