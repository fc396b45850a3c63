"""Policy, value, reward and reference on one frozen trunk: held once, and every number that of separate models."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EOS_ID, MAX_POSITIONS, PAD_ID, VOCABULARY, save_tiny_model
from stage_helpers import FixedBatches, ppo_module, prompt_batch, text_batch, train_a_little, trainer
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedTokenizerFast

from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.export import export_folder
from instructlit.models.trunk import Trunks
from instructlit.modules import PPOModule
from instructlit.rollout import RewardModel
from instructlit.rollout.forward import response_log_probs

PROMPTS = ["ab?", "a longer prompt", "x", "say: "]
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes (extra `8bit`)")
PRECISIONS = [None, *(pytest.param(kind, marks=needs_bitsandbytes) for kind in ("nf4", "int8"))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, char_tokenizer: PreTrainedTokenizerFast) -> dict[str, Path]:
    """A base model, and on it the adapters of an SFT model and of a reward model."""
    root = tmp_path_factory.mktemp("trunk")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS, pad_token_id=PAD_ID, bos_token_id=None, eos_token_id=EOS_ID,
    )  # fmt: skip
    base = save_tiny_model(config, root / "base", char_tokenizer)
    lora = Lora(rank=4, alpha=8.0)
    torch.manual_seed(1)
    sft = load_causal_lm(Backbone(str(base), lora=lora))
    train_a_little(sft)
    export_folder(sft, char_tokenizer, root / "sft", merge=False)
    reward = load_scalar_model(Backbone(str(base), lora=lora))
    train_a_little(reward)
    reward.set_shift(-0.5)
    export_folder(reward, char_tokenizer, root / "reward", merge=False)
    export_folder(sft, char_tokenizer, root / "sft-merged")
    return {"base": base, "sft": root / "sft", "reward": root / "reward", "sft-merged": root / "sft-merged"}


def module_of(
    folders: dict[str, Path], policy: str, quantization: Any = None, gradient_checkpointing: bool = False
) -> PPOModule:
    options: dict[str, Any] = {"quantization": quantization, "gradient_checkpointing": gradient_checkpointing}
    lora = Lora(rank=4) if policy == "base" else None
    return ppo_module(
        folders["base"],
        policy=Backbone(str(folders[policy]), lora=lora, **options),
        value=Backbone(str(folders["reward"]), **options),
        reward=RewardModel(Backbone(str(folders["reward"]), quantization=quantization)),
        episodes=16,
        minibatch_size=2,
    )


def trained(module: PPOModule, tokenizer: PreTrainedTokenizerFast, root: Path) -> PPOModule:
    """After two rollouts of two updates each, with pretraining text."""
    batch = {"prompts": prompt_batch(PROMPTS), "pretraining": text_batch(["some text", "more", "and more", "end"])}
    trainer(root).fit(module, FixedBatches(tokenizer, [batch, batch]))
    return module


def models(module: PPOModule) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {"policy": module.trained_model, "value": module.value_model}
    assert isinstance(module.reward, RewardModel)
    assert module.reward._network is not None
    found["reward"] = module.reward._network
    if module.frozen_reference:
        found["reference"] = module.frozen_reference[0]
    return found


def trunk(model: nn.Module) -> dict[str, int]:
    """Where the frozen weights of the decoder lie, by their names in it."""
    kept = (".lora_", "score", "lm_head")
    return {
        name.split("model.")[-1].replace(".base_layer", ""): p.data_ptr()
        for name, p in model.named_parameters()
        if not any(mark in name for mark in kept)
    }


def size(*models: nn.Module) -> int:
    """Bytes of all parameters, each storage once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in models for p in m.parameters()}
    return sum(storages.values())


@pytest.mark.parametrize("quantization", PRECISIONS)
@pytest.mark.parametrize("policy", ["base", "sft"])
def test_every_number_is_that_of_separate_models(
    folders: dict[str, Path],
    char_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    quantization: Any,
) -> None:
    found = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(Trunks, "find", lambda *_: None)
        torch.manual_seed(0)
        module = module_of(folders, policy, quantization=quantization, gradient_checkpointing=True)
        trained(module, char_tokenizer, tmp_path)
        assert (len({trunk(model)["layers.0.mlp.up_proj.weight"] for model in models(module).values()}) == 1) == shared
        found.append(module)
    one, separate = found
    assert one.last_rollout is not None
    assert separate.last_rollout is not None
    for name in ("response_ids", "old_log_probs", "ref_log_probs", "values", "scores", "advantages"):
        torch.testing.assert_close(
            getattr(one.last_rollout, name), getattr(separate.last_rollout, name), rtol=0, atol=0, msg=name
        )
    for role, model in models(one).items():
        for (name, p), q in zip(model.named_parameters(), models(separate)[role].parameters(), strict=True):
            if "original_module" not in name:  # the head before its adapter: drawn at random and never used
                assert torch.equal(p, q), f"{role}: {name}"
    assert one.last_rollout.old_log_probs.ne(one.last_rollout.ref_log_probs).any()  # something was learnt


