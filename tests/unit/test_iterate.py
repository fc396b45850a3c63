"""The loop of rounds, with a small program in the place of its commands."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from label_helpers import add_people, ranked, save, take

from instructlit.cli.config import Config
from instructlit.errors import UserError
from instructlit.labelling import tasks, work
from instructlit.labelling.database import Database
from instructlit.labelling.schema import Person
from instructlit.labels import Label, Task, read_labels, write_labels, write_tasks
from instructlit.tools import iterate as loops
from instructlit.tools.iterate.config import Loop, load
from instructlit.tools.iterate.lineage import Node
from instructlit.tools.iterate.measure import preference
from instructlit.tools.iterate.picture import picture
from instructlit.tools.iterate.plan import Planner
from instructlit.tools.iterate.report import falls_and_recovers, write_report
from instructlit.tools.quickstart import runner as quickstart_runner
from instructlit.tools.quickstart.process import Job

PROGRAM = """
import json, pathlib, sys
words = sys.argv[1:]
here = pathlib.Path.cwd()
with open(here.parents[1] / "calls.jsonl", "a") as file:
    file.write(json.dumps([here.name, *words]) + "\\n")
given = {word: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}
if (here / "fail").exists():
    sys.exit(3)
if words[0] == "collect":
    kind = given.get("--kind", "comparison")
    output = pathlib.Path(given["--output"])
    output.parent.mkdir(exist_ok=True)
    rows = [{"task": f"{kind}-{n}", "kind": kind, "prompt": f"p{n}", "completions": ["x", "y"]} for n in range(3)]
    output.write_text("".join(json.dumps(row) + "\\n" for row in rows))
elif words[:2] == ["labels", "export"]:
    for name in ("comparisons", "comparisons_validation"):
        pathlib.Path("data").mkdir(exist_ok=True)
        pathlib.Path("data", name + ".jsonl").write_text("{}")
elif words[0] == "fit":
    pathlib.Path("models", "ppo" if "policy.path" in " ".join(words) else "reward").mkdir(parents=True)
elif words[:2] == ["iterate", "measure"]:
    low = json.loads((here.parents[1] / "lows.json").read_text())[int(words[2]) - 1]
    result = {"round": int(words[2]), "labels": 3, "preference": 0.6, "preference_low": low, "preference_high": 0.7}
    result |= {name + end: 0.6 for name in ("accuracy", "accuracy_before") for end in ("", "_low", "_high")}
    pathlib.Path(given["--output"] if "--output" in given else "round.json").write_text(json.dumps(result))
else:
    pathlib.Path(given["--output"]).write_text("labels")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a loop's inputs, whose commands are run by the small program."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft").mkdir()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "p"}\n')
    (tmp_path / "stage.yaml").write_text("x: 1\n")
    values = {"sft": "sft", "prompts": ["prompts.jsonl"], "reward": ["stage.yaml"], "ppo": ["stage.yaml"]}
    values |= {"label": "judge tasks", "rounds": 3, "validation_fraction": 0.4}  # p2 alone is held out
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lows.json").write_text("[0.55, 0.55, 0.55]")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = (sys.executable, str(program))
    monkeypatch.setattr(quickstart_runner.Runner.__init__, "__defaults__", (command, False))
    together = quickstart_runner.run_logged

    def in_turn(jobs: Mapping[str, Job], **options: Any) -> dict[str, int | None]:
        """Of what runs at once either may be the first to note its call."""
        return {name: together({name: job}, **options)[name] for name, job in jobs.items()}

    monkeypatch.setattr(quickstart_runner, "run_logged", in_turn)
    return tmp_path


def calls(folder: Path) -> list[list[str]]:
    """The commands since the last time, each with the round it ran in."""
    path = folder / "run" / "calls.jsonl"
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return found


def run(**options: Any) -> None:
    loops.iterate(["loop.yaml"], "run", **options)


def change(folder: Path, **values: Any) -> None:
    path = folder / "loop.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def planned(loop: Loop, folder: Path) -> Planner:
    """A plan whose recipes are empty."""
    return Planner(loop, folder, {"reward": [], "ppo": []}, {"reward": Config(), "ppo": Config()})


