"""What the self-check of the first rollout finds although it is 0 in the mean, small in the mean, or hidden."""

import pytest
import torch
from stage_helpers import FixedBatches, ppo_module, prompt_batch, trainer

from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.export import export_folder
from instructlit.models.scalar import ScalarModel
from instructlit.modules import PPOModule
from instructlit.modules.invariants import InvariantError
from instructlit.ops.masking import masked_mean
from instructlit.rollout import CachedEngine, RewardModel


class Noisy(CachedEngine):
    """Log-probs that are off by as much above as below."""

    def generate(self, *arguments):
        found = super().generate(*arguments)
        noise, mask = torch.randn(found.log_probs.shape), found.response_mask
        found.log_probs += (noise - masked_mean(noise, mask)) * mask
        return found


def noisy_engine(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> None:
    module.engine = Noisy()


def another_reference(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> None:
    (reference,) = module.frozen_reference
    with torch.no_grad():
        reference.get_output_embeddings().weight.mul_(1.5)  # type: ignore[operator]


def one_row_of_eight_moved_by_padding(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> None:
    score, alone = ScalarModel.score, []

    def moved(self, input_ids, attention_mask):
        if len(input_ids) == 1:
            alone.append(input_ids)
        return score(self, input_ids, attention_mask) + (0.05 if len(alone) == 1 else 0)  # 0.01 is allowed

    monkeypatch.setattr(ScalarModel, "score", moved)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (noisy_engine, "log-probs differ from the trainer's"),
        (another_reference, "the KL to the reference is"),
        (one_row_of_eight_moved_by_padding, "seven columns of padding.* change a response's score by 0.05"),
    ],
)
def test_the_self_check_finds(tmp_path, tiny_llama_dir, char_tokenizer, monkeypatch, wrong, told):
    scalar = load_scalar_model(Backbone(str(tiny_llama_dir)))
    reward = RewardModel(Backbone(str(export_folder(scalar, char_tokenizer, tmp_path / "reward", {}))))
    module = ppo_module(tiny_llama_dir, reward=reward)
    module.configure_model()
    wrong(module, monkeypatch)
    batch = {"prompts": prompt_batch(["ab", "say hello ", "x", "count to 3 ", "1", "qq", "mnop", "r"])}
    with pytest.raises(InvariantError, match=told):
        trainer(tmp_path).fit(module, datamodule=FixedBatches(char_tokenizer, [batch]))