@pytest.mark.parametrize("quantization", PRECISIONS)
def test_the_trunk_is_held_once(
    folders: dict[str, Path], char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, quantization: Any
) -> None:
    module = trained(module_of(folders, "sft", quantization=quantization), char_tokenizer, tmp_path)
    roles = models(module)
    assert set(roles) == {"policy", "value", "reward", "reference"}
    first = trunk(roles["policy"])
    assert len(first) > 15
    for role, model in roles.items():
        assert trunk(model) == first, role
    alone = size(load_causal_lm(Backbone(str(folders["base"]), quantization=quantization)))
    adapters = sum(size(m) - alone for m in (roles["policy"], roles["reference"]))
    assert size(*roles.values()) < alone + 2.5 * adapters  # four sets of adapters and two heads, but no second trunk
    trainable = [p for m in roles.values() for p in m.parameters() if p.requires_grad]
    owners = [p for g in module.parameter_groups() for p in g["params"]]
    assert {id(p) for p in trainable} == {id(p) for p in owners}
    assert len(owners) == len({id(p) for p in owners})


def test_the_reference_of_sft_adapters_is_the_sft_model_and_not_its_base(
    folders: dict[str, Path], char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    module = trained(module_of(folders, "sft"), char_tokenizer, tmp_path)
    rollout = module.last_rollout
    assert rollout is not None

    def log_probs(folder: str) -> Tensor:
        with torch.no_grad():
            return response_log_probs(load_causal_lm(Backbone(str(folders[folder]))), rollout, 1.0)

    torch.testing.assert_close(rollout.ref_log_probs, log_probs("sft"), rtol=0, atol=1e-6)
    torch.testing.assert_close(rollout.ref_log_probs, log_probs("sft-merged"), rtol=0, atol=1e-5)
    assert (rollout.ref_log_probs - log_probs("base")).abs().max() > 0.01


def test_weights_that_are_trained_are_never_shared(
    folders: dict[str, Path], char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    module = ppo_module(
        folders["base"], policy=Backbone(str(folders["base"])), value=Backbone(str(folders["base"])),
        reference=Backbone(str(folders["base"])), reward=RewardModel(Backbone(str(folders["reward"]))),
        minibatch_size=2,
    )  # fmt: skip
    roles = models(trained(module, char_tokenizer, tmp_path))
    where = {role: set(trunk(model).values()) for role, model in roles.items()}
    assert not where["policy"] & where["value"]
    assert not where["policy"] & where["reference"]
    assert where["reference"] & where["reward"]  # both only read, and of one folder


def test_another_precision_or_folder_is_another_trunk(folders: dict[str, Path]) -> None:
    trunks, lora = Trunks(), Lora(rank=2)
    first = load_causal_lm(Backbone(str(folders["base"]), lora=lora), trunks=trunks)
    for other in (
        Backbone(str(folders["base"]), dtype="bfloat16", lora=lora),
        Backbone(str(folders["base"]), attn_implementation="eager", lora=lora),
        Backbone(str(folders["sft-merged"]), lora=lora),
    ):
        assert not set(trunk(load_scalar_model(other, trunks=trunks)).values()) & set(trunk(first).values())
    for attention in ("auto", "sdpa"):  # which is what `auto` is here
        backbone = Backbone(str(folders["base"]), attn_implementation=attention, lora=lora)
        same = load_scalar_model(backbone, trunks=trunks)
        assert trunk(same) == {name: at for name, at in trunk(first).items() if "lm_head" not in name}
        assert not any(p.is_meta for p in same.parameters())


def test_what_leaves_a_shared_trunk_is_the_policy_alone(
    folders: dict[str, Path], char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    module = trained(module_of(folders, "sft"), char_tokenizer, tmp_path)
    module.trainer.datamodule.tokenizer = char_tokenizer  # type: ignore[attr-defined]
    rollout = module.last_rollout
    assert rollout is not None
    with torch.no_grad():
        own = response_log_probs(module.trained_model, rollout, 1.0)
        for merge, file in ((True, "config.json"), (False, "adapter_config.json")):
            folder, average = module.export(tmp_path / f"out-{merge}", {}, merge=merge)
            assert (folder / file).is_file()
            assert (average / file).is_file()
            again = load_causal_lm(Backbone(str(folder)))
            torch.testing.assert_close(response_log_probs(again, rollout, 1.0), own, rtol=0, atol=1e-5)
    saved = {name for name in module.state_dict() if "lora_A" in name}
    checkpoint: dict[str, Any] = {"state_dict": dict(module.state_dict())}
    module.on_save_checkpoint(checkpoint)
    assert saved <= checkpoint["state_dict"].keys()
    assert not any(name.endswith("base_layer.weight") for name in checkpoint["state_dict"])
