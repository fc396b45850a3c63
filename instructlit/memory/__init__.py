"""The device memory that a run needs, worked out from the config before weights are loaded."""

from instructlit.memory.advice import Change, best, fitting
from instructlit.memory.estimate import Estimate, Phase, estimate
from instructlit.memory.run import Run, run_of

__all__ = ["Change", "Estimate", "Phase", "Run", "best", "estimate", "fitting", "run_of"]
