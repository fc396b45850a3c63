"""Adapters: what trains, what the reference sees, what merging gives, quantised trunks."""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EOS_ID, MAX_POSITIONS, PAD_ID, VOCABULARY, make_char_tokenizer, save_tiny_model
from safetensors.torch import load_file, save
from stage_helpers import train_a_little
from torch import Tensor, nn
from transformers import (
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    Mamba2ForCausalLM,
    MixtralConfig,
    PhimoeConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from instructlit.cli.errors import explain
from instructlit.errors import UserError
from instructlit.models import adapters
from instructlit.models.adapters import (
    Lora,
    add_lora,
    frozen_state_names,
    is_adapted,
    plain_state_dict,
    reference_view,
    unwrapped,
)
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.export import export_folder

IDS = torch.tensor([[ord(c) for c in "the adapters"]])
MASK = torch.ones_like(IDS, dtype=torch.bool)
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes (extra `8bit`)")


def adapted(folder: Path, **options: Any) -> Backbone:
    return Backbone(str(folder), lora=Lora(rank=4, alpha=8.0), **options)


def set_in_config(folder: Path, **options: Any) -> None:
    """Change options in the folder's adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_only_adapters_train_and_a_new_one_changes_nothing(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(adapted(tiny_llama_dir))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".lora_" in name for name in trainable)
    assert not any("lm_head" in name for name in trainable)
    torch.testing.assert_close(logits(model), logits(load_causal_lm(Backbone(str(tiny_llama_dir)))))


SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "pad_token_id": PAD_ID,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
}


@pytest.mark.parametrize(
    "config",
    [Llama4TextConfig(**SMALL, head_dim=8, intermediate_size_mlp=16), PhimoeConfig(**SMALL)],
    ids=["llama4", "phimoe"],
)
def test_a_router_that_is_a_linear_layer_by_name_only_stays_as_it_is(config: PretrainedConfig, tmp_path: Path) -> None:
    folder = save_tiny_model(config, tmp_path, make_char_tokenizer())
    model = load_causal_lm(adapted(folder))
    adapters = {
        name.split(".lora_A.")[0].rsplit(".", 1)[1] for name, _ in model.named_parameters() if ".lora_A." in name
    }
    assert {"q_proj", "k_proj", "v_proj", "o_proj"} <= adapters
    assert "router" not in adapters
    torch.testing.assert_close(logits(model), logits(load_causal_lm(Backbone(str(folder)))))


def test_the_head_of_a_scalar_model_trains_with_its_adapters(tiny_llama_dir: Path) -> None:
    model = load_scalar_model(adapted(tiny_llama_dir))
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sum("score.modules_to_save" in name for name in trainable) == 1
    assert all(".lora_" in name or "score.modules_to_save" in name for name in trainable)


def test_trainable_weights_are_float32_on_a_16_bit_trunk(tiny_llama_dir: Path) -> None:
    model = load_scalar_model(adapted(tiny_llama_dir, dtype="bfloat16"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_the_reference_is_the_trunk_and_comes_and_goes(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(adapted(tiny_llama_dir))
    before = logits(model)
    train_a_little(model)
    trained = logits(model)
    assert (trained - before).abs().max() > 0.01
    with reference_view(model) as reference:
        torch.testing.assert_close(logits(reference), before, rtol=0, atol=0)
    torch.testing.assert_close(logits(model), trained, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_looking_at_the_reference_leaves_what_trains_as_it_was(tiny_llama_dir: Path, frozen: bool) -> None:
    model = load_causal_lm(adapted(tiny_llama_dir))
    if frozen:
        model.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with reference_view(model):
        logits(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_a_model_without_adapters_has_no_reference_inside_it(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    with pytest.raises(UserError, match="no adapters to turn off"), reference_view(model):
        pass


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_merged_weights_compute_the_same_and_leave_the_model_alone(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if name == "mixtral":  # adapters on fused experts, whose parameters are no layers
        config = MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=4, max_position_embeddings=MAX_POSITIONS, pad_token_id=PAD_ID,
        )  # fmt: skip
        folder = save_tiny_model(config, tmp_path / name, make_char_tokenizer())
    else:
        folder = request.getfixturevalue(f"tiny_{name}_dir")
    model = load_causal_lm(adapted(folder))
    train_a_little(model)
    trained = logits(model)
    plain = load_causal_lm(Backbone(str(folder)))
    plain.load_state_dict(plain_state_dict(model))
    assert (logits(plain) - trained).abs().max() < 1e-5
    torch.testing.assert_close(logits(model), trained, rtol=0, atol=0)
    assert is_adapted(model)


@pytest.mark.parametrize("quantization", [None, pytest.param("nf4", marks=needs_bitsandbytes)])
def test_merged_weights_have_the_plain_models_names_and_nothing_more(tiny_llama_dir: Path, quantization: Any) -> None:
    plain = load_scalar_model(Backbone(str(tiny_llama_dir)))
    model = load_scalar_model(adapted(tiny_llama_dir, quantization=quantization))
    merged = plain_state_dict(model.backbone)
    assert {k: (v.shape, v.dtype) for k, v in merged.items()} == {
        k: (v.shape, v.dtype) for k, v in plain.hf.state_dict().items()
    }


@pytest.mark.parametrize("quantization", [None, pytest.param("nf4", marks=needs_bitsandbytes)])
def test_every_merged_weight_is_taken_to_the_host(
    tiny_llama_dir: Path, quantization: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU with the model that was trained need not have room for a merged one."""
    on_host, taken = adapters._on_host, list[Tensor]()

    def taking(tensor: Tensor) -> Tensor:
        taken.append(on_host(tensor))
        return taken[-1]

    monkeypatch.setattr(adapters, "_on_host", taking)
    merged = plain_state_dict(load_causal_lm(adapted(tiny_llama_dir, quantization=quantization)))
    assert {id(weight) for weight in merged.values()} <= {id(weight) for weight in taken}


def test_layers_that_take_no_adapters_are_not_called_unknown() -> None:
    config = Mamba2Config(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_heads=4, head_dim=16, n_groups=1)
    with pytest.raises(UserError) as refused:
        add_lora(Mamba2ForCausalLM(config), Lora(4), scalar=False, where="policy")
    assert str(refused.value).startswith(
        "policy.lora.target_modules: not every layer of all-linear takes adapters\n"
        "  expected: others of in_proj, lm_head, out_proj\n"
    )
    assert "'out_proj' is incompatible with Mamba" in str(refused.value)


def test_wrong_layer_names_list_the_right_ones(tiny_llama_dir: Path) -> None:
    with pytest.raises(UserError, match=r"policy\.lora\.target_modules: no layer is called[\s\S]*q_proj"):
        load_causal_lm(Backbone(str(tiny_llama_dir), lora=Lora(target_modules=["q_prj"])), "policy")
    with pytest.raises(UserError, match="to do: no layer is called v_prj"):
        load_causal_lm(Backbone(str(tiny_llama_dir), lora=Lora(target_modules=["q_proj", "v_prj"])), "policy")
    with pytest.raises(UserError, match=r"no layer is called \*_proj[\s\S]*to do: nothing to repeat"):
        load_causal_lm(Backbone(str(tiny_llama_dir), lora=Lora(target_modules="*_proj")), "policy")
    for option, value in (("alpha", 0.0), ("alpha", -4.0), ("dropout", -1.0), ("dropout", 2.0), ("rank", 0)):
        with pytest.raises(UserError, match=rf"^policy\.lora\.{option}: found {value}"):
            load_causal_lm(Backbone(str(tiny_llama_dir), lora=Lora(**{option: value})), "policy")  # type: ignore[arg-type]


@pytest.mark.parametrize("load", [load_causal_lm, load_scalar_model])
def test_a_model_that_is_not_trained_gets_no_new_adapters(tiny_llama_dir: Path, load: Any) -> None:
    with pytest.warns(UserWarning, match=r"^reference\.lora is not used: nothing of this model is trained"):
        model = load(adapted(tiny_llama_dir), where="reference", frozen=True)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_adapters_on_adapters_are_refused(
    tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = load_causal_lm(adapted(tiny_llama_dir))
    export_folder(model, char_tokenizer, tmp_path / "adapters", merge=False)
    with pytest.raises(UserError, match="would freeze random weights"):
        load_causal_lm(Backbone(str(tmp_path / "adapters"), random_init=True))
    with pytest.raises(UserError, match="already holds adapters"):
        load_causal_lm(adapted(tmp_path / "adapters"))


def test_a_trunk_that_is_gone_is_named(
    tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = export_folder(load_causal_lm(adapted(tiny_llama_dir)), char_tokenizer, tmp_path / "a", merge=False)
    config = file / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_llama_dir), str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"holds adapters for .*gone, which cannot be loaded: there is no folder"):
        load_causal_lm(Backbone(str(file)))


def without_one(file: Path) -> bytes:
    weights = load_file(file)
    weights.pop(next(name for name in weights if "lora_B" in name))
    return save(weights)


def cut(file: Path) -> bytes:
    return file.read_bytes()[:-100]


@pytest.mark.parametrize("load", [load_causal_lm, load_scalar_model])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("adapter_config.json", lambda _: b"{", "adapter_config.json: not valid JSON"),
        ("adapter_config.json", lambda _: b"[]", "adapter_config.json: is not a config of adapters"),
        ("adapter_config.json", lambda _: b'{"base_model_name_or_path": 5}', "is not a config of adapters"),
        ("adapter_model.safetensors", lambda _: None, "has an adapter_config.json but no weights"),
        (
            "adapter_model.safetensors",
            lambda _: b"",
            r"m\.path: the adapters in .* cannot be loaded: .*header too small",
        ),
        ("adapter_model.safetensors", cut, "cannot be loaded: .*not fully covered"),
        ("adapter_model.safetensors", without_one, r"cannot be loaded: Found missing adapter keys.*lora_B"),
    ],
)
def test_adapters_that_are_damaged_are_one_message(
    tiny_llama_dir: Path,
    char_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    load: Callable[..., Any],
    name: str,
    content: Callable[[Path], bytes | None],
    words: str,
) -> None:
    folder = export_folder(load_causal_lm(adapted(tiny_llama_dir)), char_tokenizer, tmp_path / "a", merge=False)
    damaged = content(folder / name)
    (folder / name).unlink()
    if damaged is not None:
        (folder / name).write_bytes(damaged)
    with pytest.raises(UserError, match=words):
        load(Backbone(str(folder)), where="m")