ROUND = ["collect", "judge", "labels", "fit", "fit", "collect", "judge", "iterate"]


def test_rounds_build_on_those_before(folder: Path) -> None:
    change(folder, rounds=2, age_decay=0.5, start="last", policies=["last", "last@1.2", "sft"])
    run()
    found = calls(folder)
    assert [call[:2] for call in found] == [[str(n), word] for n in (1, 2) for word in ROUND]
    second = [call[1:] for call in found if call[0] == "2"]
    assert second[0][1:4] == ["../../rounds/1/models/ppo", "../../rounds/1/models/ppo@1.2", "../../../sft"]
    options = dict(zip(second[3], second[3][1:], strict=False))
    assert json.loads(options["--data.init_args.train"]) == [
        {"path": "../1/data/comparisons.jsonl", "weight": 0.5},
        {"path": "data/comparisons.jsonl", "weight": 1.0},
    ]
    assert json.loads(options["--data.init_args.validation"])[0] == "../1/data/comparisons_validation.jsonl"
    assert options["--model.init_args.model.path"] == "../../../sft"
    options = dict(zip(second[4], second[4][1:], strict=False))
    assert options["--model.init_args.policy.path"] == "../../rounds/1/models/ppo"
    assert options["--model.init_args.reference.path"] == "../../../sft", "the KL stays that from the SFT model"
    assert options["--model.init_args.reward.init_args.model.path"] == "models/reward"
    assert second[5][1:3] == ["models/ppo", "../../rounds/1/models/ppo"]
    assert found[0][2:3] == ["../../../sft"], "the first round's policy is the SFT model"
    assert (folder / "run" / "report.html").is_file()
    run()
    assert calls(folder) == [], "what is finished is not repeated"


def test_each_round_asks_for_its_number_of_labels(folder: Path) -> None:
    change(folder, limit=[2000, 500])
    run()
    asked = [call for call in calls(folder) if call[1] == "collect" and "contest/tasks.jsonl" not in call]
    assert [call[call.index("--limit") + 1] for call in asked] == ["2000", "500", "500"]
    change(folder, limit=[2000, 0])
    with pytest.raises(UserError, match="1 or more in every round"):
        run()


def test_from_the_sft_model_every_time(folder: Path) -> None:
    run(rounds=2)
    ppo = [call for call in calls(folder) if call[1] == "fit"][-1]
    assert ppo[ppo.index("--model.init_args.policy.path") + 1] == "../../../sft"
    assert "--model.init_args.reference.path" not in ppo


def test_the_recipes_reference_and_paths_are_those_of_the_loop(folder: Path) -> None:
    for name in ("text.jsonl", "more.jsonl"):
        (folder / name).write_text('{"text": "t"}\n')
    recipe = {
        "model": {"class_path": "PPOModule", "init_args": {"reference": {"path": "models/sft", "dtype": "bfloat16"}}},
        "data": {"class_path": "PromptData", "init_args": {"pretraining": ["text.jsonl", {"path": "more.jsonl"}]}},
    }
    (folder / "ppo.yaml").write_text(yaml.safe_dump(recipe))
    change(folder, ppo=["ppo.yaml"], rounds=1, contest=0)
    run()
    ppo = [call for call in calls(folder) if call[1] == "fit"][-1]
    assert ppo[ppo.index("--model.init_args.reference.path") + 1] == "../../../sft"
    seen = ["../../../text.jsonl", {"path": "../../../more.jsonl"}]
    assert json.loads(ppo[ppo.index("--data.init_args.pretraining") + 1]) == seen
    (folder / "more.jsonl").unlink()
    shutil.rmtree(folder / "run" / "rounds")
    with pytest.raises(UserError, match=r"ppo\.yaml:\d+: data\.init_args\.pretraining\.1\.path: there is no file"):
        run()
    assert calls(folder) == [], "told before the first stage"
    change(folder, ppo_options=["--data.pretraining", "null"])
    run()
    assert "--data.init_args.pretraining" not in [call for call in calls(folder) if call[1] == "fit"][-1]


def test_it_stops_where_there_is_no_gain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run" / "lows.json").write_text("[0.55, 0.45, 0.55]")
    run()
    assert {call[0] for call in calls(folder)} == {"1", "2"}
    assert "The loop ends here" in capsys.readouterr().out
    change(folder, stop="never")
    run()
    assert [call[:2] for call in calls(folder)] == [["3", word] for word in ROUND], "told otherwise it goes on"


