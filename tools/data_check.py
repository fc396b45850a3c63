"""`instructlit data check`: what training would see of some data, before any GPU is used."""

from typing import TYPE_CHECKING, Any, Literal

from instructlit.terminal import harmless

if TYPE_CHECKING:
    from rich.table import Table

    from instructlit.data.check import Target
    from instructlit.data.check_report import CheckReport, Lengths, SourceReport
    from instructlit.data.datamodule import DataModule

KINDS = {
    "demonstration": "DemonstrationData",
    "comparison": "ComparisonData",
    "prompt": "PromptData",
    "text": "TextData",
}
_STYLES = {"fatal": "bold red", "warning": "yellow", "note": "dim"}


def data_check(
    files: list[str] | None = None,
    *,
    config: list[str] | None = None,
    validation: list[str] | None = None,
    tokenizer: str | None = None,
    kind: Literal["auto", "demonstration", "comparison", "prompt", "text"] = "auto",
    max_length: int = 2048,
    max_prompt_length: int | None = None,
    template: str = "auto",
    padding_token: str | None = None,
    json: bool = False,
) -> int:
    """Read the data of a config, or some files, and report what training would see: rows by format, lengths in tokens,
    what is truncated or dropped and why, problems with EOS and templates, duplicates, prompts shared between splits,
    ties, and how well length alone predicts the preferences. The exit status is 1 if something would stop or ruin
    training.

    Args:
        files: files to check (or globs, `datasets` folders, Hub names) if no config is given.
        config: configs of a training run; the data they name is checked with their options.
        validation: validation files, to be compared with `files`.
        tokenizer: folder or Hub name of the tokenizer; without one, lengths are in characters and masks are not
            checked.
        kind: what the rows are for; "auto" decides by the first row of `files`.
        max_length: tokens of prompt and completion that training would allow.
        max_prompt_length: tokens of a prompt that training would allow; half of max_length if not given.
        template: "auto" (the tokenizer's chat template, else plain), "plain", "turns", a Jinja file, or Jinja text.
        padding_token: token to pad with, if the tokenizer has no pad token.
        json: print the report as JSON instead of tables.
    """
    from instructlit.data.check import check_data, targets_of
    from instructlit.data.check_report import CheckReport, Problem
    from instructlit.errors import UserError

    if bool(files) == bool(config):
        raise UserError(
            "no files and no config are given" if not files else "both files and a config are given",
            where="instructlit data check",
            expected="instructlit data check FILE [FILE ...] --tokenizer FOLDER, or --config RECIPE.yaml",
        )
    data: DataModule | None = None
    try:
        if config:
            data = _from_config(config)
            targets = list(targets_of(data))
        else:
            data, targets = _from_files(
                files or [], validation, tokenizer, kind, max_length, max_prompt_length, template, padding_token
            )
        if data is not None:
            data.load_tokenizer()
        report = check_data(targets, data)
    except UserError as error:
        if not json:
            raise
        report = CheckReport(problems=[Problem("fatal", error.where or "", str(error))])
    _print_json(report) if json else _print_tables(report)
    return 1 if report.fatal else 0


def _from_config(paths: list[str]) -> "DataModule":
    """The datamodule that configs name, without their model."""
    from instructlit.cli.parts import built, checked
    from instructlit.data.datamodule import DataModule
    from instructlit.errors import UserError

    data = built(checked(paths), "data", paths[-1])
    if not isinstance(data, DataModule):
        raise UserError(
            f"{type(data).__name__} is a custom datamodule",
            where=f"{paths[-1]}: data",
            expected=f"one of {', '.join(KINDS.values())}, whose files this command can read",
        )
    return data


def _from_files(
    files: list[str],
    validation: list[str] | None,
    tokenizer: str | None,
    kind: str,
    max_length: int,
    max_prompt_length: int | None,
    template: str,
    padding_token: str | None,
) -> "tuple[DataModule | None, list[Target]]":
    """The datamodule that would read the files, if there is a tokenizer for it, and what to check."""
    import instructlit.data as family
    from instructlit.data.check import Target, guess_kind, targets_of

    found: Any = guess_kind(files[0]) if kind == "auto" else kind
    named = {"train": files, "validation": validation}
    if tokenizer is None:
        return None, [Target(name, found, list(paths)) for name, paths in named.items() if paths]
    options: dict[str, Any] = {"tokenizer": tokenizer, "padding_token": padding_token, **named}
    if found == "text":
        options["block_size"] = max_length
    else:
        options["template"] = template
        options["max_prompt_length"] = max_length // 2 if max_prompt_length is None else max_prompt_length
    if found in ("demonstration", "comparison"):
        options["max_length"] = max_length
    data: DataModule = getattr(family, KINDS[found])(**options)
    return data, list(targets_of(data))


