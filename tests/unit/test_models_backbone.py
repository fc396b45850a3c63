"""What is loaded, and what is refused with which words."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EOS_ID, MAX_POSITIONS, PAD_ID, VOCABULARY, save_tiny_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    BltConfig,
    CodeGenConfig,
    FalconConfig,
    Gemma3Config,
    GitConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PhimoeConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RwkvConfig,
    Starcoder2Config,
    T5Config,
    XLNetConfig,
)

from instructlit.data.tokenizers import load_tokenizer
from instructlit.errors import UserError
from instructlit.evaluation.language_model import LanguageModel
from instructlit.memory.outline import outline
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.compatibility import check_positions, check_vocabulary
from instructlit.models.dropout import configure_dropout, disable_dropout, dropout_fields
from instructlit.models.export import export_folder


def copied(folder: Path, to: Path, **config: Any) -> Path:
    """A copy of a model folder with some of its config changed."""
    shutil.copytree(folder, to)
    known = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**known, **config}))
    return to


def backbone(path: Path | str, **options: Any) -> Backbone:
    return Backbone(str(path), **options)


# -- dropout -------------------------------------------------------------------------------------------------------


def test_dropout_is_off_unless_asked_for(tiny_gpt2_dir: Path) -> None:
    model = load_causal_lm(backbone(tiny_gpt2_dir))  # GPT-2's own config says 0.1
    assert model.training
    ids = torch.arange(40, 60)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_residual_dropout_goes_where_the_paper_has_it(tiny_gpt2_dir: Path) -> None:
    model = load_causal_lm(backbone(tiny_gpt2_dir, dropout=0.2))
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    residual = {name for name in rates if name.endswith(("resid_dropout", "mlp.dropout"))}
    assert len(residual) == 4  # two layers, attention and MLP
    assert all(rates[name] == (0.2 if name in residual else 0.0) for name in rates)
    ids = torch.arange(40, 60)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("config", "residual"), [(GPT2Config(), "resid_pdrop"), (GPTNeoXConfig(), "hidden_dropout")], ids=["gpt2", "neox"]
)
def test_each_architectures_own_name_for_it(config: Any, residual: str) -> None:
    configure_dropout(config, 0.2, "model.dropout")
    assert {name: getattr(config, name) for name in dropout_fields(config) if getattr(config, name)} == {residual: 0.2}


def test_an_architecture_without_residual_dropout_says_what_it_has() -> None:
    with pytest.raises(UserError, match=r"model\.dropout: .*llama has no residual dropout.*attention_dropout"):
        configure_dropout(LlamaConfig(), 0.2, "model.dropout")
    with pytest.raises(UserError, match=r"dropout is 1\.5"):
        configure_dropout(GPT2Config(), 1.5, "model.dropout")


def test_disable_dropout_reaches_every_kind(tiny_gpt2_dir: Path) -> None:
    model = load_causal_lm(backbone(tiny_gpt2_dir, dropout=0.5))

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_dropout = 0.3  # how Llama's attention holds its rate

    model.extra = Attention()  # type: ignore[assignment]
    disable_dropout(model)
    ids = torch.arange(40, 60)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert model.extra.attention_dropout == 0.0


@pytest.mark.parametrize("kind", [FalconConfig, Starcoder2Config])
def test_disable_dropout_reaches_rates_that_a_forward_looks_up(kind: type[Any]) -> None:
    """Falcon asks its config at every forward; Starcoder 2 has a name of its own for the rate."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = kind(vocab_size=64, bos_token_id=None, eos_token_id=2, **shape)
    configure_dropout(config, 0.5, "model.dropout")
    model, ids = AutoModelForCausalLM.from_config(config).train(), torch.arange(40, 60)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


EXPERTS = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 4, "router_jitter_noise": 0.1}
SMALL = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    "config",
    [MixtralConfig(**SMALL, **EXPERTS), PhimoeConfig(**SMALL, **EXPERTS, input_jitter_noise=0.1)],
    ids=["noise", "draws"],
)
def test_experts_are_chosen_in_training_as_in_evaluation(config: PretrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    model = load_causal_lm(backbone(tmp_path, random_init=True))
    ids = torch.arange(40, 60)[None]
    training = model(ids).logits
    assert torch.equal(training, model.eval()(ids).logits)
    assert torch.equal(training, model.train()(ids).logits)


# -- weights -------------------------------------------------------------------------------------------------------


def test_a_pass_in_evaluation_changes_no_weight(tmp_path: Path) -> None:
    RwkvConfig(vocab_size=128, hidden_size=32, num_hidden_layers=3, rescale_every=2).save_pretrained(tmp_path)
    model = load_causal_lm(backbone(tmp_path, random_init=True))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    training = model(torch.arange(40, 60)[None]).logits
    torch.testing.assert_close(model.eval()(torch.arange(40, 60)[None]).logits, training)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_random_init_needs_no_weights_and_follows_the_seed(tiny_llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_llama_dir / "config.json").read_text())

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return load_causal_lm(backbone(tmp_path, random_init=True)).get_parameter("model.layers.1.mlp.up_proj.weight")

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_a_folder_without_weights_names_the_option(tiny_llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_llama_dir / "config.json").read_text())
    with pytest.raises(UserError, match=r"policy\.path: .*no weights[\s\S]*random_init: true"):
        load_causal_lm(backbone(tmp_path), "policy")


