"""Measuring models side by side: requests, replies, judges, tasks, and figures with their intervals."""

from instructlit.evaluation.judging import Desk, Judge, Question, Verdict
from instructlit.evaluation.measures import Curve, Measure, Outcome, Study, measured
from instructlit.evaluation.requests import Answer, Ask, Reply, Request, Weigh, Weights
from instructlit.evaluation.task import Task

__all__ = [
    "Answer",
    "Ask",
    "Curve",
    "Desk",
    "Judge",
    "Measure",
    "Outcome",
    "Question",
    "Reply",
    "Request",
    "Study",
    "Task",
    "Verdict",
    "Weigh",
    "Weights",
    "measured",
]
