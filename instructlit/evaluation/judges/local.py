"""A judge model on this machine."""

from collections.abc import Iterator, Sequence
from typing import Any

from instructlit.data.tokenizers import load_tokenizer
from instructlit.dtypes import AutoDtype
from instructlit.errors import require
from instructlit.evaluation.judges.text import TextJudge
from instructlit.evaluation.judging import LoadedJudge
from instructlit.evaluation.language_model import LanguageModel, load_language_model, usable_device
from instructlit.evaluation.requests import Answer, Ask
from instructlit.evaluation.subjects import fingerprint
from instructlit.models.architecture import check_causal_lm
from instructlit.models.backbone import Backbone
from instructlit.models.folders import check_source


class LocalJudge(LoadedJudge, TextJudge):
    """Asks a causal language model on this machine, greedily.

    Args:
        model: folder or Hub name.
        max_new_tokens: most tokens in a reply.
        batch_size: questions answered together.
        dtype: dtype to compute in.
        device: "auto", "cpu", "cuda", ...
        template: template of the prompts, as for training.
    """

    def __init__(
        self,
        model: str,
        max_new_tokens: int = 16,
        batch_size: int = 16,
        dtype: AutoDtype = "auto",
        device: str = "auto",
        template: str = "auto",
    ):
        require("a whole number above 0", "judge.", max_new_tokens=max_new_tokens, batch_size=batch_size)
        self.model, self.max_new_tokens, self.batch_size = model, max_new_tokens, batch_size
        self.dtype: AutoDtype = dtype
        self.device, self.template = device, template

    @property
    def title(self) -> str:
        return self.model

    def identity(self) -> dict[str, Any]:
        told = {"tokens": self.max_new_tokens, "template": self.template, "dtype": self.dtype}
        return {"model": fingerprint(self.model), **told}

    def check(self) -> None:
        check_source(self.model, weights=True, where="judge.model")
        check_causal_lm(Backbone(self.model), "judge.model")
        load_tokenizer(self.model, pad_with_eos=True)
        usable_device(self.device)

    def _load(self) -> LanguageModel:
        return load_language_model(
            self.model,
            template=self.template,
            dtype=self.dtype,
            device=self.device,
            where="judge.model",
            batch_size=self.batch_size,
        )

    def ask(self, prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
        for index, reply in self._loaded().replies([Ask(prompt, self.max_new_tokens) for prompt in prompts]):
            yield (
                index,
                reply.text if isinstance(reply, Answer) else "(the question has more tokens than the judge can read)",
            )
