"""What is done faster in Flower's place comes to what Flower itself comes to, and Flower is as it was afterwards."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as shapes

from fedscale.causes import attempted
from fedscale.flower import touches, turns
from fedscale.flower.quick import loaded, quick

pytestmark = pytest.mark.requires("flower")

DTYPES = ["?", "i1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8", "<c8", "S3", "<U2", "<M8[s]"]


def written(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def theirs(data: bytes) -> Any:
    return np.load(io.BytesIO(data), allow_pickle=False)


@given(data=st.data(), dtype=st.sampled_from(DTYPES), columns=st.booleans())
def test_an_array_is_read_as_numpy_reads_it(data: st.DataObject, dtype: str, *, columns: bool) -> None:
    array = data.draw(shapes.arrays(np.dtype(dtype), shapes.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
    text = written(np.asfortranarray(array) if columns else array)
    ours, reference = loaded(text), theirs(text)
    assert (ours.dtype, ours.shape, type(ours)) == (reference.dtype, reference.shape, type(reference))
    assert ours.tobytes() == reference.tobytes()
    for flag in ("C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEABLE"):
        assert ours.flags[flag] == reference.flags[flag]


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda text: b"",
        lambda text: text[:9],
        lambda text: text[:40],
        lambda text: text[:-1],
        lambda text: text + b"more",
        lambda text: text.replace(b"<f8", b"|O8"),
        lambda text: text.replace(b"'descr'", b"'other'"),
        lambda text: b"\x93NUMPY\x02" + text[7:],
        lambda text: b"x" + text,
    ],
)
def test_what_numpy_refuses_is_refused_alike(spoilt: Callable[[bytes], bytes]) -> None:
    text = spoilt(written(np.arange(3.0)))
    ours, reference = attempted(lambda: loaded(text).tolist()), attempted(lambda: theirs(text).tolist())
    assert type(ours) is type(reference)
    assert str(ours) == str(reference)


def test_flower_reads_and_keeps_the_same() -> None:
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(2.5), np.zeros((0, 2)), np.array([True, False])]
    content = RecordDict({"a": ArrayRecord(arrays), "c": ConfigRecord({"n": 1}), "m": MetricRecord({"x": [1.0]}), "b": ArrayRecord(arrays[:1])})

    def told() -> list[Any]:
        read = [*content["a"].to_numpy_ndarrays(), *parameters_to_ndarrays(ndarrays_to_parameters(arrays))]
        views = [list(view) for view in (content.array_records, content.config_records, content.metric_records)]
        return [[array.tolist() for array in read], [array.dtype for array in read], views]

    before = told()
    with quick():
        assert told() == before
        content.config_records["more"] = ConfigRecord({"n": 2})
        del content.array_records["b"]
        assert list(content) == ["a", "c", "m", "more"]
        wrong = [lambda: content.config_records.update({"x": MetricRecord()}), lambda: ConfigRecord({"x": object()}), lambda: MetricRecord({1: 2})]
        assert [type(attempted(work)) for work in wrong] == [TypeError] * 3
        with pytest.raises(TypeError, match="Unsupported serialization type"):
            Array("float32", (1,), "other", b"").numpy()
    assert told()[:2] == before[:2]
    assert Array.numpy.__module__.startswith("flwr.")
    assert touches.TYPED.__setitem__ is not touches.put


# ------------------------------------------------------------------------------------------------------- legacy servers


def test_a_legacy_server_asks_in_turn_and_takes_the_replies_in_that_order(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = touches.server()
    asked, lanes = list[int](), list[int]()

    def fit(client: int, *_: Any) -> Any:
        asked.append(client)
        if client == 3:
            raise ValueError("no beds")
        return client, type("Reply", (), {"status": type("Status", (), {"code": server.Code.OK})})

    def lane(work: Callable[[], None]) -> None:
        lanes.append(len(asked))
        work()

    monkeypatch.setattr(server, "fit_client", fit)
    clients, before = [7, 3, 9, 1, 5], server.concurrent
    with turns.in_turn(lane):
        results, failures = server.fit_clients([(client, None) for client in clients], 2, None, 1)
    assert asked == clients
    assert [client for client, _ in results] == [7, 9, 1, 5]
    assert [str(failure) for failure in failures] == ["no beds"]
    assert lanes == [0]
    assert server.concurrent is before
