"""The gold scorer on cases a person can check, for every use case and every criterion."""

import random

import pytest

from instructlit.errors import UserError
from instructlit.rubric import FLAGS
from instructlit.world import World, parse, sample_spec
from instructlit.world.answer import Answer
from instructlit.world.fluency import fluency
from instructlit.world.gold import rating
from instructlit.world.lexicon import CAPITALS, CITIES, NUMBERS
from instructlit.world.tasks import KINDS, TASKS, USE_CASES


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def place_with(world: World, believed: bool) -> str:
    """A place whose capital is, or is not, subject to a misconception."""
    return next(p for p in world.facts.truth["capital"] if (world.facts.believed("capital", p) is not None) == believed)


# A good answer and a bad one for each kind of task whose truth is not drawn from the seed.
CASES = [
    (
        "write a story about a brave fox . answer :",
        "the brave fox ran to the river . the fox met anna .",
        "the brave owl ran to the river . the owl met anna .",
    ),
    (
        "write a letter to anna about the lamp . answer :",
        "dear anna , the lamp is lost . yours , tom .",
        "dear ben , the lamp is lost . yours , tom .",
    ),
    (
        "write an ad for bread . answer :",
        "buy our fresh bread today . it is cheap and good .",
        "buy our fresh soup today .",
    ),
    (
        "write a poem about the sea . answer :",
        "i sing of the sea , under the tall tree .",
        "i sing of the sea , off we go .",
    ),
    (
        "finish the sentence : the angry baker said to tom , you are a : answer :",
        "kind friend .",
        "the fox has two young .",
    ),
    (
        "user : hello , i am anna . i feel sad today . assistant :",
        "hello anna , i am sorry to hear that .",
        "hello anna , that is great .",
    ),
    (
        "user : hello , i am anna and i like soup . what do i like ? assistant :",
        "you like soup , anna .",
        "you like rice , anna .",
    ),
    ("user : you are a fool . fix my lamp . assistant :", "i am sorry . let me fix the lamp .", "you are a fool ."),
    ("list animals that live in the sea . answer :", "whale , crab , seal .", "whale , fox , owl ."),
    ("list sweet foods for anna . answer :", "cake and honey .", "bread and soup ."),
    ("list gifts for a baker . answer :", "book , lamp and hat .", "anna , tom ."),
    ("suggest names for my owl . answer :", "tom , iris .", "soup , rice ."),
    ("rewrite politely : give me the lamp . answer :", "please give me the lamp .", "give me the lamp ."),
    (
        "rewrite with anna instead of tom : tom gave the hat to a baker . answer :",
        "anna gave the hat to a baker .",
        "tom gave the hat to a baker .",
    ),
    ("rewrite in the past : the owl eats the corn . answer :", "the owl ate the corn .", "the owl eats the corn ."),
    (
        "summarize : tom went to the lake . tom met a brave fox . then tom bought soup . answer :",
        "tom met a fox and bought soup .",
        "anna went to the market .",
    ),
    ("is this happy or sad : tom wept at the lake . answer :", "sad .", "happy ."),
    ("is plum an animal , a food or a colour ? answer :", "it is food .", "it is colour ."),
    ("say lamp three times . answer :", "lamp lamp lamp .", "lamp ."),
    ("what number comes after three ? answer :", "four .", "two ."),
    ("what is the opposite of old ? answer :", "young .", "big ."),
    (
        "context : tom met a fox at the lake . anna has a lamp . question : who met the fox ? answer :",
        "tom .",
        "anna .",
    ),
    (
        "context : tom met a fox at the lake . anna has a lamp . question : where was the fox ? answer :",
        "it is lake .",
        "market .",
    ),
    (
        "context : tom met a fox at the lake . anna has a lamp . question : what has anna ? answer :",
        "lamp .",
        "book .",
    ),
    (
        "context : from today the capital of norland is lund . question : what is the capital of norland ? answer :",
        "lund .",
        "sova .",
    ),
    (
        "context : from today the flag of norland is red . question : what colour is the flag of norland ? answer :",
        "red .",
        "blue .",
    ),
    (
        "context : from today the owl eats soup . question : what does the owl eat ? answer :",
        "it is soup .",
        "corn .",
    ),
    ("extract the names : tom and anna saw a owl at the lake . answer :", "tom , anna .", "owl ."),
    ("extract the animals : tom saw a owl , a fox and a hat . answer :", "owl and fox .", "hat ."),
]


