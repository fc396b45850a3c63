"""Which errors are the user's, what is printed for them, and with which exit status."""

import errno
import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from instructlit import cli
from instructlit.cli.errors import explain, report
from instructlit.cli.warned import plainly
from instructlit.errors import Ending, UserError, chain, first_line


class MisconfigurationException(Exception):
    """As Lightning's, which is recognised by its name."""


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        if cause is None:
            raise error
        try:
            raise cause
        except BaseException:
            raise error  # noqa: B904 - an implicit context is what is tested
    except BaseException as caught:
        return caught


USER = UserError("no weights in it", where="policy.path", expected="a model folder", fix="name another")


@pytest.mark.parametrize(
    "error",
    [
        USER,
        raised(RuntimeError("wrapped"), USER),
        ExceptionGroup("several", [ValueError("x"), USER]),
    ],
)
def test_a_user_error_is_one_message_wherever_it_sits(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(error) == 2
    shown = capsys.readouterr()
    assert shown.err == f"instructlit: {USER}\n"
    assert shown.out == ""


class Own:
    """Of a kind that no checkpoint holds as data."""


def test_code_in_a_checkpoint_is_one_message_without_the_advice_to_run_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": Own()}, tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError) as caught:
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert report(caught.value) == 2
    shown = capsys.readouterr().err
    assert "test_cli_errors.Own, which is not data" in shown
    assert "Re-running" not in shown
    assert "Traceback" not in shown


def test_a_cause_counts_and_a_suppressed_context_does_not() -> None:
    explicit = RuntimeError("outer")
    explicit.__cause__ = USER
    assert explain(explicit) == str(USER)
    hidden = raised(RuntimeError("outer"), USER)
    hidden.__suppress_context__ = True
    assert explain(hidden) is None


def test_a_chain_that_bites_its_tail_ends() -> None:
    one, two = RuntimeError("1"), RuntimeError("2")
    one.__cause__, two.__cause__ = two, one
    assert list(chain(one)) == [one, two]


def test_other_mistakes_of_the_user() -> None:
    assert explain(MisconfigurationException("no GPU here")) == "no GPU here"
    missing = FileNotFoundError(2, "No such file or directory", "nowhere.jsonl")
    assert "nowhere.jsonl" in (explain(missing) or "")
    extra = ModuleNotFoundError("No module named 'bitsandbytes'", name="bitsandbytes.optim")
    assert "pip install 'instructlit[8bit]'" in (explain(extra) or "")
    assert explain(ModuleNotFoundError("No module named 'other'", name="other")) is None
    assert explain(ZeroDivisionError("ours")) is None
    for error in (FileExistsError(17, "File exists", "data"), PermissionError(13, "Permission denied", "data")):
        assert f"data: cannot be read or written: {error.strerror}" in (explain(error) or "")
    assert explain(PermissionError(13, "Permission denied")) is None  # nothing says of what


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_a_full_disk_advises_holds_for_commands_without_checkpoints(number: int) -> None:
    told = explain(OSError(number, "the reason"))
    assert told == "nothing more can be written: the reason\n  to do: free some space, then run the same command again"


def test_a_refusal_of_lightnings_is_a_mistake_of_the_user_and_a_value_error_of_ours_is_none() -> None:
    with pytest.raises(ValueError, match="invalid accelerator") as caught:
        Trainer(accelerator="rubbish", logger=False)
    assert explain(caught.value) == str(caught.value)
    assert explain(raised(ValueError("ours"))) is None


def test_our_own_fault_keeps_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(raised(ZeroDivisionError("ours"))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_the_trace_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("INSTRUCTLIT_DEBUG", "1")
    assert report(raised(USER)) == 2
    assert report(raised(ZeroDivisionError("ours"))) == 1
    assert capsys.readouterr().err.count("Traceback") == 2


def test_status_of_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "instructlit: stopped at your request\n"
    assert report(raised(SystemExit(1), KeyboardInterrupt())) == 130  # as Lightning leaves after Ctrl-C
    assert capsys.readouterr().err == "instructlit: stopped at your request\n"
    assert report(SIGTERMException()) == 143
    assert capsys.readouterr().err == "instructlit: stopped by SIGTERM\n"
    assert [report(Ending(code)) for code in (None, 0, 3)] == [0, 0, 3]
    assert capsys.readouterr().err == ""
    for code, said in ((None, "exit()"), (0, "exit(0)"), (3, "exit(3)"), ("no", "exit('no')")):
        assert report(SystemExit(code)) == 2, "it comes from code that the command called"
        assert f"instructlit: {said} was called before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fitt"], "did you mean `instructlit fit`?"),
        (["quickstrat", "--seed", "3"], "did you mean `instructlit quickstart`?"),
        (["data"], "`instructlit data check`"),
        (["data", "chek"], "`instructlit data check`"),
        (["data-check"], "did you mean `instructlit data check`?"),
        (["world", "lable"], "`instructlit world label`"),
        (["zzzz"], "one of fit, validate"),
    ],
)
def test_an_unknown_command_names_the_nearest(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)
    assert sorted(name for _, names in cli.GROUPS for name in names) == sorted(cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import instructlit

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"instructlit {instructlit.__version__}\n"


def test_a_warning_of_ours_is_its_sentence_and_one_of_a_library_keeps_its_place() -> None:
    place = ("a.py", 7, "warn(…)")
    assert plainly(UserWarning("too long"), UserWarning, cli.__file__, 7) == "instructlit: too long\n"
    assert plainly(UserWarning("too long"), UserWarning, *place).startswith("a.py:7: UserWarning: too long")


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("\n no such model\nat line 3"), "no such model"), (OSError(), "OSError"), (KeyError("a"), "'a'")],
)
def test_an_error_of_somebody_elses_is_told_in_one_line_and_by_its_kind_where_it_says_nothing(
    error: Exception, told: str
) -> None:
    assert first_line(error) == told
