"""Reading CSV files and arrays: what is understood, what is refused, and that no message ever shows a cell."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale import intake
from fedscale.data import MISSING, Dataset, from_csv
from fedscale.errors import DataError

HEART = ("cleveland", "hungarian", "switzerland", "va")
HEART_ROWS = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
HEART_FILLED = ("age", "sex", "cp", "chol", "thalach")

GOOD = "age,ward,dose,sick\n61,north,0.5,1\n47,south,1.25,0\n"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """A function that writes a CSV file and returns its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "site.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(path: Path, **options: Any) -> DataError:
    """The error of a file that must be refused, with the label column ``sick`` unless told otherwise."""
    with pytest.raises(DataError) as caught:
        from_csv(path, options.pop("label", "sick"), **options)
    return caught.value


# What is read


def test_features_label_and_columns(write: Any) -> None:
    data = from_csv(write(GOOD), "sick", columns=("dose", "age"))
    assert data.columns == ("dose", "age")
    assert data.x.dtype == np.float32
    assert data.x.tolist() == [[0.5, 61.0], [1.25, 47.0]]
    assert data.y.dtype == np.int64
    assert data.y.tolist() == [1, 0]
    assert data.groups is None


def test_all_columns_but_label_and_group_are_features_by_default(write: Any) -> None:
    data = from_csv(write(GOOD), "sick", group="ward")
    assert data.columns == ("age", "dose")
    assert data.groups is not None
    assert data.groups.tolist() == ["north", "south"]


def test_the_label_may_stand_anywhere(write: Any) -> None:
    data = from_csv(write("sick,age\n1,61\n0,47\n"), "sick")
    assert (data.columns, data.x.tolist(), data.y.tolist()) == (("age",), [[61.0], [47.0]], [1, 0])


def test_groups_stay_text_even_when_they_are_digits(write: Any) -> None:
    data = from_csv(write("age,patient,sick\n61, 007 ,1\n47,7,0\n"), "sick", group="patient")
    assert data.groups is not None
    assert data.groups.tolist() == ["007", "7"]


def test_a_lone_name_is_one_column(write: Any) -> None:
    assert from_csv(write(GOOD), "sick", columns="dose").columns == ("dose",)


def test_labels_that_are_not_whole_become_float32(write: Any) -> None:
    data = from_csv(write(GOOD), "dose", columns=("age",))
    assert data.y.dtype == np.float32
    assert data.y.tolist() == [0.5, 1.25]


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbfage,sick\n61,1\n47,0\n",
        b"age,sick\r\n61,1\r\n47,0\r\n",
        b"age,sick\r61,1\r47,0",
        b"age,sick\n61,1\n47,0",
        b"\n\nage,sick\n\n61,1\n   \n47,0\n\n\n",
        b' age , sick \n 61 , 1\n"47","0"\n',
        b'"age","sick"\n+6.1e1,1.0\n4_7,0\n'.replace(b"_", b""),
    ],
    ids=["byte-order mark", "crlf", "cr", "no last line end", "blank lines", "spaces and quotes", "spellings"],
)
def test_files_of_every_origin_read_the_same(write: Any, raw: bytes) -> None:
    data = from_csv(write(raw), "sick")
    assert (data.columns, data.x.tolist(), data.y.tolist()) == (("age",), [[61.0], [47.0]], [1, 0])


def test_text_in_columns_that_are_not_read_does_not_matter(write: Any) -> None:
    text = 'name,age,sick\n"Müller, Änne",61,1\n"two\nlines",47,0\n,50,1\n'
    assert from_csv(write(text), "sick", columns=("age",)).x.tolist() == [[61.0], [47.0], [50.0]]


def test_text_in_quotes_is_kept_as_it_is(write: Any) -> None:
    data = from_csv(write('age,ward,sick\r\n61,"north, ""A""\r\nwing",1\r\n'), "sick", group="ward")
    assert data.groups is not None
    assert data.groups.tolist() == ['north, "A"\r\nwing']


