"""What a failure may say when it leaves the site, tried with names of patients in every place an exception has."""

from __future__ import annotations

import builtins
import errno
import importlib
import math
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from fedscale import data
from fedscale.errors import (
    AppError,
    BundleError,
    Cause,
    ConfigError,
    DataError,
    Failure,
    FedscaleError,
    NotFound,
    PolicyRefusal,
    ProtocolError,
    Unreachable,
    UpdateRejected,
)
from fedscale.vector import Schema
from fedscale_client import datasets, failures, rpc
from fedscale_client.declarations import Declaration
from fedscale_client.failures import Context

CANARY = "Erika_Mustermann_1951"

APP = '''
import sys
import numpy as np
from fedscale.errors import DataError, AppError

PATIENT = "Erika_" + "Mustermann_" + str(1950 + 1)

class PatientError(Exception):
    """An error of the app's own, holding a record."""

    def __init__(self, record):
        super().__init__(f"bad record {record}")
        self.record = record

    def __repr__(self):
        return f"PatientError({self.record})"

def message():
    raise ValueError(f"could not convert string to float: {PATIENT}")

def notes():
    error = KeyError("column")
    error.add_note(f"while reading {PATIENT}")
    raise error

def cause():
    try:
        message()
    except ValueError as error:
        raise RuntimeError(PATIENT) from error

def context():
    try:
        message()
    except ValueError:
        return {}[PATIENT]

def own_class():
    record = {"name": PATIENT}
    raise PatientError(record)

def made_up_class():
    raise type(PATIENT, (LookupError,), {})(PATIENT)

def planted(name, module):
    made = type(name, (LookupError,), {"__module__": module})
    setattr(sys.modules[module], name, made)
    raise made(PATIENT)

def planted_in_the_app():
    planted(PATIENT, __name__)

def planted_in_a_package():
    planted(PATIENT, "numpy")

def planted_in_a_compiled_module():
    planted(PATIENT, "math")

def planted_in_builtins():
    planted(PATIENT, "builtins")

def planted_in_a_module_of_its_own():
    import types
    sys.modules[PATIENT] = types.ModuleType(PATIENT)
    sys.modules[PATIENT].__file__ = __file__
    planted("PatientError", PATIENT)

def planted_escape():
    planted("\\x1b[2J<img>", __name__)

def of_numpy():
    np.linalg.inv(np.zeros((2, 2)))

def no_words_of_ours():
    raise DataError(f"row of {PATIENT}", where=PATIENT, why=PATIENT, hint=PATIENT)

def executed():
    exec(f"def {PATIENT}():\\n    raise ValueError('{PATIENT}')\\n{PATIENT}()")

def compiled():
    compile(f"{PATIENT} = = 1", PATIENT, "exec")

def in_numpy():
    np.array([[1.0]]) @ np.array([[1.0, 2.0], [3.0, 4.0]])

def group():
    raise ExceptionGroup(PATIENT, [ValueError(PATIENT)])

def module():
    raise ModuleNotFoundError(PATIENT, name=PATIENT)

def imported():
    import no_such_package_at_all.inside

def deep(n=300):
    return deep(n - 1) if n else message()

def endless():
    return endless()
'''
RAISING = [line.split("(")[0].removeprefix("def ") for line in APP.splitlines() if line.startswith("def ") and not line.startswith("def planted(")]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "heart.py").write_text(APP)
    return Context(
        bundle, "heart", (str(tmp_path / "site/heart.csv"),), schema=Schema.of({"fc.weight": np.zeros(3, np.float32), "fc.bias": np.zeros(2)})
    )


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - every kind is of interest here
        return error
    raise AssertionError("nothing was raised")


def caught(context: Context, name: str) -> Failure:
    """The failure of one function of the app."""
    sys.path.insert(0, str(context.bundle))
    try:
        sys.modules.pop("heart", None)
        return failures.of_error(raised(getattr(importlib.import_module("heart"), name)), context)
    finally:
        sys.path.remove(str(context.bundle))
        sys.modules.pop(CANARY, None)
        for module in (math, np, builtins):
            vars(module).pop(CANARY, None)


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(APP.splitlines(), 1) if text in line)


