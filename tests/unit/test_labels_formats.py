"""Argilla, Label Studio and TRL: files as those tools write them, and there and back."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from instructlit.cli import main
from instructlit.data.formats import read_records
from instructlit.errors import UserError
from instructlit.labels import Label, Task, read_labels, write_labels, write_tasks
from instructlit.labels.argilla import from_argilla, to_argilla
from instructlit.labels.label_studio import from_label_studio, labeling_config, to_label_studio
from instructlit.labels.trl import from_pairs, pair_task, to_pairs
from instructlit.tools.labels.agreement import _number

CHAT = [{"role": "user", "content": "Say <hello> & bye."}]
TASKS = [
    Task("c1", "comparison", "Count.", ["one", "two", "three"], ["m1", "m2", "m1"], [1.0, 2.0, 3.0], 2, "other", "u"),
    Task("e1", "evaluation", CHAT, ["hi", "hello"], ["m1", "m2"]),
    Task("d1", "demonstration", "Write."),
]
LABELS = [
    Label("c1", "comparison", "Count.", "anna", ["one", "two", "three"], [2, 1, 2], [5, 7, None], round=2,
          use_case="other", user="u"),
    Label("c1", "comparison", "Count.", "bob", ["one", "two", "three"], [3, 1, 2], round=2, use_case="other", user="u"),
    Label("e1", "evaluation", CHAT, "anna", ["hi", "hello"], [2, 1]),
    Label("d1", "demonstration", "Write.", "bob", ["A text."]),
]  # fmt: skip


def placed(rows: Any) -> list[tuple[str, dict[str, Any]]]:
    """Rows as they come from a file."""
    return [(f"file:{number}", row) for number, row in enumerate(json.loads(json.dumps(list(rows))), start=1)]


@pytest.mark.parametrize(("there", "back"), [(to_argilla, from_argilla), (to_label_studio, from_label_studio)])
def test_there_and_back(there: Any, back: Any) -> None:
    made = placed(there(TASKS, LABELS))
    assert "m1" not in json.dumps(made), "no policy is told"
    assert sorted(back(made), key=LABELS.index) == LABELS


@pytest.mark.parametrize(("there", "back"), [(to_argilla, from_argilla), (to_label_studio, from_label_studio)])
def test_equal_answers_go_there_and_back(there: Any, back: Any) -> None:
    task = Task("e1", "evaluation", "Count.", ["same", "other", "same"])
    given = Label("e1", "evaluation", "Count.", "anna", ["other", "same", "same"], [2, 1, 3], [4, 7, None])
    (found,) = back(placed(there([task], [given])))
    assert (found.completions, found.ranks, found.ratings) == (task.completions, [1, 2, 3], [7, 4, None])


def test_label_studio_keeps_time_and_skips() -> None:
    given = [Label("c1", "comparison", "Count.", "anna", TASKS[0].completions, [1, 2, 3], seconds=4.5, round=2,
                   use_case="other", user="u"),
             Label("c1", "comparison", "Count.", "bob", TASKS[0].completions, skipped="cancelled", round=2,
                   use_case="other", user="u")]  # fmt: skip
    assert list(from_label_studio(placed(to_label_studio(TASKS[:1], given)))) == given


def test_argilla_as_its_client_writes_it() -> None:
    row = {
        "id": "7",
        "fields": {"prompt": "Count.", "response_1": "one", "response_2": "two", "note": "not a completion"},
        "metadata": {},
        "suggestions": {},
        "responses": {
            "preference": [
                {"value": ["response-2", "response-1"], "user_id": "u-1"},
                {"value": [{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 1}], "user_id": "u-2"},
                {"value": ["response-1"], "user_id": "u-3", "status": "draft"},
            ],
            "rating_1": [{"value": 3, "user_id": "u-1"}],
            "comment": [{"value": "nice", "user_id": "u-1"}],
            "issues": [{"value": ["toxic", "off-topic"], "user_id": "u-1"}, {"value": [], "user_id": "u-2"}],
        },
        "vectors": {},
        "_server_id": None,
    }
    one, two = from_argilla([("file:1", row)])
    assert (one.labeler, one.ranks, one.ratings) == ("u-1", [2, 1], [3, None])
    assert (two.labeler, two.ranks) == ("u-2", [1, 1])
    row["responses"]["preference"] = [{"value": ["response-1"], "user_id": "u-1"}]
    with pytest.raises(UserError, match=r"file:1.*the ranking contains response_1"):
        list(from_argilla([("file:1", row)]))


def studio(value: dict[str, Any], kind: str = "ranker", **data: Any) -> dict[str, Any]:
    items = [{"id": "a", "title": "one"}, {"id": "b", "body": "two"}, {"id": "c", "body": "three"}]
    return {
        "id": 1,
        "data": {"prompt": "Count.", "items": items, **data},
        "annotations": [
            {
                "id": 11,
                "completed_by": {"id": 3, "email": "anna@example.org"},
                "was_cancelled": False,
                "lead_time": 9.5,
                "result": [{"from_name": "rank", "to_name": "items", "type": kind, "value": value}],
            }
        ],
    }


def test_label_studio_as_it_exports() -> None:
    def read(row: dict[str, Any]) -> Label:
        (found,) = from_label_studio([("file:1", row)])
        return found

    plain = read(studio({"ranker": ["c", "a", "b"]}))
    assert (plain.completions, plain.ranks) == (["one", "two", "three"], [2, 3, 1])
    assert (plain.labeler, plain.seconds) == ("anna@example.org", 9.5)
    bucketed = studio({"ranker": {"rank_10": ["a"], "rank_2": ["b", "c"], "_": []}})
    assert read(bucketed).ranks == [2, 1, 1], "buckets go by number, not by letter"
    numbered = studio(
        {"ranker": {"rank_1": [2], "rank_2": [1]}}, items=[{"id": 1, "body": "x"}, {"id": 2, "body": "y"}]
    )
    assert read(numbered).ranks == [2, 1]
    pair = studio({"selected": "right"}, "pairwise", text1="x", text2="y")
    del pair["data"]["items"]
    assert (read(pair).completions, read(pair).ranks) == (["x", "y"], [2, 1])
    with pytest.raises(UserError, match=r"annotations\[0\]: not ranked: a, b"):
        read(studio({"ranker": {"rank_1": ["c"], "_": ["a", "b"]}}))
    with pytest.raises(UserError, match="found no ranking"):
        read(studio({"choices": ["c"]}, "choices"))


@pytest.mark.parametrize(("change", "told"), [({"lead_time": "12.5"}, "seconds"), ({"rating": 9}, "ratings")])
def test_what_no_label_may_say_is_refused_where_label_studio_says_it(change: dict[str, Any], told: str) -> None:
    row = studio({"ranker": ["a", "b", "c"]})
    (annotation,) = row["annotations"]
    annotation |= change
    annotation["result"].append({"type": "rating", "from_name": "rating_2", "value": change})
    with pytest.raises(UserError, match=rf"file:1: annotations\[0\]: {told}"):
        list(from_label_studio([("file:1", row)]))


def test_what_no_label_may_say_is_refused_where_argilla_says_it() -> None:
    (row,) = to_argilla(TASKS[:1], LABELS[:1])
    row["responses"]["rating_1"][0]["value"] = 0
    with pytest.raises(UserError, match="file:1: ratings"):
        list(from_argilla([("file:1", row)]))


def test_the_labelling_interface_is_xml_with_a_bucket_a_rank() -> None:
    view = ElementTree.fromstring(labeling_config(4))
    assert [bucket.get("name") for bucket in view.iter("Bucket")] == ["rank_1", "rank_2", "rank_3", "rank_4"]
    assert {rating.get("maxRating") for rating in view.iter("Rating")} == {"7"}


def test_trl_pairs() -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c", "d"], "ranks": [2, 1, 2, 3]}
    pairs = list(to_pairs([row]))
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [("b", "a"), ("b", "c"), ("b", "d"), ("a", "d"), ("c", "d")]
    (chat,) = to_pairs([{"prompt": CHAT, "completions": ["x", "y"], "ranks": [2, 1]}])
    assert chat["chosen"] == [{"role": "assistant", "content": "y"}]
    for pair in (*pairs, chat):
        assert read_records(pair, "x", "comparison")[0] == "preference", "our own reader takes them"
    one, *_ = from_pairs(placed(pairs), "team")
    assert (one.prompt, one.completions, one.ranks, one.labeler) == ("p", ["a", "b"], [2, 1], "team")
    asked = pair_task(pairs[0], "x")
    assert (asked.task, asked.completions) == (one.task, one.completions), "a pair and its label are one task"


def test_commands_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks, labels = tmp_path / "tasks.jsonl", tmp_path / "labels.jsonl"
    write_tasks(tasks, TASKS)
    write_labels(labels, LABELS)

    def run(*words: Any) -> str:
        status = main([str(word) for word in words])
        told = capsys.readouterr()
        assert status == 0, told.err
        return told.out

    for tool in ("argilla", "label_studio"):
        run("labels", "export", labels, "--tasks", tasks, "--output", tmp_path, "--to", tool)
        back = tmp_path / f"{tool}-back.jsonl"
        run("labels", "import", tmp_path / f"{tool}.json", "--source", tool, "--tasks", tasks, "--output", back)
        found = {(one.task, one.labeler): one for one in read_labels(back)}
        assert found["c1", "anna"].policy == ["m1", "m2", "m1"], "the key knows what the tool did not"
        assert found["c1", "anna"].ranks == [2, 1, 2]
        if not find_spec("sqlalchemy"):
            continue
        at = ("--database", tmp_path / f"{tool}.db")
        run("label", "add-labeler", "owner", "--role", "owner", *at)
        words = ("labels", "import", tmp_path / f"{tool}.json", "--source", tool, "--tasks", tasks, *at)
        assert f"{len(found)} new labels, 0 already labelled" in run(*words)
        assert f"0 new labels, {len(found)} already labelled" in run(*words), "what is there stays"
        for source, out in ((at, "through-database"), ((back,), "through-file")):
            words = ("--tasks", tasks, "--output", tmp_path / out, "--validation_fraction", "0")
            run("labels", "export", *source, *words)
        for name in ("comparisons", "demonstrations", "evaluations"):
            texts = [(tmp_path / out / f"{name}.jsonl").read_text() for out in ("through-database", "through-file")]
            rows = [[json.loads(line) for line in sorted(text.splitlines())] for text in texts]
            assert rows[0] == rows[1]
    assert (tmp_path / "label_studio.xml").is_file()
    told = run("labels", "agreement", labels)
    assert "100.0 ± 79.3 % (2 pairs, 1 task)" in told, "a pair that anna ties does not count"
    out = run("labels", "export", labels, "--tasks", tasks, "--output", tmp_path / "data", "--weights", '{"anna": 2}')
    assert "comparisons.jsonl: 2 rows by 2 labelers" in out
    rows = [json.loads(line) for line in (tmp_path / "data" / "comparisons.jsonl").read_text().splitlines()]
    assert [row.get("weight") for row in rows] == [2, None]
    assert (tmp_path / "data" / "evaluations.jsonl").is_file()
    run("labels", "export", labels, "--output", tmp_path / "trl", "--to", "trl")
    tied = Label("c1", "comparison", "Count.", "carl", ["one", "two", "three"], [1, 1, 1], [4, 4, 4])
    write_labels(tmp_path / "tied.jsonl", [tied])
    run("labels", "export", labels, tmp_path / "tied.jsonl", "--output", tmp_path / "all", "--to", "labels")
    assert read_labels(tmp_path / "all" / "labels.jsonl") == [*LABELS, tied], "none is left out"
    told = run("labels", "export", labels, "--output", tmp_path / "data", "--weights", '{"ana": 2, "zoe": 0}')
    assert "there are no labels by 'ana'; did you mean anna?\nweights: there are no labels by 'zoe'\n" in told
    again = ["labels", "export", tmp_path / "all" / "labels.jsonl", "--output", tmp_path / "all", "--to", "labels"]
    assert main([str(word) for word in again]) == 2, "a file that is read is not written over"
    assert main(["labels", "import", str(tasks), "--source", "argilla"]) == 2
    assert "tasks.jsonl:1: fields" in capsys.readouterr().err


def test_a_coefficient_that_rounds_to_none_has_no_sign() -> None:
    assert [_number(value) for value in (-0.0004, 0.0, -0.0006)] == ["0.000", "0.000", "-0.001"]


def test_an_export_of_nothing_says_what_is_lacking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sqlalchemy")
    write_tasks(tmp_path / "tasks.jsonl", TASKS[:1])
    database = ["--database", str(tmp_path / "labels.db")]
    assert main(["label", "import", str(tmp_path / "tasks.jsonl"), "--kind", "comparison", *database]) == 0
    capsys.readouterr()
    assert main(["labels", "export", "--output", str(tmp_path)]) == 2
    assert "expected: labels, --database, or --tasks" in capsys.readouterr().err
    assert main(["labels", "export", "--output", str(tmp_path), *database]) == 2
    assert "--database: the database has no labels yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "labels", "--min_agreement", "0.6"], "--min_agreement: `--to labels` writes every label"),
        (["--to", "argilla", "--weights", '{"anna": 0}'], "--weights: `--to argilla` writes every label"),
        (
            ["--to", "trl", "--weights", '{"anna": 2, "bob": 0}'],
            "--weights: a pair of TRL has no weight, but that of 'an",
        ),
        (["--gold"], "--gold: files of labels do not tell gold questions apart"),
    ],
)
def test_options_without_effect_on_an_export_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    write_labels(tmp_path / "labels.jsonl", LABELS)
    assert main(["labels", "export", str(tmp_path / "labels.jsonl"), "--output", str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err


def test_a_second_export_leaves_no_file_of_the_first_beside_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_labels(tmp_path / "labels.jsonl", [replace(LABELS[1], task=f"t{n}", prompt=f"p{n}") for n in range(20)])
    (tmp_path / "demonstrations.jsonl").write_text("somebody's\n")
    words = ["labels", "export", str(tmp_path / "labels.jsonl"), "--output", str(tmp_path), "--validation_fraction"]
    assert main([*words, "0.5"]) == 0
    assert (tmp_path / "comparisons_validation.jsonl").is_file()
    assert main([*words, "0"]) == 0
    assert "the file of an earlier export is removed" in capsys.readouterr().out
    assert not (tmp_path / "comparisons_validation.jsonl").exists(), "its prompts are trained on now"
    assert (tmp_path / "demonstrations.jsonl").is_file(), "which no export has written"
    assert main([*words, "1e-9"]) == 0
    assert "comparisons_validation.jsonl: not written, as it would have no prompts\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tool", "change", "told"),
    [
        ("label_studio", {"annotations": ["x"]}, "annotations[0]: found 'x'"),
        ("label_studio", {"annotations": [{"completed_by": 1}]}, "an object with a list `result`"),
        ("label_studio", {"annotations": [{"result": [{"type": "relation", "from_id": "a"}]}]}, "found no ranking"),
        ("argilla", {"responses": {"order": "x"}}, "responses.order: found 'x'"),
        ("argilla", {"responses": {"order": [{"user_id": "u"}]}}, "a list of objects with `value` and `user_id`"),
    ],
)
def test_a_label_of_another_shape_is_told(
    tmp_path: Path, tool: str, change: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = (to_argilla if tool == "argilla" else to_label_studio)(TASKS[:1])
    (tmp_path / "bad.json").write_text(json.dumps([row | change]))
    words = ["labels", "import", str(tmp_path / "bad.json"), "--source", tool, "--output", str(tmp_path / "out.jsonl")]
    assert main(words) == 2
    assert told in capsys.readouterr().err
