"""Flower apps of every style, as their authors would write them, and a way to write them into a directory."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

PROJECT = """
    [project]
    name = "sample-app"
    version = "1.0.0"

    [tool.flwr.app]
    publisher = "somebody"

    [tool.flwr.app.components]
    serverapp = "sample.server_app:app"
    clientapp = "sample.client_app:app"

    [tool.flwr.app.config]
    num-server-rounds = 3
    lr = 0.5
    strategy = "FedAvg"
    site.name = "ward"

    [tool.flwr.federations]
    default = "local-simulation"

    [tool.flwr.federations.local-simulation]
    options.num-supernodes = 5
"""

# Message API: mods on the app and on a function, an action of its own, a query, and state across rounds.
MESSAGES = """
    import numpy as np
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp


    def doubling(message, context, call_next):
        context.state["mods"] = MetricRecord({"calls": context.state["mods"]["calls"] + 1 if "mods" in context.state else 1})
        reply = call_next(message, context)
        reply.content["metrics"]["modded"] = 2 * reply.content["metrics"].get("modded", 0.5)
        return reply


    def adding(message, context, call_next):
        reply = call_next(message, context)
        reply.content["metrics"]["modded"] = 1.0
        return reply


    app = ClientApp(mods=[doubling])


    @app.train(mods=[adding])
    def train(message: Message, context: Context) -> Message:
        place, config = context.node_config["partition-id"], message.content["config"]
        rounds = context.state["seen"]["rounds"] + 1 if "seen" in context.state else 1
        context.state["seen"] = MetricRecord({"rounds": rounds})
        model = message.content["arrays"].to_numpy_ndarrays()
        model = [array + context.run_config["lr"] * (np.full_like(array, place) - array) for array in model]
        metrics = {"num-examples": place + 1, "loss": float(np.abs(model[0]).mean()), "seen": rounds, "round": config["server-round"]}
        return Message(RecordDict({"arrays": ArrayRecord(model), "metrics": MetricRecord(metrics)}), reply_to=message)


    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        value = float(message.content["arrays"].to_numpy_ndarrays()[0].mean())
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 2, "score": value})}), reply_to=message)


    @app.query("census")
    def census(message: Message, context: Context) -> Message:
        facts = {"place": context.node_config["partition-id"], "of": context.node_config["num-partitions"], "num-examples": 1}
        return Message(RecordDict({"metrics": MetricRecord(facts)}), reply_to=message)
"""

STRATEGY = """
    import numpy as np
    from flwr.app import ArrayRecord, Context
    from flwr.serverapp import Grid, ServerApp, strategy

    app = ServerApp()


    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = context.run_config
        chosen = getattr(strategy, config["strategy"])(min_available_nodes=2)
        first = ArrayRecord([np.zeros((2, 3), np.float32), np.ones(4, np.float32)])
        result = chosen.start(grid=grid, initial_arrays=first, num_rounds=config["num-server-rounds"])
        print("final", result.arrays.to_numpy_ndarrays()[0][0, 0])
"""

# A loop of its own: a query first, then push and pull by hand, then a round that waits for everybody.
OWN_LOOP = """
    import time

    import numpy as np
    from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
    from flwr.serverapp import ServerApp

    app = ServerApp()


    @app.main()
    def main(grid, context):
        nodes = list(grid.get_node_ids())
        assert len(list(getattr(grid, "get_nodes", grid.get_node_ids)())) == len(nodes)
        asked = [Message(RecordDict(), node, "query.census") for node in nodes]
        places = sorted(reply.content["metrics"]["place"] for reply in grid.send_and_receive(asked))
        assert places == list(range(len(nodes))), places
        model = np.zeros(3)
        for number in range(1, context.run_config["num-server-rounds"] + 1):
            content = RecordDict({"arrays": ArrayRecord([model]), "config": ConfigRecord({"server-round": number})})
            open_ids, replies = set(grid.push_messages([Message(content, node, "train") for node in nodes])), []
            while open_ids:
                here = list(grid.pull_messages(open_ids))
                open_ids -= {reply.metadata.reply_to_message_id for reply in here}
                replies += here
                time.sleep(0.001)
            model = np.mean([reply.content["arrays"].to_numpy_ndarrays()[0] for reply in replies if not reply.has_error()], axis=0)
        np.save("model.npy", model)
"""

# NumPyClient behind a client_fn, with state in the context.
NUMPY = """
    import numpy as np
    from flwr.app import MetricRecord
    from flwr.client import NumPyClient
    from flwr.clientapp import ClientApp


    class Client(NumPyClient):
        def __init__(self, context):
            self.context = context
            self.place = context.node_config["partition-id"]

        def get_parameters(self, config):
            return [np.zeros((2, 3), np.float32), np.ones(4, np.float32)]

        def fit(self, parameters, config):
            state = self.context.state
            state["seen"] = MetricRecord({"rounds": state["seen"]["rounds"] + 1 if "seen" in state else 1})
            lr = self.context.run_config["lr"]
            model = [array + lr * (np.full_like(array, self.place) - array) for array in parameters]
            return model, self.place + 1, {"seen": state["seen"]["rounds"], "given": config.get("given", 0)}

        def evaluate(self, parameters, config):
            return float(np.abs(parameters[0]).mean()), 2, {"score": float(parameters[0].mean())}


    def client_fn(context):
        return Client(context).to_client()


    app = ClientApp(client_fn)
"""

LEGACY = """
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig, strategy


    def pooled(metrics):
        total = sum(examples for examples, _ in metrics)
        return {name: sum(examples * values[name] for examples, values in metrics) / total for name in metrics[0][1]}


    def server_fn(context):
        config = context.run_config
        kind = getattr(strategy, config["strategy"])
        named = {"fit_metrics_aggregation_fn": pooled, "evaluate_metrics_aggregation_fn": pooled}
        made = kind(on_fit_config_fn=lambda number: {"given": number}, **named)
        return ServerAppComponents(strategy=made, config=ServerConfig(num_rounds=config["num-server-rounds"]))


    app = ServerApp(server_fn=server_fn)
"""


def write(folder: Path, client: str = MESSAGES, server: str = STRATEGY, project: str = PROJECT) -> Path:
    """Write an app into a new directory."""
    package = folder / "sample"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(dedent(project))
    (package / "__init__.py").write_text("")
    (package / "client_app.py").write_text(dedent(client))
    (package / "server_app.py").write_text(dedent(server))
    return folder
