"""Markup is escaped by default, and only markup is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.report.markup import Markup, join, pairs, safe, table, tag
from tests.fedscale.report.outline import Element, outline

wanted = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs", "Cn")))


def test_text_is_escaped_once() -> None:
    assert safe("a < b & \"c\" 'd'") == "a &lt; b &amp; &quot;c&quot; &#x27;d&#x27;"
    assert safe(safe("<")) == "&lt;"
    assert safe("&lt;") == "&amp;lt;"


def test_markup_is_left_alone_and_anything_made_of_it_is_text_again() -> None:
    bold = tag("b", "x")
    assert safe(bold) is bold
    assert safe(bold + "") == "&lt;b&gt;x&lt;/b&gt;"
    assert safe(f"{bold}") == "&lt;b&gt;x&lt;/b&gt;"
    assert safe(bold.upper()) == "&lt;B&gt;X&lt;/B&gt;"


def test_an_element_holds_text_and_markup() -> None:
    assert tag("p", "1 < 2 ", tag("b", "so")) == "<p>1 &lt; 2 <b>so</b></p>"
    assert tag("p") == "<p></p>"
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'


def test_attributes_are_named_as_python_allows() -> None:
    assert tag("i", class_="a", aria_label="b", viewBox="0 0") == '<i class="a" aria-label="b" viewBox="0 0"></i>'
    assert tag("meta", name="viewport") == '<meta name="viewport">'


def test_an_attribute_of_none_is_left_out() -> None:
    assert tag("i", class_=None, title="") == '<i title=""></i>'


@pytest.mark.parametrize(("value", "written"), [(1, "1"), (1.0, "1"), (0.126, "0.13"), (-3.1415, "-3.14"), (1e9, "1000000000"), (-0.001, "-0")])
def test_numbers_are_rounded_to_hundredths(value: float, written: str) -> None:
    assert tag("i", x=value) == f'<i x="{written}"></i>'


@pytest.mark.parametrize("character", ["\x00", "\x08", "\x0b", "\r", "\x1f", "\x7f", "\x9f", "\u202e", "\u2066", "\ud800", "\uffff"])
def test_characters_no_page_needs_are_replaced(character: str) -> None:
    assert safe(f"a{character}b") == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize("text", ["tab\there", "line\nhere", "größe", "東京", "😀", "e\u0301"])
def test_other_characters_are_kept(text: str) -> None:
    assert safe(text) == text


@given(wanted, wanted)
def test_whatever_goes_in_is_read_back(text: str, value: str) -> None:
    (element,) = outline(tag("p", text, title=value)).children
    assert isinstance(element, Element)
    assert (element.text, element.attributes) == (text, {"title": value})


@given(st.lists(st.text(max_size=5), max_size=4))
def test_joining_escapes_each_part(parts: list[str]) -> None:
    assert join(parts) == "".join(safe(part) for part in parts)
    assert isinstance(join(parts), Markup)


def test_a_table_has_header_cells_for_text_and_takes_others_as_they_are() -> None:
    made = outline(table(("A<", tag("th", "B", class_="number")), [tag("tr", tag("td", "1"))]))
    assert [(cell.text, cell.attributes) for cell in made.one("thead").all("th")] == [("A<", {"scope": "col"}), ("B", {"class": "number"})]
    assert made.one("tbody").one("td").text == "1"
    assert made.one("div", "scroll").one("table") is made.one("table")


def test_pairs_are_a_list_of_names_and_values() -> None:
    assert pairs([("a<", "1"), ("b", tag("code", "2"))]) == '<dl class="pairs"><dt>a&lt;</dt><dd>1</dd><dt>b</dt><dd><code>2</code></dd></dl>'
