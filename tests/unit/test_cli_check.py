"""One mistake in a config or on the line, one message: it names the option, the place and the nearest right one."""

import re
from pathlib import Path

import pytest
from cli_stand_in import RECIPE

from instructlit.cli.config import read
from instructlit.cli.fit import check, classes_on_line, composed, located, readable
from instructlit.errors import UserError

SAVER = ("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mistake(overlay: str, *args: str) -> str:
    """The message about `overlay` laid over the recipe, with options on the line."""
    Path("over.yaml").write_text(overlay)
    with pytest.raises(UserError) as caught:
        check("fit", composed([read("recipe.yaml"), read("over.yaml")]), args)
    return str(caught.value)


def test_the_recipe_itself_is_right(folder: Path) -> None:
    check(
        "fit", composed([read("recipe.yaml")]), ["--model.policy.path", "x", "--trainer.max_steps=3", "--print_config"]
    )


@pytest.mark.parametrize("option", ["--trainer.strategy", "--trainer.strategy.class_path"])
def test_a_sharded_checkpoint_goes_with_a_strategy_that_is_named_on_the_line(option: str, folder: Path) -> None:
    (folder / "last.ckpt").mkdir()
    (folder / "last.ckpt" / "meta.pt").touch()
    words = ["--ckpt_path", "last.ckpt"]
    with pytest.raises(UserError, match="is a checkpoint of a sharded run"):
        check("fit", composed([read("recipe.yaml")]), words)
    check("fit", composed([read("recipe.yaml")]), [*words, option, "instructlit.modules.FSDP2Strategy"])


@pytest.mark.parametrize("value", ["0.25", "100", "00:00:30:00"])
def test_a_number_is_no_class_where_both_may_stand(value: str, folder: Path) -> None:
    check("fit", composed([read("recipe.yaml")]), ["--trainer.val_check_interval", value])


@pytest.mark.parametrize(
    ("overlay", "place", "near"),
    [
        ("model: {init_args: {polcy: {path: x}}}", "model.init_args.polcy", "model.init_args.policy"),
        ("model: {init_args: {policy: {pth: x}}}", "model.init_args.policy.pth", "model.init_args.policy.path"),
        ("model: {optimizer: {class_path: torch.optim.SGD}}", "model.optimizer", "model.init_args.optimizer"),
        ("model: {init_arg: {policy: {path: x}}}", "model.init_arg", "model.init_args"),
        (
            "model: {init_args: {optimizer: {init_args: {beta: 1}}}}",
            "init_args.beta",
            "model.init_args.optimizer.init_args.betas",
        ),
        ("data: {init_args: {train: [{pat: x}]}}", "data.init_args.train.0.pat", "data.init_args.train.0.path"),
        ("trainer: {max_step: 3}", "trainer.max_step", "trainer.max_steps"),
        ("max_steps: 3", "max_steps", "trainer.max_steps"),
        ("epochs: 3", "epochs", "trainer.max_epochs"),
        ("batch_size: 3", "batch_size", "data.init_args.batch_size"),
        ("modle: {}", "modle", "model"),
        (
            "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {monitr: x}}]}",
            "trainer.callbacks.0.init_args.monitr",
            "trainer.callbacks.0.init_args.monitor",
        ),
        (
            "trainer: {strategy: {class_path: lightning.pytorch.strategies.DDPStrategy, init_args: {timeot: 1}}}",
            "trainer.strategy.init_args.timeot",
            "trainer.strategy.init_args.timeout",
        ),
    ],
)
def test_a_misspelt_key(folder: Path, overlay: str, place: str, near: str) -> None:
    message = mistake(overlay)
    assert message.startswith("over.yaml:1: ")
    assert place in message.splitlines()[0]
    assert f"did you mean {near}?" in message


@pytest.mark.parametrize(
    ("overlay", "value", "expected"),
    [
        (
            "model: {init_args: {policy: {dtype: float31}}}",
            "float31",
            "one of float32, bfloat16 (did you mean float32?)",
        ),
        ("model: {init_args: {policy: {quantization: nf5}}}", "nf5", "one of nf4, int8 or null (did you mean nf4?)"),
        ("model: {init_args: {optimizer: {init_args: {lr: fast}}}}", "fast", "a number"),
        ("model: {init_args: {micro_batch_size: 1.5}}", "1.5", "a whole number or null"),
        ("data: {init_args: {batch_size: four}}", "four", "a whole number"),
        ("data: {init_args: {train: 3}}", "3", "text or"),
        ("trainer: {max_steps: three}", "three", "a whole number"),
        ("seed_everything: often", "often", "a whole number"),
        ("model: {init_args: {policy: {revision: 8}}}", "8", 'quote it: "8"'),
        ("model: {init_args: {policy: {path: no}}}", "False", "quote it"),
        ("model: {init_args: {policy: base}}", "base", "the keys of Net"),
        ("model: {init_args: {policy: {path: null}}}", "null", "text"),
        ("model: {init_args: {policy: {dtype: null}}}", "null", "one of float32, bfloat16"),
        ("data: {init_args: {batch_size: null}}", "null", "a whole number"),
        ("data: {init_args: {train: [null]}}", "null", "text or"),
        ("trainer: {max_steps: null}", "null", "a whole number"),
        ("seed_everything: null", "null", "a whole number"),
        *(
            (
                f"model: {{class_path: instructlit.modules.SFTModule, init_args: {{nonfinite: {value}}}}}",
                shown,
                "the keys of NonFinite",
            )
            for value, shown in (("true", "True"), ("[]", "[]"), ("3", "3"))
        ),
    ],
)
def test_a_wrong_type(folder: Path, overlay: str, value: str, expected: str) -> None:
    message = mistake(overlay)
    assert message.startswith("over.yaml:1: ")
    assert f"`{value}`" in message
    assert expected in message
    assert "Union" not in message
    assert "Parser key" not in message


def test_a_duration_is_no_class(folder: Path) -> None:
    overlay = "trainer: {strategy: {class_path: instructlit.modules.FSDP2Strategy, init_args: {timeout: %s}}}"
    Path("over.yaml").write_text(overlay % "0:30:00")  # as a saved config has it
    check("fit", composed([read("recipe.yaml"), read("over.yaml")]))
    assert "timeout: `soon` is not valid here\n  expected: a duration in quotes" in mistake(overlay % "soon")


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ("model: {init_args: {optimizer: {class_path: torch.optim.AdamWW}}}", "did you mean torch.optim.AdamW?"),
        ("model: {class_path: cli_stand_inn.Module}", "did you mean cli_stand_in?"),
        ("model: {class_path: torch.optim.AdamW}", "is not derived from LightningModule"),
        ("model: {init_args: {optimizer: torch.optim}}", "torch.optim is not a class"),
        (
            "model: {init_args: {optimizer: {class_path: cli_stand_in.make_optimizer, init_args: {lr: 1}}}}",
            "make_optimizer is a function, which cannot have init_args here\n  expected: its name alone",
        ),
        ("model: {init_args: }", "over.yaml:1: model.init_args: is empty"),
        ("trainer: {max_time: 5400}", "over.yaml:1: trainer.max_time: `5400` is not valid here"),
        (
            "trainer: {logger: {init_args: {save_dir: {class_path: os.getcwd}}}}",
            "over.yaml:1: trainer.logger.init_args.save_dir: `{'class_path': 'os.getcwd'}` is not valid here",
        ),
        ("model: {dict_kwargs: 5}", "over.yaml:1: model.dict_kwargs: is not a mapping"),
        ("model: {dict_kwargs: {no_such: 1}}", "over.yaml:1: model.dict_kwargs.no_such: unknown key"),
        ("trainer: {callbacks: [{init_args: {monitor: x}}]}", "has no class_path"),
        ("data: {init_args: {train: [{weight: 2}]}}", "`path` is required"),
        ("model: {init_args: {reference: {dtype: float32}}}", "`path` is required"),
    ],
)
def test_a_wrong_or_missing_class(folder: Path, overlay: str, words: str) -> None:
    assert words in mistake(overlay)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--trainer.max_step", "3"], ["--trainer.max_step: ", "did you mean --trainer.max_steps?"]),
        (["--trainer.max_steps", "x"], ["--trainer.max_steps: `x`", "a whole number"]),
        (["--model.policy.pth", "x"], ["--model.policy.pth: ", "--model.init_args.policy.path?"]),
        (["--model.init_args.policy.pth=x"], ["did you mean --model.init_args.policy.path?"]),
        (["--model.policy.dtype", "float31"], ["did you mean float32?"]),
        (["--trainer.init_args.max_steps", "3"], ["--trainer.init_args.max_steps: unknown option `init_args`"]),
        (["--trainer.logger.init_args.save_dr", "x"], ["did you mean --trainer.logger.init_args.save_dir?"]),
        (["--model.optimizer.lr", "x"], ["--model.optimizer.lr: `x`", "a number"]),
        (["--model.optimizer", "torch.optim.AdamWW"], ["did you mean torch.optim.AdamW?"]),
        (["--model.init_args.optimizer.class_path", "torch.optim.Adm"], ["has no `Adm`"]),
        (["--data.tokenzer", "x"], ["did you mean --data.tokenizer?", "--data.init_args.tokenizer?"]),
        (["--model.optimizer", "torch.optim.SGD", "--model.optimizer.betas", "1"], ["unknown option `betas`"]),
        (["--epochs", "3"], ["did you mean --trainer.max_epochs?"]),
        ([*SAVER, "--trainer.callbacks.save_top_k", "x"], ["--trainer.callbacks.save_top_k: `x` is not valid here"]),
        (
            [*SAVER, "--trainer.callbacks.limits", "x"],
            ["`limits` is no option of lightning.pytorch.callbacks.ModelCheckpoint, the last of trainer.callbacks"],
        ),
        (["--ckpt_path", "nowhere.ckpt"], ["--ckpt_path: there is no file `nowhere.ckpt`"]),
        (["--ckpt_path", "lst"], ["did you mean last?"]),
        (["--ckpt_path", "best"], ["known only to the process that trained"]),
    ],
)
def test_a_mistake_on_the_line(folder: Path, args: list[str], words: list[str]) -> None:
    message = mistake("{}", *args)
    assert any(word in message for word in words)
    assert words[0].startswith("did you mean --data") or words[0] in message


