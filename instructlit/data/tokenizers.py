"""Loads a tokenizer and rejects one that could only be used by guessing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from instructlit.data.hub import HUB_NAME, check_revision, reachable
from instructlit.errors import UserError, first_line

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(
    path: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    padding_token: str | None = None,
    *,
    pad_with_eos: bool = False,
) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder or on the Hub, with an EOS and a pad token.

    Args:
        path: the folder or the name.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: whether code that comes with it may run.
        padding_token: the token to pad with.
        pad_with_eos: whether EOS pads if there is no other pad token, where a model is used as it is and nobody has
            a say in its padding; masks come from lengths.

    Raises:
        UserError: if there is no such folder or name, a revision is given for a folder, or the tokenizer has no
            character offsets, no EOS or no pad token.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        check_revision(revision, folder, "tokenizer_revision")
        if not any((folder / name).is_file() for name in _FILES):
            raise UserError(
                f"no tokenizer in {folder}",
                where="tokenizer",
                expected=f"one of {', '.join(_FILES)} in that folder",
                fix="point `tokenizer` at the folder of a model that was saved with its tokenizer",
            )
        place = str(folder)
    elif not HUB_NAME.fullmatch(path) or folder.exists():
        kind = "a file" if folder.is_file() else "missing"
        raise UserError(f"{path} is {kind}", where="tokenizer", expected="a folder, or a name on the Hugging Face Hub")
    else:
        place = reachable(path, revision, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds of exceptions here; each of them means "not loadable"
        raise UserError(
            f"{path} could not be loaded: {first_line(error)}",
            where="tokenizer",
            expected="a folder with a tokenizer, or a name on the Hugging Face Hub",
        ) from error
    return checked_tokenizer(tokenizer, path, padding_token, pad_with_eos)


def checked_tokenizer(
    tokenizer: Any, name: str, padding_token: str | None = None, pad_with_eos: bool = False
) -> PreTrainedTokenizerFast:
    """`tokenizer` itself, with a pad token as `load_tokenizer` says; an error where offsets, EOS or it are missing."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{name} has no fast (tokenizers library) version, so it cannot give the character offsets of tokens",
            where="tokenizer",
            expected="a tokenizer saved with tokenizer.json; the loss mask comes from character offsets",
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{name} has no EOS token",
            where="tokenizer",
            expected="an `eos_token` in tokenizer_config.json; without one no response could end",
        )
    if padding_token is not None:
        if padding_token not in tokenizer.get_vocab():
            raise UserError(
                f"{padding_token!r} is not a token of {name}",
                where="padding_token",
                expected="a token that is already in the vocabulary, so that no embedding has to be added",
                fix=f'use its EOS: --data.padding_token "{tokenizer.eos_token}"',
            )
        tokenizer.pad_token = padding_token
    if tokenizer.pad_token_id is None and pad_with_eos:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"{name} has no pad token",
            where="padding_token",
            expected="a token to fill up the shorter rows of a batch",
            fix=f'set one: --data.padding_token "{tokenizer.eos_token}" is its EOS, which is safe here, as masks come'
            " from lengths; a reserved token of the vocabulary is better if other programs will use the model",
        )
    return tokenizer


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of sampled ids without special tokens, and with every space: a tokenizer may be set to take those before
    punctuation away."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
