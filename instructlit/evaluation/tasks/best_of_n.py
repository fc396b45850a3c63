"""Best-of-n against a proxy reward model: the baseline that PPO has to beat, with its exact KL (Gao et al. 2022).

From N samples per prompt, the expected score of the best of n <= N under the proxy is estimated without bias from all
of them: sorted by proxy score, the i-th of N is the best of a random n with probability C(i-1, n-1) / C(N, n) (Nakano
et al. 2021, appendix I). Equal scores share their probabilities. The KL from the sampled model is log n - (n - 1) / n,
exact if answers do not repeat.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from instructlit.errors import UserError, require
from instructlit.evaluation import intervals
from instructlit.evaluation.datasets import needed
from instructlit.evaluation.judging import about_samples
from instructlit.evaluation.measures import Curve, Measure, Outcome, Study
from instructlit.evaluation.requests import Answer, Ask, Reply, Request
from instructlit.evaluation.task import Task
from instructlit.evaluation.tasks.preference import distinct_prompts
from instructlit.types import Prompt, PromptText


class BestOfN(Task):
    """Proxy and gold score of the best of n samples, over sqrt(KL).

    Args:
        prompts: prompts in any format that training reads.
        proxy: name of the judge that picks the best sample.
        gold: names of the judges that score the sample picked, in addition to the proxy.
        samples: N, samples of each prompt.
        temperature: of the sampling; the KL is exact at 1.
        limit: use only this many prompts, the first ones.
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
            raise UserError(f"found {samples}", where="samples", expected="at least 2, to take the best of")
        self.path, self.proxy, self.gold = prompts, proxy, ["gold"] if gold is None else gold
        self.samples, self.temperature, self.limit, self.max_new_tokens = samples, temperature, limit, max_new_tokens
        self._prompts: list[Prompt] = []

    def judges_asked(self) -> Sequence[str]:
        return [self.proxy, *self.gold]

    def requests(self) -> Sequence[Request]:
        self._prompts = distinct_prompts(needed(self.path, "best_of_n.prompts", "prompts are"), self.limit)
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
            prompts = [p.prompt for p in self._prompts]
            for judge, best in scored_best(study, judges, prompts, study.replies[model], self.samples).items():
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


def best_of_n_kl(n: int) -> float:
    """KL in nats of the best of n from the sampled distribution: log n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n


def doubling(samples: int) -> list[int]:
    """1, 2, 4 and so on up to `samples`."""
    return [2**k for k in range(int(math.log2(samples)) + 1)]


def over_sqrt_kl(best: Mapping[int, np.ndarray]) -> list[tuple[float, float]]:
    """The points (√KL, mean value) of best-of-n, whose values are (P,) for each n."""
    return [(math.sqrt(best_of_n_kl(n)), float(values.mean())) for n, values in best.items()]


def scored_best(
    study: Study, judges: Sequence[str], prompts: Sequence[PromptText], replies: Sequence[Reply | None], samples: int
) -> dict[str, dict[int, np.ndarray]]:
    """Expected scores of the best of n by the first judge, by judge and n, of the prompts with all samples and scores.

    Empty if there is no such prompt.
    """
    whole = [
        (prompt, reply)
        for prompt, reply in zip(prompts, replies, strict=True)
        if isinstance(reply, Answer) and len(reply.texts) == samples
    ]
    scores: dict[str, np.ndarray] = {}
    for judge in judges:
        kind = study.desk.judge(judge).marks
        asked = [question for prompt, reply in whole for question in about_samples(kind, prompt, reply)]
        values = [np.nan if verdict.value is None else verdict.value for verdict in study.desk.ask(judge, asked)]
        scores[judge] = np.array(values).reshape(len(whole), samples)
    known = np.all([np.isfinite(own).all(axis=1) for own in scores.values()], axis=0)
    if not known.any():
        return {}
    proxy = scores[judges[0]][known]
    return {j: {n: best_of_n(proxy, own[known], n) for n in doubling(samples)} for j, own in scores.items()}


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
        share = (cumulative[ends[1:]] - cumulative[ends[:-1]]) / count  # equal scores share their probabilities
        found[row] = (share[place] * value[row]).sum()
    return found
