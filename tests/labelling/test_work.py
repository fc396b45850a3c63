"""Who gets which task, and what becomes of an answer: on SQLite, and on PostgreSQL where there is a server."""

import hashlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from label_helpers import (
    COMPARISON,
    LEASE,
    NO,
    add_people,
    add_tasks,
    comparisons,
    label,
    label_records,
    ranked,
    save,
    take,
)
from sqlalchemy import func, select

from instructlit.labelling import assign, audit, intake, people, records, tasks, work
from instructlit.labelling.answers import dense, from_shown, shown
from instructlit.labelling.database import Database
from instructlit.labelling.instructions import begin_with, instructions, set_instructions
from instructlit.labelling.refusals import Invalid, NotAllowed, NotFound, Stale
from instructlit.labelling.schema import Assignment, Base, Event, Flag, Person, Revision, Task

WHOLE = ranked(1, 2, 3)


def begun(database: Database) -> tuple[Person, Assignment]:
    """Anna, and the one task there is, which she has taken."""
    (anna,) = add_people(database, "anna")
    add_tasks(database, *comparisons(1))
    assignment = take(database, anna)
    assert assignment is not None
    return anna, assignment


def test_a_task_goes_to_as_many_people_as_its_overlap_and_to_nobody_twice(database: Database) -> None:
    anna, ben, chloe = add_people(database, "anna", "ben", "chloe")
    add_tasks(database, *comparisons(1), overlap=2)
    first = take(database, anna)
    assert first is not None
    assert first.id == take(database, anna).id  # type: ignore[union-attr] - asking again goes on with it
    assert take(database, ben) is not None
    assert take(database, chloe) is None
    label(database, anna, 1, 2, 3)
    assert take(database, anna) is None
    label(database, ben, 1, 2, 3)
    with database.read() as session:
        assert session.scalar(select(Task.state)) == "full"


def test_an_expired_lease_frees_the_place_and_loses_nothing(database: Database) -> None:
    anna, ben, chloe = add_people(database, "anna", "ben", "chloe")
    add_tasks(database, *comparisons(1))
    late = take(database, anna, lease=-1)
    assert late is not None
    save(database, anna, late, 0, ranked(3, 2, 1), lease_seconds=-1)
    in_time = take(database, ben)
    assert in_time is not None
    assert take(database, chloe) is None
    assert take(database, anna).id == late.id  # type: ignore[union-attr] - the draft is still there to go on with
    for person, assignment, version in ((ben, in_time, 0), (anna, late, 1)):
        save(database, person, assignment, version, ranked(1, 2, 2) if person is ben else ranked(3, 2, 1))
    with database.write() as session:
        work.submit(session, ben, in_time.id, 1)
        work.submit(session, anna, late.id, 1)
    assert {r["labeler"]: r["ranks"] for r in label_records(database)} == {"ben": [1, 2, 2], "anna": [3, 2, 1]}


def test_an_untouched_task_whose_place_was_taken_is_not_forced_on_anybody(database: Database) -> None:
    anna, ben = add_people(database, "anna", "ben")
    add_tasks(database, *comparisons(2))
    first = take(database, anna, lease=-1)
    assert first is not None
    label(database, ben, 1, 2, 3)
    other = take(database, anna)
    assert other is not None
    assert other.task_id != first.task_id


def test_many_at_once_never_exceed_the_overlap(database: Database) -> None:
    team = add_people(database, *(f"p{i}" for i in range(12)))
    add_tasks(database, *comparisons(8), overlap=2)
    start = threading.Barrier(len(team))

    def work_until_nothing_is_left(person) -> list[int]:
        start.wait()
        taken = []
        while (assignment := take(database, person)) is not None:
            taken.append(assignment.task_id)
            save(database, person, assignment, 0, WHOLE)
            with database.write() as session:
                work.submit(session, person, assignment.id, 1)
        return taken

    with ThreadPoolExecutor(len(team)) as pool:
        taken = [task for each in pool.map(work_until_nothing_is_left, team) for task in each]
    assert set(Counter(taken).values()) == {2}
    assert len(label_records(database)) == 16


