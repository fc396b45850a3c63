"""docs/metrics.md and what the stages log are the same list."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from stage_runs import COMPARISONS, STAGES, Files, run_stage

from instructlit.callbacks import Throughput
from instructlit.callbacks.alerts import LIMITS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
HEADING = re.compile(r"^### (?P<names>`.+`)$", re.MULTILINE)
FIELDS = ("Formula", "Counts", "Unit", "Healthy", "Outside")


def documented() -> dict[str, str]:
    """Every metric of the page with its entry."""
    text = PAGE.read_text(encoding="utf-8")
    found: dict[str, str] = {}
    pieces = HEADING.split(text)[1:]
    for names, body in zip(pieces[::2], pieces[1::2], strict=True):
        for name in re.findall(r"`([^`]+)`", names):
            assert name not in found, f"{name} stands on the page twice"
            found[name] = body.split("\n## ")[0]
    return found


def of_stage(stage: str, names: set[str]) -> set[str]:
    """The documented names that a run of this stage must log without W&B."""
    return {
        n
        for n in names
        if n.startswith((f"{stage}/", "perf/")) and "/histogram/" not in n and not n.endswith("/samples")
    }


@pytest.fixture(scope="module")
def logged(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama_dir: Path,
    demonstrations_file: Path,
    prompts_file: Path,
    text_file: Path,
    jsonl: Callable[..., Path],
) -> Callable[[str], set[str]]:
    comparisons = jsonl("comparisons", COMPARISONS)
    files = Files(tiny_llama_dir, demonstrations_file, comparisons, prompts_file, text_file)

    def run(stage: str) -> set[str]:
        out = tmp_path_factory.mktemp(stage)
        run_stage(stage, files, out, CSVLogger(out, name="", version=""), [Throughput()])
        with (out / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {name for row in rows for name, value in row.items() if value} - {"step", "epoch"}

    return run


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_logs_what_is_documented_and_nothing_else(stage: str, logged: Callable[[str], set[str]]) -> None:
    found = {re.sub(r"(accuracy_labeler_).+", r"\1NAME", name) for name in logged(stage)}
    wanted = of_stage(stage, set(documented()))
    if stage != "ppo":
        wanted.discard("perf/episodes_per_second")
    assert found == wanted


def test_every_entry_says_all_there_is_to_say() -> None:
    for name, entry in documented().items():
        missing = [field for field in FIELDS if f"* **{field}**: " not in entry]
        assert not missing, f"{name} lacks {missing}"


def test_alerts_watch_documented_metrics_in_the_ranges_that_the_page_tells() -> None:
    page = documented()
    for name, (low, high) in LIMITS.items():
        told = f"Watched: {low:g} to {high:g}" if low is not None and high is not None else ""
        told = told or (f"Watched: at least {low:g}" if low is not None else f"Watched: at most {high:g}")
        assert told in " ".join(page[name].split()), name
    watched = {name for name, entry in page.items() if "Watched: " in entry}
    assert watched == set(LIMITS)
