"""A reward model with another tokenizer than the policy scores the text as if it had been given it; vocabularies."""

import json
from pathlib import Path

import pytest
import torch
from conftest import EOS_ID, MAX_POSITIONS, make_char_tokenizer
from stage_helpers import (
    FixedBatches,
    Recorder,
    ppo_module,
    prompt_batch,
    reward_module,
    sft_module,
    token_batch,
    trainer,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instructlit.data import load_tokenizer
from instructlit.data.chat import TURNS
from instructlit.errors import UserError
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.compatibility import check_vocabulary
from instructlit.models.export import export_folder
from instructlit.rollout import RewardModel
from instructlit.rollout.reward import checked_scores
from instructlit.types import Prompt, Responses

TEXTS = ["red green blue", "one two three", "a cat and a dog", "the answer is seven"] * 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 ids: none means what it means to the character tokenizer, EOS and pad included."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<fill>", "<end>"]
    core.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )  # type: ignore[call-arg]
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<fill>")


def llama(folder: Path, vocabulary: int) -> Path:
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=MAX_POSITIONS, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(5)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["plain", "turns"])
def reward_folder(request, words, tmp_path_factory) -> tuple[Path, PreTrainedTokenizerFast]:
    """A reward model of that tokenizer, with and without a chat template."""
    folder = tmp_path_factory.mktemp("reward")
    words.chat_template = TURNS if request.param == "turns" else None
    model = load_scalar_model(Backbone(str(llama(folder / "base", len(words)))))
    model.set_shift(0.25)
    return export_folder(model, words, folder / request.param), words


def sampled(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str, bool]]) -> Responses:
    """Responses as the policy's tokenizer writes them; the last field says whether they ended."""
    rows = [[*map(ord, text), *([tokenizer.eos_token_id] if ended else [])] for _, text, ended in pairs]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    prompts = prompt_batch([prompt for prompt, _, _ in pairs])
    return Responses(
        [Prompt(prompt) for prompt, _, _ in pairs], [text.strip() for _, text, _ in pairs],
        prompts.input_ids, prompts.attention_mask, ids, mask, torch.tensor([ended for *_, ended in pairs]),
    )  # fmt: skip


PAIRS = [
    ("Say red: ", "red green", True),
    ("Say one: ", "one two thr", False),
    ("Go on: ", "a cat and a dog; the answer", True),
    ("Say it: ", "", True),
    ("Say: ", "  seven ", True),
]


def direct(folder: Path, words: PreTrainedTokenizerFast, prompt: str, text: str, ended: bool) -> float:
    """The score of one text by itself, rendered and encoded by transformers."""
    whole = prompt + text
    if words.chat_template:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        whole = str(words.apply_chat_template(turns, tokenize=False)).removesuffix("<end>")
    ids = torch.tensor([words(whole, add_special_tokens=False)["input_ids"] + ([words.eos_token_id] if ended else [])])
    model = load_scalar_model(Backbone(str(folder))).eval()
    with torch.no_grad():
        return float(model.score(ids, torch.ones_like(ids)))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_scores_are_those_of_the_text(reward_folder, char_tokenizer, caplog, batch_size):
    folder, words = reward_folder
    reward = RewardModel(Backbone(str(folder)), batch_size)
    reward.prepare(CPU, char_tokenizer)
    with caplog.at_level("INFO"):
        scores, again = (checked_scores(reward, sampled(char_tokenizer, PAIRS)) for _ in range(2))
    assert torch.equal(scores, again)
    expected = [direct(folder, words, prompt, text.strip(), ended) for prompt, text, ended in PAIRS]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=0)
    assert len({round(score, 4) for score in expected}) == len(expected), "the scores do not tell the texts apart"
    told = [record.message for record in caplog.records if "has another tokenizer than the policy" in record.message]
    assert len(told) == 1
    assert f"the {len(PAIRS)} responses" in told[0]


