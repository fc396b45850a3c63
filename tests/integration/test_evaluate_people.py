"""People as judges, all the way round: evaluate writes what they are to judge, the labelling tool takes it and asks,
and evaluate reads what they said."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_jsonl

pytest.importorskip("fastapi")
pytest.importorskip("sqlalchemy")

from label_helpers import NO, Browser

from instructlit.cli import main
from instructlit.labelling import people
from instructlit.labelling.database import Database
from instructlit.tools.label.app import create_app
from instructlit.tools.label.security import Cookies
from instructlit.tools.label.site import Site

PROMPTS = 3


class Labeler(Browser):
    """Somebody at the labelling tool, who prefers answers with "new" in them and rates them 6, others 3."""

    def begin(self, kind: str) -> str | None:
        """The address of the next task of a kind; None where there is none."""
        found = re.match(r"/work/\d+", self.submit("/next", kind=kind).headers["location"])
        return found[0] if found else None

    def compare_all(self) -> int:
        """Which of two is better, until none is left; how many there were."""
        done = 0
        while task := self.begin("evaluation"):
            page = self.get(task).text
            verdict = "a" if page.index("new") < page.index("old") else "b"
            self.submit(f"{task}/page", version=0, verdict=verdict, go="submit")
            done += 1
        return done

    def rate_all(self) -> int:
        """Every output by itself, then the order; how many tasks there were."""
        done = 0
        while task := self.begin("comparison"):
            ratings = []
            for place in (1, 2):
                ratings.append(6 if "new" in self.get(f"{task}/{place}").text else 3)
                flags = {f"flag_{name}": "no" for name in NO} | {"flag_hallucination": "yes" if place == 1 else "no"}
                go = str(place + 1) if place == 1 else "rank"
                self.submit(f"{task}/page", version=place - 1, output=place, rating=ratings[-1], go=go, **flags)
            ranks = [1, 2] if ratings[0] > ratings[1] else [2, 1]
            self.submit(f"{task}/page", version=2, rank_0=ranks[0], rank_1=ranks[1], notes="", go="submit")
            done += 1
        return done


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with prompts, the answers of two models, and a suite whose only judge is people."""
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):
        rows = [{"prompt": f"Q{i}", "response": f"{name} answer {i}"} for i in range(PROMPTS)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    write_jsonl(tmp_path / "prompts.jsonl", ({"prompt": f"Q{i}"} for i in range(PROMPTS)))
    tasks = {
        "preference": {"prompts": "prompts.jsonl", "judges": ["team"]},
        "hallucination": {"data": "prompts.jsonl", "judge": "team"},
    }
    classes = {"preference": "Preference", "hallucination": "Hallucination"}
    said = {
        "tasks": {
            name: {"class_path": f"instructlit.evaluation.tasks.{classes[name]}", "init_args": options}
            for name, options in tasks.items()
        }
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(said))
    return tmp_path


def evaluate() -> dict[str, Any]:
    words = ["evaluate", "sft=old.jsonl", "ppo=new.jsonl", "--suite", "suite.yaml"]
    assert main([*words, "--judges", "team=people:labels/*.jsonl"]) == 0
    results = json.loads(Path("evaluation/results.json").read_text())
    return {m["name"]: m["figures"] for m in results["measures"]} | {"pending": results["judges"]["team"]["pending"]}


def test_from_evaluate_through_the_labelling_tool_and_back(place: Path) -> None:
    first = evaluate()
    assert first["pending"] > 0
    assert "ppo" not in first["preference/team/win_rate"]
    for kind, name in (("evaluation", "pairs"), ("comparison", "ratings")):
        file = place / "evaluation" / f"to_label_team_{name}.jsonl"
        text = file.read_text()
        assert "sft" not in text
        assert "ppo" not in text
        assert main(["label", "import", str(file), "--kind", kind]) == 0

    database = Database(place / "labels.db")
    site = Site(database, "Team", 600, Cookies(https=False))
    with database.write() as session:
        token = people.add_person(session, "test", "anna", "labeler")
    anna = Labeler(create_app(site, ["localhost"]), base_url="http://localhost").sign_in(token)
    assert anna.compare_all() == PROMPTS
    assert anna.rate_all() == PROMPTS, "one task gives the ratings and says what hallucinates"
    database.close()
    assert main(["labels", "export", "--database", "labels.db", "--to", "labels", "--output", "labels"]) == 0

    then = evaluate()
    assert then["pending"] == 0
    assert then["preference/team/win_rate"]["ppo"] | {"low": 0} == {"value": 1.0, "low": 0, "high": 1.0, "n": PROMPTS}
    assert then["preference/team/rating"]["ppo"]["value"] == 6.0
    assert then["preference/team/rating"]["sft"]["value"] == 3.0
    assert 0.0 <= then["hallucination/closed_domain"]["ppo"]["value"] <= 1.0
    assert then["hallucination/closed_domain"]["ppo"]["n"] == PROMPTS
    assert "preference/team/position_bias" not in then, "a pair was seen in one order only"


def test_what_the_labelling_tool_does_not_ask_stands_apart(place: Path) -> None:
    suite = yaml.safe_load((place / "suite.yaml").read_text())
    suite["tasks"] = {
        "false_premise": {
            "class_path": "instructlit.evaluation.tasks.FalsePremise",
            "init_args": {"judge": "team", "limit": 2},
        }
    }
    (place / "suite.yaml").write_text(yaml.safe_dump(suite))
    from instructlit.evaluation.tasks.admitted import shipped

    asked = [row["question"] for row in shipped("false_premises.jsonl")[:2]]
    for name in ("old", "new"):
        rows = [{"prompt": prompt, "response": f"{name} answer"} for prompt in asked]
        write_jsonl(place / f"{name}.jsonl", rows)
    assert evaluate()["pending"] == 4
    rows = [json.loads(line) for line in (place / "evaluation" / "to_label_team_single.jsonl").read_text().splitlines()]
    assert {row["flag"] for row in rows} == {"accepts_premise"}
    for row in rows:
        row["flags"] = [{"accepts_premise": text.startswith("new")} for text in row["completions"]]
    (place / "labels").mkdir()
    write_jsonl(place / "labels" / "other.jsonl", rows)
    found = evaluate()
    assert found["false_premise/accepted"]["ppo"]["value"] == 1.0
    assert found["false_premise/accepted"]["sft"]["value"] == 0.0
