"""What our decoder for CPUs holds of the weights once more while it samples."""

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
    """Bytes of the matrices that `LlamaDecoder` holds once more: all of them where oneDNN has an order of its own for
    them; elsewhere, in 16 bits, those that it joins and, where autocast has it do so, those that it casts.

    Args:
        run: the run, whose sampling is on a CPU where it says so.
        shapes: of its models.
        weights: of the policy.
    """
    policy = run.models["policy"]
    architecture = shapes.model(policy, False).config
    plain = policy.lora is None and policy.quantization is None and not any(w.frozen_trunk for w in weights)
    if not run.cpu or not plain or run.strategy == "sharded" or getattr(architecture, "model_type", None) not in LLAMAS:
        return 0
    dtype = torch.bfloat16 if run.mixed else getattr(torch, policy.dtype)
    packed, cast = can_pack(dtype), run.mixed and policy.dtype == "float32"
    sizes = {
        part: sum(w.shape.numel() for w in weights if any(name in w.name.split(".") for name in names))
        for part, names in (("joined", _JOINED), ("alone", _ALONE))
    }
    if not any("lm_head" in w.name for w in weights):  # tied: the head is the embedding, and cast like any other
        sizes["alone"] += sum(w.shape.numel() for w in weights if w.name.endswith("embed_tokens.weight"))
    joined = sizes["joined"] if packed or dtype.itemsize == 2 else 0
    return dtype.itemsize * (joined + (sizes["alone"] if packed or cast else 0))
