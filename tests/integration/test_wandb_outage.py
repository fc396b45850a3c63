"""A W&B server that is not there, or goes away in the middle: the run goes on, and its folder holds everything."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from stage_runs import COMPARISONS

pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
from wandb_file import OfflineRun

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys, urllib.request
import lightning.pytorch as pl
import wandb
from pathlib import Path
from stage_runs import Files, run_stage
from instructlit.callbacks import ExportHuggingFace, WandbLineage, WandbLogger

server, *paths = sys.argv[1:]


class Outage(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2 and server:
            urllib.request.urlopen(server + "/die").read()


logger = WandbLogger(save_dir="runs", finish_timeout=3.0)
callbacks = [Outage(), WandbLineage(), ExportHuggingFace("model")]
run_stage("pretrain", Files(*map(Path, paths)), Path("out"), logger, callbacks, batches=4)
folder = logger.folder
wandb.finish()
Path("folder").write_text(str(folder))
"""


class Server(BaseHTTPRequestHandler):
    """As much of W&B's protocol as a run needs to believe itself online; `/die` ends it."""

    def do_GET(self) -> None:
        self._answer({})
        if self.path == "/die":
            threading.Thread(target=self.server.shutdown).start()

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = json.loads(asked).get("variables", {}).get("name", "x") if self.path == "/graphql" else "x"
        bucket = {"id": name, "name": name, "displayName": "x", "project": {"name": "p", "entity": {"name": "me"}}}
        files = {"runID": "x", "uploadHeaders": [], "files": []}
        self._answer({"data": {"createRunFiles": files, "upsertBucket": {"bucket": bucket, "inserted": True}}})

    def _answer(self, body: dict) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def paths(
    tiny_llama_dir: Path, demonstrations_file: Path, prompts_file: Path, text_file: Path, jsonl: Callable[..., Path]
) -> list[str]:
    files = [tiny_llama_dir, demonstrations_file, jsonl("comparisons", COMPARISONS), prompts_file, text_file]
    return [str(file) for file in files]


def train(folder: Path, address: str, dies: bool, paths: list[str]) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    settings = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    settings["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    command = [sys.executable, "-c", PROGRAM, address if dies else "", *paths]
    return subprocess.run(
        command, cwd=folder, env=clean | settings, capture_output=True, text=True, timeout=200, check=False
    )


def check(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cannot be reached" in done.stderr
    assert "wandb sync" in done.stderr
    rows = OfflineRun(Path((folder / "folder").read_text())).history
    losses = [row["pretrain/train/loss"] for row in rows if "pretrain/train/loss" in row]
    assert len(losses) == 4
    assert (folder / "model" / "config.json").is_file()


@pytest.mark.slow
def test_a_server_that_goes_away_in_the_middle(tmp_path: Path, paths: list[str]) -> None:
    """The end of the run does not wait for it for ever, and what is looked up at it is left out."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=lambda: (server.serve_forever(0.05), server.server_close()))
    thread.start()
    done = train(tmp_path, f"http://127.0.0.1:{server.server_port}", True, paths)
    server.shutdown()
    thread.join()
    check(tmp_path, done)
    assert "offline-run" not in (tmp_path / "folder").read_text()  # it had begun online


@pytest.mark.slow
def test_a_server_that_is_not_there(tmp_path: Path, paths: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]  # and nobody listens there from here on
    check(tmp_path, train(tmp_path, f"http://127.0.0.1:{port}", False, paths))