def test_a_task_taken_between_finding_and_locking_it_is_not_given_out(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = add_people(database, "anna", "ben")
    add_tasks(database, *comparisons(2))
    taken = take(database, anna)
    assert taken is not None
    find, found = assign._candidate, []

    def found_too_early(session, *rest):
        found.append(session.get(Task, taken.task_id) if not found else find(session, *rest))
        return found[-1]

    monkeypatch.setattr(assign, "_candidate", found_too_early)
    given = take(database, ben)
    assert given is not None
    assert given.task_id != taken.task_id
    assert len(found) == 2


def test_of_two_windows_the_second_to_save_is_told_and_overwrites_nothing(database: Database) -> None:
    anna, assignment = begun(database)
    outcomes = []
    start = threading.Barrier(2)

    def save_from_window(ranks) -> None:
        start.wait()
        try:
            save(database, anna, assignment, 0, ranked(*ranks))
            outcomes.append(ranks)
        except Stale:
            outcomes.append("stale")

    windows = [threading.Thread(target=save_from_window, args=(ranks,)) for ranks in ((1, 2, 3), (3, 2, 1))]
    for window in windows:
        window.start()
    for window in windows:
        window.join()
    assert outcomes.count("stale") == 1
    (kept,) = [outcome for outcome in outcomes if outcome != "stale"]
    with database.read() as session:
        found = session.scalars(select(Assignment)).one()
        assert (found.version, found.answer["ranks"]) == (1, list(kept))


def test_a_save_whose_reply_was_lost_may_be_sent_again(database: Database) -> None:
    anna, assignment = begun(database)
    for _ in range(2):
        assert save(database, anna, assignment, 0, WHOLE, nonce="n1").version == 1
    more = ranked(3, 2, 1)  # what was done while the page waited for the reply
    assert save(database, anna, assignment, 0, more, nonce="n1").version == 2
    with database.read() as session:
        assert session.scalars(select(Assignment)).one().answer == more
    with pytest.raises(Stale):
        save(database, anna, assignment, 0, WHOLE, nonce="n2")


def test_undo_and_redo_walk_through_every_change(database: Database) -> None:
    anna, assignment = begun(database)
    states = [ranked(None, None, None, ratings=None), ranked(1, None, None), ranked(1, 2, None)]
    save(database, anna, assignment, 0, states[1])
    save(database, anna, assignment, 1, states[2])

    def step(version: int, direction: str) -> list[int | None]:
        with database.write() as session:
            return work.step(session, anna, assignment.id, version, direction).answer["ranks"]

    nothing = [None, None, None]
    assert step(2, "undo") == [1, None, None]
    assert step(3, "undo") == nothing
    assert step(4, "undo") == nothing  # nothing further: no new version either
    assert step(4, "redo") == [1, None, None]
    assert step(5, "redo") == [1, 2, None]
    assert step(6, "redo") == [1, 2, None]
    save(database, anna, assignment, 6, ranked(3, 3, 3))
    assert step(7, "redo") == [3, 3, 3]  # a new change ends what could be redone
    assert step(7, "undo") == [1, 2, None]
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Revision)) == 9  # 0 to 8: all of them are kept


def test_what_is_not_complete_cannot_be_handed_in_and_stays_saved(database: Database) -> None:
    anna, assignment = begun(database)
    draft = ranked(1, None, 2)
    draft["outputs"][0] = {"rating": None, "flags": {}}
    save(database, anna, assignment, 0, draft)
    todo = r"No rating yet: ([ABC])\. Unanswered questions: \1\. Not ranked yet: [ABC]\."
    with pytest.raises(Invalid, match=todo), database.write() as session:
        work.submit(session, anna, assignment.id, 1)
    with database.read() as session:
        assert session.scalars(select(Assignment)).one().answer == draft
    assert label_records(database) == []


def test_skipping_gives_the_task_to_somebody_else_and_not_back(database: Database) -> None:
    anna, ben = add_people(database, "anna", "ben")
    add_tasks(database, *comparisons(1))
    assignment = take(database, anna)
    assert assignment is not None
    with pytest.raises(Invalid, match="reason"), database.write() as session:
        work.skip(session, anna, assignment.id, "bored", "")
    with database.write() as session:
        work.skip(session, anna, assignment.id, "language", "Finnish")
    assert take(database, anna) is None
    assert take(database, ben) is not None
    with database.read() as session:
        skipped = session.scalars(select(Assignment).where(Assignment.state == "skipped")).one()
        assert (skipped.reason, skipped.note) == ("language", "Finnish")


