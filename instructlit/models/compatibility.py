"""Whether a model fits the tokenizer and the rows of its run, which is known before its weights are loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig

from instructlit.errors import UserError
from instructlit.models.architecture import checked_config, text_part
from instructlit.models.backbone import Backbone


def check_vocabulary(backbone: Backbone, tokenizer: Any, where: str = "model", added: bool = True) -> int:
    """Refuse a tokenizer with ids that the model has no embedding for, before its weights are loaded.

    An embedding with more rows than the tokenizer has ids is common: rows are padded to a round number.

    Args:
        backbone: what is to be loaded.
        tokenizer: the tokenizer.
        where: the option that holds `backbone`, for messages.
        added: whether tokens that were added to the vocabulary need a row too: a published model may lack one for a
            token that no text has, such as that of an image, and is read as it is.

    Returns:
        The number of spare rows; 0 if the config does not tell.

    Raises:
        UserError: the largest id of the tokenizer lies outside the model's embedding; or the model's folder comes with
            a tokenizer for which most ids mean something else.
    """
    rows = getattr(text_part(checked_config(backbone, where)), "vocab_size", None)
    if rows is None:
        return 0
    vocabulary = tokenizer.get_vocab()
    if not added:
        own = tokenizer.get_added_vocab()
        vocabulary = {token: i for token, i in vocabulary.items() if token not in own}
    largest = max(vocabulary.values())
    if largest >= rows:
        outside = sorted((token for token, i in vocabulary.items() if i >= rows), key=vocabulary.__getitem__)
        raise UserError(
            f"the tokenizer has ids up to {largest}, but the model's embedding has {rows} rows, and so none for "
            f"{', '.join(map(repr, outside[:3]))}{', …' if len(outside) > 3 else ''}",
            where=where,
            expected="the tokenizer the model was trained with",
            fix=f"name the model's own tokenizer ({backbone.path}), or one whose ids the embedding holds",
        )
    if not backbone.random_init and (differing := _other_meaning(backbone, tokenizer)) is not None:
        raise UserError(
            f"the tokenizer's id of {differing!r} is {vocabulary[differing]}, which is another token in the "
            f"tokenizer of {backbone.path}",
            where=where,
            expected="the tokenizer the model was trained with",
            fix="name the model's own tokenizer in data, or a model that was trained with this one",
        )
    return rows - largest - 1


def _other_meaning(backbone: Backbone, tokenizer: Any) -> str | None:
    """A token with another id in the folder's own tokenizer, if that is so for most tokens that both have."""
    folder = Path(backbone.path).expanduser()
    if not (folder / "tokenizer_config.json").is_file() or getattr(tokenizer, "name_or_path", "") == str(folder):
        return None
    try:
        own = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=backbone.trust_remote_code).get_vocab()
    except Exception:  # of many kinds; whether the run's own tokenizer can be loaded is found out elsewhere
        return None
    vocabulary = tokenizer.get_vocab()
    shared = own.keys() & vocabulary.keys()
    differing = [token for token in shared if own[token] != vocabulary[token]]
    return min(differing, key=vocabulary.__getitem__) if len(differing) > len(shared) / 2 else None


def positions(config: PretrainedConfig) -> int | None:
    """Most tokens of a row that an architecture was made for; None where its config does not tell."""
    return getattr(text_part(config), "max_position_embeddings", None)


def check_positions(backbone: Backbone, lengths: Mapping[str, int], where: str = "model") -> None:
    """Refuse rows longer than a model with a table of positions can read, before its weights are loaded; warn where
    positions are computed (RoPE, ALiBi), and positions beyond are only ones that it was not trained on.

    Args:
        backbone: what is to be loaded.
        lengths: most tokens of a row, by the options that bound it.
        where: the option that holds `backbone`, for messages.

    Raises:
        UserError: a row can be longer than such a table.
    """
    config = checked_config(backbone, where)
    most = positions(config)
    computed = any(name.startswith(("rope", "rotary", "alibi")) for name in text_part(config).to_dict())
    for options, length in lengths.items():
        if most is None or length <= most:
            continue
        fault = UserError(
            f"rows may have {length} tokens, but {where} ({backbone.path}) has {most} positions",
            where=options,
            expected=f"together at most {most}" if " + " in options else f"at most {most}",
            fix=f"lower {options.replace(' + ', ' or ')}, or name a model with more positions",
        )
        if not computed:
            raise fault
        from lightning.pytorch.utilities import rank_zero_warn  # 75 MiB that most readers of a model do not need

        rank_zero_warn(f"{fault.where}: {fault.what}; beyond them it was not trained")
