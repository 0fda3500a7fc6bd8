"""HTML and SVG in which nothing is left unescaped by accident: text is escaped unless its type says that it is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

# Characters that no page needs: controls, lone surrogates, non-characters, and marks that reorder what a reader sees.
UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
VOID = ("meta",)


class Markup(str):
    """Text that is markup already. Every operation of ``str`` gives back plain text, which is escaped again where it is used."""

    __slots__ = ()


def safe(text: str) -> Markup:
    """``text`` itself when it is markup, else its escaped form."""
    return text if isinstance(text, Markup) else Markup(escape(UNWANTED.sub("\ufffd", text)))


def join(parts: Iterable[str]) -> Markup:
    """The parts one after the other, each escaped unless it is markup."""
    return Markup("".join(map(safe, parts)))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """An element: ``tag("a", "b < c", class_="x")``.

    Args:
        name: the element's name.
        children: text, which is escaped, or markup.
        attributes: values are escaped, numbers rounded to hundredths, ``None`` leaves the attribute out; ``aria_label`` means ``aria-label``.
    """
    written = join(Markup(f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"') for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{join(children)}</{name}>")


def _value(value: str | float) -> Markup:
    return safe(value if isinstance(value, str) else f"{round(value, 2):.10g}")


def table(head: Iterable[str], rows: Iterable[Markup]) -> Markup:
    """A table that scrolls sideways where the screen is narrow; the head's texts become header cells, markup is taken as it is."""
    cells = (text if isinstance(text, Markup) else tag("th", text, scope="col") for text in head)
    return tag("div", tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *rows)), class_="scroll")


def pairs(entries: Iterable[tuple[str, str]]) -> Markup:
    """A list of names and values."""
    return tag("dl", *(join((tag("dt", name), tag("dd", value))) for name, value in entries), class_="pairs")