# ----------------------------------------------------------------------------------------------------------- scrubbing


@pytest.mark.parametrize("name", RAISING)
def test_no_patient_leaves(context: Context, name: str) -> None:
    failure = caught(context, name)
    assert CANARY not in str(asdict(failure))
    assert "1951" not in str(asdict(failure))
    assert failure.cause in (Cause.CODE, Cause.DATA)
    assert len(failure.traceback) <= failures.LONGEST
    assert failure.what


def test_the_oracle_sees_what_a_careless_report_would_say(context: Context) -> None:
    sys.path.insert(0, str(context.bundle))
    try:
        sys.modules.pop("heart", None)
        module = importlib.import_module("heart")
        careless = [repr(raised(getattr(module, name))) for name in ("message", "own_class", "no_words_of_ours", "module")]
    finally:
        sys.path.remove(str(context.bundle))
    assert all(CANARY in text for text in careless)


def test_an_exception_by_type_and_place(context: Context) -> None:
    failure = caught(context, "message")
    line = line_of("could not convert")
    assert (failure.what, failure.where) == ("the app raised ValueError", f"heart.py:{line}")
    assert failure.hint == "the site finds the full message in the log of its worker"
    assert failure.traceback.splitlines()[-2:] == [
        f'heart.py:{line} message: raise ValueError(f"could not convert string to float: {{PATIENT}}")',
        "ValueError",
    ]


def test_causes_are_shown_by_type_in_their_order(context: Context) -> None:
    for name, last in (("cause", "RuntimeError"), ("context", "KeyError")):
        lines = caught(context, name).traceback.splitlines()
        assert lines.index("ValueError, then") < lines.index(last) == len(lines) - 1


def test_a_class_of_the_app_is_named_one_made_of_data_is_not(context: Context) -> None:
    assert caught(context, "own_class").what == "the app raised heart.PatientError"
    assert caught(context, "made_up_class").what == "the app raised LookupError"


def test_a_name_that_no_code_has_is_not_told(context: Context) -> None:
    """Whatever module an app puts such a class into, or makes up for it."""
    for name in RAISING:
        if name.startswith("planted"):
            assert caught(context, name).what == "the app raised LookupError", name
    assert caught(context, "of_numpy").what == "the app raised numpy.linalg.LinAlgError"


def test_only_our_own_code_may_use_words(context: Context) -> None:
    failure = caught(context, "no_words_of_ours")
    assert (failure.cause, failure.what) == (Cause.DATA, "the app raised fedscale.errors.DataError")
    ours = failures.of_error(raised(lambda: data.from_arrays([[1.0]], ["x"])), context)
    assert (ours.cause, ours.what) == (Cause.DATA, "the labels are not numbers (they are of dtype <U1)")


def test_libraries_are_named_without_their_source(context: Context) -> None:
    lines = caught(context, "in_numpy").traceback.splitlines()
    assert lines[-1] == "ValueError"
    assert "in_numpy: np.array" in lines[-2]
    frames = failures.of_error(raised(lambda: np.linalg.solve(np.zeros((2, 2)), np.ones(2))), context).traceback.splitlines()
    assert any(frame.startswith("numpy:") and frame.endswith(" solve") for frame in frames)
    assert not any("/" in frame for frame in frames)


def test_code_from_anywhere_else_has_no_name(context: Context) -> None:
    lines = caught(context, "executed").traceback.splitlines()
    assert lines.count("code outside of the bundle") == 3  # this test, the text that was executed, and the function it made


def test_a_missing_package_is_named(context: Context) -> None:
    assert caught(context, "imported").what == "the app needs the package 'no_such_package_at_all', which this node does not have"
    assert caught(context, "module").what == "the app raised ModuleNotFoundError"


