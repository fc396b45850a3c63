"""Signatures and types as a message tells them."""

import enum
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
import pytest
import torch
from cli_stand_in import Module, Net, Place
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from instructlit.cli.types import (
    classes_of,
    dataclasses_of,
    describe,
    elements_of,
    import_class,
    is_open,
    parameters,
    suggest,
)
from instructlit.errors import UserError
from instructlit.ops import KLController
from instructlit.rollout import RewardFunction


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (Literal["nf4", "int8"] | None, "one of nf4, int8 or null"),
        (list[int], "a list of a whole number"),
        (tuple[float | torch.Tensor, float], "a list of (a number, a number)"),
        (str | list[str | Path], "text or a list of (text or a path)"),
        (dict[str, int], "a mapping"),
        (float | torch.Tensor, "a number"),
        (Annotated[bool, "x"], "true or false"),
        (Colour, "one of RED"),
        (Net, "the keys of Net (path, dtype, quantization, revision)"),
        (OptimizerCallable, "a class_path of Optimizer"),
        (pl.LightningModule, "a class_path of LightningModule"),
        (Any, "anything"),
    ],
)
def test_describe(hint: Any, words: str) -> None:
    assert describe(hint) == words


def test_what_a_class_path_may_name() -> None:
    assert classes_of(OptimizerCallable) == [torch.optim.Optimizer]
    assert torch.optim.lr_scheduler.LRScheduler in classes_of(LRSchedulerCallable | None)
    assert classes_of(float | torch.Tensor | None | list[str] | dict[str, Any] | Path | Colour | Net) == []
    assert classes_of(pl.Callback | list[pl.Callback] | None) == [pl.Callback]
    assert classes_of(Callable[[Iterable], int]) == []


def test_dataclasses_and_elements() -> None:
    assert dataclasses_of(str | Place | list[str | Place]) == [Place]
    assert elements_of(str | Place | list[str | Place]) == str | Place
    assert elements_of(str | None) is None
    assert elements_of(tuple[float, ...]) is float
    assert elements_of(tuple[float, float]) is None  # it has a length too
    assert elements_of(tuple[float, str]) is None
    assert is_open(dict[str, int] | None)
    assert not is_open(list[int])


def test_parameters_follow_keyword_arguments_through() -> None:
    assert parameters(Module) is not None
    assert {n for n, p in (parameters(Module) or {}).items() if p.required} == {"policy"}
    found = parameters(pl.callbacks.ModelCheckpoint) or {}  # type: ignore[attr-defined]
    assert {"monitor", "save_last"} <= set(found)

    def passes_on(a: int, **kwargs: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.zeros(1)], **kwargs)

    assert {"a", "lr", "momentum"} <= set(parameters(passes_on) or {})


def test_import_class() -> None:
    assert import_class("torch.optim.AdamW", [torch.optim.Optimizer], "x") is torch.optim.AdamW
    assert import_class("SGD", [torch.optim.Optimizer], "x") is torch.optim.SGD


@pytest.mark.parametrize(
    ("path", "wanted", "words"),
    [
        ("torch.optim.AdamWW", torch.optim.Optimizer, "did you mean torch.optim.AdamW?"),
        ("torch.optimm.AdamW", torch.optim.Optimizer, "did you mean torch.optim?"),
        ("cli_stand_inn.Module", pl.LightningModule, "did you mean cli_stand_in?"),
        ("torch.optim.AdamW", pl.LightningModule, "is not derived from LightningModule"),
        ("AdamWw", torch.optim.Optimizer, "did you mean torch.optim.adamw.AdamW?"),
        ("no_such_thing_at_all.X", pl.LightningModule, "run from the folder that holds your own module"),
    ],
)
def test_import_class_names_the_nearest(path: str, wanted: type, words: str) -> None:
    with pytest.raises(UserError) as caught:
        import_class(path, [wanted], "model.class_path")
    assert words in str(caught.value)
    assert str(caught.value).startswith("model.class_path: ")


class Unfinished(KLController):
    def step(self) -> None: ...


def makes(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1)


def scores(prompt, response):
    return 1.0


@pytest.mark.parametrize(
    ("name", "wanted", "words"),
    [
        ("Unfinished", KLController, "test_cli_types.Unfinished has no `update`"),
        ("scores", RewardFunction, "scores is a function\n.*a class derived from .*RewardFunction"),
        ("makes", RewardFunction, "makes is a function"),
    ],
)
def test_what_can_make_nothing_is_told(name: str, wanted: type, words: str) -> None:
    with pytest.raises(UserError, match=words):
        import_class(f"{__name__}.{name}", [wanted], "x.yaml:3")
    assert import_class(f"{__name__}.makes", [torch.optim.lr_scheduler.LRScheduler], "x.yaml:3") is makes


def test_a_module_that_lacks_something_itself_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_user_module.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        import_class("broken_user_module.X", [], "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
        ("def reward(:\n", r"SyntaxError: invalid syntax \(user_module_0.py, line 1\)"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("from os import no_such_name\n", "ImportError: cannot import name 'no_such_name'"),
    ],
)
def test_a_module_that_fails_as_it_is_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    (tmp_path / "user_module_0.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=rf"^x: `user_module_0` cannot be imported: {words}"):
        import_class("user_module_0.Reward", [], "x")


def test_a_relative_path_is_told() -> None:
    with pytest.raises(UserError, match=r"^x: `\.user` cannot be imported"):
        import_class(".user.Reward", [], "x")


def test_a_package_of_an_extra_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'instructlit\[8bit\]'"):
        import_class("bitsandbytes.optim.AdamW8bit", [], "x")


def test_suggest() -> None:
    assert suggest("float31", Literal["float32", "bfloat16"]) == "float32"
    assert suggest("RAD", Colour | None) == "RED"
    assert suggest("zzz", int) is None
