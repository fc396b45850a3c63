"""`instructlit data check`: each fact it reports, on files made to have it, and its exit status."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import COMPARISONS, DEMONSTRATIONS, UNK_ID, make_char_tokenizer
from tokenizers import processors

from instructlit.cli import main
from instructlit.data.check_report import Lengths, Pairs
from instructlit.errors import UserError
from instructlit.tools.data_check import data_check
from instructlit.types import Comparison


@pytest.fixture
def tokenizer(char_tokenizer_dir: Path) -> str:
    return str(char_tokenizer_dir)


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """The exit status and the JSON report of one call."""

    def run(*files: Path, **options: Any) -> tuple[int, dict[str, Any]]:
        status = data_check([str(file) for file in files] or None, json=True, **options)
        return status, json.loads(capsys.readouterr().out)

    return run


def says(report: dict[str, Any], level: str, words: str) -> bool:
    return any(p["level"] == level and words in p["what"] for p in report["problems"])


def test_sound_data_has_nothing_to_say(check: Any, demonstrations_file: Path, tokenizer: str) -> None:
    status, report = check(demonstrations_file, tokenizer=tokenizer)
    (source,) = report["sources"]
    assert status == 0
    assert not report["fatal"]
    assert report["problems"] == []
    assert (source["kind"], source["rows"], source["kept"]) == ("demonstration", 16, 16)
    assert source["formats"] == {"native": 16}
    whole = sorted(len(d["prompt"]) + len(d["completion"]) + 1 for d in DEMONSTRATIONS)
    assert source["lengths"]["longest"] == whole[-1]
    assert source["lengths"]["mean"] == pytest.approx(sum(whole) / 16)
    assert report["tokenizer"]["pad_is_eos"] is False


def test_without_a_tokenizer_lengths_are_in_characters(check: Any, demonstrations_file: Path) -> None:
    status, report = check(demonstrations_file)
    (source,) = report["sources"]
    assert status == 0
    assert source["unit"] == "characters"
    assert source["lengths"]["longest"] == max(len(d["prompt"] + d["completion"]) for d in DEMONSTRATIONS)
    assert report["tokenizer"] is None


def test_all_wrong_rows_are_counted_and_the_first_shown(check: Any, jsonl: Callable[..., Path], tokenizer: str) -> None:
    file = jsonl("d", [{"prompt": "p", "completion": "c"}, *({"prompt": i} for i in range(8))])
    status, report = check(file, tokenizer=tokenizer, kind="demonstration")
    (source,) = report["sources"]
    assert status == 1
    assert (source["wrong"], len(source["wrong_rows"])) == (8, 5)
    assert "d.jsonl:2: prompt: found the number 0" in source["wrong_rows"][0]
    assert says(report, "fatal", "8 invalid rows")


def test_a_system_message_that_all_share_makes_no_near_duplicates(check: Any, jsonl: Callable[..., Path]) -> None:
    """As in training, which leaves system messages out of what prompts share."""
    system = {"role": "system", "content": "Be helpful. " * 20}
    prompts = [[system, {"role": "user", "content": text}] for text in ("Name a fruit", "What is red", "name a  fruit")]
    _, report = check(jsonl("p", [{"prompt": prompt} for prompt in prompts]), kind="prompt")
    assert report["sources"][0]["near_duplicates"] == 1


def test_a_row_that_the_chat_template_refuses_is_named(check: Any, jsonl: Callable[..., Path], tokenizer: str) -> None:
    refuses = (
        "{% for m in messages %}{{ m['content'] if m['role'] != 'system' else raise_exception('no') }}{% endfor %}"
    )
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    file = jsonl("d", [{"prompt": "p", "completion": "c"}, {"prompt": turns, "completion": "c"}])
    status, report = check(file, tokenizer=tokenizer, template=refuses)
    assert status == 1
    (told,) = report["sources"][0]["wrong_rows"]
    assert told.startswith(f"{file}:2: prompt: the chat template rejects the roles system, user")


def test_a_broken_line_in_the_middle(check: Any, tmp_path: Path, tokenizer: str) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "p", "completion": "c"}\n{"prompt": "p", "comp\n{"prompt": "q", "completion": "c"}\n')
    status, report = check(file, tokenizer=tokenizer)
    assert (status, report["sources"][0]["wrong"], report["sources"][0]["records"]) == (1, 1, 2)


def test_what_is_cut_and_what_is_dropped(check: Any, jsonl: Callable[..., Path], tokenizer: str) -> None:
    rows = [{"prompt": f"{i:02}", "completion": "c" * 4} for i in range(18)]
    rows += [{"prompt": "20", "completion": "c" * 30}, {"prompt": "p" * 12, "completion": "c"}]
    status, report = check(jsonl("d", rows), tokenizer=tokenizer, max_length=16)
    (source,) = report["sources"]
    assert status == 0
    assert (source["truncated"], source["missing_eos"]) == (1, 1)
    assert source["dropped"] == {"with a prompt over 8 tokens": 1}
    assert says(report, "warning", "truncated at max_length")
    status, report = check(jsonl("d", rows), tokenizer=tokenizer, max_length=6, max_prompt_length=20)
    assert report["sources"][0]["dropped"] == {"with no token left to learn": 1}
    status, report = check(jsonl("d", rows[-2:]), tokenizer=tokenizer, max_length=16)
    assert status == 1
    assert says(report, "fatal", "more than max_dropped_fraction (20%)")
    status, report = check(jsonl("d", rows[-1:]), tokenizer=tokenizer, max_length=16)
    assert says(report, "fatal", "nothing is left")


def test_duplicates_and_shared_prompts(check: Any, jsonl: Callable[..., Path], tokenizer: str) -> None:
    file, other = jsonl("d", [*DEMONSTRATIONS, *DEMONSTRATIONS[:3]]), jsonl("v", DEMONSTRATIONS[:2])
    status, report = check(file, tokenizer=tokenizer, validation=[str(other)])
    assert status == 0
    assert report["sources"][0]["duplicates"] == 3
    assert report["sources"][0]["prompts"] == 16
    assert report["shared_prompts"] == {"train, validation": 2}
    assert says(report, "warning", "2 prompts also in validation")


def test_pad_is_eos_and_eos_inside(check: Any, tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    make_char_tokenizer(pad_is_eos=True).save_pretrained(tmp_path)
    file = jsonl("d", [{"prompt": "p", "completion": "one<eos>two"}, {"prompt": "q", "completion": "one<eos>"}])
    status, report = check(file, tokenizer=str(tmp_path))
    assert status == 0
    assert says(report, "note", "pad is EOS")
    assert report["sources"][0]["eos_inside"] == 1


def test_special_tokens_in_the_text(check: Any, jsonl: Callable[..., Path], tokenizer: str) -> None:
    """A prompt may forge the end of a turn; an EOS that an answer or document was stored with is its own."""
    rows = [("ab<eos>", "c"), ("a", "b<pad>c"), ("a", "b<eos>"), ("a", "b < c")]
    forged = [{"prompt": p, "completion": c} for p, c in rows]
    _, report = check(jsonl("d", forged), tokenizer=tokenizer)
    assert report["sources"][0]["special_inside"] == 2
    assert says(report, "warning", "2 records with a special token spelled out")
    turns = [{"prompt": [{"role": "user", "content": "a<eos>b"}], "completions": ["c", "d"], "ranks": [1, 2]}]
    assert check(jsonl("c", turns), tokenizer=tokenizer)[1]["sources"][0]["special_inside"] == 1
    assert check(jsonl("p", [{"prompt": "<pad>"}]), tokenizer=tokenizer)[1]["sources"][0]["special_inside"] == 1
    texts = [{"text": "a<eos>b"}, {"text": "a<eos>"}]
    assert check(jsonl("t", texts), tokenizer=tokenizer)[1]["sources"][0]["special_inside"] == 1


def test_characters_without_a_token(check: Any, tmp_path: Path, jsonl: Callable[..., Path], tokenizer: str) -> None:
    file = jsonl("d", [{"prompt": "é", "completion": "c"}, {"prompt": "p", "completion": "é"}])
    _, report = check(file, tokenizer=tokenizer)
    assert report["sources"][0]["unknown"] == 1
    assert says(report, "warning", "1 sequence with text that the tokenizer has no token for")
    assert check(jsonl("t", [{"text": "né"}]), tokenizer=tokenizer)[1]["sources"][0]["unknown"] == 1
    alike = make_char_tokenizer()
    alike.unk_token = "<eos>"  # as GPT-2's are one token
    alike.save_pretrained(tmp_path)
    assert check(jsonl("e", [{"prompt": "p", "completion": "c"}]), tokenizer=str(tmp_path))[1]["problems"] == []


def test_template_mismatch(check: Any, tmp_path: Path, jsonl: Callable[..., Path], text_file: Path) -> None:
    tokenizer = make_char_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}|{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    file = jsonl("d", [{"prompt": "p", "completion": " c"}, {"prompt": "q", "completion": "c"}])
    _, report = check(file, tokenizer=str(tmp_path))
    assert report["sources"][0]["template_mismatch"] == 1
    assert says(report, "warning", "1 example unlike the chat template's rendering")
    assert says(report, "warning", "does not end a turn with EOS")
    assert says(report, "warning", "writes '<assistant>' before an answer but not as a generation prompt")
    assert not says(report, "warning", "writes no BOS")
    _, report = check(file, tokenizer=str(tmp_path), template="plain")
    assert says(report, "warning", "which `template: plain` ignores")
    assert not check(text_file, tokenizer=str(tmp_path))[1]["problems"], "text is read without a template"


@pytest.mark.parametrize(("start", "lacks"), [("", True), ("{{ bos_token }}", False)], ids=["lacks", "writes"])
def test_a_template_may_leave_out_the_bos(
    check: Any, tmp_path: Path, jsonl: Callable[..., Path], start: str, lacks: bool
) -> None:
    tokenizer = make_char_tokenizer()
    tokenizer.bos_token = "<unk>"
    first = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", UNK_ID)])
    tokenizer.backend_tokenizer.post_processor = first  # type: ignore[assignment]
    turns = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
    tokenizer.chat_template = start + turns + "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer.save_pretrained(tmp_path)
    _, report = check(jsonl("d", [{"prompt": "p", "completion": "c"}]), tokenizer=str(tmp_path))
    assert report["tokenizer"]["bos_lacking"] is lacks
    assert says(report, "warning", "the chat template writes no BOS (<unk>)") is lacks


def test_conversations_without_a_template(check: Any, jsonl: Callable[..., Path], tokenizer: str) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    _, report = check(jsonl("d", [{"messages": turns}]), tokenizer=tokenizer)
    assert report["sources"][0]["formats"] == {"messages": 1}
    assert says(report, "note", "1 prompt made of messages")


@pytest.mark.parametrize("tokenized", [False, True])
def test_dialogues_that_part_before_their_last_turn(
    check: Any, jsonl: Callable[..., Path], tokenizer: str, tokenized: bool
) -> None:
    """The prompt of a transcript is what both share: of the second row the chosen text goes on with two turns more."""
    start = "\n\nHuman: Hi\n\nAssistant: "
    further = "Hello\n\nHuman: More\n\nAssistant: End"
    rows = [{"chosen": start + one, "rejected": start + "What"} for one in ("Hello", further)]
    _, report = check(jsonl("c", rows), tokenizer=tokenizer if tokenized else None)
    assert report["sources"][0]["formats"] == {"transcript": 2}
    assert report["sources"][0]["later_turns"] == 1
    assert says(report, "warning", "1 completion with a later user turn ('\\n\\nHuman:')")


def test_completions_that_begin_with_white_space(check: Any, jsonl: Callable[..., Path], tokenizer: str) -> None:
    rows = [{"prompt": "A:", "completions": [" x", "y", "\nz", ""], "ranks": [1, 2, 3, 4]}]
    _, report = check(jsonl("c", rows), tokenizer=tokenizer)
    assert report["sources"][0]["leading_space"] == 2
    assert says(report, "warning", "2 completions beginning with white space")


def test_pairs_by_hand() -> None:
    """Lengths 3, 2, 2, 1, 2 with ranks 1, 2, 2, 3, 3 and the last text equal to the second."""
    pairs = Pairs()
    pairs.add(Comparison("p", ["aaa", "bb", "cc", "d", "bb"], [1, 2, 2, 3, 3]), [3, 2, 2, 1, 2])
    assert (pairs.total, pairs.equal, pairs.equal_but_ranked, pairs.tied, pairs.usable) == (10, 1, 1, 2, 7)
    # of the seven: aaa over each of the other four, bb over d, cc over d, cc over bb (of one length)
    assert (pairs.same_length, pairs.longer_preferred) == (1, 6)
    share, low, high = pairs.length_accuracy or (0, 0, 0)
    assert (share, high) == (1.0, pytest.approx(1.0))
    assert low == pytest.approx(1 / (1 + 1.959964**2 / 6))  # Wilson's lower end for six of six
    pairs.add(Comparison("q", ["a", "bb"], [1, 2]), [1, 2])
    assert pairs.length_accuracy is not None
    assert pairs.length_accuracy[0] == pytest.approx(6 / 7)
    assert Pairs().length_accuracy is None


def test_quantiles_are_lengths_that_occur() -> None:
    lengths = Lengths.of(Counter(range(1, 101)))
    assert lengths == Lengths(100, 50.5, 51, 91, 100, 100)
    assert Lengths.of(Counter()) is None


def test_comparisons(check: Any, comparisons_file: Path, tokenizer: str) -> None:
    status, report = check(comparisons_file, tokenizer=tokenizer)
    (source,) = report["sources"]
    assert status == 0
    assert source["kind"] == "comparison"
    assert source["pairs"]["completions"] == {"2": 4, "3": 4, "4": 4}
    assert source["pairs"]["total"] == 4 * (1 + 3 + 6)
    assert source["pairs"]["tied"] == sum(c["ranks"].count(3) == 2 for c in COMPARISONS)
    assert len(source["pairs"]["length_accuracy"]) == 3


def recipe(path: Path, name: str, **options: Any) -> Path:
    data = {"class_path": f"instructlit.data.{name}", "init_args": options}
    path.write_text(yaml.safe_dump({"seed_everything": 1, "data": data}))
    return path


def test_a_recipe(
    check: Any, tmp_path: Path, prompts_file: Path, text_file: Path, tokenizer: str, comparisons_file: Path
) -> None:
    files = {"train": str(prompts_file), "pretraining": str(text_file)}
    config = recipe(tmp_path / "ppo.yaml", "PromptData", tokenizer=tokenizer, max_prompt_length=4, **files)
    status, report = check(config=[str(config)])
    assert status == 1
    assert [(s["name"], s["kind"]) for s in report["sources"]] == [("train", "prompt"), ("pretraining", "text")]
    assert report["sources"][0]["dropped"] == {"over 4 tokens": 12}
    over = tmp_path / "over.yaml"
    over.write_text(yaml.safe_dump({"data": {"init_args": {"max_prompt_length": 64}}}))
    assert check(config=[str(config), str(over)])[0] == 0


def test_a_recipe_of_comparisons_with_demonstrations(
    check: Any, tmp_path: Path, comparisons_file: Path, demonstrations_file: Path, tokenizer: str
) -> None:
    files = {"train": str(comparisons_file), "demonstrations": str(demonstrations_file)}
    config = recipe(tmp_path / "r.yaml", "ComparisonData", tokenizer=tokenizer, max_length=128, **files)
    status, report = check(config=[str(config)])
    assert status == 0
    assert [s["name"] for s in report["sources"]] == ["train", "demonstrations"]


def test_what_stops_it(check: Any, tmp_path: Path, demonstrations_file: Path, tokenizer: str) -> None:
    status, report = check(demonstrations_file, tokenizer=str(tmp_path))
    assert status == 1
    assert says(report, "fatal", "no tokenizer in")
    status, report = check(
        config=[str(recipe(tmp_path / "a.yaml", "TextData", tokenizer=tokenizer, train="none.jsonl"))]
    )
    assert status == 1
    assert says(report, "fatal", "no such file: none.jsonl")
    with pytest.raises(UserError, match="no files and no config are given"):
        data_check()
    with pytest.raises(UserError, match="both files and a config"):
        data_check(["x"], config=["y"])
    wrong = recipe(tmp_path / "c.yaml", "TextData", tokenizer=tokenizer, trian="none.jsonl")
    with pytest.raises(UserError, match=r"c\.yaml:\d+: data\.init_args\.trian: unknown key[\s\S]*did you mean .*train"):
        data_check(config=[str(wrong)])
    (tmp_path / "b.yaml").write_text("seed_everything: 1\n")
    with pytest.raises(UserError, match="has no `data`"):
        data_check(config=[str(tmp_path / "b.yaml")])


def test_the_table(capsys: pytest.CaptureFixture[str], jsonl: Callable[..., Path], tokenizer: str) -> None:
    file = jsonl("c", [*COMPARISONS, {"prompt": "p", "completions": ["a"], "ranks": [1]}])
    assert data_check([str(file)], tokenizer=tokenizer) == 1
    out = capsys.readouterr().out
    for words in (
        "comparisons",
        "form: native",
        "tied pairs",
        '"longer wins" is right',
        "fatal: train: 1 invalid row;",
    ):
        assert words in out


def test_from_the_command_line(capsys: pytest.CaptureFixture[str], comparisons_file: Path, tokenizer: str) -> None:
    words = ["data", "check", str(comparisons_file), "--tokenizer", tokenizer, "--max_length", "64", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["sources"][0]["kind"] == "comparison"
    assert main(["data", "check", "missing.jsonl"]) == 2
    assert "no such file: missing.jsonl" in capsys.readouterr().err
