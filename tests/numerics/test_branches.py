"""Completions as branches of one sequence score as they do in rows of their own, and so do their gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from stage_helpers import TINY_SHAPE
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPTNeoXConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from instructlit.errors import UserError
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.branches import Branches, common_prefix
from instructlit.models.scalar import ScalarModel

PAD_ID = 0
# Three prompts: one that its rows share further than the prompt goes, one with a row that is the beginning of another,
# one with two equal rows.
ROWS = [
    [[5, 6, 7, 8, 9, 2], [5, 6, 7, 8, 4, 4, 4, 2], [5, 6, 7, 8, 9, 9, 2]],
    [[11, 12, 13, 2], [11, 12, 13, 2, 14, 2]],
    [[21, 22, 23, 24, 2], [21, 22, 23, 24, 2], [21, 22, 25, 2], [21, 22, 26, 27, 28, 29, 30, 2]],
]
SHAPE: dict[str, Any] = TINY_SHAPE | {"vocab_size": 64, "eos_token_id": 2, "pad_token_id": PAD_ID}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    flat = [row for rows in ROWS for row in rows]
    width = max(map(len, flat)) + 2
    ids = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in flat])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in flat])
    return ids, mask, torch.tensor([group for group, rows in enumerate(ROWS) for _ in rows])


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ScalarModel:
    if request.param in ("llama", "gpt2"):
        path: Path = request.getfixturevalue(f"tiny_{request.param}_dir")
    else:
        configs: dict[str, PretrainedConfig] = {
            "gpt_neox": GPTNeoXConfig(**SHAPE),
            "qwen2": Qwen2Config(**SHAPE, num_key_value_heads=2),
        }
        path = tmp_path_factory.mktemp("models") / request.param
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(configs[request.param]).save_pretrained(path)
    torch.manual_seed(0)
    return load_scalar_model(Backbone(str(path))).eval()


def test_branches_by_hand() -> None:
    branches = Branches.of(*batch())
    assert common_prefix(*batch()).tolist() == [4, 3, 2]
    assert branches.input_ids[0].tolist() == [5, 6, 7, 8, 9, 2, 4, 4, 4, 2, 9, 9, 2, 0, 0, 0]
    assert branches.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 4, 5, 6, 0, 0, 0]
    assert branches.last.tolist() == [5, 9, 12, 3, 6, 4, 7, 9, 15]
    second_of_second_branch = branches.sees[0, 0, 7].nonzero().flatten().tolist()
    assert second_of_second_branch == [0, 1, 2, 3, 6, 7]


def test_scores_equal_those_of_separate_rows(model: ScalarModel) -> None:
    ids, mask, group = batch()
    alone = model.score(ids, mask)
    assert alone.std() > 1e-3  # a head of zeros would pass
    torch.testing.assert_close(model.score_branches(ids, mask, group), alone, atol=1e-5, rtol=0)


def test_gradients_equal_those_of_separate_rows(model: ScalarModel) -> None:
    ids, mask, group = batch()
    weights = torch.linspace(-1.0, 2.0, len(ids))
    gradients = []
    for scores in (model.score(ids, mask), model.score_branches(ids, mask, group)):
        model.zero_grad()
        (weights * scores).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    alone, branched = gradients
    assert alone.keys() == branched.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(branched[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["eager attention", "no positions", "sliding window", "alibi"])
def test_a_model_that_cannot_be_told_who_sees_what_is_refused(tmp_path: Path, kind: str) -> None:
    configs: dict[str, PretrainedConfig] = {
        "eager attention": Qwen2Config(**SHAPE, num_key_value_heads=2),
        "no positions": BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2, eos_token_id=2, pad_token_id=0),
        "sliding window": MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=4),
        "alibi": FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, alibi=True),
    }
    AutoModelForCausalLM.from_config(configs[kind]).save_pretrained(tmp_path)
    attention = "sdpa" if kind in ("sliding window", "alibi") else "eager"
    with pytest.raises(UserError, match=r"shared_prefix: .*cannot share prompts"):
        load_scalar_model(Backbone(str(tmp_path), attn_implementation=attention)).score_branches(*batch())
