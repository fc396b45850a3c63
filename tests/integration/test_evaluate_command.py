"""`instructlit evaluate` as from a shell: tables, files, resuming, and everything that can go wrong with a model."""

import html.parser
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_jsonl

from instructlit.cli import main
from instructlit.errors import UserError
from instructlit.evaluation import Ask, Task, Weigh
from instructlit.evaluation.language_model import LanguageModel
from instructlit.tools.evaluate.suite import built, chosen, judges_of, read_suite

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "evaluate"
EVIL = "</p><script>alert('x')</script>"

JUDGE = """
import os, time
def judge(question):
    if os.environ.get("SLOW_JUDGE"):
        time.sleep(0.05)
    with open("asked.txt", "a") as file:
        file.write(question.key + "\\n")
    if question.kind == "compare":
        return 1.0 if len(question.answers[0]) > len(question.answers[1]) else 0.0
    return 4 if question.kind == "rate" else float(len(question.answers[0]) % 2)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with prompts, answers of two models, and a judge."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_judge", None)
    (tmp_path / "my_judge.py").write_text(JUDGE)
    prompts = [{"prompt": f"Q{i} {EVIL}", "use_case": "chat" if i % 2 else "other"} for i in range(8)]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    write_jsonl(tmp_path / "sft.jsonl", [{"prompt": p["prompt"], "response": "short"} for p in prompts])
    write_jsonl(tmp_path / "ppo.jsonl", [{"prompt": p["prompt"], "response": f"much longer {EVIL}"} for p in prompts])
    suite = {
        "judges": {
            "judge": {
                "class_path": "instructlit.evaluation.judges.FunctionJudge",
                "init_args": {"function": "my_judge.judge"},
            }
        },
        "tasks": {
            "preference": {
                "class_path": "instructlit.evaluation.tasks.Preference",
                "init_args": {"prompts": "prompts.jsonl", "max_new_tokens": 4},
            },
            "false_premise": {
                "class_path": "instructlit.evaluation.tasks.FalsePremise",
                "init_args": {"max_new_tokens": 4, "limit": 3},
            },
        },
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    return tmp_path


def measures(place: Path, output: str = "evaluation") -> dict[str, Any]:
    return {m["name"]: m for m in json.loads((place / output / "results.json").read_text())["measures"]}


def test_two_files_side_by_side(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "sft=sft.jsonl", "ppo=ppo.jsonl", "--suite", "suite.yaml", "--tasks", "preference"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "to be asked: judge (my_judge.judge): 32 questions" in out  # 8 pairs in two orders, 16 ratings
    assert "preferred to sft" in " ".join(out.split())
    found = measures(place)
    win = found["preference/judge/win_rate"]["figures"]
    assert win["ppo"] == {"value": 1.0, "low": pytest.approx(0.6756, abs=1e-3), "high": 1.0, "n": 8}
    assert win["sft"]["value"] == 0.5
    assert found["preference/judge/win_rate"]["by"]["chat"]["ppo"]["n"] == 4
    assert found["preference/judge/win_rate"]["minus_base"]["ppo"]["significant"]
    asked = (place / "asked.txt").read_text().splitlines()
    assert len(asked) == len(set(asked)) == 32

    class Reader(html.parser.HTMLParser):
        scripts, text = 0, ""

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.scripts += tag == "script"
            assert not any(name in ("src", "href") and not str(value).startswith("#") for name, value in attrs), attrs

        def handle_data(self, data: str) -> None:
            self.text += data

    reader = Reader()
    reader.feed((place / "evaluation" / "report.html").read_text())
    assert reader.scripts == 0
    assert f"much longer {EVIL}" in reader.text


def test_a_judge_that_no_task_asks_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "sft=sft.jsonl", "ppo=ppo.jsonl", "--suite", "suite.yaml", "--tasks", "preference"]
    words += ["--judges", "second=function:my_judge.judge", "--dry_run"]
    assert main(words) == 0
    assert "no task asks the judge second: " in capsys.readouterr().out
    assert main([*words, "--options", "preference.judges=[judge, second]"]) == 0
    assert "no task asks" not in capsys.readouterr().out


def test_a_redrawn_page_is_logged_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    monkeypatch.setattr("instructlit.tools.evaluate.wandb_log.log", lambda *given: logged.append(given))
    words = ["evaluate", "sft=sft.jsonl", "ppo=ppo.jsonl", "--suite", "suite.yaml", "--tasks", "preference"]
    assert main(words) == 0
    assert not logged
    assert main(["evaluate", "--suite", "suite.yaml", "--redraw", "--wandb", "trial"]) == 0
    [(results, project, suite, _)] = logged
    assert (project, suite) == ("trial", "suite")
    assert "preference" in results.outcomes


def test_prompts_without_an_answer_are_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answered = (place / "ppo.jsonl").read_text().splitlines(keepends=True)
    (place / "ppo.jsonl").write_text("".join(answered[:5]))
    words = ["evaluate", "sft=sft.jsonl", "ppo=ppo.jsonl", "--suite", "suite.yaml", "--tasks", "preference"]
    assert main(words) == 0
    assert "preference: ppo: no reply to 3 of 8 requests" in capsys.readouterr().out
    assert "preference: ppo: no reply to 3 of 8 requests" in (place / "evaluation" / "report.html").read_text()


def test_a_dry_run_asks_nobody(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "sft=sft.jsonl", "ppo=ppo.jsonl", "--suite", "suite.yaml", "--tasks", "preference"]
    assert main([*words, "--dry_run"]) == 0
    assert "32 questions" in capsys.readouterr().out
    assert not (place / "asked.txt").exists()
    assert not (place / "evaluation" / "results.json").exists()


def test_a_dry_run_does_not_know_what_is_asked_about_replies_to_come(
    place: Path, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "sft=sft.jsonl", f"ppo={tiny_llama_dir}", "--suite", "suite.yaml", "--dry_run"]
    assert main([*words, "--tasks", "preference"]) == 0
    out = capsys.readouterr().out
    assert "to be asked: judge (my_judge.judge): 8 questions" in out, "the ratings of the file's answers"
    assert "what judges will be asked about these 8 replies is known only once they are made" in out


def test_models_reply_once_and_what_is_kept_is_not_asked_again(
    place: Path, tiny_llama_dir: Path, tiny_gpt2_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", f"sft={tiny_llama_dir}", f"ppo={tiny_gpt2_dir}", "--suite", "suite.yaml"]
    assert main(words) == 0
    first, asked = (place / "evaluation" / "results.json").read_text(), (place / "asked.txt").read_text()
    replies = (place / "evaluation" / "replies.jsonl").read_text().splitlines()
    assert len(replies) == 2 * (8 + 6)

    def refuse(*_: Any) -> Any:
        raise AssertionError("a reply that is kept was asked for again")

    monkeypatch.setattr(LanguageModel, "replies", refuse)
    assert main(words) == 0
    assert (place / "evaluation" / "results.json").read_text() == first
    assert (place / "asked.txt").read_text() == asked


def test_killed_while_judging_it_goes_on_where_it_was(place: Path) -> None:
    words = [sys.executable, "-m", "instructlit", "evaluate", "sft=sft.jsonl", "ppo=ppo.jsonl", "--suite", "suite.yaml"]
    words += ["--tasks", "preference"]
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"SLOW_JUDGE": "1", "PYTHONPATH": str(root)}
    run = subprocess.Popen(words, cwd=place, env=env, stdout=subprocess.DEVNULL)
    kept = place / "evaluation" / "verdicts.jsonl"
    while not (kept.exists() and kept.read_text().count("\n") >= 3):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = (place / "asked.txt").read_text().split()
    assert 3 <= len(before) < 32
    assert main(words[3:]) == 0
    asked = (place / "asked.txt").read_text().split()
    assert len(set(asked)) == 32
    assert len(asked) <= 33, "the one that was under way may have been asked and not yet kept"


def test_a_model_that_cannot_be_loaded_leaves_the_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "sft=sft.jsonl", "ppo=ppo.jsonl", "bad=./nowhere", "--suite", "suite.yaml"]
    assert main([*words, "--tasks", "preference"]) == 2
    out = capsys.readouterr().out
    assert "model bad was left out: --models bad: there is no folder ./nowhere" in " ".join(out.split())
    assert measures(place)["preference/judge/win_rate"]["figures"].keys() == {"sft", "ppo"}


def test_what_is_wrong_with_a_folder_is_told_before_any_model_replies(
    place: Path, tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(*shards: str) -> str:
        return json.dumps({"weight_map": {shard: shard for shard in shards}})

    index, cut = "model.safetensors.index.json", (tiny_llama_dir / "model.safetensors").read_bytes()[:-1]
    config = (tiny_llama_dir / "config.json").read_text().replace('"vocab_size": 128', '"vocab_size": 100')
    wrong: dict[str, tuple[str, str | bytes, str]] = {  # file, what it holds, what is told
        "configless": ("config.json", '{"model_type', "config.json' is not a valid JSON file"),
        "wordless": ("tokenizer.json", "{", "tokenizer: wordless could not be loaded"),
        "small": ("config.json", config, "the tokenizer has ids up to 127, but the model's embedding has 100 rows"),
        "cut": ("model.safetensors", cut, "cut/model.safetensors cannot be read"),
        "shards": (index, listed("model.safetensors", "second.safetensors"), "shards/second.safetensors cannot be"),
        "index": (index, "{", f"index/{index}: not valid JSON"),
        "adapters": ("adapter_config.json", "{", "adapters/adapter_config.json: not valid JSON"),
    }
    for name, (file, held, _) in wrong.items():
        shutil.copytree(tiny_llama_dir, name)
        Path(name, file).write_bytes(held if isinstance(held, bytes) else held.encode())
    Path("adapters", "config.json").unlink()
    words = ["evaluate", f"good={tiny_llama_dir}", *(f"{name}={name}" for name in wrong), "--suite", "suite.yaml"]
    assert main([*words, "--tasks", "false_premise"]) == 2
    before, replied, _ = capsys.readouterr().out.partition("good: 6 of 6 requests")
    assert replied
    for name, (_, _, told) in wrong.items():
        assert f"model {name} was left out: " in before
        assert told in before


def test_a_checkpoint_is_loaded_with_its_average(place: Path, tiny_llama_dir: Path, capsys: Any) -> None:
    from conftest import make_char_tokenizer
    from stage_helpers import FixedBatches, ppo_module, prompt_batch, trainer

    module = ppo_module(tiny_llama_dir, ema_decay=0.9)
    fit = trainer(place)
    fit.fit(module, datamodule=FixedBatches(make_char_tokenizer(), [{"prompts": prompt_batch(["a: ", "b: "] * 2)}] * 2))
    fit.save_checkpoint(place / "last.ckpt")
    words = ["evaluate", "ppo=last.ckpt", f"sft={tiny_llama_dir}", "--suite", "suite.yaml", "--tasks", "false_premise"]
    assert main(words) == 0
    assert "the moving average of the weights of last.ckpt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft"], "`sft` does not name a model"),
        (["a=sft.jsonl", "a=ppo.jsonl"], "two models have the same name"),
        (["a=sft.jsonl", "--suite", "instructgtp"], "did you mean configs/evaluate/instructgpt.yaml?"),
        (["a=sft.jsonl", "--suite", "suite.yaml", "--tasks", "preferences"], "did you mean preference?"),
        (["a=sft.jsonl", "--suite", "suite.yaml", "--options", "preference.prompt=x"], "did you mean prompts?"),
        (["a=sft.jsonl", "--suite", "suite.yaml", "--judges", "j=robot:x"], "KIND one of"),
        (["a=sft.jsonl", "--suite", "suite.yaml", "--judges", "j=function:none.at"], "none.at cannot be imported"),
        (["a=sft.jsonl", "--suite", "suite.yaml", "--baseline", "b"], "b is not one of the models"),
        (["a=sft.jsonl", "--suite", "suite.yaml", "--weights", "ema"], "--weights: no model is a checkpoint"),
        (["a=missing.jsonl", "--suite", "suite.yaml"], "no such file: missing.jsonl"),
        (["a=sft.jsonl", "--suite", "suite.yaml", "--limit", "0"], "limit: found 0"),
        (["a=sft.jsonl", "--options", "perplexity.limit=-1"], "task perplexity: limit: found -1"),
        (["a=sft.jsonl", "--options", "perplexity.limit=["], "--options perplexity.limit=[: `[` is not valid here"),
    ],
)
def test_mistakes_are_said_in_one_message(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_what_a_task_lacks_is_said_and_the_rest_is_measured(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "evaluate",
        "sft=sft.jsonl",
        "ppo=ppo.jsonl",
        "--suite",
        "instructgpt",
        "--tasks",
        "preference",
        "perplexity",
    ]
    words += ["--judges", "judge=function:my_judge.judge", "--options", "preference.prompts=prompts.jsonl"]
    assert main(words) == 2
    assert "no held-out text is given" in " ".join(capsys.readouterr().out.split())
    assert "preference/judge/win_rate" in measures(place)


def test_a_tasks_file_is_named_and_not_read_as_a_config(tmp_path: Path) -> None:
    (tmp_path / "held_out.csv").write_text("text\nonce\n")
    data = str(tmp_path / "held_out.csv")
    spec = {"class_path": "instructlit.evaluation.tasks.Perplexity", "init_args": {"data": data}}
    task: Any = built(Task, spec, "here")
    assert task.requests() == [Weigh("", ("once",))]


class Untyped(Task):
    """A task of a user who writes no types."""

    def __init__(self, words, often=2):
        self.asked = [words] * often

    def requests(self):
        return [Ask(text) for text in self.asked]

    def measure(self, study):
        raise NotImplementedError


def test_a_task_of_ones_own_needs_no_types() -> None:
    task: Any = built(Task, {"class_path": f"{__name__}.Untyped", "init_args": {"words": "hello"}}, "here")
    assert task.requests() == [Ask("hello"), Ask("hello")]


class Fragile(Untyped):
    """A task of one's own that fails as it is made."""

    def __init__(self, name: str = "x"):
        raise LookupError(name)


