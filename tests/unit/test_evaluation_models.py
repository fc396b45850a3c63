"""Replies of a language model: log-probs against brute force, answers in any batch, windows over long texts; and the
store that keeps them."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_jsonl

from instructlit.errors import UserError
from instructlit.evaluation import Answer, Ask, Weigh, Weights
from instructlit.evaluation.judges import LocalJudge
from instructlit.evaluation.language_model import LanguageModel, load_language_model
from instructlit.evaluation.requests import as_row, from_row
from instructlit.evaluation.store import Store
from instructlit.evaluation.subjects import FileSubject
from instructlit.rollout import Sampling
from instructlit.tools.answering import Answerer
from instructlit.tools.evaluate.run import Loading, subject

EOS = 2


@pytest.fixture(scope="module")
def model(tiny_llama_dir: Path) -> LanguageModel:
    return load_language_model(str(tiny_llama_dir), device="cpu", batch_size=3)


def reply(model: LanguageModel, *requests: Any) -> list[Any]:
    found = dict(model.replies(requests))
    return [found[i] for i in range(len(requests))]


@torch.no_grad()
def log_prob(model: LanguageModel, ids: list[int], start: int) -> float:
    """The sum over ids from `start` on, one forward pass without a batch."""
    logits = model.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(logits[t - 1, ids[t]] for t in range(start, len(ids))))


def test_weights_are_the_sums_of_brute_force(model: LanguageModel) -> None:
    requests = [Weigh("ab: ", ("cat", "a longer choice")), Weigh("", ("free text",)), Weigh("x", ("y",))]
    found = reply(model, *requests)
    assert found[0].log_probs == pytest.approx(
        [log_prob(model, list(map(ord, "ab: " + c)), 4) for c in ("cat", "a longer choice")], abs=1e-4
    )
    assert found[0].tokens == [3, 15]
    assert found[1].log_probs[0] == pytest.approx(log_prob(model, [EOS, *map(ord, "free text")], 1), abs=1e-4)
    assert found[1].tokens == [9]
    assert found[0].means[0] == pytest.approx(found[0].log_probs[0] / 3)


def test_a_texts_first_token_is_predicted_from_bos_where_there_is_one(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model._encoders[True], "bos", ord("!"))
    [found] = reply(model, Weigh("", ("free text",)))
    assert found.log_probs[0] == pytest.approx(log_prob(model, list(map(ord, "!free text")), 1), abs=1e-4)


def test_a_model_published_without_a_pad_token_answers_as_with_one(
    model: LanguageModel, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "base"))
    model.tokenizer.pad_token = None
    model.tokenizer.save_pretrained(folder)
    model.tokenizer.pad_token = "<pad>"
    LocalJudge(str(folder), device="cpu").check()
    requests = [Ask("ab", 8), Ask("a longer prompt", 8), Weigh("ab", ("c", "a longer choice"))]
    assert reply(load_language_model(str(folder), device="cpu"), *requests) == reply(model, *requests)


def test_greedy_tells_whether_the_choice_would_be_said(model: LanguageModel) -> None:
    [said] = reply(model, Ask("hello", max_new_tokens=1, plain=True))
    token = model.model(input_ids=torch.tensor([list(map(ord, "hello"))])).logits[0, -1].argmax()
    [weights] = reply(model, Weigh("hello", (chr(int(token)), "~" if chr(int(token)) != "~" else "a")))
    assert weights.greedy == [True, False]
    assert said.texts == [chr(int(token)).strip()]


def test_a_text_longer_than_the_model_is_read_in_windows_each_token_once(model: LanguageModel) -> None:
    text = "".join(chr(97 + (i * i) % 26) for i in range(600))
    assert model.room == 256
    [found] = reply(model, Weigh("", (text,)))
    assert found.tokens == [600]
    ids, total, begin = [EOS, *map(ord, text)], 0.0, 0
    while begin < len(ids) - 1:
        total += log_prob(model, ids[begin : begin + 256], 1)
        begin += 255
    assert found.log_probs[0] == pytest.approx(total, abs=1e-3)


def test_a_context_that_does_not_fit_loses_its_beginning(model: LanguageModel) -> None:
    context = "z" * 300
    [found] = reply(model, Weigh(context, ("abc",)))
    assert found.tokens == [3]
    assert found.log_probs[0] == pytest.approx(log_prob(model, list(map(ord, "z" * 253 + "abc")), 253), abs=1e-4)


def test_greedy_answers_do_not_depend_on_the_batch(model: LanguageModel) -> None:
    asks = [Ask("?" * n, max_new_tokens=8, plain=True) for n in (1, 9, 30, 4, 17)]
    together = reply(model, *asks)
    assert [reply(model, ask)[0] for ask in asks] == together
    assert [reply(model, ask)[0] for ask in reversed(asks)] == together[::-1]


def test_a_long_prompt_takes_no_room_from_the_answers_beside_it(model: LanguageModel) -> None:
    asks = [Ask(f"hm {i}", 40, plain=True) for i in range(2)] + [Ask("x" * 250, 40, plain=True)]
    together = reply(model, *asks)
    assert [reply(model, ask)[0] for ask in asks] == together
    assert not together[0].ended[0]
    assert len(together[0].text) > 6, "it is cut at its own 40 tokens, not at the 6 that the long prompt leaves"
    [last] = reply(model, Ask("x" * 255, 40, plain=True, log_probs=True))
    assert len(last.tokens[0]) == 1


def test_samples_differ_and_come_again_with_their_seed(model: LanguageModel) -> None:
    ask = Ask("hm", max_new_tokens=6, temperature=1.0, samples=5, plain=True)
    [first] = reply(model, ask)
    assert len(first.texts) == len(first.ended) == 5
    assert len(set(first.texts)) > 1
    assert reply(model, ask) == [first]
    assert reply(model, replace(ask, prompt="?"), ask)[1] == first, "whatever is asked beside it"


def test_an_answer_ends_before_a_stop_text(model: LanguageModel) -> None:
    [whole] = reply(model, Ask("hm", max_new_tokens=20, plain=True))
    stop = whole.text[3:5]
    [cut] = reply(model, Ask("hm", max_new_tokens=20, plain=True, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert cut.ended == [True]
    assert reply(model, Ask("hm", max_new_tokens=20, plain=True, stop=(whole.text[8:11], stop))) == [cut]


def test_an_answer_ends_where_the_folder_names_a_further_end(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a chat model does whose end of a turn is in generation_config.json alone; answered or streamed."""
    ask = Ask("hm", max_new_tokens=20, plain=True, log_probs=True)
    [whole] = reply(model, ask)
    [ids] = whole.tokens
    end = next(i for i in range(3, 20) if ids[i] not in ids[:i])
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", [EOS, ids[end]])
    [cut] = reply(model, ask)
    said = model.tokenizer.decode(ids[:end]).strip()
    assert (cut.texts, cut.tokens, cut.ended) == ([said], [ids[: end + 1]], [True])
    answerer = Answerer(model.model, model.tokenizer, model.device, "plain")
    streamed = answerer.stream(answerer.encoder.prompt("hm"), Sampling(20, greedy=True), answerer.generator(0))
    assert "".join(streamed).strip() == said