def test_a_weight_that_is_missing_is_never_drawn_at_random(tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = copied(tiny_llama_dir, tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in (load_causal_lm, load_scalar_model):
        with pytest.raises(UserError, match=r"lacks .* model's weights.*layers\.1\.mlp\.up_proj"):
            load(backbone(folder))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_the_one_asked_for(tiny_llama_dir: Path, dtype: Any) -> None:
    model = load_causal_lm(backbone(tiny_llama_dir, dtype=dtype))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_an_architecture_may_know_of_no_padding(tmp_path: Path) -> None:
    config = CodeGenConfig(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=4, rotary_dim=4)
    config.save_pretrained(tmp_path)
    assert not hasattr(config, "pad_token_id")
    assert load_causal_lm(backbone(tmp_path, random_init=True))


def test_an_architecture_without_sdpa_runs_with_eager_attention_unless_one_is_named(
    tmp_path: Path, tiny_llama_dir: Path
) -> None:
    BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2).save_pretrained(tmp_path)
    known = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**known, "attn_implementation": "flash_attention_2"}))
    drawn: Any = load_causal_lm(backbone(tmp_path, random_init=True))
    drawn.save_pretrained(tmp_path)
    loaded: Any = load_causal_lm(backbone(tmp_path))
    on_meta: Any = outline(backbone(tmp_path), scalar=False, where="policy")
    assert {model.config._attn_implementation for model in (drawn, loaded, on_meta)} == {"eager"}
    with pytest.raises(UserError, match=r"policy\.attn_implementation: [\s\S]*Bloom[\s\S]*eager"):
        load_causal_lm(backbone(tmp_path, attn_implementation="sdpa"), "policy")
    llama: Any = load_causal_lm(backbone(tiny_llama_dir))
    assert "sdpa" in llama.config._attn_implementation


