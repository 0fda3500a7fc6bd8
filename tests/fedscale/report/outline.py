"""A page as a tree, read strictly: every element that opens must close, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = ("meta", "br", "hr", "img", "input", "link")


@dataclass
class Element:
    """A node of the tree; children are elements and texts in order."""

    name: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text inside, in order."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def walk(self) -> Iterator[Element]:
        """This element and all inside it, in order."""
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def all(self, name: str, *classes: str) -> list[Element]:
        """The elements of that name that carry all the classes."""
        return [e for e in self.walk() if e.name == name and set(classes) <= set(e.attributes.get("class", "").split())]

    def one(self, name: str, *classes: str) -> Element:
        """The only such element."""
        (element,) = self.all(name, *classes)
        return element


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def outline(text: str) -> Element:
    """The tree of a page or of a piece of one."""
    builder = _Builder()
    builder.feed(text)
    builder.close()
    assert len(builder.open) == 1, f"<{builder.open[-1].name}> is never closed"
    return builder.open[0]


def section(page: Element, title: str) -> Element:
    """The section under that heading."""
    (found,) = [element for element in page.all("section") if element.one("h2").text == title]
    return found


def titles(page: Element) -> list[str]:
    """The headings of all sections, in order."""
    return [element.text for element in page.all("h2")]
