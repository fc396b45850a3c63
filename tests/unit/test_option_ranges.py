"""Options that would train nothing, or nonsense, are refused when they are set, by name and with their range."""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import pytest
from stage_helpers import CountVowels, ppo_module, reward_module, sft_module

from instructlit.callbacks import CSVLogger, SampleTable, ScoreSamples, StageProgress, Throughput, WandbHistograms
from instructlit.data import ComparisonData, DemonstrationData, PromptData, TextData
from instructlit.errors import Range, UserError, require, require_address
from instructlit.evaluation import Ask
from instructlit.evaluation.judges import (
    DetoxifyScorer,
    EndpointJudge,
    HuggingFaceClassifier,
    LocalJudge,
    PerspectiveScorer,
    RewardJudge,
)
from instructlit.evaluation.tasks import BestOfN, Perplexity, RewardQuality
from instructlit.models.backbone import Backbone
from instructlit.modules.nonfinite import NonFinite
from instructlit.modules.refusals import check_numbers
from instructlit.rollout import CachedEngine, RewardModel, Sampling, Shaping, VLLMServer, WorkerEngine


@pytest.mark.parametrize(
    ("expected", "lowest_in", "highest_out"),
    [
        ("a whole number above 0", 1, 0),
        ("a whole number, 0 or more", 0, -1),
        ("a number above 0", 1e-9, 0.0),
        ("a finite number above 0", 1e-9, 0.0),
        ("a finite number, 0 or more", 0.0, -1e-9),
        ("a finite number", -1e300, -math.inf),
        ("a number from 0 to 1", 0.0, -1e-9),
        ("a number of at least 0 and below 1", 0.0, 1.0),
        ("a seed, from 0 to 4294967295", 2**32 - 1, 2**32),
    ],
)
def test_an_option_out_of_range_is_named_with_its_range(expected: Range, lowest_in: float, highest_out: float) -> None:
    require(expected, "model.", off=None, lowest=lowest_in)
    for value in (highest_out, math.nan):
        with pytest.raises(UserError) as caught:
            require(expected, "model.", lowest=lowest_in, wrong=value)
        assert str(caught.value) == f"model.wrong: found {value}\n  expected: {expected}"


def test_infinity_is_out_of_the_ranges_that_say_so() -> None:
    for expected in get_args(Range):
        if "finite" in expected or "1" in expected:
            with pytest.raises(UserError):
                require(expected, wrong=math.inf)


@pytest.mark.parametrize("stage", [sft_module, reward_module, ppo_module])
@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("gradient_clip_norm", (-1.0, 0.0, math.nan, math.inf)),
        ("micro_batch_size", (0, -1)),
        ("micro_batch_tokens", (0, -1)),
    ],
)
def test_of_every_stage(stage: Callable[..., Any], option: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(UserError, match=rf"^model\.init_args\.{option}: found {value}"):
            stage(Path("models/sft"), **{option: value})


@pytest.mark.parametrize("value", [0, -1])
def test_of_the_reward_model(value: int) -> None:
    with pytest.raises(UserError, match=rf"^model\.init_args\.shift_batches: found {value}"):
        reward_module(Path("models/sft"), shift_batches=value)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("episodes", (0, -4)),
        ("minibatch_size", (0, -4)),
        ("ppo_epochs", (0, -1)),
        ("clip", (0.0, -0.2, math.nan)),
        ("value_clip", (0.0, math.nan)),
        ("reward_timeout", (0.0, -1.0, math.nan)),
        ("max_kl", (0.0, math.nan)),
        ("value_learning_rate", (-1.0, math.nan)),
        ("pretraining_coefficient", (-1.0, math.inf)),
        ("ema_decay", (-0.1, 1.0, math.nan)),
    ],
)
def test_of_ppo(option: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(UserError, match=rf"^model\.init_args\.{option}: found {value}"):
            ppo_module(Path("models/sft"), **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("gamma", 1.5), ("gamma", math.nan), ("lam", -1.0), ("missing_eos_value", math.nan)],
)
def test_of_shaping(option: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^shaping\.{option}: found {value}"):
        Shaping(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_of_temperatures(value: float) -> None:
    with pytest.raises(UserError, match=r"^sampling\.temperature: temperature is"):
        Sampling(temperature=value)
    with pytest.raises(UserError, match=rf"^temperature: found {value}"):
        Ask("a question", temperature=value)
    with pytest.raises(UserError, match=rf"^temperature: found {value}"):
        BestOfN(temperature=value)


def test_a_penalty_below_0_would_be_a_prize() -> None:
    with pytest.raises(UserError, match=r"^shaping\.missing_eos_value: found -1"):
        Shaping(missing_eos="subtract")


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda **option: ScoreSamples(CountVowels(), "prompts.jsonl", **option), "limit"),
        (lambda **option: ScoreSamples(CountVowels(), "prompts.jsonl", **option), "batch_size"),
        (SampleTable, "every_n_validations"),
        (Throughput, "window"),
        (WandbHistograms, "every_n_batches"),
        (WandbHistograms, "bins"),
        (StageProgress, "refresh_rate"),
        (partial(CSVLogger, "logs"), "flush_logs_every_n_steps"),
    ],
)
def test_of_callbacks(make: Callable[..., Any], option: str) -> None:
    for value in (0, -1):
        with pytest.raises(UserError, match=rf"^\w+\.{option}: found {value}"):
            make(**{option: value})