def test_a_failed_step_is_repeated_and_nothing_else(folder: Path) -> None:
    (folder / "run" / "rounds" / "2").mkdir(parents=True)
    (folder / "run" / "rounds" / "2" / "fail").touch()
    with pytest.raises(UserError, match="rounds/2/collect failed with exit status 3"):
        run(rounds=2)
    assert [call[1] for call in calls(folder)] == [*ROUND, "collect"]
    (folder / "run" / "rounds" / "2" / "fail").unlink()
    run(rounds=2)
    assert [call[:2] for call in calls(folder)] == [["2", word] for word in ROUND]


def test_a_changed_config_runs_its_stage_of_every_round_again(folder: Path) -> None:
    (folder / "ppo.yaml").write_text("x: 1\n")
    change(folder, ppo=["ppo.yaml"], contest=0)
    run(rounds=2)
    calls(folder)
    (folder / "ppo.yaml").write_text("x: 2\n")
    for home in (folder / "run" / "rounds").iterdir():
        (home / "models" / "ppo").rmdir()
        if home.name == "2":
            (home / "models" / "reward").rmdir()  # its answers are of another policy now
    run(rounds=2)
    assert [call[:2] for call in calls(folder)] == [
        ["1", "fit"], *[["2", word] for word in ("collect", "judge", "labels", "fit", "fit", "iterate")],
    ]  # fmt: skip


def answer(asked: Path, labels: Path, labelers: list[str], count: int = 3) -> None:
    kind = "evaluation" if asked.parent.name == "contest" else "comparison"
    given = [Label(f"{kind}-{n}", kind, f"p{n}", name, ["y", "x"], [1, 2]) for n in range(count) for name in labelers]
    write_labels(labels, given)


def test_people_are_waited_for_and_the_same_command_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, label="people", labelers=2, rounds=1)
    run()
    assert [call[1] for call in calls(folder)] == ["collect"]
    told = capsys.readouterr().out
    assert "0 of 3 tasks have 2 labels" in told
    assert "same command again" in told
    home = folder / "run" / "rounds" / "1"
    answer(home / "tasks.jsonl", home / "labels.jsonl", ["anna", "bob"], count=2)
    run()
    assert calls(folder) == []
    assert "2 of 3 tasks have 2 labels" in capsys.readouterr().out
    answer(home / "tasks.jsonl", home / "labels.jsonl", ["anna", "bob"])
    run()
    assert [call[1] for call in calls(folder)] == ["labels", "fit", "fit", "collect"]
    answer(home / "contest" / "tasks.jsonl", home / "contest" / "labels.jsonl", ["anna", "bob"])
    run()
    assert [call[1] for call in calls(folder)] == ["iterate"]
    for model in ("reward", "ppo"):
        (home / "models" / model).rmdir()
    answer(home / "tasks.jsonl", home / "labels.jsonl", ["anna", "carl"])
    run()
    assert [call[1] for call in calls(folder)] == ["labels", "fit", "fit", "collect", "iterate"], (
        "other labels, other models"
    )


def test_people_are_not_asked_where_nothing_would_be_held_out(folder: Path) -> None:
    change(folder, label="people", rounds=1)
    for fraction, told in ((0.1, "none of the 3 prompts"), (0.99, "all of the 3 prompts")):
        change(folder, validation_fraction=fraction)
        with pytest.raises(UserError, match=f"{told} are held out by validation_fraction {fraction}"):
            run()
    assert [call[1] for call in calls(folder)] == ["collect"]


def hand_in(database: Database, labeler: Person, kind: str, count: int) -> None:
    """Take so many tasks of a kind and put the second completion first in each."""
    for _ in range(count):
        assignment = take(database, labeler, kind)
        assert assignment is not None
        answer = ranked(2, 1)
        if kind == "evaluation":
            del answer["outputs"]
        save(database, labeler, assignment, 0, answer)
        with database.write() as session:
            work.submit(session, labeler, assignment.id, 1)