def test_the_embedding_of_eos_is_trained_where_pad_is_eos(tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = copied(tiny_llama_dir, tmp_path / "m", pad_token_id=EOS_ID)
    model = load_causal_lm(backbone(folder))
    model(torch.tensor([[EOS_ID, 65, 66]])).logits.sum().backward()
    gradient = model.get_parameter("model.embed_tokens.weight").grad
    assert gradient is not None
    assert gradient[EOS_ID].abs().sum() > 0


def test_a_model_that_sees_too_is_read_by_its_config_of_text(
    tmp_path: Path, char_tokenizer: PreTrainedTokenizerFast
) -> None:
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
    text = {"vocab_size": VOCABULARY, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 1, **small}
    text |= {"max_position_embeddings": 64, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID}
    sight = {"num_hidden_layers": 1, "image_size": 8, "patch_size": 4, **small}
    config = Gemma3Config(text_config=text, vision_config=sight, mm_tokens_per_image=4)  # type: ignore[arg-type]
    model: Any = load_causal_lm(backbone(save_tiny_model(config, tmp_path / "m", char_tokenizer)))
    assert model.config.get_text_config().pad_token_id is None, "the embedding of EOS is trained"
    assert LanguageModel(model, char_tokenizer, torch.device("cpu")).room == 64
    exported = load_causal_lm(backbone(export_folder(model, char_tokenizer, tmp_path / "e")))
    assert exported.config.get_text_config().pad_token_id == PAD_ID  # type: ignore[union-attr]


def test_gradient_checkpointing_changes_no_gradient(tiny_llama_dir: Path) -> None:
    gradients, calls = [], []
    for on in (False, True):
        model = load_causal_lm(backbone(tiny_llama_dir, gradient_checkpointing=on))
        model.get_submodule("model.layers.0.mlp").register_forward_pre_hook(lambda *_, on=on: calls.append(on))
        ids = torch.arange(40, 60)[None]
        model(ids, use_cache=False).logits.logsumexp(-1).sum().backward()
        gradients.append(model.get_parameter("model.layers.0.self_attn.q_proj.weight").grad)
    assert calls == [False, True, True]  # computed again in the backward pass
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


# -- scalar models -------------------------------------------------------------------------------------------------


def test_a_new_head_is_drawn_and_said(tiny_llama_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        model = load_scalar_model(backbone(tiny_llama_dir), where="value")
    assert "no scalar head; a new one was initialised" in caplog.text
    assert float(model.shift) == 0.0
    assert model.head.weight.shape == (1, 32)


def test_a_language_model_is_no_reward_model(tiny_llama_dir: Path) -> None:
    with pytest.raises(UserError, match=r"reward\.path: .*no trained scalar head \(LlamaForCausalLM\)"):
        load_scalar_model(backbone(tiny_llama_dir), require_head=True, where="reward")


def test_a_reward_model_is_no_policy(tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = copied(tiny_llama_dir, tmp_path / "m", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UserError, match=r"is a reward model \(LlamaForSequenceClassification\)"):
        load_causal_lm(backbone(folder))


def test_a_classifier_of_three_labels_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    labels = {"0": "a", "1": "b", "2": "c"}
    folder = copied(tiny_llama_dir, tmp_path / "m", architectures=["LlamaForSequenceClassification"], id2label=labels)
    with pytest.raises(UserError, match="classifier of 3 labels"):
        load_scalar_model(backbone(folder))


# -- sources -------------------------------------------------------------------------------------------------------


def test_a_misspelt_folder_gets_the_nearest_name(tiny_llama_dir: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder[\s\S]*did you mean .*tiny_llama\?"):
        load_causal_lm(backbone(tiny_llama_dir.parent / "tiny_lama"))


def test_a_hub_name_that_cannot_be_had_is_one_message() -> None:
    with pytest.raises(
        UserError, match=r"model\.path: nobody/no-such-model is not a local folder, and the .*Hub did not"
    ):
        load_causal_lm(backbone("nobody/no-such-model"))


def test_a_checkpoint_file_points_to_export(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    file.touch()
    with pytest.raises(UserError, match="instructlit export"):
        load_causal_lm(backbone(file))


def test_a_folder_around_the_folder_names_the_inner_one(tiny_llama_dir: Path, tmp_path: Path) -> None:
    copied(tiny_llama_dir, tmp_path / "inner")
    with pytest.raises(UserError, match=r"no config\.json[\s\S]*inner"):
        load_causal_lm(backbone(tmp_path))


def test_code_that_comes_with_a_model_is_not_run_unasked(tmp_path: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match=r"model\.trust_remote_code: .*its own code"):
        load_causal_lm(backbone(tmp_path))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (T5Config(d_model=8, num_layers=1, num_heads=1, d_ff=8).to_dict(), "t5, which is not a causal language model"),
        ({"model_type": "never_heard_of"}, "does not know the architecture"),
        (BertConfig().to_dict(), "bert, in which tokens attend to those that follow"),
        (XLNetConfig().to_dict(), "xlnet, in which tokens attend to those that follow"),
        (GitConfig().to_dict(), "git, which captions images"),
        (BltConfig().to_dict(), "blt, which cuts its input into patches"),
    ],
    ids=["encoder-decoder", "unknown", "encoder", "permuted", "captions", "patches"],
)
def test_what_is_no_language_model_is_refused(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=words):
        load_causal_lm(backbone(tmp_path))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama", "hidden_size": "wide"}, "cannot be loaded"),
        ({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1, "activation_function": "nope"}, "nope"),
    ],
    ids=["config", "model"],
)
def test_a_config_that_transformers_fails_on_is_one_message(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"(?s)model\.path: .*{words}"):
        load_causal_lm(backbone(tmp_path, random_init=True))


def test_weights_that_are_no_weights_are_one_message(tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = copied(tiny_llama_dir, tmp_path / "m")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.path: .*cannot be loaded"):
        load_causal_lm(backbone(folder))


def test_weights_of_another_shape_are_one_message(tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = copied(tiny_llama_dir, tmp_path / "m", intermediate_size=48)
    with pytest.raises(
        UserError, match=r"model\.path: .*cannot be loaded: .*do not have the shapes that its config\.json says"
    ):
        load_causal_lm(backbone(folder))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pytorch_model.bin", b"PK" + bytes(100), "damaged, or holds code as well as weights"),
        ("pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\n", "damaged, or holds code"),
        ("model.safetensors.index.json", b"{}", "KeyError: 'weight_map'"),
        ("model.safetensors.index.json", b'{"weight_map": []}', "AttributeError: "),
    ],
)
def test_files_of_weights_that_hold_something_else_are_one_message(
    tiny_llama_dir: Path, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    folder = copied(tiny_llama_dir, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"model\.path: .*cannot be loaded: .*{words}"):
        load_causal_lm(backbone(folder))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"hidden_act": "relyou"}, "KeyError: 'relyou'"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "KeyError: 'spiral'"),
        ({"pad_token_id": 999}, "Padding_idx"),
    ],
)
def test_a_config_of_which_no_model_can_be_made_is_one_message(
    tiny_llama_dir: Path, tmp_path: Path, option: dict[str, Any], words: str
) -> None:
    folder = copied(tiny_llama_dir, tmp_path / "m", **option)
    with pytest.raises(UserError, match=rf"model\.path: .*cannot be loaded: .*{words}"):
        load_causal_lm(backbone(folder))


