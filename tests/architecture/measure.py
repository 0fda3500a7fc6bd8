"""Measures of the source: sizes, shape and habits, from the syntax tree alone.

Nothing is imported or run. Generated code, migrations and vendored files are left out.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOMS = ("fedscale", "server/fedscale_server", "client/fedscale_client", "simulations/fedscale_simulations")
NOT_OURS = {"proto", "migrations", "static", "_vendor"}
UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "np.random.seed", "numpy.random.seed"}
CHECKS = re.compile(r"\bassert\b|\b(raises|warns|fail)\(")
WINDOW = 6

Function = ast.FunctionDef | ast.AsyncFunctionDef
Import = ast.Import | ast.ImportFrom


@dataclass(frozen=True)
class Module:
    """One parsed file: where it lies, what it is imported as, and its text."""

    path: str
    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        return tuple(ast.walk(self.tree))

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    def at(self, node: ast.AST, what: str = "") -> str:
        return f"{self.path}:{getattr(node, 'lineno', 0)} {what}".rstrip()


def read_rooms(root: Path) -> list[Module]:
    """All modules of the four rooms."""
    found = []
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            relative = path.relative_to((root / room).parent)
            if not NOT_OURS & set(relative.parts):
                name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
                found.append(Module(path.relative_to(root).as_posix(), name, path.read_text(encoding="utf-8")))
    return found


def importable(root: Path, package: str) -> list[str]:
    """Names of the modules of one package that can be imported for a look: no ``__main__``, which would start something."""
    names = (module.name for module in read_rooms(root) if not module.name.endswith("__main__"))
    return [name for name in names if f"{name}.".startswith(f"{package}.")]


def read_tests(root: Path) -> list[Module]:
    """All files below tests/."""
    paths = sorted((root / "tests").rglob("*.py"))
    return [Module(p.relative_to(root).as_posix(), p.stem, p.read_text(encoding="utf-8")) for p in paths]


def percentile(values: Iterable[int], share: float) -> int:
    """The value that ``share`` of the others do not pass; 0 of nothing."""
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))] if ordered else 0


def docstring(node: ast.AST) -> ast.Expr | None:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return first if is_text else None


def extent(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def functions(module: Module) -> Iterator[Function]:
    return (node for node in module.nodes if isinstance(node, Function))


def function_lengths(modules: Iterable[Module]) -> dict[str, int]:
    """Lines of each function from ``def`` to its end, docstring not counted."""
    lengths = {}
    for module in modules:
        for function in functions(module):
            doc = docstring(function)
            lengths[module.at(function, function.name)] = len(extent(function)) - (len(extent(doc)) if doc else 0)
    return lengths


def unannotated(modules: Iterable[Module]) -> list[str]:
    """Arguments and results of functions without a type."""
    missing = []
    for module in modules:
        for function in functions(module):
            spec = function.args
            arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
            missing += [module.at(a, a.arg) for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            missing += [module.at(function, f"{function.name} ->")] if function.returns is None else []
    return missing


def undocumented(modules: Iterable[Module]) -> list[str]:
    """Modules, and their public functions and classes, without a docstring."""
    missing = []
    for module in modules:
        missing += [] if docstring(module.tree) or not module.tree.body else [module.path]
        public = [n for n in module.tree.body if isinstance(n, Function | ast.ClassDef) and not n.name.startswith("_")]
        missing += [module.at(node, node.name) for node in public if docstring(node) is None]
    return missing


def inheritance(modules: Iterable[Module]) -> dict[str, int]:
    """Depth of each class of ours among classes of ours; 1 without a base of ours."""
    classes = [node for module in modules for node in module.nodes if isinstance(node, ast.ClassDef)]
    bases = {c.name: [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in c.bases] for c in classes}

    def depth(name: str, below: frozenset[str]) -> int:
        ours = [base for base in bases[name] if base in bases and base not in below]
        return 1 + max((depth(base, below | {base}) for base in ours), default=0)

    return {name: depth(name, frozenset({name})) for name in bases}


def targets(node: Import, importer: Module, known: frozenset[str]) -> set[str]:
    """The modules among ``known`` that an import statement loads."""
    if isinstance(node, ast.Import):
        wanted = [alias.name for alias in node.names]
    else:
        package = importer.name if importer.path.endswith("__init__.py") else importer.name.rpartition(".")[0]
        above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
        base = ".".join(filter(None, (above, node.module)))
        wanted = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
    return {name for name in wanted if name in known and name != importer.name}


def local_imports(modules: list[Module]) -> list[str]:
    """Imports of our own modules inside functions, which would hide a cycle."""
    known = frozenset(module.name for module in modules)
    inside = ((module, node) for module in modules for function in functions(module) for node in ast.walk(function) if isinstance(node, Import))
    return sorted({module.at(node) for module, node in inside if targets(node, module, known)})


def import_graph(modules: list[Module]) -> dict[str, set[str]]:
    """Which module imports which of ours, imports for types only left out."""
    known = frozenset(module.name for module in modules)
    graph: dict[str, set[str]] = {}
    for module in modules:
        guards = [n for n in module.nodes if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
        typing = {id(node) for guard in guards for node in ast.walk(guard)}
        loaded = [n for n in module.nodes if isinstance(n, Import) and id(n) not in typing]
        graph[module.name] = set().union(*(targets(node, module, known) for node in loaded))
    return graph


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One import cycle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def code_lines(module: Module) -> list[str]:
    """Lines that say something: no docstring, comment, import or lone bracket; spacing made equal."""
    docs = {line for node in module.nodes if (doc := docstring(node)) for line in extent(doc)}
    lines = (" ".join(line.split()) for number, line in enumerate(module.text.splitlines(), 1) if number not in docs)
    return [line for line in lines if len(line) > 2 and not line.startswith(("#", "import ", "from "))]


def repeated_percent(modules: Iterable[Module]) -> float:
    """Share of the code lines that lie in a run of six lines which stands somewhere else too."""
    texts = [code_lines(module) for module in modules]
    windows = [[tuple(text[i : i + WINDOW]) for i in range(len(text) - WINDOW + 1)] for text in texts]
    seen = Counter(window for of_text in windows for window in of_text)
    inside = {(n, i + k) for n, of_text in enumerate(windows) for i, window in enumerate(of_text) if seen[window] > 1 for k in range(WINDOW)}
    return 100 * len(inside) / max(1, sum(map(len, texts)))


def broad_excepts(modules: Iterable[Module]) -> list[str]:
    """Handlers that catch everything."""
    broad = {"", "Exception", "BaseException"}
    handlers = ((m, n) for m in modules for n in m.nodes if isinstance(n, ast.ExceptHandler))
    return [m.at(n) for m, n in handlers if (ast.unparse(n.type) if n.type else "") in broad]


def unsafe(modules: Iterable[Module]) -> list[str]:
    """Imports and calls that turn bytes into code, or seed a global generator."""
    found = []
    for module in modules:
        for node in module.nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func) in UNSAFE_CALLS:
                found.append(module.at(node, ast.unparse(node.func)))
            elif isinstance(node, Import):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                found += [module.at(node, name) for name in names if name.partition(".")[0] in UNSAFE_MODULES]
    return found


def unfinished(modules: Iterable[Module]) -> list[str]:
    """Notes of work left undone and bodies that only say so."""
    found = []
    for module in modules:
        notes = (number for number, line in enumerate(module.text.splitlines(), 1) if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line))
        found += [f"{module.path}:{number}" for number in notes]
        raised = (node for node in module.nodes if isinstance(node, ast.Raise) and node.exc is not None)
        found += [module.at(node) for node in raised if ast.unparse(node.exc or node).startswith("NotImplementedError")]
    return found


def toothless(tests: Iterable[Module]) -> list[str]:
    """Tests that cannot fail: without an assertion or an expected error of their own."""
    named = ((module, function) for module in tests for function in functions(module) if function.name.startswith("test_"))
    return [module.at(function, function.name) for module, function in named if not CHECKS.search(ast.unparse(function))]