def _print_json(report: "CheckReport") -> None:
    import json

    from instructlit.data.report import plain

    out = plain(report)
    for source, facts in zip(report.sources, out["sources"], strict=True):
        facts["kept"] = source.kept
        if source.pairs is not None:
            facts["pairs"]["length_accuracy"] = source.pairs.length_accuracy
    print(json.dumps({**out, "fatal": report.fatal}, indent=2, ensure_ascii=False))


def _print_tables(report: "CheckReport") -> None:
    from rich.console import Console

    console = Console()
    if report.tokenizer:
        facts = report.tokenizer
        layout = "chat template" if facts["chat_template"] else "plain layout"
        pad = f"{facts['pad']} (= EOS)" if facts["pad_is_eos"] else facts["pad"]
        console.print(
            harmless(
                f"tokenizer {facts['name']}: {facts['vocabulary']:,} tokens, EOS {facts['eos']}, pad {pad}, {layout}"
            ),
            markup=False,
            highlight=False,
        )
    if report.sources:
        console.print(_table(report))
    for source in report.sources:
        for row in source.wrong_rows:
            console.print(harmless(row), style="red", markup=False, highlight=False)
    for problem in report.problems:
        style = _STYLES[problem.level]
        told = harmless(f"{problem.level}: {problem.where}: {problem.what}")
        console.print(told, style=style, markup=False, highlight=False)
    if not report.problems:
        console.print("no problems found", style="green")


def _table(report: "CheckReport") -> "Table":
    """One column for each option that names files, one row for each fact that any of them has."""
    from rich.table import Table

    table = Table(show_header=True, header_style="bold")
    table.add_column("")
    for source in report.sources:
        table.add_column(f"{source.name}\n{source.kind}s", justify="right")
    columns = [_facts(source) for source in report.sources]
    names = list(dict.fromkeys(name for column in columns for name in column))
    for name in names:
        cells = [column.get(name, "") for column in columns]
        if any(cell not in ("", "0") for cell in cells) or name in ("rows", "kept"):
            table.add_row(name, *cells)
    return table


def _facts(source: "SourceReport") -> dict[str, str]:
    """The rows of the table for one option; facts that do not apply to its kind are left out."""

    def count(n: int) -> str:
        return f"{n:,}"

    facts = {"files": count(len(source.files)), "rows": count(source.rows), "invalid rows": count(source.wrong)}
    facts |= {f"form: {form}": count(n) for form, n in source.formats.items()}
    facts |= {f"dropped: {reason}": count(n) for reason, n in source.dropped.items()}
    facts |= {"kept": count(source.kept), "truncated": count(source.truncated)}
    for name, lengths in (
        ("prompt", source.prompt_lengths),
        ("response", source.response_lengths),
        ("whole", source.lengths),
    ):
        if lengths:
            facts[f"{name}: {source.unit}, median / 90 % / 99 % / longest"] = _quantiles(lengths)
    facts |= {
        "sequences without EOS (truncated)": count(source.missing_eos),
        "EOS inside a completion": count(source.eos_inside),
        "later turns inside a completion": count(source.later_turns),
        "special token in the text": count(source.special_inside),
        "unknown token learned": count(source.unknown),
        "chat template mismatch": count(source.template_mismatch),
        "prompt merges with completion": count(source.merged_boundaries),
        "white space before a completion": count(source.leading_space),
        "duplicates": count(source.duplicates),
    }
    if source.kind != "text":
        facts |= {
            "distinct prompts": count(len(source.prompts)),
            "near-duplicate prompts": count(source.near_duplicates),
        }
    if source.kind == "prompt":
        facts["prompts with possible personal data"] = count(source.personal_data)
    if pairs := source.pairs:
        facts["completions of a prompt"] = " ".join(f"{k}:{n}" for k, n in sorted(pairs.completions.items()))
        facts |= {"pairs": count(pairs.total), "tied pairs": count(pairs.tied), "equal pairs": count(pairs.equal)}
        if pairs.length_accuracy:
            share, low, high = pairs.length_accuracy
            facts['"longer wins" is right'] = f"{share:.1%} ({low:.1%} to {high:.1%})"
    return facts


def _quantiles(lengths: "Lengths") -> str:
    return f"{lengths.median:,} / {lengths.p90:,} / {lengths.p99:,} / {lengths.longest:,}"