def test_a_path_may_be_text(write: Any) -> None:
    assert len(from_csv(str(write(GOOD)), "sick", columns=("age",))) == 2


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-(2**53), 2**53)), min_size=1, max_size=20))
def test_numbers_survive_the_way_through_a_file(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, int]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "numbers.csv"
    path.write_text("x,y\n" + "".join(f"{x!r},{y}\n" for x, y in rows))
    data = from_csv(path, "y")
    assert data.x[:, 0].tolist() == [x for x, _ in rows]
    assert data.y.tolist() == [y for _, y in rows]


# Missing values


@pytest.mark.parametrize("cell", ["", "  ", "?", "NA", "na", "nan", "NaN"])
@pytest.mark.parametrize("column", ["age", "sick"])
def test_a_missing_value_is_refused_with_its_line_and_column(write: Any, cell: str, column: str) -> None:
    row = f"{cell},1" if column == "age" else f"61,{cell}"
    path = write(f"age,sick\n47,0\n{row}\n50,1\n")
    error = refused(path)
    assert error.what == f"column '{column}' has a missing value"
    assert error.where == f"{path}:3"
    assert "missing_policy='drop'" in error.hint


def test_rows_with_missing_values_are_dropped_on_request(write: Any) -> None:
    path = write("age,ward,sick\n61,north,1\n?,north,0\n47,,0\n50,south,NA\n39,south,0\n")
    data = from_csv(path, "sick", group="ward", missing_policy="drop")
    assert data.x[:, 0].tolist() == [61.0, 39.0]
    assert data.groups is not None
    assert data.groups.tolist() == ["north", "south"]
    assert len(from_csv(path, "sick", columns=("age",), missing_policy="drop")) == 3


def test_a_missing_group_is_refused(write: Any) -> None:
    path = write("age,ward,sick\n61,north,1\n47, NA ,0\n")
    error = refused(path, group="ward")
    assert (error.what, error.where) == ("column 'ward' has a missing value", f"{path}:3")


def test_a_missing_value_in_a_column_that_is_not_read_does_not_matter(write: Any) -> None:
    assert len(from_csv(write("age,dose,sick\n61,?,1\n47,,0\n"), "sick", columns=("age",))) == 2


@pytest.mark.parametrize("cell", ["-9", "-9.0", " -9 ", "-9.00", "-9e0", ""])
def test_a_marker_that_is_a_number_matches_every_spelling(write: Any, cell: str) -> None:
    data = from_csv(write(f"age,sick\n61,1\n{cell},0\n-9.5,1\n"), "sick", missing=("-9",), missing_policy="drop")
    assert data.x[:, 0].tolist() == [61.0, -9.5]


def test_without_the_marker_the_number_is_a_value(write: Any) -> None:
    assert from_csv(write("age,sick\n-9,1\n47,0\n"), "sick").x[:, 0].tolist() == [-9.0, 47.0]


def test_a_lone_marker_is_one_marker(write: Any) -> None:
    data = from_csv(write("age,sick\n9,1\n-9,0\n"), "sick", missing="-9", missing_policy="drop")
    assert data.x[:, 0].tolist() == [9.0]


def test_own_markers_replace_the_usual_ones(write: Any) -> None:
    path = write("age,sick\n61,1\n?,0\nunknown,1\n")
    assert len(from_csv(path, "sick", missing=("?", "UNKNOWN"), missing_policy="drop")) == 1
    assert "not a number" in refused(path, missing=("unknown",)).what


def test_infinity_may_be_a_marker(write: Any) -> None:
    assert len(from_csv(write("age,sick\ninf,1\n47,0\n"), "sick", missing=("inf",), missing_policy="drop")) == 1


def test_a_file_whose_rows_all_lack_something_is_refused(write: Any) -> None:
    error = refused(write("age,dose,sick\n61,?,1\n?,0.5,0\n"), missing_policy="drop")
    assert error.what == "every row has a missing value"
    assert "columns=" in error.hint