def test_a_reported_prompt_is_seen_by_nobody_until_the_owner_decides(database: Database) -> None:
    anna, ben, chloe = add_people(database, "anna", "ben", "chloe")
    add_tasks(database, *comparisons(1), overlap=3)
    label(database, anna, 1, 2, 3)
    begun = take(database, ben)
    reported = take(database, chloe)
    assert begun is not None
    assert reported is not None
    with database.write() as session:
        work.flag(session, chloe, reported.id, "private", "a phone number")
    with pytest.raises(NotAllowed, match="reported"):
        save(database, ben, begun, 0, WHOLE)
    assert take(database, ben) is None
    assert label_records(database) == []
    with database.write() as session:
        task = session.scalars(select(Task)).one()
        tasks.decide(session, "olga", task, "release")
        assert session.scalars(select(Flag)).one().decision == "release"
    save(database, ben, begun, 0, WHOLE)
    assert len(label_records(database)) == 1
    with database.write() as session:
        tasks.decide(session, "olga", session.scalars(select(Task)).one(), "withdraw")
    assert label_records(database) == []


def test_reopening_takes_the_label_back_and_the_place_is_free_again(database: Database) -> None:
    anna, ben = add_people(database, "anna", "ben")
    add_tasks(database, *comparisons(1))
    done = label(database, anna, 1, 2, 3)
    assert take(database, ben) is None
    with database.write() as session:
        work.reopen(session, anna, done.id, LEASE)
    assert label_records(database) == []
    save(database, anna, done, 1, ranked(2, 1, 1))
    with database.write() as session:
        work.submit(session, anna, done.id, 2)
    assert [r["ranks"] for r in label_records(database)] == [[2, 1, 1]]
    with pytest.raises(NotAllowed, match="no longer open"):
        save(database, anna, done, 2, WHOLE)


def test_nobody_reaches_the_work_of_somebody_else(database: Database) -> None:
    anna, ben = add_people(database, "anna", "ben")
    add_tasks(database, *comparisons(1))
    assignment = take(database, anna)
    assert assignment is not None
    with pytest.raises(NotFound):
        save(database, ben, assignment, 0, WHOLE)
    for wrong in (0, -1, 2**40):
        with pytest.raises(NotFound), database.read() as session:
            assign.find_assignment(session, anna, wrong)


def test_gold_questions_are_mixed_in_one_in_ten_and_go_to_everybody(database: Database) -> None:
    team = add_people(database, "anna", "ben")
    add_tasks(database, *comparisons(3, gold=[1, 2, 3], policies="g"), *comparisons(40, prompt="p"))
    add_tasks(database, *[COMPARISON | {"prompt": f"ordinary {i}"} for i in range(22)], overlap=2)
    for person in team:
        seen = [label(database, person, 1, 2, 3).task_id for _ in range(21)]
        with database.read() as session:
            gold = set(session.scalars(select(Task.id).where(Task.state == "gold")))
        assert [place for place, task in enumerate(seen) if task in gold] == [0, 10, 20]
    assert all(record["gold"] is None for record in label_records(database))
    with database.read() as session:
        with_gold = list(records.label_records(session, gold=True))
    assert sum(record["gold"] == [1, 2, 3] for record in with_gold) == 6


def test_time_on_task_is_what_the_page_measured_but_no_more_than_passed(database: Database) -> None:
    anna, assignment = begun(database)
    assert save(database, anna, assignment, 0, WHOLE, seconds=3.0).seconds == 3.0
    assert save(database, anna, assignment, 1, ranked(1, 1, 1), seconds=9999.0).seconds < 60
    assert save(database, anna, assignment, 2, ranked(2, 1, 1), seconds=-50.0).seconds >= 3.0


def test_every_change_is_in_the_audit_log(database: Database) -> None:
    (anna,) = add_people(database, "anna")
    add_tasks(database, *comparisons(1))
    label(database, anna, 1, 2, 3)
    with database.read() as session:
        told = [(event.actor, event.action) for event in reversed(audit.events(session))]
    assert told == [
        ("test", "add person"),
        ("test", "new token"),
        ("test", "add tasks"),
        ("anna", "assign"),
        ("anna", "save"),
        ("anna", "submit"),
    ]


