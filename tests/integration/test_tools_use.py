"""`instructlit export`, `generate` and `chat`, called as from a shell, on models that were trained a few steps."""

import io
import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_jsonl
from stage_helpers import (
    FixedBatches,
    comparison_batch,
    ppo_module,
    prompt_batch,
    reward_module,
    sft_module,
    token_batch,
    trainer,
)
from torch import nn
from transformers import PreTrainedTokenizerFast

from instructlit.checkpoints import STATE, Manifest, partial, publish
from instructlit.cli import main
from instructlit.errors import UserError
from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.export import export_folder
from instructlit.models.lineage import read_record
from instructlit.tools.answering import Answerer
from instructlit.tools.evaluate.run import Loading, load_model

DEMONSTRATIONS = token_batch([("say red: ", "der"), ("say cat: ", "tac")])
COMPARISONS = comparison_batch([("count: ", ["one two", "no", "1"], [1, 3, 2])])


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command and return what it printed; fails where the command does."""

    def run(*words: Any) -> str:
        capsys.readouterr()
        status = main([str(word) for word in words])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that has to fail as the user's mistake; returns its message."""

    def run(*words: Any) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        return capsys.readouterr().err

    return run


def trained(module: Any, data: FixedBatches, path: Path) -> Path:
    """A checkpoint after one epoch."""
    fit = trainer(path.parent)
    fit.fit(module, datamodule=data)
    fit.save_checkpoint(path)
    return path


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(p, theirs[name]) for name, p in ours.items())


# -- export --------------------------------------------------------------------------------------------------------


def test_an_sft_checkpoint_becomes_a_folder_with_its_weights(
    tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, command: Callable[..., str]
) -> None:
    module = sft_module(tiny_llama_dir)
    file = trained(module, FixedBatches(char_tokenizer, [DEMONSTRATIONS]), tmp_path / "last.ckpt")
    (tmp_path / "config.yaml").write_text("seed_everything: 7\n")
    out = command("export", file, tmp_path / "sft", "--tokenizer", tiny_llama_dir)
    assert out.strip() == str(tmp_path / "sft")
    loaded = load_causal_lm(Backbone(str(tmp_path / "sft")))
    assert same_weights(loaded, module.trained_model)
    assert not same_weights(loaded, load_causal_lm(Backbone(str(tiny_llama_dir))))
    record = read_record(tmp_path / "sft")
    assert (record["stage"], record["step"], record["config"]) == ("sft", 1, {"seed_everything": 7})
    assert record["parents"][0]["path"] == str(tiny_llama_dir)


def test_a_reward_checkpoint_keeps_head_and_shift(
    tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, command: Callable[..., str]
) -> None:
    module = reward_module(tiny_llama_dir)
    data = FixedBatches(char_tokenizer, [COMPARISONS], demonstrations=[DEMONSTRATIONS])
    file = trained(module, data, tmp_path / "last.ckpt")
    command("export", file, tmp_path / "rm", "--tokenizer", tiny_llama_dir)
    loaded = load_scalar_model(Backbone(str(tmp_path / "rm")), require_head=True)
    assert same_weights(loaded, module.trained_model)
    assert float(loaded.shift) == float(module.trained_model.shift) != 0.0


