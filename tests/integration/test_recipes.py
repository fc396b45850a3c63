"""The embedded world's recipes in order, a few steps each: every stage reads what the one before it wrote."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from instructlit.cli import main

SIZES = {
    "corpus": 600, "corpus_heldout": 30, "demonstrations": 40, "demonstrations_validation": 10, "reward": 40, "ppo": 40,
    "validation": 16, "test": 4, "probes": 4, "corpus_tasks": 4,
}  # fmt: skip
QUIET = [
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.accelerator",
    "cpu",
]
SHORT = ["--model.lr_scheduler.warmup_steps", "1"]
PPO = ["--model.episodes", "32", "--data.batch_size", "16", "--model.minibatch_size", "8", *SHORT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder with the world in it."""
    path = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        sizes = [word for name, rows in SIZES.items() for word in (f"--sizes.{name}", str(rows))]
        assert main(["world", "--output", "data", *sizes]) == 0
        yield path


def fit(recipe: str, *words: str) -> None:
    assert main(["fit", "--config", f"configs/{recipe}/world.yaml", *QUIET, *words]) == 0


def test_the_chain(folder: Path) -> None:
    fit("pretrain", "--trainer.max_epochs", "2", *SHORT)
    fit("sft", "--trainer.max_epochs", "1")
    assert main(["world", "label", "--validation", "8"]) == 0
    fit("reward")
    fit("ppo", *PPO)
    for name in ("base", "sft", "ppo", "ppo-ema"):
        assert AutoModelForCausalLM.from_pretrained(folder / "models" / name).num_parameters() > 0
    assert AutoModelForSequenceClassification.from_pretrained(folder / "models" / "reward").config.num_labels == 1
    assert {p.name for p in (folder / "runs").iterdir()} == {"base", "sft", "reward", "ppo"}
    assert (folder / "samples").is_dir()


def test_overlays_over_a_recipe(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    if not (folder / "models" / "base").is_dir():
        fit("pretrain", "--trainer.max_epochs", "2", *SHORT)
    overlays = [f"--config=configs/{name}.yaml" for name in ("strategy/single", "optimizer/adamw_8bit", "logger/csv")]
    fit("sft", *overlays, "--trainer.max_steps", "1", "--trainer.logger.name", "overlaid", "--resume", "never")
    assert (folder / "runs" / "overlaid" / "version_0" / "metrics.csv").is_file()
