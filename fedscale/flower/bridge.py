"""A Flower app as a ``Learner``: its ClientApp does the work of a node's tasks, deployed as native apps are.

Where our coordinator takes the ServerApp's place, it says who is asked, when a round closes and how answers are summed; what
the ServerApp would have told the clients, its first model and the config of every round, is honoured: see ``rehearsal``. Where
the ServerApp itself leads, from outside of the coordinator, its messages come as they are: see ``lead``.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedscale.errors import AppError
from fedscale.flower import apps, mail, records, touches
from fedscale.flower.directory import Directory, Scalar, read
from fedscale.flower.quick import quick
from fedscale.flower.rehearsal import Script, rehearse
from fedscale.learner import Phase, Result, Work
from fedscale.letters import Post, Posted
from fedscale.metrics import Sums
from fedscale.vector import FLOATS, Arrays

NODE, RUN = 2, 1
LOSSES = ("loss", "train_loss", "eval_loss", "val_loss", "test_loss")

_DATA: ContextVar[Any] = ContextVar("fedscale-flower-data", default=None)


def dataset(_context: Context) -> Any:
    """The site's dataset, for a ClientApp that was given its data by the site's owner; ``None`` in a simulation."""
    return _DATA.get()


def learner(file: str, overrides: Mapping[str, Scalar] | None = None) -> FlowerLearner:
    """The Flower app in the directory of a file, as a learner.

    Args:
        file: any file in the app's directory.
        overrides: settings that win over the app's run config.

    Raises:
        ConfigError: no Flower app.
    """
    directory = read(Path(file).resolve().parent)
    return FlowerLearner(directory, {**directory.config, **(overrides or {})})


@runtime_checkable
class Line(Protocol):
    """In a dataset's place, a way to somebody else who runs the ClientApp; see ``gateway``."""

    def ask(self, message: Message, directory: Directory, config: Mapping[str, Scalar], run: int) -> Message:
        """Their reply."""


class FlowerLearner:
    """Does a node's work with a ClientApp; the ClientApp's state lives as long as the learner.

    Args:
        directory: the app, which must be importable when there is work.
        config: the run config.
    """

    def __init__(self, directory: Directory, config: Mapping[str, Scalar]) -> None:
        self._directory, self._config = directory, dict(config)
        self._state = RecordDict()
        self._node: dict[str, Any] = {}
        self._line: Line | None = None
        # Whoever else runs the ClientApp keeps its state by this number.
        self._run = secrets.randbits(62)

    def run(self, work: Work) -> Result:
        """Do the work.

        Raises:
            AppError: the app cannot be imported, or its ClientApp answers with what is no result.
        """
        touches.identify(RUN)
        with self._at(work.data):
            return Result(_floats(self._script.first[1]), 0) if work.phase is Phase.INIT else self._answer(work)

    def reply(self, post: Post) -> Posted:
        """Answer a message of the app's own ServerApp, which leads the run.

        Raises:
            AppError: the app cannot be imported, or its ClientApp answers with what is no reply.
            ProtocolError: the message is malformed.
        """
        message, run = mail.opened(post.envelope, post.content)
        with self._at(post.data):
            reply, state = self._asked(message, mail.unpacked(post.state) if post.state else RecordDict(), run)
        return Posted(mail.packed(reply.content), mail.packed(state))

    @contextmanager
    def _at(self, data: Any) -> Iterator[None]:
        """Work with a site's dataset inside the ``with`` block."""
        token = _DATA.set(data)
        self._node = dict(data) if isinstance(data, Mapping) else {}
        self._line = data if isinstance(data, Line) else None
        try:
            with quick():
                yield
        finally:
            _DATA.reset(token)

    @cached_property
    def _app(self) -> ClientApp:
        return apps.client_app(self._directory)

    @cached_property
    def _script(self) -> Script:
        context = Context(run_id=RUN, node_id=0, node_config={}, state=RecordDict(), run_config=dict(self._config))
        return rehearse(apps.server_app(self._directory), context, self._reply)

    def _reply(self, message: Message) -> Message:
        """What the ClientApp says; its state changes only where it does not raise.

        Raises:
            AppError: it returned no message, or one with an error.
        """
        reply, state = self._asked(message, records.apart(self._state), RUN)
        _require_done(reply.content)
        self._state = state
        return reply

    def _asked(self, message: Message, state: RecordDict, run: int) -> tuple[Message, RecordDict]:
        """What the ClientApp, or whoever runs it here, says, and its state after that.

        Raises:
            AppError: it returned no message, or one with an error.
        """
        node = int(message.metadata.dst_node_id)
        context = Context(run_id=run, node_id=node, node_config=self._node, state=state, run_config=dict(self._config))
        line = self._line
        reply = apps.asked(self._app, message, context) if line is None else line.ask(message, self._directory, self._config, self._run)
        if reply.has_error():
            # Its reason is the app's own words, which may quote a patient: they are for the site's log.
            raise AppError("the ClientApp did not answer", why=f"it returned an error of code {reply.error.code}") from ValueError(reply.error.reason)
        return reply, context.state

    def _answer(self, work: Work) -> Result:
        """The ClientApp's reply to a training or an evaluation."""
        phase, model = str(work.phase), work.arrays or {}
        content = self._script.content(phase, work.number)
        name, record = next(((name, record) for name, record in content.items() if isinstance(record, ArrayRecord)), ("", ArrayRecord()))
        if name:
            content[name] = records.record_of(_filled(records.numpy_of(record), model))
        message = Message(content, NODE, phase, group_id=str(work.number))
        touches.stamp(message, f"{phase}-{work.number}", RUN)
        reply = self._reply(message).content
        examples, values = records.measured(reply)
        return Result(_trained(reply, name, model) if work.phase is Phase.TRAIN else None, int(examples), _sums(values, examples, work))