def test_an_unknown_policy_is_refused(write: Any) -> None:
    error = refused(write("age,sick\n61,1\n"), missing_policy="dropp")
    assert (error.what, error.hint) == ("there is no missing_policy 'dropp'", "did you mean 'drop'?")


# What is refused


@pytest.mark.parametrize("cell", ["SECRET", "1_000", "12;5", "1,5".replace(",", "'"), "0x1A", "--", "1 2", "\x00", "\uff11_2"])
def test_a_cell_that_is_no_number_is_named_but_not_shown(write: Any, cell: str) -> None:
    path = write(f"age,dose,sick\n61,0.5,1\n47,{cell},0\n")
    error = refused(path)
    assert error.what == "column 'dose' holds a cell that is not a number"
    assert error.where == f"{path}:3"
    assert cell not in str(error).replace(str(path), "")


@pytest.mark.parametrize("column", ["dose", "sick"])
@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e39", "-4e38", "1e400"])
def test_a_number_beyond_float32_is_refused(write: Any, cell: str, column: str) -> None:
    row = f"61,{cell},1" if column == "dose" else f"61,0.5,{cell}"
    path = write(f"age,dose,sick\n47,1,0\n{row}\n")
    error = refused(path)
    assert error.what == f"column '{column}' holds a number that is infinite or too large"
    assert error.where == f"{path}:3"


def test_the_largest_float32_is_accepted(write: Any) -> None:
    assert math.isfinite(from_csv(write("age,sick\n3.4028234e38,1\n"), "sick").x[0, 0])


@pytest.mark.parametrize(("row", "count"), [("61,1", 2), ("61,0.5,1,9", 4), ("61", 1), (",,,,", 5)])
def test_a_ragged_line_is_refused(write: Any, row: str, count: int) -> None:
    path = write(f"age,dose,sick\n47,1,0\n\n{row}\n")
    error = refused(path)
    assert error.what == f"the row has {count} cells, the header 3"
    assert error.where == f"{path}:4"


def test_lines_are_counted_as_an_editor_counts_them(write: Any) -> None:
    path = write('name,age,sick\r\n"two\r\nlines",61,1\r\n\r\nB,oops,0\r\n')
    assert refused(path, columns=("age",)).where == f"{path}:5"


def test_a_repeated_column_name_is_refused_by_position(write: Any) -> None:
    path = write("age,dose,age ,sick\n1,2,3,4\n")
    error = refused(path)
    assert (error.what, error.where) == ("columns 1 and 3 have the same name", f"{path}:1")


@pytest.mark.parametrize(("header", "at"), [(",age,sick", 1), ("age, ,sick", 2), ("age,sick,", 3)])
def test_a_column_without_a_name_is_refused(write: Any, header: str, at: int) -> None:
    error = refused(write(f"{header}\n1,2,3\n"))
    assert error.what == f"column {at} has no name"


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("sik", "did you mean 'sick'?"),
        ("SICK", "did you mean 'sick'?"),
        ("zzz", "the first line of the file names the columns"),
    ],
)
def test_a_label_that_is_not_there_is_met_with_a_suggestion(write: Any, asked: str, hint: str) -> None:
    error = refused(write(GOOD), label=asked)
    assert (error.what, error.hint) == (f"there is no column '{asked}'", hint)


def test_a_feature_or_group_that_is_not_there_is_met_with_a_suggestion(write: Any) -> None:
    path = write(GOOD)
    assert refused(path, columns=("age", "doze")).hint == "did you mean 'dose'?"
    assert refused(path, group="wart").hint == "did you mean 'ward'?"


def test_a_file_without_a_header_does_not_show_its_first_row(write: Any) -> None:
    error = refused(write("61,sicc,0.5,1\n47,south,1.25,0\n"))
    assert error.why == "the first line holds numbers"
    told = str(error).replace(error.where, "")
    assert "sicc" not in told
    assert "61" not in told


def test_column_names_may_be_numbers(write: Any) -> None:
    data = from_csv(write("0,1,target\n0.5,2,1\n"), "target")
    assert data.columns == ("0", "1")


