"""The word-level tokenizer of the world and the config of the untrained model, written as a Hugging Face folder."""

import json
import re
from functools import lru_cache
from pathlib import Path

from instructlit.world import constraints, corpus, lexicon, prompts
from instructlit.world.facts import RELATIONS
from instructlit.world.tasks import TASKS
from instructlit.world.tasks.generation import LINES, OPENINGS

SPECIAL = ("<pad>", "<eos>", "<unk>")
PAD, EOS, UNK = SPECIAL
_SLOT = re.compile(r"{\w*}")

ANSWER_TEXT = (
    ". , : ? ! a an the it is are was i am my you your do not know by with at to and or of in on "
    "dear yours sorry glad great hear that hello please could would like thanks indeed once today well now "
    "ran lived met ate bought saw found gave has went then been made help will let fix "
    "buy try our for what go away shame on people someone should think wrong yes no "
)


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Every word of the world with its id, the same for all seeds; the special tokens come first."""
    texts = [wording for task in TASKS.values() for wording in (*task.wordings, task.cue)]
    texts += [constraints.phrase((name, v)) for name, values in constraints.VALUES.items() for v in values]
    texts += [text for r in RELATIONS for text in (*r.statements, *r.questions)]
    texts += [*LINES.values(), *OPENINGS, prompts.PREFIX, prompts.RESPECTFUL, *corpus.CORPUS_PHRASES]
    words = [word for text in texts for word in _SLOT.sub(" ", text).split()]
    words += [part for members in lexicon.CATEGORIES.values() for word in members for part in word.split()]
    words += [w for row in lexicon.RHYMES for w in row] + list(lexicon.PASTS.values()) + list(lexicon.CAPITALS.values())
    words += [*lexicon.PRAISE, *lexicon.KIND_WORDS, *lexicon.KIND_NOUNS, *lexicon.RUDE_WORDS, *lexicon.VIOLENT_WORDS]
    words += [*lexicon.OPPOSITES, *ANSWER_TEXT.split()]
    ordered = [*SPECIAL, *sorted(set(words))]
    return {word: i for i, word in enumerate(ordered)}


def model_config() -> dict:
    """The config of the tiny Llama that is pretrained on the corpus, about 0.85 million parameters."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary()),
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "initializer_range": 0.06,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "rope_theta": 1000.0,
        "bos_token_id": None,
        "eos_token_id": vocabulary()[EOS],
        "pad_token_id": vocabulary()[PAD],
    }


def write_untrained(folder: Path) -> None:
    """Write `config.json`, `tokenizer.json` and `tokenizer_config.json`: a model folder without weights."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNK))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    marks = pre_tokenizers.Punctuation(behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])  # type: ignore[list-item]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        "padding_side": "right",
    }
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "config.json", model_config())


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
