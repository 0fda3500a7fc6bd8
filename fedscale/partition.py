"""Ways to spread the rows of one dataset over clients, as pure functions of row indices.

Each function returns one ascending int64 array a client: together they hold every index exactly once and none is empty.
Whatever cannot be spread so raises ``DataError``. The same ``rng`` state gives the same parts.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedscale.errors import DataError
from fedscale.names import Numbered

Indices: TypeAlias = npt.NDArray[np.int64]
Labels: TypeAlias = npt.NDArray[Any]

MAX_CLASSES = 100
MAX_ALPHA = 1e6
KINDS: Mapping[str, str] = {"iid": "", "dirichlet": "alpha", "shards": "per_client", "quantity": "alpha", "column": "column"}
# The rule of node names, repeated because the module that owns it loads cryptography.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def generator(seed: int) -> np.random.Generator:
    """A counter-based generator: the same seed gives the same stream on every machine."""
    if not isinstance(seed, Integral):
        raise DataError(f"the seed is of type {type(seed).__name__}", hint="use a whole number from 0 up")
    if seed < 0:
        raise DataError("the seed is negative", hint="use a whole number from 0 up")
    return np.random.Generator(np.random.Philox(seed))


def iid(n: int, clients: int, rng: np.random.Generator) -> list[Indices]:
    """Shuffled rows in parts whose sizes differ by at most one."""
    _require_rows(n, clients)
    return _ascending(np.array_split(rng.permutation(n), clients))


def dirichlet(labels: Labels, clients: int, alpha: float, rng: np.random.Generator) -> list[Indices]:
    """Each class spread by shares drawn from Dirichlet(alpha): the smaller alpha, the fewer classes a client sees.

    A client that draws nothing is given one row of the client that then has most. Source: Yurochkin et al. 2019,
    arXiv:1905.12022, section 4.
    """
    _require_rows(labels.size, clients)
    _require_classes(labels)
    owner = np.empty(labels.size, np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        owner[rows] = np.searchsorted(_cuts(rows.size, clients, alpha, rng), np.arange(rows.size), side="right")
    return _fill_empty(_parts(owner, clients), rng)


def shards(labels: Labels, clients: int, per_client: int, rng: np.random.Generator) -> list[Indices]:
    """Rows cut into ``clients * per_client`` shards of one label each, dealt out at random: at most ``per_client`` labels a client.

    Source: McMahan et al. 2017, arXiv:1602.05629, section 3, except that there a shard may straddle two labels.
    """
    _require_rows(labels.size, clients)
    _require_classes(labels)
    if per_client < 1:
        raise DataError("there must be at least one shard a client")
    values, sizes = np.unique(labels, return_counts=True)
    count = clients * per_client
    if not values.size <= count <= labels.size:
        raise DataError(
            f"{labels.size} rows of {values.size} labels cannot be cut into {count} shards",
            why="there must be at least one shard a label and one row a shard",
            hint="change clients or per_client",
        )
    pieces: list[Indices] = []
    for label, cut_into in zip(values, _shards_per_label(sizes.tolist(), count), strict=True):
        pieces += np.array_split(rng.permutation(np.flatnonzero(labels == label)), cut_into)
    dealt = rng.permutation(count).reshape(clients, per_client)
    return _ascending(np.concatenate([pieces[piece] for piece in hand]) for hand in dealt)


def quantity(n: int, clients: int, alpha: float, rng: np.random.Generator) -> list[Indices]:
    """Shuffled rows in parts whose sizes are drawn from Dirichlet(alpha), one row a client aside.

    Source: Li et al. 2022, arXiv:2102.02079, section 4.3.
    """
    _require_rows(n, clients)
    cuts = _cuts(n - clients, clients, alpha, rng) + np.arange(1, clients)
    return _ascending(np.split(rng.permutation(n), cuts))


def column(values: npt.NDArray[Any]) -> list[Indices]:
    """One client for each distinct value, in ascending order of the values; ``values`` has shape ``(n,)``."""
    if values.size == 0:
        raise DataError("there are no rows to spread")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise DataError("the column to spread by has missing values")
    distinct, owner = np.unique(values, return_inverse=True)
    return _parts(owner, distinct.size)


def holdout(labels: Labels, fraction: float, seed: int, groups: npt.NDArray[Any] | None = None) -> tuple[Indices, Indices]:
    """Ascending (train, held-out) rows; class labels appear in both parts in the proportions of the whole.

    With ``groups`` whole groups are held out, each counted once, by the label of its first row.

    With two rows or more and ``fraction > 0`` neither part is empty. Made from Philox's raw bits and a stable sort, not
    from ``Generator`` methods, because numpy keeps only the former equal between its versions.
    """
    if not 0 <= fraction < 1:
        raise DataError("the holdout is not a fraction", hint="use a number from 0 up to but not including 1")
    if groups is not None:
        _, first, member = np.unique(groups, return_index=True, return_inverse=True)
        inside = np.isin(member, holdout(labels[first], fraction, seed)[1])
        return np.flatnonzero(~inside), np.flatnonzero(inside)
    n = labels.size
    count = min(max(round(n * fraction), 1), n - 1) if fraction > 0 and n > 1 else 0
    stratum = np.unique(labels, return_inverse=True)[1] if is_classes(labels) else np.zeros(n, np.int64)
    sizes = np.bincount(stratum, minlength=1)
    order = np.lexsort((generator(seed).bit_generator.random_raw(n), stratum))
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n) - (np.cumsum(sizes) - sizes)[stratum[order]]
    held = rank < _share_out(count, sizes)[stratum]
    return np.flatnonzero(~held), np.flatnonzero(held)


def alone(features: npt.NDArray[Any], labels: Labels, fraction: float, seed: int, groups: npt.NDArray[Any] | None = None) -> npt.NDArray[np.bool_]:
    """Which rows are held out when each row, or group, draws by its own content: shape ``(n,)``.

    Equal rows share their fate.
    """
    if groups is not None:
        names, member = np.unique(groups, return_inverse=True)
        return np.array([_lot(str(name).encode(), seed) < fraction for name in names], np.bool_)[member]
    rows, targets = np.ascontiguousarray(features), np.ascontiguousarray(labels)
    return np.array([_lot(row.tobytes() + target.tobytes(), seed) < fraction for row, target in zip(rows, targets, strict=True)], np.bool_)


def _lot(content: bytes, seed: int) -> float:
    """A number in [0, 1) that content and seed alone decide."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little") / 2.0**64