def _floats(record: ArrayRecord) -> Arrays:
    """The floating-point arrays of a record; integer ones stay with each node as its app made them."""
    return {name: array for name, array in records.numpy_of(record).items() if str(array.dtype) in FLOATS}


def _filled(arrays: Arrays, model: Arrays) -> Arrays:
    """The app's arrays with the global model in them, in the app's own types."""
    return {name: model[name].astype(array.dtype) if name in model else array for name, array in arrays.items()}


def _trained(content: RecordDict, name: str, model: Arrays) -> Arrays:
    """What the global model has of the model in a reply, which goes by the name it was sent under or is the only one."""
    models = {str(key): record for key, record in content.items() if isinstance(record, ArrayRecord)}
    if name not in models and len(models) != 1:
        raise AppError(f"the ClientApp returned {len(models)} models", why=f"one named '{name}' is expected")
    found = records.numpy_of(models.get(name) or next(iter(models.values())))
    return {key: array for key, array in found.items() if key in model}


def _require_done(content: RecordDict) -> None:
    """Refuse a legacy reply that says that it is none."""
    for name, record in content.config_records.items():
        if str(name).endswith("res.status") and record.get("code", 0) != 0:
            hint = "switch evaluation off: --set evaluate.every=0" if str(name).startswith("evaluate") else ""
            raise AppError("the ClientApp did not do what was asked", hint=hint) from ValueError(record.get("message"))


def _sums(values: Mapping[str, float], examples: float, work: Work) -> dict[str, Sums]:
    """The asked metrics, from means over the examples to sums; a loss that is not reported counts as 0.

    Raises:
        AppError: a metric that the plan names is not reported.
    """
    named = {re.sub(r"[^a-z0-9]+", "_", name.lower()): value for name, value in values.items()}
    named.setdefault("loss", next((named[name] for name in LOSSES if name in named), 0.0))
    wanted = work.metrics or ("loss",)
    if absent := [name for name in wanted if name not in named]:
        raise AppError(f"the ClientApp reports no metric '{absent[0]}'", why=f"it reports {', '.join(sorted(named))}", hint="set evaluate.metrics")
    return {name: np.array([named[name] * examples]) for name in wanted}
