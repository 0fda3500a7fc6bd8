"""The ClientApp and the ServerApp of a directory, imported as Flower would import them, and asked as its processes would ask them."""

from __future__ import annotations

import importlib
from functools import reduce
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedscale.errors import AppError, RunFailed
from fedscale.flower.directory import FILE, Directory

FAULTS = (ImportError, SyntaxError, LookupError, NameError, AttributeError, TypeError, ValueError, OSError, RuntimeError, ArithmeticError)


def server_app(directory: Directory) -> ServerApp:
    """The ServerApp; call it where the directory is importable.

    Raises:
        AppError: it cannot be imported, or is none.
    """
    return _loaded(directory, directory.serverapp, ServerApp)


def client_app(directory: Directory) -> ClientApp:
    """The ClientApp; call it where the directory is importable.

    Raises:
        AppError: it cannot be imported, or is none.
    """
    return _loaded(directory, directory.clientapp, ClientApp)


def asked(app: ClientApp, message: Message, context: Context) -> Message:
    """What a ClientApp replies; one that would end its process is one that failed.

    Raises:
        AppError: it returned no message, or would have ended the process.
    """
    try:
        reply = app(message, context)
    except SystemExit:  # with words of its own, which are for nobody else
        raise AppError("the ClientApp did not answer", why="it called sys.exit") from None
    if not isinstance(reply, Message):
        raise AppError("the ClientApp did not answer", why=f"it returned {type(reply).__name__}, a Message is expected")
    return reply


def led(app: ServerApp, grid: Grid, context: Context) -> None:
    """Let a ServerApp lead to its end; one that would end its process without an error has come to it.

    Raises:
        RunFailed: it would have ended the process with an error.
    """
    try:
        app(grid, context)
    except SystemExit as ended:
        if ended.code not in (None, 0):
            raise RunFailed(f"the ServerApp called sys.exit({ended.code!r})") from None


def _loaded(directory: Directory, reference: str, kind: type) -> Any:
    name, _, attribute = reference.partition(":")
    where = f"{directory.path}: {reference}"
    try:
        module = importlib.import_module(name)
    except FAULTS as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            hint = "components are modules of the app's directory"
            raise AppError(f"there is no module '{error.name}'", where=where, hint=hint) from None
        hint = f"install what the app's {FILE} lists as its dependencies" if isinstance(error, ModuleNotFoundError) else ""
        raise AppError(f"the module '{name}' cannot be imported", where=where, why=f"{type(error).__name__}: {error}", hint=hint) from error
    try:
        app = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise AppError(f"the module '{name}' has no '{attribute}'", where=where) from None
    if not isinstance(app, kind):
        raise AppError(f"'{reference}' is of type {type(app).__name__}", where=where, why=f"a {kind.__name__} is expected")
    return app
