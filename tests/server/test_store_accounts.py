"""Accounts and logins of the dashboard, on each kind of database."""

from __future__ import annotations

import pytest

from fedscale.errors import NotFound
from fedscale_server.store.store import Store
from fedscale_server.store.tables import Account, Login
from tests.server.samples import NOW, add_run, later


def account(name: str = "grace", role: str = "auditor") -> Account:
    return Account(name=name, role=role, password=f"hash of {role}", created=NOW)


def login(token_hash: str, name: str = "grace", seconds: float = 60.0) -> Login:
    return Login(token_hash=token_hash, account=name, role="auditor", created=NOW, expires_at=later(seconds))


def test_accounts_are_kept_by_name(store: Store) -> None:
    for name in ("linus", "grace"):
        store.put_account(account(name))
    assert [(row.name, row.role, row.password, row.created) for row in store.accounts()] == [
        ("grace", "auditor", "hash of auditor", NOW),
        ("linus", "auditor", "hash of auditor", NOW),
    ]
    assert store.account("nobody") is None


def test_a_changed_account_takes_the_place_of_the_old_one_and_ends_its_logins(store: Store) -> None:
    store.put_account(account())
    store.open_login(login("mine"))
    store.open_login(login("other", "linus"))
    store.put_account(account(role="researcher"))
    changed = store.account("grace")
    assert changed is not None
    assert (changed.role, changed.password) == ("researcher", "hash of researcher")
    assert store.login("mine", NOW) is None
    assert store.login("other", NOW) is not None


def test_a_removed_account_takes_its_logins_along(store: Store) -> None:
    store.put_account(account())
    store.open_login(login("mine"))
    store.drop_account("grace")
    assert (store.accounts(), store.login("mine", NOW)) == ([], None)
    with pytest.raises(NotFound, match="no user 'grace'"):
        store.drop_account("grace")


def test_a_login_is_found_until_it_expires_or_is_closed(store: Store) -> None:
    store.open_login(login("mine", seconds=60))
    assert store.login("mine", later(59.9)) is not None
    assert store.login("mine", later(60)) is None
    store.close_login("mine")
    assert store.login("mine", NOW) is None
    store.close_login("mine")


def test_opening_a_login_forgets_those_that_have_expired(store: Store) -> None:
    store.open_login(login("old", seconds=0))
    store.open_login(login("new"))
    assert store.login("old", later(-1)) is None
    assert store.login("new", NOW) is not None


def test_where_the_last_lines_of_a_kind_begin(store: Store) -> None:
    run = add_run(store).id
    for kind in ("roster", "note.opened", "answered", "note.opened", "answered", "note.opened"):
        store.append(run, kind, {}, NOW)
    assert [store.before_last(run, "note.opened", count) for count in (1, 2, 3, 4)] == [5, 3, 1, 0]
    assert store.before_last("none", "note.opened", 1) == 0