@pytest.mark.parametrize("address", ["", "localhost:8000", "http://", "http://[bad", "http://host:port", "http://a b"])
def test_of_addresses(address: str) -> None:
    for make, option in (
        (lambda: VLLMServer("folder", url=address), "engine.url"),
        (lambda: EndpointJudge("model", base_url=address), "judge.base_url"),
        (lambda: PerspectiveScorer(url=address), "judge.url"),
    ):
        with pytest.raises(UserError) as caught:
            make()
        assert str(caught.value).startswith(f"{option}: {address} is not a web address\n")


def test_addresses_as_people_write_them() -> None:
    require_address(url="http://localhost:8000/v1", other="HTTPS://[::1]:8000/v1?user=1", third="http://a:b@host")


def test_more_bars_than_wandb_takes() -> None:
    with pytest.raises(UserError, match=r"^WandbHistograms\.bins: found 513"):
        WandbHistograms(bins=513)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    ("make", "option"),
    [
        (CachedEngine, "engine.batch_size"),
        (WorkerEngine, "engine.batch_size"),
        (partial(VLLMServer, "policy"), "engine.concurrency"),
        (partial(VLLMServer, "policy"), "engine.timeout"),
        (partial(RewardModel, Backbone("models/reward")), "reward.batch_size"),
        (partial(LocalJudge, "models/judge"), "judge.batch_size"),
        (partial(LocalJudge, "models/judge"), "judge.max_new_tokens"),
        (partial(RewardJudge, "models/reward"), "judge.batch_tokens"),
        (partial(HuggingFaceClassifier, "models/classifier"), "judge.batch_size"),
        (DetoxifyScorer, "judge.batch_size"),
        (partial(Ask, "a question"), "max_new_tokens"),
        (partial(Ask, "a question"), "samples"),
        (Perplexity, "characters"),
        (RewardQuality, "bins"),
        (Sampling, "sampling.max_new_tokens"),
        (NonFinite, "nonfinite.max_in_a_row"),
    ],
)
def test_of_engines_rewards_and_evaluations(make: Callable[..., Any], option: str, value: int) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(option)}: found {value}"):
        make(**{option.rpartition(".")[2]: value})


def test_of_the_time_for_samples_to_be_scored() -> None:
    with pytest.raises(UserError, match=r"^ScoreSamples\.reward_timeout: found nan"):
        ScoreSamples(CountVowels(), "prompts.jsonl", reward_timeout=math.nan)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DemonstrationData, ("batch_size", "max_length", "max_prompt_length")),
        (ComparisonData, ("batch_size", "max_length", "max_prompt_length")),
        (PromptData, ("batch_size", "max_prompt_length", "pretraining_per_episode", "pretraining_block_size")),
        (TextData, ("batch_size", "block_size")),
    ],
)
def test_of_data(kind: Callable[..., Any], options: tuple[str, ...]) -> None:
    for option in options:
        for value in (0, -1):
            with pytest.raises(UserError, match=rf"^{option}: found {value}"):
                kind("models/sft", "rows.jsonl", **{option: value})


@pytest.mark.parametrize(
    ("kind", "further"),
    [
        (DemonstrationData, "pretraining"),
        (ComparisonData, "demonstrations"),
        (PromptData, "pretraining"),
        (TextData, "test"),
    ],
)
@pytest.mark.parametrize("value", ["", [""]])
def test_of_data_whose_name_is_empty(kind: Callable[..., Any], further: str, value: Any) -> None:
    for option in ("train", "validation", further):
        with pytest.raises(UserError, match=rf"^{option}: the name is empty"):
            kind(**{"tokenizer": "models/sft", "train": "rows.jsonl", option: value})


@pytest.mark.parametrize("option", ["duplicate_prefix", "max_prompts_per_user"])
def test_of_what_0_switches_off(option: str) -> None:
    with pytest.raises(UserError, match=rf"^{option}: found -1"):
        PromptData("models/sft", "rows.jsonl", **{option: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"num_sanity_val_steps": -1},  # all of them
        {"val_check_interval": "00:00:10:00"},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"log_every_n_steps": 0, "max_epochs": -1, "max_time": "00:01:00:00"},
    ],
)
def test_numbers_of_the_trainer_that_are_meant_pass(options: dict[str, Any]) -> None:
    check_numbers(pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options))