def test_with_as_many_ids_of_other_meaning_it_reads_the_text(tmp_path, char_tokenizer):
    core = json.loads(char_tokenizer.backend_tokenizer.to_str())
    core["model"]["vocab"] |= {"a": ord("b"), "b": ord("a")}
    other = Tokenizer.from_str(json.dumps(core))
    # padding is EOS, which still counts where a text ends
    swapped = PreTrainedTokenizerFast(tokenizer_object=other, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")
    model = load_scalar_model(Backbone(str(llama(tmp_path / "base", 128))))
    folder = export_folder(model, swapped, tmp_path / "reward")
    reward = RewardModel(Backbone(str(folder)))
    reward.prepare(CPU, char_tokenizer)
    assert reward.reads_text
    texts = ("abb", "abbabb")
    found = checked_scores(reward, sampled(char_tokenizer, [("say ", text, True) for text in texts])).tolist()
    assert found == pytest.approx([direct(folder, swapped, "say ", text, ended=True) for text in texts], abs=1e-5)


def test_with_another_chat_template_or_eos_it_reads_what_it_was_trained_on(tmp_path, char_tokenizer):
    """Not the policy's layout, though the ids mean the same to both."""
    own = make_char_tokenizer()
    own.chat_template = TURNS
    model = load_scalar_model(Backbone(str(llama(tmp_path / "base", 128)))).eval()
    folder = export_folder(model, own, tmp_path / "reward")
    ids = torch.tensor([[*map(ord, "User:\nab\n\nAssistant:\ncd"), EOS_ID]])
    expected = model.score(ids, torch.ones_like(ids)).item()
    other_eos = make_char_tokenizer()
    other_eos.chat_template, other_eos.eos_token = TURNS, "~"
    for policy in (char_tokenizer, other_eos):
        reward = RewardModel(Backbone(str(folder)))
        reward.prepare(CPU, policy)
        assert checked_scores(reward, sampled(policy, [("ab", "cd", True)])).item() == pytest.approx(expected, abs=1e-6)
        assert reward.reads_text
    reward = RewardModel(Backbone(str(folder)))
    reward.prepare(CPU, own)
    assert not reward.reads_text


def test_the_template_it_is_said_to_be_trained_with_counts(tmp_path, char_tokenizer):
    model = load_scalar_model(Backbone(str(llama(tmp_path / "base", 128)))).eval()
    reward = RewardModel(Backbone(str(export_folder(model, char_tokenizer, tmp_path / "reward"))), template="turns")
    reward.prepare(CPU, char_tokenizer)
    assert reward.reads_text


@pytest.mark.parametrize("batch_size", [None, 2])
def test_with_the_policys_own_it_scores_the_ids_row_by_row(tmp_path, char_tokenizer, batch_size):
    model = load_scalar_model(Backbone(str(llama(tmp_path / "base", 128)))).eval()
    reward = RewardModel(Backbone(str(export_folder(model, char_tokenizer, tmp_path / "reward"))), batch_size)
    reward.prepare(CPU, char_tokenizer)
    assert not reward.reads_text
    expected = []
    for prompt, text, ended in PAIRS:  # of lengths that neither rise nor fall
        ids = torch.tensor([[*map(ord, prompt + text), *([char_tokenizer.eos_token_id] if ended else [])]])
        expected.append(model.score(ids, torch.ones_like(ids)).item())
    found = checked_scores(reward, sampled(char_tokenizer, PAIRS))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


def test_ppo_learns_from_it(tmp_path, reward_folder, tiny_llama_dir, char_tokenizer):
    """The self-check passes too."""
    folder, words = reward_folder
    recorder = Recorder()
    module = ppo_module(tiny_llama_dir, reward=RewardModel(Backbone(str(folder))), episodes=4)
    data = FixedBatches(char_tokenizer, [{"prompts": prompt_batch(["ab", "cde", "f", "gh"])}])
    trainer(tmp_path, callbacks=[recorder]).fit(module, datamodule=data)
    rollout = module.last_rollout
    assert rollout is not None
    columns = zip(rollout.prompts, rollout.texts, rollout.ended.tolist(), strict=True)
    expected = [direct(folder, words, str(p.prompt), text, ended) for p, text, ended in columns]
    torch.testing.assert_close(rollout.scores, torch.tensor(expected), atol=1e-5, rtol=0)
    assert recorder.rows[0]["ppo/objective/score"] == pytest.approx(sum(expected) / 4, abs=1e-5)


def test_a_text_longer_than_the_reward_model_is_cut_and_has_no_end(reward_folder, char_tokenizer):
    folder, words = reward_folder
    reward = RewardModel(Backbone(str(folder)), template="plain")
    reward.prepare(CPU, char_tokenizer)
    long = "z" * (MAX_POSITIONS + 50)  # no merge knows it: one id a letter
    (score,) = checked_scores(reward, sampled(char_tokenizer, [("", long, True)])).tolist()
    plain = words.chat_template
    words.chat_template = None
    assert score == pytest.approx(direct(folder, words, "", long[:MAX_POSITIONS], ended=False), abs=1e-5)
    words.chat_template = plain


def data_for(kind: str, tokenizer: PreTrainedTokenizerFast) -> FixedBatches:
    batch = {"prompts": prompt_batch(["a", "b", "c", "d"])} if kind == "ppo" else token_batch([("a", "b")])
    return FixedBatches(tokenizer, [batch])


def module_for(kind: str, folder: Path):
    make = {"sft": sft_module, "reward": reward_module, "ppo": ppo_module}[kind]
    return make(folder)


@pytest.mark.parametrize(
    ("kind", "option"), [("sft", "policy"), ("reward", "model"), ("ppo", "policy")], ids=["sft", "reward", "ppo"]
)
def test_more_ids_than_rows_are_refused_before_the_weights_are_read(tmp_path, char_tokenizer, kind, option):
    folder = llama(tmp_path / "small", 120)
    (folder / "model.safetensors").write_bytes(b"nothing that could be loaded")
    with pytest.raises(UserError) as caught:
        trainer(tmp_path).fit(module_for(kind, folder), datamodule=data_for(kind, char_tokenizer))
    assert caught.value.where == f"model.init_args.{option}"
    assert (
        "the tokenizer has ids up to 127, but the model's embedding has 120 rows, and so none for 'x', 'y'"
        in caught.value.what
    )


def test_the_value_model_and_the_reference_are_looked_at_too(tmp_path, tiny_llama_dir, char_tokenizer):
    small = Backbone(str(llama(tmp_path / "small", 120)))
    for role in ("value", "reference"):
        module = ppo_module(tiny_llama_dir, **{role: small})
        with pytest.raises(UserError, match=rf"model\.init_args\.{role}: .* embedding has 120 rows"):
            trainer(tmp_path).fit(module, datamodule=data_for("ppo", char_tokenizer))


def test_a_reward_model_without_rows_for_its_own_tokenizer(tmp_path, words, char_tokenizer):
    model = load_scalar_model(Backbone(str(llama(tmp_path / "base", 290))))
    folder = export_folder(model, words, tmp_path / "reward")
    with pytest.raises(UserError, match=r"reward\.init_args\.model: the tokenizer has ids up to \d+, .* has 290 rows"):
        RewardModel(Backbone(str(folder))).prepare(CPU, char_tokenizer)


@pytest.mark.parametrize(("rows", "told"), [(128, False), (192, False), (128 + 1024, True)])
def test_rows_to_spare_are_usual_and_said_once_where_they_are_many(tmp_path, char_tokenizer, caplog, rows, told):
    folder = llama(tmp_path / "padded", rows)
    with caplog.at_level("INFO"):
        module = module_for("ppo", folder)
        trainer(tmp_path).fit(module, datamodule=data_for("ppo", char_tokenizer))
    said = [r.message for r in caplog.records if "rows of the model's embedding have no token" in r.message]
    assert [message.partition(" rows")[0] for message in said] == (["model.init_args.policy: 1024"] if told else [])
    assert module.trainer.global_step == 1


def test_a_model_to_whose_own_tokenizer_the_ids_mean_something_else(reward_folder, char_tokenizer):
    """Enough rows, and still every word another: training on that would be silent nonsense."""
    folder, words = reward_folder
    with pytest.raises(UserError, match="which is another token in the tokenizer of"):
        check_vocabulary(Backbone(str(folder)), char_tokenizer)
    assert check_vocabulary(Backbone(str(folder), random_init=True), char_tokenizer) == len(words) - 128
    assert check_vocabulary(Backbone(str(folder)), words) == 0


def test_the_tokenizer_of_a_models_own_folder_is_not_read_once_more(reward_folder, monkeypatch):
    folder, words = reward_folder
    own, read = load_tokenizer(str(folder)), []
    monkeypatch.setattr(
        "instructlit.models.compatibility.AutoTokenizer.from_pretrained", lambda *a, **_: read.append(a)
    )
    assert check_vocabulary(Backbone(str(folder)), own) == 0
    assert not read
    check_vocabulary(Backbone(str(folder)), words)
    assert len(read) == 1, "of a tokenizer from elsewhere it is"