def test_deep_recursion_keeps_the_innermost(context: Context) -> None:
    lines = caught(context, "deep").traceback.splitlines()
    assert len(lines) == failures.DEEPEST + 1
    assert "message" in lines[-2]
    assert caught(context, "endless").what == "the app raised RecursionError"


def test_a_syntax_error_is_placed(context: Context) -> None:
    (context.bundle / "broken.py").write_text("x = 1\ndef f(:\n")
    sys.path.insert(0, str(context.bundle))
    try:
        failure = failures.of_error(raised(lambda: importlib.import_module("broken")), context)
    finally:
        sys.path.remove(str(context.bundle))
    assert (failure.what, failure.where) == ("the app raised SyntaxError", "broken.py:2")
    assert failure.traceback.splitlines()[-2:] == ["broken.py:2", "SyntaxError"]


def test_a_source_that_cannot_be_read_is_left_out(context: Context) -> None:
    (context.bundle / "latin.py").write_bytes(b"x = '\xe4'\n")
    assert failures._source(context.bundle / "latin.py", 1) == ""
    assert failures._source(context.bundle / "heart.py", 10_000) == ""
    assert failures._source(context.bundle, 1) == ""
    (context.bundle / "long.py").write_text("y" * 1000)
    assert len(failures._source(context.bundle / "long.py", 1)) == failures.LONGEST_LINE


# -------------------------------------------------------------------------------------------------------------- causes


def throw(error: BaseException) -> Callable[[], None]:
    def now() -> None:
        raise error

    return now


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(CANARY), Cause.MEMORY),
        (OutOfMemoryError(CANARY), Cause.MEMORY),
        (RuntimeError(f"[enforce fail] DefaultCPUAllocator: can't allocate memory {CANARY}"), Cause.MEMORY),
        (RuntimeError(CANARY), Cause.CODE),
        (OSError(errno.ENOSPC, CANARY), Cause.DISK),
        (OSError(errno.EDQUOT, CANARY), Cause.DISK),
        (OSError(errno.EIO, CANARY), Cause.CODE),
        (FileNotFoundError(CANARY), Cause.CODE),
        (DataError(CANARY), Cause.DATA),
        (PolicyRefusal(CANARY), Cause.CODE),
        (UpdateRejected(f"not finite {CANARY}"), Cause.CODE),
    ],
)
def test_exceptions_of_the_app(context: Context, error: Exception, cause: Cause) -> None:
    failure = failures.of_error(raised(throw(error)), context)
    assert failure.cause is cause
    assert CANARY not in str(asdict(failure))
    assert failure.hint == failures.HINTS[cause]


@pytest.mark.parametrize(("error", "cause"), [(KeyError(CANARY), Cause.DATA), (FileNotFoundError(CANARY), Cause.DATA), (MemoryError(), Cause.MEMORY)])
def test_exceptions_while_the_dataset_is_read(context: Context, error: Exception, cause: Cause) -> None:
    loading = Context(context.bundle, "heart", loading=True)
    failure = failures.of_error(raised(throw(error)), loading)
    assert failure.cause is cause
    assert CANARY not in str(asdict(failure))
    assert failure.where == "dataset 'heart'"
    if cause is Cause.DATA:
        assert failure.what == f"the dataset 'heart' could not be loaded: {type(error).__name__}"


