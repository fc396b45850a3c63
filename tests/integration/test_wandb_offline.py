"""The chain of stages with W&B and no key: what an offline run holds, read back from its file."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from stage_runs import COMPARISONS, STAGES, Files, run_stage

from instructlit.callbacks import (
    ExportHuggingFace,
    InvariantAlerts,
    SampleTable,
    Throughput,
    WandbHistograms,
    WandbLineage,
    WandbLogger,
)
from instructlit.callbacks.wandb_logger import find_credentials, unreachable
from instructlit.errors import UserError

pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
from wandb_file import OfflineRun

ROOT = Path(__file__).resolve().parents[2]


def documented() -> set[str]:
    """Metric names of docs/metrics.md, as its own test reads them."""
    spec = importlib.util.spec_from_file_location("page", ROOT / "tests" / "contract" / "test_metrics_documented.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    return set(page.documented())


@pytest.fixture(autouse=True, scope="module")
def no_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.delenv("NETRC", raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("WANDB_SILENT", "true")
        yield


def own_environment() -> dict[str, str]:
    """Of a process that shall not share this one's W&B service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}


@dataclass
class Chain:
    """The stages' runs and modules."""

    runs: dict[str, OfflineRun]
    folders: dict[str, Path]


@pytest.fixture(scope="module")
def files(
    tiny_llama_dir: Path, demonstrations_file: Path, prompts_file: Path, text_file: Path, jsonl: Callable[..., Path]
) -> Files:
    return Files(tiny_llama_dir, demonstrations_file, jsonl("comparisons", COMPARISONS), prompts_file, text_file)


