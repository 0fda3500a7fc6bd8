"""A Flower app's directory as a job: the plan behind it and the module that makes it a learner; without flwr."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent

import tomli_w

from fedscale import bundle
from fedscale.flower.directory import FILE, Directory, read, tables
from fedscale.plan import Plan
from fedscale.wire.codec import digest_of

MODULE = "fedscale_flower"
ROUNDS = ("num-server-rounds", "num_server_rounds", "num-rounds", "num_rounds")
DEFAULT_ROUNDS = 3


def job_of(path: Path, overrides: Iterable[str] = (), *, led: bool = False) -> tuple[Directory, Plan]:
    """The app and its plan.

    The plan comes from the table ``[tool.fedscale]`` of the app's ``pyproject.toml``, whose tables are those of a job file;
    the number of rounds from the run config where the plan does not say.

    Args:
        path: the app's directory.
        overrides: ``table.key=value`` for the plan, anything else for the app's run config.
        led: whether the app's own ServerApp leads, whatever strategy the plan names for our coordinator.

    Raises:
        ConfigError: no Flower app, or a setting that neither has.
        PlanError: no valid plan.
    """
    given, config = list(overrides), read(path).config
    for_plan = [text for text in given if _is_plan(text) and text.partition("=")[0].strip() not in config]
    directory = read(path, [text for text in given if text not in for_plan])
    rounds = next((directory.config[key] for key in ROUNDS if key in directory.config), DEFAULT_ROUNDS)
    tree = tables(directory.path)
    # Its own data, of which it keeps some for evaluation, is an app's own business.
    defaults: dict[str, dict[str, object]] = {"strategy": {"name": "fedavg", "rounds": rounds}, "evaluate": {"holdout": 0.0}}
    filled = {name: {**defaults.get(name, {}), **tree.get(name, {})} for name in {**defaults, **tree}}
    if led:
        filled["strategy"] = {"name": "led", "rounds": rounds, "code": _code_of(directory)}
    filled["job"] = {"name": directory.name[:63], **tree.get("job", {}), "app": f"{MODULE}:app"}
    plan = Plan.from_toml(tomli_w.dumps(filled), file=f"{directory.path / FILE}: [tool.fedscale]", overrides=for_plan)
    return directory, plan


def module_of(directory: Directory) -> dict[str, str]:
    """The file that a bundle needs besides the app's own, by name."""
    text = f'''\
    """This Flower app as a fedscale learner."""

    from fedscale.flower import learner

    app = learner(__file__, {dict(directory.config)!r})
    '''
    return {f"{MODULE}.py": dedent(text)}


def _code_of(directory: Directory) -> str:
    """SHA-256 of an app's Python files, their names, and what is run of them with which settings; what an app writes beside them is left out."""
    paths = (path for path in bundle.walk(directory.path) if path.suffix == ".py" and path.is_file())
    own = sorted((path.relative_to(directory.path).as_posix(), path) for path in paths)
    digests = [f"{digest_of(path.read_bytes())} {name}" for name, path in own]
    return digest_of("\n".join([directory.to_toml(), *digests]).encode())


def _is_plan(text: str) -> bool:
    """Whether an override begins with a table of the plan."""
    return text.partition("=")[0].strip().partition(".")[0] in Plan.model_fields and "." in text.partition("=")[0]
