"""Names on the Hugging Face Hub: checked once with a short timeout, before a library retries for minutes."""

import functools
import re
from pathlib import Path

from instructlit.errors import UserError, first_line

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""What a name on the Hub looks like."""
PATIENCE = 10.0
"""Seconds to wait for the Hub's answer."""


def check_revision(revision: str | None, folder: Path, where: str) -> None:
    """Rejects a revision given for a local folder, which has only one state: another one may be meant.

    Args:
        revision: a branch, tag or commit on the Hub; None if none is given.
        folder: the folder to read.
        where: the option that gives the revision.

    Raises:
        UserError: if it is given.
    """
    if revision is not None:
        raise UserError(
            f"found {revision}, but {folder} is a local folder and has no revisions",
            where=where,
            expected="a revision only with a name on the Hugging Face Hub",
            fix="remove the revision, or give the model's name on the Hub",
        )


@functools.cache
def reachable(name: str, revision: str | None, where: str) -> str:
    """What to load for a model name on the Hub: the name, or its folder in the cache if the Hub cannot be reached.

    Raises:
        UserError: if the Hub has no such model or revision or denies access, or does not answer and nothing is cached.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    what = f"{name} is not a local folder, and the Hugging Face Hub"
    try:
        HfApi().model_info(name, revision=revision, timeout=PATIENCE)
    except GatedRepoError as error:
        raise UserError(
            f"{what} allows access only to accounts that have accepted its terms",
            where=where,
            fix="accept the terms on its page, then log in with `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{name} has no revision {revision}", where=where, expected="a branch, tag or commit"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{what} has no such model (or it is private)",
            where=where,
            expected="an existing folder or a name on the Hub",
            fix="correct the name; for a private model log in with `hf auth login`",
        ) from error
    except Exception as error:  # no network, a timeout, or offline by choice: many exceptions, one meaning
        if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code < 500:
            raise UserError(f"{what} rejected the request: {first_line(error)[:200]}", where=where) from error
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return str(Path(cached).parent)
        raise UserError(
            f"{what} did not answer ({first_line(error)[:200]})",
            where=where,
            expected="an existing folder, or a Hub name that is reachable or cached",
            fix="correct the path; without a network, download the model first and give its folder",
        ) from error
    return name