def test_a_change_that_fails_leaves_no_event_and_no_trace(database: Database) -> None:
    with pytest.raises(Invalid), database.write() as session:
        tasks.add_tasks(session, "test", [COMPARISON, {"kind": "comparison", "prompt": "x", "completions": ["one"]}])
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Task)) == 0
        assert session.scalar(select(func.count()).select_from(Event)) == 0


def test_tokens_are_hashed_and_end_when_they_are_revoked(database: Database) -> None:
    with database.write() as session:
        token = people.add_person(session, "test", "anna", "labeler")
    with database.write() as session:
        found = people.sign_in(session, token)
        assert found is not None
        person, cookie = found
    with database.read() as session:
        assert people.signed_in(session, cookie).name == "anna"  # type: ignore[union-attr]
        assert people.signed_in(session, token) is None
        stored = str([tuple(row) for table in Base.metadata.sorted_tables for row in session.execute(select(table))])
    assert token not in stored
    assert cookie not in stored
    assert all(hashlib.sha256(secret.encode()).hexdigest() in stored for secret in (token, cookie))
    with database.write() as session:
        people.revoke(session, "test", person)
    with database.write() as session:
        assert people.signed_in(session, cookie) is None
        assert people.sign_in(session, token) is None
        assert people.sign_in(session, "") is None


def test_the_last_owner_cannot_be_locked_out(database: Database) -> None:
    olga, paula = add_people(database, "olga", "paula", role="owner")
    with database.write() as session:
        people.revoke(session, "test", olga)
    with pytest.raises(NotAllowed, match="only owner"), database.write() as session:
        people.revoke(session, "test", paula)


@pytest.mark.parametrize("name", ["", " a", "a ", "<b>", "a\nb", "x" * 81, "-x", "a\0"])
def test_a_name_is_letters_and_little_else(file_database: Database, name: str) -> None:
    with pytest.raises(Invalid), file_database.write() as session:
        people.add_person(session, "test", name, "labeler")


def test_judges_and_people_of_other_tools_keep_their_names(file_database: Database) -> None:
    names = ["a", "../models/gold/", "ann+lab@x.org", "O'Neil", "org/judge:free", "classifier (toxic)"]
    with file_database.write() as session:
        labels = [{"task": COMPARISON, "labeler": name, "ranks": [1, 2, 3]} for name in names]
        intake.add_labels(session, "test", labels)
    assert [record["labeler"] for record in label_records(file_database)] == names


def test_the_same_task_is_taken_in_once(database: Database) -> None:
    with database.write() as session:
        assert tasks.add_tasks(session, "test", [COMPARISON, COMPARISON]) == tasks.Added(1, 1)
        assert tasks.add_tasks(session, "test", [COMPARISON | {"round": 2}, COMPARISON]) == tasks.Added(1, 1)


def test_more_labels_can_be_wanted_later(database: Database) -> None:
    anna, ben = add_people(database, "anna", "ben")
    add_tasks(database, *comparisons(2))
    add_tasks(database, *comparisons(3)[2:], overlap=3)
    for _ in range(3):
        label(database, anna, 1, 2, 3)
    assert take(database, ben) is not None, "the third goes to three"
    with database.write() as session:
        found = tasks.taken_in(session, [*comparisons(3)[::-1], COMPARISON])
        assert [task.prompt for task in found] == ["Say a, 2.", "Say a, 1.", "Say a, 0."]
        assert [task.state for task in found] == ["open", "full", "full"]
        tasks.want_labels(session, "olga", found, 2)
        assert [(task.state, task.overlap) for task in found] == [("open", 3), ("open", 2), ("open", 2)]
        tasks.want_labels(session, "olga", found, 1)
        assert [event.detail["tasks"] for event in audit.events(session) if event.action == "raise overlap"] == [2]


