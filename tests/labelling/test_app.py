"""The application through a test client, as a browser without scripts uses it, and as somebody hostile does."""

import asyncio
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import count
from typing import Any

import pytest
from label_helpers import NO, Browser, add_people, add_tasks, comparisons, label, label_records
from sqlalchemy import event, select

from instructlit.labelling import people
from instructlit.labelling.database import Database
from instructlit.labelling.measures import measure
from instructlit.labelling.schema import Assignment, Task
from instructlit.tools.label import owner, owner_tasks
from instructlit.tools.label.app import create_app
from instructlit.tools.label.rows import task_record
from instructlit.tools.label.security import MAX_BODY, Cookies, SignInLimit, csrf_token
from instructlit.tools.label.site import Site

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](http://evil.example/track.png)",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt&#58;alert(1))",
    "[click](data:text/html,<script>alert(1)</script>)",
    '[click](https://ok.example "onmouseover=alert(1)")',
    "<javascript:alert(1)>",
    '"><svg onload=alert(1)>',
    "{{ 7 * 7 }} {% raw %}",
    "</textarea></pre></title><script>alert(1)</script>",
    "```html\n</code></pre><script>alert(1)</script>\n```",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u202e\u2066 reversed <b>\x1b[2J",
)

Browse = Callable[..., Browser]


@pytest.fixture
def site(file_database: Database) -> Site:
    return Site(file_database, "Tests <&>", 600, Cookies(https=False))


@pytest.fixture
def browse(site: Site) -> Browse:
    """A new browser; with a name, one that somebody new has signed in with."""
    app = create_app(site, ["localhost"])

    def browser(name: str | None = None, role: str = "labeler") -> Browser:
        opened = Browser(app, base_url="http://localhost")
        if name is None:
            return opened
        with site.database.write() as session:
            token = people.add_person(session, "test", name, role)
        return opened.sign_in(token)

    return browser


class _Page(HTMLParser):
    """What a page could do: its elements, and their attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))


def assert_harmless(html: str) -> None:
    """No script but ours, nothing from elsewhere, no handler, no style, no link that runs."""
    for tag, attributes in _Page(html).elements:
        assert tag not in ("iframe", "object", "embed", "base", "style", "math", "img")
        assert tag != "script" or re.fullmatch(r"/static/\w+\.js", attributes["src"] or "")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style"
            if tag == "a" and attributes.get("rel") == "noopener noreferrer nofollow":
                assert name != "href" or re.match(r"https?://", value or ""), value
            elif name in ("src", "href", "action", "formaction"):
                assert re.match(r"/(?!/)|#", value or ""), (tag, name, value)


def number_of(response) -> int:
    found = re.match(r"/work/(\d+)", response.headers["location"])
    assert found is not None, response.headers["location"]
    return int(found[1])


def start(browser: Browser, kind: str = "comparison") -> int:
    return number_of(browser.submit("/next", kind=kind))


FLAGS = {f"flag_{name}": "no" for name in NO}


def test_a_comparison_from_start_to_export(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(2, round=1))
    anna = browse("anna")
    task = start(anna)
    assert "Say a, 0." in anna.get(f"/work/{task}").text
    order = [1, 2, 0]  # not its own inverse, as most orders of three are
    with site.database.write() as session:
        session.scalars(select(Assignment)).one().order = order
    for place in range(3):
        fields = {"version": place, "output": place + 1, "rating": 5 - place, "go": str(place + 2)} | FLAGS
        if place == 2:
            fields["go"] = "rank"
        reply = anna.submit(f"/work/{task}/page", **fields)
        assert reply.headers["location"] == f"/work/{task}/{fields['go']}"
    board = anna.get(f"/work/{task}/rank").text
    assert "rated 5" in board
    reply = anna.submit(f"/work/{task}/page", version=3, rank_0=2, rank_1=1, rank_2=2, notes="close", go="submit")
    assert number_of(reply) != task
    assert "Handed in." in anna.get(reply.headers["location"]).text
    (record,) = label_records(site.database)
    assert [record["ranks"][i] for i in order] == [2, 1, 2]
    assert [record["ratings"][i] for i in order] == [5, 4, 3]
    assert record["notes"] == "close"

    olga = browse("olga", "owner")
    (line,) = olga.get("/owner/export/comparison.jsonl").text.splitlines()
    row = json.loads(line)
    assert (row["labeler"], row["ranks"], row["policy"]) == ("anna", record["ranks"], ["p", "q", "r"])
    assert olga.get("/owner/export/demonstration.jsonl").text == ""


def test_a_demonstration_and_a_duel(browse: Browse, site: Site) -> None:
    duel = {"kind": "evaluation", "prompt": "Which?", "completions": ["one", "two"], "policies": ["sft", "ppo"]}
    add_tasks(site.database, {"kind": "demonstration", "prompt": "Write."}, duel)
    anna = browse("anna")
    writing = start(anna, "demonstration")
    anna.submit(f"/work/{writing}/page", version=0, completion="line\r\nbreak", go="submit")
    judging = start(anna, "evaluation")
    page = anna.get(f"/work/{judging}").text
    assert "sft" not in page
    assert "ppo" not in page
    anna.submit(f"/work/{judging}/page", version=0, verdict="b", go="submit")
    written, judged = label_records(site.database)
    assert written["completion"] == "line\nbreak"
    assert [judged["completions"][i] for i in judged["order"]][1] == judged["completions"][judged["ranks"].index(1)]


def test_no_page_of_a_labeler_names_a_policy_or_tells_gold_from_others(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(1, policies="secret-policy", gold=[1, 2, 3], source="secret"))
    anna = browse("anna")
    task = start(anna)
    pages = [anna.get(f"/work/{task}/{page}").text for page in ("1", "2", "3", "rank")] + [anna.get("/").text]
    assert not any("secret" in page or "gold" in page.lower() for page in pages)


def test_the_order_is_random_for_each_labeler(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(1), overlap=40)
    for person in add_people(site.database, *(f"p{i}" for i in range(40))):
        label(site.database, person, 1, 2, 3)
    with site.database.read() as session:
        orders = {tuple(order) for order in session.scalars(select(Assignment.order))}
    assert len(orders) == 6  # all of them, but for a chance of one in 250


def test_autosave_answers_with_the_version_and_refuses_an_old_one(browse: Browse, site: Site) -> None:
    add_tasks(site.database, {"kind": "demonstration", "prompt": "Write."})
    anna = browse("anna")
    task = start(anna, "demonstration")
    as_json = {"accept": "application/json"}
    first = {"csrf": anna.csrf, "version": "0", "completion": "one", "nonce": "a"}
    reply = anna.post(f"/work/{task}/draft", data=first, headers=as_json)
    assert reply.json() == {"version": 1, "undo": True, "redo": False, "problems": []}
    assert anna.post(f"/work/{task}/draft", data=first, headers=as_json).json()["version"] == 1
    reply = anna.post(f"/work/{task}/draft", data=first | {"completion": "two", "nonce": "b"}, headers=as_json)
    assert reply.status_code == 409
    assert "changed elsewhere" in reply.json()["error"]
    assert "one" in anna.get(f"/work/{task}").text
    reply = anna.submit(f"/work/{task}/undo", version=1)
    assert reply.status_code == 303
    with site.database.read() as session:
        assert session.scalars(select(Assignment)).one().answer["completion"] == ""
    anna.submit(f"/work/{task}/redo", version=2)
    with site.database.read() as session:
        assert session.scalars(select(Assignment)).one().answer["completion"] == "one"


def test_undo_and_redo_go_to_the_page_of_what_they_changed(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(1))
    anna = browse("anna")
    work = f"/work/{start(anna)}"
    anna.submit(f"{work}/draft", version=0, output=1, rating=6)
    anna.submit(f"{work}/draft", version=1, output=1, rating=3)
    anna.submit(f"{work}/draft", version=2, rank_2=1)
    anna.submit(f"{work}/draft", version=3, notes="typed on the page of B")
    steps = (("undo", "2"), ("undo", "rank"), ("undo", "1"), ("redo", "1"), ("redo", "rank"))
    for version, (direction, shows) in enumerate(steps, 4):
        reply = anna.submit(f"{work}/{direction}", version=version, page="2")
        assert reply.headers["location"] == f"{work}/{shows}"


def test_what_is_not_complete_is_refused_but_kept(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(1))
    anna = browse("anna")
    task = start(anna)
    reply = anna.submit(f"/work/{task}/page", version=0, rank_0=1, go="submit")
    page = anna.get(reply.headers["location"])
    assert page.url.path == f"/work/{task}/1", "the first page that something is missing on"
    assert "Not handed in yet." in page.text
    assert "Not ranked yet: B, C." in page.text
    assert '<option value="1" selected>' in anna.get(f"/work/{task}/rank").text


def test_work_goes_on_where_a_question_is_open(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(1))
    anna = browse("anna")
    task = start(anna)
    flags = {f"flag_{name}": "no" for name in NO}
    anna.submit(f"/work/{task}/draft", version=0, output=1, rating=6, **flags)
    anna.submit(f"/work/{task}/draft", version=1, output=2, rating=6)
    anna.submit(f"/work/{task}/draft", version=2, output=3, rating=6, **flags)
    assert anna.get(f"/work/{task}").url.path == f"/work/{task}/2"


def test_the_more_the_dashboards_figures_take_the_more_seldom_they_are_computed(
    browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, events, computed = [100.0], count(), []

    def measured(records: Any) -> Any:
        computed.append(clock[0])
        clock[0] += 3.0  # that is what it takes
        return measure(records)

    monkeypatch.setattr(owner, "measure", measured)
    monkeypatch.setattr(owner.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(owner.overview, "newest_event", lambda session: next(events))  # people label all the while
    olga = browse("olga", "owner")
    for now in (100.0, 110.0, 159.0, 160.0, 219.0, 220.0):
        clock[0] = now
        assert olga.get("/owner").status_code == 200
    assert computed == [100.0, 160.0, 220.0]


def test_skipping_reporting_reopening(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(3))
    anna, olga = browse("anna"), browse("olga", "owner")
    first = start(anna)
    second = number_of(anna.submit(f"/work/{first}/skip", reason="unclear", note="<b>"))
    reply = anna.submit(f"/work/{second}/flag", reason="harmful", note="a threat")
    assert number_of(reply) not in (first, second)
    assert anna.get(f"/work/{second}").status_code == 403
    dashboard = olga.get("/owner").text
    assert "a threat" in dashboard
    with site.database.read() as session:
        held = session.scalars(select(Task).where(Task.state == "held")).one()
    assert olga.submit(f"/owner/tasks/{held.id}/decide", decision="withdraw").status_code == 303
    assert "a threat" not in olga.get("/owner").text
    anna.submit(f"/work/{first}/reopen")
    assert "Output A" in anna.get(f"/work/{first}/1").text


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_a_text_says_does_anything(browse: Browse, site: Site, text: str) -> None:
    chat = [{"role": role, "content": text} for role in ("user", "assistant", "user")]
    hostile = {"completions": [text, text + "!"], "policies": [text, text], "use_case": text, "user": text}
    add_tasks(
        site.database,
        {"kind": "comparison", "prompt": text} | hostile,
        {"kind": "evaluation", "prompt": chat} | hostile,
        {"kind": "demonstration", "prompt": text},
        overlap=2,
    )
    anna, olga = browse("anna"), browse("olga", "owner")
    olga.submit("/owner/instructions/comparison", text=text, go="save")
    olga.post(
        "/owner/import",
        data={"csrf": olga.csrf, "kind": "demonstration"},
        files={"file": (text.replace("\n", " "), b'{"prompt": "from a file"}\n')},
    )
    pages = [anna.get(f"/work/{start(anna)}/{page}") for page in ("1", "rank")]
    pages += [anna.get(f"/work/{start(anna, kind)}") for kind in ("evaluation", "demonstration")]
    task = start(anna, "demonstration")
    anna.submit(f"/work/{task}/page", version=0, completion=text, notes=text, go="submit")
    anna.submit(f"/work/{start(anna)}/flag", reason="private", note=text)
    pages += [anna.get(path) for path in ("/", "/history", f"/work/{task}")]
    owners = ("", "/tasks", "/tasks/1", "/tasks/2", "/tasks/3", "/audit", "/people", "/instructions/comparison")
    pages += [olga.get(f"/owner{path}") for path in owners]
    for page in pages:
        assert page.status_code == 200, page.text
        assert_harmless(page.text)


def test_every_page_carries_the_headers_that_keep_it_to_itself(browse: Browse) -> None:
    visitor = browse()
    for path in ("/sign-in", "/static/work.js", "/nowhere", "/owner"):
        headers = visitor.get(path, follow_redirects=False).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
    assert visitor.get("/sign-in").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["/", "/history", "/work/1", "/owner", "/owner/people", "/owner/export/comparison.jsonl"]
)
def test_without_signing_in_there_is_nothing_to_see(browse: Browse, path: str) -> None:
    assert browse().get(path, follow_redirects=False).headers["location"] == "/sign-in"


OWNER_PAGES = ("", "/tasks", "/tasks/1", "/people", "/instructions/comparison", "/import", "/audit")
OWNER_FORMS = ("/people", "/people/1/token", "/people/1/revoke", "/instructions/comparison", "/tasks/1/gold", "/import")


def test_a_labeler_gets_nowhere_near_the_owners_pages(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(1))
    anna = browse("anna")
    for path in (*OWNER_PAGES, "/export/comparison.jsonl"):
        assert anna.get(f"/owner{path}").status_code == 403, path
    for path in (*OWNER_FORMS, "/tasks/1/decide"):
        assert anna.submit(f"/owner{path}", name="eve", role="owner", decision="withdraw", text="x").status_code == 403
    with site.database.read() as session:
        assert [person.name for person, _ in people.everybody(session)] == ["anna"]
        assert session.scalars(select(Task)).one().state == "open"


def test_the_work_of_others_is_not_there(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(2))
    task, ben = start(browse("anna")), browse("ben")
    assert ben.get(f"/work/{task}/1").status_code == 404
    for form in ("draft", "page", "skip", "flag", "reopen", "undo"):
        reason = "private" if form == "flag" else "other"
        reply = ben.submit(f"/work/{task}/{form}", version=0, rank_0=1, reason=reason, go="rank")
        assert reply.status_code == 404, form


@pytest.mark.parametrize(
    "path", ["/next", "/theme", "/sign-out", "/work/1/draft", "/work/1/page", "/owner/people", "/owner/tasks/1/decide"]
)
def test_no_form_is_taken_without_its_token(browse: Browse, site: Site, path: str) -> None:
    add_tasks(site.database, *comparisons(1))
    olga = browse("olga", "owner")
    start(olga)
    fields = {"kind": "comparison", "name": "eve", "role": "owner", "version": "0", "decision": "withdraw"}
    for extra in ({}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": csrf_token("another browser")}, {"csrf": "é"}):
        assert olga.post(path, data=fields | extra).status_code == 403
    right = fields | {"csrf": olga.csrf}
    for header in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert olga.post(path, data=right, headers=header).status_code == 403
    with site.database.read() as session:
        assert [person.name for person, _ in people.everybody(session)] == ["olga"]


def test_a_revoked_token_ends_the_browsers_that_use_it(browse: Browse, site: Site) -> None:
    anna, olga = browse("anna"), browse("olga", "owner")
    assert anna.get("/").status_code == 200
    page = olga.get("/owner/people").text
    number = re.search(r'/owner/people/(\d+)/revoke"[^\0]{1,200}Revoke the tokens of anna', page)
    assert number is not None
    olga.submit(f"/owner/people/{number[1]}/revoke")
    assert anna.get("/", follow_redirects=False).headers["location"] == "/sign-in"
    reply = anna.post("/work/1/draft", data={"csrf": anna.csrf}, headers={"accept": "application/json"})
    assert reply.status_code == 401


def test_signing_out_ends_the_cookie_too(browse: Browse) -> None:
    anna = browse("anna")
    stolen = anna.cookies["session"]
    anna.submit("/sign-out")
    anna.cookies.set("session", stolen, domain="localhost.local")
    assert anna.get("/", follow_redirects=False).headers["location"] == "/sign-in"


def test_a_new_token_is_shown_once_and_works(browse: Browse) -> None:
    olga = browse("olga", "owner")
    page = olga.submit("/owner/people", name="new one", role="labeler").text
    token = re.search(r'<code class="token">([\w-]+)</code>', page)
    assert token is not None
    assert token[1] not in olga.get("/owner/people").text
    assert token[1] not in olga.get("/owner/audit").text
    assert "new one" in browse().sign_in(token[1]).get("/").text


def test_the_session_cookie_is_out_of_reach(site: Site) -> None:
    with site.database.write() as session:
        token = people.add_person(session, "test", "anna", "labeler")
    site.cookies = Cookies(https=True)
    browser = Browser(create_app(site), base_url="https://labels.example")
    browser.get("/sign-in")
    secret = browser.cookies["__Host-visitor"]
    reply = browser.post("/sign-in", data={"csrf": csrf_token(secret), "token": token}, follow_redirects=False)
    cookie = next(c for c in reply.headers.get_list("set-cookie") if c.startswith("__Host-session"))
    assert {"HttpOnly", "Secure", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "max-age=31536000" in reply.headers["strict-transport-security"]


def test_failed_sign_ins_are_limited_and_good_tokens_wait_too(browse: Browse, site: Site) -> None:
    site.limit = SignInLimit(failures=3, seconds=60)
    with site.database.write() as session:
        token = people.add_person(session, "test", "anna", "labeler")
    visitor = browse()
    visitor.get("/sign-in")
    assert [visitor.submit("/sign-in", token=f"guess {i}").status_code for i in range(4)] == [401, 401, 401, 429]
    reply = visitor.submit("/sign-in", token=token)
    assert reply.status_code == 429
    assert 0 < int(reply.headers["retry-after"]) <= 60


def test_the_limit_counts_networks_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("instructlit.tools.label.security.time.monotonic", lambda: now[0])
    limit = SignInLimit(failures=2, seconds=60, remembered=2)
    for address in ("2001:db8::1", "2001:db8::2"):
        limit.fail(address)
    assert limit.wait("2001:db8::3") == 60
    assert limit.wait("2001:db8:1::1") == 0
    now[0] = 61
    assert limit.wait("2001:db8::1") == 0
    for address in ("1.1.1.1", "2.2.2.2", "3.3.3.3"):
        limit.fail(address)
    assert len(limit._failed) == 2
    limit.fail("::ffff:3.3.3.3")  # what a server on :: sees of IPv4
    assert limit.wait("3.3.3.3") == 60
    assert limit.wait("::ffff:4.4.4.4") == 0


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2f..%2fsecurity.py",
        "/static//etc/passwd",
        "/owner/export/..%2f..%2flabels.db",
        "/owner/export/comparison.jsonl%00.txt",
        "/owner/export/person.jsonl",
        "/owner/instructions/..%2Fcomparison",
        "/owner/tasks/-1",
        "/owner/tasks/99999999999999999999",
        "/owner/tasks/1e3",
        "/owner/tasks?after=99999999999999999999",
        "/owner/audit?before=99999999999999999999",
        "/work/0",
        "/work/1/99",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_path_leads_anywhere_else(browse: Browse, path: str) -> None:
    reply = browse("olga", "owner").get(path)
    assert reply.status_code in (404, 422), reply.text
    assert_harmless(reply.text)
    assert not any(word in reply.text for word in ("def ", "root:", "SQLite"))


@pytest.mark.parametrize("back", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_nobody_is_sent_to_another_site(browse: Browse, back: str) -> None:
    assert browse("anna").submit("/theme", theme="dark", back=back).headers["location"] == "/"


def test_other_hosts_are_refused(browse: Browse) -> None:
    assert browse().get("/sign-in", headers={"host": "evil.example"}).status_code == 400


def test_a_body_that_says_it_is_too_large_is_refused(browse: Browse) -> None:
    anna = browse("anna")
    page = anna.submit("/next", kind="x" * MAX_BODY)
    assert page.status_code == 413
    assert "That is too large: at most 2 MB." in page.text
    anna.headers["accept"] = "application/json"  # a script of a page can tell it on, too
    assert anna.submit("/next", kind="x" * MAX_BODY).json()["error"] == "That is too large: at most 2 MB."


def test_a_body_that_does_not_say_so_is_cut_while_it_arrives(site: Site) -> None:
    sent, arrived = [], 0

    async def receive():
        nonlocal arrived
        arrived += 2**16
        assert arrived < 2 * MAX_BODY
        return {"type": "http.request", "body": b"x" * 2**16, "more_body": True}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/x-www-form-urlencoded")]
    scope = {"type": "http", "method": "POST", "path": "/next", "raw_path": b"/next", "query_string": b""}
    scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("localhost", 80), "client": None}
    asyncio.run(create_app(site)(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] in (400, 413)  # the form parser has limits of its own, some of them lower


@pytest.mark.parametrize(
    "fields",
    [
        {"version": "one"},
        {"version": "-1"},
        {"version": "٣"},
        {"version": "9" * 30},
        {"rank_0": "99"},
        {"rank_0": "x"},
        {"output": "7", "rating": "3"},
        {"output": "1", "rating": "8"},
        {"output": "1", "flag_sexual_content": "na"},
        {"output": "1", "flag_sexual_content": "maybe"},
        {"verdict": "c"},
        {"notes": "a\0b"},
        {"go": "../../owner"},
    ],
)
def test_fields_that_no_page_sends_change_nothing(browse: Browse, site: Site, fields: dict) -> None:
    add_tasks(site.database, *comparisons(1))
    anna = browse("anna")
    task = start(anna)
    reply = anna.submit(f"/work/{task}/page", **({"version": "0", "go": "rank"} | fields))
    assert reply.status_code in (409, 422), reply.status_code
    assert_harmless(reply.text)
    with site.database.read() as session:
        assert session.scalars(select(Assignment)).one().version == 0


def test_an_import_is_whole_or_not_at_all(browse: Browse, site: Site) -> None:
    olga = browse("olga", "owner")

    def upload(data: bytes, **fields):
        form = {"csrf": olga.csrf, "kind": "comparison", "overlap": "2"} | fields
        return olga.post("/owner/import", data=form, files={"file": ("rows<i>.jsonl", data)})

    good = json.dumps({"prompt": "p", "completions": ["a", "b"], "policy": "sft", "temperature": 0.7}).encode()
    for bad in (b"[1]", b"{", b'{"prompt": "p", "completions": ["a"]}', b"\xff", b"[" * 100_000):
        reply = upload(good + b"\n" + bad)
        assert reply.status_code == 422
        assert ">rows&lt;i&gt;.jsonl:2" in reply.text
    empty = upload(b"\n")
    assert empty.status_code == 422
    assert "found no rows" in empty.text
    with site.database.read() as session:
        assert session.scalars(select(Task)).all() == []
    assert "1 new task." in upload(good + b"\n\n").text
    assert "1 already there" in upload(good).text
    with site.database.read() as session:
        task = session.scalars(select(Task)).one()
        assert (task.overlap, task.policies, task.extra) == (2, ["sft", "sft"], {"temperature": 0.7})
    assert upload(good, kind="poem").status_code == 422


def test_nobody_waits_while_an_upload_is_read(browse: Browse, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    olga, others_wait = browse("olga", "owner"), []

    def read(*row):
        others_wait.append(site.database._writers.locked())  # type: ignore[union-attr]
        return task_record(*row)

    monkeypatch.setattr(owner_tasks, "task_record", read)
    form = {"csrf": olga.csrf, "kind": "demonstration"}
    assert olga.post("/owner/import", data=form, files={"file": ("x", b'{"prompt": "p"}')}).status_code == 200
    assert others_wait == [False]


def test_an_answer_becomes_gold_by_the_owners_word(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(1))
    anna, ben = add_people(site.database, "anna", "ben")
    label(site.database, anna, 2, 1, 1)
    olga = browse("olga", "owner")
    olga.submit("/owner/tasks/1/gold", labeler="anna")
    label(site.database, ben, 1, 2, 3)  # the task had its one label; as gold it goes to everybody
    assert "Agrees with gold on 0 of 2 pairs" in olga.get("/owner/tasks/1").text
    assert olga.submit("/owner/tasks/1/gold", labeler="nobody").status_code == 404


def test_instructions_are_previewed_and_then_kept(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(1))
    anna, olga = browse("anna"), browse("olga", "owner")
    page = f"/work/{start(anna)}/1"
    assert "<strong>Mine</strong>" in olga.submit("/owner/instructions/comparison", text="**Mine**", go="preview").text
    assert "Mine" not in anna.get(page).text
    before = anna.get(page).text
    olga.submit("/owner/instructions/comparison", text="**Mine**", go="save")
    assert "<strong>Mine</strong>" in anna.get(page).text
    field = re.compile(r'name="instructions" value="(\d+)"')
    versions = [int(field.findall(text)[0]) for text in (before, anna.get(page).text)]
    assert len(set(versions)) == 2
    anna.submit(page.removesuffix("1") + "draft", version=0, notes="x", instructions=versions[1])
    with site.database.read() as session:
        assert session.scalars(select(Assignment)).one().instructions == versions[1]
    assert anna.submit(page.removesuffix("1") + "draft", version=1, notes="y", instructions=999).status_code == 422


def test_the_dashboard_of_real_labels(browse: Browse, site: Site) -> None:
    add_tasks(site.database, *comparisons(3), overlap=2)
    anna, ben = add_people(site.database, "anna", "ben")
    for _ in range(3):
        label(site.database, anna, 1, 2, 3)
        label(site.database, ben, 1, 3, 2)
    page = browse("olga", "owner").get("/owner").text
    assert "3 of 3 tasks have all their labels" in page
    assert "67 %" in page  # 2 of 3 pairs on every task
    assert page.count("2 of 3 pairs agreed") == 3


def test_a_coefficient_that_rounds_to_none_has_no_sign(site: Site) -> None:
    coefficient = site.templates.get_template("macros.html").module.coefficient  # type: ignore[attr-defined]
    assert [coefficient(value) for value in (-0.004, 0.004, -0.006, 1.0)] == ["0.00", "0.00", "-0.01", "1.00"]


def test_a_full_disk_is_told_and_is_no_fault_of_ours(
    browse: Browse, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    add_tasks(site.database, {"kind": "demonstration", "prompt": "Write."})
    anna = browse("anna")
    work = f"/work/{start(anna, 'demonstration')}"
    draft = {"version": 0, "completion": "long " * 20_000}

    def fill(connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # no more than there are

    event.listen(site.database.engine, "begin", fill)
    page = anna.submit(f"{work}/page", go="submit", **draft)
    assert page.status_code == 503
    assert "The database is not available now; nothing was changed." in page.text
    assert "Tell the owner, who can see why on the server, and try again later.<" in page.text
    assert capsys.readouterr().err == f"{site.database}: database or disk is full\n"
    event.remove(site.database.engine, "begin", fill)
    site.database.engine.dispose()
    assert anna.submit(f"{work}/page", go="submit", **draft).status_code == 303
    assert len(label_records(site.database)) == 1


def test_a_fault_of_ours_shows_nothing_of_it(browse: Browse, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    browse("anna")  # one that is signed in may see no more than others

    def fails(*_):
        raise RuntimeError("secret path /home/x")

    monkeypatch.setattr("instructlit.labelling.people.signed_in", fails)
    visitor = Browser(create_app(site), base_url="http://localhost", raise_server_exceptions=False)
    visitor.cookies.set("session", "x")
    reply = visitor.get("/")
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_a_browser_that_goes_while_it_sends_is_no_fault_of_the_server(site: Site) -> None:
    head = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/sign-in", "query_string": b""}
    sent = [(b"host", b"localhost"), (b"content-type", b"application/x-www-form-urlencoded"), (b"content-length", b"9")]
    arriving = iter([{"type": "http.request", "body": b"csrf", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(arriving)

    async def send(message: Any) -> None:
        pass

    async def ask() -> None:
        await create_app(site)(head | {"headers": sent}, receive, send)

    asyncio.run(ask())  # what it raised the server would write down, with its stack trace
