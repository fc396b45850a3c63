"""Configs that are laid over each other: what wins, what is kept, and where each value was written."""

from pathlib import Path
from typing import Any

import pytest

from instructlit.cli.config import Config, compose, find, read, split
from instructlit.errors import UserError

ACCEPTED = {"Adam": {"lr", "betas"}, "Sgd": {"lr", "momentum"}}


@pytest.fixture
def write(tmp_path: Path):
    def made(text: str, name: str = "a.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return made


def values(*trees: dict) -> dict:
    return compose([Config(t) for t in trees], ACCEPTED.get).values


def test_numbers_people_write(write) -> None:
    got = read(write("a: 1e-5\nb: 9.65e-6\nc: 1E3\nd: 3\ne: 0.1\nf: .5\ng: 2024-01-01\nh: 1e\ni: -2.5e+3\n")).values
    assert got == {
        "a": 1e-5, "b": 9.65e-6, "c": 1000.0, "d": 3, "e": 0.1, "f": 0.5, "g": "2024-01-01", "h": "1e", "i": -2500.0,
    }  # fmt: skip


def test_places_are_lines(write) -> None:
    config = read(path := write("model:\n  init_args:\n    lr: 1\n    list:\n      - x\n      - y: 2\n"))
    assert config.where(("model", "init_args", "lr")) == f"{path}:3: model.init_args.lr"
    assert config.where(("model", "init_args", "list", "1", "y")) == f"{path}:6: model.init_args.list.1.y"
    assert config.where(("model", "init_args", "absent")) == f"{path}:2: model.init_args.absent"
    assert config.where(("data", "x")) == "--data.x"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a:\n  b: 1\n  b: 2\n", 3, "a.b is given twice"),
        ("a:\n\t b: 1\n", 2, "not valid YAML"),
        ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
    ],
)
def test_bad_yaml_names_the_line(write, text: str, line: int, words: str) -> None:
    path = write(text)
    with pytest.raises(UserError, match=words) as caught:
        read(path)
    assert caught.value.where == f"{path}:{line}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: \xff\n", "is not UTF-8 text"),
        (b"a: \0\n", "is not UTF-8 text"),
        (b"a: &x [*x]\n", "an alias refers to its own parent"),
    ],
)
def test_what_is_no_yaml_at_all_names_the_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read(str(path))
    assert caught.value.where == str(path)


def test_a_config_is_a_mapping(write) -> None:
    with pytest.raises(UserError, match="the top level is a list"):
        read(write("- a\n- b\n"))
    assert read(write("")).values == {}
    assert read(write("# nothing\n")).values == {}


def test_mappings_merge_and_the_rest_replaces() -> None:
    assert values({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"c": [2], "e": None}}) == {
        "a": {"b": 1, "c": [2], "e": None},
        "d": 2,
    }


def test_layers_are_left_as_they_were() -> None:
    first, second = Config({"a": {"b": [1]}}), Config({"a": {"b+": [2]}})
    assert compose([first, second], ACCEPTED.get).values == {"a": {"b": [1, 2]}}
    assert (first.values, second.values) == ({"a": {"b": [1]}}, {"a": {"b+": [2]}})


@pytest.mark.parametrize("before", [{}, {"c": None}, {"c": []}])
def test_plus_appends_to_a_list_that_may_not_be_there(before: dict) -> None:
    assert values({"t": before}, {"t": {"c+": ["x"]}}, {"t": {"c+": "y"}}) == {"t": {"c": ["x", "y"]}}


@pytest.mark.parametrize("one", ["x", {"class_path": "X"}])
def test_plus_makes_a_list_of_a_single_value_and_replaces_nothing(one: Any) -> None:
    assert values({"t": {"c": one}}, {"t": {"c+": "y"}}) == {"t": {"c": [one, "y"]}}
    assert values({"t": {"c": one}}, {"t": {"c+": ["y", "z"]}}) == {"t": {"c": [one, "y", "z"]}}


def test_plus_appends_in_the_first_config_too() -> None:
    assert values({"t": {"u": {"c+": ["x"]}}}) == {"t": {"u": {"c": ["x"]}}}


