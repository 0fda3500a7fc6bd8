"""Why a task failed, as it may leave the site: types, places and advice, never a value.

An exception of foreign code can quote a patient in its message, its notes, its causes or the variables of its frames. Of
all these nothing is read. What travels is the type, if it is defined by a module; for each frame file, line and function;
and the source line where it stands in the bundle, which the coordinator has anyway. Errors of ours keep their words, which
carry no values, but only if our own code raised them.
"""

from __future__ import annotations

import dis
import errno
import os
import re
import signal
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import CodeType

import fedscale
from fedscale.causes import cause_of
from fedscale.errors import Cause, Failure, FedscaleError
from fedscale.vector import Schema

DEEPEST = 12
LONGEST_CHAIN = 4
LONGEST_LINE = 160
LONGEST = 3_600
FULL = f"disk full or over quota ({os.strerror(errno.ENOSPC).lower()})"
OURS = (*(Path(folder).resolve() for folder in fedscale.__path__), Path(__file__).resolve().parent)
LIBRARIES = tuple(dict.fromkeys(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib", "platstdlib")))

HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE, object.h: made at run time, as every class of Python is
COMPILED = frozenset({"OutOfMemoryError", "AcceleratorError", "error"})  # names in compiled modules, where nobody can look them up

HINTS = {
    Cause.CODE: "the site finds the full message in the log of its worker",
    Cause.DATA: "the site can look with: fedscale node data check",
    Cause.MEMORY: "use a smaller batch or model, or give the node more memory",
    Cause.DISK: "free space in the node's home",
    Cause.DIVERGED: "lower the learning rate",
    Cause.WORKER: "the site finds what led to it in the log of its worker",
}


@dataclass(frozen=True, slots=True)
class Context:
    """What was going on when something failed.

    Args:
        bundle: the folder of the app.
        dataset: the name of the dataset, which stands for the paths of its files.
        paths: where these files lie.
        loading: whether the dataset was being read.
        schema: the model's parts, to name a coordinate.
    """

    bundle: Path
    dataset: str = ""
    paths: tuple[str, ...] = ()
    loading: bool = False
    schema: Schema | None = None


def of_local(error: FedscaleError | OSError) -> Failure:
    """The failure behind an error of the node itself, outside of its worker."""
    context = Context(Path(os.devnull))
    if isinstance(error, FedscaleError) or _cause(error, context) is Cause.DISK:
        return of_error(error, context)
    cause = Cause.MEMORY if error.errno == errno.ENOMEM else Cause.DISK
    return Failure(cause, f"the node cannot use its own files or processes ({error.strerror or type(error).__name__})", hint=HINTS[cause])


def of_error(error: BaseException, context: Context) -> Failure:
    """The failure behind an exception that was raised while doing a task."""
    ours, cause = _is_ours(error), _cause(error, context)
    where, text = _innermost(error, context), _traceback(error, context)
    if ours and isinstance(error, FedscaleError):
        what = f"{error.what} ({error.why})" if error.why else error.what
        return Failure(cause, what, _place(error.where, context) or where, error.hint or HINTS.get(cause, ""), text if cause is Cause.CODE else "")
    return Failure(cause, _foreign(error, cause, context), where, HINTS.get(cause, ""), text)


def of_exit(code: int | None) -> Failure:
    """The failure behind a worker that ended by itself; ``code`` as ``subprocess`` has it, negative for a signal."""
    if code == -signal.SIGKILL:
        return Failure(Cause.MEMORY, "the worker was killed by the system, most likely for want of memory", hint=HINTS[Cause.MEMORY])
    if code is None:
        what = "the worker closed its pipe and had to be killed"
    elif code < 0:
        what = f"the worker was ended by signal {signal.Signals(-code).name}"
    else:
        what = f"the worker ended itself with exit code {code}"
    return Failure(Cause.WORKER, what, hint=HINTS[Cause.WORKER])


def _cause(error: BaseException, context: Context) -> Cause:
    """The typed reason of an exception."""
    return cause_of(error, ours=_is_ours(error)) or (Cause.DATA if context.loading else Cause.CODE)


def _is_ours(error: BaseException) -> bool:
    """Whether our own code raised it, so that its words are known to carry no values."""
    codes = [frame.f_code for frame, _ in walk_tb(error.__traceback__)]
    return isinstance(error, FedscaleError) and bool(codes) and _below(_file(codes[-1]), OURS)


def _foreign(error: BaseException, cause: Cause, context: Context) -> str:
    """One sentence about an exception whose message must not be read."""
    if cause is Cause.DISK:
        return FULL
    if cause is Cause.MEMORY:
        return f"out of memory ({_kind(error, context)})"
    if isinstance(error, ModuleNotFoundError) and _imported(error):
        return f"the app needs the package '{error.name}', which this node does not have"
    if context.loading:
        return f"the dataset '{context.dataset}' could not be loaded: {_kind(error, context)}"
    return f"the app raised {_kind(error, context)}"


def _imported(error: ModuleNotFoundError) -> bool:
    """Whether an import statement raised it: then the name stands in the code and comes from no data."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    return last is not None and last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["IMPORT_NAME"]


def _kind(error: BaseException, context: Context) -> str:
    """The type, by the first class of its line that a module defines: one made up at run time could be named after data."""
    for kind in type(error).__mro__:
        if getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind and _written(kind, context):
            return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return "Exception"


def _written(kind: type, context: Context) -> bool:
    """Whether a class's name stands in code of the bundle or of a package: an app can put a class of any name into any module, or make one up."""
    if not kind.__flags__ & HEAP_TYPE:
        return True
    file = Path(getattr(sys.modules[kind.__module__], "__file__", None) or os.devnull)
    place = [*file.parent.parts, *([] if file.stem == "__init__" else [file.name.partition(".")[0]])]
    module = kind.__module__.split(".")
    if place[-len(module) :] != module or not _below(file, (context.bundle, *OURS, *LIBRARIES)):
        return False
    try:
        return kind.__name__ in COMPILED or (kind.__name__.isidentifier() and kind.__name__ in file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _place(where: str, context: Context) -> str:
    """A place without the site's paths; a coordinate by the name of its tensor."""
    for path in sorted(filter(None, context.paths), key=len, reverse=True):
        where = where.replace(path, f"dataset '{context.dataset}'")
    if context.schema and (coordinate := re.fullmatch(r"coordinate (\d+)", where)):
        return f"tensor '{context.schema.locate(int(coordinate[1]))}'"
    return Path(where).name if where.startswith(os.sep) else where


def _traceback(error: BaseException, context: Context) -> str:
    """The frames of an exception and of those that led to it, one a line, innermost last; the end is what is kept."""
    chain: list[BaseException] = [error]
    while len(chain) < LONGEST_CHAIN and (before := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__)):
        chain.append(before)
    lines: list[str] = []
    for part in reversed(chain):
        lines += [*_frames(part, context), _kind(part, context) if part is error else f"{_kind(part, context)}, then"]
    return "\n".join(lines)[-LONGEST:]


def _frames(error: BaseException, context: Context) -> Iterator[str]:
    """One line for each of the innermost frames outside of the worker's own code."""
    for frame, number in deque(walk_tb(error.__traceback__), DEEPEST):
        code = frame.f_code
        if not _below(_file(code), OURS[-1:]):
            yield _frame(code, number, context)
    if isinstance(error, SyntaxError) and (name := _in_bundle(Path(error.filename or ""), context)):
        yield f"{name}:{error.lineno}"


def _frame(code: CodeType, number: int, context: Context) -> str:
    """File, line and function; the source line only from the bundle."""
    if name := _in_bundle(_file(code), context):
        return f"{name}:{number} {code.co_name}: {_source(context.bundle / name, number)}".rstrip(": ")
    package = _package(code)
    return f"{package}:{number} {code.co_name}" if package else "code outside of the bundle"


def _innermost(error: BaseException, context: Context) -> str:
    """``file:line`` of the innermost frame in the bundle, else what was going on."""
    if isinstance(error, SyntaxError) and (name := _in_bundle(Path(error.filename or ""), context)):
        return f"{name}:{error.lineno}"
    for frame, number in reversed(list(walk_tb(error.__traceback__))):
        if name := _in_bundle(_file(frame.f_code), context):
            return f"{name}:{number}"
    return f"dataset '{context.dataset}'" if context.loading else ""


def _file(code: CodeType) -> Path:
    """The file a code object says it comes from."""
    return Path(code.co_filename)


def _in_bundle(file: Path, context: Context) -> str:
    """The path of a file relative to the bundle, empty when it is not a file of the bundle."""
    if _below(file, (context.bundle,)) and file.is_file():
        return file.resolve().relative_to(context.bundle.resolve()).as_posix()
    return ""


def _package(code: CodeType) -> str:
    """The package that code belongs to: ours, an installed one or Python's own; empty for anything else."""
    file = _file(code)
    if str(file).startswith("<frozen importlib"):
        return "python"
    if _below(file, OURS):
        return "fedscale"
    for folder in LIBRARIES:
        if _below(file, (folder,)):
            return file.resolve().relative_to(folder).parts[0].removesuffix(".py")
    return ""


def _below(file: Path, folders: tuple[Path, ...]) -> bool:
    """Whether a file lies in one of the folders."""
    return any(file.resolve().is_relative_to(folder.resolve()) for folder in folders)


def _source(file: Path, number: int) -> str:
    """One line of a source file, cut to a readable length."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ""
    return lines[number - 1].strip()[:LONGEST_LINE] if 0 < number <= len(lines) else ""
