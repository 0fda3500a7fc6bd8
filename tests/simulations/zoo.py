"""Models of many kinds and clients of many sizes, for the tests of the engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedscale.data import Dataset, from_arrays
from fedscale.events import Failed
from fedscale.learner import App, Phase, Work
from fedscale.plan import Plan
from fedscale.ring import WORD, Words
from fedscale.task import Tasks, compute, layout_for
from fedscale.torch_learner import as_learner
from fedscale.update import Update
from fedscale.vector import Schema, Vector
from fedscale_simulations.engines.desk import Desk
from fedscale_simulations.engines.forms import Form, Together, together
from tests.simulations.samples import plan_of

WIDTH, KINDS, VOCABULARY, LENGTH = 12, 3, 11, 6
ROWS = (25, 20, 7, 25, 2, 21, 13)


class Tokens(nn.Module):
    """An embedding, the mean over the tokens, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(VOCABULARY, 5), nn.Linear(5, KINDS)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.table(tokens.long()).mean(1))
        return outputs


class Reader(nn.Module):
    """An LSTM whose last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(VOCABULARY, 5), nn.Linear(7, KINDS)
        self.cell: nn.RNNBase = nn.LSTM(5, 7, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.cell(self.table(tokens.long()))[0][:, -1])
        return outputs


class Gated(Reader):
    """The same with a GRU; all weights below one, where the last digit of float32 is small beside what is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(5, 7, batch_first=True)
        nn.init.uniform_(self.table.weight, -1, 1)


class Attentive(nn.Module):
    """Attention pooling over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.score, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 1), nn.Linear(8, KINDS)

    def forward(self, tokens: Tensor) -> Tensor:
        values = self.table(tokens.long())
        outputs: Tensor = self.head((self.score(values).softmax(1) * values).sum(1))
        return outputs


class Residual(nn.Module):
    """A residual block with group norm; smooth, so that rounding cannot flip the sign that a kink would ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8, KINDS)

    def forward(self, images: Tensor) -> Tensor:
        values = functional.silu(self.first(images))
        values = functional.silu(values + self.third(functional.silu(self.norm(self.second(values)))))
        outputs: Tensor = self.head(values.mean((2, 3)))
        return outputs


class Heads(nn.Module):
    """A trunk with two heads whose outputs stand side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = nn.Linear(WIDTH, 9), nn.Linear(9, 1), nn.Linear(9, KINDS - 1)

    def forward(self, features: Tensor) -> Tensor:
        values = torch.tanh(self.trunk(features))
        return torch.cat([self.left(values), self.right(values)], 1)


class Written(nn.Module):
    """A multi-layer perceptron written with functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 70), nn.Linear(70, KINDS)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.second(functional.relu(self.first(features.flatten(1))))
        return outputs


def deep() -> nn.Module:
    """A deep multi-layer perceptron."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(WIDTH, 30),
        nn.Tanh(),
        nn.Linear(30, 64),
        nn.GELU(),
        nn.Linear(64, 50, bias=False),
        nn.LeakyReLU(0.2),
        nn.Linear(50, KINDS),
    )


def depthwise() -> nn.Module:
    """A small network with depthwise convolutions; as smooth as the other."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 8, 1), nn.GELU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(8 * 16, KINDS),
    )  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of model: how it is made, what it learns from, whether many clients can be trained at once."""

    model: Callable[[], nn.Module]
    features: str = "table"
    together: bool = False
    loss: Callable[..., Any] = functional.cross_entropy
    classes: int = KINDS

    @property
    def app(self) -> App:
        return App(model=self.model, loss=self.loss)

    def clients(self, rows: tuple[int, ...] = ROWS, seed: int = 0) -> dict[str, Dataset]:
        """Clients with so many rows each."""
        rng = np.random.default_rng(seed)
        shape = {"table": (WIDTH,), "tokens": (LENGTH,), "images": (3, 8, 8)}[self.features]
        values = {
            count: rng.integers(0, VOCABULARY, (count, *shape)) if self.features == "tokens" else rng.normal(size=(count, *shape)) for count in rows
        }
        return {f"client-{at:04d}": from_arrays(values[count] + 0, np.arange(count) % self.classes) for at, count in enumerate(rows)}


ZOO = {
    "logistic": Kind(lambda: nn.Linear(WIDTH, 1), together=True, loss=functional.binary_cross_entropy_with_logits, classes=2),
    "softmax": Kind(lambda: nn.Linear(WIDTH, KINDS), together=True, loss=nn.CrossEntropyLoss()),
    "deep": Kind(deep, together=True),
    "written": Kind(Written, together=True),
    "regression": Kind(lambda: nn.Sequential(nn.Linear(WIDTH, 20), nn.Sigmoid(), nn.Linear(20, 1)), together=True, loss=functional.mse_loss),
    "tokens": Kind(Tokens, "tokens", together=True),
    "reader": Kind(Reader, "tokens", together=True),
    "gated": Kind(Gated, "tokens", together=True),
    "attentive": Kind(Attentive, "tokens", together=True),
    "heads": Kind(Heads, together=True),
    "depthwise": Kind(depthwise, "images", together=True),
    "residual": Kind(Residual, "images", together=True),
    "batchnorm": Kind(lambda: nn.Sequential(nn.Linear(WIDTH, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, KINDS))),
    "dropout": Kind(lambda: nn.Sequential(nn.Linear(WIDTH, 9), nn.Dropout(0.3), nn.Linear(9, KINDS))),
}


@dataclass(frozen=True)
class Stand:
    """A desk with a first model and the tasks of the first round."""

    desk: Desk
    model: Vector
    tasks: Tasks
    plan: Plan

    @property
    def schema(self) -> Schema:
        schema = self.tasks.schema
        assert schema is not None
        return schema


def stand(kind: Kind, rows: tuple[int, ...] = ROWS, **tables: Any) -> Stand:
    """A desk for a kind of model."""
    settings: dict[str, Any] = {
        "train": {"batch_size": 10, "epochs": 2, "optimizer": {"lr": 0.1}, "device": "cpu"},
        "evaluate": {"every": 0, "holdout": 0.0},
        "aggregate": {"weight_cap": 64.0},
    }
    plan = plan_of(**{**settings, **tables})
    learner, data = as_learner(kind.app, 64), kind.clients(rows)
    arrays = learner.run(Work(Phase.INIT, 0, 1, None, None, plan.train)).arrays
    assert arrays is not None
    schema = Schema.of(arrays)
    layout = layout_for(plan, Phase.TRAIN, schema.size, len(data))
    tasks = Tasks(list(data), Phase.TRAIN, 1, layout, schema, "")
    return Stand(Desk(plan, plan.strategy.build(), learner, data), schema.pack(arrays), tasks, plan)


def updates(here: Stand) -> list[Update]:
    """What each client would send by itself, but for noise in shares."""
    desk, found = here.desk, list[Update]()
    for task in here.tasks:
        rows, private = desk.portion(task.node, task.phase), desk.private(task)
        update = compute(task, here.plan, desk.strategy, desk.learner, rows, here.model, private=private)
        assert isinstance(update, Update)
        found.append(update)
    return found


def summed(here: Stand, form: Form) -> tuple[Words, list[Failed]]:
    """The sum of all clients, block by block."""
    total, failed = np.zeros(here.tasks.layout.length, WORD), []
    for block in form.blocks(here.tasks):
        failed += form.add(block, here.model, total)
    return total, failed


def trained_together(here: Stand) -> Together:
    """The form in which many clients are trained at once."""
    form, why = together(here.desk)
    assert form is not None, why
    return form
