"""Splits by prompt and by user, near duplicates, the cap on a user, personal data."""

import numpy as np
import pytest

from instructlit.data.hygiene import over_cap, personal_data, prefix_hash, repeats
from instructlit.data.splits import hash64, held_out, is_held_out, prompt_key


def keys(n: int) -> np.ndarray:
    return np.array([hash64(f"prompt {i}") for i in range(n)], dtype=np.uint64)


def test_the_fraction_is_held_out() -> None:
    assert abs(held_out(keys(20_000), 0.1).mean() - 0.1) < 0.01
    assert not held_out(keys(100), 0.0).any()
    assert [is_held_out(f"prompt {i}", 0.1) for i in range(500)] == held_out(keys(500), 0.1).tolist()


def test_rows_of_one_prompt_stay_together() -> None:
    rows = np.repeat(keys(50), 4)[np.random.default_rng(0).permutation(200)]
    held = held_out(rows, 0.3)
    assert set(rows[held]).isdisjoint(rows[~held])
    assert 0 < held.sum() < 200


def test_more_data_moves_no_prompt() -> None:
    few, many = keys(100), keys(300)
    assert held_out(many, 0.2)[:100].tolist() == held_out(few, 0.2).tolist()


def test_neither_side_is_empty_where_there_are_two_prompts() -> None:
    for few in (keys(2), keys(3)):
        assert held_out(few, 1e-9).tolist() == (few == few.min()).tolist()
        assert held_out(few, 1.0).tolist() == (few != few.max()).tolist(), "the nearest to the edge changes sides"
    assert held_out(np.repeat(keys(1), 2), 1e-9).tolist() == [False, False]
    assert held_out(keys(0), 0.5).tolist() == []


def test_what_makes_two_prompts_the_same() -> None:
    user = {"role": "user", "content": " Hi "}
    assert prompt_key("Hi\n") == prompt_key([user]) == "Hi"
    assert prompt_key([user | {"role": "system"}]) != "Hi"
    assert prompt_key([user, {"role": "assistant", "content": "a"}, user]) != prompt_key([user])


def test_near_duplicates_share_more_than_half() -> None:
    start = "write a poem about the sea and "  # 31 characters
    assert prefix_hash(start + "a ship", 30) == prefix_hash("Write  a poem\nabout the SEA and wind", 30)
    assert prefix_hash(f"\n{start}", 30) == prefix_hash(start, 30)
    assert prefix_hash(start + "a ship", 40) != prefix_hash(start + "wind", 40)  # shorter than 40: compared whole
    long = start + "x" * 40
    assert prefix_hash(long, 30) != prefix_hash(start + "y" * 40, 30)  # 31 of 71 characters is less than half
    assert prefix_hash("x" * 30 + "y" * 30, 30) != prefix_hash("x" * 30 + "z" * 30, 30)  # half of 60 is not more
    assert prefix_hash("short", 30) != prefix_hash("short" + "e" * 40, 30)


def test_a_system_message_makes_no_near_duplicates() -> None:
    system = {"role": "system", "content": "You are helpful. " * 10}
    first, second = ([system, {"role": "user", "content": c}] for c in ("one", "two"))
    assert prefix_hash(first, 20) != prefix_hash(second, 20)


def test_the_first_of_equals_stays() -> None:
    assert repeats(np.array([5, 3, 5, 3, 9], dtype=np.uint64)).tolist() == [False, False, True, True, False]


def test_the_cap_counts_rows_that_are_still_in() -> None:
    users = np.array([7, 7, 0, 7, 8, 7, 0, 0], dtype=np.uint64)
    counted = np.array([1, 0, 1, 1, 1, 1, 1, 1], dtype=bool)
    assert np.flatnonzero(over_cap(users, counted, 2)).tolist() == [5]
    assert np.flatnonzero(over_cap(users, counted, 1)).tolist() == [3, 5]
    assert not over_cap(users[:0], counted[:0], 1).any()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+x@mail.example.org now", "e-mail address"),
        ("my card is 4111 1111 1111 1111, ok?", "card number"),
        ("card 4111-1111-1111-1112", None),  # fails Luhn
        ("order 1234567890123456", None),  # fails Luhn
        ("call +49 30 901820 0", "phone number"),
        ("call (555) 123-4567", "phone number"),
        ("call 555-123-4567 today", "phone number"),
        ("DE89 3704 0044 0532 0130 00", "bank account"),
        ("DE88 3704 0044 0532 0130 00", None),  # fails modulo 97
        ("ssn 078-05-1120", "social security number"),
        ("server 8.8.8.8", "IP address"),
        ("server 2001:4860:4860::8888", "IP address"),
        ("server 127.0.0.1 or 192.168.0.1", None),
        ("version 1.2.3.4000", None),
        ("at 12:30:45 on 2024-05-17", None),
        ("the years 1914-1918 and 1939-1945", None),
        ("3.14159265358979323846", None),
        ("7 + 35 * 12 = 427, in 1,000,000 cases", None),
        ("std::vector<int> a::b", None),
        ("plain words", None),
    ],
)
def test_personal_data(text: str, kind: str | None) -> None:
    assert personal_data(text) == kind