def test_a_record_comes_out_as_it_went_in(database: Database) -> None:
    (anna,) = add_people(database, "anna")
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße \U0001f600"}]
    extra = {"temperature": 0.7, "scores": [1, 2, 3]}
    given = {"use_case": "chat", "user": "u1", "round": 3, "extra": extra, "prompt": prompt}
    add_tasks(database, COMPARISON | given)
    label(database, anna, 1, 3, 3, ratings=[7, 2, 1])
    (record,) = label_records(database)
    assert {name: record[name] for name in given} == given
    assert (record["ranks"], record["ratings"], record["flags"]) == ([1, 2, 2], [7, 2, 1], [NO] * 3)
    assert (record["policies"], record["labeler"], sorted(record["order"])) == (["p", "q", "r"], "anna", [0, 1, 2])
    row = records.label_row(record)
    assert row["policy"] == ["p", "q", "r"]
    assert row["prompt"] == prompt
    assert row["task"] == record["key"][:16], "the same in every database"
    assert "ended" not in row
    for said, known in (([True, False, True], True), ([True, False], False), ("no", False)):  # a row may say anything
        assert records.label_row(record | {"extra": {"ended": said}}).get("ended") == (said if known else None)


@pytest.mark.parametrize(
    ("extra", "ours"),
    [
        ({"task": "0123456789abcdef"}, "0123456789abcdef"),  # a row of a file of tasks
        ({"instructlit_task": "7", "task": "0123456789abcdef"}, "7"),  # a task of another tool's file
        ({"task": "summarization"}, None),
        ({"task": 7}, None),
    ],
)
def test_a_column_called_task_is_no_id(file_database: Database, extra: dict, ours: str | None) -> None:
    (anna,) = add_people(file_database, "anna")
    add_tasks(file_database, *comparisons(2, extra=extra))
    for _ in range(2):
        label(file_database, anna, 1, 2, 3)
    ids = [records.label_row(record)["task"] for record in label_records(file_database)]
    assert ids == [ours, ours] if ours else len(set(ids)) == 2


def test_a_label_names_the_instructions_its_labeler_saw(database: Database) -> None:
    (anna,) = add_people(database, "anna")
    add_tasks(database, *comparisons(1), {"kind": "demonstration", "prompt": "Write."})
    with database.write() as session:
        begin_with(session, "test", {"comparison": "first", "demonstration": "other"})
        begin_with(session, "test", {"comparison": "never"})
        first = instructions(session, "comparison")
        set_instructions(session, "olga", "comparison", "second")
        second = instructions(session, "comparison")
        other = instructions(session, "demonstration")
    assert first is not None
    assert second is not None
    assert other is not None
    assert (first.text, second.text) == ("first", "second")
    assignment = take(database, anna)
    assert assignment is not None
    save(database, anna, assignment, 0, WHOLE, instructions=first.id)
    save(database, anna, assignment, 1, WHOLE, instructions=second.id)  # the page was loaded again, nothing else
    with pytest.raises(Invalid, match="no version"):
        save(database, anna, assignment, 1, WHOLE, instructions=other.id)
    with database.write() as session:
        work.submit(session, anna, assignment.id, 1)
        assert audit.events(session, limit=1)[0].detail["instructions"] == second.id
    (record,) = label_records(database)
    assert records.label_row(record)["instructions"] == second.id