def test_people_answer_in_the_labelling_database(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, label="people", labelers=2, rounds=1, database="labels.db")
    run()
    assert [call[1] for call in calls(folder)] == ["collect"]
    assert "3 new tasks" in (told := capsys.readouterr().out)
    assert "0 of 3 tasks have 2 labels: `instructlit label --database labels.db`" in told
    database, home = Database("labels.db", create=False), folder / "run" / "rounds" / "1"
    anna, ben, chloe = add_people(database, "anna", "ben", "chloe")
    hand_in(database, anna, "comparison", 3)
    hand_in(database, ben, "comparison", 1)
    reported = take(database, ben)
    assert reported is not None
    with database.write() as session:  # the owner has to decide before the loop can go on
        work.flag(session, ben, reported.id, "private", "")
    run()
    assert "1 of 3 tasks have 2 labels; 1 are reported and wait for the owner" in capsys.readouterr().out
    hand_in(database, ben, "comparison", 1)
    with database.write() as session:
        tasks.decide(session, "olga", tasks.find_task(session, reported.task_id), "withdraw")
    assert calls(folder) == []
    run()
    assert [call[1] for call in calls(folder)] == ["labels", "fit", "fit", "collect"], "the withdrawn one is not missed"
    given = read_labels(home / "labels.jsonl")
    assert [(label.task, label.labeler, label.ranks) for label in given] == [
        (f"comparison-{n}", name, [2, 1]) for n in (0, 2) for name in ("anna", "ben")
    ]
    hand_in(database, chloe, "evaluation", 3)
    hand_in(database, anna, "evaluation", 3)
    run()
    assert [call[1] for call in calls(folder)] == ["iterate"]
    assert {label.kind for label in read_labels(home / "contest" / "labels.jsonl")} == {"evaluation"}
    with database.write() as session:  # what changes in the database later changes nothing that is trained
        work.reopen(session, anna, 1, 60)
    run()
    assert calls(folder) == []
    assert read_labels(home / "labels.jsonl") == given


def test_it_waits_for_the_database(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder, label="people", rounds=1, contest=0, database="labels.db")
    waited: list[float] = []

    def somebody_works(seconds: float) -> None:
        waited.append(seconds)
        database = Database("labels.db")
        hand_in(database, add_people(database, f"labeler {len(waited)}")[0], "comparison", len(waited))

    monkeypatch.setattr("instructlit.tools.iterate.waiting.time.sleep", somebody_works)
    run(wait=True)
    assert len(waited) == 2, "one task, then the two others"
    assert [call[1] for call in calls(folder)] == ["collect", "labels", "fit", "fit", "iterate"]


def test_more_labelers_are_asked_where_more_are_wanted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, label="people", rounds=1, contest=0, database="labels.db")
    run()
    database = Database("labels.db")
    anna, ben = add_people(database, "anna", "ben")
    hand_in(database, anna, "comparison", 3)
    change(folder, labelers=2)
    run()
    assert "0 of 3 tasks have 2 labels" in capsys.readouterr().out
    hand_in(database, ben, "comparison", 3)
    run()
    labels = folder / "run" / "rounds" / "1" / "labels.jsonl"
    given = read_labels(labels)
    assert len(given) == 6
    labels.unlink()
    run()
    assert read_labels(labels) == given, "they are taken out anew"


@pytest.mark.parametrize(
    ("label", "seen"),
    [
        ("judge reward:models/gold", "judge reward:../../../models/gold --labeler models/gold"),
        ("judge own.J --options m=models/gold", "judge own.J --options m=../../../models/gold --labeler models/gold"),
        ("judge reward:models/gold --labeler models/gold", "judge reward:../../../models/gold --labeler models/gold"),
        ("judge reward:models/gold --labeler=models/gold", "judge reward:../../../models/gold --labeler=models/gold"),
        ("judge --labeler=gold reward:models/gold", "judge --labeler=gold reward:../../../models/gold"),
        (
            "judge --options t=models/t --by score reward:models/gold",
            "judge --options t=../../../models/t --by score reward:../../../models/gold --labeler models/gold",
        ),
        ("judge api:gpt-x --options base_url=http://localhost:8000/v1", None),
        ("judge function:mine.judge", None),
        ("world rank --world 1", None),
    ],
)
def test_a_judge_is_found_by_the_rounds_and_called_as_in_the_config(folder: Path, label: str, seen: str | None) -> None:
    for name in ("gold", "t"):
        (folder / "models" / name).mkdir(parents=True)
    loop = Loop("sft", ["p"], ["r"], ["q"], label=label)
    stages = planned(loop, folder / "run").round(1)[0].stages
    labelling = [stage.command for stage in stages if stage.name.endswith(("/label", "/judge"))]
    asked = [("tasks.jsonl", "labels.jsonl"), ("contest/tasks.jsonl", "contest/labels.jsonl")]
    assert labelling == [(*(seen or label).split(), "--output", labels, tasks) for tasks, labels in asked]