def test_adapters_of_another_rank_than_their_config_says_are_one_message(
    tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = export_folder(load_causal_lm(adapted(tiny_llama_dir)), char_tokenizer, tmp_path / "a", merge=False)
    set_in_config(folder, r=5)
    with pytest.raises(UserError, match=r"cannot be loaded: .*size mismatch"):
        load_causal_lm(Backbone(str(folder)))


@pytest.mark.parametrize("task", ["CAUSAL_LM", None])
def test_a_scalar_model_on_a_language_models_adapters_has_them_and_a_head_that_is_trained_and_saved(
    tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, task: str | None
) -> None:
    policy: Any = load_causal_lm(adapted(tiny_llama_dir))
    train_a_little(policy)
    folder = export_folder(policy, char_tokenizer, tmp_path / "policy", merge=False)
    set_in_config(folder, task_type=task)  # None is what peft writes of a model it was not told the task of
    model = load_scalar_model(Backbone(str(folder)))
    with torch.no_grad():
        hidden = unwrapped(policy).base_model(IDS).last_hidden_state[:, -1]
        torch.testing.assert_close(model.score(IDS, MASK), model.head(hidden)[:, 0])
    train_a_little(model)
    assert not {name for name, p in model.named_parameters() if p.requires_grad} & frozen_state_names(model)
    again = export_folder(model, char_tokenizer, tmp_path / "reward", merge=False)
    with torch.no_grad():
        found = load_scalar_model(Backbone(str(again)), require_head=True).score(IDS, MASK)
        torch.testing.assert_close(found, model.score(IDS, MASK))
    with pytest.raises(UserError, match=r"policy\.path: .*is a reward model \(adapters with a scalar head\)"):
        load_causal_lm(Backbone(str(again)), "policy")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("peft_type", "IA3"),
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "lora_only"),
        ("trainable_token_indices", [5, 6]),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("alora_invocation_tokens", [50]),
        ("kasa_config", {"beta": 1.0}),
        ("init_lora_weights", "pissa"),
    ],
)
def test_adapters_that_are_not_plain_lora_are_refused(
    tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, option: str, value: Any
) -> None:
    folder = export_folder(load_causal_lm(adapted(tiny_llama_dir)), char_tokenizer, tmp_path / "a", merge=False)
    set_in_config(folder, **{option: value})
    with pytest.raises(UserError, match=rf"policy\.path: .*than plain LoRA: {option} is [\s\S]*merge them with peft"):
        load_causal_lm(Backbone(str(folder)), "policy")