def test_a_prompt_without_room_has_no_reply(model: LanguageModel) -> None:
    assert reply(model, Ask("x" * 256), Ask("x"))[0] is None


def test_a_prompt_without_a_token_is_named_before_anything_is_asked(model: LanguageModel) -> None:
    with pytest.raises(UserError, match="prompt: the prompt '' has no token"):
        next(model.replies([Ask("hm", 4, plain=True), Ask("", 4, plain=True)]))


def test_requests_are_known_by_all_that_they_say() -> None:
    keys = {r.key for r in (Ask("a"), Ask("b"), Ask("a", samples=2, temperature=1.0), Weigh("a", ("b",)), Ask("a", 9))}
    assert len(keys) == 5
    assert Ask("a").key == Ask("a").key
    for row in (Answer(["x"], [True]), Weights([-1.5], [3], [False])):
        assert from_row(json.loads(json.dumps(as_row(row)))) == row


# -- the store ------------------------------------------------------------------------------------------------------


def test_a_store_drops_a_line_that_was_cut_off_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    store = Store(path)
    store.put("a", 1, model="x")
    store.put("b", {"text": "líne\nbreak"})
    store.close()
    with path.open("ab") as file:
        file.write(b'{"key": "c", "val')
    again = Store(path)
    assert (again.get("a"), again.get("b"), "c" in again) == (1, {"text": "líne\nbreak"}, False)
    again.put("c", 3)
    assert len(Store(path)) == 3


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('{"key": "a", "value": 1}\nnot ours\n{"key": "b", "value": 2}\n')
    with pytest.raises(UserError, match=r"s\.jsonl:2"):
        Store(tmp_path / "s.jsonl")


