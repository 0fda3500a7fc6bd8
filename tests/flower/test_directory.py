"""What a Flower app's pyproject.toml says, and what is said of one that is wrong; none of it needs flwr."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscale.errors import ConfigError, PlanError
from fedscale.flower import directory
from fedscale.flower.deployment import MODULE, job_of, module_of
from fedscale.plan import Plan
from tests.flower import samples


def test_a_directory_is_read_as_flower_reads_it(app: Callable[..., Path]) -> None:
    folder = app()
    read = directory.read(folder)
    assert (read.name, read.serverapp, read.clientapp, read.nodes) == ("sample-app", "sample.server_app:app", "sample.client_app:app", 5)
    assert read.config == {"num-server-rounds": 3, "lr": 0.5, "strategy": "FedAvg", "site.name": "ward"}
    assert directory.read(folder / "pyproject.toml") == read
    assert directory.is_app(folder)
    assert directory.is_app(folder / "pyproject.toml")
    assert not directory.is_app(folder / "job.toml")


@pytest.mark.parametrize(
    ("texts", "changed"),
    [
        (["lr=0.25"], {"lr": 0.25}),
        (["lr=0.25 num-server-rounds=7", "strategy=FedAdam"], {"lr": 0.25, "num-server-rounds": 7, "strategy": "FedAdam"}),
        (['site.name="ward 7"'], {"site.name": "ward 7"}),
        (["site.name='a = b' lr=1e-3"], {"site.name": "a = b", "lr": 0.001}),
        (["site.name=ward 7"], {"site.name": "ward 7"}),
        (["lr = 2"], {"lr": 2}),
        (["strategy=true"], {"strategy": True}),
        (["strategy=[1, 2]"], {"strategy": "[1, 2]"}),
    ],
)
def test_settings_win_over_the_run_config(app: Callable[..., Path], texts: list[str], changed: dict[str, object]) -> None:
    folder = app()
    before = dict(directory.read(folder).config)
    assert directory.read(folder, texts).config == before | changed


def test_settings_can_come_from_a_file(app: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text('lr = 0.125\n[site]\nname = "east"\n')
    read = directory.read(app(), [str(tmp_path / "more.toml"), "lr=2.0"])
    assert (read.config["site.name"], read.config["lr"]) == ("east", 2.0)


@pytest.mark.parametrize(
    ("federations", "nodes"),
    [
        ('default = "x"\n[tool.flwr.federations.x]\noptions.num-supernodes = 31', 31),
        ("options.num-supernodes = 4", 4),
        ('default = "remote"\n[tool.flwr.federations.remote]\naddress = "127.0.0.1:9093"', 10),
        ('default = "nobody"', 10),
    ],
)
def test_the_number_of_supernodes(app: Callable[..., Path], federations: str, nodes: int) -> None:
    head = samples.PROJECT.partition("[tool.flwr.federations]")[0]
    folder = app()
    (folder / "pyproject.toml").write_text("\n".join(line.strip() for line in f"{head}[tool.flwr.federations]\n{federations}".splitlines()))
    assert directory.read(folder).nodes == nodes
    assert directory.read(folder, nodes=3).nodes == 3


@pytest.mark.parametrize(
    ("old", "new", "what", "hint"),
    [
        ("[tool.flwr.app]", "[tool.other]", "there is no table [tool.flwr.app]", ""),
        ("[tool.flwr.app.components]", "[tool.flwr.app.parts]", "there is no table [tool.flwr.app.components]", ""),
        ('serverapp = "sample.server_app:app"', "", "there is no 'serverapp' in [tool.flwr.app.components]", 'serverapp = "package.module:app"'),
        ('"sample.client_app:app"', '"sample.client_app"', "the component 'clientapp' is no module:attribute", 'clientapp = "package.module:app"'),
        ("lr = 0.5", "lr = [0.5]", "the run config's 'lr' is no number, text or truth value", ""),
        ("options.num-supernodes = 5", "options.num-supernodes = 0", "options.num-supernodes is no number of clients", ""),
        ("[project]", "[project", "pyproject.toml cannot be read", ""),
    ],
)
def test_a_wrong_directory_is_refused(app: Callable[..., Path], old: str, new: str, what: str, hint: str) -> None:
    project = samples.PROJECT.replace(old, new)
    if old == "[tool.flwr.app]":
        project = project.replace("tool.flwr.app.", "tool.other.")
    with pytest.raises(ConfigError) as caught:
        directory.read(app(project=project))
    assert caught.value.what == what
    assert caught.value.hint == hint
    assert "pyproject.toml" in caught.value.where


def test_a_directory_without_an_app_says_what_a_job_looks_like(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no pyproject.toml") as caught:
        directory.read(tmp_path)
    assert "DIR/job.toml" in caught.value.hint
    (tmp_path / "job.toml").touch()
    with pytest.raises(ConfigError, match=f"it holds a job: give {tmp_path}/job.toml"):
        directory.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("rounds=2", "the app's run config has no 'rounds'"),
        ("lr", "'lr' is no setting"),
        ("=3", "'=3' is no setting"),
    ],
)
def test_a_wrong_setting_is_refused(app: Callable[..., Path], text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        directory.read(app(), [text])
    assert caught.value.what == what


def test_a_misspelt_setting_names_the_closest_one(app: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        directory.read(app(), ["num-server-round=2"])
    assert "num-server-rounds" in caught.value.hint


def test_names_that_would_lead_elsewhere_are_made_harmless(app: Callable[..., Path]) -> None:
    folder = app(project=samples.PROJECT.replace('"sample-app"', '"../../etc/x y"'))
    assert directory.read(folder).name == "etc-x-y"


def test_what_is_run_reads_back(app: Callable[..., Path], tmp_path: Path) -> None:
    read = directory.read(app(), ["lr=0.75"], 9)
    (tmp_path / "pyproject.toml").write_text(read.to_toml())
    again = directory.read(tmp_path)
    assert (again.config, again.nodes, again.clientapp) == (read.config, 9, read.clientapp)


def test_a_deployed_app_gets_a_plan(app: Callable[..., Path]) -> None:
    extra = '\n[tool.fedscale.strategy]\nname = "fedadam"\nlr = 0.1\n\n[tool.fedscale.clients]\nwait_for = 3\n'
    folder = app()
    path = folder / "pyproject.toml"
    path.write_text(path.read_text() + extra)
    read, plan = job_of(folder, ["lr=0.75", "clients.deadline=5m", "evaluate.every=0", "strategy=FedAdam"])
    assert (plan.strategy.name, plan.strategy.rounds, plan.clients.wait_for, plan.clients.deadline) == ("fedadam", 3, 3, 300.0)
    assert (plan.job.app, plan.job.name, plan.evaluate.every, plan.evaluate.holdout) == (f"{MODULE}:app", "sample-app", 0, 0.0)
    assert (read.config["lr"], read.config["strategy"]) == (0.75, "FedAdam")
    assert "'lr': 0.75" in module_of(read)[f"{MODULE}.py"]


def test_the_plan_of_a_led_run_is_that_of_an_apps_code_and_settings(app: Callable[..., Path]) -> None:
    """With other code nobody is to go on with it; what the app writes beside its code meanwhile is no code."""
    folder = app()
    plans = [job_of(folder, led=True)[1]]
    (folder / "results.json").write_text("{}")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "made.py").write_text("")
    (folder / "venv").mkdir()
    (folder / "venv" / "pyvenv.cfg").write_text("")
    (folder / "venv" / "installed.py").write_text("")
    (folder / "folder.py").mkdir()
    (folder / "gone.py").symlink_to("nowhere.py")
    assert job_of(folder, led=True)[1].digest == plans[0].digest
    plans.append(job_of(folder, ["lr=0.25"], led=True)[1])
    for name in ("client_app.py", "more.py"):
        with (folder / "sample" / name).open("a") as file:
            file.write("# more\n")
        plans.append(job_of(folder, led=True)[1])
    (folder / "sample" / "more.py").rename(folder / "sample" / "less.py")
    plans.append(job_of(folder, led=True)[1])
    assert len({plan.digest for plan in plans}) == 5
    assert Plan.from_toml(plans[0].to_toml()) == plans[0]
    assert job_of(folder)[1].digest == job_of(folder, ["lr=0.25"])[1].digest


def test_a_deployed_app_is_refused_with_the_place(app: Callable[..., Path]) -> None:
    folder = app()
    with pytest.raises(PlanError, match="select"):
        job_of(folder, ["clients.select=0"])
    with pytest.raises(ConfigError, match="run config has no 'client.select'"):
        job_of(folder, ["client.select=3"])
    path = folder / "pyproject.toml"
    path.write_text(path.read_text() + "\n[tool.fedscale]\nrounds = 3\n")
    with pytest.raises(ConfigError, match="holds more than tables"):
        job_of(folder)


def test_reading_needs_no_flwr(app: Callable[..., Path]) -> None:
    script = f"""
import sys
sys.modules["flwr"] = None
from fedscale.flower import deployment, directory
print(deployment.job_of(__import__("pathlib").Path({str(app())!r}))[1].job.name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "sample-app\n", done.stderr


def test_without_flwr_the_error_names_the_extra(app: Callable[..., Path]) -> None:
    script = f"""
import sys
sys.modules["flwr"] = None
from fedscale.cli import main
sys.exit(main(["simulate", {str(app())!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "fedscale-fl[flower]" in done.stderr
