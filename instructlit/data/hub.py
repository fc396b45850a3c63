"""Names on the Hugging Face Hub: asked for once, with a short patience, before a library tries for minutes."""

import functools
import re
from pathlib import Path

from instructlit.errors import UserError, first_line

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""What a name on the Hub looks like."""
PATIENCE = 10.0
"""Seconds to wait for the Hub's answer."""


def check_revision(revision: str | None, folder: Path, where: str) -> None:
    """Refuse a revision of what a local folder holds: there is one of it, and another may be meant.

    Args:
        revision: a branch, tag or commit on the Hub; None asks for none.
        folder: what is to be read.
        where: the option that gives the revision.

    Raises:
        UserError: it is given.
    """
    if revision is not None:
        raise UserError(
            f"{revision} of {folder}, which is a folder here and has no revisions",
            where=where,
            expected="a name on the Hugging Face Hub beside it",
            fix="remove it, or name the model on the Hub",
        )


@functools.cache
def reachable(name: str, revision: str | None, where: str) -> str:
    """What to load for a model name on the Hub: the name, or where the Hub cannot be reached, its folder in the cache.

    Raises:
        UserError: the Hub has no such model or revision, or refuses it; no answer and nothing in the cache.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    what = f"{name} is no folder here, and the Hugging Face Hub"
    try:
        HfApi().model_info(name, revision=revision, timeout=PATIENCE)
    except GatedRepoError as error:
        raise UserError(
            f"{what} gives it only to accounts that accepted its terms",
            where=where,
            fix="accept them on its page, then log in with `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{name} has no revision {revision}", where=where, expected="a branch, tag or commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{what} has no such model (or it is private)",
            where=where,
            expected="an existing folder, or a name on the Hub",
            fix="correct the name; for a private model log in with `hf auth login`",
        ) from error
    except Exception as error:  # no network, no answer in time, or offline by choice: many kinds, one meaning
        if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code < 500:
            raise UserError(f"{what} refused it: {first_line(error)[:200]}", where=where) from error
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return str(Path(cached).parent)
        raise UserError(
            f"{what} did not answer ({first_line(error)[:200]})",
            where=where,
            expected="an existing folder, or a Hub name that can be reached or is in the cache",
            fix="correct the path; without a network, download the model first and name its folder",
        ) from error
    return name