def ours(error: FedscaleError) -> BaseException:
    """An error as if our own code had raised it."""

    def fail() -> None:
        raise error

    fail.__code__ = fail.__code__.replace(co_filename=rpc.__file__)
    return raised(fail)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (UpdateRejected("a value is not finite"), Cause.DIVERGED),
        (UpdateRejected("a value is beyond the agreed range"), Cause.DIVERGED),
        (AppError("the first model has values that are not finite"), Cause.DIVERGED),
        (UpdateRejected("tensor 'w' is missing from the answer"), Cause.REJECTED),
        (PolicyRefusal("no"), Cause.POLICY),
        (AppError("no first model"), Cause.CODE),
        (ConfigError("no loader"), Cause.DATA),
        (BundleError("damaged"), Cause.CODE),
        (NotFound("no such blob"), Cause.NETWORK),
        (Unreachable("away"), Cause.NETWORK),
        (ProtocolError("too long"), Cause.NETWORK),
    ],
)
def test_errors_of_ours_keep_their_words(context: Context, error: FedscaleError, cause: Cause) -> None:
    error.why, error.hint = "for a reason", "do this"
    failure = failures.of_error(ours(error), context)
    assert (failure.cause, failure.what, failure.hint) == (cause, f"{error.what} (for a reason)", "do this")
    assert bool(failure.traceback) == (cause is Cause.CODE)


def test_a_coordinate_is_named_by_its_tensor(context: Context) -> None:
    failure = failures.of_error(ours(UpdateRejected("a value is not finite", where="coordinate 4")), context)
    assert failure.where == "tensor 'fc.bias'"


def test_paths_of_the_site_stay(tmp_path: Path, context: Context) -> None:
    path = Path(context.paths[0])
    path.parent.mkdir()
    path.write_text(f"a,y\n1,0\n{CANARY},1\n")
    failure = failures.of_error(raised(lambda: data.from_csv(path, "y")), context)
    assert failure.where == "dataset 'heart':3"
    assert str(tmp_path) not in str(asdict(failure))
    assert CANARY not in str(asdict(failure))
    other = failures.of_error(ours(DataError("there is no such loader", where="/srv/mercy/secret/loader.py")), context)
    assert other.where == "loader.py"


def test_a_declared_file_that_is_gone(tmp_path: Path, context: Context) -> None:
    loading = Context(context.bundle, "heart", (str(tmp_path / "gone.csv"),), loading=True)
    failure = failures.of_error(raised(lambda: datasets.read(Declaration(kind="csv", path="gone.csv", label="y"), tmp_path)), loading)
    assert (failure.cause, failure.where) == (Cause.DATA, "dataset 'heart'")
    assert "No such file" in failure.what


# ---------------------------------------------------------------------------------------------- outside of the worker


def test_a_node_that_cannot_use_its_files() -> None:
    full = failures.of_local(OSError(errno.ENOSPC, "No space left on device", "/srv/mercy/cache"))
    assert (full.cause, full.what, full.hint) == (Cause.DISK, failures.FULL, "free space in the node's home")
    broken = failures.of_local(PermissionError(errno.EACCES, "Permission denied", "/srv/mercy/cache"))
    assert broken.cause is Cause.DISK
    assert "Permission denied" in broken.what
    assert "mercy" not in str(asdict(full)) + str(asdict(broken))
    assert failures.of_local(OSError(errno.ENOMEM, "Cannot allocate memory")).cause is Cause.MEMORY


def test_a_bundle_that_does_not_fit_on_the_disk() -> None:
    def unpack() -> None:
        raise BundleError("the bundle cannot be unpacked", where="/srv/mercy/cache/x") from OSError(errno.ENOSPC, "full")

    failure = failures.of_local(raised(unpack))  # type: ignore[arg-type]
    assert failure.cause is Cause.DISK
    assert "mercy" not in str(asdict(failure))


@pytest.mark.parametrize(
    ("code", "cause", "words"),
    [
        (-signal.SIGKILL, Cause.MEMORY, "killed by the system"),
        (-signal.SIGSEGV, Cause.WORKER, "signal SIGSEGV"),
        (-signal.SIGABRT, Cause.WORKER, "signal SIGABRT"),
        (3, Cause.WORKER, "exit code 3"),
        (0, Cause.WORKER, "exit code 0"),
        (None, Cause.WORKER, "closed its pipe"),
    ],
)
def test_how_a_worker_ended(code: int | None, cause: Cause, words: str) -> None:
    failure = failures.of_exit(code)
    assert failure.cause is cause
    assert words in failure.what
    assert failure.hint
