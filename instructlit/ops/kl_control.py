"""The coefficient beta of the KL penalty: constant, or steered towards a target."""

import math
from abc import ABC, abstractmethod

from instructlit.errors import UserError, class_path, require


class KLController(ABC):
    """Holds `coefficient`, in reward units per nat, and changes it after each rollout."""

    coefficient: float

    @abstractmethod
    def update(self, mean_sequence_kl: float, n_episodes: int) -> None:
        """Update the coefficient after a rollout.

        Args:
            mean_sequence_kl: mean over all ranks' episodes of the KL summed over each response, in nats.
            n_episodes: episodes of the rollout, over all ranks.
        """

    def check(self, n_episodes: int) -> None:  # noqa: B027 - optional
        """Raise UserError if rollouts of so many episodes, over all ranks, cannot control the coefficient."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps, as plain numbers: all that `update` has changed, and no settings."""
        return {"coefficient": float(self.coefficient)}  # np.clip leaves a number of NumPy's, which is not read back

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore from a checkpoint, of a controller without state too."""
        self.coefficient = float(state.get("coefficient", self.coefficient))


def coefficient_of(controller: KLController) -> float:
    """The coefficient now, of a controller that may be the user's own.

    Raises:
        UserError: it has none, or one that is no finite number.
    """
    found = getattr(controller, "coefficient", None)
    try:
        value = float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"its `coefficient` is {found!r}",
            where=class_path(type(controller)),
            expected="a finite number, set by `__init__` and kept so by `update`",
        )
    return value


class FixedKL(KLController):
    """A constant KL coefficient.

    Source: InstructGPT (arXiv 2203.02155) appendix C.4, beta 0.02.

    Args:
        coefficient: Weight of the per-token KL penalty, in reward units per nat.
    """

    def __init__(self, coefficient: float = 0.02):
        require("a finite number, 0 or more", "FixedKL.", coefficient=coefficient)
        self.coefficient = coefficient

    def update(self, mean_sequence_kl: float, n_episodes: int) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, float]:
        """Empty: the coefficient is a setting."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Nothing to do."""


class AdaptiveKL(KLController):
    """A KL coefficient that grows while the policy is further from the reference than the target, else shrinks.

    coefficient *= 1 + clip(kl / target - 1, -0.2, 0.2) * n_episodes / horizon.

    Source: Ziegler et al. 2019 (arXiv 1909.08593) section 2.2, and its released code for the horizon in episodes.

    Args:
        initial: Coefficient of the first rollout, in reward units per nat; above 0, as every later one is a multiple
            of it.
        target: KL to steer to, in nats summed over a response.
        horizon: Episodes over which an error of 100 % would double the coefficient if it were not clipped to 20 %.
    """

    MAX_ERROR = 0.2

    def __init__(self, initial: float = 0.15, target: float = 6.0, horizon: int = 10_000):
        require("a finite number above 0", "AdaptiveKL.", initial=initial, target=target)
        require("a whole number above 0", "AdaptiveKL.", horizon=horizon)
        self.coefficient, self.target, self.horizon = initial, target, horizon

    def check(self, n_episodes: int) -> None:
        """Raise UserError where one update could bring the coefficient to 0."""
        if self.MAX_ERROR * n_episodes >= self.horizon:
            raise UserError(
                f"{n_episodes} episodes per rollout are too many for a horizon of {self.horizon}: "
                "one update could bring the coefficient to 0",
                where="AdaptiveKL.horizon",
                expected=f"more than {self.MAX_ERROR * n_episodes:g} episodes",
            )

    def update(self, mean_sequence_kl: float, n_episodes: int) -> None:
        """Move the coefficient by at most 20 % * n_episodes / horizon."""
        if not math.isfinite(mean_sequence_kl):
            raise ValueError(f"the KL of a rollout is {mean_sequence_kl}: the policy has diverged")
        self.check(n_episodes)
        error = min(max(mean_sequence_kl / self.target - 1, -self.MAX_ERROR), self.MAX_ERROR)
        self.coefficient *= 1 + error * n_episodes / self.horizon
