"""Every YAML that ships is checked against the signatures it will be given to, and a typo in any of them is refused."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from instructlit.cli.config import Config, read
from instructlit.cli.fit import InstructCLI, check, composed
from instructlit.errors import UserError
from instructlit.tools.iterate.config import composed as load_loop

ROOT = Path(__file__).resolve().parents[2] / "configs"
STAGES = ("pretrain", "sft", "reward", "ppo", "quickstart")
OTHERS = [f for kind in ("evaluate", "iterate") for f in (ROOT / kind).glob("*.yaml")]
"""Configs of `instructlit evaluate` and `instructlit iterate`, which are of other kinds."""
FILES = [f for f in sorted(ROOT.rglob("*.yaml")) if f not in OTHERS]
RECIPES = [f for f in FILES if "model" in yaml.safe_load(f.read_text()) and f.parent.name in STAGES]
RECIPES = [f for f in RECIPES if "class_path" in yaml.safe_load(f.read_text())["model"]]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def layers(path: Path) -> list[Config]:
    """A recipe by itself; an overlay over a recipe that has what it changes."""
    if path in RECIPES:
        return [read(str(path))]
    base = next((f for f in RECIPES if f.parent == path.parent), ROOT / "sft" / "small.yaml")
    return [read(str(base)), read(str(path))]


def keys_of(values: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every mapping key of a config that names an argument."""
    if isinstance(values, dict):
        for word, inner in values.items():
            if word not in ("class_path", "init_args", "limits"):
                yield (*key, word)
            yield from keys_of(inner, (*key, word))


def misspelt(values: dict[str, Any], key: tuple[str, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    node = changed
    for part in key[:-1]:
        node = node[part]
    node[f"{key[-1]}x"] = node.pop(key[-1])
    return changed


def test_there_is_a_recipe_of_every_size_for_every_stage() -> None:
    for stage in ("sft", "reward", "ppo"):
        assert {"world.yaml", "small.yaml", "8b_lora.yaml"} <= {f.name for f in (ROOT / stage).glob("*.yaml")}
    for overlay in (
        "strategy/single",
        "strategy/ddp",
        "strategy/fsdp2",
        "strategy/fsdp",
        "optimizer/adamw",
        "optimizer/adamw_8bit",
        "logger/csv",
        "logger/wandb",
    ):
        assert (ROOT / f"{overlay}.yaml").is_file()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_checks_against_the_real_signatures(path: Path) -> None:
    pytest.importorskip("bitsandbytes" if "8bit" in path.name else "yaml")
    check("fit", composed(layers(path)))


@pytest.mark.parametrize("path", sorted((ROOT / "iterate").glob("*.yaml")), ids=name)
def test_a_loop_parses_and_refuses_every_typo(path: Path, tmp_path: Path) -> None:
    whole = [str(path)] if "sft" in read(str(path)).values else [str(path.with_name("world.yaml")), str(path)]
    loop = load_loop(whole, {})
    for stage in (*loop.reward, *loop.ppo):
        assert read(stage).values, "its stages are recipes that ship"
    for key in read(str(path)).values:
        wrong = tmp_path / "loop.yaml"
        wrong.write_text(path.read_text().replace(f"{key}:", f"{key}x:", 1))
        with pytest.raises(UserError, match=f"unknown option `{key}x`"):
            load_loop([*whole[:-1], str(wrong)], {})


class Parsed(InstructCLI):
    """Reads the config, and builds and runs nothing."""

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_parses_and_survives_being_saved(path: Path) -> None:
    config = composed(layers(path))
    cli = Parsed("fit", ["--config", json.dumps(config.values)])
    again = Config(yaml.safe_load(cli._parser("fit").dump(cli.config["fit"], skip_unset=False)))
    check("fit", again)
    args = again.values["model"]["init_args"]
    assert args["optimizer"]["init_args"]["lr"] == config.values["model"]["init_args"]["optimizer"]["init_args"]["lr"]


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_refuses_every_typo(path: Path) -> None:
    config = composed([read(str(path))])
    for key in keys_of(config.values):
        if key == ("model",):
            continue
        with pytest.raises(UserError) as caught:
            check("fit", Config(misspelt(config.values, key), config.places))
        assert key[-1] in str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_states_what_a_reader_looks_for(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# "), "a first line that says what it is"
    values = yaml.safe_load(text)
    assert "lr" in values["model"]["init_args"]["optimizer"]["init_args"]


@pytest.mark.parametrize("path", sorted((ROOT / "optimizer").glob("*.yaml")), ids=name)
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_an_optimizer_overlay_keeps_the_stage_rate(path: Path, stage: str) -> None:
    pytest.importorskip("bitsandbytes" if "8bit" in path.name else "yaml")
    recipe = read(str(ROOT / stage / "small.yaml"))
    overlay = read(str(path))
    args = composed([recipe, overlay]).values["model"]["init_args"]["optimizer"]
    assert args["class_path"] == overlay.values["model"]["init_args"]["optimizer"]["class_path"]
    before = recipe.values["model"]["init_args"]["optimizer"]["init_args"]
    assert (args["init_args"]["lr"], args["init_args"]["betas"]) == (before["lr"], before["betas"])
