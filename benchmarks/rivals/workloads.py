"""The three workloads, as every framework sees them: the same data, first model and cohorts.

W1: 1,000 clients with 50 images, a network of two convolutions, 50 clients a round. W2: 10,000 clients with 20 rows, a
small perceptron, 1,000 clients a round. W3: 200 clients with 32 sequences, a transformer of two layers, 20 clients a
round. Local training is plain SGD in full precision. Needs numpy and torch and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
VOCABULARY, LENGTH, WIDTH, HEADS = 1000, 64, 128, 4


@dataclass(frozen=True)
class Workload:
    """One workload; ``shape`` is that of a row, ``threads`` how many suit a plain loop on two processors."""

    name: str
    clients: int
    rows: int
    cohort: int
    rounds: int
    batch: int
    lr: float
    shape: tuple[int, ...]
    threads: int
    model: Callable[[], nn.Module]

    def cohorts(self) -> npt.NDArray[np.int64]:
        """Who is trained in each round, ``(rounds, cohort)``: the smallest of raw draws, as fedscale chooses."""
        draws = [np.random.Philox(key=np.array([SEED, number], np.uint64)).random_raw(self.clients) for number in range(1, self.rounds + 1)]
        return np.stack([np.sort(np.argpartition(drawn, self.cohort - 1)[: self.cohort]) for drawn in draws])


class Convolutions(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.third, self.fourth = nn.Linear(4096, 128), nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ten classes."""
        values = functional.max_pool2d(functional.relu(self.first(images)), 2)
        values = functional.max_pool2d(functional.relu(self.second(values)), 2)
        outputs: Tensor = self.fourth(functional.relu(self.third(values.flatten(1))))
        return outputs


class Perceptron(nn.Module):
    """784-64-10."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(784, 64), nn.Linear(64, 10)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of ten classes."""
        outputs: Tensor = self.second(functional.relu(self.first(features)))
        return outputs


class Block(nn.Module):
    """A transformer block, norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, values: Tensor) -> Tensor:
        """Shape ``(batch, tokens, width)`` in and out."""
        rows, tokens, width = values.shape
        query, key, value = self.mix(self.before(values)).view(rows, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        values = values + self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        outputs: Tensor = values + self.down(functional.gelu(self.up(self.after(values))))
        return outputs


class Transformer(nn.Module):
    """Two blocks between an embedding and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.blocks, self.norm, self.head = nn.Sequential(Block(), Block()), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at each place."""
        outputs: Tensor = self.head(self.norm(self.blocks(0.05 * self.tokens(tokens) + self.places)))
        return outputs


WORKLOADS = {
    "w1": Workload("w1", 1000, 50, 50, 10, 10, 0.05, (3, 32, 32), 2, Convolutions),
    "w2": Workload("w2", 10_000, 20, 1000, 5, 10, 0.05, (784,), 1, Perceptron),
    "w3": Workload("w3", 200, 32, 20, 5, 8, 0.1, (LENGTH + 1,), 2, Transformer),
}


def name_of(client: int) -> str:
    """What a client is called."""
    return f"client-{client:05d}"


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy; of every place where outputs are sequences."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def first_model(workload: Workload) -> nn.Module:
    """The model that everybody begins with."""
    torch.manual_seed(SEED)
    return workload.model()


def generate(workload: Workload, folder: Path) -> None:
    """Write the data of all clients, and 1,000 rows to evaluate on; once."""
    if (folder / f"{workload.name}-done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    means = rng.standard_normal((10, *((3, 4, 4) if workload.name == "w1" else workload.shape))).astype(np.float32)
    means = np.kron(0.8 * means, np.ones((1, 1, 8, 8), np.float32)) if workload.name == "w1" else 0.25 * means
    for part, count in (("train", workload.clients * workload.rows), ("test", 1000)):
        labels = rng.integers(0, 10, count)
        if workload.name == "w3":
            np.save(folder / "w3-train-x.npy" if part == "train" else folder / "w3-test-x.npy", _sequences(rng, count))
            continue
        rows = np.lib.format.open_memmap(folder / f"{workload.name}-{part}-x.npy", "w+", np.float32, (count, *workload.shape))
        for begin in range(0, count, 1000):
            some = labels[begin : begin + 1000]
            rows[begin : begin + 1000] = rng.standard_normal((len(some), *workload.shape), np.float32) + means[some]
        rows.flush()
        np.save(folder / f"{workload.name}-{part}-y.npy", labels)
    (folder / f"{workload.name}-done").touch()


def _sequences(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """Tokens of which most follow from the one before."""
    rows = np.empty((count, LENGTH + 1), np.int64)
    rows[:, 0] = rng.integers(0, VOCABULARY, count)
    for at in range(LENGTH):
        random = rng.integers(0, VOCABULARY, count)
        rows[:, at + 1] = np.where(rng.random(count) < 0.85, (rows[:, at] * 7 + 13) % VOCABULARY, random)
    return rows


class Data:
    """The rows of a workload, mapped into memory.

    Args:
        workload: which.
        folder: where ``generate`` wrote them.
        part: ``train`` or ``test``.
    """

    def __init__(self, workload: Workload, folder: Path, part: str = "train") -> None:
        self._rows = workload.rows
        # Plain arrays over the mapped memory: a slice of a memmap costs ten times as much.
        self.x = np.asarray(np.load(folder / f"{workload.name}-{part}-x.npy", mmap_mode="c"))
        self.y = None if workload.name == "w3" else np.asarray(np.load(folder / f"{workload.name}-{part}-y.npy", mmap_mode="c"))

    def client(self, at: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Features and targets of a client, as views."""
        return self.some(slice(at * self._rows, (at + 1) * self._rows))

    def shuffled(self, at: int, number: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The same as copies, in the order in which fedscale takes the rows in a round."""
        digest = hashlib.blake2b(f"{SEED}/{number}/{name_of(at)}".encode(), digest_size=8).digest()
        order = np.argsort(np.random.Philox(key=int.from_bytes(digest, "little") >> 1).random_raw(self._rows), kind="stable")
        x, y = self.client(at)
        return x[order], y[order]

    def some(self, rows: slice) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Features and targets of some rows."""
        x = self.x[rows]
        return (x[:, :-1], x[:, 1:]) if self.y is None else (x, self.y[rows])


def train(model: nn.Module, rows: tuple[npt.NDArray[Any], npt.NDArray[Any]], workload: Workload) -> None:
    """One epoch of a client, as everybody writes it."""
    x, y = (torch.from_numpy(part) for part in rows)
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr)
    model.train()
    for begin in range(0, len(x), workload.batch):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss(model(x[begin : begin + workload.batch]), y[begin : begin + workload.batch]))
        optimizer.step()


