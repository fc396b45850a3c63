"""The lineage of a loop as a picture: one row per round, inputs to outputs from left to right.

Models and files from before the loop are inputs of every round. Lines from them would hide the others: boxes name them
in words, and only the answers written by their policies are drawn as lines.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Protocol

WIDTH, LINE, PAD = 208, 15, 9  # of a box: width, height of a text line, padding, in pixels
ACROSS, DOWN = 112, 26  # between columns and between boxes of a column
ROUND_GAP = 64
LONGEST = 30
"""Characters of a line in a box; the tooltip shows it completely."""
STYLE = """
svg { --ink: #1d2126; --soft: #5c6570; --paper: #fff; --card: #f5f7f9; --line: #8a94a0; --bad: #b4442e;
  background: var(--paper); font: 11px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e9ed; --soft: #9aa4af; --paper: #14171b; --card: #1c2026;
  --line: #78828e; --bad: #ef8a72; } }
rect { fill: var(--card); stroke: var(--line); } .changed rect { stroke: var(--bad); stroke-width: 2; }
text { fill: var(--ink); } .soft { fill: var(--soft); } .bad { fill: var(--bad); } .name { font-weight: 600; }
path { fill: none; stroke: var(--line); } .head { fill: var(--line); stroke: none; }
.role { fill: var(--soft); font-size: 10px; text-anchor: middle; paint-order: stroke; stroke: var(--paper);
  stroke-width: 4px; }
"""


class Node(Protocol):
    """A file or model of a run, as found by `lineage`."""

    what: str
    sha256: str | None
    parents: dict[str, str]
    changed: list[str]


@dataclass(frozen=True)
class Box:
    """A node with its position."""

    x: float
    y: float
    lines: tuple[tuple[str, str], ...]  # class and text

    @property
    def height(self) -> float:
        """The height of its lines."""
        return 2 * PAD + LINE * len(self.lines)


def picture(nodes: Mapping[str, Node], short: int) -> str:
    """A standalone SVG, light or dark like the reader's system, without scripts.

    Args:
        nodes: by name, in the order they were made.
        short: number of characters of a hash to show.
    """
    boxes, titles, width, height = _placed(nodes, short)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">']
    parts += [f"<title>Lineage of the loop</title><style>{STYLE}</style>"]
    parts.append(
        '<defs><marker id="to" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0 8 4 0 8z"/></marker></defs>'
    )
    parts += [f'<text class="soft name" x="16" y="{y:g}">{escape(title)}</text>' for title, y in titles]
    edges = [
        (boxes[parent], boxes[name], role)
        for name, node in nodes.items()
        for parent, role in node.parents.items()
        if parent in boxes and not _in_words(parent, name, role)
    ]
    parts += [_curve(start, end) for start, end, _ in edges]
    parts += [line for name, box in boxes.items() for line in _drawn(name, nodes[name], box)]
    parts += [_role(start, end, role) for start, end, role in edges if role != "data"]  # adds no information
    return "\n".join([*parts, "</svg>"])


def _placed(nodes: Mapping[str, Node], short: int) -> tuple[dict[str, Box], list[tuple[str, float]], float, float]:
    """A box for every node, the title of every row, and the total size."""
    rows: dict[int, list[str]] = {}
    for name in nodes:
        rows.setdefault(_round_of(name), []).append(name)
    boxes: dict[str, Box] = {}
    titles: list[tuple[str, float]] = []
    top, right = 16.0, 0.0
    for number in sorted(rows):
        titles.append((f"round {number}" if number else "before the loop", top + LINE))
        top += 2 * LINE
        columns: dict[int, float] = {}  # how far down each column is filled
        for at, name in enumerate(rows[number]):
            column = _depth(name, nodes, number) if number else at
            node = nodes[name]
            what = [node.what, (node.sha256 or "missing")[:short]]
            lines = [("name", name.removeprefix(f"rounds/{number}/")), *(("soft", text) for text in what)]
            lines += [("soft", text) for text in _words(name, node)]
            lines += [("bad", change) for change in node.changed]
            x, y = 16.0 + column * (WIDTH + ACROSS), columns.get(column, top)
            boxes[name] = Box(x, y, tuple(lines))
            columns[column] = y + boxes[name].height + DOWN
            right = max(right, x + WIDTH)
        top = max(columns.values()) + ROUND_GAP - DOWN
    return boxes, titles, right + 16, top - ROUND_GAP + 24


def _in_words(parent: str, name: str, role: str) -> bool:
    """Whether the parent is named in the box instead of drawn as a line."""
    return not _round_of(parent) and bool(_round_of(name)) and not role.startswith("wrote")


def _words(name: str, node: Node) -> Iterator[str]:
    for parent, role in node.parents.items():
        if _in_words(parent, name, role):
            yield f"+ {parent.rpartition('/')[2]}" + ("" if role == "data" else f" ({role})")


def _round_of(name: str) -> int:
    """The round that a file or model belongs to; 0 if it is from before the loop."""
    parts = name.split("/")
    return int(parts[1]) if parts[0] == "rounds" and len(parts) > 1 and parts[1].isdecimal() else 0


def _depth(name: str, nodes: Mapping[str, Node], number: int) -> int:
    """Number of steps that lead to a node within its round."""
    parents = nodes[name].parents if name in nodes else {}
    return max((1 + _depth(parent, nodes, number) for parent in parents if _round_of(parent) == number), default=0)


def _ends(start: Box, end: Box) -> tuple[tuple[float, float], tuple[float, float], bool]:
    """Where an edge starts and ends, and whether it runs from left to right."""
    if end.x > start.x:
        return (start.x + WIDTH, start.y + start.height / 2), (end.x, end.y + end.height / 2), True
    return (start.x + WIDTH / 2, start.y + start.height), (end.x + WIDTH / 2, end.y), False


def _curve(start: Box, end: Box) -> str:
    (x1, y1), (x2, y2), across = _ends(start, end)
    bend = (x2 - x1) / 2 if across else 0.0
    drop = 0.0 if across else (y2 - y1) / 2
    path = f"M{x1:g} {y1:g}C{x1 + bend:g} {y1 + drop:g} {x2 - bend:g} {y2 - drop:g} {x2:g} {y2:g}"
    return f'<path d="{path}" marker-end="url(#to)"/>'


def _role(start: Box, end: Box, role: str) -> str:
    (x1, y1), (x2, y2), _ = _ends(start, end)
    return f'<text class="role" x="{(x1 + x2) / 2:g}" y="{(y1 + y2) / 2 + 3:g}">{escape(role)}</text>'


def _drawn(name: str, node: Node, box: Box) -> Iterator[str]:
    told = "\n".join([name, node.what, node.sha256 or "missing", *node.changed])
    yield f"<g{' class=' + chr(34) + 'changed' + chr(34) if node.changed else ''}><title>{escape(told)}</title>"
    yield f'<rect x="{box.x:g}" y="{box.y:g}" width="{WIDTH}" height="{box.height:g}" rx="7"/>'
    for place, (kind, text) in enumerate(box.lines, start=1):
        y = box.y + PAD + LINE * place - 4
        yield f'<text class="{kind}" x="{box.x + PAD:g}" y="{y:g}">{escape(_cut(text, kind))}</text>'
    yield "</g>"


def _cut(text: str, kind: str) -> str:
    """A line that fits: the end of a name, the beginning of other texts."""
    if len(text) <= LONGEST:
        return text
    return f"…{text[1 - LONGEST :]}" if kind == "name" else f"{text[: LONGEST - 1]}…"
