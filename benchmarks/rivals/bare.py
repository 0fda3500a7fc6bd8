"""Our kernels and nothing else: what the simulator computes, in as many processes, without anything of the simulator around it.

Small perceptrons are trained in blocks of the simulator's size without ever writing a client's wide weights down; other models
one client after the other. Orders of rows are drawn as everywhere; sums are floats, nothing is checked and nobody is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.rivals import workloads
from fedscale.sampling import Shuffle, derived_seed
from fedscale.torch_learner import kernels, settle_fork
from fedscale.torch_learner.substitutes import FULL, Substitutes

WORKERS, BLOCK = 2, 63

workload, folder = workloads.asked()
report, data = workloads.Report("bare kernels", workload, folder), workloads.Data(workload, folder)
shuffle = Shuffle()


def order(client: int, number: int) -> Any:
    """The rows of a client in the order in which a round takes them."""
    shuffle.seed(derived_seed(workloads.SEED, number, workloads.name_of(client)))
    return shuffle.draw(workload.rows)


class OneByOne:
    """A resident model that trains one client after the other.

    Args:
        weights: the global model, shape ``(parameters,)``.
        total: where trained models are added up, in the same shape.
    """

    def __init__(self, weights: Tensor, total: Tensor) -> None:
        self._module = workloads.first_model(workload)
        for parameter in self._module.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        kernels.install(self._module, torch.device("cpu"))
        self._own: list[Tensor] = list(self._module.parameters())
        self._weights, self._total = views(weights, self._own), views(total, self._own)

    def train(self, clients: Sequence[int], number: int) -> None:
        """A part of a round's cohort."""
        for client in clients:
            x, y = (torch.tensor(part) if workload.name == "w3" else torch.from_numpy(part) for part in data.client(client))
            with torch.no_grad():
                torch._foreach_copy_(self._own, self._weights)
            for rows in torch.from_numpy(order(client, number)).split(workload.batch):
                features = x.index_select(0, rows)
                features = features.contiguous(memory_format=torch.channels_last) if workload.name == "w1" else features
                with Substitutes(FULL) if workload.name == "w1" else nullcontext():
                    outputs = self._module(features)
                loss = workloads.loss(outputs, y.index_select(0, rows))
                gradients = torch.autograd.grad(loss, self._own)
                with torch.no_grad():
                    torch._foreach_add_(self._own, gradients, alpha=-workload.lr)
            with torch.no_grad():
                torch._foreach_add_(self._total, self._own)


class Together:
    """A perceptron of two layers trained for many clients at once: the first layer's weights stay products of gradients and rows.

    Args:
        weights, total: as ``OneByOne``.
    """

    def __init__(self, weights: Tensor, total: Tensor) -> None:
        like = list(workloads.first_model(workload).parameters())
        self._weights, self._total = views(weights, like), views(total, like)
        self._space = np.empty((BLOCK, workload.rows, *workload.shape), np.float32)
        self._product = kernels.product if kernels.gains() else functional.linear

    @torch.no_grad()
    def train(self, clients: Sequence[int], number: int) -> None:
        """A part of a round's cohort."""
        for begin in range(0, len(clients), BLOCK):
            some = clients[begin : begin + BLOCK]
            targets = np.empty((len(some), workload.rows), np.int64)
            for at, client in enumerate(some):
                (x, y), rows = data.client(client), order(client, number)
                x.take(rows, 0, self._space[at], "clip")
                targets[at] = y[rows]
            self._block(torch.from_numpy(self._space[: len(some)]), torch.from_numpy(targets))

    def _block(self, x: Tensor, targets: Tensor) -> None:
        """Some clients, their rows ``(clients, rows, features)`` in the order of the steps."""
        (wide, wide_bias, small, small_bias), (clients, rows, features) = self._weights, x.shape
        shared = self._product(x.view(-1, features), wide).view(clients, rows, -1)
        back, bias = torch.empty_like(shared), wide_bias.expand(clients, -1).clone()
        own, own_bias = small.expand(clients, -1, -1).clone(), small_bias.expand(clients, -1).clone()
        for begin in range(0, rows, workload.batch):
            now = slice(begin, begin + workload.batch)
            hidden = shared[:, now] + bias.unsqueeze(1)
            if begin:
                hidden.baddbmm_(torch.bmm(x[:, now], x[:, :begin].transpose(1, 2)), back[:, :begin], alpha=-workload.lr)
            outer = torch.baddbmm(own_bias.unsqueeze(1), hidden.relu_(), own.transpose(1, 2)).softmax(2)
            outer.scatter_add_(2, targets[:, now].unsqueeze(2), -outer.new_ones(clients, workload.batch, 1)).div_(workload.batch)
            inner = torch.ops.aten.threshold_backward(torch.bmm(outer, own), hidden, 0)
            back[:, now] = inner
            own.baddbmm_(outer.transpose(1, 2), hidden, alpha=-workload.lr)
            own_bias.add_(outer.sum(1), alpha=-workload.lr)
            bias.add_(inner.sum(1), alpha=-workload.lr)
        moved = self._product(back.view(clients * rows, -1).t(), x.view(-1, features).t())
        self._total[0].add_(wide, alpha=clients).add_(moved, alpha=-workload.lr)
        for total, part in zip(self._total[1:], (bias, own, own_bias), strict=True):
            total.add_(part.sum(0))


def views(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Parts of a vector in the shapes of a model's parameters."""
    return [part.view(each.shape) for part, each in zip(flat.split([each.numel() for each in like]), like, strict=True)]


def serve(weights: Tensor, total: Tensor, cohorts: Sequence[Sequence[int]], turn: Any) -> None:
    """A worker: its part of every round's cohort."""
    settle_fork()
    trainer = (Together if workload.name == "w2" else OneByOne)(weights, total)
    for number, cohort in enumerate(cohorts, 1):
        turn.wait()
        total.zero_()
        trainer.train(cohort, number)
        turn.wait()


model = workloads.first_model(workload)
like = list(model.parameters())
weights = torch.cat([parameter.detach().flatten() for parameter in like]).share_memory_()
totals = torch.zeros(WORKERS, len(weights)).share_memory_()
context = get_context("fork")
turn, cohorts = context.Barrier(WORKERS + 1), workload.cohorts()
for at in range(WORKERS):
    context.Process(target=serve, args=(weights, totals[at], [cohort[at::WORKERS].tolist() for cohort in cohorts], turn), daemon=True).start()
report.mark()
for _ in cohorts:
    turn.wait()
    turn.wait()
    torch.sum(totals, 0, out=weights).div_(workload.cohort)
    report.mark()
with torch.no_grad():
    for parameter, part in zip(like, views(weights, like), strict=True):
        parameter.copy_(part)
report.write(model)