@pytest.mark.parametrize(
    "args",
    [
        ["--model.policy.path", "8", "--model.policy.revision", "8"],
        ["--model.init_args.optimizer.init_args.lr=3e-4", "--trainer.devices", "1"],
        ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.momentum", "0.9"],
        ["--model", "cli_stand_in.Module", "--model.policy.path", "x"],
        ["--model.optimizer.class_path", "torch.optim.SGD", "--model.optimizer.init_args.momentum", "0.9"],
        ["--trainer.callbacks+", "lightning.pytorch.callbacks.LearningRateMonitor"],
        [*SAVER, "--trainer.callbacks.save_top_k", "3"],
        ["--trainer.callbacks+", '{"class_path": "Timer"}', "--trainer.callbacks.interval", "step"],
        ["--trainer.callbacks+", "instructlit.callbacks.ResumeCheckpoint", "--trainer.callbacks.dirpath", "x"],
        ["--trainer.logger", "false", "--trainer.enable_progress_bar", "true"],
        ["--trainer.logger.save_dir", "elsewhere"],
        ["--trainer.logger.init_args.save_dir", "elsewhere"],
        ["--trainer.logger.class_path", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.init_args.save_dir=x"],
        ["--data.train", "[a, b]", "--data.validation", "c"],
        ["--ckpt_path", "last"],
        ["--ckpt_path", "hf://somewhere/a.ckpt"],
        ["--model.reference.path", "x"],
        ["--seed_everything", "5"],
    ],
)
def test_what_is_right_on_the_line_passes(folder: Path, args: list[str]) -> None:
    check("fit", composed([read("recipe.yaml")]), args)


def test_a_required_argument_may_come_from_the_line(folder: Path) -> None:
    Path("recipe.yaml").write_text(RECIPE.replace("      path: base\n", "      dtype: float32\n"))
    with pytest.raises(UserError, match="`path` is required but not given"):
        check("fit", composed([read("recipe.yaml")]))
    check("fit", composed([read("recipe.yaml")]), ["--model.policy.path", "x"])
    check("fit", composed([read("recipe.yaml")]), ["--model.init_args.policy.path=x"])


@pytest.mark.parametrize(
    "engine",
    [
        ["--model.engine", "instructlit.rollout.VLLMServer", "--model.engine.folder", "x"],
        ["--model.engine", "instructlit.rollout.VLLMServer", "--model.engine.init_args.folder", "x"],
        ["--model.engine.class_path", "instructlit.rollout.VLLMServer", "--model.init_args.engine.folder", "x"],
    ],
)
def test_an_argument_of_a_class_in_a_class_may_come_from_the_line(engine: list[str]) -> None:
    ppo = ["--model=instructlit.modules.PPOModule", "--model.policy.path=x", "--model.value.path=x"]
    reward = ["--model.reward=instructlit.rollout.RewardModel", "--model.reward.model.path=x"]
    args = [*ppo, *reward, *engine]
    check("fit", composed([classes_on_line(args)]), args)
    with pytest.raises(UserError, match="`folder` is required but not given"):
        check("fit", composed([classes_on_line(args)]), args[:-2])


def test_nothing_at_all_says_what_is_wanted() -> None:
    with pytest.raises(UserError, match="no model is given"):
        check("fit", composed([]))


def test_an_overlay_alone_says_what_is_wanted(folder: Path) -> None:
    Path("over.yaml").write_text("model: {init_args: {optimizer: {class_path: torch.optim.SGD}}}")
    with pytest.raises(UserError, match="has no class_path"):
        check("fit", composed([read("over.yaml")]))


def test_an_overlay_reaches_the_optimizer_of_the_signature(folder: Path) -> None:
    Path("recipe.yaml").write_text("model: {class_path: cli_stand_in.Module, init_args: {policy: {path: x}}}")
    Path("over.yaml").write_text("model: {init_args: {optimizer: {class_path: torch.optim.SGD}}}")
    config = composed([read("recipe.yaml"), read("over.yaml")])
    assert config.values["model"]["init_args"]["optimizer"] == {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 2e-3},  # that of the lambda in the signature, whose betas SGD does not take
    }
    assert "does not take betas" in config.notes[0]
    without = composed([read("recipe.yaml")]).values["model"]["init_args"]["optimizer"]
    assert without == {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-3, "betas": [0.9, 0.95]}}


