"""`instructlit lineage`: which policy wrote which answers, which labels trained which reward model, and so on."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from instructlit.data.rows import file_hash
from instructlit.errors import Ending, UserError, counted
from instructlit.labels import read_labels, read_tasks
from instructlit.models.lineage import read_record, weights_digest
from instructlit.tools.iterate.picture import picture
from instructlit.tools.made_from import read_made
from instructlit.tools.sources import parse_source

SHORT = 12
"""Characters of a hash that are shown."""


@dataclass
class Node:
    """A file or model of a run, what it was made from, and what has changed since."""

    name: str
    what: str
    sha256: str | None = None
    parents: dict[str, str] = field(default_factory=dict)  # name of a node -> what it was used as
    changed: list[str] = field(default_factory=list)


def lineage(run: str = "runs/loop", form: Literal["text", "mermaid", "svg", "json"] = "text") -> None:
    """Show what every round of a loop was made from, and what has changed since.

    Hashes of data files and weights are computed now; if they differ from those in the record of a model made from
    them, the output says so and the exit status is 1.

    Args:
        run: folder of the run.
        form: `text`; `svg`, a picture for a browser; `mermaid`, a diagram that many Markdown viewers render; or `json`.
    """
    folder = Path(run)
    rounds = sorted(folder.glob("rounds/*/"), key=lambda path: int(path.name) if path.name.isdigit() else 0)
    if not rounds:
        raise UserError("found no rounds", where=run, expected="a run folder of `instructlit iterate`")
    nodes: dict[str, Node] = {}
    for home in rounds:
        for node in _round(folder, home):
            if node.parents or node.name not in nodes:  # a model's own round knows more about it than others
                nodes[node.name] = node
    if form == "json":
        print(json.dumps({name: vars(node) for name, node in nodes.items()}, indent=1))
    elif form == "svg":
        print(picture(nodes, SHORT))
    else:
        print("\n".join(_mermaid(nodes) if form == "mermaid" else _text(nodes)))
    if any(node.changed for node in nodes.values()):
        raise Ending(1)


def _round(folder: Path, home: Path) -> Iterator[Node]:
    """The nodes of one round, in the order they were made; models from before the loop first."""
    tasks, labels = home / "tasks.jsonl", home / "labels.jsonl"
    if tasks.is_file():
        yield from _tasks(folder, home, tasks)
    if labels.is_file():
        given = read_labels(labels)
        people = len({label.labeler for label in given})
        name = _name(folder, labels)
        told = f"{counted(len(given), 'label')} by {counted(people, 'labeler')}"
        yield Node(name, told, file_hash(str(labels)), {_name(folder, tasks): "asks"})
    for data in sorted(home.glob("data/*.jsonl")):
        rows = sum(1 for line in data.open("rb") if line.strip())
        yield Node(_name(folder, data), counted(rows, "row"), file_hash(str(data)), {_name(folder, labels): "says"})
    records = {model: read_record(model) for model in sorted(home.glob("models/[!.]*/"))}
    for model in sorted(records, key=lambda model: records[model].get("stage") != "reward"):
        if records[model]:
            yield from _model(folder, home, model, records[model])


def _tasks(folder: Path, home: Path, path: Path) -> Iterator[Node]:
    found = read_tasks(path)
    wrote = Counter(name for task in found for name in task.policy or ())
    record = read_made(path)
    digests = record.get("from", {}).get("weights_sha256", {})
    node = Node(_name(folder, path), counted(len(found), "task"), file_hash(str(path)))
    if record.get("sha256", {}).get(path.name, node.sha256) != node.sha256:
        node.changed.append("is not the collected file")
    for source, count in sorted(wrote.items()):
        written, _ = parse_source(source)
        model = home / written
        name = _name(folder, model)
        node.parents[name] = f"wrote {counted(count, 'answer')}"
        _compare(node, f"weights of {name}", digests.get(written), weights_digest(model))
        yield _outside(name, model)
    yield node


def _model(folder: Path, home: Path, path: Path, record: dict[str, Any]) -> Iterator[Node]:
    node = Node(_name(folder, path), f"{record.get('stage')} model", weights_digest(path))
    for parent in record.get("parents", []):
        model = home / parent["path"]
        name = _name(folder, model)
        node.parents[name] = f"{node.parents[name]}, {parent['role']}" if name in node.parents else parent["role"]
        _compare(node, f"weights of {name}", parent.get("weights_sha256"), weights_digest(model))
        yield _outside(name, model)
    for data in record.get("data", []):
        file = home / data["path"]
        name = _name(folder, file)
        node.parents[name] = "data"
        now = file_hash(str(file)) if file.is_file() else None
        _compare(node, name, data.get("sha256"), now)
        if ".." in name or Path(name).is_absolute():
            yield Node(name, f"{data.get('rows')} rows", now)
    yield node


def _outside(name: str, model: Path) -> Node:
    """A model as described by the first node that names it; a model of the loop is described by its own round."""
    return Node(name, f"{read_record(model).get('stage') or 'a'} model", weights_digest(model))


def _compare(node: Node, what: str, before: str | None, now: str | None) -> None:
    if before and now != before:
        node.changed.append(f"{what} {'changed since' if now else 'is missing'}")


def _name(folder: Path, path: Path) -> str:
    """A path as seen from the run folder, so that every round uses the same name."""
    return os.path.relpath(path, folder)


def _text(nodes: dict[str, Node]) -> Iterator[str]:
    for node in nodes.values():
        yield f"{node.name}  {(node.sha256 or 'missing')[:SHORT]}  {node.what}"
        for parent, role in node.parents.items():
            yield f"    from {parent}  ({role})"
        for change in node.changed:
            yield f"    ! {change}"


def _mermaid(nodes: dict[str, Node]) -> Iterator[str]:
    names = list(dict.fromkeys([*nodes, *(parent for node in nodes.values() for parent in node.parents)]))
    numbers = {name: f"n{place}" for place, name in enumerate(names)}
    yield "flowchart TD"
    for name in names:
        node = nodes.get(name)
        label = f"{name}<br>{node.what}<br>{(node.sha256 or 'missing')[:SHORT]}" if node else name
        yield f'  {numbers[name]}["{label.replace(chr(34), chr(39))}"]'
    for node in nodes.values():
        for parent, role in node.parents.items():
            yield f"  {numbers[parent]} -->|{role}| {numbers[node.name]}"
