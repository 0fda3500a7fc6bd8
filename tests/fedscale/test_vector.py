from __future__ import annotations

import errno
import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedscale.errors import ProtocolError, UpdateRejected
from fedscale.optimizers import sgd
from fedscale.vector import MAX_TENSORS, PIECE, Arrays, Schema, Tensor, finite, pieces

ARRAYS: dict[str, npt.NDArray[Any]] = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.array([7, 8], np.float32),
    "scale": np.array(9, np.float32),
    "empty": np.empty((0, 4), np.float32),
}
SCHEMA = Schema.of(ARRAYS)
TEXT = '[["weight",[2,3],"float32"],["bias",[2],"float32"],["scale",[],"float32"],["empty",[0,4],"float32"]]'

names = st.text(min_size=1, max_size=8)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
models: st.SearchStrategy[Arrays] = st.dictionaries(
    names, shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32))), max_size=5
)


def test_a_schema_knows_its_parts() -> None:
    assert SCHEMA.tensors[0] == Tensor("weight", (2, 3), "float32")
    assert (SCHEMA.size, [t.size for t in SCHEMA.tensors]) == (9, [6, 2, 1, 0])
    assert (SCHEMA.zeros().dtype, SCHEMA.zeros().tolist()) == (np.float32, [0.0] * 9)
    assert SCHEMA.to_json() == TEXT


def test_a_model_that_is_read_is_a_view_that_cannot_be_written() -> None:
    data = np.arange(9, dtype="<f4").tobytes()
    model = SCHEMA.read(data)
    assert model.tolist() == [*range(9)]
    assert not model.flags.writeable
    assert SCHEMA.read(memoryview(data)).tolist() == [*range(9)]


@pytest.mark.parametrize("size", [0, 35, 37, 72])
def test_a_model_of_another_length_is_not_read(size: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        SCHEMA.read(bytes(size))
    assert str(caught.value) == f"a model of {size} bytes (the schema has 9 coordinates of 4 bytes)"


def test_packing_follows_the_schema_not_the_answer() -> None:
    backwards = dict(reversed(ARRAYS.items()))
    assert SCHEMA.pack(backwards).tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]


@given(models)
def test_pack_and_unpack_are_inverse(arrays: Arrays) -> None:
    schema = Schema.of(arrays)
    views = schema.unpack(schema.pack(arrays))
    assert list(views) == list(arrays)
    assert all(views[name].shape == arrays[name].shape and (views[name] == arrays[name]).all() for name in arrays)


@given(models)
def test_json_round_trip(arrays: Arrays) -> None:
    schema = Schema.of(arrays)
    again = Schema.from_json(schema.to_json())
    assert again == schema
    assert again.digest == schema.digest


def test_unpacked_parts_are_views_and_packed_ones_are_copies() -> None:
    flat = SCHEMA.pack(ARRAYS)
    SCHEMA.unpack(flat)["bias"][0] = -1
    assert flat[6] == -1
    assert ARRAYS["bias"][0] == 7


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(dtype: type[Any]) -> None:
    arrays = {name: array.astype(dtype) for name, array in ARRAYS.items()}
    assert Schema.of(arrays).tensors[0].dtype == np.dtype(dtype).name
    assert SCHEMA.pack(arrays).dtype == np.float32
    assert (SCHEMA.pack(arrays) == SCHEMA.pack(ARRAYS)).all()


def changed(**changes: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    return {**ARRAYS, **changes}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({k: v for k, v in ARRAYS.items() if k != "bias"}, "tensor 'bias' is missing from the answer; return every tensor of the model"),
        (changed(more=np.zeros(1, np.float32)), "tensor 'more' is not part of the model; return only the model's tensors"),
        (changed(bias=np.zeros(1, np.float32)), "tensor 'bias' has shape (1,), the model has (2,)"),
        (changed(bias=np.zeros((2, 1), np.float32)), "tensor 'bias' has shape (2, 1), the model has (2,)"),
        (changed(scale=np.zeros(1, np.float32)), "tensor 'scale' has shape (1,), the model has ()"),
        (changed(weight=np.zeros((3, 2), np.float32)), "tensor 'weight' has shape (3, 2), the model has (2, 3)"),
        (changed(bias=np.zeros(2, np.int64)), "tensor 'bias' is of dtype int64, the model has float32"),
        (changed(bias=np.zeros(2, np.bool_)), "tensor 'bias' is of dtype bool, the model has float32"),
        (changed(bias=np.zeros(2, np.complex64)), "tensor 'bias' is of dtype complex64, the model has float32"),
        (changed(bias=np.array(["a", "b"])), "tensor 'bias' is of dtype <U1, the model has float32"),
        (changed(bias=np.array([None, None])), "tensor 'bias' is of dtype object, the model has float32"),
    ],
)
def test_nothing_is_guessed(arrays: Arrays, message: str) -> None:
    with pytest.raises(UpdateRejected) as caught:
        SCHEMA.pack(arrays)
    assert str(caught.value) == message


def test_a_schema_of_integers_is_refused() -> None:
    with pytest.raises(UpdateRejected) as caught:
        Schema.of({"steps": np.zeros((), np.int64)})
    assert str(caught.value) == (
        "tensor 'steps' is of dtype int64 (only floating-point tensors can be averaged); leave integer buffers out of the answer"
    )


@pytest.mark.parametrize("shape", [(8,), (10,), (9, 1), ()])
def test_a_vector_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UpdateRejected) as caught:
        SCHEMA.unpack(np.zeros(shape, np.float32))
    assert str(caught.value) == f"vector of shape {shape} does not fit a model of 9 coordinates"


