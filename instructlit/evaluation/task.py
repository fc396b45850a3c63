"""A task: two main methods, one that says what models are asked and one that turns their replies into figures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from instructlit.evaluation.measures import Outcome, Study
from instructlit.evaluation.requests import Request


class Task(ABC):
    """Base class of tasks; a suite names a subclass by `class_path`.

    `requests` is called first, and every model replies to all of them; each reply is kept on disk. `measure` is called
    twice: once with a desk that only counts the questions to judges, so that their cost is known before it is spent,
    and once for the results. It must therefore accept verdicts without a value, as it must if a reply is unreadable.
    """

    def judges_asked(self) -> Sequence[str]:
        """The names of the judges that it asks; they are checked before models reply."""
        return []

    def requests(self) -> Sequence[Request]:
        """What every model is asked; nothing for a task that only uses files or judges."""
        return []

    def further(self, study: Study) -> Mapping[str, Sequence[Request]]:
        """What models are asked about the first replies, by model, such as the log-probability of another's answer.

        The replies are in `study.further`. Most tasks ask nothing.
        """
        return {}

    @abstractmethod
    def measure(self, study: Study) -> Outcome:
        """Figures from the replies.

        Raises:
            UserError: something is missing; the other tasks continue.
        """
