"""All of Flower's strategies in one app, one after the other: how each is made, and what its clients have to do for it."""

from __future__ import annotations

from textwrap import indent

NOISE = "noise_multiplier=0.1, num_sampled_clients=5"
# Those of trees are apart, for their models are no arrays: XGBoost's own tests have them.
TREES = ("FedXgbBagging", "FedXgbCyclic")
NEW = {
    **dict.fromkeys(("FedAvg", "FedAdagrad", "FedAdam", "FedYogi", "FedMedian", "FedTrimmedAvg", "Krum"), ""),
    "FedAvgM": "server_momentum=0.5, server_learning_rate=0.7",
    "MultiKrum": "num_malicious_nodes=1, num_nodes_to_select=3",
    "Bulyan": "num_malicious_nodes=0",
    "FedProx": "proximal_mu=0.1",
    "QFedAvg": 'client_learning_rate=0.1, train_loss_key="loss"',
    "DifferentialPrivacyServerSideFixedClipping": f"strategy=strategy.FedAvg(**every), clipping_norm=1.0, {NOISE}",
    "DifferentialPrivacyClientSideFixedClipping": f"strategy=strategy.FedAvg(**every), clipping_norm=1.0, {NOISE}",
    "DifferentialPrivacyServerSideAdaptiveClipping": f"strategy=strategy.FedAvg(**every), {NOISE}",
    "DifferentialPrivacyClientSideAdaptiveClipping": f"strategy=strategy.FedAvg(**every), {NOISE}",
}
LEGACY = {
    **dict.fromkeys(
        ("FedAvg", "FedMedian", "FedTrimmedAvg", "Krum", "FaultTolerantFedAvg", "FedAdagrad", "FedAdam", "FedYogi", "FedOpt", "FedAvgAndroid"), ""
    ),
    "FedAvgM": "server_momentum=0.5",
    "Bulyan": "to_keep=0",
    "FedProx": "proximal_mu=0.1",
    "QFedAvg": "evaluate_fn=lambda number, arrays, config: (float(abs(arrays[0] - 3).mean()), {})",
    "DPFedAvgFixed": "clip_norm=1.0, strategy=strategy.FedAvg(**every), num_sampled_clients=5, noise_multiplier=0.1",
    "DPFedAvgAdaptive": "strategy=strategy.FedAvg(**every), num_sampled_clients=5, noise_multiplier=0.1",
    **{name: made for name, made in NEW.items() if name.startswith("Differential")},
}

# What a strategy asks of a client besides its work: a mod that clips.
CLIENT = """
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod


    def clipping(message, context, call_next):
        if "clipping_norm" not in message.content["config"]:
            return call_next(message, context)
        return (adaptiveclipping_mod if message.content["config"]["adaptive"] else fixedclipping_mod)(message, context, call_next)


    app = ClientApp()


    @app.train(mods=[clipping])
    def train(message, context):
        place = context.node_config["partition-id"]
        model = [array + 0.5 * (place**2 - array) for array in message.content["arrays"].to_numpy_ndarrays()]
        metrics = MetricRecord({"num-examples": place + 1, "loss": 1.0 + place})
        return Message(RecordDict({"arrays": ArrayRecord(model), "metrics": metrics}), reply_to=message)


    @app.evaluate()
    def evaluate(message, context):
        value = float(message.content["arrays"].to_numpy_ndarrays()[0].mean())
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 2, "score": value})}), reply_to=message)
"""
LEGACY_CLIENT = """
    import numpy as np
    from flwr.client import Client, ClientApp
    from flwr.client.mod import adaptiveclipping_mod, fixedclipping_mod
    from flwr.common import Code, EvaluateRes, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays

    FINE = Status(Code.OK, "")


    def clipping(message, context, call_next):
        config = message.content.config_records.get("fitins.config", {})
        if "clipping_norm" not in config:
            return call_next(message, context)
        return (adaptiveclipping_mod if config["adaptive"] else fixedclipping_mod)(message, context, call_next)


    class Phone(Client):
        def __init__(self, place):
            self.place = place

        def fit(self, ins):
            raw = ins.parameters.tensor_type == "numpy.nda"
            arrays = [np.frombuffer(data, np.float32) for data in ins.parameters.tensors] if raw else parameters_to_ndarrays(ins.parameters)
            arrays = [array + np.float32(0.5) * (np.float32(self.place**2) - array) for array in arrays]
            told = Parameters([array.tobytes() for array in arrays], "numpy.nda") if raw else ndarrays_to_parameters(arrays)
            return FitRes(FINE, told, self.place + 1, {"dpfedavg_norm_bit": self.place < 2})

        def evaluate(self, ins):
            return EvaluateRes(FINE, float(self.place), 2, {})


    app = ClientApp(client_fn=lambda context: Phone(context.node_config["partition-id"]).to_client(), mods=[clipping])
"""
PLAYED = """
    import numpy as np
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.serverapp import ServerApp, strategy

    app = ServerApp()
    every = {"min_available_nodes": 5, "min_train_nodes": 5, "fraction_evaluate": 0.0}


    @app.main()
    def main(grid, context):
        final = {}
        for name, made in {
CHOSEN
        }.items():
            np.random.seed(5)
            first = ArrayRecord([np.zeros((2, 3), np.float32), np.ones(4, np.float32)])
            told = ConfigRecord({"adaptive": "Adaptive" in name})
            result = made.start(grid=grid, initial_arrays=first, num_rounds=2, train_config=told)
            final[name] = np.concatenate([array.ravel() for array in result.arrays.to_numpy_ndarrays()])
        np.savez("final.npz", **final)
"""
LEGACY_PLAYED = """
    import numpy as np
    from flwr.common import Parameters, ndarrays_to_parameters
    from flwr.server import LegacyContext, ServerApp, ServerConfig, strategy
    from flwr.server.workflow import DefaultWorkflow

    app = ServerApp()
    first = [np.zeros((2, 3), np.float32), np.ones(4, np.float32)]
    every = {"min_available_clients": 5, "min_fit_clients": 5, "fraction_evaluate": 0.0, "initial_parameters": ndarrays_to_parameters(first)}


    @app.main()
    def main(grid, context):
        final = {}
        for name, made in {
CHOSEN
        }.items():
            np.random.seed(5)
            inner = getattr(made, "strategy", made)
            inner.on_fit_config_fn = lambda number: {"adaptive": "Adaptive" in name}
            if name == "FedAvgAndroid":
                made.initial_parameters = Parameters([array.tobytes() for array in first], "numpy.nda")
            legacy = LegacyContext(context, config=ServerConfig(num_rounds=2), strategy=made)
            DefaultWorkflow()(grid, legacy)
            arrays = legacy.state.array_records["parameters"].values()
            raw = [np.frombuffer(array.data, np.float32) if array.stype == "numpy.nda" else array.numpy() for array in arrays]
            final[name] = np.concatenate([array.ravel() for array in raw])
        np.savez("final.npz", **final)
"""


def _played(server: str, chosen: dict[str, str]) -> str:
    """A ServerApp that plays strategies one after the other and keeps the model of each in ``final.npz``."""
    made = [
        f'"{name}": strategy.{name}({", ".join(filter(None, (given, "" if "strategy=" in given else "**every")))}),' for name, given in chosen.items()
    ]
    return server.replace("CHOSEN", indent("\n".join(made), 12 * " "))


# ClientApp, ServerApp and the strategies that they play.
PLAYS = {
    "messages": (CLIENT, _played(PLAYED, NEW), set(NEW)),
    "legacy": (LEGACY_CLIENT, _played(LEGACY_PLAYED, LEGACY), set(LEGACY)),
}