def test_plus_keeps_the_places_of_a_single_value(write) -> None:
    one, two = write("c:\n  d: a\n", "one.yaml"), write("\nc+:\n  e: b\n", "two.yaml")
    config = compose([read(one), read(two)], ACCEPTED.get)
    assert config.values == {"c": [{"d": "a"}, {"e": "b"}]}
    assert config.where(("c", "0", "d")) == f"{one}:2: c.0.d"
    assert config.where(("c", "1", "e")) == f"{two}:3: c.1.e"


def test_plus_keeps_the_places_of_what_it_appends(write) -> None:
    one, two = write("c:\n  - a\n  - b\n", "one.yaml"), write("\nc+:\n  - d: 1\n", "two.yaml")
    config = compose([read(one), read(two)], ACCEPTED.get)
    assert config.values == {"c": ["a", "b", {"d": 1}]}
    assert config.where(("c", "1")) == f"{one}:3: c.1"
    assert config.where(("c", "2", "d")) == f"{two}:3: c.2.d"


def test_another_class_keeps_the_arguments_it_also_takes() -> None:
    base = {"o": {"class_path": "Adam", "init_args": {"lr": 1, "betas": 2}, "dict_kwargs": {"x": 1}}}
    config = compose([Config(base), Config({"o": {"class_path": "Sgd"}})], ACCEPTED.get)
    assert config.values == {"o": {"class_path": "Sgd", "init_args": {"lr": 1}}}
    assert config.notes == ["--o.class_path: Sgd does not take betas of Adam; left out"]


def test_another_class_with_arguments_of_its_own() -> None:
    base = {"o": {"class_path": "Adam", "init_args": {"lr": 1, "betas": 2}}}
    over = {"o": {"class_path": "Sgd", "init_args": {"lr": 3, "momentum": 4}}}
    assert values(base, over) == over


def test_the_same_class_and_an_unknown_class_keep_everything() -> None:
    base = {"o": {"class_path": "Adam", "init_args": {"lr": 1, "betas": 2}}}
    assert values(base, {"o": {"class_path": "Adam", "init_args": {"lr": 3}}})["o"]["init_args"] == {
        "lr": 3,
        "betas": 2,
    }
    assert values(base, {"o": {"class_path": "Unknown"}})["o"]["init_args"] == {"lr": 1, "betas": 2}


def test_the_place_is_that_of_the_last_word(write) -> None:
    one, two = write("a:\n  b: 1\n  c: 2\n", "one.yaml"), write("\na:\n  b: 3\n", "two.yaml")
    config = compose([read(one), read(two)], ACCEPTED.get)
    assert config.where(("a", "b")) == f"{two}:3: a.b"
    assert config.where(("a", "c")) == f"{one}:3: a.c"


def test_locate_finds_an_argument_by_the_end_of_its_name(write) -> None:
    config = read(path := write("model:\n  init_args:\n    policy:\n      path: x\n    value:\n      path: y\n"))
    assert config.locate("policy.path") == f"{path}:4: model.init_args.policy.path"
    assert config.locate("model.policy.path") == f"{path}:4: model.init_args.policy.path"
    assert config.locate("path") is None  # two of them
    assert config.locate("absent") is None


def test_a_missing_file_names_the_nearest(write, tmp_path: Path) -> None:
    write("a: 1", "recipe.yaml")
    with pytest.raises(UserError, match=r"did you mean .*recipe\.yaml"):
        find(str(tmp_path / "recipee.yaml"))
    with pytest.raises(UserError, match="is a folder"):
        find(str(tmp_path))


def test_shipped_recipes_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("configs/optimizer/adamw.yaml").is_file()
    with pytest.raises(UserError, match=r"did you mean configs/optimizer/adamw_8bit\.yaml"):
        find("configs/optimizer/adamw8bit.yaml")
    own = tmp_path / "configs" / "optimizer" / "adamw.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("x: 1")
    assert read("configs/optimizer/adamw.yaml").values == {"x": 1}  # the user's own comes first


def test_split() -> None:
    assert split(["-c", "a", "--x", "1", "--config=b", "--config", "c", "d"]) == (["a", "b", "c"], ["--x", "1", "d"])
    with pytest.raises(UserError, match="needs a file"):
        split(["--config"])