class Report:
    """Notes when rounds end, in ``BENCH_MARKS`` as well for whoever ends the process, and writes the result where ``BENCH_OUT`` says."""

    def __init__(self, who: str, workload: Workload, folder: Path) -> None:
        self._who, self._workload, self._folder = who, workload, folder
        self._marks: list[float] = []

    def mark(self) -> None:
        """Training begins, or a round has ended."""
        self._marks.append(time.monotonic())
        with Path(os.environ["BENCH_MARKS"]).open("a", encoding="utf-8") as file:
            file.write(f"{self._marks[-1]!r}\n")

    def write(self, model: nn.Module) -> None:
        """The figures, and the loss of the final model on rows nobody has trained on."""
        seconds, test = np.diff(self._marks), Data(self._workload, self._folder, "test")
        model.eval()
        with torch.no_grad():
            # Few rows at once, so that the peak of the memory is that of the training.
            parts = [tuple(torch.from_numpy(part) for part in test.some(slice(at, at + 20))) for at in range(0, 1000, 20)]
            final = float(np.mean([float(loss(model(x), y)) for x, y in parts]))
        figures = {
            "workload": self._workload.name,
            "who": self._who,
            "clients_per_s": self._workload.cohort / float(np.median(seconds[1:])),
            "first_round_s": float(seconds[0]),
            "final_loss": final,
        }
        Path(os.environ["BENCH_OUT"]).write_text(json.dumps(figures), encoding="utf-8")


def asked() -> tuple[Workload, Path]:
    """The workload and the folder of the data, from the environment: some launchers keep the command line for themselves."""
    workload = WORKLOADS[os.environ["BENCH_WORKLOAD"]]
    rounds, cohort = (int(os.environ.get(f"BENCH_{name}", own)) for name, own in (("ROUNDS", workload.rounds), ("COHORT", workload.cohort)))
    return replace(workload, rounds=rounds, cohort=cohort), Path(os.environ["BENCH_DATA"])
