"""What our decoder for CPUs holds of the weights once more while it samples."""

from collections.abc import Sequence

from instructlit.memory.outline import Weight
from instructlit.memory.run import Run
from instructlit.memory.shapes import Shapes
from instructlit.rollout.decoders import LLAMAS

_JOINED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_ALONE = ("o_proj", "down_proj", "lm_head")


def decoder_copies(run: Run, shapes: Shapes, weights: Sequence[Weight]) -> int:
    """Bytes of the matrices that `LlamaDecoder` joins where it computes in 16 bits and, where autocast has it do so, of
    those it casts; in float32 it has none of its own.

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
    if not run.mixed and policy.dtype == "float32":
        return 0
    cast = policy.dtype == "float32"
    sizes = {
        part: sum(w.shape.numel() for w in weights if any(name in w.name.split(".") for name in names))
        for part, names in (("joined", _JOINED), ("alone", _ALONE))
    }
    if not any("lm_head" in w.name for w in weights):  # tied: the head is the embedding, and cast like any other
        sizes["alone"] += sum(w.shape.numel() for w in weights if w.name.endswith("embed_tokens.weight"))
    return 2 * (sizes["joined"] + (sizes["alone"] if cast else 0))