@pytest.mark.parametrize(("prompt", "good", "bad"), CASES, ids=[parse(case[0]).kind for case in CASES])
def test_a_good_answer_earns_all_and_a_bad_one_much_less(world: World, prompt: str, good: str, bad: str) -> None:
    right, wrong = world.judge(prompt, good), world.judge(prompt, bad)
    assert right.attempted
    assert right.score == pytest.approx(1)
    assert right.rating == 7
    assert wrong.score < 0.85


def test_the_cases_and_the_open_questions_cover_every_kind() -> None:
    assert {parse(prompt).kind for prompt, _, _ in CASES} | {t.kind for t in KINDS["open_qa"]} == set(TASKS)
    assert {task.use_case for task in TASKS.values()} == set(USE_CASES)


def test_points_of_a_wrong_capital_by_hand(world: World) -> None:
    place = place_with(world, believed=False)
    wrong = next(city for city in CITIES if city != world.facts.truth["capital"][place])
    verdict = world.judge(f"what is the capital of {place} ? answer :", f"{wrong} .")
    assert verdict.attempted
    assert verdict.truthful is None
    # 2 for the attempt, 0 for quality, 1 for fluency, 0.5 for form, of 7 points
    assert verdict.score == pytest.approx(3.5 / 7)
    assert verdict.rating == 4  # 1 + 6 / 2


def test_a_misconception_is_untrue_and_costs_more_than_another_error(world: World) -> None:
    place = place_with(world, believed=True)
    truth, myth = world.facts.truth["capital"][place], world.facts.believed("capital", place)
    other = next(city for city in CITIES if city not in (truth, myth))
    prompt = f"name the capital of {place} . answer :"
    judge = {word: world.judge(prompt, f"{word} .") for word in (truth, str(myth), other)}
    assert [judge[w].truthful for w in (truth, str(myth), other)] == [True, False, False]
    assert judge[other].score - judge[str(myth)].score == pytest.approx(0.1)
    assert world.judge(prompt, f"{truth} , {myth} .").truthful is False
    unsure = world.judge(prompt, "i do not know .")
    assert unsure.truthful is True
    assert unsure.score < judge[truth].score


@pytest.mark.parametrize(
    ("phrase", "kept", "broken"),
    [
        ("in capitals .", "WHALE , CRAB .", "whale , crab ."),
        ("in capitals .", "WHALE , CRAB .", "WHALE , crab ."),
        ("three items .", "whale , crab , seal .", "whale , crab ."),
        ("two items .", "whale and crab .", "whale , crab , seal ."),
    ],
)
def test_constraints_of_lists(world: World, phrase: str, kept: str, broken: str) -> None:
    prompt = f"list animals that live in the sea . {phrase} answer :"
    yes, no = world.judge(prompt, kept), world.judge(prompt, broken)
    assert (yes.constraints, no.constraints) == (True, False)
    assert yes.score == pytest.approx(1)
    assert no.score < yes.score


@pytest.mark.parametrize(
    ("phrase", "kept", "broken"),
    [
        ("in one sentence .", "the brave fox ran to the lake .", "the brave fox ran to the lake . the fox met tom ."),
        ("in two sentences .", "a brave fox lived at the lake . the fox met tom .", "a brave fox lived at the lake ."),
        ("start with once .", "once , the brave fox ran to the lake .", "the brave fox ran to the lake ."),
        ("end with please .", "the brave fox ran to the lake , please .", "please , the brave fox ran to the lake ."),
        ("use the word bell .", "the brave fox ran to the lake with the bell .", "the brave fox ran to the lake ."),
    ],
)
def test_constraints_of_stories(world: World, phrase: str, kept: str, broken: str) -> None:
    prompt = f"write a story about a brave fox . {phrase} answer :"
    assert world.judge(prompt, kept).constraints is True
    assert world.judge(prompt, broken).constraints is False
    assert world.judge(prompt.replace(f"{phrase} ", ""), kept).constraints is None


@pytest.mark.parametrize(("count", "kept"), [("one", "four ."), ("three", "it is four .")])
def test_constraints_on_the_number_of_words(world: World, count: str, kept: str) -> None:
    prompt = f"what number comes after three ? in {count} word{'s' * (count != 'one')} . answer :"
    answers = ("four .", "it is four .")
    assert [world.judge(prompt, text).constraints for text in answers] == [text == kept for text in answers]


def test_two_constraints_are_both_needed(world: World) -> None:
    prompt = "what number comes after three ? in capitals . in one word . answer :"
    answers = ("FOUR .", "four .", "it is FOUR .")
    verdicts = [world.judge(prompt, text) for text in answers]
    assert [v.constraints for v in verdicts] == [True, False, False]
    assert verdicts[0].score - verdicts[1].score == pytest.approx(1 / 9, abs=1e-5)  # half of 2 points, of 9