@pytest.fixture(scope="module")
def chain(files: Files, no_key: None, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    import wandb

    out = tmp_path_factory.mktemp("chain")
    runs, folders = {}, {}
    paths: dict[str, Path] = {}
    for name in STAGES:
        logger = WandbLogger(save_dir=str(out / name), group="pipeline", job_type=name)
        callbacks = [
            WandbLineage(),
            WandbHistograms(every_n_batches=1),
            Throughput(),
            SampleTable(str(out / name)),
            InvariantAlerts({"ppo/response/length": [1000.0, None]}),
            ExportHuggingFace(str(out / "models" / name)),
        ]
        run_stage(name, files, out, logger, callbacks, paths=paths)
        wandb.finish()
        folders[name] = logger.folder
        runs[name] = OfflineRun(logger.folder)
        if name in ("pretrain", "sft"):
            paths["policy"] = out / "models" / name
        if name == "reward":
            paths["value"] = out / "models" / name
    return Chain(runs, folders)


@pytest.mark.parametrize("stage", STAGES)
def test_every_documented_metric_stands_in_the_run(stage: str, chain: Chain) -> None:
    wanted = {name for name in documented() if name.startswith((f"{stage}/", "perf/"))}
    if stage != "ppo":
        wanted.discard("perf/episodes_per_second")
    found = {re.sub(r"(accuracy_labeler_).+", r"\1NAME", name) for name in chain.runs[stage].names}
    media = {name.removesuffix("._type") for name in found if name.endswith("._type")}
    assert wanted - found - media == set()


def test_one_group_holds_the_pipeline(chain: Chain) -> None:
    assert [run.run for run in chain.runs.values()] == [
        {"group": "pipeline", "project": "instructlit", "job": name} for name in STAGES
    ]


def test_ppo_is_shown_by_episodes_and_holds_steps_too(chain: Chain) -> None:
    run = chain.runs["ppo"]
    assert run.metrics["ppo/*"] == "ppo/episodes"
    assert run.metrics["sft/*"] == "trainer/global_step"
    rows = [row for row in run.history if any(name.startswith("ppo/") for name in row)]
    assert len(rows) >= 5
    assert all("ppo/episodes" in row and "trainer/global_step" in row for row in rows)
    for name in ("ppo/policy/loss", "ppo/histogram/scores._type"):
        places = [(row["ppo/episodes"], row["trainer/global_step"]) for row in rows if name in row]
        assert places == [(4, 0), (8, 1), (12, 2)], name


def test_the_lineage_goes_from_data_to_sft_to_reward_model_to_ppo(chain: Chain) -> None:
    made, used = {}, {}
    for name, run in chain.runs.items():
        made[name] = {digest for kind, _, is_input, digest in run.artifacts if kind == "model" and not is_input}
        used[name] = {digest for kind, _, is_input, digest in run.artifacts if kind == "model" and is_input}
        assert any(kind == "dataset" and is_input for kind, _, is_input, _ in run.artifacts)
    assert made["pretrain"] == used["sft"]
    assert made["sft"] == used["reward"]
    assert used["ppo"] == made["sft"] | made["reward"]
    assert len(made["ppo"]) == 2  # the policy and its moving average


def test_inputs_stand_in_the_config_with_their_digests(chain: Chain, files: Files) -> None:
    told = chain.runs["ppo"].config["lineage"]
    assert {entry["role"] for entry in told["parents"]} == {"policy", "value"}
    assert all(re.fullmatch("[0-9a-f]{64}", entry["weights_sha256"]) for entry in told["parents"])
    assert str(files.prompts) in {entry["path"] for entry in told["data"]}
    assert all(re.fullmatch("[0-9a-f]{64}", entry["sha256"]) for entry in told["data"])


def test_samples_before_and_after(chain: Chain) -> None:
    tables = list((chain.folders["ppo"] / "files").rglob("*.table.json"))
    assert len(tables) == 2  # the look before training and one validation
    table = json.loads(max(tables, key=lambda path: path.stat().st_mtime).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert len(rows) == 4
    assert all(row["iteration"] == 4 and row["episodes"] == 8 for row in rows)
    assert all(isinstance(row["before"], str) and row["score"] is not None and row["kl"] is not None for row in rows)


def test_an_alert_reaches_the_run(chain: Chain) -> None:
    assert "ppo/response/length is 4, below 1000" in chain.runs["ppo"].alerts


@pytest.mark.slow
def test_the_command_runs_offline_without_asking_and_says_so(files: Files, tmp_path: Path) -> None:
    """A terminal is there to ask at, and still nothing is asked; secrets stay out of the config."""
    os_pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    reader, writer = os_pty.openpty()
    environment = own_environment()
    options = {
        "config": ROOT / "configs" / "logger" / "wandb.yaml",
        "model": "instructlit.modules.SFTModule",
        "model.policy.path": files.model,
        "data": "instructlit.data.DemonstrationData",
        "data.tokenizer": files.model,
        "data.train": files.demonstrations,
        "data.batch_size": 4,
        "trainer.max_steps": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_checkpointing": "false",
        "trainer.logger.group": "pipeline",
        "trainer.logger.notes": "hf_abcdefghijklmnopqrstuvwx",
    }
    command = [sys.executable, "-m", "instructlit", "fit"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=writer, capture_output=True, text=True, timeout=200
    )
    os.close(reader)
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert "W&B: offline, since no API key was found" in done.stderr
    (folder,) = (tmp_path / "runs" / "wandb").glob("offline-run-*")
    assert f"wandb sync {folder.relative_to(tmp_path)}" in done.stderr.replace(f"{tmp_path}/", "")
    run = OfflineRun(folder)
    assert "sft/train/loss" in run.names
    assert run.config["config"]["model"]["class_path"] == "instructlit.modules.SFTModule"
    assert run.run["group"] == "pipeline"
    assert "hf_abcdefghijklmnopqrstuvwx" not in str(run.config)


@pytest.mark.slow
def test_a_server_that_refuses_the_key_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"errors":[{"message":"no"}]}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = (
        "import wandb; from instructlit.callbacks import WandbLogger; logger = WandbLogger(save_dir='runs');"
        "logger.log_metrics({'a': 1.0}); logger.finalize('success'); wandb.finish(); print(logger.experiment.offline)"
    )
    settings = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "0" * 40}
    done = subprocess.run(
        [sys.executable, "-c", program, "--model.reward.api_key", "said-on-the-line"],
        cwd=tmp_path,
        env=own_environment() | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    server.shutdown()
    assert "True" in done.stdout.splitlines(), done.stderr
    assert "401" in done.stderr
    assert "wandb sync" in done.stderr
    (folder,) = (tmp_path / "runs" / "wandb").glob("offline-run-*")
    assert OfflineRun(folder).names >= {"a"}
    written = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert b"--model.reward.api_key" in written
    assert b"said-on-the-line" not in written


def test_nobody_answers() -> None:
    assert "cannot be reached" in str(unreachable("http://127.0.0.1:9", seconds=1.0))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("machine api.example.org login user password abc\n", ("abc", True)),
        ("machine elsewhere.org login user password abc\n", (None, False)),
        ("this is no netrc", (None, False)),
    ],
)
def test_a_key_in_netrc(
    text: str, found: tuple[str | None, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "netrc"
    path.write_text(text)
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    assert find_credentials("https://api.example.org") == found


def test_a_key_in_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert find_credentials("https://api.example.org") == ("k", True)


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(UserError, match=r"pip install 'instructlit\[wandb\]'"):
        WandbLogger()


def test_csv_logging_needs_no_wandb(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # `import wandb` fails
    callbacks = [WandbLineage(), WandbHistograms(), SampleTable(str(tmp_path)), Throughput(), InvariantAlerts()]
    run_stage("ppo", files, tmp_path, CSVLogger(tmp_path, name="", version=""), callbacks, batches=1)
    assert "ppo/objective/score" in (tmp_path / "metrics.csv").read_text()