def option_of(kind: str, options: Mapping[str, float | str]) -> float | str | None:
    """The value given for a kind's one option; None for ``iid``, which has none, and for a ``column`` left out.

    Raises:
        DataError: the kind or an option is unknown, or the option is missing.
    """
    if kind not in KINDS:
        raise DataError(f"there is no partition '{kind}'", hint=f"use one of {', '.join(KINDS)}")
    name = KINDS[kind]
    if unknown := [option for option in options if option != name]:
        raise DataError(f"partition '{kind}' takes no option '{unknown[0]}'", hint=f"it takes {name}=" if name else "")
    if name not in options and kind not in {"iid", "column"}:
        raise DataError(f"partition '{kind}' needs the option '{name}'", hint=f"pass {name}=")
    return options.get(name)


def spread(kind: str, labels: Labels, clients: int, option: float | str | None, rng: np.random.Generator) -> list[Indices]:
    """The parts of any kind but ``column``, with the option that ``option_of`` found."""
    if kind == "iid":
        return iid(labels.size, clients, rng)
    if not isinstance(option, Real) or isinstance(option, bool):
        raise DataError(f"option '{KINDS[kind]}' is not a number")
    number = float(option)
    if kind == "dirichlet":
        return dirichlet(labels, clients, number, rng)
    if kind == "quantity":
        return quantity(labels.size, clients, number, rng)
    if not number.is_integer():
        raise DataError("option 'per_client' is not a whole number")
    return shards(labels, clients, int(number), rng)


