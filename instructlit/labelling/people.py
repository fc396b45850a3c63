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
"""E-mail addresses, and what a judge calls itself, which may be a path, are names too; none looks like an option."""


def new_secret() -> str:
    """256 random bits as text, for a token or a browser's cookie."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is stored in place of a token or of a browser's cookie."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def add_person(session: Session, actor: str, name: str, role: str) -> str:
    """Add somebody and return the token, which is not to be had again.

    Raises:
        Invalid: as `add_without_token` does.
    """
    return new_token(session, actor, add_without_token(session, actor, name, role))


def add_without_token(session: Session, actor: str, name: str, role: str) -> Person:
    """Add somebody who cannot sign in yet, such as a labeler of another tool.

    Raises:
        Invalid: a name that is taken or has other characters than letters, digits and ` . @ - _ / + ' : ( )`; an
            unknown role.
    """
    if not _NAME.fullmatch(name):
        expected = "1 to 80 letters, digits, or any of . @ - _ / + ' : ( ) and blanks inside"
        raise Invalid(f"{name[:80]!r} cannot be a name", where="name", expected=expected)
    if role not in ROLES:
        raise Invalid(f"{role[:40]!r} is no role", where="role", expected=" or ".join(ROLES))
    if session.scalar(select(Person).where(Person.name == name)):
        fix = "take another name, or give this person a new token"
        raise Invalid(f"there is somebody called {name!r} already", where="name", fix=fix)
    person = Person(name=name, role=role, created_at=time.time())
    session.add(person)
    session.flush()
    audit.note(session, actor, "add person", f"person {person.id}", name=name, role=role)
    return person


def new_token(session: Session, actor: str, person: Person) -> str:
    """A further token for somebody; earlier ones hold until they are revoked."""
    secret = new_secret()
    token = Token(person_id=person.id, digest=digest(secret), created_at=time.time(), revoked_at=None)
    session.add(token)
    session.flush()
    audit.note(session, actor, "new token", f"person {person.id}", token=token.id)
    return secret


def revoke(session: Session, actor: str, person: Person) -> int:
    """Revoke all tokens of somebody, which ends their logins at once; how many there were.

    Raises:
        NotAllowed: nobody could sign in as owner after it.
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
    """The owner of a token, with the secret for their browser's cookie; None for a token that does not hold."""
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
    """Who a browser's cookie belongs to, if its login and its token still hold."""
    query = (
        select(Person)
        .join(Token, Token.person_id == Person.id)
        .join(Login, Login.token_id == Token.id)
        .where(Login.digest == digest(cookie), Login.ended_at.is_(None), Login.expires_at > time.time())
        .where(Token.revoked_at.is_(None))
    )
    return session.scalar(query)


def sign_out(session: Session, actor: str, cookie: str) -> None:
    """End the login of one browser."""
    session.execute(update(Login).where(Login.digest == digest(cookie)).values(ended_at=time.time()))
    audit.note(session, actor, "sign out", actor)


def find_person(session: Session, name: str) -> Person:
    """Somebody by name.

    Raises:
        NotFound: nobody is called that.
    """
    person = session.scalar(select(Person).where(Person.name == name))
    if person is None:
        known = ", ".join(session.scalars(select(Person.name).order_by(Person.name)).all()) or "nobody yet"
        raise NotFound(f"there is nobody called {name!r}", where="name", expected=f"one of: {known}")
    return person


def everybody(session: Session) -> Sequence[tuple[Person, int]]:
    """All people by name, each with the number of tokens that hold."""
    live = func.count(Token.id).filter(Token.revoked_at.is_(None))
    query = (
        select(Person, live).outerjoin(Token, Token.person_id == Person.id).group_by(Person.id).order_by(Person.name)
    )
    return [(person, count) for person, count in session.execute(query)]


def has_owner(session: Session) -> bool:
    """Whether anybody can sign in as owner."""
    return session.scalars(_OWNERS).first() is not None
