"""Judges: a reward model, a judge model at an endpoint or on this machine, people, a function, toxicity classifiers."""

from instructlit.evaluation.judges.classifiers import DetoxifyScorer, HuggingFaceClassifier, PerspectiveScorer
from instructlit.evaluation.judges.endpoint import EndpointJudge
from instructlit.evaluation.judges.function import FunctionJudge
from instructlit.evaluation.judges.local import LocalJudge
from instructlit.evaluation.judges.people import PeopleJudge
from instructlit.evaluation.judges.reward import RewardJudge
from instructlit.evaluation.judges.text import TextJudge

__all__ = [
    "DetoxifyScorer",
    "EndpointJudge",
    "FunctionJudge",
    "HuggingFaceClassifier",
    "LocalJudge",
    "PeopleJudge",
    "PerspectiveScorer",
    "RewardJudge",
    "TextJudge",
]
