"""The README.md of an exported folder."""

from typing import Any

_TITLES = {
    "pretrain": "a base language model",
    "sft": "a language model fine-tuned on demonstrations (SFT)",
    "reward": "a reward model trained on ranked comparisons",
    "ppo": "a policy trained by PPO against a reward model",
}


def model_card(name: str, record: dict[str, Any], *, eos_is_pad: bool, adapters: bool) -> str:
    """Markdown with a YAML head: what the model is, how to load it, what it was made from.

    Args:
        name: title of the card.
        record: the folder's record (`lineage.make_record`), with `kind`.
        eos_is_pad: the tokenizer pads with eos.
        adapters: the folder holds adapters for a trunk.
    """
    scalar = record.get("kind") == "scalar"
    stage = record.get("stage", "unknown")
    tag = "text-classification" if scalar else "text-generation"
    lines = [
        "---",
        f"library_name: {'peft' if adapters else 'transformers'}",
        f"pipeline_tag: {tag}",
        f"tags: [instructlit, {stage}]",
        "---",
        f"# {name}",
        "",
        f"This is {_TITLES.get(stage, 'a model')}, written by instructlit.",
        "",
        "```python",
        *_loading(scalar, adapters),
        "```",
        "",
    ]
    if scalar:
        lines += _scores(float(record.get("reward_shift", 0.0)), eos_is_pad)
    lines += _origin(record)
    return "\n".join(lines).rstrip() + "\n"


def _loading(scalar: bool, adapters: bool) -> list[str]:
    kind = "SequenceClassification" if scalar else "CausalLM"
    auto, home = (f"AutoPeftModelFor{kind}", "peft") if adapters else (f"AutoModelFor{kind}", "transformers")
    labels = ", num_labels=1" if adapters and scalar else ""
    return [
        *([f"from {home} import {auto}", "from transformers import AutoTokenizer"] if adapters else []),
        *([] if adapters else [f"from transformers import {auto}, AutoTokenizer"]),
        "",
        f'model = {auto}.from_pretrained("FOLDER"{labels})',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
    ]


def _scores(shift: float, eos_is_pad: bool) -> list[str]:
    shifted = [
        f"The score of a text is the number transformers computes plus the shift, **{shift!r}** (`reward_shift` in",
        "`config.json`), which makes the demonstrations average 0. instructlit adds it by itself.",
    ]
    bare = ["The score of a text is the number transformers computes: there were no demonstrations to make average 0."]
    how = ["Score the prompt and the completion with its end-of-sequence token, as in training.", ""]
    lines = ["## Scores", "", *(shifted if shift else bare), *how]
    if eos_is_pad:
        lines += [
            "The tokenizer pads with its end-of-sequence token. transformers finds the end of a text by looking",
            "for pads, so the config names no pad and plain transformers scores one text at a time; instructlit, which",
            "goes by the attention mask, scores batches too.",
            "",
        ]
    return lines


def _origin(record: dict[str, Any]) -> list[str]:
    lines = ["## Made from", ""]
    for entry in record.get("parents", []):
        digest = f" (sha256 `{entry['weights_sha256']}`)" if entry.get("weights_sha256") else ""
        lines.append(f"* {entry.get('role', 'model')}: `{entry.get('path')}`{digest}")
    for entry in record.get("data", []):
        rows = f", {entry['rows']} rows" if "rows" in entry else ""
        lines.append(f"* data: `{entry.get('path')}`{rows} (sha256 `{entry.get('sha256')}`)")
    if len(lines) == 2:
        lines.append("* not recorded")
    lines += ["", "## Versions", ""]
    lines += [f"* {name} {version}" for name, version in record.get("versions", {}).items()]
    return lines