def client_names(clients: int) -> list[str]:
    """``client-0000``, ``client-0001`` and so on, wide enough that they sort in order."""
    return list(Numbered(clients))


def value_names(values: Iterable[object]) -> list[str]:
    """A valid and distinct name for each text or number; those that would read the same are numbered."""
    names: dict[str, None] = {}
    for value in values:
        text = value if isinstance(value, str) else re.sub("^-", "minus-", str(value).removesuffix(".0").replace("+", ""))
        name, again = slug(text), 1
        while name in names:
            again += 1
            name = f"{slug(text)}-{again}"
        names[name] = None
    return list(names)


def slug(text: str) -> str:
    """The closest valid name, short enough to be numbered."""
    plain = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-._")[:48] or "site"


def is_classes(labels: Labels) -> bool:
    """Whether labels look like classes: integers with few distinct values for their number."""
    few = max(2, min(MAX_CLASSES, labels.size // 2))
    return labels.dtype.kind in "biu" and len(set(labels.tolist())) <= few


def _require_rows(n: int, clients: int) -> None:
    if not isinstance(clients, Integral):
        raise DataError(f"the number of clients is of type {type(clients).__name__}", hint="give a whole number")
    if clients < 1:
        raise DataError("there must be at least one client")
    if n < clients:
        raise DataError(f"{n} rows cannot be spread over {clients} clients", why="every client needs a row", hint="ask for fewer clients")


def _require_classes(labels: Labels) -> None:
    if labels.dtype.kind not in "biu":
        raise DataError("the labels are not classes", why=f"they are of dtype {labels.dtype}", hint="use 'iid', 'quantity' or 'column'")


def _cuts(n: int, clients: int, alpha: float, rng: np.random.Generator) -> Indices:
    """Where to cut ``n`` rows into ``clients`` parts of Dirichlet(alpha) sizes, shape ``(clients - 1,)``."""
    if not (math.isfinite(alpha) and 0 < alpha <= MAX_ALPHA):
        raise DataError("alpha is out of range", why=f"it must be above 0 and at most {MAX_ALPHA:g}", hint="use 'iid' for no skew at all")
    shares = rng.dirichlet(np.full(clients, alpha))
    return np.rint(np.cumsum(shares)[:-1] * n).astype(np.int64)


def _parts(owner: Indices, clients: int) -> list[Indices]:
    """The rows of each client, given the client of each row."""
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner, minlength=clients))[:-1])


def _ascending(parts: Iterable[Indices]) -> list[Indices]:
    return [np.sort(part) for part in parts]


def _fill_empty(parts: list[Indices], rng: np.random.Generator) -> list[Indices]:
    """Give each empty client one random row of the client that then has most."""
    sizes = np.array([part.size for part in parts])
    for client in np.flatnonzero(sizes == 0):
        giver = int(sizes.argmax())
        pick = int(rng.integers(sizes[giver]))
        parts[client] = parts[giver][pick : pick + 1].copy()
        parts[giver] = np.delete(parts[giver], pick)
        sizes[client], sizes[giver] = 1, sizes[giver] - 1
    return parts


def _shards_per_label(sizes: list[int], count: int) -> list[int]:
    """How many shards to cut each label's rows into: one each, then always one more for the label with the largest shards."""
    shards_of = [1] * len(sizes)
    largest = [(-float(size), label) for label, size in enumerate(sizes)]
    heapq.heapify(largest)
    for _ in range(count - len(sizes)):
        label = largest[0][1]
        shards_of[label] += 1
        heapq.heapreplace(largest, (-sizes[label] / shards_of[label], label))
    return shards_of


def _share_out(count: int, sizes: Indices) -> Indices:
    """Split ``count`` over strata in proportion to ``sizes`` by largest remainder, sparing a stratum's last row where others have more."""
    quota = count * sizes / max(int(sizes.sum()), 1)
    takes = np.floor(quota).astype(np.int64)
    order = np.lexsort((takes - quota, takes + 1 >= sizes))
    takes[order[: count - int(takes.sum())]] += 1
    return takes