@pytest.mark.parametrize("model", ["tiny_llama_dir", "tiny_gpt2_dir"])  # a head of its own, and the embedding's
def test_ppo_exports_the_raw_weights_or_their_average(
    model: str,
    char_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    command: Callable[..., str],
    refused: Callable[..., str],
    request: pytest.FixtureRequest,
) -> None:
    base = request.getfixturevalue(model)
    module = ppo_module(base, ema_decay=0.9)
    prompts = prompt_batch(["a: ", "bc: ", "d: ", "ef: "])
    file = trained(module, FixedBatches(char_tokenizer, [{"prompts": prompts}] * 2), tmp_path / "last.ckpt")
    assert module.ema is not None
    command("export", file, tmp_path / "raw", "--tokenizer", base)
    command("export", file, tmp_path / "ema", "--tokenizer", base, "--weights", "ema")
    raw, ema = (load_causal_lm(Backbone(str(tmp_path / name))) for name in ("raw", "ema"))
    assert same_weights(raw, module.trained_model)
    assert not same_weights(raw, ema)
    loading = Loading("auto", "auto", "cpu", 4, "auto")
    evaluated = load_model("ppo", str(file), loading).model
    with module.ema.swapped():
        assert same_weights(ema, module.trained_model)
        assert same_weights(evaluated, module.trained_model)
    assert read_record(tmp_path / "ema")["weights"] == "ema"

    plain = trained(
        ppo_module(base, ema_decay=None),
        FixedBatches(char_tokenizer, [{"prompts": prompts}] * 2),
        tmp_path / "plain.ckpt",
    )
    assert "holds no moving average" in refused("export", plain, tmp_path / "x", "--weights", "ema")


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_lora_checkpoint_is_merged(
    tiny_llama_dir: Path,
    char_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    command: Callable[..., str],
    quantization: Any,
) -> None:
    if quantization and find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes (extra `8bit`)")
    module = sft_module(tiny_llama_dir)
    module.backbone = Backbone(str(tiny_llama_dir), lora=Lora(rank=4), quantization=quantization)
    file = trained(module, FixedBatches(char_tokenizer, [DEMONSTRATIONS] * 3), tmp_path / "last.ckpt")
    command("export", file, tmp_path / "merged", "--tokenizer", tiny_llama_dir)
    loaded = load_causal_lm(Backbone(str(tmp_path / "merged")))
    ids = DEMONSTRATIONS.input_ids
    with torch.no_grad():
        ours = module.trained_model.train()(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, ours, atol=1e-4, rtol=0)


def test_a_folder_of_adapters_is_merged(
    tiny_llama_dir: Path,
    char_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    command: Callable[..., str],
    refused: Callable[..., str],
) -> None:
    model = load_scalar_model(Backbone(str(tiny_llama_dir), lora=Lora(rank=4)))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05)
    model.set_shift(2.0)
    export_folder(model, char_tokenizer, tmp_path / "adapters", {"stage": "reward"}, merge=False)
    command("export", tmp_path / "adapters", tmp_path / "merged")
    loaded = load_scalar_model(Backbone(str(tmp_path / "merged")), require_head=True)
    ids, mask = COMPARISONS.input_ids, COMPARISONS.attention_mask
    with torch.no_grad():
        torch.testing.assert_close(loaded.score(ids, mask), model.score(ids, mask), atol=1e-5, rtol=0)
    assert read_record(tmp_path / "merged")["stage"] == "reward"
    assert "is a Hugging Face folder already" in refused("export", tiny_llama_dir, tmp_path / "x")
    (tmp_path / "run" / "batch-1").mkdir(parents=True)
    (tmp_path / "run" / "batch-1" / "state.ckpt").touch()
    told = refused("export", tmp_path / "run", tmp_path / "x")
    assert "run is neither a checkpoint nor a folder of adapters" in told
    assert "name one of its checkpoints, such as" in told


