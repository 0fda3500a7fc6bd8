"""The datasets of a site: declared, read, checked, and never quoted."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedscale.data import Dataset
from fedscale.errors import ConfigError, Conflict, DataError, NotFound
from fedscale_client import datasets, declarations
from fedscale_client.declarations import Declaration
from fedscale_client.home import NodeHome
from tests.client.conftest import ROWS, write_csv

CANARY = "Erika Mustermann"
LOADER = """
import numpy as np
from fedscale.data import from_arrays

def arrays(rows=4, scale=1.0):
    return np.full((rows, 2), scale), np.arange(rows) % 2

def grouped():
    return (*arrays(), np.array(["p", "p", "q", "q"]))

def made():
    return from_arrays(*arrays())

def foreign():
    return {"anything": 1}

constant = 3
"""


@pytest.fixture
def home(tmp_path: Path) -> NodeHome:
    made = NodeHome(tmp_path / "node")
    made.path.mkdir()
    (made.path / "loader.py").write_text(LOADER)
    return made


def csv(tmp_path: Path, **options: Any) -> Declaration:
    return Declaration(kind="csv", path=str(write_csv(tmp_path / "heart.csv")), label="y", **options)


def npz(path: Path, **arrays: Any) -> Declaration:
    np.savez(path, **arrays)
    return Declaration(kind="npz", path=str(path))


# ---------------------------------------------------------------------------------------------------------- declaring


def test_declared_listed_and_removed(home: NodeHome, tmp_path: Path) -> None:
    heart, lung = (
        csv(tmp_path, columns=("b", "a"), group=None),
        Declaration(kind="loader", loader="loader.py:arrays", options={"rows": 6, "scale": 0.5}),
    )
    assert declarations.listed(home) == {}
    declarations.add(home, "heart", heart)
    declarations.add(home, "lung.v2", lung)
    assert declarations.listed(home) == {"heart": heart, "lung.v2": lung}
    assert home.datasets_file.stat().st_mode & 0o777 == 0o600
    declarations.remove(home, "heart")
    assert declarations.listed(home) == {"lung.v2": lung}
    assert (tmp_path / "heart.csv").exists()


def test_a_name_is_taken_once(home: NodeHome, tmp_path: Path) -> None:
    declarations.add(home, "heart", csv(tmp_path))
    with pytest.raises(Conflict, match="'heart' already.*data remove heart"):
        declarations.add(home, "heart", csv(tmp_path))


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "x" * 64])
def test_names_a_plan_could_not_use(home: NodeHome, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="not a valid dataset name"):
        declarations.add(home, name, csv(tmp_path))
    assert not home.datasets_file.exists()


def test_unknown_names_come_with_a_suggestion(home: NodeHome, tmp_path: Path) -> None:
    declarations.add(home, "heart", csv(tmp_path))
    for call in (declarations.find, datasets.load, datasets.check, declarations.remove):
        with pytest.raises(NotFound, match="no dataset 'hart'.*did you mean 'heart'"):
            call(home, "hart")
    with pytest.raises(NotFound, match=r"fedscale node data add kidney \.\.\."):
        declarations.find(home, "kidney")


def test_a_file_that_is_not_there_is_not_declared(home: NodeHome) -> None:
    with pytest.raises(DataError, match=r"/nowhere/h\.csv: there is no such file"):
        declarations.add(home, "heart", Declaration(kind="csv", path="/nowhere/h.csv", label="y"))
    with pytest.raises(DataError, match=r"missing\.py: there is no such file"):
        declarations.add(home, "heart", Declaration(kind="loader", loader="missing.py:load"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "csv", "label": "y"}, "csv needs a path"),
        ({"kind": "csv", "path": "x"}, "needs the name of its label column"),
        ({"kind": "parquet", "path": "x"}, "needs the name of its label column"),
        ({"kind": "npz"}, "npz needs a path"),
        ({"kind": "loader"}, "module:function or file.py:function"),
        ({"kind": "loader", "loader": "os; rm:x"}, "module:function or file.py:function"),
        ({"kind": "sql"}, "Input should be 'csv'"),
        ({"kind": "npz", "path": "x", "pth": "y"}, "Extra inputs"),
        ({"kind": "csv", "path": "x", "label": "y", "missing_policy": "guess"}, "'refuse' or 'drop'"),
    ],
)
def test_declarations_that_are_incomplete(home: NodeHome, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Declaration(**fields)
    lines = [f"{key} = '{value}'" for key, value in fields.items()]
    home.datasets_file.write_text("\n".join(["[heart]", *lines]))
    with pytest.raises(ConfigError, match=rf"\[heart\]: .*{words}"):
        declarations.listed(home)


def test_a_file_with_a_bad_name_or_no_table(home: NodeHome) -> None:
    home.datasets_file.write_text("['a b']\nkind = 'npz'\npath = 'x'")
    with pytest.raises(ConfigError, match="'a b' is not a valid dataset name"):
        declarations.listed(home)
    home.datasets_file.write_text("heart = 3")
    with pytest.raises(ConfigError, match="Input should be a valid dictionary"):
        declarations.listed(home)


# ------------------------------------------------------------------------------------------------------------- reading


def test_a_table(home: NodeHome, tmp_path: Path) -> None:
    declarations.add(home, "heart", csv(tmp_path, columns=("b",)))
    loaded = datasets.load(home, "heart")
    assert isinstance(loaded, Dataset)
    assert (len(loaded), loaded.columns, loaded.y.dtype) == (ROWS, ("b",), np.int64)


def test_paths_are_relative_to_the_home(home: NodeHome) -> None:
    write_csv(home.path / "h.csv")
    declarations.add(home, "heart", Declaration(kind="csv", path="h.csv", label="y"))
    assert len(datasets.load(home, "heart")) == ROWS


@pytest.mark.parametrize(("policy", "rows"), [("refuse", 0), ("drop", ROWS)])
def test_missing_values_by_policy(home: NodeHome, tmp_path: Path, policy: Any, rows: int) -> None:
    declaration = csv(tmp_path, missing_policy=policy, missing=("-9",))
    with (tmp_path / "heart.csv").open("a") as file:
        file.write("-9,1,1\n")
    declarations.add(home, "heart", declaration)
    if rows:
        assert len(datasets.load(home, "heart")) == rows
    else:
        with pytest.raises(DataError, match="column 'a' has a missing value"):
            datasets.load(home, "heart")


def test_groups_of_a_table(home: NodeHome, tmp_path: Path) -> None:
    declarations.add(home, "heart", csv(tmp_path, group="b"))
    loaded = datasets.load(home, "heart")
    assert loaded.columns == ("a",)
    assert set(loaded.groups) == {"0", "1", "2"}


def test_a_cell_is_never_quoted(home: NodeHome, tmp_path: Path) -> None:
    declarations.add(home, "heart", csv(tmp_path))
    with (tmp_path / "heart.csv").open("a") as file:
        file.write(f"{CANARY},1,1\n")
    with pytest.raises(DataError) as caught:
        datasets.load(home, "heart")
    assert caught.value.where.endswith(f"heart.csv:{ROWS + 2}")
    assert CANARY not in str(caught.value)


def test_arrays_of_an_archive(home: NodeHome, tmp_path: Path) -> None:
    x, y, g = np.ones((4, 2, 2)), np.array([0, 1, 0, 1]), np.array([1, 1, 2, 2])
    declarations.add(home, "plain", npz(tmp_path / "a.npz", x=x, y=y))
    np.savez(tmp_path / "b.npz", features=x, labels=y, patient=g)
    named = Declaration(kind="npz", path=str(tmp_path / "b.npz"), x="features", y="labels", groups="patient")
    declarations.add(home, "named", named)
    assert datasets.load(home, "plain").x.shape == (4, 2, 2)
    assert datasets.load(home, "named").groups.tolist() == [1, 1, 2, 2]


def test_archives_that_cannot_be_used(home: NodeHome, tmp_path: Path) -> None:
    lacking = npz(tmp_path / "lacking.npz", x=np.ones((2, 1)))
    with pytest.raises(DataError, match="there is no array 'y'.*say which it is"):
        datasets.read(lacking, home.path)
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(DataError, match=r"one array.*numpy\.savez"):
        datasets.read(Declaration(kind="npz", path=str(tmp_path / "single.npy")), home.path)
    (tmp_path / "torn.npz").write_bytes((tmp_path / "lacking.npz").read_bytes()[:50])
    with pytest.raises(DataError, match=r"archive cannot be read \(BadZipFile\)"):
        datasets.read(Declaration(kind="npz", path=str(tmp_path / "torn.npz")), home.path)
    with pytest.raises(DataError, match=r"archive cannot be read \(FileNotFoundError\)"):
        datasets.read(Declaration(kind="npz", path="gone.npz"), home.path)


def test_pickled_arrays_are_refused(home: NodeHome, tmp_path: Path) -> None:
    armed = tmp_path / "touched"

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(armed),)

    objects = npz(tmp_path / "o.npz", x=np.array([Bomb(), Bomb()], object), y=np.array([0, 1]))
    with pytest.raises(DataError, match=r"archive cannot be read \(ValueError\)"):
        datasets.read(objects, home.path)
    assert not armed.exists()


@pytest.mark.parametrize(("function", "rows"), [("arrays", 4), ("grouped", 4), ("made", 4)])
def test_a_loader_of_the_site(home: NodeHome, function: str, rows: int) -> None:
    declarations.add(home, "own", Declaration(kind="loader", loader=f"loader.py:{function}"))
    loaded = datasets.load(home, "own")
    assert isinstance(loaded, Dataset)
    assert len(loaded) == rows
    assert (loaded.groups is not None) == (function == "grouped")


def test_a_loader_with_options_or_from_a_package(home: NodeHome) -> None:
    own = Declaration(kind="loader", loader="loader.py:arrays", options={"rows": 9, "scale": 2.5})
    assert datasets.read(own, home.path).x.tolist() == [[2.5, 2.5]] * 9
    assert isinstance(datasets.read(Declaration(kind="loader", loader="io:BytesIO"), home.path), io.BytesIO)
    assert datasets.read(Declaration(kind="loader", loader="loader.py:foreign"), home.path) == {"anything": 1}


@pytest.mark.parametrize(
    ("loader", "words"), [("loader.py:gone", "no function 'gone'"), ("loader.py:constant", "no function"), ("x.py:f", "no such loader")]
)
def test_loaders_that_are_none(home: NodeHome, loader: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        datasets.read(Declaration(kind="loader", loader=loader), home.path)


def test_a_loader_brings_no_folder_into_the_path(home: NodeHome) -> None:
    """A helper beside the site's loader must not be found in place of a module of the app."""
    (home.path / "helper.py").write_text("")
    (home.path / "loader.py").write_text("def load():\n    import helper")
    with pytest.raises(ModuleNotFoundError, match="helper"):
        datasets.read(Declaration(kind="loader", loader="loader.py:load"), home.path)