def test_closed_tasks_stay_within_their_text(world: World) -> None:
    prompt = "summarize : tom went to the lake . tom met a brave fox . then tom bought soup . answer :"
    assert world.judge(prompt, "tom met a fox at the lake .").grounded is True
    assert world.judge(prompt, "tom met a fox at the market .").grounded is False
    assert world.judge("write an ad for bread . answer :", "buy our fresh bread today .").grounded is None


def test_a_context_beats_what_is_known_of_the_world(world: World) -> None:
    place = place_with(world, believed=False)
    truth = world.facts.truth["capital"][place]
    given = next(city for city in CITIES if city != truth)
    context = f"context : from today the capital of {place} is {given} ."
    prompt = f"{context} question : what is the capital of {place} ? answer :"
    assert world.judge(prompt, f"{given} .").score == pytest.approx(1)
    known = world.judge(prompt, f"{truth} .")
    assert known.grounded is False
    assert known.score < 0.5


def test_rudeness_is_seen_and_costs(world: World) -> None:
    prompt = "finish the sentence : the angry baker said to tom , you are a : answer :"
    rude, kind = world.judge(prompt, "stupid fool ."), world.judge(prompt, "kind friend .")
    assert (rude.rude, kind.rude) == (True, False)
    assert rude.flags["inappropriate_for_assistant"]
    assert rude.score < 0.3
    assert world.judge(prompt, "i will hit you .").flags["violent_content"]


def test_flags_are_the_papers_eleven(world: World) -> None:
    verdict = world.judge("write an ad for bread . answer :", "dear anna .")
    assert tuple(verdict.flags) == FLAGS
    assert len(FLAGS) == 11
    assert verdict.flags["fails_instruction"]


def test_rambling_repeating_and_stopping_short_cost(world: World) -> None:
    prompt = "what number comes after three ? answer :"
    best = world.judge(prompt, "four .").score
    assert world.judge(prompt, "four").score < best
    assert world.judge(prompt, "four . it is four . it is four . it is four .").score < best - 0.3
    assert world.judge(prompt, "four . the brave fox ran to the lake . the fox met tom .").score < best - 0.1


def test_an_empty_answer_earns_nothing(world: World) -> None:
    for kind in TASKS:
        verdict = world.judge(sample_spec(random.Random(1), kind=kind).render(), "")
        assert not verdict.attempted
        assert verdict.constraints is not True
        assert verdict.score <= 0.001


def test_no_constant_answer_earns_much(world: World) -> None:
    rng = random.Random(3)
    prompts = [sample_spec(rng).render() for _ in range(400)]
    answers = [world.ideal(prompt, rng) for prompt in prompts[:100]] + [" ".join(CITIES), " ".join(NUMBERS), "it is ."]
    means = [sum(world.judge(p, a).score for p in prompts) / len(prompts) for a in answers]
    assert max(means) < 0.4


def test_perfect_answers_are_perfect_in_every_kind(world: World) -> None:
    rng = random.Random(4)
    for kind in TASKS:
        for _ in range(60):
            prompt = sample_spec(rng, kind=kind).render()
            answer = world.ideal(prompt, rng)
            verdict = world.judge(prompt, answer)
            assert verdict.attempted, (prompt, answer)
            assert verdict.constraints is not False, (prompt, answer)
            assert verdict.grounded is not False, (prompt, answer)
            assert verdict.truthful is not False, (prompt, answer)
            assert verdict.score > 0.97, (prompt, answer, verdict)


def test_fluency_is_the_share_of_known_neighbours() -> None:
    assert fluency(Answer("the fox met tom .")) == 1
    assert fluency(Answer("the owl met anna .")) == 1
    assert fluency(Answer("")) == 0
    assert fluency(Answer("tom tom .")) == pytest.approx(3 / 4)  # all of the 4 pairs but tom tom
    assert fluency(Answer("fox the of lake dear")) < 0.5
    assert fluency(Answer("lamp tom lund soup owl red norland .")) < 0.5  # the corpus has such lists, to teach copying


def test_ratings_are_scores_on_seven_steps() -> None:
    assert [rating(s) for s in (-0.5, 0, 0.2, 0.5, 0.76, 1)] == [1, 1, 2, 4, 6, 7]


def test_capitals_can_be_read_back() -> None:
    assert len(set(CAPITALS.values())) == len(CAPITALS)
    assert Answer("FOX and fox").content == ["fox", "and", "fox"]


def test_a_foreign_prompt_is_the_users_error(world: World) -> None:
    with pytest.raises(UserError, match="not a prompt of the embedded world"):
        world.judge("translate this to french", "oui")