def test_a_task_of_ones_own_that_fails_as_it_is_made_is_told_with_its_place() -> None:
    with pytest.raises(UserError) as caught:
        built(Task, {"class_path": f"{__name__}.Fragile"}, "suite.yaml:3: tasks.a")
    told = f"suite.yaml:3: tasks.a: {__name__}.Fragile cannot be constructed: LookupError: x ({__file__}:"
    assert str(caught.value).startswith(told)


def test_results_are_of_this_run_where_every_task_fails(place: Path) -> None:
    words = ["evaluate", "ppo=ppo.jsonl", "--suite", "suite.yaml", "--tasks", "preference"]
    assert main(words) == 0
    assert main([*words, "--options", "preference.prompts=missing.jsonl"]) == 2
    told = json.loads((place / "evaluation" / "results.json").read_text())
    assert told["measures"] == []
    assert {"torch", "peft", "numpy"} <= told["versions"].keys()
    assert "no such file: missing.jsonl" in told["failures"]["task preference"]


@pytest.mark.parametrize("suite", sorted(p.stem for p in SHIPPED.glob("*.yaml")))
def test_shipped_suites_fit_their_classes(suite: str, tmp_path: Path) -> None:
    read = read_suite(suite)
    tasks = chosen(read, None, [], limit=5)
    assert tasks.keys() == read.tasks.keys()
    assert judges_of(read, ["judge=api:some-model", "x=people:labels.jsonl"], tmp_path).keys() >= {"judge", "x"}


