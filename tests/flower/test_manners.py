"""What apps do besides, in the manners of several years of Flower's: they run here as they do there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from io import BytesIO
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedscale_simulations.flower import simulate_app
from tests.flower import samples

pytestmark = pytest.mark.requires("flower")

# The names of 1.10 to 1.16, which Flower keeps: drivers, sets of parameters, replies made by the message.
OLD_CLIENT = """
    from flwr.client import ClientApp
    from flwr.common import Context, Message, MetricsRecord, ParametersRecord, RecordSet, array_from_numpy

    app = ClientApp()


    @app.train()
    def train(msg: Message, ctx: Context):
        model = msg.content.parameters_records["model"]
        assert msg.content.configs_records["cfg"]["epochs"] == 2
        doubled = ParametersRecord({name: array_from_numpy(2 * array.numpy()) for name, array in model.items()})
        return msg.create_reply(RecordSet(parameters_records={"model": doubled}, metrics_records={"m": MetricsRecord({"loss": 0.5})}))


    @app.query()
    def query(msg: Message, ctx: Context):
        counts = MetricsRecord({"counts": [1, 2, int(ctx.node_config["partition-id"])]})
        return msg.create_reply(content=RecordSet(metrics_records={"found": counts}))
"""
OLD_SERVER = """
    import random

    import numpy as np
    from flwr.common import DEFAULT_TTL, ConfigsRecord, Context, MessageType, ParametersRecord, RecordSet, array_from_numpy
    from flwr.server import Driver, ServerApp

    app = ServerApp()


    @app.main()
    def main(driver: Driver, context: Context) -> None:
        model, nodes = ParametersRecord({"w": array_from_numpy(np.ones(3))}), sorted(driver.get_node_ids())
        for number in range(3):
            content = RecordSet(parameters_records={"model": model}, configs_records={"cfg": ConfigsRecord({"epochs": 2})})
            asked = random.sample(nodes, 2)
            messages = [driver.create_message(content=content, message_type=MessageType.TRAIN, dst_node_id=n, group_id=str(number)) for n in asked]
            model = list(driver.send_and_receive(messages))[0].content.parameters_records["model"]
        asked = [driver.create_message(RecordSet(), MessageType.QUERY, node, "3", DEFAULT_TTL) for node in nodes]
        found = [reply.content.metrics_records["found"]["counts"] for reply in driver.send_and_receive(asked, timeout=60)]
        assert sorted(found) == [[1, 2, place] for place in range(5)]
        np.save("model.npy", model["w"].numpy())
"""


def test_the_names_that_flower_had_before(app: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = simulate_app(app(OLD_CLIENT, OLD_SERVER))
    assert (ended.record.status, ended.record.reason) == ("completed", "")
    assert [(row.number, len(row.answered), row.metrics) for row in ended.record.rounds] == [(number, 2, {"loss": 0.5}) for number in (1, 2, 3)]
    assert np.load("model.npy").tolist() == [8.0, 8.0, 8.0]


MODEL = """
    from pathlib import Path


    def size():
        return int((Path(__file__).parents[1] / "data" / "size.txt").read_text())
"""


def test_a_src_layout_without_inits_and_with_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative imports among packages that have no ``__init__.py``; two such apps in one process are two apps."""
    monkeypatch.chdir(tmp_path)
    server = samples.STRATEGY.replace("import numpy", "from ..common.model import size\n    import numpy").replace("(2, 3)", "(2, size())")
    project = samples.PROJECT.replace("sample.server_app", "src.ward.server.app").replace("sample.client_app", "src.ward.client.app")
    for size in (4, 7):
        files = {"data/size.txt": str(size), "common/model.py": MODEL, "client/app.py": samples.MESSAGES, "server/app.py": server}
        for name, text in {**{f"src/ward/{name}": text for name, text in files.items()}, "pyproject.toml": project}.items():
            path = tmp_path / f"app-{size}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        ended = simulate_app(tmp_path / f"app-{size}")
        assert (ended.record.status, ended.record.reason) == ("completed", "")
        assert ended.arrays["0"].shape == (2, size)


ENDING = """
    import sys

    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()


    @app.train()
    def train(message, context):
        if context.node_config["partition-id"] == 1:
            sys.exit("patient 7")
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1, "big": 2**62})}
        return Message(RecordDict(content), reply_to=message)
"""
ENDED = """
    import sys

    import numpy as np
    from flwr.app import ArrayRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    app = ServerApp()


    class Silent(FedAvg):
        def start(self, *given, **named):
            result = super().start(*given, **named)
            result.train_metrics_clientapp[1] = None
            return result


    @app.main()
    def main(grid, context):
        made = Silent(fraction_evaluate=0.0, min_available_nodes=5)
        made.start(grid=grid, initial_arrays=ArrayRecord([np.ones(2)]), num_rounds=1)
        sys.exit(CODE)
"""


@pytest.mark.parametrize(
    ("code", "reason"), [("", ""), ("0", ""), ("3", "the ServerApp called sys.exit(3)"), ("'no'", "the ServerApp called sys.exit('no')")]
)
def test_an_app_that_would_end_its_process_ends_nobody_elses(app: Callable[..., Path], code: str, reason: str) -> None:
    """A client that does fails alone; a result that holds what Flower's own would not is the app's own business."""
    ended = simulate_app(app(ENDING, ENDED.replace("CODE", code)))
    assert (ended.record.status, ended.record.reason) == ("failed" if reason else "completed", reason)
    assert {name: failure.what for name, failure in ended.record.rounds[0].failures.items()} == {
        "client-0001": "the ClientApp did not answer (it called sys.exit)"
    }
    assert ended.arrays["0"].tolist() == [1.0, 1.0]