def test_what_is_trained_is_never_left_out_of_a_checkpoint(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(adapted(tiny_llama_dir))
    norm = next(name for name in frozen_state_names(model) if name.endswith("model.norm.weight"))
    model.get_parameter(norm).requires_grad_(True)
    assert norm not in frozen_state_names(model)


def test_a_checkpoint_can_leave_the_frozen_trunk_out(tiny_llama_dir: Path) -> None:
    model = load_scalar_model(adapted(tiny_llama_dir))
    model.set_shift(3.0)
    train_a_little(model)
    names = frozen_state_names(model)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in names}
    assert "shift" in kept
    assert sum(t.numel() for t in kept.values()) < 0.3 * sum(p.numel() for p in model.parameters())
    again = load_scalar_model(adapted(tiny_llama_dir))
    missing, unexpected = again.load_state_dict(kept, strict=False)
    assert set(missing) == names
    assert not unexpected
    with torch.no_grad():
        torch.testing.assert_close(again.score(IDS, MASK), model.score(IDS, MASK), rtol=0, atol=0)
    assert not frozen_state_names(load_scalar_model(Backbone(str(tiny_llama_dir))))


@needs_bitsandbytes
@pytest.mark.parametrize(("quantization", "bound"), [("nf4", 1e-5), ("int8", 0.05)])
def test_a_quantised_trunk_trains_and_merges_into_what_was_trained(
    tmp_path: Path, char_tokenizer: PreTrainedTokenizerFast, quantization: Any, bound: float
) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS, pad_token_id=PAD_ID, bos_token_id=None, eos_token_id=EOS_ID,
    )  # fmt: skip
    folder = save_tiny_model(config, tmp_path / "trunk", char_tokenizer)
    torch.manual_seed(0)
    model = load_scalar_model(adapted(folder, quantization=quantization))
    packed = [p for p in model.parameters() if p.dtype in (torch.uint8, torch.int8)]
    assert len(packed) == 14  # seven layers of each of two blocks; the head is not among them
    train_a_little(model)
    model.set_shift(0.25)
    # In training mode: at evaluation bitsandbytes takes another kernel on CPU, of 16 bits.
    scores = model.score(IDS, MASK)
    scores.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    merged = load_scalar_model(Backbone(str(export_folder(model, char_tokenizer, tmp_path / "merged"))))
    # int8 also rounds activations in its forward pass, which merged weights do not.
    torch.testing.assert_close(merged.score(IDS, MASK), scores, rtol=0, atol=bound)
    plain = load_scalar_model(Backbone(str(folder)))
    plain.load_state_dict({f"backbone.{k}": v for k, v in plain_state_dict(model.backbone).items()}, strict=False)
    assert not any("quant" in name or "absmax" in name for name in plain_state_dict(model.backbone))


@needs_bitsandbytes
def test_gradients_through_a_quantised_trunk_are_the_same_after_a_pass_in_evaluation_mode(
    tmp_path: Path, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS, pad_token_id=PAD_ID,
    )  # fmt: skip
    folder = save_tiny_model(config, tmp_path / "trunk", char_tokenizer)
    model = load_causal_lm(adapted(folder, quantization="nf4"))
    train_a_little(model)

    def gradient() -> Tensor:
        model.zero_grad()
        model(input_ids=IDS, use_cache=False).logits.square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    before = gradient()
    model.eval()
    evaluated = logits(model)
    model.train()
    torch.testing.assert_close(logits(model), evaluated, rtol=0, atol=0)
    torch.testing.assert_close(gradient(), before, rtol=0, atol=0)


def test_without_bitsandbytes_its_extra_is_told(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        load_causal_lm(adapted(tiny_llama_dir, quantization="nf4"))
    assert "pip install 'instructlit[8bit]'" in (explain(caught.value) or "")


@needs_bitsandbytes
def test_a_quantised_model_without_adapters_is_frozen(tiny_llama_dir: Path) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir), quantization="nf4"))
    assert not any(p.requires_grad for p in model.parameters())
    assert unwrapped(model) is model