def test_labels_from_elsewhere_stand_beside_our_own(database: Database) -> None:
    (anna,) = add_people(database, "anna")
    add_tasks(database, COMPARISON, overlap=2)
    label(database, anna, 1, 2, 3)
    theirs = [
        {"task": COMPARISON, "labeler": "tool@example.org", "ranks": [3, 3, 1], "ratings": [2, 2, 6], "seconds": 9.5},
        {"task": COMPARISON, "labeler": "anna", "ranks": [3, 2, 1]},
        {"task": COMPARISON | {"prompt": "new"}, "labeler": "anna", "ranks": [1, 1, 2]},
        {"task": {"kind": "demonstration", "prompt": "Write."}, "labeler": "bob", "completion": "text"},
    ]
    with database.write() as session:
        assert intake.add_labels(session, "olga", theirs, "a file") == tasks.Added(3, 1)
        assert intake.add_labels(session, "olga", theirs, "a file") == tasks.Added(0, 4)
        (task,) = tasks.taken_in(session, [COMPARISON])
        assert task.state == "full"
        assert {name: count for person, count in people.everybody(session) for name in [person.name]}["bob"] == 0
    found = {(record["prompt"], record["labeler"]): record for record in label_records(database)}
    assert len(found) == 4
    own, given = found["Say a.", "anna"], found["Say a.", "tool@example.org"]
    assert (own["ranks"], given["ranks"], given["ratings"]) == ([1, 2, 3], [2, 2, 1], [2, 2, 6])
    assert (given["order"], given["seconds"]) == (None, 9.5)
    assert own["order"] is not None
    assert "ratings" not in found["new", "anna"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ranks": [1, 2]}, "label 1: ranks"),
        ({"ranks": None}, "label 1: ranks"),
        ({"ranks": [None, 1, 1]}, "Not ranked yet: A"),
        ({"ratings": [0, 1, 2]}, "label 1: outputs"),
        ({"labeler": "<x>"}, "label 1: name: '<x>' is not a valid name"),
        ({"task": COMPARISON | {"kind": "other"}}, "kind"),
    ],
)
def test_a_wrong_label_from_elsewhere_is_told_and_nothing_taken(
    file_database: Database, change: dict, told: str
) -> None:
    record = {"task": COMPARISON, "labeler": "bob", "ranks": [1, 2, 3]} | change
    with pytest.raises(Invalid, match=told), file_database.write() as session:
        intake.add_labels(session, "olga", [record])
    with file_database.read() as session:
        assert session.scalar(select(func.count()).select_from(Task)) == 0


def test_what_is_shown_and_what_is_stored_are_inverse_orders() -> None:
    answer = {"ranks": ["x", "y", "z"], "notes": "n"}
    assert shown(answer, [2, 0, 1]) == {"ranks": ["z", "x", "y"], "notes": "n"}
    assert from_shown(shown(answer, [2, 0, 1]), [2, 0, 1]) == answer


def test_empty_columns_do_not_matter() -> None:
    assert dense([2, 5, 5, 9]) == [1, 2, 2, 3]
    assert dense([1, 1]) == [1, 1]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"ranks": [1, 2]}, "ranks"),
        ({"ranks": [1, 2, 4]}, r"ranks\[2\]"),
        ({"ranks": [1, 2, True]}, r"ranks\[2\]"),
        ({"outputs": [{"rating": 8, "flags": {}}] * 3}, "rating"),
        ({"outputs": [{"rating": 1, "flags": {"made_up": True}}] * 3}, "flags"),
        ({"outputs": [{"rating": 1, "flags": {"sexual_content": None}}] * 3}, "flags"),
        ({"notes": "\ud800"}, "notes"),
        ({"notes": "a\0b"}, "notes"),
        ({"notes": "x" * 200_001}, "notes"),
        ({"more": 1}, "fields"),
    ],
)
def test_an_answer_of_another_shape_is_refused(file_database: Database, change: dict, place: str) -> None:
    (anna,) = add_people(file_database, "anna")
    add_tasks(file_database, *comparisons(1))
    assignment = take(file_database, anna)
    assert assignment is not None
    with pytest.raises(Invalid, match=place):
        save(file_database, anna, assignment, 0, WHOLE | change)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"kind": "poem"}, "kind"),
        ({"prompt": "  "}, "prompt"),
        ({"prompt": [{"role": "user"}]}, "prompt"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, r"record 1: prompt\[0\].role"),
        ({"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "the assistant's"),
        ({"completions": ["a"]}, "completions"),
        ({"completions": ["a"] * 10}, "completions"),
        ({"completions": ["a", None]}, "completions"),
        ({"policies": ["p"]}, "policies"),
        ({"gold": [2, 2, 3]}, "gold"),
        ({"overlap": 0}, "overlap"),
        ({"round": "first"}, "round"),
        ({"round": -1}, "round"),
        ({"user": 7}, "user"),
        ({"user": "a\0b"}, "record 1: user"),
        ({"use_case": "\ud800"}, "record 1: use_case"),
        ({"completions": ["a", "\ud800"]}, "stored"),
    ],
)
def test_a_record_of_another_shape_is_refused(file_database: Database, change: dict, place: str) -> None:
    with pytest.raises(Invalid, match=place):
        add_tasks(file_database, COMPARISON | {"policies": None} | change)
