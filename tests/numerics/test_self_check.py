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
from instructlit.rollout.forward import log_probs_and_entropy


class Noisy(CachedEngine):
    """Log-probs that are off by as much above as below."""

    def generate(self, *arguments):
        found = super().generate(*arguments)
        noise, mask = torch.randn(found.log_probs.shape), found.response_mask
        found.log_probs += (noise - masked_mean(noise, mask)) * mask
        return found


class Silent(CachedEngine):
    """One response without a token: its score has no place."""

    def generate(self, *arguments):
        found = super().generate(*arguments)
        found.response_mask[0], found.log_probs[0] = False, 0
        return found


def silent_engine(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> None:
    module.engine = Silent()


def noisy_engine(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> None:
    module.engine = Noisy()


def another_reference(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> None:
    (reference,) = module.frozen_reference
    with torch.no_grad():
        reference.get_output_embeddings().weight.mul_(1.5)  # type: ignore[operator]


def a_reference_surer_of_what_was_sampled(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "reference_log_probs", lambda part: module.policy_log_probs(part) + 5e-4 * part.response_mask
    )


def one_row_of_eight_moved_by_padding(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> None:
    score, alone = ScalarModel.score, []

    def moved(self, input_ids, attention_mask):
        if len(input_ids) == 1:
            alone.append(input_ids)
        return score(self, input_ids, attention_mask) + (0.05 if len(alone) == 1 else 0)  # 0.01 is allowed

    monkeypatch.setattr(ScalarModel, "score", moved)


def ratios(monkeypatch: pytest.MonkeyPatch, first: float, second: float) -> None:
    """The update finds its first token and its second, where there is one, likelier by these factors."""

    def moved(policy, part, temperature):
        log_probs, entropy = log_probs_and_entropy(policy, part, temperature)
        factors = torch.tensor([first, second]).log() * part.response_mask[:, 1:2]
        return log_probs + torch.nn.functional.pad(factors, (0, log_probs.shape[1] - 2)), entropy

    monkeypatch.setattr("instructlit.modules.ppo.log_probs_and_entropy", moved)


def an_update_a_little_surer(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> None:
    ratios(monkeypatch, 1.002, 1.002)  # the KL is of the square


def an_update_off_by_as_much_above_as_below(module: PPOModule, monkeypatch: pytest.MonkeyPatch) -> None:
    ratios(monkeypatch, 1.1, 0.9)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (noisy_engine, "log-probs differ from the trainer's"),
        (silent_engine, "rewards without a KL penalty differ from their score"),
        (another_reference, "the KL to the reference is"),
        (a_reference_surer_of_what_was_sampled, "the KL to the reference is -0.00"),
        (one_row_of_eight_moved_by_padding, "seven more columns of padding, a response's score changes by 0.05"),
        (an_update_a_little_surer, "ratio_mean of the first minibatch is off by 0.0"),
        (an_update_off_by_as_much_above_as_below, "approx_kl of the first minibatch is off by 0.0"),
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
