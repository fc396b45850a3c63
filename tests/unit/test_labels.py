"""Labels as records, the files made of them, and how labelers' weights and disputes count."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_jsonl

from instructlit.data import ComparisonData, DemonstrationData
from instructlit.data.formats import Kind, read_records
from instructlit.data.readers import open_source
from instructlit.data.records import Coder, Measure, scan
from instructlit.data.sampling import ShuffledPlan
from instructlit.data.sources import Source
from instructlit.errors import UserError
from instructlit.labels import Label, LabelKind, Task, read_labels, read_tasks, write_labels, write_tasks
from instructlit.labels.export import DISPUTED, REPORTED, REVISED, SKIPPED, TIED, WEIGHTLESS, export
from instructlit.labels.records import for_database, key_file, parse_label, task_id, with_policies
from instructlit.labels.report import agreement_report
from instructlit.types import Prompt, Text

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say hello."}]


def label(task: str = "t1", labeler: str = "anna", ranks: list[int] | None = None, **more: Any) -> Label:
    texts = ["one", "two", "three"]
    return Label(task, "comparison", more.pop("prompt", f"prompt {task}"), labeler, texts, ranks or [1, 2, 3], **more)


def test_tasks_are_blind_and_come_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    tasks = [
        Task("a", "comparison", "Say a.", ["a", "b"], ["models/sft", "models/ppo"], [0.5, -1.0], 2, "chat", "u1"),
        Task("b", "demonstration", CHAT, round=2),
        Task("c", "comparison", "Say c.", ["c", "d"], ended=[True, False]),
    ]
    write_tasks(path, tasks)
    text = path.read_text()
    assert "models/" not in text
    assert "0.5" not in text
    assert "ended" not in text
    assert json.loads(key_file(path).read_text().splitlines()[0])["policy"] == ["models/sft", "models/ppo"]
    assert read_tasks(path) == tasks
    key_file(path).unlink()
    assert read_tasks(path)[0].policy is None


def test_labels_come_back_whole(tmp_path: Path) -> None:
    labels = [
        label(
            ratings=[7, None, 1],
            flags=[{"hallucination": True}, {}, {}],
            seconds=12.5,
            round=1,
            policy=["x", "y", "z"],
            ended=[True, False, True],
        ),
        Label("d", "demonstration", CHAT, "bob", ["Hello!"], use_case="chat", user="u"),
        Label("s", "comparison", "p", "bob", ["x", "y"], skipped="unclear", reported=["private"]),
    ]
    write_labels(tmp_path / "labels.jsonl", labels)
    assert read_labels(tmp_path / "labels.jsonl") == labels


def test_rows_of_the_labelling_database_are_labels() -> None:
    row = {
        "task": 7, "kind": "comparison", "prompt": "p", "completions": ["a", "b"], "policies": ["m1", "m2"],
        "labeler": "anna", "ranks": [2, 1], "ratings": [3, 6], "flags": [{}, {"hallucination": False}],
        "seconds": 30.0, "round": 1, "order": [1, 0], "notes": "", "source": None, "gold": None,
    }  # fmt: skip
    found = parse_label(row, "x")
    assert (found.task, found.policy, found.ranks, found.seconds) == ("7", ["m1", "m2"], [2, 1], 30.0)
    written = {
        "task": 8,
        "kind": "demonstration",
        "prompt": "p",
        "completions": [],
        "completion": "text",
        "labeler": "bob",
    }
    assert parse_label(written, "x").completions == ["text"]
    task = Task("id", "comparison", "p", ["a", "b"], ["m1", "m2"], [0.1, 0.2], round=1)
    given = for_database(task)
    assert given["policies"] == ["m1", "m2"]
    assert given["extra"] == {"instructlit_task": "id", "scores": [0.1, 0.2]}
    cut = replace(task, ended=[False, True])
    assert for_database(cut)["extra"]["ended"] == [False, True]
    assert with_policies([parse_label({**row, "completions": ["b", "a"]}, "x")], [cut])[0].ended == [True, False]
    assert with_policies([parse_label({**row, "policies": None}, "x")], [task])[0].task == "id", (
        "found by what was asked"
    )


def test_an_export_of_the_database_finds_its_tasks() -> None:
    """Its rows carry ids of its own and no kind, and are of all rounds."""
    tasks = [
        Task("e", "evaluation", "p", ["a", "b"], ["new", "old"], round=2),
        Task("d", "demonstration", "write", round=2),
    ]
    shared = {"labeler": "anna", "round": 2}
    rows = [
        {"task": 11, "prompt": "p", "completions": ["b", "a"], "ranks": [1, 2], **shared},
        {"task": 12, "prompt": "write", "completion": "text", **shared},
        {"task": 3, "prompt": "earlier", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "anna", "round": 1},
    ]
    contest, written = with_policies([parse_label(row, "x") for row in rows], tasks)
    assert (contest.task, contest.kind, contest.policy) == ("e", "evaluation", ["old", "new"])
    assert (written.task, written.kind, written.completions) == ("d", "demonstration", ["text"])
    with pytest.raises(UserError, match="no such task"):
        with_policies([parse_label({**rows[0], "prompt": "another"}, "x")], tasks)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"labeler": None}, "labeler"),
        ({"ranks": [1, 2]}, "ranks: found 2 for 3"),
        ({"ranks": [2, 3, 3]}, "the best rank is 2"),
        ({"kind": "comparision"}, "kind: found 'comparision'"),
        ({"ratings": [8, 1, 1]}, "ratings"),
        ({"ratings": [1]}, "3 ratings"),
        ({"policy": ["a"]}, "policy"),
        ({"policy": "abc"}, "policy: found 'abc'"),
        ({"policy": ["a", "b", 3]}, "policy"),
        ({"seconds": "long"}, "seconds"),
        ({"ended": [True, 1, False]}, "ended: found [True, 1, False]"),
        ({"ended": [True]}, "ended"),
        ({"round": 1.5}, "round"),
        ({"round": -1}, "round"),
        ({"flags": [{"x": 1}, {}, {}]}, "flags"),
    ],
)
def test_a_wrong_label_names_its_line_and_field(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    row = {"task": "t", "prompt": "p", "labeler": "anna", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]}
    path = tmp_path / "labels.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | change)}\n")
    with pytest.raises(UserError) as caught:
        read_labels(path)
    assert "labels.jsonl:2" in str(caught.value)
    assert told in str(caught.value)


def test_a_task_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks.jsonl", [Task("t", "demonstration", "p"), Task("t", "demonstration", "q")])
    with pytest.raises(UserError, match=r"tasks\.jsonl: task 't' occurs twice"):
        read_tasks(tmp_path / "tasks.jsonl")


@pytest.mark.parametrize("scores", [[0.1], 0.1, ["a", "b"]])
def test_a_task_has_a_score_for_each_completion_or_none(tmp_path: Path, scores: Any) -> None:
    row = {"task": "t", "prompt": "p", "completions": ["a", "b"], "scores": scores}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"tasks\.jsonl:1.*scores: found"):
        read_tasks(tmp_path / "tasks.jsonl")


def test_policies_return_in_the_order_of_the_label() -> None:
    task = Task("t1", "comparison", "prompt t1", ["three", "one", "two"], ["m3", "m1", "m2"], round=4)
    found = with_policies([label()], [task])[0]
    assert (found.policy, found.round) == (["m1", "m2", "m3"], 4)
    assert with_policies([replace(label(), round=3)], [task]) == []
    assert len(with_policies([replace(label(), round=3)], [replace(task, round=None)])) == 1, "of any round"
    same = Task("e", "evaluation", "p", ["a", "a"], ["ours", "theirs"])
    both = with_policies([Label("e", "evaluation", "p", "anna", ["a", "a"], [1, 1])], [same])[0]
    assert both.policy == ["ours", "theirs"], "equal answers of two policies keep both"
    with pytest.raises(UserError, match="different completions from its task"):
        with_policies([Label("t1", "comparison", "prompt t1", "anna", ["one", "two"], [1, 2])], [task])
    with pytest.raises(UserError, match="no such task"):
        with_policies([label("t9")], [task])


def test_what_a_task_does_not_say_stays_as_the_label_says_it() -> None:
    """A file of tasks whose key file is elsewhere, and labels of the database, which knows policies, ends and round."""
    said = replace(label(), policy=["m1", "m2", "m3"], ended=[True, False, True], round=3, use_case="chat", user="u")
    blind = Task(said.task, said.kind, said.prompt, said.completions)
    assert with_policies([said], [blind]) == [said]
    keyed = replace(blind, policy=["n1", "n2", "n3"])
    assert with_policies([said], [keyed]) == [replace(said, policy=keyed.policy)]


def test_an_id_is_that_of_the_question() -> None:
    assert task_id("comparison", "p", ["a", "b"]) == task_id(
        "comparison", [{"role": "user", "content": "p"}], ["a", "b"]
    )
    ids = [task_id("comparison", "p", ["a"]), task_id("comparison", "p", ["b"]), task_id("evaluation", "p", ["a"])]
    assert len({*ids, task_id("comparison", "p", ["a"], 2)}) == 4


def test_exported_rows_are_what_the_datamodules_read(tmp_path: Path, char_tokenizer_dir: Path) -> None:
    labels = [
        label(
            f"t{n}",
            labeler,
            [1, 2, 2],
            ratings=[7, 4, 4] if labeler == "anna" else [7, None, 4],
            flags=[{"hallucination": False}] * 3,
            policy=["a", "b", "b"],
            round=1,
            seconds=3.0,
        )
        for n in range(20)
        for labeler in ("anna", "bob")
    ]
    labels += [Label(f"d{n}", "demonstration", f"write {n}", "anna", ["text"]) for n in range(20)]
    labels += [
        Label(f"e{n}", "evaluation", f"prompt t{n}", "anna", ["x", "y"], [1, 1], policy=["a", "b"]) for n in range(20)
    ]
    found = export(labels, validation_fraction=0.3)
    names: dict[LabelKind, Kind] = {
        "comparison": "comparison", "evaluation": "comparison", "demonstration": "demonstration",
    }  # fmt: skip
    for kind, name in names.items():
        for row in found.train[kind] + found.validation[kind]:
            (record,) = read_records(row, "x", name)[1]
            assert not isinstance(record, Prompt | Text)
            assert record.labeler
    first = found.train["comparison"][0]
    assert first["ratings"] == [7, 4, 4]
    assert all(("ratings" in row) == (row["labeler"] == "anna") for row in found.train["comparison"])
    assert (first["policy"], first["round"], first["task"]) == (["a", "b", "b"], 1, first["prompt"].split()[1])
    sides = [{row["prompt"] for row in rows["comparison"]} for rows in (found.train, found.validation)]
    assert sides[0].isdisjoint(sides[1]), "both labelers of a prompt are on one side"
    assert len(sides[1]) > 1
    assert len(found.train["comparison"]) == 2 * len(sides[0])
    assert len(found.train["evaluation"]) == 20, "results are never held out, and a tie is a result"

    for name, rows in found.files():
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    comparisons = ComparisonData(
        str(char_tokenizer_dir), str(tmp_path / "comparisons.jsonl"), str(tmp_path / "comparisons_validation.jsonl"),
        batch_size=4, max_length=64,
    )  # fmt: skip
    comparisons.setup("fit")
    assert len(next(iter(comparisons.train_dataloader()))) == 4
    demonstrations = DemonstrationData(str(char_tokenizer_dir), str(tmp_path / "demonstrations.jsonl"), batch_size=2)
    demonstrations.setup("fit")
    assert len(next(iter(demonstrations.train_dataloader()))) == 2


def test_a_prompt_never_changes_sides() -> None:
    labels = [label(f"t{n}") for n in range(60)]
    few = {row["prompt"] for row in export(labels[:30], 0.2).validation["comparison"]}
    many = {row["prompt"] for row in export(labels, 0.2).validation["comparison"]}
    assert few == many & {str(one.prompt) for one in labels[:30]}
    train = {row["prompt"] for one in labels for row in export([one, labels[0]], 0.2).train["comparison"]}
    assert train == {str(one.prompt) for one in labels} - many, "nor beside few others, where a side may be empty"


def test_what_is_left_out_is_counted_by_its_reason() -> None:
    labels = [
        label("t1", "anna", [1, 1, 1]),
        label("t2", "anna", skipped="unclear"),
        label("t3", "anna", reported=["private"]),
        label("t3", "bob"),
        label("t4", "anna", [1, 2, 3]),
        label("t4", "anna", [3, 2, 1]),
        label("t5", "carl"),
    ]
    found = export(labels, 0.0, {"carl": 0})
    assert dict(found.left_out) == {TIED: 1, SKIPPED: 1, REPORTED: 2, REVISED: 1, WEIGHTLESS: 1}
    assert [row["ranks"] for row in found.train["comparison"]] == [[3, 2, 1]], "the later label of the two"


def test_disputed_tasks_go() -> None:
    labels = [
        label("t1", "anna", [1, 2, 3]),
        label("t1", "bob", [1, 3, 2]),  # 2 of 3 pairs alike
        label("t2", "anna", [1, 2, 3]),
        label("t2", "bob", [3, 2, 1]),  # 0 of 3
        label("t3", "anna", [1, 2, 3]),  # nobody to agree with
        label("t4", "anna", [1, 1, 2]),
        label("t4", "bob", [1, 2, 2]),  # 1 of 1: the other two are somebody's ties
    ]
    assert export(labels, 0.0, min_agreement=2 / 3).left_out == {DISPUTED: 2}
    assert export(labels, 0.0, min_agreement=0.7).left_out == {DISPUTED: 4}
    assert not export(labels, 0.0).left_out


def test_completions_in_another_order_agree_all_the_same() -> None:
    turned = Label("t1", "comparison", "prompt t1", "bob", ["three", "two", "one"], [3, 2, 1], ratings=[1, 4, 7])
    found = agreement_report([label(ratings=[7, 4, 1]), turned])
    assert found["pairwise"] == {
        "agreement": 1.0,
        "half_width": pytest.approx(0.793451, abs=1e-6),
        "pairs": 3,
        "tasks": 1,
    }
    assert found["alpha_ranks"] == found["alpha_ratings"] == 1.0


def test_agreement_report_by_hand() -> None:
    yes, no = {"hallucination": True}, {"hallucination": False}
    labels = [
        label("t1", "anna", [1, 2, 3], flags=[yes, no, no]),
        label("t1", "bob", [1, 3, 2], flags=[yes, no, yes]),
        label("t2", "anna", [1, 2, 3]),
        label("t2", "carl", [1, 2, 3]),
        label("t3", "anna", [1, 2, 3]),
    ]
    found = agreement_report(labels)
    assert (found["tasks"], found["overlapping_tasks"]) == (3, 2)
    assert found["pairwise"]["agreement"] == pytest.approx(5 / 6, abs=1e-6)
    assert {name: round(one["agreement"], 3) for name, one in found["labelers"].items()} == {
        "anna": 0.833, "bob": 0.667, "carl": 1.0,
    }  # fmt: skip
    # flags: agreements 1, 1, 0; yes 3 of 6: (2/3 - 1/2) / (1/2)
    assert found["kappa_flags"] == {"hallucination": pytest.approx(1 / 3, abs=1e-6)}
    assert found["alpha_ratings"] is None


def test_a_labeler_s_tasks_are_counted_once_whoever_else_labelled_them() -> None:
    names = ("anna", "bob", "carl")
    ranks = {"t1": ([1, 2, 3], [1, 2, 3], [1, 3, 2]), "t2": ([1, 2, 3], [3, 2, 1], [1, 2, 3])}
    found = agreement_report(label(task, name, each[i]) for task, each in ranks.items() for i, name in enumerate(names))
    anna = found["labelers"]["anna"]
    assert (anna["agreement"], anna["pairs"], anna["tasks"]) == (pytest.approx(8 / 12), 12, 2)
    # of a ratio of sums over the two tasks, which have 5 and 3 of 6: 2 / 1 * (1 + 1) / 12**2
    assert anna["half_width"] == pytest.approx(1.959964 / 6, abs=1e-6)


def test_nobody_agrees_with_themselves() -> None:
    labels = [label(ranks=[3, 2, 1]), label(), label(labeler="bob")]
    found = agreement_report(labels)
    assert (found["pairwise"]["agreement"], found["pairwise"]["pairs"]) == (1.0, 3), "anna's later label and bob's"
    assert agreement_report(labels[:2])["overlapping_tasks"] == 0


def test_weights_and_fractions_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="weight of 'anna' is -1"):
        export([label()], 0.0, {"anna": -1})
    with pytest.raises(UserError, match="validation_fraction"):
        export([label()], 1.0)
    with pytest.raises(UserError, match="min_agreement"):
        export([label()], 0.0, min_agreement=1.01)
    assert export([label()], 0.0, min_agreement=1.0).train["comparison"], "wholly agreed is a bound"


def test_a_rows_weight_is_how_often_it_comes(tmp_path: Path) -> None:
    labels = [label(f"t{n}", labeler) for n in range(8) for labeler in ("anna", "bob", "carl")]
    rows = export(labels, 0.0, {"anna": 2, "bob": 0.5}).train["comparison"]
    path = write_jsonl(tmp_path / "comparisons.jsonl", rows)
    coder = Coder("comparison", lambda record: [], lambda record, sequences: Measure(1))
    scanned = scan(open_source(Source(str(path), weight=2.0), "train"), coder, "train")
    groups, weights = scanned.groups(np.ones(len(scanned), dtype=bool))
    assert sorted(weights) == [1.0, 2.0, 4.0], "a row's own weight times that of its source"
    plan = ShuffledPlan(groups, 8, weights=weights)
    epoch = np.concatenate([plan.batch(number) for number in range(len(plan))])
    seen = {name: sum(rows[i]["labeler"] == name for i in epoch) for name in ("anna", "bob", "carl")}
    assert seen == {"anna": 32, "bob": 8, "carl": 16}


@pytest.mark.parametrize("weight", [0, -1, "much", True])
def test_a_wrong_weight_is_refused(weight: Any) -> None:
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "weight": weight}
    with pytest.raises(UserError, match="weight"):
        read_records(row, "x:1", "comparison")


def test_a_row_tells_everything_about_its_label() -> None:
    told: dict[str, Any] = {
        "labeler": "anna", "ratings": [7, 3], "flags": [{"harmful": False}, {"harmful": True}], "policy": ["a", "b"],
        "use_case": "chat", "user": "u", "round": 2, "seconds": 9.5, "instructions": 4,
        "ended": [True, False],
    }  # fmt: skip
    (made,) = export([Label("t", "comparison", "p", completions=["x", "y"], ranks=[1, 2], **told)], 0.0).train[
        "comparison"
    ]
    assert made == {"prompt": "p", "completions": ["x", "y"], "ranks": [1, 2], "task": "t"} | told
