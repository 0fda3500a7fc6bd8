"""Flower apps of every style, as they are: they run, remember, fail and leave what any simulated run leaves."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedscale.errors import AppError, Cause
from fedscale_simulations.flower import simulate_app
from fedscale_simulations.result import Progress
from tests.command import fedscale
from tests.flower import contest, samples

pytestmark = pytest.mark.requires("flower")


def edited(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def mean_of_places(rounds: int, lr: float = 0.5, clients: int = 5) -> float:
    """Where the first coordinate of the sample apps' model gets to: towards the mean of places, weighted with place + 1."""
    places = np.arange(clients)
    return float((1 - (1 - lr) ** rounds) * (places * (places + 1)).sum() / (places + 1).sum())


def test_the_message_api_with_mods_and_state(app: Callable[..., Path]) -> None:
    ended = simulate_app(app())
    record = ended.record
    assert (record.status, record.reason, record.name) == ("completed", "", "sample-app")
    assert [(row.number, row.phase, len(row.answered)) for row in record.rounds] == [(n, p, 5) for n in (1, 2, 3) for p in ("train", "evaluate")]
    assert ended.arrays["0"] == pytest.approx(np.full((2, 3), mean_of_places(3)), rel=1e-6)
    last = record.rounds[-2]
    # Both mods ran, the app's around the function's, and each node counted its own rounds.
    assert last.metrics == pytest.approx({"loss": last.metrics["loss"], "seen": 3.0, "round": 3.0, "modded": 2.0})
    assert {site["seen"] for site in last.sites.values()} == {3.0}
    assert record.rounds[-1].metrics == pytest.approx({"score": mean_of_places(3), "modded": 1.0})
    assert last.weight == 15.0
    assert last.bytes_down == record.rounds[0].bytes_down > 5 * 40