def test_a_coordinate_is_located() -> None:
    assert [SCHEMA.locate(at) for at in (0, 5, 6, 7, 8, 9)] == ["weight", "weight", "bias", "bias", "scale", "?"]


def test_the_digest_depends_on_names_shapes_and_order() -> None:
    a, b = Tensor("a", (2,)), Tensor("b", (2,))
    digests = {Schema(parts).digest for parts in ((a, b), (b, a), (a, Tensor("b", (2, 1))), (a, Tensor("b", (2,), "float64")))}
    assert len(digests) == 4
    assert SCHEMA.digest == "8b4716aebfffa411d3b6a85ae93142cc6881305ad3fa0407872fa4998bfeb272"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}x",
        "null",
        "5",
        "[1]",
        '[["a",[1]]]',
        '[["a",[1],"float32",0]]',
        '[["a","12","float32"]]',
        '[["a",[1.5],"float32"]]',
        '[["a",["1"],"float32"]]',
        '[["a",[true],"float32"]]',
        '[["a",[Infinity],"float32"]]',
        '[["a",[1e400],"float32"]]',
        '[["a",[NaN],"float32"]]',
        '[["a",[-1],"float32"]]',
        '[["a",[1],"int64"]]',
        '[["a",[1],"object"]]',
        '[["a",[1],"float32"],["a",[1],"float32"]]',
        '[[5,[1],"float32"]]',
        '[[["a"],[1],"float32"]]',
        '[["a", [1], "float32"]]',
        '{"abc":1}',
        "[" * 100_000,
        '[["a",[' + "9" * 5000 + '],"float32"]]',
        json.dumps([[str(n), [], "float32"] for n in range(MAX_TENSORS + 1)], separators=(",", ":")),
    ],
)
def test_a_malformed_schema_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="^a model schema is malformed"):
        Schema.from_json(text)


def test_a_schema_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        Schema.from_json('[["a",[1099511627777],"float32"]]')
    assert str(caught.value) == "a model schema asks for 1099511627777 coordinates (the limit is 1099511627776)"


def test_packed_arrays_are_a_mapping_that_knows_its_vector() -> None:
    vector = SCHEMA.pack(ARRAYS)
    packed = SCHEMA.unpack(vector)
    assert (list(packed), len(packed), packed.schema) == (list(ARRAYS), len(ARRAYS), SCHEMA)
    assert SCHEMA.flat(packed) is vector
    assert SCHEMA.flat(dict(packed)).tolist() == vector.tolist()
    with pytest.raises(KeyError):
        packed["unknown"]


def test_packed_arrays_of_another_model_do_not_pass_for_ours() -> None:
    other = Schema((Tensor("w", (SCHEMA.size,)),))
    with pytest.raises(UpdateRejected, match="tensor 'weight' is missing"):
        SCHEMA.flat(other.unpack(other.zeros()))


@pytest.mark.parametrize("at", [0, PIECE - 1, PIECE, 2 * PIECE + 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_coordinate_that_is_no_number_is_found_wherever_it_lies(at: int, value: float) -> None:
    vector = np.zeros(2 * PIECE + 3, np.float32)
    assert finite(vector)
    vector[at] = value
    assert not finite(vector)


def mapped(path: Path, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    path.write_bytes(values.tobytes())
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.float32)


@pytest.mark.parametrize("size", [0, 1, PIECE, 2 * PIECE + 5])
def test_the_pieces_of_a_vector_are_all_of_it(size: int) -> None:
    values = np.arange(size, dtype=np.float32)
    assert np.array_equal(np.concatenate([values[part] for part in pieces(values)] or [values]), values)
    assert finite(values)


def test_reading_in_pieces_changes_nothing_whether_mapped_or_not(tmp_path: Path) -> None:
    values = np.arange(PIECE + 5, dtype=np.float32)
    vectors = (mapped(tmp_path / "vector", values), values, values[3:], np.frombuffer(values.tobytes(), np.float32))
    for vector in vectors:
        before = vector.copy()
        assert [vector[part].sum() for part in pieces(vector)] == [before[part].sum() for part in pieces(before)]
        assert np.array_equal(vector, before)


@pytest.mark.parametrize("left", [0, 4096, 4 * PIECE])
def test_a_mapped_file_that_is_cut_off_is_an_error_and_not_the_end_of_the_process(tmp_path: Path, left: int) -> None:
    vector = mapped(tmp_path / "vector", np.ones(2 * PIECE, np.float32))
    assert finite(vector)
    os.truncate(tmp_path / "vector", left)
    read = []
    with pytest.raises(OSError, match="cannot be read") as caught:
        read += [float(vector[part].sum()) for part in pieces(vector)]
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match="cannot be read"):
        sgd(momentum=0.9).step(np.ones(2 * PIECE, np.float32), vector, {"velocity": np.zeros(2 * PIECE, np.float32)}, 1)


def test_a_kernel_that_cannot_read_in_leaves_it_to_the_first_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale.vector.POPULATE_READ", 12345)
    assert finite(mapped(tmp_path / "vector", np.ones(5, np.float32)))


def test_packing_keeps_each_value_and_makes_infinite_what_is_too_large() -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    arrays = {"turned": turned, "large": np.array([1e39, -1e39]), "scalar": np.array(2.5, np.float32), "half": np.ones((1, 2), np.float16)}
    assert Schema.of(arrays).pack(arrays).tolist() == [*turned.ravel().tolist(), np.inf, -np.inf, 2.5, 1.0, 1.0]
    other = Schema.of({**arrays, "large": np.zeros(2, np.float32)})
    assert other.pack(arrays).tolist() == Schema.of(arrays).pack(arrays).tolist()