def test_what_is_no_checkpoint_of_ours_is_one_message(
    tmp_path: Path, refused: Callable[..., str], tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert "there is no file" in refused("export", tmp_path / "last.ckpt", tmp_path / "x")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "not written by a stage of instructlit" in refused("export", tmp_path / "other.ckpt", tmp_path / "x")
    torch.save({"state_dict": print}, tmp_path / "code.ckpt")
    assert "cannot be read as a checkpoint" in refused("export", tmp_path / "code.ckpt", tmp_path / "x")
    file = trained(sft_module(tiny_llama_dir), FixedBatches(char_tokenizer, [DEMONSTRATIONS]), tmp_path / "last.ckpt")
    file.write_bytes(file.read_bytes()[:5000])
    assert "cannot be read as a checkpoint" in refused("export", file, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_folder_of_a_resume_checkpoint_is_exported_where_it_is_whole(
    tmp_path: Path,
    refused: Callable[..., str],
    command: Callable[..., str],
    tiny_llama_dir: Path,
    char_tokenizer: PreTrainedTokenizerFast,
) -> None:
    writing = partial(tmp_path, 1)
    writing.mkdir()
    trained(sft_module(tiny_llama_dir), FixedBatches(char_tokenizer, [DEMONSTRATIONS]), writing / STATE)
    folder = publish(writing, Manifest("sft", 1, {}, []))
    command("export", folder, tmp_path / "sft", "--tokenizer", tiny_llama_dir)
    data = bytearray((folder / STATE).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / STATE).write_bytes(data)
    assert f"{STATE} is damaged" in refused("export", folder, tmp_path / "x")


# -- generate ------------------------------------------------------------------------------------------------------


def test_greedy_answers_are_not_sampled_again(refused: Callable[..., str], prompts_file: Path) -> None:
    told = refused("generate", "any", prompts_file, "--greedy", "--samples", 3)
    assert "--samples: greedy answers are all the same" in told


def test_every_prompt_is_answered_in_order_and_a_seed_repeats(
    tiny_llama_dir: Path, prompts_file: Path, tmp_path: Path, command: Callable[..., str]
) -> None:
    words = ("generate", tiny_llama_dir, prompts_file, "--samples", 3, "--batch_size", 5, "--max-new-tokens", 6)
    command(*words, "--output", tmp_path / "deep" / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "deep" / "a.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in prompts_file.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in given]
    assert all(len(row["completions"]) == len(row["ended"]) == 3 for row in rows)
    assert all(len(set(row["completions"])) > 1 for row in rows)  # samples differ
    assert rows[0]["user"] == given[0]["user"]
    assert rows[0]["policy"] == str(tiny_llama_dir)
    again = [json.loads(line) for line in command(*words).splitlines()]
    assert again == rows
    other = [json.loads(line) for line in command(*words, "--seed", 1, "--limit", 2).splitlines()]
    assert len(other) == 2
    assert other[0]["completions"] != rows[0]["completions"]


def test_generate_goes_on_where_it_was_interrupted(
    tiny_llama_dir: Path,
    prompts_file: Path,
    tmp_path: Path,
    command: Callable[..., str],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("generate", tiny_llama_dir, prompts_file, "--samples", 3, "--batch_size", 5, "--max-new-tokens", 6)
    whole, cut, partial = (tmp_path / name for name in ("whole.jsonl", "cut.jsonl", "cut.partial.jsonl"))
    command(*words, "--output", whole)
    generate, batches = Answerer.generate, iter(range(4))

    def counting(self: Answerer, *given: Any) -> Any:
        if next(batches, None) is None:
            raise KeyboardInterrupt
        return generate(self, *given)

    monkeypatch.setattr(Answerer, "generate", counting)
    assert main([str(word) for word in (*words, "--output", cut)]) == 130
    assert not cut.exists()
    partial.write_bytes(partial.read_bytes()[:-5])  # as if the machine had gone down in the middle of a line
    assert "is from an interrupted run with other options: seed changed" in refused(
        *words, "--seed", 1, "--output", cut
    )
    batches = iter(range(7))  # of 10, three being on disk
    command(*words, "--output", cut)
    assert next(batches, None) is None
    assert cut.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_greedy_answers_are_those_of_the_model_itself(tiny_llama_dir: Path, command: Callable[..., str]) -> None:
    line = command("generate", tiny_llama_dir, "--prompt", "say red: ", "--greedy", "--max-new-tokens", 5)
    ids = [ord(c) for c in "say red: "]
    model = load_causal_lm(Backbone(str(tiny_llama_dir))).eval()
    said: list[int] = []
    with torch.no_grad():
        for _ in range(5):
            said.append(int(model(torch.tensor([ids + said])).logits[0, -1].argmax()))
    expected = "".join(chr(i) for i in said if i > 2).strip()
    assert 2 not in said  # the end would cut the comparison short
    assert json.loads(line)["completions"] == [expected]
    assert json.loads(line)["ended"] == [False]


def test_a_prompt_without_room_is_left_out(tiny_llama_dir: Path, tmp_path: Path, command: Callable[..., str]) -> None:
    write_jsonl(tmp_path / "p.jsonl", ({"prompt": text} for text in ("x" * 252, "hm")))
    rows = command("generate", tiny_llama_dir, tmp_path / "p.jsonl", "--max-new-tokens", 5).splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == ["hm"]


def test_samples_are_drawn_as_they_come(
    tiny_llama_dir: Path, prompts_file: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(self: Answerer, rows: Sequence[Any], *_: Any) -> Any:
        raise UserError(f"begun with {len(rows)}")

    monkeypatch.setattr(Answerer, "generate", begun)
    words = ("--samples", 10**14, "--batch_size", 5, "--max-new-tokens", 6)
    assert "begun with 5" in refused("generate", tiny_llama_dir, prompts_file, *words), "no list of all there will be"


def test_generate_says_what_is_wrong(tiny_llama_dir: Path, prompts_file: Path, refused: Callable[..., str]) -> None:
    assert "no prompts are given" in refused("generate", tiny_llama_dir)
    assert "both files and --prompt" in refused("generate", tiny_llama_dir, prompts_file, "--prompt", "x")
    assert "no such file" in refused("generate", tiny_llama_dir, prompts_file.parent / "nothing.jsonl")
    assert "--samples: found 0" in refused("generate", tiny_llama_dir, "--prompt", "x", "--samples", 0)
    long = refused("generate", tiny_llama_dir, "--prompt", "x" * 200, "--max-new-tokens", 100)
    assert "the prompt has 200 tokens and the answer may have 100" in long
    assert "256 positions" in long
    for device in ("cuda:99", "meta", "rubbish"):
        assert f"device: {device} cannot be" in refused("generate", tiny_llama_dir, "--prompt", "x", "--device", device)
    assert "--prompt: the prompt '' has no tokens" in refused("generate", tiny_llama_dir, "--prompt", "")
    assert f"--seed: found {2**64}" in refused("generate", tiny_llama_dir, "--prompt", "x", "--seed", 2**64)


# -- chat ----------------------------------------------------------------------------------------------------------


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_pipe_gets_one_answer_a_line_and_nothing_else(
    tiny_llama_dir: Path, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("chat", tiny_llama_dir, "--greedy", "--max-new-tokens", 6)
    piped(monkeypatch, "say red: \n\nsay cat: \n")
    out = command(*words)
    answers = [
        json.loads(command("generate", *words[1:], "--prompt", p))["completions"][0] for p in ("say red: ", "say cat: ")
    ]
    assert [line.strip() for line in out.splitlines()] == answers


def test_a_conversation_is_kept_saved_and_forgotten(
    tiny_llama_dir: Path,
    char_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    command: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = tmp_path / "talk.jsonl"
    lines = ["hi", "and?", f"/save {saved}", "/reset", "new", f"/save {saved}", "/quit", "never read"]
    piped(monkeypatch, "\n".join(lines) + "\n")
    command("chat", tiny_llama_dir, "--template", "turns", "--system", "be brief", "--max-new-tokens", 4, "--seed", 3)
    first, second = (json.loads(line)["messages"] for line in saved.read_text().splitlines())
    assert [m["role"] for m in first] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in first if m["role"] == "user"] == ["hi", "and?"]
    assert [m["role"] for m in second] == ["system", "user", "assistant"]
    assert second[1]["content"] == "new"


def test_a_long_conversation_loses_its_oldest_turns_not_its_opening(
    tiny_llama_dir: Path, tmp_path: Path, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "talk.jsonl"
    piped(monkeypatch, "\n".join([*(f"{i} " + "x" * 70 for i in range(4)), f"/save {saved}"]) + "\n")
    command("chat", tiny_llama_dir, "--template", "turns", "--system", "short", "--max-new-tokens", 8)
    messages = json.loads(saved.read_text())["messages"]
    assert messages[0] == {"role": "system", "content": "short"}
    assert messages[1]["role"] == "user"
    assert not messages[1]["content"].startswith("0")
    assert messages[-2]["content"].startswith("3")


def test_without_a_template_each_line_is_a_prompt_of_its_own(
    tiny_llama_dir: Path,
    tmp_path: Path,
    command: Callable[..., str],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = tmp_path / "one.jsonl"
    piped(monkeypatch, f"first\nsay\\nred: \n/save {saved}\n/save\n")
    command("chat", tiny_llama_dir, "--max-new-tokens", 3, "--save-to", tmp_path / "two.jsonl")
    assert json.loads(saved.read_text())["prompt"] == "say\nred: "
    assert (tmp_path / "two.jsonl").exists()
    assert "needs a conversation" in refused("chat", tiny_llama_dir, "--system", "x")