def test_a_config_that_is_null_is_one_message(tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = copied(tiny_llama_dir, tmp_path / "m")
    (folder / "config.json").write_text("null")
    with pytest.raises(UserError, match=r"model\.path: .*cannot be loaded: TypeError"):
        load_causal_lm(backbone(folder))


@pytest.mark.parametrize(
    ("size", "found"),
    [("num_hidden_layers", -1), ("num_hidden_layers", 0), ("hidden_size", 0), ("vocab_size", -1)],
)
def test_a_size_that_no_model_has_is_told_with_its_field(
    tiny_llama_dir: Path, tmp_path: Path, size: str, found: int
) -> None:
    folder = copied(tiny_llama_dir, tmp_path / "m", **{size: found})
    with pytest.raises(UserError, match=rf"^model\.path: {size} is {found} in the config\.json of .*/m\n"):
        load_causal_lm(backbone(folder))


def test_a_size_is_told_by_the_name_that_the_file_has_for_it(tiny_gpt2_dir: Path, tmp_path: Path) -> None:
    folder = copied(tiny_gpt2_dir, tmp_path / "m", n_layer=0)
    with pytest.raises(UserError, match=r"^model\.path: n_layer is 0 "):
        load_causal_lm(backbone(folder))


def test_weights_that_the_model_has_no_place_for_are_told(
    tiny_llama_dir: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    load_causal_lm(backbone(tiny_llama_dir))
    load_scalar_model(backbone(tiny_llama_dir))  # has no place for a language model's head, and should not
    assert not recwarn.list
    folder = copied(tiny_llama_dir, tmp_path / "m", num_hidden_layers=1)
    told = r"^model\.path: .*/m holds 9 weights that its config\.json does not provide for, such as model\.layers\.1\."
    for load in (load_causal_lm, load_scalar_model):
        with pytest.warns(UserWarning, match=told):
            load(backbone(folder))


def test_a_revision_of_a_folder_is_refused(tiny_llama_dir: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.revision: found v2, but .* is a local folder and has no revisions\n"):
        load_causal_lm(backbone(tiny_llama_dir, revision="v2"))
    with pytest.raises(UserError, match=r"^tokenizer_revision: found v2, but "):
        load_tokenizer(str(tiny_llama_dir), revision="v2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "fp16"}, r"model\.dtype: dtype is 'fp16'"),
        ({"quantization": "int4"}, r"model\.quantization: .*'int4'"),
        ({"random_init": True, "quantization": "nf4"}, "would freeze random weights"),
        ({"attn_implementation": "fast"}, r"model\.attn_implementation: "),
    ],
)
def test_options_that_cannot_be(tiny_llama_dir: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_causal_lm(backbone(tiny_llama_dir, **options))


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(
    tiny_llama_dir: Path, char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    assert check_vocabulary(backbone(tiny_llama_dir), char_tokenizer) == 0
    config = LlamaConfig(
        vocab_size=VOCABULARY - 1,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=PAD_ID,
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=f"ids up to {VOCABULARY - 1}, but the model's embedding has {VOCABULARY - 1} rows"
    ):
        check_vocabulary(backbone(tmp_path, random_init=True), char_tokenizer)
    with pytest.raises(UserError, match="ids up to"):
        check_vocabulary(backbone(tmp_path, random_init=True), char_tokenizer, added=False)
    wider = copy.deepcopy(char_tokenizer)
    wider.add_tokens(["<image>"])
    with pytest.raises(UserError, match="and so none for '<image>'"):
        check_vocabulary(backbone(tiny_llama_dir), wider)
    assert check_vocabulary(backbone(tiny_llama_dir), wider, added=False) == 0


def test_rows_beyond_a_table_of_positions_are_refused_and_beyond_computed_ones_warned_of(
    tiny_gpt2_dir: Path, tiny_llama_dir: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for model in (tiny_gpt2_dir, tiny_llama_dir):
        check_positions(backbone(model), {"data.max_length": MAX_POSITIONS})
    assert not recwarn.list
    message = f"^data.max_length: rows may have {MAX_POSITIONS + 1} tokens, but policy .* has {MAX_POSITIONS} positions"
    with pytest.raises(UserError, match=message):
        check_positions(backbone(tiny_gpt2_dir), {"data.max_length": MAX_POSITIONS + 1}, "policy")
    with pytest.warns(UserWarning, match=message):
        check_positions(backbone(tiny_llama_dir), {"data.max_length": MAX_POSITIONS + 1}, "policy")
