# SPDX-License-Identifier: Apache-2.0
"""HTML whose text is escaped unless it was built here."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Cell", "Markup", "facts", "join", "raw", "table", "tag"]

_EMPTY = frozenset({"meta", "br", "img"})


class Markup(str):
    """HTML that is safe to put into a page as it is."""

    __slots__ = ()


def raw(html: str) -> Markup:
    """Vouch for HTML that does not come from users."""
    return Markup(html)


def _text(child: str) -> str:
    """Escape text; characters that no page may hold become replacement characters."""
    if isinstance(child, Markup):
        return child
    clean = "".join(c if c.isprintable() or c in "\n\t " else "\ufffd" for c in child)
    return escape(clean)


def join(*children: str) -> Markup:
    """Put texts and elements after each other."""
    return Markup("".join(map(_text, children)))


def tag(name: str, /, *children: str, **attributes: str | None) -> Markup:
    """Return an element.

    Args:
        name: Of the element.
        children: Texts, which are escaped, and elements.
        attributes: By name; ``_`` stands for ``-`` and a last ``_`` is dropped (``class_``). None
            leaves the attribute out.
    """
    found = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY:
        return Markup(f"<{name}{found}>")
    return Markup(f"<{name}{found}>{join(*children)}</{name}>")


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell.

    Args:
        text: Shown.
        order: Number to sort by; None sorts by the text.
        title: Longer text for pointers.
    """

    text: str
    order: float | None = None
    title: str | None = None


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    numeric: frozenset[int] = frozenset(),
    sortable: bool = False,
    marked: frozenset[int] = frozenset(),
    caption: str = "",
) -> Markup:
    """Return a table that scrolls sideways where the page is narrow.

    Args:
        header: Names of the columns.
        rows: Cells; the first of a row is its heading.
        numeric: Columns of numbers.
        sortable: Whether a click on a heading sorts.
        marked: Rows to stress.
        caption: Above the table.
    """
    head = [
        tag("th", text, scope="col", class_="n" if i in numeric else None)
        for i, text in enumerate(header)
    ]
    body = []
    for r, row in enumerate(rows):
        cells = []
        for i, item in enumerate(row):
            cell = item if isinstance(item, Cell) else Cell(item)
            cells.append(
                tag(
                    "td" if i else "th",
                    cell.text,
                    scope=None if i else "row",
                    class_="n" if i in numeric else None,
                    data_order=None if cell.order is None else repr(cell.order),
                    title=cell.title,
                )
            )
        body.append(tag("tr", *cells, class_="marked" if r in marked else None))
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption) if caption else "",
            tag("thead", tag("tr", *head)),
            raw("\n"),
            tag("tbody", *(join(row, raw("\n")) for row in body)),
            class_="sortable" if sortable else None,
        ),
        class_="scroll",
        tabindex="0",
        role="group",
        aria_label=caption or "table",
    )


def facts(pairs: Sequence[tuple[str, str]]) -> Markup:
    """Return a list of names and values."""
    return tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in pairs))