# -- files of answers -----------------------------------------------------------------------------------------------


def test_a_file_of_answers_replies_by_prompt(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    rows = [
        {"prompt": "p", "response": "one"},
        {"prompt": "p", "response": "two"},
        {"prompt": [{"role": "user", "content": "q"}], "completions": ["three"]},
    ]
    write_jsonl(path, rows)
    subject = FileSubject("made", str(path))
    asked = [
        Ask("p"),
        Ask("p", samples=2, temperature=1.0),
        Ask([{"role": "user", "content": "q"}]),
        Ask("?"),
        Weigh("p", ("x",)),
    ]
    found = [r for _, r in subject.replies(asked)]
    assert found == [Answer(["one"]), Answer(["one", "two"]), Answer(["three"]), None, None]
    path.write_text('{"prompt": "p"}\n')
    with pytest.raises(UserError, match="row 1 has no response"):
        FileSubject("made", str(path))
    path.write_text('{"prompt": "p", "completions": ["a", 7]}\n')
    with pytest.raises(UserError, match="row 1: completions: found the number 7"):
        FileSubject("made", str(path))
    path.write_text('{"prompt": "p", "response": "a\\ud83d"}\n')
    with pytest.raises(UserError, match="row 1: response: character 2 is half of a surrogate pair"):
        FileSubject("made", str(path))


def test_what_is_kept_belongs_to_the_state_of_the_trunk_too(tmp_path: Path) -> None:
    """Of adapters, as a model and as a judge, and of a checkpoint, which leaves out a frozen trunk."""
    trunk, adapters, checkpoint = tmp_path / "trunk", tmp_path / "adapters", tmp_path / "last.ckpt"
    for folder in (trunk, adapters):
        folder.mkdir()
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(trunk)}))
    torch.save({"instructlit": {"backbone": {"path": str(trunk)}}, "state_dict": {}}, checkpoint)
    loading = Loading("auto", "auto", "cpu", 8, "auto")

    def identities() -> list[Any]:
        subjects = [subject("m", str(path), loading).identity() for path in (adapters, checkpoint)]
        return [*subjects, LocalJudge(str(adapters)).identity()]

    (trunk / "model.safetensors").write_bytes(b"weights")
    first = identities()
    assert identities() == first
    (trunk / "model.safetensors").write_bytes(b"other weights")
    assert not any(now == before for now, before in zip(identities(), first, strict=True))


def test_verdicts_of_a_judge_on_this_machine_belong_to_its_dtype() -> None:
    assert LocalJudge("m", dtype="float32").identity() != LocalJudge("m", dtype="bfloat16").identity()


def test_perplexity_of_a_uniform_model_is_its_vocabulary(model: LanguageModel) -> None:
    head = model.model.lm_head.weight
    kept = head.detach().clone()
    try:
        with torch.no_grad():
            head.zero_()
        [found] = reply(model, Weigh("", ("any text at all",)))
        assert math.exp(-found.means[0]) == pytest.approx(128, rel=1e-4)
    finally:
        with torch.no_grad():
            head.copy_(kept)
