"""People, their tokens and the browsers they signed in with. No token is stored, only its digest."""

import hashlib
import re
import secrets
import time
from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from instructlit.labelling import audit
from instructlit.labelling.refusals import Invalid, NotAllowed, NotFound
from instructlit.labelling.schema import Login, Person, Token

ROLES = ("labeler", "owner")
LOGIN_SECONDS = 14 * 24 * 3600
_OWNERS = (
    select(Person).join(Token, Token.person_id == Person.id).where(Person.role == "owner", Token.revoked_at.is_(None))
)
"""Owners who can sign in."""
_NAME = re.compile(r"(?![ -])[\w .@/+':()-]{1,80}(?<! )")
"""E-mail addresses and the names of judges, which may be paths, are valid too; no name looks like an option."""


def new_secret() -> str:
    """256 random bits as text, for a token or a cookie."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is stored instead of a token or cookie."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def add_person(session: Session, actor: str, name: str, role: str) -> str:
    """Adds a person and returns the token, which cannot be shown again.

    Raises:
        Invalid: as `add_without_token` does.
    """
    return new_token(session, actor, add_without_token(session, actor, name, role))


def add_without_token(session: Session, actor: str, name: str, role: str) -> Person:
    """Adds a person who cannot sign in yet, such as a labeler of another tool.

    Raises:
        Invalid: if the name is taken or has characters other than letters, digits and ` . @ - _ / + ' : ( )`, or
            the role is unknown.
    """
    if not _NAME.fullmatch(name):
        expected = "1 to 80 letters, digits, or any of . @ - _ / + ' : ( ) and inner spaces"
        raise Invalid(f"{name[:80]!r} is not a valid name", where="name", expected=expected)
    if role not in ROLES:
        raise Invalid(f"{role[:40]!r} is not a role", where="role", expected=" or ".join(ROLES))
    if session.scalar(select(Person).where(Person.name == name)):
        fix = "choose another name, or create a new token for this person"
        raise Invalid(f"there is already somebody called {name!r}", where="name", fix=fix)
    person = Person(name=name, role=role, created_at=time.time())
    session.add(person)
    session.flush()
    audit.note(session, actor, "add person", f"person {person.id}", name=name, role=role)
    return person


def new_token(session: Session, actor: str, person: Person) -> str:
    """Creates another token for a person; earlier ones stay valid until they are revoked."""
    secret = new_secret()
    token = Token(person_id=person.id, digest=digest(secret), created_at=time.time(), revoked_at=None)
    session.add(token)
    session.flush()
    audit.note(session, actor, "new token", f"person {person.id}", token=token.id)
    return secret


def revoke(session: Session, actor: str, person: Person) -> int:
    """Revokes all tokens of a person, which ends their logins at once; returns how many there were.

    Raises:
        NotAllowed: if nobody could sign in as owner afterwards.
    """
    others = session.scalars(_OWNERS.where(Person.id != person.id)).first()
    if person.role == "owner" and others is None:
        fix = "add another owner first: `instructlit label add-labeler NAME --role owner`"
        raise NotAllowed(f"{person.name} is the only owner who can sign in", fix=fix)
    revoked = (
        update(Token).where(Token.person_id == person.id, Token.revoked_at.is_(None)).values(revoked_at=time.time())
    )
    count = session.execute(revoked).rowcount  # type: ignore[attr-defined]
    audit.note(session, actor, "revoke tokens", f"person {person.id}", count=count)
    return count


def sign_in(session: Session, secret: str) -> tuple[Person, str] | None:
    """The owner of a token, with the secret for their browser's cookie; None for an invalid token."""
    token = session.scalar(select(Token).where(Token.digest == digest(secret), Token.revoked_at.is_(None)))
    if token is None:
        return None
    cookie, now = new_secret(), time.time()
    login = Login(
        token_id=token.id, digest=digest(cookie), created_at=now, expires_at=now + LOGIN_SECONDS, ended_at=None
    )
    session.add(login)
    audit.note(session, token.person.name, "sign in", f"person {token.person_id}", token=token.id)
    return token.person, cookie


def signed_in(session: Session, cookie: str) -> Person | None:
    """The person that a cookie belongs to, if its login and its token are still valid."""
    query = (
        select(Person)
        .join(Token, Token.person_id == Person.id)
        .join(Login, Login.token_id == Token.id)
        .where(Login.digest == digest(cookie), Login.ended_at.is_(None), Login.expires_at > time.time())
        .where(Token.revoked_at.is_(None))
    )
    return session.scalar(query)


def sign_out(session: Session, actor: str, cookie: str) -> None:
    """Ends the login of one browser."""
    session.execute(update(Login).where(Login.digest == digest(cookie)).values(ended_at=time.time()))
    audit.note(session, actor, "sign out", actor)


def find_person(session: Session, name: str) -> Person:
    """A person by name.

    Raises:
        NotFound: if there is nobody of that name.
    """
    person = session.scalar(select(Person).where(Person.name == name))
    if person is None:
        known = ", ".join(session.scalars(select(Person.name).order_by(Person.name)).all()) or "nobody yet"
        raise NotFound(f"there is nobody called {name!r}", where="name", expected=f"one of: {known}")
    return person


def everybody(session: Session) -> Sequence[tuple[Person, int]]:
    """All people by name, each with the number of valid tokens."""
    live = func.count(Token.id).filter(Token.revoked_at.is_(None))
    query = (
        select(Person, live).outerjoin(Token, Token.person_id == Person.id).group_by(Person.id).order_by(Person.name)
    )
    return [(person, count) for person, count in session.execute(query)]


def has_owner(session: Session) -> bool:
    """Whether anybody can sign in as owner."""
    return session.scalars(_OWNERS).first() is not None
