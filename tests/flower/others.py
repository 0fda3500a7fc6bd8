"""Flower apps of further kinds, as their authors would write them: XGBoost, a strategy with a loop of its own, split models, old styles."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from tests.flower import samples

XGBOOST_CONFIG = """
    num-server-rounds = 3
    local-epochs = 1
    params.objective = "binary:logistic"
    params.max-depth = 3
    params.eval-metric = "auc"
    params.nthread = 1
    params.base-score = 0.5
"""
XGBOOST_TASK = """
    import numpy as np
    import xgboost as xgb
    from flwr.common.config import unflatten_dict


    def load_data(place):
        draw = np.random.default_rng(place)
        x = draw.normal(size=(120, 5))
        y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(int)
        return xgb.DMatrix(x[:90], label=y[:90], nthread=1), xgb.DMatrix(x[90:], label=y[90:], nthread=1)


    def replace_keys(table):
        return {key.replace("-", "_"): replace_keys(value) if isinstance(value, dict) else value for key, value in table.items()}


    def settings(context):
        return replace_keys(unflatten_dict(context.run_config))


    def booster(params, array):
        made = xgb.Booster(params={**params, "nthread": 1})
        made.load_model(bytearray(array.numpy().tobytes()))
        return made
"""
XGBOOST_CLIENT = """
    import numpy as np
    import xgboost as xgb
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    from .task import booster, load_data, settings

    app = ClientApp()


    @app.train()
    def train(msg: Message, context: Context) -> Message:
        cfg, (data, _) = settings(context), load_data(context.node_config["partition-id"] % KINDS)
        rounds, model = cfg["local_epochs"], msg.content["arrays"]["0"]
        if not len(model.numpy()):
            trees = xgb.train(cfg["params"], data, num_boost_round=rounds)
        else:
            trees = booster(cfg["params"], model)
            for _ in range(rounds):
                trees.update(data, trees.num_boosted_rounds())
            if not CYCLIC:
                trees = trees[trees.num_boosted_rounds() - rounds : trees.num_boosted_rounds()]
        model = ArrayRecord([np.frombuffer(trees.save_raw("json"), dtype=np.uint8)])
        return Message(RecordDict({"arrays": model, "metrics": MetricRecord({"num-examples": 90})}), reply_to=msg)


    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        cfg, (_, data) = settings(context), load_data(context.node_config["partition-id"] % KINDS)
        trees = booster(cfg["params"], msg.content["arrays"]["0"])
        said = trees.eval_set(evals=[(data, "valid")], iteration=trees.num_boosted_rounds() - 1)
        metrics = MetricRecord({"auc": float(said.rsplit(":", 1)[1]), "trees": trees.num_boosted_rounds(), "num-examples": 30})
        return Message(RecordDict({"metrics": metrics}), reply_to=msg)
"""
XGBOOST_SERVER = """
    import numpy as np
    from flwr.app import ArrayRecord, Context
    from flwr.serverapp import Grid, ServerApp, strategy

    from .task import booster, settings

    app = ServerApp()


    @app.main()
    def main(grid: Grid, context: Context) -> None:
        empty = ArrayRecord([np.frombuffer(b"", dtype=np.uint8)])
        result = strategy.CHOSEN.start(grid=grid, initial_arrays=empty, num_rounds=context.run_config["num-server-rounds"])
        booster(settings(context)["params"], result.arrays["0"]).save_model("final_model.json")
"""

XGBOOST_LEGACY_CLIENT = """
    import xgboost as xgb
    from flwr.client import Client, ClientApp
    from flwr.common import Code, EvaluateRes, FitRes, Parameters, Status

    from .task import load_data, settings

    FINE = Status(Code.OK, "")


    class Grower(Client):
        def __init__(self, context):
            self.cfg, (self.data, self.held) = settings(context), load_data(context.node_config["partition-id"] % KINDS)

        def booster(self, tensors):
            made = xgb.Booster(params={**self.cfg["params"], "nthread": 1})
            made.load_model(bytearray(tensors[0]))
            return made

        def fit(self, ins):
            rounds = self.cfg["local_epochs"]
            if not ins.parameters.tensors[0]:
                trees = xgb.train(self.cfg["params"], self.data, num_boost_round=rounds)
            else:
                trees = self.booster(ins.parameters.tensors)
                for _ in range(rounds):
                    trees.update(self.data, trees.num_boosted_rounds())
                if not CYCLIC:
                    trees = trees[trees.num_boosted_rounds() - rounds : trees.num_boosted_rounds()]
            return FitRes(FINE, Parameters([bytes(trees.save_raw("json"))], ""), 90, {})

        def evaluate(self, ins):
            trees = self.booster(ins.parameters.tensors)
            said = trees.eval_set(evals=[(self.held, "valid")], iteration=trees.num_boosted_rounds() - 1)
            return EvaluateRes(FINE, 0.0, 30, {"auc": float(said.rsplit(":", 1)[1]), "trees": trees.num_boosted_rounds()})


    app = ClientApp(client_fn=Grower)