def test_the_label_is_no_feature(write: Any) -> None:
    error = refused(write(GOOD), columns=("age", "sick"))
    assert "both a feature and the label" in error.what


def test_a_feature_asked_for_twice_is_refused(write: Any) -> None:
    with pytest.raises(DataError, match="name of its own"):
        from_csv(write(GOOD), "sick", columns=("age", "age"))


@pytest.mark.parametrize("options", [{"columns": ()}, {"columns": None}])
def test_no_features_are_refused(write: Any, options: dict[str, Any]) -> None:
    assert refused(write("sick\n1\n"), **options).what == "there are no feature columns"


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff", "  \n"])
def test_an_empty_file_is_refused(write: Any, text: str) -> None:
    assert refused(write(text)).what == "the file is empty"


def test_a_file_with_only_a_header_is_refused(write: Any) -> None:
    assert refused(write("age,sick\n\n")).what == "the file has a header but no rows"


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_separators_are_recognised(write: Any, mark: str) -> None:
    error = refused(write(f"age{mark}sick\n61,5{mark}1\n"))
    assert error.what == "the cells are not separated by commas"
    assert "decimal points" in error.hint


@pytest.mark.parametrize(("raw", "line"), [("age,sick\n61,1\n47,0\nMüll,1\n".encode("latin-1"), 4), ("age,sick\n1,0\n".encode("utf-16"), 1)])
def test_text_that_is_not_utf8_is_refused_on_its_line(write: Any, raw: bytes, line: int) -> None:
    path = write(raw)
    error = refused(path)
    assert (error.what, error.where) == ("the file is not UTF-8 text", f"{path}:{line}")


@pytest.mark.parametrize("text", ['age,sick\n"61,1\n47,0\n', 'age,sick\n"61"x,1\n', "age,sick\n" + "9" * 200_000 + ",1\n"])
def test_broken_csv_is_refused(write: Any, text: str) -> None:
    error = refused(write(text))
    assert error.what == "the row is not well-formed CSV"
    assert error.why
    assert "61" not in error.why


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path).what == "this is a folder, not a CSV file"


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    assert refused(pipe).what == "this is not a regular file"


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path / "nowhere.csv")
    assert (error.what, error.where, error.why) == ("the file cannot be read", str(tmp_path / "nowhere.csv"), "No such file or directory")


def test_a_file_that_may_not_be_read_is_refused(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(self: Path, *_: object, **__: object) -> IO[str]:
        raise PermissionError(13, "Permission denied", str(self))

    path = write(GOOD)
    monkeypatch.setattr(Path, "open", locked)
    assert refused(path).why == "Permission denied"


def test_a_disk_that_fails_half_way_is_reported(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(intake, "_parse", broken)
    assert refused(write(GOOD)).why == "Input/output error"


@settings(deadline=None, max_examples=150)
@given(raw=st.binary(max_size=120) | st.text(alphabet='age,sick\n\r";.0123456789-_?\ufeffé', max_size=120).map(str.encode))
def test_any_bytes_give_a_dataset_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "any.csv"
    path.write_bytes(b"age,sick\n" + raw)
    data, place = None, str(path)
    try:
        data = from_csv(path, "sick", missing_policy="drop")
    except DataError as error:
        place = error.where
    assert place.startswith(str(path))
    assert data is None or (np.isfinite(data.x).all() and np.isfinite(data.y).all())


# Suggestions


@pytest.mark.parametrize(("name", "hint"), [("thall", "did you mean 'thal'?"), ("THAL", "did you mean 'thal'?"), ("quite other", "")])
def test_suggestions(name: str, hint: str) -> None:
    assert intake.suggest(name, ("age", "thal", "num")) == hint
    assert intake.suggest(name, ()) == ""


def test_suggestions_are_spelt_as_they_are_known() -> None:
    assert intake.suggest("thal", ("AGE", "THAL")) == "did you mean 'THAL'?"


# Arrays


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1, 2], np.int64),
        ([True, False], np.int64),
        ([0.0, 1.0, -3.0], np.int64),
        (np.array([1, 2], np.uint8), np.int64),
        (np.array([1, 2], np.float16), np.int64),
        (np.array([], np.float64), np.int64),
        ([2.0**53], np.int64),
        ([2.0**60], np.float32),
        ([0.5, 1.0], np.float32),
        ([1.0, math.nan], np.float32),
        ([1.0, math.inf], np.float32),
    ],
)
def test_whole_labels_are_int64_and_others_float32(values: npt.ArrayLike, dtype: npt.DTypeLike) -> None:
    labels = intake.labels(values)
    assert labels.dtype == dtype
    assert np.array_equal(labels.astype(np.float64), np.asarray(values, np.float64), equal_nan=True)


