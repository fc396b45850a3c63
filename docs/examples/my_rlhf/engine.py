"""Sampling by transformers' own `generate`."""

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from instructlit.ops.log_probs import token_log_probs
from instructlit.rollout import GenerationEngine, Sampling
from instructlit.rollout.engine import as_generation
from instructlit.types import Generation, PromptBatch


class Transformers(GenerationEngine):
    """Draws from the full softmax, as every engine must: PPO's log-probs are those of nothing else."""

    @torch.no_grad()
    def generate(
        self,
        model: PreTrainedModel,
        prompts: PromptBatch,
        sampling: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        generator: torch.Generator | None = None,
    ) -> Generation:
        settings = GenerationConfig(
            do_sample=not sampling.greedy,
            temperature=sampling.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        device = prompts.input_ids.device
        training = model.training
        model.eval()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if generator is not None:  # transformers knows only the global random state
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
            out = model.generate(  # type: ignore[operator]
                input_ids=prompts.input_ids, attention_mask=prompts.attention_mask.long(), generation_config=settings
            )
        model.train(training)
        ids = out.sequences[:, prompts.input_ids.shape[1] :]
        logits = torch.stack(out.logits, dim=1)  # (B, R, V) as the model gave them, before the temperature
        return as_generation(prompts, ids, token_log_probs(logits, ids, sampling.temperature), tokenizer)