"""
XGBOOST_LEGACY_SERVER = """
    from flwr.common import Parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig, strategy


    def pooled(metrics):
        total = sum(examples for examples, _ in metrics)
        return {name: sum(examples * values[name] for examples, values in metrics) / total for name in metrics[0][1]}


    def server_fn(context):
        made = strategy.CHOSEN
        made.initial_parameters = Parameters([b""], "")
        return ServerAppComponents(strategy=made, config=ServerConfig(num_rounds=context.run_config["num-server-rounds"]))


    app = ServerApp(server_fn=server_fn)
"""
TREES, LEGACY_TREES = (XGBOOST_CLIENT, XGBOOST_SERVER), (XGBOOST_LEGACY_CLIENT, XGBOOST_LEGACY_SERVER)

# As in the advanced example: a strategy with a start of its own, which remembers the best model; layers that stay with the clients.
BEST_CLIENT = """
    import numpy as np
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()


    @app.train()
    def train(msg: Message, context: Context) -> Message:
        np.random.seed(3)
        model, place = msg.content["arrays"].to_numpy_ndarrays(), context.node_config["partition-id"]
        head = context.state["head"].to_numpy_ndarrays()[0] if "head" in context.state.array_records else np.zeros(2)
        context.state["head"] = ArrayRecord([head + place])
        model = [array + msg.content["config"]["lr"] * (place + 1) for array in model]
        metrics = MetricRecord({"num-examples": place + 1, "head": float(head.sum()), "norms": [1.0, 2.0]})
        who = ConfigRecord({"name": f"ward {place}", "raw": b"123", "flags": [True, False]})
        return Message(RecordDict({"arrays": ArrayRecord(model), "metrics": metrics, "who": who}), reply_to=msg)


    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        value = float(msg.content["arrays"].to_numpy_ndarrays()[0].sum())
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 4, "sum": value})}), reply_to=msg)
"""
BEST_SERVER = """
    import json
    import random
    from logging import INFO

    import numpy as np
    from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
    from flwr.common.logger import log
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedProx, Result

    app = ServerApp()


    class Best(FedProx):
        def configure_train(self, server_round, arrays, config, grid):
            if server_round % 2 == 0:
                config["lr"] *= 0.5
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            self.who = sorted(reply.content["who"]["name"] for reply in replies)
            return super().aggregate_train(server_round, replies)

        def start(self, grid, initial_arrays, num_rounds, train_config):
            result, arrays = Result(), initial_arrays
            for number in range(1, num_rounds + 1):
                asked = self.configure_train(number, arrays, train_config, grid)
                arrays, metrics = self.aggregate_train(number, grid.send_and_receive(messages=asked, timeout=3600))
                result.arrays, result.train_metrics_clientapp[number] = arrays, metrics
                asked = self.configure_evaluate(number, arrays, ConfigRecord(), grid)
                result.evaluate_metrics_clientapp[number] = self.aggregate_evaluate(number, grid.send_and_receive(messages=asked))
                log(INFO, "round %s of the app's own", number)
            return result


    def pooled(records, weighted_by):
        return MetricRecord({"all": sum(record["metrics"][weighted_by] for record in records), "records": len(records)})


    @app.main()
    def main(grid: Grid, context: Context) -> None:
        every = {"min_available_nodes": 5, "min_train_nodes": 5, "min_evaluate_nodes": 5}
        best = Best(proximal_mu=0.1, train_metrics_aggr_fn=pooled, **every)
        best.start(grid, ArrayRecord([np.zeros((2, 2), np.float32), np.ones(1)]), 4, ConfigRecord({"lr": 0.5}))
        assert best.who == [f"ward {place}" for place in range(5)]
"""

# Legacy: a function of the client's number, a Client that speaks Flower's own types and refuses once, a workflow.
SERDE_CLIENT = """
    from flwr.client import Client, ClientApp
    from flwr.common import Code, EvaluateRes, FitRes, GetParametersRes, GetPropertiesRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    import numpy as np

    FINE = Status(Code.OK, "")


    class Ward(Client):
        def __init__(self, place):
            self.place = place

        def get_parameters(self, ins):
            return GetParametersRes(FINE, ndarrays_to_parameters([np.zeros(2), np.ones((2, 2), np.float16)]))

        def get_properties(self, ins):
            return GetPropertiesRes(FINE, {"place": self.place, "asked": ins.config["what"]})

        def fit(self, ins):
            if ins.config["round"] == 2 and self.place == 4:
                return FitRes(Status(Code.FIT_NOT_IMPLEMENTED, "not today"), ins.parameters, 0, {})
            arrays = [array + self.place for array in parameters_to_ndarrays(ins.parameters)]
            return FitRes(FINE, ndarrays_to_parameters(arrays), self.place + 1, {"place": self.place, "flag": True, "raw": b"x"})

        def evaluate(self, ins):
            return EvaluateRes(FINE, float(parameters_to_ndarrays(ins.parameters)[0].sum()), 2, {"half": 0.5})


    def client_fn(cid: str):
        return Ward(int(cid))


    app = ClientApp(client_fn=client_fn)
