"""The processes of a demonstration: real ones, started through the command line that everybody types."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from fedscale import console, errors
from fedscale.errors import FedscaleError, RunFailed, Unreachable

READY_SECONDS, STOP_SECONDS, LOOK_SECONDS = 120.0, 5.0, 0.05
LAST_LINES = 12


def program() -> list[str]:
    """How ``fedscale`` is started: the script beside this interpreter, or the module where there is none."""
    script = Path(sys.executable).with_name("fedscale")
    return [str(script)] if script.exists() else [sys.executable, "-m", "fedscale"]


def environment() -> dict[str, str]:
    """One thread a process, for several share the machine; no proxy for what stays on it, and nobody's own defaults."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDSCALE_")}
    local = "127.0.0.1,localhost"
    return inherited | {"OMP_NUM_THREADS": "1", "NO_PROXY": local, "no_proxy": local}


@dataclass
class Cast:
    """Commands and background processes; whatever is still running ends with the ``with`` block, however that is left.

    Args:
        tell: shown each command before it runs.
    """

    tell: Callable[[str], None] = console.note
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _before: dict[int, Any] = field(default_factory=dict)
    _over: bool = False
    _noting: bool = False
    _interrupted: bool = False

    def __enter__(self) -> Self:
        """From now on SIGTERM unwinds like Ctrl-C, so that nothing is left behind."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop every process, those that do not listen by force."""
        try:
            self.stop()
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def start(self, name: str, *words: object, log: Path, through: Sequence[str] = ()) -> None:
        """Start a command in the background; its stderr goes to ``log``, its stdout to the same name with ``.out``.

        Args:
            name: what the process is called from now on.
            words: what one types behind ``fedscale``.
            log: the file.
            through: what stands in the place of ``fedscale``, if something else does.
        """
        self._show(words)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as err, log.with_suffix(".out").open("wb") as out, self._lock:
            if self._over:
                raise RunFailed(f"{name} was not started, the demonstration is over")
            with self._uninterrupted():
                command = [*(through or program()), *map(str, words)]
                self._running[name] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment(), start_new_session=True
                )

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """Put an interrupt off until a process that was started has been noted down; only the main thread is ever interrupted."""
        main = threading.current_thread() is threading.main_thread()
        self._noting = self._noting or main
        try:
            yield
        finally:
            self._noting = self._noting and not main
        if main and self._interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Stop, now or as soon as nothing can be forgotten."""
        self._interrupted = True
        if not self._noting:
            raise KeyboardInterrupt

    def ready(self, name: str, log: Path) -> Any:
        """The data of the envelope that a background command prints when it is ready.

        Raises:
            FedscaleError: the error it ended with, or ``RunFailed`` where it said none.
            Unreachable: it says nothing in time.
        """
        ends = time.monotonic() + READY_SECONDS
        while time.monotonic() < ends:
            said = log.with_suffix(".out").read_text(encoding="utf-8")
            if said.endswith("\n"):
                return _data(json.loads(said))
            if self._running[name].poll() is not None:
                raise RunFailed(f"{name} ended before it was ready", where=str(log), why=_tail(log))
            time.sleep(LOOK_SECONDS)
        raise Unreachable(f"{name} is not ready after {READY_SECONDS:g} s", where=str(log), why=_tail(log))

    def call(self, *words: object, show: bool = True, live: bool = False) -> Any:
        """Run a command with ``--json`` and return its data; with ``live`` its progress is seen on stderr.

        Raises:
            FedscaleError: the error it ended with.
        """
        if show:
            self._show(words)
        err: int | IO[bytes] | None = None if live else subprocess.DEVNULL
        command = [*program(), *map(str, words), "--json"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, env=environment(), check=False)
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            raise RunFailed(
                "a command of the demonstration broke off", where=shlex.join(map(str, words)), why=f"exit code {done.returncode}"
            ) from None
        return _data(answer)

    def alive(self) -> list[str]:
        """Names of the processes that run."""
        return [name for name, process in self._running.items() if process.poll() is None]

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a process a signal; after SIGKILL, wait until it is gone."""
        self._running[name].send_signal(number)
        if number is signal.SIGKILL:
            self._running[name].wait()

    def pid(self, name: str) -> int:
        """The number of a process."""
        return self._running[name].pid

    def dismiss(self) -> None:
        """Ask all to end, without waiting for it; from now on none is started."""
        with self._lock:
            self._over = True
            for process in self._running.values():
                if process.poll() is None:
                    process.terminate()

    def stop(self) -> None:
        """End all; those that take too long are killed with whatever they have started."""
        self.dismiss()
        ends = time.monotonic() + STOP_SECONDS
        for process in self._running.values():
            try:
                process.wait(max(ends - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _show(self, words: tuple[object, ...]) -> None:
        self.tell(f"$ {shlex.join(['fedscale', *map(str, words)])}")


def _tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])


def _data(answer: dict[str, Any]) -> Any:
    """The data in an envelope.

    Raises:
        FedscaleError: the error in it.
    """
    if not answer["ok"]:
        raise _error(answer["error"])
    return answer["data"]


def _error(told: dict[str, str]) -> FedscaleError:
    """The error in an envelope."""
    kind = getattr(errors, told["type"], RunFailed)
    known = isinstance(kind, type) and issubclass(kind, FedscaleError)
    error: FedscaleError = (kind if known else RunFailed)(told["what"], where=told["where"], why=told["why"], hint=told["hint"])
    return error
