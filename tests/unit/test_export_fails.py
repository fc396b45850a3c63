"""A model folder that cannot be written: said before training where it can be known, and never the loss of a model."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from stage_helpers import FixedBatches, ppo_module, prompt_batch, sft_module, token_batch, trainer, weights

from instructlit.callbacks import ExportHuggingFace
from instructlit.errors import UserError
from instructlit.models.backbone import Backbone, load_causal_lm
from instructlit.models.export import check_destination, check_no_source
from instructlit.rollout import VLLMServer
from instructlit.tools.export import export

BATCHES = [token_batch([("Say a: ", "b"), ("Say c: ", text)]) for text in ("d", "ef", "ghi")]


@pytest.mark.parametrize("kind", ["a file", "under a file", "in /proc", "somebody's files"])
def test_it_is_said_before_the_first_step(tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any, kind: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    places = {"a file": "file", "under a file": "file/model", "in /proc": "/proc/model", "somebody's files": "thesis"}
    place = tmp_path / places[kind]
    module = sft_module(tiny_llama_dir)
    with pytest.raises(UserError) as caught:
        trainer(tmp_path, callbacks=[ExportHuggingFace(str(place))]).fit(
            module, datamodule=FixedBatches(char_tokenizer, BATCHES)
        )
    assert caught.value.where == str(place)
    assert module.trainer.global_step == 0
    assert (tmp_path / "thesis" / "chapter").read_text() == "years of work"


def test_the_average_beside_the_policy_is_looked_at_too(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any
) -> None:
    (tmp_path / "ppo-ema").write_text("x")
    data = FixedBatches(char_tokenizer, [{"prompts": prompt_batch(["a", "b", "c", "d"])}])
    with pytest.raises(UserError, match="ppo-ema: there is a file of that name"):
        trainer(tmp_path, callbacks=[ExportHuggingFace(str(tmp_path / "ppo"))]).fit(
            ppo_module(tiny_llama_dir, ema_decay=0.9), datamodule=data
        )


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_destination(tmp_path / "new" / "model")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("place", ["value", "value-of-nobody/../value", "link", "tokenizer"])
def test_what_a_run_reads_is_not_written_over(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Neither by the export nor by an engine that takes the policy as a folder."""
    value, words = (shutil.copytree(tiny_llama_dir, tmp_path / name) for name in ("value", "tokenizer"))
    (tmp_path / "link").symlink_to(value)
    (tmp_path / "value-of-nobody").mkdir()
    monkeypatch.setattr(char_tokenizer, "name_or_path", str(words))
    data = FixedBatches(char_tokenizer, [{"prompts": prompt_batch(["a", "b", "c", "d"])}])
    target, backbone = str(tmp_path / place), Backbone(str(value))
    for callbacks, options in (([ExportHuggingFace(target)], {}), ([], {"engine": VLLMServer(target)})):
        module = ppo_module(tiny_llama_dir, value=backbone, **options)
        with pytest.raises(UserError, match="would be overwritten"):
            trainer(tmp_path, callbacks=callbacks).fit(module, datamodule=data)
        assert module.policy is None  # said before a model is loaded


def test_a_trunk_and_a_folder_that_holds_a_model_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "models" / "trunk").mkdir(parents=True)
    (tmp_path / "sft").mkdir()
    adapters = {"base_model_name_or_path": str(tmp_path / "models" / "trunk")}
    (tmp_path / "sft" / "adapter_config.json").write_text(json.dumps(adapters))
    for place in ("sft", "models/trunk", "models"):
        with pytest.raises(UserError, match=f"{place}: .* would be overwritten"):
            check_no_source(tmp_path / place, ["gpt2", "", str(tmp_path / "sft")])
    check_no_source(tmp_path / "models" / "policy", ["gpt2", "", str(tmp_path / "sft")])


class Blocked(ExportHuggingFace):
    """The folder turns into a file during the run; with `full` no model can be written anywhere."""

    def __init__(self, dirpath: str, full: pytest.MonkeyPatch | None = None):
        super().__init__(dirpath)
        self.full = full

    def on_train_end(self, *_: Any) -> None:
        Path(self.dirpath).write_text("x")
        if self.full is not None:

            def no_room(*_: Any, **__: Any) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            self.full.setattr("instructlit.models.export._write", no_room)


def run(root: Path, model: Path, tokenizer: Any, callback: ExportHuggingFace, *more: Any) -> tuple[Any, UserError]:
    module = sft_module(model)
    settings: dict[str, Any] = {"logger": CSVLogger(root, name="logs", version="")}
    with pytest.raises(UserError) as caught:
        trainer(root, callbacks=[callback, *more], enable_checkpointing=bool(more), **settings).fit(
            module, datamodule=FixedBatches(tokenizer, BATCHES)
        )
    return module, caught.value


def test_the_model_is_written_beside_the_logs_instead(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any
) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "ckpt", save_top_k=0)
    callback = Blocked(str(tmp_path / "model"))
    module, error = run(tmp_path, tiny_llama_dir, char_tokenizer, callback, checkpoints)
    place = tmp_path / "logs" / "export" / "model"
    assert f"the model was written to {place} instead" in error.what
    assert callback.folders == [place]
    assert torch.equal(weights(load_causal_lm(Backbone(str(place)))), weights(module))
    assert json.loads((place / "instructlit.json").read_text())["step"] == 3
    assert not (tmp_path / "ckpt" / "failed.ckpt").exists()  # nothing left to rescue


def test_with_no_room_for_a_folder_a_checkpoint_holds_the_last_weights(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any
) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "ckpt", save_top_k=0)
    base = shutil.copytree(tiny_llama_dir, tmp_path / "base")
    with pytest.MonkeyPatch.context() as patch:
        callback = Blocked(str(tmp_path / "model"), patch)
        module, error = run(tmp_path, base, char_tokenizer, callback, checkpoints)
    kept = tmp_path / "ckpt" / "failed.ckpt"
    assert "No space left" in error.what
    assert "`instructlit export`" in str(error)
    assert str(kept) in "".join(error.__notes__)
    export(str(kept), str(tmp_path / "later"), tokenizer=str(tiny_llama_dir))
    assert torch.equal(weights(load_causal_lm(Backbone(str(tmp_path / "later")))), weights(module))
    with pytest.raises(UserError, match=r"output: .*base, which the model is read from, would be overwritten"):
        export(str(kept), str(base), tokenizer=str(tiny_llama_dir))


class Removed(ModelCheckpoint):
    """Somebody clears the folder of checkpoints in the meantime."""

    def on_train_end(self, *_: Any) -> None:
        Path(self.best_model_path).unlink()


def test_a_best_checkpoint_that_is_gone_costs_only_that(
    tmp_path: Path, tiny_llama_dir: Path, char_tokenizer: Any
) -> None:
    checkpoints = Removed(tmp_path / "ckpt", monitor="sft/train/loss", save_on_train_epoch_end=True)
    callback = ExportHuggingFace(str(tmp_path / "model"), which="best")
    _, error = run(tmp_path, tiny_llama_dir, char_tokenizer, callback, checkpoints)
    assert "the best checkpoint cannot be read" in error.what
    assert (tmp_path / "ckpt" / "failed.ckpt").is_file()
