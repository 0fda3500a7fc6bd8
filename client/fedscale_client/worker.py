"""The worker: the process in which apps run, kept warm between the tasks of one run.

``python -m fedscale_client.worker`` speaks through a pipe that it takes away from standard input and output before any
foreign code is imported; what an app prints goes to the site's log. Dataset, app and plan stay loaded between tasks.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import math
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedscale.errors import AppError
from fedscale.learner import App, Learner, Phase
from fedscale.letters import Correspondent, Post
from fedscale.plan import Plan
from fedscale.task import FirstModel, Task, layout_for, perform, portion, private_for
from fedscale.vector import Schema, Vector
from fedscale.wire.codec import digest_of
from fedscale_client import datasets, failures, pipe
from fedscale_client.declarations import Declaration
from fedscale_client.failures import Context
from fedscale_client.pipe import Message
from fedscale_client.states import States

PROGRESS_SECONDS = 0.2
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, linux/prctl.h


class Bench:
    """What stays loaded between tasks: the dataset, the app, the plan and the dataset's portions.

    Args:
        seat: what all tasks of this worker have in common: ``bundle``, ``home``, ``dataset`` and its ``declaration``.
    """

    def __init__(self, seat: Message) -> None:
        self.bundle, self._home = Path(seat["bundle"]), Path(seat["home"])
        self._declaration = Declaration(**seat["declaration"])
        self.context = Context(self.bundle, seat["dataset"], tuple(map(str, self._declaration.files(self._home))))
        self._data: Any = None
        self._loaded = self.exclusive = False
        self._app: tuple[str, Learner] | None = None
        self._plan: tuple[str, Plan] | None = None
        self._portions: dict[Phase, Any] = {}

    def perform(self, request: Message, progress: Callable[[float], None]) -> Message:
        """Do one task and write its answer to the file the request names."""
        data = self._dataset()
        plan = self._read(request["plan"])
        learner = self._learner(plan.job.app)
        phase = Phase(request["phase"])
        if phase is Phase.MESSAGE:
            return _answer(learner, request, data)
        schema = Schema.from_json(request["schema"]) if request["schema"] else None
        self.context = replace(self.context, schema=schema)
        layout = layout_for(plan, phase, schema.size if schema else 0, request["terms"], request["clip"])
        task = Task(request["node"], phase, request["number"], layout, schema, "")
        if phase not in self._portions:
            self._portions[phase] = portion(plan, phase, data)
        private = private_for(plan, phase, data)
        result = perform(task, plan, plan.strategy.build(), learner, self._portions[phase], _model(request["model"], schema), progress, private)
        path = Path(request["answer"])
        if isinstance(result, FirstModel):
            return {**_write(path, result.model), "schema": result.schema.to_json()}
        return {**_write(path, result), "schema": ""}

    def _dataset(self) -> Any:
        """The site's dataset. It is read before the bundle is importable, so no app can pose as the site's loader."""
        if not self._loaded:
            self.context = replace(self.context, loading=True)
            self._data, self._loaded = datasets.read(self._declaration, self._home), True
            # Whether what the site's loader returned says that no second process can have it.
            self.exclusive = getattr(self._data, "exclusive", False) is True
            self.context = replace(self.context, loading=False)
            sys.path.insert(0, str(self.bundle))
        return self._data

    def _read(self, text: str) -> Plan:
        """The plan, read once."""
        if self._plan is None or self._plan[0] != text:
            self._plan, self._portions = (text, Plan.from_toml(text)), {}
        return self._plan[1]

    def _learner(self, app: str) -> Learner:
        """The app, imported once.

        Raises:
            AppError: the bundle has no such module or attribute.
        """
        if self._app is None or self._app[0] != app:
            name, _, attribute = app.partition(":")
            base = self.bundle.joinpath(*name.split("."))
            if not base.with_name(f"{base.name}.py").is_file() and not (base / "__init__.py").is_file():
                raise AppError(f"the bundle has no module '{name}'", where="job.app", hint="name a module in the folder that was submitted")
            module = importlib.import_module(name)
            if not Path(module.__file__ or os.devnull).resolve().is_relative_to(self.bundle.resolve()):
                raise AppError(f"module '{name}' is taken by a package of this node", where="job.app", hint="give the app's module another name")
            if not hasattr(module, attribute):
                raise AppError(f"module '{name}' has no '{attribute}'", where="job.app")
            self._app = (app, _as_learner(getattr(module, attribute)))
        return self._app[1]


def _answer(learner: Learner, request: Message, data: Any) -> Message:
    """Have a message of a led run answered; what the app wants to remember is kept before its answer is.

    Raises:
        AppError: the app answers none.
    """
    if not isinstance(learner, Correspondent):
        raise AppError("the app answers no messages", where="job.app", why="only Flower apps do")
    states, number = States(Path(request["states"])), request["number"]
    done = learner.reply(Post(request["envelope"], Path(request["model"]).read_bytes(), states.before(number), data))
    states.keep(number, done.state)
    return {**_write(Path(request["answer"]), np.frombuffer(done.content, np.uint8)), "schema": ""}


def _as_learner(app: object) -> Learner:
    """The app as a learner; torch, which takes seconds to load and may be missing, only for what needs it."""
    if isinstance(app, App):
        learner: Learner = importlib.import_module("fedscale.torch_learner").as_learner(app)
        return learner
    if isinstance(app, Learner) and not isinstance(app, type):
        return app
    found = "a class" if isinstance(app, type) else f"of type {type(app).__name__}"
    raise AppError(f"the app is {found}", where="job.app", why="an App, or an object with the method run(work), is expected")


def _model(path: str, schema: Schema | None) -> Vector | None:
    """The global model, mapped read-only: no copy, and pages shared with other workers."""
    if schema is None:
        return None
    with Path(path).open("rb") as file:
        return schema.read(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def _write(path: Path, values: np.ndarray[Any, Any]) -> Message:
    """Write an answer; its digest and size."""
    body = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data.cast("B")
    with path.open("wb") as file:
        file.write(body)
    return {"digest": digest_of(body), "size": len(body)}


def _reply(bench: Bench, request: Message, progress: Callable[[float], None]) -> Message:
    """Do a task; whatever foreign code does ends here, and only its scrubbed failure goes on."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        reply = bench.perform(request, progress)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        reply = {"stopped": True}
    except Exception as error:  # noqa: BLE001 - the process boundary: anything an app raises becomes a typed failure
        traceback.print_exc()
        reply = {"failed": asdict(failures.of_error(error, bench.context))}
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return reply


class _Reporter:
    """Tells the node how far a task is, at most a few times a second: an app may call it in every step."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send, self._last = send, -math.inf

    def __call__(self, fraction: float) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS and math.isfinite(fraction):
            self._last = now
            self._send({"progress": min(max(float(fraction), 0.0), 1.0)})


def _send(descriptor: int, message: Message) -> None:
    """Write one message; a short one in one piece, which no signal can tear."""
    view = memoryview(pipe.encode(message))
    while view:
        view = view[os.write(descriptor, view) :]


def _take_pipe() -> tuple[int, int]:
    """Move the pipe away from descriptors 0 and 1, where foreign code would find it: it reads nothing and prints to the log."""
    receiving, sending = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return receiving, sending


def main() -> None:
    """Serve tasks until the node closes the pipe or dies."""
    receiving, sending = _take_pipe()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    faulthandler.enable()
    send = partial(_send, sending)
    with os.fdopen(receiving, "rb") as stream:
        seat = pipe.receive(stream)
        if seat is None:
            return
        bench = Bench(seat)
        while request := pipe.receive(stream):
            send({**_reply(bench, request, _Reporter(send)), "exclusive": bench.exclusive})


if __name__ == "__main__":
    main()
