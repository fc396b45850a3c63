"""The tasks that suites name by `class_path`."""

from instructlit.evaluation.tasks.admitted import FalsePremise, OverHedging
from instructlit.evaluation.tasks.best_of_n import BestOfN
from instructlit.evaluation.tasks.bias import CrowSPairs, Winogender
from instructlit.evaluation.tasks.choices import MultipleChoice
from instructlit.evaluation.tasks.grounding import Hallucination
from instructlit.evaluation.tasks.ifeval import IFEval
from instructlit.evaluation.tasks.language import LmEval, Perplexity
from instructlit.evaluation.tasks.overoptimization import Overoptimization
from instructlit.evaluation.tasks.preference import Preference
from instructlit.evaluation.tasks.released import ReleasedSamples
from instructlit.evaluation.tasks.reward_quality import RewardQuality
from instructlit.evaluation.tasks.toxicity import RealToxicity
from instructlit.evaluation.tasks.truthfulqa import TruthfulQA

__all__ = [
    "BestOfN",
    "CrowSPairs",
    "FalsePremise",
    "Hallucination",
    "IFEval",
    "LmEval",
    "MultipleChoice",
    "OverHedging",
    "Overoptimization",
    "Perplexity",
    "Preference",
    "RealToxicity",
    "ReleasedSamples",
    "RewardQuality",
    "TruthfulQA",
    "Winogender",
]
