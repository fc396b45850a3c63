"""Whether a folder holds the required kind of model, from its config alone: what can be refused before weights are
loaded.
"""

from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from instructlit.errors import UserError
from instructlit.models.adapters import check_plain_lora, hold_head
from instructlit.models.dropout import configure_dropout
from instructlit.models.folders import adapter_config, check_source, load_config, trunk_of

if TYPE_CHECKING:
    from instructlit.models.backbone import Backbone

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_SEE_WHAT_FOLLOWS = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation", "cpmant", "xlnet"}
"""Architectures that AutoModelForCausalLM has too, but whose tokens are predicted from those behind them as well: BERT
and its kin (made decoders by their config they would still count positions in ways of their own), and three more."""

_NOT_BY_TEXT = {
    "blt": "cuts its input into patches, which padding before a text shifts",
    "git": "captions images, and decodes as if an image preceded every text",
}
"""Decoders that cannot compute batches of text alone as single texts, and why."""


def check_causal_lm(backbone: "Backbone", where: str = "model") -> PretrainedConfig:
    """The config of a causal language model; what can be refused before its weights are loaded.

    Raises:
        UserError: as `load_causal_lm`, except for missing weights.
    """
    config = checked_config(backbone, where)
    adapters = adapter_config(backbone.path)
    if is_classifier(config) or (adapters is not None and hold_head(adapters)):
        kind = _architecture(config) if adapters is None else "adapters with a scalar head"
        raise UserError(
            f"{backbone.path} is a reward model ({kind})",
            where=f"{where}.path",
            expected="a causal language model",
            fix="name the folder of a base model, an SFT model or a policy",
        )
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.is_encoder_decoder
    if not known and not _is_remote(config):
        raise UserError(
            f"{backbone.path} is of the architecture {config.model_type}, which is not a causal language model",
            where=f"{where}.path",
            expected="a decoder that transformers' AutoModelForCausalLM knows",
        )
    if config.model_type in _SEE_WHAT_FOLLOWS:
        raise UserError(
            f"{backbone.path} is of the architecture {config.model_type}, in which tokens attend to those that follow",
            where=f"{where}.path",
            expected="a decoder, which predicts every token only from those before it",
        )
    if config.model_type in _NOT_BY_TEXT:
        raise UserError(
            f"{backbone.path} is of the architecture {config.model_type}, which {_NOT_BY_TEXT[config.model_type]}",
            where=f"{where}.path",
            expected="a text decoder",
        )
    return config


def check_scalar_model(
    backbone: "Backbone", *, require_head: bool = False, where: str = "model"
) -> tuple[PretrainedConfig, bool]:
    """The config of a reward or value model and whether its head is trained; what can be refused before its weights
    are loaded.

    Raises:
        UserError: as `load_scalar_model`, except for missing weights.
    """
    config = checked_config(backbone, where)
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES and not _is_remote(config):
        raise UserError(
            f"transformers has no sequence classification for the architecture {config.model_type} of {backbone.path}",
            where=f"{where}.path",
            expected="an architecture that AutoModelForSequenceClassification knows",
        )
    if is_classifier(config) and config.num_labels != 1:
        raise UserError(
            f"{backbone.path} is a classifier of {config.num_labels} labels",
            where=f"{where}.path",
            expected="a reward model, which has one label, or a language model",
        )
    adapters = adapter_config(backbone.path)
    trained = is_classifier(config) or (adapters is not None and hold_head(adapters))
    if require_head and not trained:
        raise UserError(
            f"{backbone.path} has no trained scalar head ({_architecture(config)})",
            where=f"{where}.path",
            expected="the folder of a reward model",
            fix="train a reward model from it with the reward stage, and name the folder that this exports",
        )
    return config, trained


def text_part(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a config for the text decoder: all of it, except in a model that also takes images or audio."""
    return config.get_text_config(decoder=True)


def check_trainable(backbone: "Backbone", where: str) -> None:
    """Refuse a quantised model without adapters, in which nothing can be trained, before its weights are loaded.

    Raises:
        UserError: it is one.
    """
    if backbone.quantization and backbone.lora is None and adapter_config(backbone.path) is None:
        raise UserError(
            f"weights in {backbone.quantization} cannot be trained, and they have no adapters",
            where=f"{where}.quantization",
            expected="`lora` as well, or a folder of adapters as `path`",
            fix=f"set {where}.lora.rank, or remove `quantization`",
        )


def checked_config(backbone: "Backbone", where: str, *, weights: bool = True) -> PretrainedConfig:
    """The config of `backbone`'s architecture, or of the trunk its adapters are for, with its dropout set.

    Args:
        backbone: what is to be loaded.
        where: the option that holds it, for messages.
        weights: whether a folder without weights is refused.

    Raises:
        UserError: options that do not go together; no such folder, no config or no weights in it; adapters that are
            not plain LoRA.
    """
    for name, value, known in (
        ("dtype", backbone.dtype, (*DTYPES,)),
        ("quantization", backbone.quantization, (None, "nf4", "int8")),
    ):
        if value not in known:
            expected = " or ".join(str(k) for k in known)
            raise UserError(f"{name} is {value!r}", where=f"{where}.{name}", expected=expected)
    if backbone.random_init and (backbone.quantization or backbone.lora or adapter_config(backbone.path)):
        raise UserError(
            "random_init together with lora, quantization or a folder of adapters would freeze random weights",
            where=where,
            expected="a trained trunk under adapters",
            fix="remove `random_init`, or `lora` and `quantization`, or name the folder of a model",
        )
    check_source(backbone.path, weights=weights and not backbone.random_init, where=f"{where}.path")
    source, adapters = backbone.path, adapter_config(backbone.path)
    if adapters is not None:
        check_plain_lora(adapters, backbone.path, f"{where}.path")
        if backbone.lora is not None:
            raise UserError(
                f"{backbone.path} already holds adapters",
                where=f"{where}.lora",
                expected="no `lora` (its own adapters are trained further), or a merged folder",
                fix="remove `lora`, or export the model again with its adapters merged",
            )
        source = _checked_trunk(backbone.path, where, weights)
    config = load_config(source, revision=backbone.revision, trust_remote_code=backbone.trust_remote_code, where=where)
    text = text_part(config)
    configure_dropout(text, backbone.dropout, f"{where}.dropout")
    pad, eos = (getattr(text, name, None) for name in ("pad_token_id", "eos_token_id"))  # some have neither
    if pad is not None and pad in (eos if isinstance(eos, list) else [eos]):
        text.pad_token_id = None
    if getattr(text, "rescale_every", 0):
        # RWKV would halve weights in their place at its first pass in evaluation, and a model saved then is another.
        text.rescale_every = 0
    return config


def _checked_trunk(path: str, where: str, weights: bool) -> str:
    trunk = trunk_of(path) or ""
    try:
        check_source(trunk, weights=weights, where=f"{where}.path")
    except UserError as error:
        raise UserError(
            f"{path} holds adapters for {trunk or 'an unnamed trunk'}, which cannot be loaded: {error.what}",
            where=f"{where}.path",
            expected="the trunk at the place that adapter_config.json names",
            fix="correct base_model_name_or_path there, or name a merged folder",
        ) from error
    return trunk


def is_classifier(config: PretrainedConfig) -> bool:
    """Whether the weights of a folder with this config have a scalar head, or one of several labels."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def _is_remote(config: PretrainedConfig) -> bool:
    return bool(getattr(config, "auto_map", None))


def _architecture(config: PretrainedConfig) -> str:
    return (config.architectures or [config.model_type])[0]