"""
SERDE_SERVER = """
    from flwr.common import FitIns, GetPropertiesIns
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager
    from flwr.server.strategy import FedAvg


    class Careful(FedAvg):
        def configure_fit(self, server_round, parameters, client_manager):
            client_manager.wait_for(5)
            asked = GetPropertiesIns({"what": "x"})
            told = [client.get_properties(asked, timeout=None, group_id=server_round) for client in client_manager.all().values()]
            assert sorted(reply.properties["place"] for reply in told) == list(range(5))
            pairs = super().configure_fit(server_round, parameters, client_manager)
            return [(client, FitIns(ins.parameters, {**ins.config, "round": server_round})) for client, ins in pairs]

        def aggregate_fit(self, server_round, results, failures):
            model, metrics = super().aggregate_fit(server_round, results, failures)
            return model, {**metrics, "failed": len(failures)}


    class Named(SimpleClientManager):
        pass


    def server_fn(context):
        every = {"min_available_clients": 5, "min_fit_clients": 5, "min_evaluate_clients": 5}
        kept = Careful(evaluate_fn=lambda number, arrays, config: (float(arrays[0].sum()), {"seen": number}), **every)
        return ServerAppComponents(strategy=kept, client_manager=Named(), config=ServerConfig(num_rounds=3))


    app = ServerApp(server_fn=server_fn)
"""
WORKFLOW = """
    import numpy as np
    from flwr.common import ndarrays_to_parameters
    from flwr.server import LegacyContext, ServerApp, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow

    app = ServerApp()


    @app.main()
    def main(grid, context):
        first = ndarrays_to_parameters([np.zeros((2, 3), np.float32), np.ones(4, np.float32)])
        every = {"min_available_clients": 5, "min_fit_clients": 5, "min_evaluate_clients": 5}
        legacy = LegacyContext(context, config=ServerConfig(num_rounds=2), strategy=FedAvg(initial_parameters=first, **every))
        DefaultWorkflow()(grid, legacy)
"""

# A model split between the clients, who keep a part of it each, and the ServerApp; two actions in turn, in an event loop.
SPLIT_CLIENT = """
    import asyncio

    import numpy as np
    from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()


    def part(context):
        place = context.node_config["partition-id"]
        x = np.random.default_rng(place).normal(size=(6, place + 1))
        return x, context.state["part"].to_numpy_ndarrays()[0] if "part" in context.state else np.full((place + 1, 2), 0.1)


    @app.query("embed")
    def embed(message, context):
        async def product():
            await asyncio.sleep(0)
            x, weights = part(context)
            return x @ weights

        content = {"embedding": ArrayRecord([asyncio.run(product())]), "who": ConfigRecord({"place": context.node_config["partition-id"]})}
        return Message(RecordDict(content), reply_to=message)


    @app.train("apply")
    def apply(message, context):
        x, weights = part(context)
        context.state["part"] = ArrayRecord([weights - 0.01 * x.T @ message.content["gradient"].to_numpy_ndarrays()[0]])
        message.content["gradient"]["0"] = message.content["gradient"]["1"]
        return Message(RecordDict(), reply_to=message)
"""
SPLIT_SERVER = """
    import asyncio
    import json

    import numpy as np
    from flwr.app import ArrayRecord, Message, RecordDict
    from flwr.serverapp import ServerApp

    app = ServerApp()


    @app.main()
    def main(grid, context):
        async def lead():
            while len(nodes := list(grid.get_node_ids())) < 5:
                await asyncio.sleep(0.05)
            for _ in range(4):
                replies = grid.send_and_receive([Message(RecordDict(), node, "query.embed") for node in nodes])
                replies = sorted(replies, key=lambda reply: reply.content["who"]["place"])
                error = sum(reply.content["embedding"].to_numpy_ndarrays()[0] for reply in replies) - np.eye(6, 2)
                gradient = RecordDict({"gradient": ArrayRecord([error, -error])})
                done = grid.send_and_receive([Message(gradient, reply.metadata.src_node_id, "train.apply", ttl=600) for reply in replies])
                assert not any(reply.has_error() for reply in done)
                assert list(gradient["gradient"]) == ["0", "1"]
                losses.append(float((error**2).sum()))

        losses = []
        asyncio.run(lead())
        with open("losses.json", "w") as file:
            json.dump(losses, file)
"""


def xgboost(folder: Path, parts: tuple[str, str], chosen: str, kinds: int, *, cyclic: bool) -> Path:
    """Write an XGBoost app.

    Args:
        folder: a new directory.
        parts: its ClientApp and its ServerApp.
        chosen: the strategy, as it is made.
        kinds: how many clients have data of their own; the others share them.
        cyclic: whether clients return all trees instead of their own.
    """
    client = parts[0].replace("KINDS", str(kinds)).replace("CYCLIC", str(cyclic))
    head, _, rest = dedent(samples.PROJECT).partition("[tool.flwr.app.config]")
    project = f"{head}[tool.flwr.app.config]{dedent(XGBOOST_CONFIG)}\n[tool.flwr.federations]{rest.partition('[tool.flwr.federations]')[2]}"
    made = samples.write(folder, client, parts[1].replace("CHOSEN", chosen), project)
    (made / "sample" / "task.py").write_text(dedent(XGBOOST_TASK))
    return made