def test_a_loop_of_its_own_with_a_query_and_push_and_pull(app: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = simulate_app(app(server=samples.OWN_LOOP), 4)
    assert (ended.record.status, ended.record.reason) == ("completed", "")
    assert [(row.number, row.phase, len(row.answered)) for row in ended.record.rounds] == [(n, "train", 4) for n in (1, 2, 3)]
    assert np.load(tmp_path / "model.npy") == pytest.approx(np.full(3, 1.5 * (1 - 0.5**3)))
    assert ended.arrays == {}
    assert ended.record.model_digest == ""


def test_a_numpy_client_under_a_legacy_strategy(app: Callable[..., Path]) -> None:
    ended = simulate_app(app(samples.NUMPY, samples.LEGACY))
    assert (ended.record.status, ended.record.reason) == ("completed", "")
    assert [(row.number, row.phase, len(row.answered)) for row in ended.record.rounds] == [
        (n, p, 5) for n in (1, 2, 3) for p in ("train", "evaluate")
    ]
    assert ended.arrays["0"] == pytest.approx(np.full((2, 3), mean_of_places(3)), rel=1e-6)
    assert ended.record.rounds[-2].metrics == pytest.approx({"seen": 3.0, "given": 3.0})
    assert ended.record.rounds[-1].metrics["score"] == pytest.approx(mean_of_places(3), rel=1e-6)


def test_the_first_model_of_a_legacy_app_comes_from_a_client(app: Callable[..., Path]) -> None:
    ended = simulate_app(app(samples.NUMPY, samples.LEGACY), overrides=["num-server-rounds=0"])
    assert ended.record.rounds == ()
    assert ended.arrays["1"].tolist() == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("api", contest.PLAYS)
def test_every_strategy(app: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: str) -> None:
    """Those that there are, wrappers and the oldest among them; what mean-type ones and the median come to is known."""
    monkeypatch.chdir(tmp_path)
    client, server, names = contest.PLAYS[api]
    ended = simulate_app(app(client, server))
    assert (ended.record.status, ended.record.reason) == ("completed", "")
    assert {len(row.answered) for row in ended.record.rounds if row.phase == "train"} == {5}
    models, places = dict(np.load("final.npz")), np.arange(5)
    assert models.keys() == names
    assert all(np.isfinite(model).all() and model.any() for model in models.values())
    mean = (places**2 * (places + 1)).sum() / 15
    for name in {"FedAvg", "FedProx", "FedOpt", "FaultTolerantFedAvg", "FedAvgAndroid"} & names:
        assert models[name][:6] == pytest.approx(np.full(6, 0.75 * mean), rel=1e-6)
    assert models["FedMedian"][:6] == pytest.approx(np.full(6, 0.75 * 4))


# Its clients would have to send a list in the place of parameters, which no message of Flower's has carried for years.
BROKEN = "FedXgbNnAvg"


@pytest.mark.parametrize(("api", "module"), [("messages", "flwr.serverapp.strategy"), ("legacy", "flwr.server.strategy")])
def test_the_strategies_are_all_that_there_are(api: str, module: str) -> None:
    found = importlib.import_module(module)
    kinds = {name for name in found.__all__ if inspect.isclass(kind := getattr(found, name)) and issubclass(kind, found.Strategy)}
    assert kinds - {"Strategy", BROKEN, *contest.TREES} <= contest.PLAYS[api][2]


def test_the_one_strategy_that_nobody_can_use_fails_with_its_own_words(app: Callable[..., Path]) -> None:
    ended = simulate_app(app(samples.NUMPY, samples.LEGACY), overrides=[f"strategy={BROKEN}"])
    assert ended.record.status == "failed"
    assert "TypeError: 'Parameters' object is not subscriptable" in ended.record.reason


def test_a_client_that_raises_fails_alone_and_its_state_is_as_before(app: Callable[..., Path]) -> None:
    place = 'rounds = context.state["seen"]["rounds"] + 1 if "seen" in context.state else 1\n'
    check = "        assert place != 3 or config['server-round'] != 3 or context.state['seen']['rounds'] == 1\n"
    raising = """        if place == 3 and config["server-round"] == 2:
            context.state["seen"] = MetricRecord({"rounds": 77})
            raise ValueError("no beds today")
"""
    client = edited(samples.MESSAGES, (place, f"{place}{check}{raising}"))
    ended = simulate_app(app(client))
    assert ended.record.status == "completed"
    failed = [row.failures for row in ended.record.rounds if row.failures]
    assert [list(row) for row in failed] == [["client-0003"]]
    failure = failed[0]["client-0003"]
    assert (failure.cause, failure.what) == (Cause.CODE, "ValueError: no beds today")
    assert failure.where.startswith("client_app.py:")
    assert ended.record.rounds[-2].sites["client-0003"]["seen"] == 2.0


def test_all_clients_failing_is_flowers_own_business(app: Callable[..., Path]) -> None:
    client = edited(samples.MESSAGES, ('model = message.content["arrays"].to_numpy_ndarrays()\n        model', "model = [][0]\n        model"))
    ended = simulate_app(app(client), overrides=["num-server-rounds=1"])
    assert len(ended.record.rounds[0].failures) == 5
    assert ended.record.status in {"completed", "failed"}


def test_a_server_app_that_raises_fails_the_run(app: Callable[..., Path]) -> None:
    server = edited(samples.STRATEGY, ("result = chosen", 'raise KeyError("no such ward")\n        result = chosen'))
    ended = simulate_app(app(server=server))
    assert ended.record.status == "failed"
    assert "server_app.py:" in ended.record.reason
    assert "KeyError: 'no such ward'" in ended.record.reason


def test_a_server_app_that_waits_for_more_clients_is_told(app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from fedscale.flower import grid

    monkeypatch.setattr(grid, "LOOKS", 2)
    monkeypatch.setattr(grid, "WAIT_SECONDS", 0.0)
    server = edited(samples.STRATEGY, ("min_available_nodes=2", "min_available_nodes=9"))
    ended = simulate_app(app(server=server))
    assert ended.record.status == "failed"
    assert ended.record.reason == "the ServerApp waits for more than the 5 clients that there are; raise --clients, or lower min_available_nodes"


def test_a_timeout_gives_up_who_is_late(app: Callable[..., Path]) -> None:
    client = edited(
        samples.MESSAGES,
        ("        rounds = context", "        import time\n        time.sleep(2.0 if place == 1 else 0.0)\n        rounds = context"),
    )
    server = edited(samples.STRATEGY, ("num_rounds=config", "timeout=1.0, num_rounds=config"))
    ended = simulate_app(app(client, server), 4, ["num-server-rounds=1"])
    row = ended.record.rounds[0]
    assert ended.record.status == "completed"
    assert set(row.failures) >= {"client-0001"}
    assert {failure.cause for failure in row.failures.values()} == {Cause.TIMEOUT}
    assert not set(row.failures) & set(row.answered)


def test_the_run_config_and_the_number_of_nodes_can_be_given(app: Callable[..., Path]) -> None:
    ended = simulate_app(app(), 3, ["lr=0.25 num-server-rounds=2"])
    assert ended.record.nodes == ("client-0000", "client-0001", "client-0002")
    assert ended.arrays["0"] == pytest.approx(np.full((2, 3), mean_of_places(2, 0.25, 3)), rel=1e-6)


def test_central_evaluation_is_on_record(app: Callable[..., Path]) -> None:
    server = edited(samples.STRATEGY, ("import ArrayRecord, Context", "import ArrayRecord, Context, MetricRecord"))
    server = edited(server, ("num_rounds=config", 'evaluate_fn=lambda number, _: MetricRecord({"auc": number / 10}), num_rounds=config'))
    ended = simulate_app(app(server=server))
    assert [row.metrics["server_auc"] for row in ended.record.rounds if row.phase == "evaluate"] == pytest.approx([0.1, 0.2, 0.3])


def test_two_runs_are_alike_and_leave_nothing_behind(app: Callable[..., Path]) -> None:
    folder = app()
    before = set(sys.modules), list(sys.path)
    first, second = simulate_app(folder), simulate_app(folder)
    assert first.record.model_digest == second.record.model_digest != ""
    assert [row.metrics for row in first.record.rounds] == [row.metrics for row in second.record.rounds]
    assert not [name for name in set(sys.modules) - before[0] if name.startswith("sample")]
    assert sys.path == before[1]


def test_a_client_that_seeds_does_not_choose_who_is_sampled(app: Callable[..., Path]) -> None:
    client = edited(samples.MESSAGES, ("place, config = context", "__import__('random').seed(1)\n        place, config = context"))
    server = edited(samples.STRATEGY, ("min_available_nodes=2", "fraction_train=0.1, fraction_evaluate=0.0, min_train_nodes=1"))
    server = edited(server, ("config = context.run_config", "__import__('random').seed(4)\n        config = context.run_config"))
    asked = [
        [row.answered for row in simulate_app(app(code, server), 20, ["num-server-rounds=6"]).record.rounds] for code in (samples.MESSAGES, client)
    ]
    assert asked[0] == asked[1]
    assert len(set(asked[0])) > 1


def test_progress_is_told_of_every_client_and_every_phase(app: Callable[..., Path]) -> None:
    seen: list[Progress] = []
    simulate_app(app(), on_progress=seen.append)
    closed = [(step.phase, step.number, step.rounds) for step in seen if step.closed]
    assert closed == [(phase, number, 3) for number in (1, 2, 3) for phase in ("train", "evaluate")]
    assert [step.done for step in seen if step.phase == "train" and step.number == 1 and not step.closed] == [1, 2, 3, 4, 5]


def test_a_run_leaves_what_every_run_leaves(app: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = simulate_app(app(), folder=out)
    assert {path.name for path in out.iterdir()} == {
        "summary.json", "metrics.csv", "metrics.json", "report.html", "model.safetensors", "card.html", "card.json", "card.md",
    }  # fmt: skip
    assert load_file(out / "model.safetensors")["0"] == pytest.approx(ended.arrays["0"])
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["model_digest"]) == ("completed", 3, ended.record.model_digest)
    assert "num-server-rounds" in (out / "report.html").read_text()


def test_a_clients_records_are_its_own(app: Callable[..., Path]) -> None:
    """A client that changes what it got, or keeps what it sent, changes nothing for others."""
    taken = 'model = message.content["arrays"].to_numpy_ndarrays()\n'
    stained = "        assert 'stain' not in config\n        config['stain'] = 1\n        message.content['arrays'].clear()\n"
    greedy = edited(samples.MESSAGES, (taken, taken + stained))
    ended = simulate_app(app(greedy))
    assert [len(row.failures) for row in ended.record.rounds] == [0] * 6
    assert ended.arrays["0"] == pytest.approx(np.full((2, 3), mean_of_places(3)), rel=1e-6)


@pytest.mark.parametrize(
    ("part", "old", "new", "what"),
    [
        ("project", "sample.client_app:app", "sample.nowhere:app", "there is no module 'sample.nowhere'"),
        ("project", "sample.client_app:app", "sample.client_app:nothing", "the module 'sample.client_app' has no 'nothing'"),
        ("project", "sample.client_app:app", "sample.client_app:doubling", "'sample.client_app:doubling' is of type function"),
        ("project", "sample.server_app:app", "sample.client_app:app", "'sample.client_app:app' is of type ClientApp"),
        ("client", "import numpy as np", "import nothing_of_this_name", "the module 'sample.client_app' cannot be imported"),
        ("server", "app = ServerApp()", "app = ServerApp(", "the module 'sample.server_app' cannot be imported"),
    ],
)
def test_components_that_cannot_be_loaded(app: Callable[..., Path], part: str, old: str, new: str, what: str) -> None:
    texts = {"client": samples.MESSAGES, "server": samples.STRATEGY, "project": samples.PROJECT}
    texts[part] = edited(texts[part], (old, new))
    with pytest.raises(AppError) as caught:
        simulate_app(app(**texts))
    assert caught.value.what == what
    assert "sample." in caught.value.where


def test_the_command(app: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    client = edited(samples.MESSAGES, ("        rounds = context", "        print('chatter')\n        rounds = context"))
    done = fedscale("simulate", app(client), "--clients", 3, "--set", "lr=0.25", "--json")
    assert done.code == 0, done.err
    assert (done.data["status"], done.data["nodes"], done.data["folder"]) == ("completed", 3, str(Path("runs", "sample-app")))
    assert Path("runs/sample-app/report.html").exists()
    assert "train 3/3       3 of 3 nodes" in done.err


def test_the_command_fails_with_the_reason(app: Callable[..., Path], tmp_path: Path) -> None:
    server = edited(samples.STRATEGY, ("result = chosen", "1 / 0\n        result = chosen"))
    done = fedscale("simulate", app(server=server), "--out", tmp_path / "out", "--json")
    assert (done.code, done.error["what"]) == (1, "the simulation failed")
    assert "ZeroDivisionError" in done.error["why"]
    assert (tmp_path / "out/summary.json").exists()


@pytest.mark.parametrize("options", [("--resume",), ("--engine", "vectorized"), ("--workers", "2"), ("--data", "x.csv")])
def test_options_that_an_app_cannot_have_are_refused(app: Callable[..., Path], options: tuple[str, ...]) -> None:
    done = fedscale("simulate", app(), *options, "--json")
    assert (done.code, done.error["what"]) == (2, f"{options[0]} does not go with a Flower app")


def test_telemetry_is_off(messages: Any) -> None:
    assert messages is not None
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"


def test_what_is_private_of_flwr_is_still_there() -> None:
    from fedscale.flower import touches

    assert list(touches.missing()) == []


def test_missing_touches_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedscale.flower import touches

    monkeypatch.setattr(touches, "RUN", ("flwr.no.such.module", "flwr.app"))
    assert list(touches.missing()) == ["Run.create_empty"]
    monkeypatch.setattr(touches, "stamp", lambda message, name, run: None)
    assert list(touches.missing())[1:] == ["the name and sender of a message"]
    for name, gone in (("POOLS", "futures"), ("READER", "reader"), ("HELD", {"_other"})):
        monkeypatch.setattr(touches, name, gone)
    assert list(touches.missing())[2:] == ["the pools of threads of the legacy server", "how legacy parameters are read", "what a record holds"]


def test_what_an_app_logs_is_shown_and_what_flower_logs_is_not(app: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """An app's authors use Flower's logger as well."""
    imports = "from logging import INFO\n    from flwr.common.logger import log\n    import numpy as np"
    server = edited(samples.STRATEGY, ("import numpy as np", imports), ('print("final"', 'log(INFO, "all wards answered")\n        print("final"'))
    seen, logger = list[logging.LogRecord](), logging.getLogger("flwr")
    watching = logging.Handler()
    monkeypatch.setattr(watching, "emit", seen.append)
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger._cache.clear()  # type: ignore[attr-defined]
    logger.addHandler(watching)
    try:
        simulate_app(app(server=server), overrides=["num-server-rounds=1"])
    finally:
        logger.removeHandler(watching)
    assert [record.getMessage() for record in seen] == ["all wards answered"]


def test_nothing_is_written_beside_the_app(app: Callable[..., Path]) -> None:
    folder = app()
    simulate_app(folder)
    assert {path.name for path in folder.iterdir()} == {"pyproject.toml", "sample"}
    assert dedent(samples.STRATEGY) == (folder / "sample/server_app.py").read_text()
