"""The engine samples from exactly the distribution the trainer computes."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import make_char_tokenizer
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from instructlit.errors import UserError
from instructlit.rollout import CachedEngine, Sampling
from instructlit.rollout.drawing import chance, draw
from instructlit.rollout.engine import as_generation
from instructlit.rollout.forward import Chunks, response_log_probs, trimmed
from instructlit.types import Prompt, PromptBatch

TEXTS = ["ab", "abcdef", "x", "hello there"]


def prompt_batch(texts: list[str], tokenizer: PreTrainedTokenizerFast, columns: int = 0) -> PromptBatch:
    """Left-padded by hand, with `columns` more columns of padding than needed."""
    ids = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, ids)) + columns
    rows = [[0] * (width - len(row)) + row for row in ids]
    masks = [[False] * (width - len(row)) + [True] * len(row) for row in ids]
    return PromptBatch(torch.tensor(rows), torch.tensor(masks), [Prompt(text) for text in texts])


@pytest.fixture(params=["tiny_llama_dir", "tiny_gpt2_dir"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    path: Path = request.getfixturevalue(request.param)
    return AutoModelForCausalLM.from_pretrained(path).train()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_log_probs_equal_the_trainers(model, char_tokenizer, temperature):
    sampling = Sampling(max_new_tokens=12, temperature=temperature)
    got = CachedEngine().generate(model, prompt_batch(TEXTS, char_tokenizer), sampling, char_tokenizer, generator(1))
    own = response_log_probs(model.eval(), got, temperature)
    torch.testing.assert_close(own, got.log_probs, atol=1e-5, rtol=1e-4)
    other = response_log_probs(model, got, temperature + 0.3)
    assert (own - other).abs().max() > 1e-2


def test_log_probs_are_those_of_each_row_alone_without_padding(model, char_tokenizer):
    sampling = Sampling(max_new_tokens=8)
    got = CachedEngine().generate(model, prompt_batch(TEXTS, char_tokenizer), sampling, char_tokenizer, generator(2))
    model.eval()
    for row, text in enumerate(TEXTS):
        response = got.response_ids[row][got.response_mask[row]]
        ids = torch.cat([torch.tensor(char_tokenizer(text)["input_ids"]), response])[None]
        log_probs = model(input_ids=ids).logits.log_softmax(-1)[0, -len(response) - 1 : -1]
        by_hand = log_probs.gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(got.log_probs[row][got.response_mask[row]], by_hand, atol=1e-5, rtol=1e-4)


def test_rows_that_end_early_leave_the_others_as_they_are(model, char_tokenizer):
    texts = ["abcdefghijkl"[: 1 + n % 12] for n in range(72)]
    batch, sampling = prompt_batch(texts, char_tokenizer), Sampling(max_new_tokens=24)
    got = CachedEngine().generate(model, batch, sampling, char_tokenizer, generator(4))
    lengths = got.response_mask.sum(1)
    assert got.ended.sum() >= 8, "some end early, at different steps"
    assert len(set(lengths[got.ended].tolist())) >= 4
    assert (lengths == 24).sum() >= 8, "and some go on to the end"
    own = response_log_probs(model.eval(), got, 1.0)
    torch.testing.assert_close(own, got.log_probs, atol=1e-5, rtol=1e-4)


def test_padding_and_batch_size_change_nothing(model, char_tokenizer):
    sampling = Sampling(max_new_tokens=8, greedy=True)
    whole = CachedEngine().generate(model, prompt_batch(TEXTS, char_tokenizer), sampling, char_tokenizer)
    padded = CachedEngine().generate(model, prompt_batch(TEXTS, char_tokenizer, 9), sampling, char_tokenizer)
    in_twos = CachedEngine(batch_size=2).generate(model, prompt_batch(TEXTS, char_tokenizer), sampling, char_tokenizer)
    for other in (padded, in_twos):
        assert torch.equal(other.response_ids, whole.response_ids)
        torch.testing.assert_close(other.log_probs, whole.log_probs, atol=1e-5, rtol=1e-4)


def test_one_seed_one_sample_and_another_seed_another(model, char_tokenizer):
    def sample(seed: int) -> Tensor:
        batch = prompt_batch(["ab"] * 4, char_tokenizer)
        return CachedEngine().generate(model, batch, Sampling(8), char_tokenizer, generator(seed)).response_ids

    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))
    assert len({tuple(row.tolist()) for row in sample(3)}) > 1  # the same prompt four times: not greedy


def test_new_weights_are_sampled_from_at_once(model, char_tokenizer):
    engine, batch = CachedEngine(), prompt_batch(TEXTS, char_tokenizer)
    engine.generate(model, batch, Sampling(8), char_tokenizer, generator(5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    got = engine.generate(model, batch, Sampling(8), char_tokenizer, generator(5))
    torch.testing.assert_close(response_log_probs(model.eval(), got, 1.0), got.log_probs, atol=1e-5, rtol=1e-4)


def test_what_is_returned_can_be_trained_on(model, char_tokenizer):
    got = CachedEngine().generate(model, prompt_batch(TEXTS, char_tokenizer), Sampling(8), char_tokenizer)
    tensors = [value for value in vars(got).values() if isinstance(value, Tensor)]
    assert len(tensors) >= 6
    assert not any(tensor.is_inference() for tensor in tensors)
    ratio = (response_log_probs(model, got, 1.0) - got.log_probs).exp()
    ratio[got.response_mask].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_greedy_decoding_draws_no_chance(model, char_tokenizer):
    before = torch.get_rng_state()
    sampling = Sampling(4, greedy=True)
    CachedEngine().generate(model, prompt_batch(TEXTS, char_tokenizer), sampling, char_tokenizer)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_mode_is_given_back(model, char_tokenizer):
    CachedEngine().generate(model.train(), prompt_batch(["a"], char_tokenizer), Sampling(2), char_tokenizer)
    assert model.training


def test_draw_follows_the_softmax():
    logits = torch.tensor([[0.0, 1.0, -1e9, 2.0]]).expand(40_000, 4)
    tokens, log_probs = draw(logits, 0.5, chance(len(logits), logits.device, generator(6)))
    counts = Counter(tokens.tolist())
    expected = torch.softmax(torch.tensor([0.0, 2.0, -1e9, 4.0]), 0)
    assert counts[2] == 0
    for token, share in enumerate(expected.tolist()):
        # four standard errors of a share of 40,000 draws
        assert abs(counts[token] / 40_000 - share) <= 4 * (share * (1 - share) / 40_000) ** 0.5
    torch.testing.assert_close(log_probs, expected.log()[tokens])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_drawn_at_are_exact_for_logits_in_16_bits(temperature):
    logits = 4 * torch.randn(20, 100_000).bfloat16()
    tokens, log_probs = draw(logits, temperature, chance(len(logits), logits.device, generator(7)))
    exact = (logits.double() / temperature).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(log_probs.double(), exact, atol=1e-4, rtol=0)


def test_the_last_of_100_000_tokens_have_their_exact_share():
    size = 100_000
    begins = torch.arange(size - 20, size)[:, None].double()
    for away, tokens in ((1e-3, begins), (-1e-3, begins - 1)):  # 1e-8 of the whole past and before where each begins
        drawn, _ = draw(torch.zeros(20, size).bfloat16(), 1.0, (begins + away) / size)
        assert torch.equal(drawn, tokens[:, 0].long())


def test_a_response_counts_up_to_its_first_eos_even_where_pad_is_eos(char_tokenizer_pad_is_eos):
    tokenizer = char_tokenizer_pad_is_eos
    a, b, eos = ord("a"), ord("b"), 2
    ids = torch.tensor([[a, eos, eos], [a, b, a], [eos, a, b], [a, b, eos]])
    batch = prompt_batch(["p"] * 4, tokenizer)
    got = as_generation(batch, ids, torch.full((4, 3), -1.0), tokenizer)
    assert got.response_mask.tolist() == [
        [True, True, False],
        [True, True, True],
        [True, False, False],
        [True, True, True],
    ]
    assert got.response_ids.tolist() == [[a, eos, eos], [a, b, a], [eos, eos, eos], [a, b, eos]]  # eos is pad
    assert got.ended.tolist() == [True, False, True, True]
    assert got.texts == ["a", "aba", "", "ab"]
    assert got.log_probs.tolist() == [[-1, -1, 0], [-1, -1, -1], [-1, 0, 0], [-1, -1, -1]]


def test_texts_have_the_spaces_that_were_sampled() -> None:
    """Tokenizers saved by transformers 4 are often set to take those before punctuation away."""
    tokenizer = make_char_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    said = "f( x , y ) . It does n't ?"
    ids = torch.tensor([[*map(ord, said), 2]])
    got = as_generation(prompt_batch(["ab"], tokenizer), ids, torch.full(ids.shape, -1.0), tokenizer)
    assert got.texts == [said]


def test_a_broken_model_says_nothing_and_what_stands_behind_the_end_does_not_count(char_tokenizer):
    batch, nan = prompt_batch(["p", "q"], char_tokenizer), math.nan
    ids = torch.tensor([[ord("a"), 2, 0], [ord("a"), ord("b"), 2]])
    got = as_generation(batch, ids, torch.tensor([[-1.0, -2.0, nan], [-3.0, -4.0, -5.0]]), char_tokenizer)
    assert got.log_probs.tolist() == [[-1, -2, 0], [-3, -4, -5]]
    for broken in (nan, -math.inf):
        with pytest.raises(UserError, match="whose log-prob is NaN or infinite"):
            as_generation(batch, ids, torch.tensor([[-1.0, -2.0, 0.0], [-3.0, broken, -5.0]]), char_tokenizer)


def test_ids_are_the_sampled_ones_and_never_encoded_again(char_tokenizer):
    unknown = 1  # decodes to a special token, which the text leaves out: encoding the text would lose it
    ids = torch.tensor([[ord(" "), ord("a"), unknown, ord("\n"), 2]])  # and the white space around it
    got = as_generation(prompt_batch(["p"], char_tokenizer), ids, torch.zeros(1, 5), char_tokenizer)
    assert got.texts == ["a"]
    assert torch.equal(got.response_ids, ids)


def test_ids_whose_text_would_be_encoded_otherwise_stay_as_sampled():
    core = Tokenizer(models.BPE({"<pad>": 0, "</s>": 2, "b": 11, "c": 12, "bc": 20}, [("b", "c")]))
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")
    assert tokenizer("bc")["input_ids"] == [20]
    ids = torch.tensor([[11, 12, 2]])
    got = as_generation(prompt_batch(["b"], tokenizer), ids, torch.zeros(1, 3), tokenizer)
    assert got.texts == ["bc"]
    assert torch.equal(got.response_ids, ids)


def test_parts_are_of_like_length_cut_to_it_and_joined_in_the_rows_order(char_tokenizer):
    batch = prompt_batch(["abc", "a", "ab"], char_tokenizer, columns=2)
    ids = torch.tensor([[ord("x"), 2, 0, 0], [ord("x"), ord("y"), 2, 0], [2, 0, 0, 0]])
    got = as_generation(batch, ids, torch.tensor([[1.0] * 4, [2.0] * 4, [3.0] * 4]), char_tokenizer)
    assert trimmed(got).prompt_ids.shape == (3, 3)
    assert trimmed(got).response_ids.shape == (3, 3)
    parts = Chunks(got, 1)
    assert [part.input_ids[0].tolist() for part in parts] == [
        [ord("a"), ord("b"), 2],
        [ord("a"), ord("x"), ord("y"), 2],
        [ord("a"), ord("b"), ord("c"), ord("x"), 2],
    ]
    assert parts.joined([part.log_probs for part in parts]).tolist() == [[1, 1, 0, 0], [2, 2, 2, 0], [3, 0, 0, 0]]
    assert parts.joined([part.ended.float() * i for i, part in enumerate(parts)]).tolist() == [2, 1, 0]
    (whole,) = Chunks(got, None)
    assert whole.texts == got.texts


@pytest.mark.parametrize(
    ("packed", "tokens", "parts"), [(False, 17, [2, 1]), (False, 18, [3]), (True, 11, [2, 1]), (True, 12, [3])]
)
def test_a_part_has_so_many_tokens_with_the_padding_that_models_compute(packed, tokens, parts, char_tokenizer):
    batch = prompt_batch(["abc", "a", "ab"], char_tokenizer, columns=2)
    ids = torch.tensor([[ord("x"), 2, 0, 0], [ord("x"), ord("y"), 2, 0], [2, 0, 0, 0]])
    got = as_generation(batch, ids, torch.zeros(3, 4), char_tokenizer)  # rows of 5, 4 and 3 tokens; 3 + 3 columns
    assert [len(part.texts) for part in Chunks(got, None, tokens, packed=packed)] == parts


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.9}, {"repetition_penalty": 1.2}, {"min_new_tokens": 2}])
def test_what_changes_the_distribution_behind_the_log_probs_is_refused(options):
    with pytest.raises(UserError, match=f"sampling.{next(iter(options))}.*refused"):
        Sampling(**options)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": -1.0}, {"max_new_tokens": 0}])
def test_impossible_sampling_is_refused(options):
    with pytest.raises(UserError, match=f"sampling.{next(iter(options))}"):
        Sampling(**options)
