"""The learner itself: load, train, evaluate."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from fedscale.causes import attempted
from fedscale.data import Dataset
from fedscale.errors import AppError, DataError, UpdateRejected
from fedscale.learner import App, Learner, Phase, Private, Result, Training, Work
from fedscale.metrics import Sums
from fedscale.sampling import Shuffle
from fedscale.torch_learner.blocks import Trainer, blocks_for
from fedscale.torch_learner.clipping import PROBE, Objective, Way, way_for
from fedscale.torch_learner.devices import device_of, half, seeded
from fedscale.torch_learner.examples import Examples, aligned
from fedscale.torch_learner.measures import MEASURES, total
from fedscale.torch_learner.private import PrivateSteps, descend, gradient, members
from fedscale.torch_learner.resident import Resident, arrays_of, ordinary, shared_state
from fedscale.torch_learner.stacked import stacked_for
from fedscale.torch_learner.steps import Steps

KEEP = 2
EVALUATION_FACTOR = 4
OWN_SUMS = ("auc", "loss")
# How a dataset is made of what people have at hand.
MADE_OF = {
    "DataFrame": 'make a dataset of it: fs.data.from_frame(frame, label="y")',
    "DataLoader": "give the loader's own dataset; batches are the plan's",
    "tuple": "make a dataset of it: fs.data.from_arrays(x, y)",
}
ROWS = Dataset, TorchDataset  # a union would be made anew for every client


class TorchLearner:
    """Does the work of an ``App``.

    Args:
        app: the declared model.
        keep: how many prepared datasets stay at hand; a node needs two, one to train on and one to evaluate on.

    Raises:
        AppError: the app names a metric that does not exist.
    """

    def __init__(self, app: App, keep: int = KEEP) -> None:
        if isinstance(app.metrics, str):
            raise AppError("the app's metrics are one text", why="a list of names is expected", hint=f'write metrics=["{app.metrics}"]')
        self._app = app
        self._custom = dict(app.metrics) if isinstance(app.metrics, Mapping) else {}
        if taken := [name for name in OWN_SUMS if name in self._custom]:
            raise AppError(f"metric '{taken[0]}' cannot be redefined", hint="give it another name")
        self.check(app.metrics)
        self._resident: Resident | None = None
        self._way: tuple[Resident, Way] | None = None
        self._apart: Dataset | None = None
        self._shuffle = Shuffle()
        self._examples = lru_cache(maxsize=keep)(self._prepared)

    @property
    def app(self) -> App:
        """The declared model."""
        return self._app

    def check(self, metrics: Iterable[str]) -> None:
        """Refuse metrics this app cannot compute.

        Raises:
            AppError: with the closest name that exists.
        """
        known = ("loss", *MEASURES, *self._custom)
        for name in metrics:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}; or give App(metrics={{name: function}})"
                raise AppError(f"there is no metric '{name}'", hint=hint)

    def run(self, work: Work) -> Result:
        """Do a piece of work.

        The training loss is reported as the mean over everything seen in this piece of work, times ``examples``, which
        is the number of distinct rows of the site.

        Raises:
            AppError: the model, the loss or a metric does not return what it should.
            DataError: the data is not a dataset, has no rows or holds numbers that are not finite.
            PlanError: the plan asks for a device that this machine does not have.
            UpdateRejected: the loss is not finite: training diverged.
        """
        # A first model is made on the host, also by one that has no device to train it.
        device = device_of("cpu" if work.phase is Phase.INIT else work.training.device)
        with seeded(work.seed, device):
            if work.phase is Phase.INIT:
                return Result(arrays_of(shared_state(self._module())), 0)
            if work.phase is Phase.TRAIN:
                return self._train(work, device) if work.private is None else self._train_privately(work, work.private, device)
            return self._evaluate(work, device)

    def _module(self) -> nn.Module:
        """A new module of the app."""
        module = self._app.model()
        if not isinstance(module, nn.Module):
            raise AppError(f"the app's model is {type(module).__name__}", why="a function that makes a torch module is expected")
        for name, parameter in module.named_parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise AppError(f"the size of parameter '{name}' is open", hint="give the number of inputs instead of using a lazy layer")
            if not parameter.is_floating_point():
                raise AppError(f"parameter '{name}' is of dtype {parameter.dtype}", why="only real floating-point tensors can be averaged")
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise AppError("the app's model has no parameters to train")
        return module

    def warm(self, device: str) -> None:
        """Build the module ahead of the first piece of work, for the processes that are then forked.

        Raises:
            AppError, PlanError: as ``run``.
        """
        self._resident_on(device_of(device))

    def on_cuda(self, device: str) -> bool:
        """Whether training on that device, as a plan names it, means CUDA."""
        return device_of(device).type != "cpu"

    def blocks(self, training: Training, proximal: float, data: Callable[[], object]) -> tuple[Trainer | None, str]:
        """What trains many clients of this app at once; or nothing and why not.

        Args:
            training: how.
            proximal: FedProx's mu.
            data: gives any client's dataset, to see what a batch costs.
        """
        device = device_of(training.device)
        with seeded(0, device):
            why = "there is a CUDA device"
            if device.type == "cpu":
                blocks, why = blocks_for(self._module(), self._app.loss, training, proximal)
                if blocks is not None:
                    return blocks, ""
            sample = attempted(lambda: self.examples_of(data()))
            if isinstance(sample, Exception):
                return None, f"{why}; a client's data cannot be read: {type(sample).__name__}"
            stacked, more = stacked_for(self._module(), self._app.loss, training, proximal, device, sample)
            return stacked, f"{why}; {more}" if more else ""

    def _resident_on(self, device: torch.device) -> Resident:
        """The resident module."""
        if self._resident is None or self._resident.device != device:
            # A fixed seed: whatever does not travel must be alike on every node.
            with seeded(0, device):
                self._resident = Resident(self._module(), device)
        return self._resident

    def _loaded(self, work: Work, device: torch.device) -> Resident:
        """The resident module with the global model in it."""
        if work.arrays is None:
            raise AppError(f"there is no model to {work.phase}")
        resident = self._resident_on(device)
        resident.load(work.arrays)
        return resident

    def _train(self, work: Work, device: torch.device) -> Result:
        """Train from the global model on."""
        examples, resident, training = self.examples_of(work.data).on(device), self._loaded(work, device), work.training
        optimizer = Steps(resident.trained, training.optimizer, work.proximal)
        scaler = torch.amp.GradScaler(device.type) if training.amp and half(device) is torch.float16 else None
        sizes = _batch_sizes(len(examples), training.batch_size, pairs=resident.normalized)
        steps = min(training.epochs * len(sizes), training.max_steps or math.inf)
        losses: list[Tensor] = []
        loss_sum, seen = 0.0, 0
        resident.module.train()
        for step, rows in enumerate(islice(self._batches(examples, sizes, work.seed), int(steps)), 1):
            loss = self._loss(*self._forward(resident, examples, rows, work))  # outputs that nobody holds make room for the next step's
            if scaler is None:
                optimizer.descend(loss)
            else:
                optimizer.descend_scaled(loss, scaler)
            losses.append(loss.detach())
            seen += rows.shape[0]
            if step % len(sizes) == 0 or step == steps:
                loss_sum += self._finite(_weighted(losses, sizes), examples, work.data)
                losses.clear()
            work.progress(step / steps)
        arrays = resident.arrays()
        if not ordinary(arrays):
            # A layer that saturates hides an infinite feature from the loss, and not from the gradient of the last step.
            self._require_finite(examples, work.data)
        return Result(arrays, len(examples), {"loss": np.array([loss_sum * (len(examples) / seen)])})

    def require_private(self, unit: str) -> None:
        """Refuse a model under which one record would have a say in what is learnt from another; this learner keeps to ``Work.private``.

        Raises:
            AppError: it has batch norm.
        """
        if self._resident_on(torch.device("cpu") if self._resident is None else self._resident.device).normalized:
            why = "it mixes the rows of a batch, and its running statistics would leave without noise"
            hint = "use torch.nn.GroupNorm, or let opacus.validators.ModuleValidator.fix replace it inside App.model"
            raise AppError(f"batch norm cannot hide a {unit}", where="App.model", why=why, hint=hint)

    def _train_privately(self, work: Work, private: Private, device: torch.device) -> Result:
        """Train from the global model on, or sum its gradients, so that no record or patient shows."""
        self.require_private(private.unit)
        examples, resident = self._by_row(work.data).on(device), self._loaded(work, device)
        resident.module.train()
        objective = Objective(resident.module, lambda outputs, targets: self._aligned(outputs, targets, examples, work.data), self._app.loss)
        if self._way is None or self._way[0] is not resident:
            with seeded(work.seed, device):  # so that chance goes on as for whoever knows the way already
                probe = self._rows(resident, examples, torch.arange(min(PROBE, len(examples)), device=examples.device))
                self._loss(*objective.aligned(self._outputs(resident, probe[0]), probe[1]))
                self._way = resident, way_for(objective, *probe)
            resident = self._loaded(work, device)
        units = members(getattr(work.data, "groups", None), examples, private.unit)
        noisy = PrivateSteps(objective, self._way[1], lambda rows: self._rows(resident, examples, rows.to(examples.device)), units, private)
        if private.way == "union":
            return Result(gradient(resident, private, noisy, work.training), len(examples), private=private)
        steps = Steps(resident.trained, work.training.optimizer, work.proximal)
        return Result(descend(resident, work.arrays or {}, noisy, steps, work.progress), len(examples), private=private)

    def _batches(self, examples: Examples, sizes: list[int], seed: int) -> Iterator[Tensor]:
        """Row numbers of one batch after the other, where the rows are, in a new order each epoch, without end."""
        self._shuffle.seed(seed)
        while True:
            yield from torch.split(torch.from_numpy(self._shuffle.draw(len(examples))).to(examples.device), sizes)

    def _evaluate(self, work: Work, device: torch.device) -> Result:
        """Sum the loss and the metrics over all rows."""
        self.check(work.metrics)
        examples, resident = self.examples_of(work.data).on(device), self._loaded(work, device)
        sums, done = dict[str, Sums](), 0
        resident.module.eval()
        with torch.no_grad():
            for rows in torch.arange(len(examples), device=examples.device).split(EVALUATION_FACTOR * work.training.batch_size):
                outputs, targets = self._forward(resident, examples, rows, work)
                _add(sums, "loss", np.array([self._finite(float(self._loss(outputs, targets)) * len(rows), examples, work.data)]))
                for name in work.metrics:
                    if name != "loss":
                        _add(sums, name, self._measure(name, outputs, targets))
                done += len(rows)
                work.progress(done / len(examples))
        return Result(None, len(examples), sums)

    def _forward(self, resident: Resident, examples: Examples, rows: Tensor, work: Work) -> tuple[Tensor, Tensor]:
        """Outputs and targets of some rows, as loss and metrics take them."""
        features, targets = self._rows(resident, examples, rows)
        with resident.computing(mixed=work.training.amp):
            outputs = self._outputs(resident, features)
        return self._aligned(outputs.float() if work.training.amp else outputs, targets, examples, work.data)

    def _aligned(self, outputs: Tensor, targets: Tensor, examples: Examples, data: object) -> tuple[Tensor, Tensor]:
        """Outputs and targets that belong together."""
        try:
            return aligned(outputs, targets, examples.classes)
        except AppError:
            # Classes of which one is missing are no whole numbers, and so do not look like classes.
            self._require_finite(examples, data)
            raise

    def _rows(self, resident: Resident, examples: Examples, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features and targets of some rows, on the model's device."""
        features = examples.features.index_select(0, rows).to(resident.device)
        targets = examples.targets.index_select(0, rows).to(resident.device)
        if resident.images and features.ndim == 4:
            # Convolutions read channels last: on processors twice as fast, and what tensor cores want.
            features = features.contiguous(memory_format=torch.channels_last)
        return features, targets

    def _outputs(self, resident: Resident, features: Tensor) -> Tensor:
        """What the model makes of features, checked."""
        outputs = resident.module(features)
        if not isinstance(outputs, Tensor):
            raise AppError(f"the model returned {type(outputs).__name__}", why="a tensor is expected", hint="for anything else write a Learner")
        return outputs

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, checked."""
        if outputs.ndim == 1 and (self._app.loss is nn.functional.cross_entropy or isinstance(self._app.loss, nn.CrossEntropyLoss)):
            raise AppError(
                "cross entropy needs one output for each class, the model has one",
                hint="use binary_cross_entropy_with_logits, or two outputs",
            )
        loss = self._app.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise AppError(f"the loss returned {found}", why="the mean over the batch, a tensor without dimensions, is expected")
        return loss

    def _finite(self, loss: float, examples: Examples, data: object) -> float:
        """A loss, unless training diverged; only then are the rows looked at, for what looks like divergence may lie in them."""
        if math.isfinite(loss):
            return loss
        self._require_finite(examples, data)
        raise UpdateRejected("the loss is not finite", why="training diverged", hint="lower train.optimizer.lr")

    def _require_finite(self, examples: Examples, data: object) -> None:
        """Refuse rows with numbers that are not finite, in the words of the dataset they were prepared from."""
        if isinstance(data, Dataset):
            examples.require_finite(Examples.of_arrays(data.x, data.y), data.columns)
        else:
            examples.require_finite(examples)

    def _measure(self, name: str, outputs: Tensor, targets: Tensor) -> Sums:
        """The sums of one metric over a batch."""
        if name not in self._custom:
            return MEASURES[name](outputs, targets)
        values = torch.as_tensor(self._custom[name](outputs, targets))
        if values.shape != (len(targets),):
            raise AppError(f"metric '{name}' returned shape {tuple(values.shape)} for {len(targets)} examples", why="one value for each is expected")
        return total(values)

    def examples_of(self, data: object) -> Examples:
        """The rows of a dataset, prepared by the app once and kept."""
        if not isinstance(data, ROWS):
            kind = type(data).__name__
            raise DataError(f"a torch app cannot learn from {kind}", hint=MADE_OF.get(kind, "give a fedscale or a torch dataset"))
        return self._examples(data)

    def _by_row(self, data: object) -> Examples:
        """The rows of a dataset for training that hides them: prepared, and found to be prepared each by itself.

        Raises:
            AppError: the app's ``prepare`` lets rows have a say in each other, as scaling by their mean does.
        """
        examples = self.examples_of(data)
        if self._app.prepare is None or not isinstance(data, Dataset) or self._apart is data:
            return examples
        for some in (np.arange(0, len(data), 2), np.arange(1, len(data), 2)):
            part = self._prepared(data.take(some)) if len(some) and len(examples) == len(data) else examples
            rows = torch.from_numpy(some)
            if not (torch.equal(part.features, examples.features[rows]) and torch.equal(part.targets, examples.targets[rows])):
                hint = "scale by fixed numbers instead of the site's own mean and deviation"
                raise AppError("App.prepare does not prepare each row by itself", why="differential privacy hides single rows", hint=hint)
        self._apart = data
        return examples

    def _prepared(self, data: Dataset | TorchDataset[Any]) -> Examples:
        """The rows of a dataset after the app's ``prepare``."""
        prepared = self._app.prepare(data) if self._app.prepare else data
        if isinstance(prepared, Dataset):
            return Examples.of_arrays(prepared.x, prepared.y)
        if isinstance(prepared, TorchDataset):
            return Examples.of_dataset(prepared)
        raise AppError(f"prepare returned {type(prepared).__name__}", why="a fedscale or a torch dataset is expected")


