"""The quickstart's runner, with a tiny program in place of the stages."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kills import killed_while_writing
from processes import environment

from instructlit.errors import Ending, UserError
from instructlit.tools.quickstart.attempt import Stamp
from instructlit.tools.quickstart.process import LineLog
from instructlit.tools.quickstart.runner import Estimate, Runner, clock, waves
from instructlit.tools.quickstart.stages import Stage, stages

PROGRAM = """
import json, pathlib, sys, time
args = sys.argv[1:]
name = args[1]
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(args) + "\\n")
if pathlib.Path("fail_" + name).exists():
    while pathlib.Path("hang_c").exists() and not pathlib.Path("checkpoints/c/resume/batch-00000001").exists():
        time.sleep(0.05)
    print("the last word of " + name)
    sys.exit(3)
if pathlib.Path("hang_" + name).exists():
    pathlib.Path("checkpoints", name, "resume", "batch-00000001").mkdir(parents=True)
    pathlib.Path("logs", name).mkdir(parents=True)
    pathlib.Path("logs", name, "metrics.csv").write_text("step\\n1\\n")
    print("hanging", flush=True)
    time.sleep(60)
pathlib.Path("out_" + name).write_text(name)
if name == "evaluate":
    pathlib.Path("results.json").write_text('{"seed": 1, "seconds": {}}')
