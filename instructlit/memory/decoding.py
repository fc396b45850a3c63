"""The copies of weights that our decoder holds while it samples."""

from collections.abc import Sequence

import torch

from instructlit.memory.outline import Weight
from instructlit.memory.run import Run
from instructlit.memory.shapes import Shapes
from instructlit.rollout.decoders import LLAMAS
from instructlit.rollout.llama import can_pack

_JOINED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_ALONE = ("o_proj", "down_proj", "lm_head")


def decoder_copies(run: Run, shapes: Shapes, weights: Sequence[Weight]) -> int:
    """Bytes of the matrices that `LlamaDecoder` holds twice: all of them where oneDNN has an order of its own for
    them or autocast has them cast; elsewhere, in 16 bits, those that it joins, of models without adapters.

    Copies of adapters, which are small, are not counted.

    Args:
        run: the run, whose sampling is on a CPU where it says so.
        shapes: of its models.
        weights: of the policy.
    """
    policy = run.models["policy"]
    architecture = shapes.model(policy, False).config
    if policy.quantization or run.strategy == "sharded" or getattr(architecture, "model_type", None) not in LLAMAS:
        return 0
    dtype = torch.bfloat16 if run.mixed else getattr(torch, policy.dtype)
    copied = (run.cpu and can_pack(dtype)) or (run.mixed and policy.dtype == "float32")
    joined = copied or (dtype.itemsize == 2 and not any(w.frozen_trunk for w in weights))
    trunk = [w for w in weights if "lora_" not in w.name]
    sizes = {
        part: sum(w.shape.numel() for w in trunk if any(name in w.name.split(".") for name in names))
        for part, names in (("joined", _JOINED), ("alone", _ALONE))
    }
    if not any("lm_head" in w.name for w in trunk):  # tied: the head is the embedding, and cast like any other
        sizes["alone"] += sum(w.shape.numel() for w in trunk if w.name.endswith("embed_tokens.weight"))
    return dtype.itemsize * (sizes["joined"] * joined + sizes["alone"] * copied)