def test_prompts_by_the_disagreement_of_the_rounds_before(folder: Path) -> None:
    change(folder, rounds=3, select="disagreement", pool=50, contest=0)
    run()
    collecting = [call[call.index("--select") :] for call in calls(folder) if call[1] == "collect"]
    assert collecting == [
        ["--select", "random"],
        ["--select", "random"],
        ["--select", "disagreement", "--ensemble", "../1/models/reward", "../2/models/reward", "--pool", "50"],
    ]
    (folder / "one").mkdir()
    loop = Loop("sft", ["p"], ["r"], ["q"], select="disagreement", ensemble=["one", "rounds"])
    words = planned(loop, folder / "run").round(2)[0].stages[0].command
    assert words[words.index("--ensemble") + 1 :] == ("../../../one", "../1/models/reward")


def test_a_stage_can_be_asked_for_again(folder: Path) -> None:
    run(rounds=1)
    calls(folder)
    for model in ("reward", "ppo"):
        (folder / "run" / "rounds" / "1" / "models" / model).rmdir()
    run(rounds=1, restart_from="rounds/1/reward")
    assert [call[1] for call in calls(folder)] == ["fit", "fit", "collect", "judge", "iterate"]
    with pytest.raises(UserError, match="no stage `rounds/1/rewards`"):
        run(rounds=1, restart_from="rounds/1/rewards")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"roudns": 2}, r"loop\.yaml:\d+: roudns: unknown option `roudns`.*did you mean rounds"),
        ({"rounds": "many"}, r"loop\.yaml:\d+: rounds: `many` is not valid"),
        ({"start": "latst"}, "start: `latst` is not valid here.*did you mean last"),
        ({"sft": "nowhere"}, "no such model folder"),
        ({"prompts": ["nowhere.jsonl"]}, "no such file"),
        ({"age_decay": 0}, "age_decay"),
        ({"ppo": []}, "ppo: is needed"),
        ({"label": "jugde reward:x"}, "did you mean `instructlit judge`"),
        ({"label": "judge reward:x", "database": "labels.db"}, "does not read a database"),
        ({"labelers": 2}, "labelers: `judge tasks` is not told how many labels"),
        ({"pool": 50}, "pool: `select: random` asks no reward model"),
        ({"ensemble": ["rm1", "rm2"]}, "ensemble: `select: random` asks no reward model"),
        ({"label": "people", "database": "postgresql://me:word@host/labels"}, "the URL contains a password"),
        ({"label": "people", "database": "postgresql://me@host/labels?password=word"}, "the URL contains a password"),
        ({"select": "disagreement", "ensemble": ["nowhere"]}, "ensemble: nowhere: no such model folder"),
        ({"select": "disagreement", "ensemble": ["sft", "rounds"]}, "ensemble: sft: sft has no config.json"),
    ],
)
def test_a_wrong_config_is_told(folder: Path, values: dict[str, Any], told: str) -> None:
    change(folder, **values)
    with pytest.raises(UserError, match=f"(?s){told}"):
        load(["loop.yaml"], {})


def test_plan_has_a_segment_for_every_wait() -> None:
    loop = Loop("sft", ["p"], ["r"], ["q"])
    waits = [segment.waits_for for segment in planned(loop, Path("run")).round(2)]
    assert waits == [
        None,
        ("rounds/2/tasks.jsonl", "rounds/2/labels.jsonl"),
        ("rounds/2/contest/tasks.jsonl", "rounds/2/contest/labels.jsonl"),
    ]
    alone = planned(Loop("sft", ["p"], ["r"], ["q"], contest=0), Path("run"))
    assert [segment.waits_for for segment in alone.round(1)] == [
        None,
        ("rounds/1/tasks.jsonl", "rounds/1/labels.jsonl"),
        None,
    ]