def as_learner(app: object, keep: int = KEEP) -> Learner:
    """The learner behind what a user gives: an ``App`` is trained with torch, a ``Learner`` is taken as it is.

    Args:
        app: an ``App`` or a ``Learner``.
        keep: see ``TorchLearner``.

    Raises:
        AppError: it is neither.
    """
    if isinstance(app, App):
        return TorchLearner(app, keep)
    if isinstance(app, Learner) and not isinstance(app, type):
        return app
    found = f"the class {app.__name__}" if isinstance(app, type) else f"of type {type(app).__name__}"
    raise AppError(f"the app is {found}", why="an App, or an object with the method run(work), is expected")


def _batch_sizes(rows: int, size: int, *, pairs: bool) -> list[int]:
    """The sizes of an epoch's batches; with ``pairs`` a last single row joins the batch before it.

    Batch norm cannot train on one row, and a site should not fail for having one row more.
    """
    sizes = [size] * (rows // size) + ([rows % size] if rows % size else [])
    return [*sizes[:-2], size + 1] if pairs and len(sizes) > 1 and sizes[-1] == 1 < size else sizes


def _weighted(losses: list[Tensor], sizes: list[int]) -> float:
    """The loss summed over an epoch's examples, from the means of its batches."""
    return float(sum(mean * size for mean, size in zip(torch.stack(losses).tolist(), sizes, strict=False)))


def _add(sums: dict[str, Sums], name: str, more: Sums) -> None:
    """Add a batch's sums to a metric's."""
    sums[name] = sums[name] + more if name in sums else more
