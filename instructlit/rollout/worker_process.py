"""The process behind `WorkerEngine`: reads one request per line, answers in one line, and ends when its input does."""

import json
import os
import signal
import sys
from typing import IO, Any

import torch
from torch import Tensor

from instructlit.data.collate import EncodedPrompt, collate_prompts
from instructlit.data.tokenizers import load_tokenizer
from instructlit.models.backbone import Backbone, load_causal_lm
from instructlit.rollout.engine import CachedEngine, Sampling
from instructlit.types import Prompt


class _Worker:
    """The model that is loaded, and what it is asked."""

    def __init__(self) -> None:
        self.model: Any = None
        self.tokenizer: Any = None
        self.device = torch.device("cpu")

    def load(self, folder: str, device: str, dtype: Any) -> dict[str, Any]:
        self.model = None  # two would need twice the room
        self.device = torch.device(device)
        self.tokenizer = load_tokenizer(folder)
        model: Any = load_causal_lm(Backbone(folder, dtype=dtype), "engine", frozen=True)
        self.model = model.to(self.device).eval()
        return {}

    def sample(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        temperature: float,
        greedy: bool,
        batch_size: int | None,
        seed: int,
    ) -> dict[str, Any]:
        batch = collate_prompts([EncodedPrompt(ids, Prompt("")) for ids in prompts], self.tokenizer.pad_token_id)
        source = torch.Generator(self.device).manual_seed(seed)
        sampling = Sampling(max_new_tokens, temperature, greedy)
        found = CachedEngine(batch_size).generate(self.model, batch.to(self.device), sampling, self.tokenizer, source)

        def spoken(values: Tensor) -> list[list[Any]]:
            return [row[mask].tolist() for row, mask in zip(values, found.response_mask, strict=True)]

        return {"ids": spoken(found.response_ids), "log_probs": spoken(found.log_probs)}


def serve(requests: IO[str], replies: IO[str]) -> None:
    """Answer requests until there are no more."""
    worker = _Worker()
    does = {"load": worker.load, "sample": worker.sample}
    for line in requests:
        request = json.loads(line)
        try:
            reply = does[request.pop("do")](**request)
        except Exception as error:  # the trainer must be told, whatever it is
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all of a group: the trainer may have samples to finish
        signal.signal(number, signal.SIG_IGN)
    # What libraries print goes to the trainer's standard error and not between the replies.
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.append(os.getcwd())
    serve(sys.stdin, own)
