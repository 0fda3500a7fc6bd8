"""What the pages of dashboard and console share."""

from __future__ import annotations

import pytest

from fedscale.web.pages import inside


@pytest.mark.parametrize("address", ["/", "/runs/r-1", "/login?next=%2F", "/audit#L3"])
def test_after_a_login_it_goes_on_to_our_own_pages(address: str) -> None:
    assert inside(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "/runs\r/x",
        "javascript:alert(1)",
        "/é",
    ],
)
def test_after_a_login_it_goes_nowhere_else(address: str) -> None:
    assert inside(address) == "/"