def test_a_class_named_on_the_line_is_a_layer_too() -> None:
    args = [
        "--model",
        "cli_stand_in.Module",
        "--data=cli_stand_in.Data",
        "--model.policy.path",
        "x",
        "--data.train",
        "a",
    ]
    config = composed([classes_on_line(args)])
    assert config.values["data"] == {"class_path": "cli_stand_in.Data"}
    assert config.values["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 2e-3
    with pytest.raises(UserError, match="`tokenizer` is required"):
        check("fit", config, args)
    check("fit", config, [*args, "--data.tokenizer", "x"])
    assert classes_on_line(["--model", "my.yaml", "--data", "{class_path: x}"]).values == {}


def test_the_optimizer_of_a_module_is_among_what_it_takes(folder: Path) -> None:
    assert re.search(r"one of .*\boptimizer\b", mistake("model: {init_args: {zzzz: 1}}"))
    assert "params" not in mistake("model: {init_args: {optimizer: {init_args: {zzzz: 1}}}}")  # the module gives them


def test_an_option_below_a_list_is_checked_with_the_last_class_in_it(folder: Path) -> None:
    savers = f"trainer: {{callbacks: [instructlit.callbacks.Throughput, {{class_path: {SAVER[1]}}}]}}"
    assert "did you mean --trainer.callbacks.monitor?" in mistake(savers, "--trainer.callbacks.monitr", "x")
    assert "below a list is for its last" in mistake(savers, "--trainer.callbacks.0.window", "5")


def test_a_wrong_class_named_on_the_line_is_told_with_its_option_and_not_with_the_recipes_line(folder: Path) -> None:
    args = ["--data", "NoSuch"]
    with pytest.raises(UserError, match=r"^--data: `NoSuch` is not a known class name"):
        check("fit", composed([read("recipe.yaml"), classes_on_line(args)]), args)


def test_what_a_class_named_on_the_line_does_not_take_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read("recipe.yaml")
    check("fit", composed([recipe]), ["--model.optimizer", "torch.optim.SGD"])
    assert (
        "--model.optimizer: torch.optim.SGD does not take betas of torch.optim.AdamW; left" in capsys.readouterr().err
    )


def test_an_error_about_an_argument_is_told_with_its_place(folder: Path) -> None:
    config = composed([read("recipe.yaml")])
    error = UserError("no weights", where="policy.path", expected="a model")
    assert located(error, config, []).where == "recipe.yaml:5: model.init_args.policy.path"
    assert located(error, config, ["--model.policy.path", "x"]).where == "--model.policy.path"
    whole = UserError("no weights", where="model.init_args.policy.path")
    assert located(whole, config, []).where == "recipe.yaml:5: model.init_args.policy.path"
    assert located(whole, config, ["--model.policy.path", "x"]).where == "--model.policy.path"
    whole.on_all_ranks, whole.told, whole.status = True, True, 1
    there = located(whole, config, [])
    assert (there.on_all_ranks, there.told, there.status) == (True, True, 1)
    elsewhere = UserError("bad row", where="rows.jsonl:3: prompt")
    assert located(elsewhere, config, []) is elsewhere


def test_what_is_left_of_a_message_that_was_not_foreseen() -> None:
    text = 'Parser key "x":\n  Does not validate\n  Errors:\n    - Expected a int\n  Given value: y'
    assert readable(text) == 'Parser key "x":\n  Expected a int'


@pytest.mark.parametrize("args", [(), ("--model.optimizer=null",)])
def test_a_null_in_the_place_of_a_class_is_named(args: tuple[str, ...], folder: Path) -> None:
    overlay = "{}" if args else "model: {init_args: {optimizer: null}}"
    assert "`null` is not valid here\n  expected: a class_path of Optimizer" in mistake(overlay, *args)


def test_arguments_that_a_class_needs_are_named_and_not_the_last_alternative() -> None:
    told = "Parser key 'a':\n  - the following arguments are required: x, y\n  - Expected a <class 'NoneType'>"
    assert readable(told).endswith("  the following arguments are required: x, y")
