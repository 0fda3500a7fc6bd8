from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from fedscale.errors import PlanError
from fedscale.plan import Plan
from fedscale.tables import Document


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    depth: int = Field(1, ge=1)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: float = 1.0
    inner: Inner = Inner()


TEXT = """
[job]
name = "a"

[outer]
width = 2.5
inner.depth = 3
"""


def test_one_table_of_a_file_is_read_by_itself() -> None:
    document = Document.of(TEXT, "job.toml")
    assert document.read(Outer, "outer") == Outer(width=2.5, inner=Inner(depth=3))
    assert document.read(Outer, "absent") == Outer()


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("widht = 1", "job.toml:6: 'outer.widht' is not a setting", "did you mean 'width'?"),
        ("inner.dept = 1", "job.toml:6: 'outer.inner.dept' is not a setting", "did you mean 'depth'?"),
        ("inner.depth = 0", "job.toml:6: outer.inner.depth: input should be greater", ""),
        ("inner = 3", "job.toml:6: outer.inner: this is a table, with settings of its own", ""),
    ],
)
def test_a_fault_is_told_with_its_line_and_table(line: str, message: str, hint: str) -> None:
    text = TEXT.replace("width = 2.5", line).replace("inner.depth = 3\n", "")
    with pytest.raises(PlanError) as caught:
        Document.of(text, "job.toml").read(Outer, "outer")
    where, _, what = message.partition(": ")
    assert caught.value.where == where
    assert caught.value.what.startswith(what)
    assert hint in caught.value.hint


def test_an_override_is_the_place_of_its_fault() -> None:
    document = Document.of(TEXT, "job.toml", ["outer.inner.depth=-1"])
    with pytest.raises(PlanError) as caught:
        document.read(Outer, "outer")
    assert caught.value.where == "--set outer.inner.depth=-1"


@pytest.mark.parametrize("name", ["devices", "sweep"])
def test_tables_that_do_not_run_are_no_part_of_the_plan(name: str) -> None:
    plan = Plan.from_toml('[job]\nname = "a"\n')
    assert Plan.from_toml(f'[job]\nname = "a"\n[{name}]\nanything = 3\n').digest == plan.digest
    with pytest.raises(PlanError, match="'device' is not a setting"):
        Plan.from_toml('[job]\nname = "a"\n[device]\n')


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "job.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError, match="cannot read the plan"):
        Document.load(path)
