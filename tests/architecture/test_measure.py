"""Each measure finds the fault that it is there for, and passes over what is no fault."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tests.architecture import measure
from tests.architecture.measure import Module


def module(text: str, name: str = "pkg.mod") -> Module:
    return Module(name.replace(".", "/") + ".py", name, dedent(text).lstrip())


def test_reads_the_rooms_without_generated_code(tmp_path: Path) -> None:
    for name in (
        "fedscale/__init__.py",
        "fedscale/ring.py",
        "fedscale/proto/v1/a_pb2.py",
        "server/fedscale_server/store/migrations/one.py",
        "server/x.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\ny = 2\n")
    found = measure.read_rooms(tmp_path)
    assert [(m.name, m.path, m.lines) for m in found] == [("fedscale", "fedscale/__init__.py", 2), ("fedscale.ring", "fedscale/ring.py", 2)]


@pytest.mark.parametrize(("values", "share", "expected"), [([], 0.95, 0), ([7], 0.95, 7), (range(1, 101), 0.95, 95), ([1, 1, 1, 100], 0.5, 1)])
def test_percentile(values: list[int], share: float, expected: int) -> None:
    assert measure.percentile(values, share) == expected


def test_a_docstring_does_not_lengthen_a_function() -> None:
    text = module('''
        async def f():
            """One.

            Two.
            """
            return 1
    ''')
    assert measure.function_lengths([text]) == {"pkg/mod.py:1 f": 2}


def test_finds_missing_annotations() -> None:
    text = module("""
        class C:
            def m(self, a, *rest: int, b: int = 0, **more) -> None: ...
        def f(x: int): ...
    """)
    assert sorted(measure.unannotated([text])) == ["pkg/mod.py:2 a", "pkg/mod.py:2 more", "pkg/mod.py:3 f ->"]


def test_finds_missing_docstrings() -> None:
    text = module("""
        class C:
            def m(self): ...
        def f(): ...
        def _g(): ...
    """)
    assert measure.undocumented([text]) == ["pkg/mod.py", "pkg/mod.py:1 C", "pkg/mod.py:3 f"]
    assert measure.undocumented([module('"""M."""\ndef f():\n    """F."""'), module("", "empty")]) == []


def test_counts_our_own_bases_only() -> None:
    text = module("""
        class A(Exception): ...
        class B(A, Generic[T]): ...
        class C(mod.B[int]): ...
        class D(D): ...
    """)
    assert measure.inheritance([text]) == {"A": 1, "B": 2, "C": 3, "D": 1}


CIRCLE = {
    "pkg": "",
    "pkg.a": "from pkg import b",
    "pkg.b": "import pkg.c",
    "pkg.c": "from .a import thing",
}


@pytest.mark.parametrize(
    ("replaced", "circular"), [({}, True), ({"pkg.c": "import os"}, False), ({"pkg.c": "if TYPE_CHECKING:\n    from pkg import a"}, False)]
)
def test_finds_cycles(replaced: dict[str, str], circular: bool) -> None:
    modules = [module(text, name) for name, text in (CIRCLE | replaced).items()]
    assert bool(measure.cycle(measure.import_graph(modules))) is circular


def test_relative_imports_of_a_package() -> None:
    package = Module("pkg/__init__.py", "pkg", "from . import a\nfrom .b import x\n")
    graph = measure.import_graph([package, module("from .. import other", "pkg.a"), module("", "pkg.b")])
    assert graph == {"pkg": {"pkg.a", "pkg.b"}, "pkg.a": set(), "pkg.b": set()}


def test_finds_local_imports_of_our_own() -> None:
    text = module("""
        import pkg.other
        def f():
            import torch
            def g():
                from pkg import other
    """)
    assert measure.local_imports([text, module("", "pkg.other")]) == ["pkg/mod.py:5"]


def test_finds_repeated_runs() -> None:
    run = "".join(f"value_{i} = {i}\n" for i in range(6))
    assert measure.repeated_percent([module(run, "a"), module("other_one = 1\n" + run, "b")]) == pytest.approx(100 * 12 / 13)
    assert measure.repeated_percent([module(run, "a"), module(run.replace("3", "4"), "b")]) == 0
    assert measure.repeated_percent([module("# note\n" * 9 + "import os\n" * 9 + run)]) == 0
    assert measure.repeated_percent([]) == 0


def test_finds_broad_handlers() -> None:
    text = module("""
        try: ...
        except ValueError: ...
        except Exception: ...
        try: ...
        except: ...
    """)
    assert measure.broad_excepts([text]) == ["pkg/mod.py:3", "pkg/mod.py:5"]


def test_finds_unsafe_calls() -> None:
    text = module("""
        import os, pickle
        from joblib.memory import x
        torch.load(path)
        model.eval()
        eval("1")
    """)
    assert measure.unsafe([text]) == ["pkg/mod.py:1 pickle", "pkg/mod.py:2 joblib.memory", "pkg/mod.py:3 torch.load", "pkg/mod.py:5 eval"]


def test_finds_unfinished_work() -> None:
    note = "TO" + "DO"
    text = module(f"""
        x = 1  # {note}: later
        def f():
            raise NotImplementedError("soon")
        def g():
            raise
    """)
    assert measure.unfinished([text]) == ["pkg/mod.py:1", "pkg/mod.py:3"]


def test_finds_tests_that_cannot_fail() -> None:
    text = module("""
        def test_nothing():
            run()
        def test_something():
            assert run()
        async def test_error():
            with pytest.raises(ValueError):
                run()
        def helper():
            run()
    """)
    assert measure.toothless([text]) == ["pkg/mod.py:1 test_nothing"]
