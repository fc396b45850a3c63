"""A typed function as a command: how its parameters are given, and what is said when they are given wrongly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from instructlit.cli.tools import run
from instructlit.errors import UserError

CALLS: list[dict[str, Any]] = []


@dataclass
class Sizes:
    """How many.

    Args:
        corpus: of these.
        tests: of those.
    """

    corpus: int = 10
    tests: int = 20


def tool(
    checkpoint: Path,
    files: list[str],
    *,
    merge: bool = True,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_new_tokens: int | None = None,
    seeds: list[int] | None = None,
    temperature: float = 1.0,
    sizes: Sizes = Sizes(),  # noqa: B008
) -> int:
    """Do the thing.

    More about the thing.

    Args:
        checkpoint: the file it reads.
        files: the files it writes.
        merge: whether to merge.
        dtype: the kind of number.
        max_new_tokens: how many.
        seeds: the seeds.
        temperature: how hot.
        sizes: how many of each.
    """
    CALLS.append(dict(locals()))
    return 3


def called(*args: str) -> dict[str, Any]:
    CALLS.clear()
    assert run(tool, "tool", args) == 3
    return CALLS[0]


def test_by_position_and_by_name() -> None:
    assert called("a", "b", "c")["files"] == ["b", "c"]
    assert called("a", "b")["checkpoint"] == Path("a")
    assert called("--files", "b", "c", "--checkpoint", "a") == called("a", "b", "c")
    assert called("a", "--files", "b", "--files", "c") == called("a", "b", "c")
    assert called("a", "--files=[b,c]") == called("a", "b", "c")


def test_values_take_the_type_of_the_signature() -> None:
    got = called("8", "9", "--max-new-tokens", "5", "--seeds", "1", "2", "--temperature=-0.5", "--merge", "false")
    assert got["checkpoint"] == Path("8")
    assert got["files"] == ["9"]
    assert (got["max_new_tokens"], got["seeds"], got["temperature"], got["merge"]) == (5, [1, 2], -0.5, False)


def test_a_list_is_added_to_by_each_of_its_names() -> None:
    assert called("a", "--files", "b", "c", "--files+", "d", "--files+=e")["files"] == ["b", "c", "d", "e"]
    with pytest.raises(UserError, match=r"unknown option `--dtype\+`"):
        run(tool, "tool", ["a", "b", "--dtype+", "float32"])


def test_a_switch_alone_is_true_and_takes_no_word() -> None:
    got = called("a", "--merge", "--files", "b")
    assert (got["merge"], got["files"]) == (True, ["b"])


def test_a_dataclass_is_reached_by_its_fields() -> None:
    assert called("a", "b", "--sizes.corpus", "3")["sizes"] == Sizes(corpus=3)
    assert called("a", "b")["sizes"] == Sizes()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a", "b", "--max_new_token", "1"], "did you mean --max_new_tokens?"),
        (["a", "b", "--sizes.corpse", "1"], "did you mean --sizes.corpus?"),
        (["a", "b", "--dtype", "float31"], "did you mean float32?"),
        (["a", "b", "--max_new_tokens", "x"], "a whole number or null"),
        (["a", "b", "--sizes.corpus", "x"], "--sizes.corpus: `x`"),
        (["a", "b", "--seeds", "x"], "a list of a whole number"),
        (["a", "b", "--temperature"], "--temperature: needs a value"),
        (["a"], "--files: is required but not given"),
        (["--checkpoint", "a", "--files", "b", "--zzz", "c"], "one of --checkpoint, --files"),
    ],
)
def test_mistakes(args: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        run(tool, "tool", args)
    assert words in str(caught.value)


def test_one_word_too_many() -> None:
    def single(path: str) -> None:
        """Do it.

        Args:
            path: with this.
        """

    with pytest.raises(UserError, match="unexpected argument `b`"):
        run(single, "single", ["a", "b"])


def test_help_names_what_may_be_given_by_position(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tool, "tool", ["--help"]) == 0
    assert "by position, in this order: instructlit tool CHECKPOINT FILES ..." in " ".join(
        capsys.readouterr().out.split()
    )
    assert called("a.ckpt", "b", "c")["files"] == ["b", "c"]

    def some(first: list[str], second: str = "", *, third: str = "") -> int:
        """Do it."""
        return 3

    assert run(some, "some", ["--help"]) == 0
    assert capsys.readouterr().out.strip().endswith("instructlit some FIRST ...")  # a list takes all that follows


def test_help_has_one_sentence_for_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tool, "tool", ["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "usage: instructlit tool" in shown
    assert "Do the thing. More about the thing." in shown
    for sentence in ("the file it reads.", "the files it writes.", "whether to merge.", "of these."):
        assert sentence in shown
    assert "Args:" not in shown


def test_errors_of_the_command_itself_pass_through() -> None:
    def fails() -> None:
        """Fail."""
        raise UserError("not so", where="here")

    with pytest.raises(UserError, match="here: not so"):
        run(fails, "fails", [])