print("did " + name)
"""


def plan() -> list[Stage]:
    def stage(kind: str, name: str, needs: tuple[str, ...], configs: tuple[str, ...] = ()) -> Stage:
        return Stage(name, f"does {name}", (kind, name), needs, (f"out_{name}",), configs)

    return [
        stage("tool", "a", ()),
        stage("fit", "b", ("a",), ("configs/b.yaml",)),
        stage("fit", "c", ("a",), ("configs/c.yaml",)),
        stage("tool", "evaluate", ("b",)),
    ]


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in "bc":
        (folder / f"{name}.yaml").write_text("x: 1\n")
    return folder


@pytest.fixture
def runner(tmp_path: Path, configs: Path) -> Runner:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return Runner(tmp_path / "run", plan(), configs, [sys.executable, str(program)])


def rows(runner: Runner) -> list[list[str]]:
    """The commands that ran since the last call, in order."""
    path = runner.folder / "calls.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return found


def calls(runner: Runner) -> list[str]:
    """The stages that ran, in the order of their names, which is that of the plan."""
    return sorted(row[1] for row in rows(runner))


def test_runs_in_order_and_skips_what_is_finished(runner: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    seconds = runner.run()
    names = [row[1] for row in rows(runner)]
    assert [names[0], set(names[1:3]), *names[3:]] == ["a", {"b", "c"}, "evaluate"]
    assert set(seconds) == {"a", "b", "c", "evaluate"}
    assert json.loads((runner.folder / "results.json").read_text())["seconds"] == seconds
    assert (runner.folder / "logs" / "b.log").read_text() == "$ instructlit fit b\ndid b\n"
    runner.run()
    assert not (runner.folder / "calls.jsonl").exists(), "nothing runs again"
    said = capfd.readouterr().out
    assert "already finished" in said
    assert "      b | did b\n" in said, "two at once: each line says whose it is"
    assert "      b | did b" not in (runner.folder / "logs" / "b.log").read_text()


def test_results_stay_where_the_job_is_killed_while_it_adds_the_seconds(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_while_writing(monkeypatch, "results.json")
    with pytest.raises(Ending):
        runner.run()
    monkeypatch.undo()
    assert runner.run() == json.loads((runner.folder / "results.json").read_text())["seconds"]


def test_a_changed_config_runs_its_stage_and_what_builds_on_it(runner: Runner, configs: Path) -> None:
    runner.run()
    calls(runner)
    (configs / "b.yaml").write_text("x: 2\n")
    runner.run()
    assert calls(runner) == ["b", "evaluate"], "c does not build on b"


def test_a_lost_output_runs_its_stage_again(runner: Runner) -> None:
    runner.run()
    calls(runner)
    (runner.folder / "out_c").unlink()
    runner.run()
    assert calls(runner) == ["c"]


def test_failure_shows_the_last_lines_stops_the_one_beside_and_is_repeated(runner: Runner) -> None:
    runner.folder.mkdir()
    (runner.folder / "fail_b").touch()
    (runner.folder / "hang_c").touch()
    with pytest.raises(UserError, match=r"(?s)b\.log: stage b failed with exit status 3.*the last word of b"):
        runner.run()
    assert calls(runner) == ["a", "b", "c"]
    (runner.folder / "fail_b").unlink()
    (runner.folder / "hang_c").unlink()
    runner.run()
    again = rows(runner)
    assert ["fit", "b"] in again
    assert ["fit", "c"] in again
    assert (runner.folder / "checkpoints" / "c" / "resume" / "batch-00000001").exists(), "it goes on from there"
    assert [row[1] for row in again[2:]] == ["evaluate"]


def test_what_finished_beside_a_failure_stays_finished(runner: Runner, configs: Path) -> None:
    runner.folder.mkdir()
    (runner.folder / "fail_b").touch()
    (configs / "c.yaml").write_text("x: 1\n")
    with pytest.raises(UserError, match="stage b failed"):
        runner.run()
    finished = Stamp.load(runner.folder / "stamps" / "c.json")
    assert finished is not None
    calls(runner)
    (runner.folder / "fail_b").unlink()
    runner.run()
    assert calls(runner) == (["b", "evaluate"] if finished.finished else ["b", "c", "evaluate"])


def test_neighbours_that_need_nothing_of_each_other_share_the_cores() -> None:
    named = [[stage.name for stage in wave] for wave in waves(stages(1))]
    assert ["ppo", "ppo_ptx"] in named
    assert all(len(wave) == 1 or wave == ["ppo", "ppo_ptx"] for wave in named)


def test_missing_output_is_an_error(runner: Runner) -> None:
    runner.plan[0] = Stage("a", "does a", ("tool", "a"), (), ("elsewhere",))
    with pytest.raises(UserError, match=r"(?s)did not write .*elsewhere; its last lines:\n.+config writes it"):
        runner.run()


def test_interrupted_training_continues_from_its_checkpoint(runner: Runner, tmp_path: Path) -> None:
    runner.folder.mkdir()
    (runner.folder / "hang_b").touch()
    script = (
        "from pathlib import Path\nimport sys\n"
        "from unit.test_quickstart_runner import plan\n"
        "from instructlit.tools.quickstart.runner import Runner\n"
        "Runner(Path(sys.argv[1]), plan(), Path(sys.argv[2]), [sys.executable, sys.argv[3]]).run()\n"
    )
    command = [sys.executable, "-c", script, str(runner.folder), str(runner.configs), str(tmp_path / "program.py")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    log = runner.folder / "logs" / "b.log"
    for _ in range(1200):
        if log.exists() and "hanging" in log.read_text():
            break
        time.sleep(0.1)
    with pytest.raises(UserError, match="another run"):
        runner.run()
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "The same command resumes here" in output
    stamp = Stamp.load(runner.folder / "stamps" / "b.json")
    assert stamp is not None
    assert not stamp.finished
    calls(runner)
    (runner.folder / "hang_b").unlink()
    seconds = runner.run()
    assert ["fit", "b"] in rows(runner)
    assert (runner.folder / "checkpoints" / "b" / "resume" / "batch-00000001").exists(), "it goes on from there"
    assert (runner.folder / "logs" / "b" / "metrics.csv").exists(), "the rows logged before are kept"
    assert seconds["b"] >= stamp.seconds


def test_an_outdated_checkpoint_is_not_continued(runner: Runner, configs: Path) -> None:
    runner.run()
    calls(runner)
    old = runner.folder / "checkpoints" / "b" / "last.ckpt"
    old.parent.mkdir(parents=True)
    old.write_text("x")
    (configs / "b.yaml").write_text("x: 3\n")
    runner.run()
    assert not old.exists()
    assert rows(runner)[0] == ["fit", "b"]


def test_line_log_keeps_the_last_state_of_an_overwritten_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as file:
        log = LineLog(file)
        for piece in (b"start\n10 %\r20", b" %\r\x1b[32m30 %\x1b[0m\r\nen", b"d"):
            log.write(piece)
        log.close()
        file.seek(0)
        assert file.read() == "start\n30 %\nend\n"


def test_estimate_follows_the_machine() -> None:
    a, b, c = (
        Stage(name, "", ("tool", name), (), (), expected_seconds=s) for name, s in (("a", 30), ("b", 30), ("c", 9))
    )
    estimate = Estimate([[a], [b, c]])
    assert estimate.left() == 60, "b and c run side by side"
    estimate.finished(0, 90)
    assert estimate.left() == pytest.approx(30 * (30 + 90) / (30 + 30))
    assert [clock(5), clock(65), clock(3725)] == ["0:05", "1:05", "1:02:05"]


@pytest.mark.parametrize("trial", [False, True])
def test_the_plan_is_in_order(trial: bool) -> None:
    seen: set[str] = set()
    for stage in stages(7, trial):
        assert seen.issuperset(stage.needs), stage.name
        seen.add(stage.name)
        assert stage.shown().startswith("instructlit ")
    assert "--seed_everything 7" in {s.name: s for s in stages(7)}["ppo"].shown()
