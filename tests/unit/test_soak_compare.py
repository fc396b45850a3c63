"""What the soak takes for a difference."""

from pathlib import Path

import pytest
import torch

from instructlit.errors import UserError
from instructlit.tools.soak import soak
from instructlit.tools.soak.compare import differences, metrics, report, unequal

NAN = float("nan")


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        ({"x": [1, NAN, "s"]}, {"x": [1, NAN, "s"]}, []),
        ({"x": 1}, {"x": 1, "y": 2}, ["at: only one run has y"]),
        ({"x": [1, 2]}, {"x": [1, 3]}, ["at.x[1]: 2 and 3"]),
        ([1], [1, 2], ["at: 1 and 2 entries"]),
        (torch.tensor([0.0, NAN]), torch.tensor([0.0, NAN]), []),
        (torch.tensor([0.0]), torch.tensor([-0.0]), ["at"]),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), ["at"]),
        (torch.tensor([True]), torch.tensor([False]), ["at"]),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), ["at"]),
    ],
)
def test_bits_are_compared(a: object, b: object, found: list[str]) -> None:
    assert unequal(a, b, "at") == found


def run(folder: Path, weight: float, loss: str) -> Path:
    (folder / "models" / "sft").mkdir(parents=True)
    (folder / "models" / "sft" / "model.safetensors").write_bytes(str(weight).encode())
    (folder / "logs" / "sft").mkdir(parents=True)
    (folder / "logs" / "sft" / "metrics.csv").write_text(f"loss,perf/steps_per_second,step\n{loss},{weight},0\n")
    (folder / "samples").mkdir()
    (folder / "samples" / "sft.jsonl").write_text("{}\n")
    torch.save({"state_dict": {"w": torch.tensor(weight)}}, folder / "final.ckpt")
    return folder


def test_state_models_metrics_and_samples_are_compared(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a", 1.0, "0.5"), run(tmp_path / "b", 2.0, "0.25")
    assert differences(one, one, "sft") == []
    assert metrics(one / "logs" / "sft" / "metrics.csv") == [{"loss": "0.5", "step": "0"}]
    (other / "samples" / "sft.jsonl").write_text("{}\n{}\n")
    assert differences(one, other, "sft") == [
        "state_dict.w",
        "models/sft/model.safetensors",
        "metrics[0].loss: '0.5' and '0.25'",
        "samples/sft.jsonl",
    ]


def test_the_report_counts_where_kills_fell() -> None:
    falls = [{"phase": "save", "after_batch": 2}, {"phase": "save", "after_batch": 4}]
    told = report("sft", falls, ["x"], 1.26)
    assert (told["kills"], told["phases"], told["identical"], told["seconds"]) == (2, {"save": 2}, False, 1.3)


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="--kills: found 0"):
        soak("sft", kills=0)
    with pytest.raises(UserError, match="--batches: found 2"):
        soak("sft", batches=2)
