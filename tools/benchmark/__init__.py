"""`instructlit benchmark`: how fast a stage is on this machine, with the real modules and the real Trainer."""

from typing import Literal


def benchmark(
    workload: Literal["sft", "reward", "ppo", "generate", "overhead"],
    *,
    model: str,
    data: str,
    reward_model: str | None = None,
    limit: int | None = None,
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true",
    threads: int | None = None,
    batch_size: int | None = None,
    max_new_tokens: int = 48,
    ppo_epochs: int = 1,
    lora: int | None = None,
    seed: int = 1,
    device: str = "auto",
    compile: bool = False,
) -> None:
    """Time one pass over a file, and print one JSON object.

    It holds `seconds` of training or decoding, `prep_s` before it (loading, reading and tokenising), units a second
    (tokens other than padding, prompts and pairs, episodes, new tokens), peak memory, CPU seconds, and the first and
    last loss. PPO adds the seconds of sampling, scoring and updating of each rollout; generation the bytes that a step
    has to read and, on a GPU, the share of the measured copy bandwidth at which it reads them. Rows come in the order
    of torch.randperm after the seed, prompts and completions as plain text, so that another program can be given the
    same work.

    Args:
        workload: sft (a file of demonstrations), reward (comparisons), ppo (prompts), generate (prompts of exactly 32
            tokens, sampled to the length limit whatever EOS says), or overhead (demonstrations: what a step of sft
            costs in addition to its work, in CPU milliseconds; one thread and a model of one layer show it best).
        model: folder of a causal language model; for a reward model, of the model that it starts from.
        data: the file.
        reward_model: folder of the reward model, which the value model and a reward model in training start from too;
            by default the folder beside `model` with "-rm" appended to its name. Without such a folder the head is
            initialised at random.
        limit: use only this many rows, the first ones.
        precision: that of the Trainer; generation decodes in bfloat16 if it contains bf16.
        threads: CPU threads; by default torch's own choice.
        batch_size: rows of a step: by default 16 demonstrations (4 in overhead), 4 comparisons, 32 episodes of a
            rollout, 32 prompts.
        max_new_tokens: most tokens of a response.
        ppo_epochs: passes over each rollout.
        lora: rank of the adapters that ppo trains on trunks frozen in 16 bits; where `reward_model` is a folder of
            adapters on `model`, all its models share that one trunk, and the value model trains the folder's adapters.
        seed: seed of the order of the rows and of the sampling.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        compile: compile each decoder block with torch.compile, for training. Steps that wait for compilation are
            included in the timing, but not in that of the later half of the steps.
    """
    import importlib
    import json

    from instructlit.errors import UserError

    from .work import Work

    if lora is not None and workload != "ppo":
        raise UserError(f"{workload} trains no adapters", where="--lora", expected="--lora with ppo only")
    if compile and workload == "generate":
        raise UserError(
            "decoding is never compiled", where="--compile", expected="--compile with a workload that trains"
        )
    work = Work(
        model,
        data,
        reward_model,
        limit,
        precision,
        threads,
        batch_size,
        max_new_tokens,
        ppo_epochs,
        lora,
        seed,
        device,
        compile,
    )
    figures = importlib.import_module(f"{__name__}.{workload}").run(work)
    print(json.dumps({"peer": "instructlit", "workload": workload, **work.told(), **figures, **work.spent()}))