class TestParquet:
    """With pandas' reader replaced: the engine behind it is not what is tested."""

    @pytest.fixture
    def frame(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"a": [1.5, 2.5, None], "b": [1, 2, 3], "who": [7, 7, 8], "y": [0, 1, 1]})
        monkeypatch.setattr(pandas, "read_parquet", lambda path: frame.copy())
        return frame

    def test_missing_values(self, home: NodeHome, frame: Any) -> None:
        declared = Declaration(kind="parquet", path="h.parquet", label="y")
        with pytest.raises(DataError, match="column 'a' has a missing value"):
            datasets.read(declared, home.path)
        assert len(datasets.read(declared.model_copy(update={"missing_policy": "drop"}), home.path)) == 2

    def test_columns_and_groups(self, home: NodeHome, frame: Any) -> None:
        declared = Declaration(kind="parquet", path="h.parquet", label="y", columns=("b",), group="who")
        loaded = datasets.read(declared, home.path)
        assert (loaded.columns, loaded.x.tolist(), loaded.y.tolist()) == (("b",), [[1], [2], [3]], [0, 1, 1])
        assert loaded.groups.tolist() == ["7", "7", "8"]

    def test_an_unknown_column(self, home: NodeHome, frame: Any) -> None:
        with pytest.raises(DataError, match="no column 'z'"):
            datasets.read(Declaration(kind="parquet", path="h.parquet", label="z"), home.path)

    @pytest.mark.parametrize(
        ("raised", "words"), [(ImportError(CANARY), "export the data as CSV"), (ValueError(CANARY), r"cannot be read \(ValueError\)")]
    )
    def test_a_file_that_cannot_be_read(self, home: NodeHome, monkeypatch: pytest.MonkeyPatch, raised: Exception, words: str) -> None:
        pandas = pytest.importorskip("pandas")

        def refuse(path: Path) -> None:
            raise raised

        monkeypatch.setattr(pandas, "read_parquet", refuse)
        with pytest.raises(DataError, match=words) as caught:
            datasets.read(Declaration(kind="parquet", path="h.parquet", label="y"), home.path)
        assert CANARY not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ checking


