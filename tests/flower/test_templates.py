"""Apps as Flower's own templates have them, run as people run them: by the command, in the app's directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.command import fedscale
from tests.flower import samples

pytestmark = pytest.mark.requires("flower", "torch")

# The PyTorch quickstart: a state dict with integer buffers, a config for training, evaluation at the server, a model saved in the end.
TORCH_TASK = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.layer = nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(self.norm(x))


    def load_data(place):
        generator = torch.Generator().manual_seed(place)
        x = torch.randn(32, 4, generator=generator)
        return x, (x[:, 0] > 0).long()


    def train(net, x, y, lr):
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        net.train()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()


    def test(net, x, y):
        net.eval()
        with torch.no_grad():
            return (net(x).argmax(1) == y).float().mean().item()
"""
TORCH_CLIENT = """
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from sample.task import Net, load_data, test as test_fn, train as train_fn

    app = ClientApp()


    @app.train()
    def train(msg: Message, context: Context):
        model = Net()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        x, y = load_data(context.node_config["partition-id"])
        loss = train_fn(model, x, y, msg.content["config"]["lr"])
        metrics = MetricRecord({"train_loss": loss, "num-examples": len(x)})
        return Message(content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)


    @app.evaluate()
    def evaluate(msg: Message, context: Context):
        model = Net()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        x, y = load_data(context.node_config["partition-id"])
        metrics = MetricRecord({"eval_acc": test_fn(model, x, y), "num-examples": len(x)})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
"""
TORCH_SERVER = """
    import torch
    from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from sample.task import Net, load_data, test

    app = ServerApp()


    @app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.manual_seed(0)
        strategy = FedAvg(min_available_nodes=5, min_train_nodes=5, min_evaluate_nodes=5)
        config = ConfigRecord({"lr": context.run_config["lr"]})
        arrays = ArrayRecord(Net().state_dict())
        result = strategy.start(grid=grid, initial_arrays=arrays, train_config=config, num_rounds=3, evaluate_fn=central)
        print("Saving final model to disk...")
        torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")


    def central(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = Net()
        model.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": test(model, *load_data(99))})
"""
# Only queries, an action of its own for evaluation, a lifespan, and a question that nobody can answer.
ASKING_CLIENT = """
    from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()


    @app.query()
    def query(message, context):
        context.state["times"] = ConfigRecord({"asked": context.state["times"]["asked"] + 1 if "times" in context.state else 1})
        return Message(RecordDict({"metrics": MetricRecord({"asked": context.state["times"]["asked"]})}), reply_to=message)


    @app.evaluate("special")
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "value": 2.0})}), reply_to=message)
"""
ASKING_SERVER = """
    from flwr.app import Message, RecordDict
    from flwr.serverapp import ServerApp

    app = ServerApp()


    @app.lifespan()
    def lifespan(context):
        print("up")
        yield
        print("down")


    @app.main()
    def main(grid, context):
        nodes = list(grid.get_node_ids())
        for number in (1, 2, 3):
            replies = grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes], timeout=60)
            assert [reply.content["metrics"]["asked"] for reply in replies] == [number] * len(nodes)
        replies = grid.send_and_receive([Message(RecordDict(), node, "evaluate.special", group_id="7") for node in nodes])
        assert [reply.content["metrics"]["value"] for reply in replies] == [2.0] * len(nodes)
        lost = grid.send_and_receive([Message(RecordDict(), nodes[0], "train")])[0]
        assert lost.has_error() and "No train function registered" in lost.error.reason
"""
# The workflow that secure aggregation and other legacy examples begin with.
WORKFLOW = """
    from flwr.common import Context
    from flwr.server import LegacyContext, ServerApp, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow

    app = ServerApp()


    @app.main()
    def main(grid, context: Context) -> None:
        context = LegacyContext(context=context, config=ServerConfig(num_rounds=2), strategy=FedAvg(min_available_clients=2))
        DefaultWorkflow()(grid, context)
"""


@pytest.fixture
def run(app: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, object]]:
    """Writes an app and runs it from its own directory."""

    def simulated(client: str, server: str, task: str = "") -> dict[str, object]:
        folder = app(client, server)
        (folder / "sample" / "task.py").write_text("\n".join(line[4:] for line in task.splitlines()))
        monkeypatch.chdir(folder)
        done = fedscale("simulate", ".", "--out", tmp_path / "out", "--json")
        assert done.code == 0, done.err
        return {**done.data, "err": done.err, "here": folder}

    return simulated


def test_the_pytorch_quickstart(run: Callable[..., dict[str, object]], tmp_path: Path) -> None:
    done = run(TORCH_CLIENT, TORCH_SERVER, TORCH_TASK)
    assert (done["status"], done["nodes"]) == ("completed", 5)
    assert (Path(str(done["here"])) / "final_model.pt").exists()
    assert "Saving final model" in str(done["err"])
    metrics = (tmp_path / "out" / "metrics.csv").read_text()
    assert all(name in metrics for name in ("train_loss", "eval_acc", "server_accuracy"))
    safetensors = pytest.importorskip("safetensors.numpy")
    model = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert {name.partition(".")[0] for name in model} == {"norm", "layer"}
    assert float(np.asarray(model["norm.num_batches_tracked"])) == pytest.approx(3)


def test_an_app_that_only_asks(run: Callable[..., dict[str, object]]) -> None:
    done = run(ASKING_CLIENT, ASKING_SERVER)
    assert done["status"] == "completed"
    assert [word for word in str(done["err"]).split() if word in {"up", "down"}] == ["up", "down"]


def test_the_legacy_workflow(run: Callable[..., dict[str, object]]) -> None:
    done = run(samples.NUMPY, WORKFLOW)
    assert (done["status"], done["rounds"]) == ("completed", 2)


def test_a_dependency_that_is_not_there(app: Callable[..., Path]) -> None:
    folder = app(samples.MESSAGES.replace("import numpy as np", "import numpy as np\n    from flwr_datasets_of_nobody import FederatedDataset"))
    done = fedscale("simulate", folder, "--json")
    assert done.code == 1
    assert "flwr_datasets_of_nobody" in done.error["why"]
    assert done.error["hint"] == "install what the app's pyproject.toml lists as its dependencies"
