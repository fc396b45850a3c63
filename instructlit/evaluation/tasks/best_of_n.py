"""Best-of-n against a proxy reward model: the baseline that PPO has to beat, with its exact KL (Gao et al. 2022).

Of N samples a prompt, the expected score of the best of n <= N under the proxy is estimated without bias from all of
them: sorted by proxy score, the i-th of N is the best of a random n with probability C(i-1, n-1) / C(N, n) (Nakano et
al. 2021, appendix I). Equal scores share their chances. The KL from the sampled model is log n - (n - 1) / n, exactly
where answers do not repeat.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from instructlit.errors import UserError, require
from instructlit.evaluation import intervals
from instructlit.evaluation.datasets import needed
from instructlit.evaluation.judging import about_samples
from instructlit.evaluation.measures import Curve, Measure, Outcome, Study
from instructlit.evaluation.requests import Answer, Ask, Request
from instructlit.evaluation.task import Task
from instructlit.evaluation.tasks.preference import read_prompts
from instructlit.types import Prompt


class BestOfN(Task):
    """Proxy and gold score of the best of n samples, over sqrt(KL).

    Args:
        prompts: prompts in any of the forms that training reads.
        proxy: name of the judge that picks the best sample.
        gold: names of the judges that score what was picked, the proxy beside them.
        samples: N, samples of each prompt.
        temperature: of the sampling; the KL is exact at 1.
        limit: the first so many prompts.
        max_new_tokens: most tokens in an answer.
    """

    def __init__(
        self,
        prompts: str | None = None,
        proxy: str = "reward",
        gold: list[str] | None = None,
        samples: int = 16,
        temperature: float = 1.0,
        limit: int | None = None,
        max_new_tokens: int = 256,
    ):
        require("a finite number above 0", temperature=temperature)
        if samples < 2:
            raise UserError(f"found {samples}", where="samples", expected="at least 2, of which the best is taken")
        self.path, self.proxy, self.gold = prompts, proxy, ["gold"] if gold is None else gold
        self.samples, self.temperature, self.limit, self.max_new_tokens = samples, temperature, limit, max_new_tokens
        self._prompts: list[Prompt] = []

    def judges_asked(self) -> Sequence[str]:
        return [self.proxy, *self.gold]

    def requests(self) -> Sequence[Request]:
        self._prompts = read_prompts(needed(self.path, "best_of_n.prompts", "prompts are"), self.limit)
        return [Ask(p.prompt, self.max_new_tokens, self.temperature, self.samples) for p in self._prompts]

    def measure(self, study: Study) -> Outcome:
        outcome = Outcome()
        sizes = doubling(self.samples)
        judges = list(dict.fromkeys([self.proxy, *self.gold]))
        lines: dict[str, dict[str, list[tuple[float, float]]]] = {judge: {} for judge in judges}
        columns = {
            (judge, n): Measure(
                f"best_of_n/{judge}/{n}",
                f"best of {n}: {judge}",
                f"Score by {study.desk.judge(judge).title} of the best of {n} samples by {self.proxy}, at a KL of "
                f"{best_of_n_kl(n):.2f} nats from the model.",
            )
            for judge in judges
            for n in (1, sizes[-1])
        }
        for model in study.models:
            scores = {judge: self._scores(study, judge, model) for judge in judges}
            known = np.all([np.isfinite(own).all(axis=1) for own in scores.values()], axis=0)
            if not known.any():
                continue
            for judge in judges:
                best = {n: best_of_n(scores[self.proxy][known], scores[judge][known], n) for n in sizes}
                lines[judge][model] = over_sqrt_kl(best)
                for n in (1, sizes[-1]):
                    columns[judge, n].figures[model] = intervals.mean(best[n], study.seed)
        outcome.measures = [measure for measure in columns.values() if measure.figures]
        outcome.curves = [
            Curve(f"best-of-n: {judge}", "√KL from the model (nats)", f"score by {judge}", own)
            for judge, own in lines.items()
            if own
        ]
        return outcome

    def _scores(self, study: Study, judge: str, model: str) -> np.ndarray:
        """(prompts, samples) scores; nan where an answer or a score is missing."""
        replies = study.replies[model]
        found = np.full((len(replies), self.samples), np.nan)
        there = [i for i, reply in enumerate(replies) if isinstance(reply, Answer) and len(reply.texts) == self.samples]
        kind = study.desk.judge(judge).marks
        asked = [question for i in there for question in about_samples(kind, self._prompts[i].prompt, replies[i])]
        values = [np.nan if v.value is None else v.value for v in study.desk.ask(judge, asked)]
        if there:
            found[there] = np.array(values).reshape(len(there), self.samples)
        return found


def best_of_n_kl(n: int) -> float:
    """KL in nats of the best of n from the distribution that is sampled: log n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n


def doubling(samples: int) -> list[int]:
    """1, 2, 4 and so on up to `samples`."""
    return [2**k for k in range(int(math.log2(samples)) + 1)]


def over_sqrt_kl(best: Mapping[int, np.ndarray]) -> list[tuple[float, float]]:
    """The points (√KL, mean value) of best-of-n, whose values are (P,) for each n."""
    return [(math.sqrt(best_of_n_kl(n)), float(values.mean())) for n, values in best.items()]


def best_of_n(proxy: np.ndarray, value: np.ndarray, n: int) -> np.ndarray:
    """Expected value of the sample that is best of n by the proxy, without bias, (P,).

    Args:
        proxy: (P, N) what picks.
        value: (P, N) what is scored.
        n: 1 .. N.
    """
    samples = proxy.shape[1]
    chances = np.array([math.comb(i, n - 1) for i in range(samples)], dtype=float) / math.comb(samples, n)
    found = np.empty(len(proxy))
    for row in range(len(proxy)):
        _, place, count = np.unique(proxy[row], return_inverse=True, return_counts=True)
        ends = np.concatenate([[0], np.cumsum(count)])
        cumulative = np.concatenate([[0.0], np.cumsum(chances)])
        share = (cumulative[ends[1:]] - cumulative[ends[:-1]]) / count  # equal scores share their chances
        found[row] = (share[place] * value[row]).sum()
    return found