def test_large_integers_are_kept_exactly() -> None:
    assert intake.labels([2**62 + 1]).tolist() == [2**62 + 1]
    with pytest.raises(DataError, match="too large for int64"):
        intake.labels(np.array([2**63], np.uint64))


@pytest.mark.parametrize("values", [["SECRET"], [1 + 2j], [None], np.array(["2024-01-01"], "datetime64[D]"), [object()], [2**70]])
def test_what_is_not_numeric_is_refused(values: npt.ArrayLike) -> None:
    with pytest.raises(DataError, match="the labels are not numbers") as caught:
        intake.labels(values)
    assert "SECRET" not in str(caught.value)


def test_rows_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match="the features are not one array"):
        intake.numeric([[1, 2], [3]], "features")


def test_float32_neither_copies_needlessly_nor_overflows() -> None:
    ready = np.ones((2, 2), np.float32)
    assert intake.float32(ready, "features") is ready
    assert intake.float32(ready.T.copy("F"), "features").flags.c_contiguous
    assert intake.float32(np.array([np.inf, np.nan]), "features").dtype == np.float32
    with pytest.raises(DataError, match="the features hold a number that is too large for float32"):
        intake.float32(np.array([1.0, 1e39]), "features")


def test_text_held_as_objects_becomes_text() -> None:
    assert intake.groups(np.array(["a", "bc"], object)).dtype.kind == "U"
    assert intake.groups(np.array(["a", None], object)).dtype.kind == "O"
    assert intake.groups([3, 4]).dtype.kind == "i"


# Four real hospitals


@pytest.fixture
def heart(root: Path) -> Path:
    return root.parent / "shared" / "data" / "heart"


def read_heart(folder: Path, hospital: str, **options: Any) -> Dataset:
    return from_csv(folder / f"{hospital}.csv", "num", missing=("-9", *MISSING), **options)


@pytest.mark.requires("shared-data")
@pytest.mark.parametrize("hospital", HEART)
def test_real_hospitals_lose_only_the_rows_that_lack_something(heart: Path, hospital: str) -> None:
    lines = (heart / f"{hospital}.csv").read_text().splitlines()
    header, rows = lines[0].split(","), [[float(cell) for cell in line.split(",")] for line in lines[1:]]
    wanted = [header.index(name) for name in (*HEART_FILLED, "num")]
    complete = [[row[at] for at in wanted] for row in rows if all(row[at] != -9 for at in wanted)]
    data = read_heart(heart, hospital, columns=HEART_FILLED, missing_policy="drop")
    assert len(rows) == HEART_ROWS[hospital]
    assert 0.7 * len(rows) < len(complete) <= len(rows)
    assert np.array_equal(np.column_stack((data.x, data.y)), np.array(complete, np.float32))
    assert data.y.dtype == np.int64


@pytest.mark.requires("shared-data")
def test_a_real_hospital_with_gaps_is_refused_by_default(heart: Path) -> None:
    with pytest.raises(DataError, match="column 'fbs' has a missing value") as caught:
        read_heart(heart, "switzerland")
    assert caught.value.where.endswith("switzerland.csv:2")
    assert len(read_heart(heart, "cleveland")) == 303