def test_preference_by_hand() -> None:
    def one(task: str, ranks: list[int], policy: list[str]) -> Label:
        return Label(task, "evaluation", task, "anna", ["x", "y"], ranks, policy=policy)

    labels = [
        one("a", [1, 2], ["new", "old"]),  # won
        one("a", [1, 1], ["new", "old"]),  # by another labeler a tie: together 1.5 of 2
        one("b", [1, 2], ["old", "new"]),  # lost
        one("c", [1, 2], ["new", "old"]),
        one("d", [1, 2], ["new", "other"]),  # of somebody else
    ]
    found = preference(labels, "new", "old")
    assert found["preference"] == pytest.approx(2.5 / 4)
    assert found["contest_tasks"] == 3
    assert found["preference_low"] < 0.5 < found["preference_high"]
    with pytest.raises(UserError, match="no label compares"):
        preference(labels, "new", "stranger")


def test_report_shows_the_fall_and_the_recovery(tmp_path: Path) -> None:
    first = {"round": 1, "labels": 9, **{f"accuracy{end}": 0.7 for end in ("", "_low", "_high")}}
    second = {"round": 2, "labels": 9, **{f"accuracy{end}": 0.65 for end in ("", "_low", "_high")}}
    second |= {f"accuracy_before{end}": 0.5 for end in ("", "_low", "_high")}
    assert falls_and_recovers([first, second]) == [(1.0, 0.7), (1.5, 0.5), (2.0, 0.65)]
    assert "<svg" not in write_report(tmp_path, [first]).read_text(), "one round is no curve"
    page = write_report(tmp_path, [first, second]).read_text()
    drawn = page[page.index("<svg") :]
    assert "65%" in drawn
    assert "1.25" not in drawn, "rounds are whole"
    assert "50.0%" in page
    assert "<script" not in page


def test_the_picture_has_a_box_for_everything_and_says_only_text() -> None:
    hostile = '../<script>alert(1)</script>&".jsonl'
    nodes = {
        "sft": Node("sft", "sft model", "a" * 64),
        hostile: Node(hostile, "9 rows", None),
        "rounds/1/tasks.jsonl": Node("rounds/1/tasks.jsonl", "2 tasks", "b" * 64, {"sft": "wrote 4 answers"}),
        "rounds/1/models/reward": Node(
            "rounds/1/models/reward", "reward model", "c" * 64,
            {"sft": "init", "rounds/1/tasks.jsonl": "data", hostile: "data"}, ["sft changed since"],
        ),
        "rounds/2/tasks.jsonl": Node("rounds/2/tasks.jsonl", "2 tasks", "d" * 64, {"rounds/1/models/reward": "w"}),
    }  # fmt: skip
    drawn = ElementTree.fromstring(picture(nodes, 12))
    tag = "{http://www.w3.org/2000/svg}"
    assert {name.rpartition("}")[2] for name in (each.tag for each in drawn.iter())} == {
        *("svg", "title", "style", "defs", "marker", "path", "text", "g", "rect"),
    }
    boxes = {rect.get("y"): rect for rect in drawn.iter(f"{tag}rect")}
    assert len(list(drawn.iter(f"{tag}rect"))) == len(nodes)
    assert len([path for path in drawn.iter(f"{tag}path") if path.get("marker-end")]) == 3, "the rest is in words"
    texts = [text.text for text in drawn.iter(f"{tag}text")]
    assert {"before the loop", "round 1", "round 2", "+ sft (init)", "sft changed since", "cccccccccccc"} <= set(texts)
    assert len(boxes) == 3, "a row for what was before, and for each round"
    assert [group.get("class") for group in drawn.iter(f"{tag}g")] == [None, None, None, "changed", None]


def test_tasks_of_a_waiting_round_are_blind(tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks.jsonl", [Task("t", "comparison", "p", ["x", "y"], ["new", "old"])])
    assert "new" not in (tmp_path / "tasks.jsonl").read_text()