def test_a_sound_dataset_has_no_problems(home: NodeHome, tmp_path: Path) -> None:
    declarations.add(home, "heart", csv(tmp_path))
    assert datasets.check(home, "heart") == []


def test_problems_are_sentences_without_values(home: NodeHome, tmp_path: Path) -> None:
    declarations.add(home, "bad", npz(tmp_path / "bad.npz", x=np.full((4, 2), np.nan), y=np.ones(4)))
    assert datasets.check(home, "bad") == ["there are fewer than 10 rows", "the features hold NaN (positions 0, 1)", "every label is the same"]


def test_what_is_no_dataset_cannot_be_checked(home: NodeHome) -> None:
    declarations.add(home, "own", Declaration(kind="loader", loader="loader.py:foreign"))
    assert datasets.check(home, "own") == ["the loader returned no Dataset, so there is nothing to check it by"]


def test_a_fingerprint_follows_the_file_and_the_declaration(home: NodeHome, tmp_path: Path) -> None:
    declared = csv(tmp_path)
    before = declarations.fingerprint(declared, home.path)
    assert declarations.fingerprint(declared, home.path) == before
    assert declarations.fingerprint(declared.model_copy(update={"label": "b"}), home.path) != before
    os.utime(tmp_path / "heart.csv", (1, 1))
    assert declarations.fingerprint(declared, home.path) != before
    (tmp_path / "heart.csv").unlink()
    assert declarations.fingerprint(declared, home.path) != before
