"""A task: two methods, one that says what models are asked and one that turns their replies into figures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from instructlit.evaluation.measures import Outcome, Study
from instructlit.evaluation.requests import Request


class Task(ABC):
    """Subclass it and name the subclass by `class_path` in a suite.

    `requests` is asked first, and every model replies to all of it; each reply is kept on disk. `measure` is called
    twice: once with a desk that only counts the questions to judges, so that their cost can be said before it is spent,
    and once in earnest. It must therefore bear verdicts without a value, as it must where a judge talks nonsense.
    """

    def judges_asked(self) -> Sequence[str]:
        """The names of the judges it puts questions to: what keeps one from a verdict is said before models reply."""
        return []

    def requests(self) -> Sequence[Request]:
        """What every model is asked; nothing for a task that only looks at files or judges."""
        return []

    def further(self, study: Study) -> Mapping[str, Sequence[Request]]:
        """What models are asked about the first replies, by model: the log-probability of another's answer, say.

        The replies to it are in `study.further`. Nothing for most tasks.
        """
        return {}

    @abstractmethod
    def measure(self, study: Study) -> Outcome:
        """Figures from the replies.

        Raises:
            UserError: what is missing; the other tasks go on.
        """