ODD_CLIENT = """
    from flwr.app import Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()


    @app.train()
    def train(message, context):
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1, "loss": 0.5})}
        return Message(RecordDict(content), reply_to=message)
"""
ODD_SERVER = """
    import numpy as np
    from flwr.app import Array, ArrayRecord, MetricRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    app = ServerApp()


    class First(FedAvg):
        def aggregate_train(self, server_round, replies):
            return list(replies)[0].content["arrays"], MetricRecord({"firsts": 1.0})


    @app.main()
    def main(grid, context):
        arrays = {"day": np.array(["2020-01-01"], "datetime64[D]"), "long": np.ones(2, np.longdouble), "half": np.ones(2, np.float16)}
        model = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        model["foreign"] = Array(dtype="", shape=(), stype=KIND, data=b"no file of numpy's")
        First(fraction_evaluate=0.0).start(grid=grid, initial_arrays=model, num_rounds=1)
"""


def test_arrays_that_no_file_of_models_has_a_type_for(app: Callable[..., Path], tmp_path: Path) -> None:
    """They lie in it as they travel; the run is not lost for them."""
    ended = simulate_app(app(ODD_CLIENT, ODD_SERVER.replace("KIND", '"own"')), folder=tmp_path / "out")
    model = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: array.dtype.name for name, array in model.items()} == {"day": "uint8", "long": "uint8", "half": "float16", "foreign": "uint8"}
    assert np.load(BytesIO(model["day"].tobytes())).tolist() == [date(2020, 1, 1)]
    assert ended.record.rounds[0].metrics == {"loss": 0.5, "firsts": 1.0}


def test_a_model_that_nobody_can_read_costs_no_metrics(app: Callable[..., Path]) -> None:
    ended = simulate_app(app(ODD_CLIENT, ODD_SERVER.replace("KIND", '"numpy.ndarray"')))
    assert (ended.record.status, ended.arrays) == ("completed", {})
    assert ended.record.rounds[0].metrics == {"loss": 0.5, "firsts": 1.0}


OWN_SERVER = """
    from flwr.server import History, Server, ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager


    class Own(Server):
        def fit(self, num_rounds, timeout):
            self.parameters, history = ["no parameters of Flower's"], History()
            history.add_loss_distributed(1, 0.5)
            return history, 1.0

        def disconnect_all_clients(self, timeout):
            pass


    app = ServerApp(server_fn=lambda _: ServerAppComponents(server=Own(client_manager=SimpleClientManager()), config=ServerConfig(num_rounds=1)))
"""


def test_a_server_of_an_apps_own_keeps_what_it_likes(app: Callable[..., Path]) -> None:
    ended = simulate_app(app(samples.NUMPY, OWN_SERVER))
    assert (ended.record.status, ended.record.reason) == ("completed", "")
    assert [row.metrics for row in ended.record.rounds] == [{"loss": 0.5}]
    assert ended.arrays == {}


NUMPYS = """
    import numpy as np
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg


    class Counting(FedAvg):
        def aggregate_evaluate(self, server_round, results, failures):
            loss, _ = super().aggregate_evaluate(server_round, results, failures)
            return np.float32(loss), {"scores": np.int64(len(results)), "who": "all", "list": [1.0]}


    def server_fn(context):
        central = lambda number, arrays, config: (np.float32(0.125), {"half": np.float16(0.5), "whole": np.int32(number)})
        return ServerAppComponents(strategy=Counting(evaluate_fn=central), config=ServerConfig(num_rounds=1))


    app = ServerApp(server_fn=server_fn)
"""


def test_numbers_of_numpys_are_metrics_too(app: Callable[..., Path]) -> None:
    ended = simulate_app(app(samples.NUMPY, NUMPYS))
    metrics = ended.record.rounds[-1].metrics
    assert (ended.record.status, metrics["scores"]) == ("completed", 5.0)
    assert {name: value for name, value in metrics.items() if name.startswith("server_")} == {
        "server_loss": 0.125,
        "server_half": 0.5,
        "server_whole": 1,
    }


BASELINE = """
    import numpy as np
    from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    app = ServerApp()


    @app.main()
    def main(grid, context):
        model = ArrayRecord([np.ones((2, 3))])
        content = RecordDict({"arrays": model, "config": ConfigRecord({"server-round": 0})})
        grid.send_and_receive([Message(content, node, "evaluate") for node in grid.get_node_ids()])
        FedAvg().start(grid=grid, initial_arrays=model, num_rounds=2)
"""


def test_an_app_that_evaluates_what_it_begins_with_shifts_no_round(app: Callable[..., Path]) -> None:
    rounds = simulate_app(app(server=BASELINE), 2).record.rounds
    assert [(row.phase, row.number, len(row.answered)) for row in rounds] == [
        ("train", 1, 2),
        ("evaluate", 1, 2),
        ("evaluate", 1, 2),
        ("train", 2, 2),
        ("evaluate", 2, 2),
    ]
    assert [row.metrics["round"] for row in rounds if row.phase == "train"] == [1.0, 2.0]
    assert rounds[1].metrics["score"] == 1.0 != rounds[2].metrics["score"]


def test_rounds_that_an_app_counts_from_zero(app: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = samples.OWN_LOOP.replace('"server-round": number', '"server-round": number - 1')
    ended = simulate_app(app(server=server), 4)
    assert [row.number for row in ended.record.rounds] == [1, 2, 3]
    assert [row.metrics["round"] for row in ended.record.rounds] == [0, 1, 2]
