"""Tasks over replies made by hand, the sets of our own, and the published results that the checkers must give again."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl

from instructlit.errors import UserError
from instructlit.evaluation import Answer, Ask, Desk, Judge, Question, Study, Task, Verdict, Weigh, Weights
from instructlit.evaluation.store import Store
from instructlit.evaluation.tasks import (
    BestOfN,
    CrowSPairs,
    FalsePremise,
    Hallucination,
    IFEval,
    LmEval,
    OverHedging,
    Overoptimization,
    Perplexity,
    Preference,
    RealToxicity,
    ReleasedSamples,
    RewardQuality,
    TruthfulQA,
    Winogender,
)
from instructlit.evaluation.tasks.admitted import shipped
from instructlit.evaluation.tasks.ifeval import prompt_kept
from instructlit.evaluation.tasks.reward_quality import read_pairs

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "eval"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published responses in ../shared/data/eval")
needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-eval (extra `eval`)")


class Scripted(Judge):
    def __init__(self, name: str, answer: Callable[[Question], float | None]):
        self.name, self.answer = name, answer

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        for i, question in enumerate(questions):
            yield i, Verdict(self.answer(question), "")


def run(
    task: Task,
    tmp_path: Path,
    replies: dict[str, Callable[[Any], Any]],
    judges: dict[str, Callable[[Question], float | None]] | None = None,
    base: str = "",
) -> dict[str, Any]:
    """The measures of a task whose models are functions of a request."""
    requests = task.requests()
    study = Study(
        list(replies),
        {name: [reply(r) for r in requests] for name, reply in replies.items()},
        Desk({n: Scripted(n, j) for n, j in (judges or {}).items()}, Store(tmp_path / f"{id(task)}.jsonl")),
        baseline=base,
        base=base,
    )
    outcome = task.measure(study)
    return {m.name: m for m in outcome.measures} | {"outcome": outcome}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    return str(write_jsonl(path, rows))


# -- IFEval ---------------------------------------------------------------------------------------------------------


@needs_lm_eval
@needs_shared
def test_ifeval_gives_the_published_strict_verdicts_row_by_row(tmp_path: Path) -> None:
    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (SHARED / name).read_text().splitlines()]

    said = {row["prompt"]: row["response"] for row in rows("ifeval_gpt4_responses.jsonl")}
    published = rows("ifeval_gpt4_strict_verdicts.jsonl")
    task = IFEval(str(SHARED / "ifeval_prompts.jsonl"))
    found = run(task, tmp_path, {"gpt4": lambda r: Answer([said[r.prompt]])})
    ours = [json.loads(line) for line in found["outcome"].files["ifeval_gpt4.jsonl"].splitlines()]
    assert len(ours) == len(published) == 540
    unchecked = checked = 0
    for row, theirs in zip(ours, published, strict=True):
        assert row["prompt"] == theirs["prompt"]
        for name, ok, right in zip(
            row["instruction_id_list"], row["strict"], theirs["follow_instruction_list"], strict=True
        ):
            if ok is None:
                assert name in ("length_constraints:number_sentences", "change_case:capital_word_frequency")
                unchecked += 1
            else:
                assert ok == right, (name, row["prompt"])
                checked += 1
    assert checked + unchecked == 832
    assert checked >= 755
    strict = found["ifeval/strict/prompts"].figures["gpt4"]
    kept = [t["follow_all_instructions"] for r, t in zip(ours, published, strict=True) if None not in r["strict"]]
    assert (strict.value, strict.n) == (pytest.approx(sum(kept) / len(kept)), len(kept))
    assert found["ifeval/loose/prompts"].figures["gpt4"].value >= strict.value
    if unchecked:
        assert found["ifeval/strict/prompts"].notes[0].startswith(f"gpt4: {unchecked} instructions unchecked")


@needs_lm_eval
def test_ifeval_strict_and_loose(tmp_path: Path) -> None:
    data = write(
        tmp_path / "i.jsonl",
        [
            {
                "prompt": "No commas, and end with: The end.",
                "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
                "kwargs": [{}, {"end_phrase": "The end."}],
            },
            {
                "prompt": "Use at least two # signs.",
                "instruction_id_list": ["keywords:letter_frequency"],
                "kwargs": [{"letter": "#", "let_frequency": 2, "let_relation": "at least"}],
            },
        ],
    )
    good = {"No": "Well.\nThe end.", "Us": "#a #b"}
    loose = {"No": "Sure, here it is:\nWell.\nThe end.", "Us": "#a"}
    found = run(
        IFEval(data),
        tmp_path,
        {
            "good": lambda r: Answer([good[r.prompt[:2]]]),
            "loose": lambda r: Answer([loose[r.prompt[:2]]]),
            "none": lambda r: None,
        },
    )
    assert found["ifeval/strict/prompts"].figures["good"].value == 1.0
    assert found["ifeval/strict/prompts"].figures["loose"].value == 0.0
    assert found["ifeval/loose/prompts"].figures["loose"].value == 0.5
    assert found["ifeval/strict/instructions"].figures["loose"].value == pytest.approx(1 / 3)
    assert "none" not in found["ifeval/strict/prompts"].figures
    assert found["ifeval/strict/instructions"].by["punctuation"]["loose"].value == 0.0


def test_an_unchecked_instruction_takes_its_prompt_out_of_the_count() -> None:
    rows: list[list[bool | None]] = [[True, True], [True, False], [True, None], [False, None]]
    assert [prompt_kept(row) for row in rows] == [1.0, 0.0, None, None]


# -- the released samples -------------------------------------------------------------------------------------------


@needs_shared
def test_table_14_from_the_released_samples(tmp_path: Path) -> None:
    """Every recomputed row lies as near to print as 100 queries allow, and the two swapped labels show."""
    files = [f"instructgpt_{name}.csv" for name in ("truthful_qa_samples", "real_toxicity_samples", "table14")]
    found = run(ReleasedSamples(*(str(SHARED / name) for name in files)), tmp_path, {})
    rows = {name: m for name, m in found.items() if name.startswith("released/") and not name.endswith("/printed")}
    assert len(rows) == 9
    expected = {
        "truthful_qa/true/qa_prompt": (0.044, 0.983),
        "truthful_qa/true/qa_instruct": (0.057, 0.985),
        "truthful_qa/true/instruction": (0.033, 0.994),
        "truthful_qa/true_info/qa_prompt": (0.042, 0.988),
        "truthful_qa/true_info/qa_instruct": (0.062, 0.989),
        "truthful_qa/true_info/instruction": (0.040, 0.955),
        "real_toxicity/toxicity/basic": (0.023, 0.47),
        "real_toxicity/toxicity/respectful": (0.029, 0.75),
        "real_toxicity/toxicity/biased": (0.037, 0.96),
    }
    inside = 0
    for name, (gap, together) in expected.items():
        ours, printed = rows[f"released/{name}"], found[f"released/{name}/printed"]
        models = list(printed.figures)
        assert len(models) == 12
        distance = [abs(ours.figures[m].value - printed.figures[m].value) for m in models]
        assert sum(distance) / 12 == pytest.approx(gap, abs=0.001)
        assert f"correlation {together}"[:15] in ours.notes[0].replace("0.471", "0.47").replace("0.751", "0.75")
        assert all(ours.figures[m].n == 100 for m in models)
        inside += sum(ours.figures[m].low <= printed.figures[m].value <= ours.figures[m].high for m in models)
    assert inside >= 0.85 * 108, "of 108 printed numbers nearly all lie in the intervals of 100 queries"


# -- TruthfulQA -----------------------------------------------------------------------------------------------------

QUESTIONS = [
    {
        "Question": f"Is it {i}?",
        "Best Answer": "It is",
        "Correct Answers": "It is; Yes",
        "Incorrect Answers": "It is not; No",
    }
    for i in range(4)
]


def test_truthfulqa_choices_and_generation(tmp_path: Path) -> None:
    primer = tmp_path / "primer.txt"
    primer.write_text("Q: One?\nA: Two.\n")
    task = TruthfulQA(write(tmp_path / "t.jsonl", QUESTIONS), ["qa", "instruction", "combined"], primer=str(primer))
    requests = task.requests()
    assert len(requests) == 2 * 3 * 4
    qa, instruction, combined = (requests[i] for i in (0, 4, 8))
    assert isinstance(qa, Weigh)
    assert qa.context == "Q: One?\nA: Two.\n\nQ: Is it 0?\nA:"
    assert qa.choices == (" It is.", " Yes.", " It is not.", " No.")
    assert str(instruction.prompt if isinstance(instruction, Ask) else instruction.context).count("Q:") == 1
    assert isinstance(combined, Weigh)
    assert str(combined.context).startswith("Interpret each question literally")

    def reply(request: Any) -> Any:
        if isinstance(request, Weigh):
            return Weights([-1.0, -2.0, -3.0, -0.5], [3, 2, 4, 2], [False] * 4)
        return Answer(["It is." if "0" in request.prompt or "1" in request.prompt else "I have no comment"])

    def judge(question: Question) -> float | None:
        assert "True answers: It is. Yes." in question.reference
        if question.about == "informative":
            return float("comment" not in question.answers[0])
        return None if "1" in question.prompt_text else 1.0

    found = run(task, tmp_path, {"m": reply}, {"judge": judge})
    assert found["truthfulqa/qa/mc1"].figures["m"].value == 0.0, "the best answer loses to “No.”"
    assert found["truthfulqa/combined/true"].figures["m"].n == 3, "an unreadable verdict does not count"
    assert found["truthfulqa/qa/true_informative"].figures["m"].value == pytest.approx(1 / 3)
    assert found["truthfulqa/qa/informative"].figures["m"].value == 0.5


@needs_lm_eval
def test_the_benchmarks_examples_are_found() -> None:
    from instructlit.evaluation.tasks.truthfulqa import benchmark_examples

    text = benchmark_examples()
    assert text.count("Q: ") == text.count("A: ") == 6
    assert text.startswith("Q: ")


# -- toxicity and bias ----------------------------------------------------------------------------------------------


def test_toxicity_expected_maximum_and_probability(tmp_path: Path) -> None:
    data = write(
        tmp_path / "r.jsonl",
        [{"prompt": {"text": f"P{i}", "toxicity": i / 4}} for i in range(4)],
    )
    scores = {"a": 0.1, "b": 0.5, "c": 0.9}
    said = {"P0": ["a", "a"], "P1": ["a", "b"], "P2": ["c", "a"], "P3": ["b", "c"]}
    task = RealToxicity(data, prompts=["basic", "biased"], samples=2)
    found = run(
        task, tmp_path, {"m": lambda r: Answer(said[r.prompt[-2:]])}, {"toxicity": lambda q: scores[q.answers[0]]}
    )
    assert found["toxicity/basic/mean"].figures["m"].value == pytest.approx((0.1 + 0.3 + 0.5 + 0.7) / 4)
    assert found["toxicity/basic/expected_maximum"].figures["m"].value == pytest.approx((0.1 + 0.5 + 0.9 + 0.9) / 4)
    assert found["toxicity/biased/probability"].figures["m"].value == 0.75
    assert found["toxicity/basic/mean"].by["toxic prompts"]["m"].n == 2
    assert "Scripted" in found["toxicity/basic/mean"].title, "the scorer is named in every figure"
    assert [str(r.prompt) for r in task.requests() if isinstance(r, Ask)][4].endswith("offensive language:\n\nP0")


def test_bias_pairs(tmp_path: Path) -> None:
    table = tmp_path / "w.tsv"
    table.write_text(
        'sentid\tsentence\na.b.1.male.txt\tHe "did".\na.b.1.female.txt\tShe did.\na.b.1.neutral.txt\tThey did.\n'
    )
    task = Winogender(str(table), ["basic", "respectful"])
    requests = task.requests()
    assert requests[0] == Weigh("", ('He "did".', "She did."))
    assert isinstance(requests[1], Weigh)
    assert str(requests[1].context).endswith("unbiased manner:\n\n")
    found = run(task, tmp_path, {"m": lambda r: Weights([-3.0, -3.0], [9, 9], [False] * 2)})
    assert found["bias/winogender/basic/entropy"].figures["m"].value == pytest.approx(1.0)

    pairs = tmp_path / "c.csv"
    pairs.write_text(',sent_more,sent_less,bias_type\n0,A x,B x,age\n1,"C, y",D y,gender\n')
    found = run(
        CrowSPairs(str(pairs), ["basic"]),
        tmp_path,
        {"m": lambda r: Weights([-1.0, -2.0] if r.choices[0] == "A x" else [-2.0, -1.0], [2, 2], [False] * 2)},
    )
    assert found["bias/crows_pairs/basic/first_likelier"].figures["m"].value == 0.5
    assert found["bias/crows_pairs/basic/first_likelier"].by["age"]["m"].value == 1.0


def test_a_set_may_be_several_tables_with_cells_of_any_length(tmp_path: Path) -> None:
    texts = ["a" * 200_000, "b"]
    for name, text in zip(("one.csv", "two.csv"), texts, strict=True):
        (tmp_path / name).write_text(f"text\n{text}\n")
    found = Perplexity(str(tmp_path / "*.csv")).requests()
    assert [r.choices for r in found if isinstance(r, Weigh)] == [(text,) for text in texts]


# -- our own sets and the rest --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "leans"), [("false_premises.jsonl", "premise"), ("hedging.jsonl", "answer")])
def test_our_sets_are_whole(name: str, leans: str) -> None:
    rows = shipped(name)
    assert len(rows) >= 60
    for field in ("question", "twin"):
        assert len({row[field] for row in rows}) == len(rows)
    assert all(row["question"] != row["twin"] for row in rows)
    assert all(row[leans].strip() and set(row) == {"question", "twin", leans} for row in rows)


def test_false_premises_and_hedging(tmp_path: Path) -> None:
    rows = [
        {"question": "F?", "twin": "T?", "premise": "It is not so."},
        {"question": "G?", "twin": "U?", "premise": "No."},
    ]
    task = FalsePremise(write(tmp_path / "f.jsonl", rows))

    def judge(question: Question) -> float:
        if question.about == "accepts_premise":
            assert question.reference.startswith("The false premise: ")
            return float(question.prompt_text == "F?")
        return 0.0

    found = run(task, tmp_path, {"m": lambda r: Answer([f"about {r.prompt}"])}, {"judge": judge})
    assert found["false_premise/accepted"].figures["m"].value == 0.5
    assert found["false_premise/twin_rejected"].figures["m"].value == 0.0
    hedging = OverHedging(limit=5)
    found = run(
        hedging,
        tmp_path,
        {"m": lambda r: Answer(["well" if r in hedging.requests()[:5] else "yes"])},
        {"judge": lambda q: float(q.answers[0] == "well")},
    )
    assert found["hedging/tempted"].figures["m"].value == 1.0
    assert found["hedging/plain"].figures["m"].value == 0.0


def test_hallucination_looks_at_closed_tasks_only(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Sum up.", "context": "Snow fell.", "use_case": "summarization"},
        {"prompt": "Write a song.", "use_case": "generation"},
        {"prompt": "From this text: rain. What fell?", "use_case": "closed QA"},
    ]
    seen: list[Question] = []

    def judge(question: Question) -> float:
        seen.append(question)
        return float("Sum" in question.prompt_text)

    found = run(
        Hallucination(write(tmp_path / "h.jsonl", rows)), tmp_path, {"m": lambda r: Answer(["x"])}, {"judge": judge}
    )
    assert found["hallucination/closed_domain"].figures["m"].value == 0.5
    assert seen[0].prompt_text == "Sum up.\n\nSnow fell."
    assert seen[0].reference == "The given text: Snow fell."
    with pytest.raises(UserError, match="no row has a closed-domain use case"):
        Hallucination(write(tmp_path / "h2.jsonl", rows[1:2])).requests()


def test_perplexity_minus_the_base_is_paired(tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("".join(f"line {i} of the text\n" for i in range(300)))
    task = Perplexity(str(text), characters=200)
    assert "".join(str(r.choices[0]) for r in task.requests() if isinstance(r, Weigh)) == text.read_text()

    def reply(loss: float) -> Callable[[Any], Any]:
        return lambda r: Weights(
            [-loss * len(r.choices[0]) * (1 + len(r.choices[0]) % 3)], [len(r.choices[0])], [False]
        )

    found = run(task, tmp_path, {"base": reply(1.0), "ppo": reply(1.02), "file": lambda r: None}, base="base")
    column = found["perplexity/heldout/token"]
    assert column.figures.keys() == {"base", "ppo"}
    assert column.differences["ppo"].differs
    assert column.differences["ppo"].value == pytest.approx(column.figures["ppo"].value - column.figures["base"].value)
    assert column.figures["ppo"].low < column.figures["base"].high, "unpaired the two intervals overlap"


def test_perplexity_is_over_all_tokens_and_bits_over_all_bytes(tmp_path: Path) -> None:
    told = {"éé": Weights([-2.0], [3], [False]), "b": Weights([-4.0], [1], [False])}
    task = Perplexity(write(tmp_path / "t.jsonl", [{"text": text} for text in told]))
    found = run(task, tmp_path, {"m": lambda r: told[r.choices[0]]})
    assert found["perplexity/heldout/token"].figures["m"].value == pytest.approx(math.exp(6 / 4))
    assert found["perplexity/heldout/bits_per_byte"].figures["m"].value == pytest.approx(6 / math.log(2) / 5)


@needs_lm_eval
def test_squad_2_has_figures_and_what_is_left_out_of_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from lm_eval.tasks.squadv2.task import SQuAD2

    asked = {"title": "t", "context": "c", "question": "q"}
    rights = (["The red house", "a hut"], ["Snow."], [])
    docs = [asked | {"id": str(i), "answers": {"text": list(right)}} for i, right in enumerate(rights)]
    rows = datasets.Dataset.from_list(docs)
    monkeypatch.setattr(
        SQuAD2, "download", lambda self, *_: setattr(self, "dataset", {"train": rows, "validation": rows})
    )
    squad = SQuAD2()
    squad.build_all_requests()
    task = LmEval(["squadv2"])
    monkeypatch.setattr(task, "_loaded", lambda: {"squadv2": squad})
    said = iter(["red house now", "the snow", "unanswerable"])
    found = run(
        task, tmp_path, {"m": lambda r: Answer([next(said)]) if isinstance(r, Ask) else Weights([-3.0], [1], [False])}
    )
    # of the words "red house now" and "red house" 2 are the same, and 3 + 2 in all
    assert found["lm_eval/squadv2/0_shot/f1"].figures["m"].value == pytest.approx((2 * 2 / 5 + 1 + 0) / 3)
    assert found["lm_eval/squadv2/0_shot/exact"].figures["m"].value == pytest.approx(1 / 3)
    [note] = found["outcome"].notes
    assert note.startswith("squadv2: HasAns_exact, HasAns_f1, NoAns_exact, NoAns_f1, best_exact, best_f1 left out")


def test_reward_quality_by_labeler_margin_and_length(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completions": ["aaa", "bb", "c"], "ranks": [1, 2, 2], "labeler": "ann"},
        {"prompt": "q", "completions": ["a", "bb", "ccc"], "ranks": [1, 2, 3], "labeler": "bob"},
    ]
    task = RewardQuality(write(tmp_path / "c.jsonl", rows), ["rm"])
    found = run(task, tmp_path, {}, {"rm": lambda q: float(len(q.answers[0]))})  # a model that likes length
    accuracy = found["reward_model/accuracy"]
    assert accuracy.figures["rm"].value == pytest.approx(2 / 5)
    assert accuracy.figures["rm"].n == 5
    assert accuracy.by["labeler: ann"]["rm"].value == 1.0
    assert accuracy.by["labeler: bob"]["rm"].value == 0.0
    assert accuracy.by["ranks apart: 1"]["rm"].n == 4
    assert found["reward_model/length_correlation"].figures["rm"].value == pytest.approx(1.0)
    assert found["outcome"].curves[0].diagonal


def test_labelers_of_one_prompt_are_one_unit(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{i // 5}", "completions": ["a", "b"], "ranks": [1, 2], "labeler": f"l{i % 5}"} for i in range(15)
    ]
    pairs = read_pairs(write(tmp_path / "c.jsonl", rows), None)
    assert [p.unit for p in pairs] == [0] * 5 + [1] * 5 + [2] * 5


def test_the_quality_of_a_reward_model_is_that_of_answers_as_they_ended(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1], "ended": [True, False]}]
    asked: list[Question] = []

    def score(question: Question) -> float:
        asked.append(question)
        return 0.0

    run(RewardQuality(write(tmp_path / "c.jsonl", rows), ["rm"]), tmp_path, {}, {"rm": score})
    assert {q.answers: q.ended for q in asked} == {("a",): (True,), ("b",): (False,)}


def test_reward_quality_of_rewardbench_files(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{i}", "chosen": "good", "rejected": "bad", "subset": "easy" if i < 3 else "hard"}
        for i in range(5)
    ]
    task = RewardQuality(write(tmp_path / "b.jsonl", rows), ["rm"])
    found = run(task, tmp_path, {}, {"rm": lambda q: float((q.answers[0] == "good") == (q.prompt != "p4"))})
    assert found["reward_model/accuracy"].figures["rm"].value == pytest.approx(4 / 5)
    assert found["reward_model/accuracy"].by["subset: hard"]["rm"].value == 0.5


def test_best_of_n_curves(tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    task = BestOfN(prompts, "proxy", ["gold"], samples=4)
    found = run(
        task,
        tmp_path,
        {"m": lambda r: Answer(["1", "2", "3", "4"])},
        {"proxy": lambda q: float(q.answers[0]), "gold": lambda q: -float(q.answers[0])},
    )
    assert found["best_of_n/proxy/1"].figures["m"].value == pytest.approx(2.5)
    assert found["best_of_n/proxy/4"].figures["m"].value == pytest.approx(4.0)
    assert found["best_of_n/gold/4"].figures["m"].value == pytest.approx(-4.0)
    proxy, gold = found["outcome"].curves
    assert [len(c.series["m"]) for c in (proxy, gold)] == [3, 3]
    assert proxy.series["m"][0] == (0.0, 2.5)


def test_judges_are_told_which_answers_were_cut_off(tmp_path: Path) -> None:
    prompts, told = write(tmp_path / "p.jsonl", [{"prompt": "a"}]), set[tuple[str, bool]]()
    row = {"iteration": 0, "prompt": "a", "score": 0.0, "kl": 0.0}
    logged = [row | {"response": "cut", "ended": False}, row | {"prompt": "b", "response": "whole", "ended": True}]

    def judge(question: Question) -> float:
        told.update(zip(question.answers, question.ended, strict=True))
        return 1.0

    replies = {
        "whole": lambda r: Answer(["whole"] * r.samples, [True] * r.samples),
        "cut": lambda r: Answer(["cut"] * r.samples, [False] * r.samples),
    }
    for task in (
        Preference(prompts),
        BestOfN(prompts, "judge", ["judge"], samples=2),
        Overoptimization(prompts, "judge", ["judge"], best_of=0),
        Overoptimization(policies=False, gold=["judge"], runs={"ppo": write(tmp_path / "r.jsonl", logged)}, best_of=0),
    ):
        told.clear()
        run(task, tmp_path, replies, {"judge": judge}, base="whole")
        assert told == {("whole", True), ("cut", False)}, task


def test_the_judge_and_the_task_on_the_page_work(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
    names: dict[str, Any] = {}
    for block in page.read_text(encoding="utf-8").split("```python\n")[1:]:
        exec(block.split("```")[0], names)
    pairs = [Question("compare", "p", answers) for answers in (("a", "b c"), ("b c", "a"), ("a b", "c d"))]
    verdicts = Desk({"j": names["Shorter"]()}, Store(tmp_path / "v.jsonl")).ask("j", pairs)
    assert [verdict.value for verdict in verdicts] == [1.0, 0.0, 0.5]
    found = run(names["Brevity"](limit=4), tmp_path, {"m": lambda r: Answer(["two words"]), "none": lambda r: None})
    assert found["brevity/words"].figures["m"].value == 2.0
    assert found["brevity/words"].figures["m"].n == 4
    assert "none" not in found["brevity/words"].figures
