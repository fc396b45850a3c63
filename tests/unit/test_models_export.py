"""What is in an exported folder, and what happens when it cannot be written."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EOS_ID, PAD_ID, VOCABULARY, make_char_tokenizer, save_tiny_model
from stage_helpers import TINY_SHAPE, FixedBatches, sft_module, token_batch, trainer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from instructlit.data.tokenizers import load_tokenizer
from instructlit.errors import UserError
from instructlit.models import export as export_module
from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.export import check_destination, export_folder, generation_config
from instructlit.models.lineage import make_record, parent, read_record, weights_digest
from instructlit.modules.stage_checkpoint import rebuilt
from instructlit.tools.export import export


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    made = make_char_tokenizer()
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


def causal(folder: Path) -> Any:
    return load_causal_lm(Backbone(str(folder)))


def test_a_policy_folder_is_whole(tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    data = [{"path": "d.jsonl", "sha256": "ab" * 32, "rows": 16}]
    record = make_record("sft", parents=[parent(str(tiny_llama_dir), "policy")], data=data, config={"seed": 1}, step=9)
    path = export_folder(causal(tiny_llama_dir), tokenizer, tmp_path / "runs" / "sft", record)
    assert path == tmp_path / "runs" / "sft"
    names = {p.name for p in path.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "README.md", "instructlit.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".ckpt")) for name in names)
    assert [p.name for p in path.parent.iterdir()] == ["sft"]  # nothing half made beside it
    assert AutoTokenizer.from_pretrained(path).chat_template == tokenizer.chat_template

    kept = read_record(path)
    assert kept["stage"] == "sft"
    assert kept["kind"] == "causal"
    assert kept["step"] == 9
    assert kept["data"] == data
    assert kept["parents"][0]["weights_sha256"] == weights_digest(tiny_llama_dir)
    assert kept["weights_sha256"] == weights_digest(path)
    assert {"python", "torch", "transformers", "lightning", "instructlit", "numpy"} <= kept["versions"].keys()

    card = (path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# sft\n" in card
    assert "AutoModelForCausalLM" in card
    assert kept["parents"][0]["weights_sha256"] in card
    assert "d.jsonl" in card


def test_generation_samples_as_trained_and_knows_its_end(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = export_folder(causal(tiny_llama_dir), tokenizer, tmp_path / "m")
    kept = GenerationConfig.from_pretrained(path)
    assert (kept.eos_token_id, kept.pad_token_id) == (EOS_ID, PAD_ID)
    assert (kept.do_sample, kept.temperature, kept.top_k, kept.top_p) == (True, 1.0, 0, 1.0)
    config = AutoConfig.from_pretrained(path)
    assert (config.eos_token_id, config.pad_token_id) == (EOS_ID, PAD_ID)
    assert config.use_cache


def test_the_bases_further_ends_of_a_turn_are_kept_and_its_top_k_is_not(tokenizer: PreTrainedTokenizerFast) -> None:
    made = generation_config(tokenizer, GenerationConfig(eos_token_id=[7, EOS_ID], top_k=50, temperature=0.6))
    assert made.eos_token_id == [EOS_ID, 7]
    assert (made.top_k, made.temperature) == (0, 1.0)


def test_a_checkpoint_is_rebuilt_with_the_further_ends_of_its_base(tiny_llama_dir: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama_dir, tmp_path / "base"))
    GenerationConfig(eos_token_id=[EOS_ID, 7]).save_pretrained(base)
    state = {f"policy.{name}": tensor for name, tensor in causal(base).state_dict().items()}
    kept = {"stage": "sft", "backbone": asdict(Backbone(str(base)))}
    made = rebuilt({"instructlit": kept, "state_dict": state}, "raw", "last.ckpt")
    assert made.generation_config.eos_token_id == causal(base).generation_config.eos_token_id == [EOS_ID, 7]


def test_a_checkpoint_is_exported_with_the_pad_token_that_the_run_was_given(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.pad_token = None  # as Llama and Mistral are published
    tokenizer.save_pretrained(tmp_path / "words")
    data = FixedBatches(load_tokenizer(str(tmp_path / "words"), padding_token="~"), [token_batch([("a", "b")])])
    fitter = trainer(tmp_path)
    fitter.fit(sft_module(tiny_llama_dir), datamodule=data)
    fitter.save_checkpoint(tmp_path / "last.ckpt")
    export(str(tmp_path / "last.ckpt"), str(tmp_path / "m"))
    assert load_tokenizer(str(tmp_path / "m")).pad_token == "~"


def test_a_checkpoints_own_word_does_not_let_the_code_of_its_base_run(tmp_path: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    (tmp_path / "model.safetensors").touch()
    kept = {"stage": "sft", "backbone": asdict(Backbone(str(tmp_path), trust_remote_code=True))}
    torch.save({"instructlit": kept, "state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(
        UserError, match=r"trust_remote_code: .* needs its own code, which is not run without permission"
    ):
        export(str(tmp_path / "last.ckpt"), str(tmp_path / "out"))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="cannot be loaded"):  # there is no class in it
        export(str(tmp_path / "last.ckpt"), str(tmp_path / "out"), trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_pad_equal_to_eos_leaves_the_config_without_a_pad_and_says_so(tiny_llama_dir: Path, tmp_path: Path) -> None:
    tokenizer = make_char_tokenizer(pad_is_eos=True)
    model = load_scalar_model(Backbone(str(tiny_llama_dir)))
    path = export_folder(model, tokenizer, tmp_path / "m", make_record("reward"))
    assert AutoConfig.from_pretrained(path).pad_token_id is None
    assert "one text at a time" in (path / "README.md").read_text()
    policy = export_folder(causal(tiny_llama_dir), tokenizer, tmp_path / "p")
    assert GenerationConfig.from_pretrained(policy).pad_token_id == EOS_ID


@pytest.mark.parametrize(("layer", "tied"), [("q_proj", True), ("lm_head", False), ("embed_tokens", False)])
def test_a_config_says_of_tied_embeddings_what_the_weights_are(
    layer: str, tied: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = LlamaConfig(**TINY_SHAPE, vocab_size=VOCABULARY, tie_word_embeddings=True)
    trunk = save_tiny_model(config, tmp_path / "trunk", tokenizer)
    model = load_causal_lm(Backbone(str(trunk), lora=Lora(rank=4, target_modules=[layer])))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    path = export_folder(model, tokenizer, tmp_path / "merged")
    assert AutoConfig.from_pretrained(path).tie_word_embeddings is tied
    ids = torch.tensor([[97, 98, 99]])
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(path)(ids).logits
        torch.testing.assert_close(found, model.eval()(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_a_reward_folder_holds_its_shift(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = load_scalar_model(Backbone(str(tiny_llama_dir)))
    model.set_shift(-1.25)
    path = export_folder(model, tokenizer, tmp_path / "reward", make_record("reward"))
    config = AutoConfig.from_pretrained(path)
    assert config.reward_shift == -1.25
    assert (config.num_labels, config.architectures) == (1, ["LlamaForSequenceClassification"])
    assert read_record(path)["reward_shift"] == -1.25
    card = (path / "README.md").read_text()
    assert "**-1.25**" in card
    assert "AutoModelForSequenceClassification" in card
    assert "one text at a time" not in card
    assert float(load_scalar_model(Backbone(str(path)), require_head=True).shift) == -1.25


def test_the_model_can_be_trained_on_after_an_export(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = causal(tiny_llama_dir)
    before = {name: p.clone() for name, p in model.named_parameters()}
    export_folder(model, tokenizer, tmp_path / "m")
    assert model.training
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in model.named_parameters())


def test_an_earlier_export_is_replaced_whole(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = causal(tiny_llama_dir)
    path = export_folder(model, tokenizer, tmp_path / "m")
    (path / "left_over.txt").touch()
    first = weights_digest(path)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    export_folder(model, tokenizer, path)
    assert weights_digest(path) != first
    assert not (path / "left_over.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_link_stays_and_the_folder_that_it_names_is_written(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    link, big = tmp_path / "models" / "m", tmp_path / "big"
    link.parent.mkdir()
    link.symlink_to(big / "m")
    check_destination(link)
    for _ in range(2):
        assert export_folder(causal(tiny_llama_dir), tokenizer, link) == link
        assert link.is_symlink()
        assert (link / "instructlit.json").is_file()
    assert [p.name for folder in (link.parent, big) for p in folder.iterdir()] == ["m", "m"]


def test_what_exports_that_were_killed_have_left_is_removed(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = [f".m.partial-{gone.pid}-01", f".m.previous-{gone.pid}-02", f".m.partial-{os.getpid()}-03"]
    others = [f".m.partial-{os.getppid()}-04", ".m.partial-mine", f".n.partial-{gone.pid}-05"]
    for name in (*stale, *others):
        (tmp_path / name / "weights").mkdir(parents=True)
    export_folder(causal(tiny_llama_dir), tokenizer, tmp_path / "m")
    assert {p.name for p in tmp_path.iterdir()} == {"m", *others}


@pytest.mark.parametrize("step", ["_write", "_sync", "_replace"])
def test_a_failed_write_leaves_the_earlier_export(
    tiny_llama_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    model = causal(tiny_llama_dir)
    path = export_folder(model, tokenizer, tmp_path / "m")
    first = weights_digest(path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, step, full)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    with pytest.raises(UserError, match=r"cannot be written: .*No space left[\s\S]*before is still there"):
        export_folder(model, tokenizer, path)
    assert weights_digest(path) == first
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_rename_that_fails_gives_the_earlier_export_its_name_back(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export_folder(causal(tiny_llama_dir), tokenizer, tmp_path / "m")
    first = weights_digest(path)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match="cannot be written"):
        export_folder(causal(tiny_llama_dir), tokenizer, path)
    assert weights_digest(path) == first
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_is_no_export_is_never_deleted(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "config.json").write_text("{}")  # others' programs and models have one too
    with pytest.raises(UserError, match=r"no instructlit\.json, so it is not replaced"):
        export_folder(causal(tiny_llama_dir), tokenizer, tmp_path)
    with pytest.raises(UserError, match="there is a file of that name"):
        export_folder(causal(tiny_llama_dir), tokenizer, tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").exists()


def test_a_place_that_cannot_be_written_is_one_message(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/m: the folder cannot be written"):
        export_folder(causal(tiny_llama_dir), tokenizer, tmp_path / "file" / "m")


def test_a_record_that_is_no_json_is_named(tmp_path: Path) -> None:
    assert read_record(tmp_path) == {}
    (tmp_path / "instructlit.json").write_text("{")
    with pytest.raises(UserError, match=r"instructlit\.json: not valid JSON"):
        read_record(tmp_path)


def test_the_digest_of_one_file_is_its_sha256_and_sees_every_byte(tmp_path: Path) -> None:
    assert weights_digest(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert weights_digest(tmp_path) == known
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    assert weights_digest(tmp_path) != known
    (tmp_path / "notes.txt").write_text("not a weight")
    before = weights_digest(tmp_path)
    (tmp_path / "more.safetensors").write_bytes(b"x")
    assert weights_digest(tmp_path) != before


def test_a_record_is_json_and_a_grandparent_is_in_it(
    tiny_llama_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sft = export_folder(
        causal(tiny_llama_dir), tokenizer, tmp_path / "sft", make_record("sft", parents=[parent("org/base", "policy")])
    )
    entry = parent(str(sft), "reference")
    assert entry["stage"] == "sft"
    assert entry["parents"] == [{"role": "policy", "path": "org/base"}]
    assert json.loads(json.dumps(make_record("ppo", parents=[entry])))["parents"] == [entry]
