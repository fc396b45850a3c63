"""The pages in Chromium: autosave, keys, dragging with a mouse and with a finger, two windows, a lost connection.

Skips where there is no Chromium or no Playwright for Python; tests/labelling/test_app.py covers the routes without.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from label_helpers import QUESTIONS, add_people, add_tasks, comparisons, label, label_records
from sqlalchemy import select, update

from instructlit.labelling import people
from instructlit.labelling.database import Database
from instructlit.labelling.schema import Assignment, Login
from instructlit.tools.label.app import create_app
from instructlit.tools.label.security import Cookies
from instructlit.tools.label.site import Site

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the path")

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script> [x](javascript:window.hacked=1)"
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture
def address(file_database: Database) -> Iterator[str]:
    """A running site on the empty database."""
    site = Site(file_database, "Tests", 600, Cookies(https=False))
    server = uvicorn.Server(uvicorn.Config(create_app(site), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield f"http://localhost:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def open_as(browser: Any, address: str, file_database: Database) -> Iterator[Open]:
    """A window of somebody new, signed in; whatever the console says against a page fails the test."""
    complaints: list[str] = []
    contexts = []

    def window(name: str, role: str = "labeler", **options: Any) -> Any:
        with file_database.write() as session:
            token = people.add_person(session, "test", name, role)
        context = browser.new_context(base_url=address, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        sign_in(page, token)
        return page

    yield window
    for context in contexts:
        context.close()
    expected = ("ERR_INTERNET_DISCONNECTED", "401", "403", "409", "413", "502", "ERR_FAILED")
    assert [text for text in complaints if not any(word in text for word in expected)] == []


def sign_in(page: Any, token: str) -> None:
    page.goto("/sign-in")
    page.fill("#token", token)
    page.click("main button")
    page.wait_for_url(lambda url: not url.endswith("/sign-in"))


def begin(page: Any, kind: str = "comparison") -> str:
    page.goto("/")
    page.click(f"button[value={kind}]")
    page.wait_for_url("**/work/**")
    return page.url


@pytest.fixture
def page(open_as: Open, file_database: Database) -> Any:
    """That of a demonstration that anna has begun, the one task that there is."""
    add_tasks(file_database, {"kind": "demonstration", "prompt": "Write."})
    window = open_as("anna")
    begin(window, "demonstration")
    return window


def hand_in_in_vain(page: Any) -> None:
    for _ in range(2):
        with page.expect_response("**/draft"):
            page.click("#go")
        playwright.expect(page.locator("#status")).to_have_text("Not saved")


def saved(page: Any) -> None:
    playwright.expect(page.locator("#status")).to_have_text("Saved")


def test_a_comparison_by_keys_alone(open_as: Open, file_database: Database) -> None:
    add_tasks(file_database, *comparisons(1))
    page = open_as("anna")
    begin(page)
    for rating in ("7", "2", "2"):
        page.keyboard.press(rating)
        page.keyboard.press("y")  # the first question, then on to the second
        page.keyboard.press("n")
        page.keyboard.press("a")  # the third may not apply
        page.keyboard.press("r")
        before = page.url
        page.keyboard.press("Control+Enter")
        page.wait_for_url(lambda url, before=before: url != before)
    for key in ("1", "2", "2"):  # each key ranks the chosen output and chooses the next
        page.keyboard.press(key)
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/?none=comparison")
    (record,) = label_records(file_database)
    assert [record["ranks"][i] for i in record["order"]] == [1, 2, 2]
    assert [record["ratings"][i] for i in record["order"]] == [7, 2, 2]
    first, second, third = (question.name for question in QUESTIONS[:3])
    for flags in record["flags"]:
        assert (flags[first], flags[second], third in flags, len(flags)) == (True, False, False, 10)
    assert record["seconds"] > 0


def test_arrows_move_the_card_that_has_the_focus(open_as: Open, file_database: Database) -> None:
    add_tasks(file_database, *comparisons(1))
    page = open_as("anna")
    page.goto(begin(page).rsplit("/", 1)[0] + "/rank")
    page.focus(".card[data-place='1']")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator(".column[data-rank='2'] .card").get_attribute("data-place") == "1"
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    saved(page)
    page.keyboard.press("Control+z")
    playwright.expect(page.locator("[name=rank_1]")).not_to_have_value("2")


@pytest.mark.parametrize("finger", [False, True], ids=["mouse", "finger"])
def test_outputs_are_dragged_into_columns(open_as: Open, file_database: Database, finger: bool) -> None:
    add_tasks(file_database, *comparisons(1))
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True} if finger else {}
    page = open_as("anna", **options)
    page.goto(begin(page).rsplit("/", 1)[0] + "/rank")
    page.locator(".columns").scroll_into_view_if_needed()
    start = page.locator(".card[data-place='0'] .letter").bounding_box()
    end = page.locator(".column[data-rank='3'] .slot").bounding_box()
    path = [(start["x"] + 5, start["y"] + 5), (start["x"] + 40, start["y"] + 40), (end["x"] + 20, end["y"] + 10)]
    if finger:
        drag_by_finger(page, path)
    else:
        page.mouse.move(*path[0])
        page.mouse.down()
        for point in path[1:]:
            page.mouse.move(*point, steps=4)
        page.mouse.up()
    assert page.input_value("[name=rank_0]") == "3"
    saved(page)
    page.reload()
    assert page.locator(".column[data-rank='3'] .card").get_attribute("data-place") == "0"


def drag_by_finger(page: Any, path: list[tuple[float, float]]) -> None:
    """Touches as the screen of a phone sends them."""
    screen = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        given = [{"x": x, "y": y} for x, y in points]
        screen.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": given})

    touch("touchStart", path[0])
    for point in path[1:]:
        touch("touchMove", point)
    touch("touchEnd")


def test_what_is_typed_is_saved_and_undone_across_a_reload(page: Any) -> None:
    for text in ("One.", "One. Two."):
        page.fill("#completion", text)
        saved(page)
    page.reload()
    assert page.input_value("#completion") == "One. Two."
    page.click("#undo button")
    playwright.expect(page.locator("#completion")).to_have_value("One.")
    page.click("#redo button")
    playwright.expect(page.locator("#completion")).to_have_value("One. Two.")


def test_a_line_break_at_the_beginning_is_kept(page: Any, file_database: Database) -> None:
    page.fill("#completion", "\n    return x")
    saved(page)
    page.reload()
    assert page.input_value("#completion") == "\n    return x"
    page.fill("#notes", "a continuation")
    saved(page)
    page.click("#go")
    page.wait_for_url("**/?none=demonstration")
    assert [record["completion"] for record in label_records(file_database)] == ["\n    return x"]


def test_what_is_pressed_twice_or_held_down_is_sent_once(open_as: Open, file_database: Database) -> None:
    add_tasks(file_database, *({"kind": "demonstration", "prompt": f"Write {i}."} for i in range(2)))
    page = open_as("anna")
    begin(page, "demonstration")
    for text in ("One.", "One. Two."):
        page.fill("#completion", text)
        saved(page)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(f"{request.method} {request.url.rpartition('/')[2]}"))
    page.locator("h1").click()
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    playwright.expect(page.locator("#completion")).to_have_value("One.")
    page.wait_for_load_state()
    page.keyboard.down("Control")
    for _ in range(3):
        page.keyboard.down("Enter")
    page.wait_for_url("**/work/*?done=*")
    page.keyboard.down("Enter")
    page.fill("#completion", "Three.")
    saved(page)
    assert [each for each in sent if each in ("POST undo", "POST page")] == ["POST undo", "POST page"]


def test_a_page_whose_leaving_was_stopped_can_be_left(open_as: Open, file_database: Database) -> None:
    add_tasks(file_database, {"kind": "demonstration", "prompt": "Write."})
    page = open_as("anna")
    page.clock.install()
    begin(page, "demonstration")
    page.fill("#completion", "One.")
    saved(page)
    page.route("**/page", lambda route: route.abort("aborted"))
    with page.expect_event("requestfailed"):
        page.click("#go", no_wait_after=True)
    page.unroute("**/page")
    page.clock.fast_forward(30_000)
    page.click("#go")
    page.wait_for_url("**/?none=demonstration")


def test_a_second_window_is_told_and_the_first_ones_text_stays(open_as: Open, file_database: Database) -> None:
    add_tasks(file_database, {"kind": "demonstration", "prompt": "Write."})
    page = open_as("anna")
    url = begin(page, "demonstration")
    other = page.context.new_page()
    other.goto(url)
    page.fill("#completion", "from the first")
    saved(page)
    other.fill("#completion", "from the second")
    other.wait_for_selector("#conflict:not([hidden])")
    assert "changed elsewhere" in other.inner_text("#conflict")
    with file_database.read() as session:
        assert session.scalars(select(Assignment)).one().answer["completion"] == "from the first"
    hand_in_in_vain(other)
    assert other.input_value("#completion") == "from the second"


def test_what_is_wrong_and_what_helps_are_two_sentences(page: Any) -> None:
    page.route("**/draft", lambda route: route.fulfill(status=403, json={"error": "It has expired", "fix": "repeat"}))
    page.fill("#completion", "typed")
    playwright.expect(page.locator("#conflict")).to_have_text("It has expired. Repeat.")


def test_an_ended_session_costs_no_text(page: Any, file_database: Database) -> None:
    with file_database.write() as session:
        session.execute(update(Login).values(expires_at=0.0))
        token = people.new_token(session, "test", people.find_person(session, "anna"))
    page.fill("#completion", "typed too late")
    playwright.expect(page.locator("#conflict")).to_contain_text("no longer signed in")
    hand_in_in_vain(page)
    sign_in(page.context.new_page(), token)
    page.fill("#completion", "typed too late, and more")
    saved(page)
    assert page.is_hidden("#conflict")
    page.click("#go")
    page.wait_for_url("**/?none=demonstration")
    assert [record["completion"] for record in label_records(file_database)] == ["typed too late, and more"]


def test_a_lost_connection_is_said_and_made_good(page: Any, file_database: Database) -> None:
    page.context.set_offline(True)
    page.fill("#completion", "written in a tunnel")
    playwright.expect(page.locator("#status")).to_contain_text("Not saved")
    page.context.set_offline(False)
    saved(page)
    with file_database.read() as session:
        assert session.scalars(select(Assignment)).one().answer["completion"] == "written in a tunnel"


@pytest.mark.parametrize("status", [200, 502])
def test_a_reply_that_is_none_of_ours_costs_no_text(page: Any, file_database: Database, status: int) -> None:
    page.route("**/draft", lambda route: route.fulfill(status=status, content_type="text/html", body="<p>A proxy's."))
    page.fill("#completion", "kept")
    playwright.expect(page.locator("#status")).to_contain_text("Not saved: the server cannot save now")
    page.unroute("**/draft")
    saved(page)
    page.click("#go")
    page.wait_for_url("**/?none=demonstration")
    assert [record["completion"] for record in label_records(file_database)] == ["kept"]


def test_what_is_too_large_to_send_is_told_and_stays(page: Any) -> None:
    page.evaluate("document.querySelector('#notes').value = '汉'.repeat(2 ** 18)")
    page.fill("#completion", "kept")
    playwright.expect(page.locator("#conflict")).to_contain_text("That is too large: at most 2 MB.")
    page.fill("#notes", "")
    saved(page)
    playwright.expect(page.locator("#conflict")).to_be_hidden()


def test_hostile_text_does_nothing_in_a_real_browser(open_as: Open, file_database: Database) -> None:
    hostile = {"prompt": HOSTILE, "completions": [HOSTILE, f"{HOSTILE}!"], "policies": HOSTILE}
    add_tasks(file_database, {"kind": "comparison"} | hostile, {"kind": "evaluation"} | hostile)
    anna, olga = open_as("anna"), open_as("olga", "owner")
    pages = []
    for kind in ("comparison", "evaluation"):
        begin(anna, kind)
        pages.append(anna.evaluate("window.hacked === undefined && !document.querySelector('main img')"))
        anna.click("#plain")
        pages.append(anna.evaluate("window.hacked === undefined"))
    olga.goto("/owner/tasks/1")
    pages.append(olga.evaluate("window.hacked === undefined"))
    assert all(pages)


def test_each_text_is_read_in_its_own_direction(open_as: Open, file_database: Database) -> None:
    arabic = "مرحبا بالعالم."
    add_tasks(
        file_database,
        {"kind": "evaluation", "prompt": arabic, "completions": [arabic, "b", "c"], "priority": 1},
        {"kind": "evaluation", "prompt": [{"role": "user", "content": arabic}], "completions": ["a", "b", "c"]},
    )
    page = open_as("anna")
    begin(page, "evaluation")
    for text in page.get_by_text(arabic).all():
        assert text.evaluate("each => getComputedStyle(each).direction") == "rtl"
    for key in "123":
        page.keyboard.press(key)
    saved(page)
    page.click("#go")
    page.wait_for_url("**/work/*?done=*")
    assert page.locator(".prompt .rendered").evaluate("each => getComputedStyle(each).direction") == "rtl"


def test_without_scripts_the_work_can_be_done_all_the_same(open_as: Open, file_database: Database) -> None:
    add_tasks(file_database, {"kind": "evaluation", "prompt": "Which?", "completions": ["a", "b", "c"]})
    page = open_as("anna", java_script_enabled=False)
    begin(page, "evaluation")
    for place, rank in enumerate(("2", "1", "3")):
        page.select_option(f"[name=rank_{place}]", rank)
    page.click("#go")
    page.wait_for_url("**/?none=evaluation")
    (record,) = label_records(file_database)
    assert [record["ranks"][i] for i in record["order"]] == [2, 1, 3]


def test_no_page_is_wider_than_a_phone(open_as: Open, file_database: Database) -> None:
    wide = ["x" * 400, "```\n" + "y" * 400 + "\n```", "|a|b|\n|-|-|\n|" + "z" * 400 + "|b|"]
    add_tasks(file_database, *comparisons(1, completions=wide, policies=None), overlap=2)
    add_people(file_database, "ben")
    phone = {"viewport": {"width": 360, "height": 740}}
    anna, olga = open_as("anna", **phone), open_as("olga", "owner", **phone)
    url = begin(anna).rsplit("/", 1)[0]
    for page, paths in ((anna, ("/", f"{url}/1", f"{url}/3", f"{url}/rank")), (olga, ("/owner", "/owner/tasks/1"))):
        for path in paths:
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path


def test_no_word_of_the_list_of_tasks_breaks_on_a_phone(open_as: Open, file_database: Database) -> None:
    add_tasks(file_database, *comparisons(1), {"kind": "demonstration", "prompt": "Write."})
    page = open_as("olga", "owner", viewport={"width": 360, "height": 740})
    page.goto("/owner/tasks")
    cells = page.locator("td:nth-child(2), td:nth-child(3)")
    lines = "(cell, range) => { range.selectNodeContents(cell); return range.getClientRects().length; }"
    found = cells.evaluate_all(f"cells => cells.map((cell) => ({lines})(cell, document.createRange()))")
    assert found == [1] * 4, "a line each"


def test_a_wide_table_keeps_its_names_in_sight_on_a_phone(open_as: Open, file_database: Database) -> None:
    add_tasks(file_database, *comparisons(1), overlap=2)
    for person in add_people(file_database, "anna", "ben"):
        label(file_database, person, 1, 2, 3)
    page = open_as("olga", "owner", viewport={"width": 360, "height": 740})
    table = page.locator("[aria-label=Labelers]")
    table.evaluate("box => { box.scrollLeft = 300; }")
    assert table.evaluate("box => box.scrollLeft") > 0, "it is wider than the screen"
    name = table.locator("th[scope=row]").first.bounding_box()
    assert 0 <= name["x"] < 40
    share = table.locator(".share").first.bounding_box()
    assert share["height"] < 1.5 * name["height"]


def test_reading_without_a_change_is_time_on_the_task_too(open_as: Open, file_database: Database) -> None:
    add_tasks(file_database, *comparisons(1))
    page = open_as("anna")
    page.clock.install()
    begin(page)
    for _ in range(4):
        page.clock.run_for(1_000)
    page.click("#go")
    page.wait_for_url("**/2")
    with file_database.read() as session:
        assert session.scalars(select(Assignment)).one().seconds >= 3


LONG = "\n\n".join(["word " * 150] * 12)


def test_the_end_of_a_long_output_stays_in_sight_while_it_is_judged(open_as: Open, file_database: Database) -> None:
    add_tasks(file_database, *comparisons(1, completions=[LONG, f"{LONG} b", f"{LONG} c"]))
    page = open_as("anna", viewport={"width": 1366, "height": 768})
    begin(page)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    before = page.evaluate("scrollY")
    for key in "5ynn":
        page.keyboard.press(key)
    assert page.evaluate("scrollY") == before > 768
    question = page.locator("[data-question]:focus-within").bounding_box()
    assert 0 <= question["y"] < 768 - question["height"]


def test_a_long_prompt_is_read_before_its_answer_is_written(open_as: Open, file_database: Database) -> None:
    prompts = ("Write.", LONG)
    add_tasks(file_database, *({"kind": "demonstration", "prompt": prompt} for prompt in prompts))
    page = open_as("anna")
    begin(page, "demonstration")
    page.keyboard.type("At once.")
    saved(page)
    page.click("#go")
    page.wait_for_url("**/work/*?done=*")
    assert page.evaluate("[scrollY, document.activeElement.id]") == [0, ""]


def test_nine_outputs_stand_in_a_row_on_a_laptop_and_lead_to_their_texts(
    open_as: Open, file_database: Database
) -> None:
    texts = [f"{LONG} {i}" for i in range(8)]
    add_tasks(file_database, *comparisons(1, completions=[*texts, ""], policies=None))
    page = open_as("anna", viewport={"width": 1280, "height": 720})
    page.goto(begin(page).rsplit("/", 1)[0] + "/rank")
    assert len({column.bounding_box()["y"] for column in page.locator(".columns .column").all()}) == 1
    assert page.locator(".card", has_text="This output is empty").count() == 1
    card = page.locator(".card[data-place='7']")
    assert card.get_attribute("aria-label") == "Output H, not ranked"
    card.focus()
    for key in ("ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.ariaLabel") == "Output H, rank 2"
    card.locator(".letter").click()
    text = page.locator("#output-7")
    assert abs(text.bounding_box()["y"]) < 100
    text.get_by_role("link", name="Back to the ranking").click()
    assert abs(page.locator("#board").bounding_box()["y"]) < 100
    letter = card.locator(".letter").bounding_box()
    page.mouse.move(letter["x"] + 5, letter["y"] + 5)
    page.mouse.down()
    page.mouse.move(letter["x"] + 60, letter["y"] + 60, steps=4)
    page.mouse.move(letter["x"] + 5, letter["y"] + 5, steps=4)
    page.mouse.up()
    assert page.url.endswith("#board"), "dropped where it was taken up, it goes nowhere"
