"""`instructlit labels export`: labels as files for training, or for other tools."""

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from instructlit.errors import UserError, counted, nearest
from instructlit.files import write_rows, write_text
from instructlit.labels import Label, Task, read_tasks
from instructlit.labels.export import FILES, export
from instructlit.labels.records import with_policies, write_labels
from instructlit.tools.labels.sources import labels_of, tasks_of
from instructlit.tools.outputs import check_folder, check_output

Target = Literal["native", "labels", "trl", "argilla", "label_studio"]


def labels_export(
    labels: list[str] | None = None,
    output: str = "data",
    tasks: list[str] | None = None,
    to: Target = "native",
    validation_fraction: float = 0.05,
    weights: dict[str, float] | None = None,
    min_agreement: float | None = None,
    *,
    database: str | None = None,
    gold: bool = False,
) -> None:
    """Write labels as the comparison, demonstration and evaluation files that training reads, or for other tools.

    A row keeps its labeler, ratings, flags, policy, round and task. The split is by prompt: all labels of a prompt are
    on one side, in this round and in every other. What is left out is counted and reported. If one side has no rows,
    its file from an earlier export is removed from the folder.

    Args:
        labels: files of labels (JSON Lines); with several, a labeler's later label of a task replaces an earlier
            one.
        output: folder to write in.
        tasks: the files of tasks that were labelled, with their key files next to them: they give the policies, if
            the labels do not. With `argilla` and `label_studio` tasks alone may be exported, to be labelled there.
        to: `native` (comparisons.jsonl and so on), `labels` (labels.jsonl, every label unchanged), `trl` (pairs
            of chosen and rejected), `argilla`, `label_studio`. Only `native` and `trl` hold prompts out.
        validation_fraction: share of the prompts in separate validation files: those whose hash is below it. If there
            are none, no such file is written.
        weights: how often a labeler's rows occur per epoch, as in '{"anna": 2, "bob": 0.5}'; 0 leaves a labeler out.
        min_agreement: leave out tasks whose labelers order less than this share of the pairs alike.
        database: labelling database whose labels are included: a file, or the URL of a PostgreSQL server.
        gold: include the database's labels of gold questions.
    """
    check_folder(output)
    _check_options(to, weights or {}, min_agreement, database, gold)
    asked = [task for file in tasks or [] for task in read_tasks(file)]
    given = labels_of(labels or [], database, gold)
    if not asked and not given:
        if database:
            raise UserError(
                "the database has no labels yet", where="--database", expected="tasks that somebody has labelled"
            )
        expected = "labels, --database, or --tasks"
        raise UserError("there is nothing to export", where="instructlit labels export", expected=expected)
    if asked and given:
        every, given = len(given), with_policies(given, asked)
        if len(given) < every:
            print(f"left out: {every - len(given)} from other rounds than those of the tasks")
    folder = Path(output)
    if to in ("argilla", "label_studio"):
        _for_tool(to, asked or list(tasks_of(given).values()), given, folder)
        return
    if to == "labels":
        check_output(folder / "labels.jsonl", *(labels or []), *(tasks or []))
        write_labels(folder / "labels.jsonl", given)
        print(f"{folder / 'labels.jsonl'}: {counted(len(given), 'label')}")
        return
    found = export(given, validation_fraction, weights, min_agreement)
    _tell_absent(weights or {}, {label.labeler for label in given})
    files = {name: _pairs(rows, name) if to == "trl" else rows for name, rows in found.files()}
    files = {name: rows for name, rows in files.items() if rows}
    _clear_other_sides(folder, files, validation_fraction > 0)
    for name, rows in files.items():
        _write(folder / f"{name}.jsonl", rows)
    for reason, count in sorted(found.left_out.items()):
        print(f"left out: {count} {reason}")
    if not files:
        raise UserError("no rows are left", where=str(output), expected="at least one usable label")


def _check_options(
    to: str, weights: dict[str, float], min_agreement: float | None, database: str | None, gold: bool
) -> None:
    """Refuse options without effect on what is written: the file would be taken for one that they shaped."""
    if to not in ("native", "trl") and (weights or min_agreement is not None):
        raise UserError(
            f"`--to {to}` writes every label",
            where="--weights" if weights else "--min_agreement",
            expected="it with `--to native` or `--to trl` only",
        )
    if to == "trl" and (heavy := [name for name, weight in weights.items() if weight not in (0, 1)]):
        raise UserError(
            f"a pair of TRL has no weight, but that of {heavy[0]!r} is {weights[heavy[0]]:g}",
            where="--weights",
            expected="0, which leaves a labeler out, or 1",
        )
    if gold and database is None:
        raise UserError("files of labels do not tell gold questions apart", where="--gold", expected="--database")


def _clear_other_sides(folder: Path, written: Collection[str], asked: bool) -> None:
    """If only training or only validation has rows, removes the other's file: an earlier export may share prompts.

    Reports this, also if both were asked for but only one has rows.
    """
    for name in (FILES["comparison"], FILES["demonstration"]):  # evaluations are never held out
        sides = {name, f"{name}_validation"}
        for side in sides - set(written) if sides & set(written) else ():
            path = folder / f"{side}.jsonl"
            there = path.is_file()
            path.unlink(missing_ok=True)
            if there or asked:
                print(
                    f"{path}: not written, as it would have no prompts"
                    + ("; the file of an earlier export is removed" if there else "")
                )


def _tell_absent(weights: dict[str, float], labelers: set[str]) -> None:
    """Reports names with a weight but no labels: a labeler without work in this round, or a typo."""
    for name in sorted(weights.keys() - labelers):
        near = nearest(name, labelers)
        print(f"weights: there are no labels by {name!r}" + (f"; did you mean {near}?" if near else ""))


def _for_tool(to: str, tasks: list[Task], labels: list[Label], folder: Path) -> None:
    if to == "argilla":
        from instructlit.labels.argilla import to_argilla

        lost = Counter("skipped" for label in labels if label.skipped) + Counter(
            "with flags or a time, which Argilla's records cannot hold"
            for label in labels
            if label.flags or label.seconds
        )
        _write_array(folder / "argilla.json", list(to_argilla(tasks, labels)))
        for what, count in lost.items():
            print(f"not exported to Argilla: {counted(count, 'label')} {what}")
        return
    from instructlit.labels.label_studio import labeling_config, to_label_studio

    _write_array(folder / "label_studio.json", list(to_label_studio(tasks, labels)))
    most = max((len(task.completions) for task in tasks), default=0)
    write_text(folder / "label_studio.xml", labeling_config(most))
    print(f"{folder / 'label_studio.xml'}: the labelling interface of the project")


def _pairs(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The pairs of comparison rows; demonstrations have none."""
    from instructlit.labels.trl import to_pairs

    return list(to_pairs(rows)) if not name.startswith("demonstrations") else []


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    write_rows(path, rows)
    labelers = Counter(row["labeler"] for row in rows if "labeler" in row)
    by = f" by {counted(len(labelers), 'labeler')}" if labelers else ""
    print(f"{path}: {counted(len(rows), 'row')}{by}")


def _write_array(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    print(f"{path}: {counted(len(rows), 'task')}")
