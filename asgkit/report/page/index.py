"""Index pages of figures and tables: a sentence and links for each, so that nothing lies about that no page links."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from asgkit.report.figures.captions import CAPTIONS
from asgkit.report.places import FIGURES, PAGE, figure_place
from asgkit.report.provenance import read_sidecar

WIDTH = 360  # pixels of a thumbnail
MADE = "Made by `asgkit report`; edits are lost."
HEADS = {
    "paper": ("Figures of the paper, measured here", "Twins of figures 3 to 6 and S1 to S6, of our own runs."),
    "ours": ("Figures beyond the paper's", "What our own runs show besides."),
}
FILES = {"pdf": "PDF", "csv": "points", "json": "origin"}
SENTENCE = re.compile(r"(?:\([^)]*\)|[^;.?(])+\??")  # up to a full stop, question mark or semicolon, not in brackets


@dataclass(frozen=True)
class Entry:
    """A figure that was made; `empty` where it only says what is missing."""

    kind: str
    base: str = ""
    empty: bool = False


def write_figure_pages(figures: Path, entries: Sequence[Entry]) -> list[Path]:
    """An index page in each folder of figures that holds any of `entries`; returns their paths."""
    order = list(CAPTIONS)
    ordered = sorted(entries, key=lambda entry: order.index(entry.kind))
    held = {name: [entry for entry in ordered if CAPTIONS[entry.kind].folder == name] for name in FIGURES}
    written = []
    for name in filter(held.get, FIGURES):
        others = [other for other in FIGURES if other != name and held[other]]
        path = figures / name / PAGE
        path.write_text(_figure_page(name, held[name], others), encoding="utf-8")
        written.append(path)
    return written


def _figure_page(folder: str, ordered: Sequence[Entry], others: Sequence[str]) -> str:
    """Kinds one below the other, each with its sentence and its pictures."""
    also = "".join(f" More figures: [{other}](../{other}/{PAGE})." for other in others)
    title, text = HEADS[folder]
    files = "A picture leads to its PDF; *points* are what is plotted (CSV), *origin* names the runs behind it (JSON)."
    parts = [f"# {title}", text + also, f"{files} {MADE}"]
    parts += [_kind(kind, list(group)) for kind, group in groupby(ordered, key=lambda entry: entry.kind)]
    return "\n\n".join(parts) + "\n"


def _kind(kind: str, entries: Sequence[Entry]) -> str:
    caption = CAPTIONS[kind]
    head = f"## Figure {caption.paper}: {kind}" if caption.paper else f"## {kind}"
    drawn = [_thumbnail(entry) for entry in entries if not entry.empty]
    empty = [_links(entry, with_picture=True) for entry in entries if entry.empty]
    return "\n\n".join([head, caption.text, *drawn, *(["Nothing measured yet: " + "; ".join(empty) + "."] if empty
                                                      else [])])


def _thumbnail(entry: Entry) -> str:
    name = _name(entry)
    picture = f'<a href="{name}.pdf"><img src="{name}.png" width="{WIDTH}" alt="{name}"></a>'
    return f"{picture}<br>\n{_links(entry)}"


def _links(entry: Entry, *, with_picture: bool = False) -> str:
    name, files = _name(entry), {"png": "picture"} | FILES if with_picture else FILES
    return f"{entry.base or entry.kind}: " + ", ".join(f"[{text}]({name}.{end})" for end, text in files.items())


def _name(entry: Entry) -> str:
    return figure_place(Path(), entry.kind, entry.base).name


def write_table_page(folder: Path, title: str, written: Sequence[Path]) -> list[Path]:
    """An index page of the tables among `written`, in their order, in `folder`; nothing where there are none.

    What is said of a table is the first sentence of its caption.
    """
    tables = [path for path in written if path.suffix == ".md"]
    if not tables:
        return []
    files = ("A name leads to the table as it is read, *CSV* to its numbers, *origin* to what it was made from. "
             "LaTeX and HTML: `asgkit report --formats tex,html`.")
    lines = ["| Table | What it shows | Files |", "|---|---|---|", *map(_table_line, tables)]
    (folder / PAGE).write_text("\n".join([f"# {title}", "", f"{files} {MADE}", "", *lines]) + "\n", encoding="utf-8")
    return [folder / PAGE]


def _table_line(markdown: Path) -> str:
    caption = markdown.read_text(encoding="utf-8").split("\n", 1)[0]
    found = SENTENCE.match(caption)
    sentence = found[0] if found else caption
    files = [("CSV", name) for name in _numbers(markdown)] + [("origin", markdown.with_suffix(".json").name)]
    links = ", ".join(f"[{text}]({name})" for text, name in files)
    return f"| [{markdown.stem}]({markdown.name}) | {sentence}{'' if sentence.endswith('?') else '.'} | {links} |"


def _numbers(markdown: Path) -> list[str]:
    """The CSV of a table; of a published one those that it was transcribed to, relative to its folder."""
    own = markdown.with_suffix(".csv")
    if own.is_file():
        return [own.name]
    record, _ = read_sidecar(markdown.with_suffix(".json"))
    return [f"../{Path(name).name}" for name in sorted(record["inputs"])]
