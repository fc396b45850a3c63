"""`instructlit labels agreement`: how well the labelers agree."""

import json
import math
from typing import Any

from instructlit.agreement import Share
from instructlit.errors import UserError, counted
from instructlit.labels.report import agreement_report
from instructlit.terminal import harmless
from instructlit.tools.labels.sources import labels_of


def labels_agreement(
    labels: list[str] = [],  # noqa: B006
    as_json: bool = False,
    *,
    database: str | None = None,
) -> None:
    """Measure how well labelers of the same tasks agree.

    Prints the share of pairs of completions, among those that neither labeler ties, that two labelers put in the same
    order, with its 95 % interval by task (the paper reports 72.6 ± 1.5 %); Krippendorff's alpha (ordinal) of ranks and
    ratings; Fleiss' kappa of each flag; and each labeler's agreement with the others.

    Args:
        labels: files of labels.
        as_json: print JSON instead of a table.
        database: labelling database whose labels are included: a file, or the URL of a PostgreSQL server.
    """
    if not labels and database is None:
        raise UserError("no labels are given", where="labels", expected="files of labels, or --database")
    found = agreement_report(labels_of(labels, database))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['overlapping_tasks']} of {counted(found['tasks'], 'ranked task')} with two or more labelers")
    print(f"pairs ordered alike: {_share(found['pairwise'])}")
    for name in ("alpha_ranks", "alpha_ratings"):
        print(f"Krippendorff's alpha, ordinal, {name.removeprefix('alpha_')}: {_number(found[name])}")
    for name, value in found["kappa_flags"].items():
        print(f"Fleiss' kappa, {harmless(name)}: {_number(value)}")
    for name, share in found["labelers"].items():
        print(f"{harmless(name)} with the others: {_share(share)}")


def _share(found: dict[str, Any]) -> str:
    if not found["pairs"]:
        return "no pairs to compare"
    width = math.nan if found["half_width"] is None else found["half_width"]
    share = Share(found["agreement"], width, found["pairs"], found["tasks"])
    return f"{share} ({counted(share.pairs, 'pair')}, {counted(share.units, 'task')})"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:z.3f}"  # no -0.000