def test_a_suite_is_found_as_a_config_is(place: Path) -> None:
    assert read_suite("configs/evaluate/reward.yaml") == read_suite("reward")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tasks:\n  a: {class_path: x.Y}\n  a: {class_path: x.Z}\n", "odd.yaml:3: tasks.a is given twice"),
        ("base: sft\ntaks: {}\n", "odd.yaml:2: taks: .*did you mean tasks?"),
        ("judges:\n  a: {class_path: x.Y}\n  b: {init_args: {}}\n", "odd.yaml:3: judges.b: does not name a class"),
        ("base: sft\ntasks: [a]\n", "odd.yaml:2: tasks: .* is not valid here.*a mapping"),
        ("models:\n  a: models/a\n  b: {prefix: x}\n", "odd.yaml:3: models.b: is not a model"),
    ],
)
def test_a_mistake_in_a_suite_is_told_by_its_line(place: Path, text: str, told: str) -> None:
    (place / "odd.yaml").write_text(text)
    with pytest.raises(UserError, match=f"(?s){told}"):
        read_suite("odd.yaml")


# -- tasks by way of lm-eval ----------------------------------------------------------------------------------------

needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-eval (extra `eval`)")


@needs_lm_eval
def test_lm_eval_tasks_give_lm_evals_own_scores(tmp_path: Path, tiny_llama_dir: Path) -> None:
    """Scores a document, as lm-eval's own harness computes them from the same log-probabilities."""
    import lm_eval
    from lm_eval.api.model import LM

    from instructlit.evaluation import Answer, Desk, Study, Weights
    from instructlit.evaluation.language_model import load_language_model
    from instructlit.evaluation.store import Store

    write_jsonl(
        tmp_path / "docs.jsonl",
        [{"q": f"{i} plus {i}", "choices": [str(2 * i), str(3 * i + 1)], "a": i % 2} for i in range(6)],
    )
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{q}} =",
    }
    choice = common | {
        "task": "tiny_choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{a}}",
        "fewshot_split": "test",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    said = common | {
        "task": "tiny_said",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[a]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    }
    for spec in (choice, said):
        (tmp_path / f"{spec['task']}.yaml").write_text(yaml.safe_dump(spec))
    names = ["tiny_choice", "tiny_said"]
    task: Any = built(
        Task,
        {
            "class_path": "instructlit.evaluation.tasks.LmEval",
            "init_args": {"tasks": names, "num_fewshot": 1, "include_path": str(tmp_path)},
        },
        "here",
    )
    model = load_language_model(str(tiny_llama_dir), device="cpu")
    requests = task.requests()
    assert sum(isinstance(r, Ask) for r in requests) == 6
    replies = dict(model.replies(requests))
    study = Study(
        ["m"], {"m": [replies[i] for i in range(len(requests))]}, Desk({}, Store(tmp_path / "v.jsonl")), base="m"
    )
    ours = {m.name: m.figures["m"].value for m in task.measure(study).measures}

    class Harness(LM):
        def loglikelihood(self, requests: Any) -> Any:
            found = dict(model.replies([Weigh(r.args[0], (r.args[1],)) for r in requests]))
            return [
                (f.log_probs[0], f.greedy[0])
                for f in (found[i] for i in range(len(requests)))
                if isinstance(f, Weights)
            ]

        def generate_until(self, requests: Any) -> Any:
            asks = [Ask(r.args[0], 4, stop=("\n",), plain=True) for r in requests]
            found = dict(model.replies(asks))
            return [f.text for f in (found[i] for i in range(len(asks))) if isinstance(f, Answer)]

        def loglikelihood_rolling(self, requests: Any) -> Any:
            raise NotImplementedError

    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    evaluate_with: Any = lm_eval.simple_evaluate
    theirs = evaluate_with(Harness(), tasks=names, num_fewshot=1, task_manager=manager, bootstrap_iters=0)
    assert theirs is not None
    for name, metric in (("tiny_choice", "acc"), ("tiny_choice", "acc_norm"), ("tiny_said", "exact_match")):
        assert ours[f"lm_eval/{name}/1_shot/{metric}"] == pytest.approx(theirs["results"][name][f"{metric},none"])
    assert 0 < ours["lm_eval/tiny_choice/1_shot/acc"] < 1, "a comparison of 0 with 0 would say little"


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs wandb (extra `wandb`)")
def test_results_stand_in_a_run_of_wandb(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb_file import OfflineRun

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = ["evaluate", "sft=sft.jsonl", "ppo=ppo.jsonl", "--suite", "suite.yaml", "--tasks", "preference"]
    assert main([*words, "--wandb", "trial"]) == 0
    [folder] = (place / "evaluation" / "wandb").glob("offline-run-*")
    run = OfflineRun(folder)
    assert run.run["project"] == "trial"
    assert run.run["job"] == "evaluate"
    rows = [row for row in run.history if "evaluate/preference/judge/win_rate/ppo" in row]
    assert rows[0]["evaluate/preference/judge/win_rate/ppo"] == 1.0
    assert any(name.startswith("evaluate/report") for name in run.names)
    assert any(name.startswith("evaluate/figures") for name in run.names)
