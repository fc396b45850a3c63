"""The tasks that suites name by `class_path`."""

from instructlit.evaluation.tasks.ifeval import IFEval
from instructlit.evaluation.tasks.preference import Preference

__all__ = ["IFEval", "Preference"]
