"""Token log-probabilities: values, gradient, temperature, the shift by one, and what they cost in memory."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from instructlit import ops
from instructlit.ops import (
    gpu_kernels,
    log_probs,
    next_token_log_probs,
    token_log_probs,
    token_log_probs_and_entropy,
)

LN2 = math.log(2)
# probabilities 1/8, 2/8, 5/8 at every place
LOGITS = tensor([1.0, 2.0, 5.0]).log()


def test_values_by_hand() -> None:
    ids = tensor([[0, 1, 2]])
    got = token_log_probs(LOGITS.expand(1, 3, 3), ids)
    assert_close(got, tensor([[-3 * LN2, -2 * LN2, math.log(5 / 8)]]))
    assert_close(token_log_probs(LOGITS.expand(3, 3), ids[0]), got[0])  # packed


def test_temperature_divides_the_logits() -> None:
    ids = tensor([[0, 1, 2]])
    # at 1/2 the odds are squared: 1, 4, 25 of 30
    half = token_log_probs(LOGITS.expand(1, 3, 3), ids, temperature=0.5)
    assert_close(half, tensor([[math.log(1 / 30), math.log(4 / 30), math.log(25 / 30)]]))
    # and the shifted reading does the same
    assert_close(next_token_log_probs(LOGITS.expand(1, 3, 3), ids, temperature=0.5), half[:, 1:])
    spread = token_log_probs_and_entropy(LOGITS.expand(1, 3, 3), ids, temperature=0.5)[1]
    assert_close(spread, -(half.exp() * half).sum(1, keepdim=True).expand(1, 3))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        token_log_probs(LOGITS.expand(1, 1, 3), tensor([[0]]), temperature)


def test_logits_predict_the_next_token() -> None:
    # column 0 is sure of token 1, column 1 of token 2, column 2 (which predicts nothing here) of token 0
    logits = torch.full((1, 3, 3), -40.0)
    logits[0, 0, 1] = logits[0, 1, 2] = logits[0, 2, 0] = 40.0
    assert next_token_log_probs(logits, tensor([[0, 1, 2]])).tolist() == [[0, 0]]
    assert_close(next_token_log_probs(logits, tensor([[2, 0, 1]])), tensor([[-80.0, -80.0]]))


def test_gradient_by_hand() -> None:
    logits = LOGITS.expand(1, 1, 3).clone().requires_grad_()
    token_log_probs(logits, tensor([[1]])).sum().backward()
    assert logits.grad is not None
    assert_close(logits.grad[0, 0], tensor([-1 / 8, 1 - 2 / 8, -5 / 8]))
    weighted = 3 * token_log_probs(logits, tensor([[1]]), temperature=2.0).sum()
    odds = tensor([1.0, 2.0, 5.0]).sqrt()
    (gradient,) = torch.autograd.grad(weighted, logits)
    assert_close(gradient[0, 0], 3 / 2 * (tensor([0.0, 1.0, 0.0]) - odds / odds.sum()))


@pytest.mark.parametrize("tile", [1, 20, 60, 1 << 22])
@pytest.mark.parametrize("packed", [False, True])
def test_tiles_change_neither_value_nor_gradient(monkeypatch: pytest.MonkeyPatch, tile: int, packed: bool) -> None:
    monkeypatch.setattr(log_probs, "TILE_ELEMENTS", tile)
    shape = (21,) if packed else (3, 7)
    logits = torch.randn(*shape, 11, dtype=torch.float64, requires_grad=True)
    ids, weights = torch.randint(11, shape), torch.randn(shape, dtype=torch.float64)
    plain = torch.log_softmax(logits / 0.7, -1)
    (expected,) = torch.autograd.grad((plain.gather(-1, ids[..., None])[..., 0] * weights).sum(), logits)
    got, spread = token_log_probs_and_entropy(logits, ids, 0.7)
    assert_close(got, plain.gather(-1, ids[..., None])[..., 0])
    assert_close(torch.autograd.grad((got * weights).sum(), logits)[0], expected)
    assert_close(spread, -(plain.exp() * plain).sum(-1).detach())
    assert not spread.requires_grad
    assert torch.autograd.gradcheck(lambda x: token_log_probs(x, ids, 0.7), logits)


def test_entropy_by_hand() -> None:
    def entropy(logits: Tensor) -> Tensor:
        return token_log_probs_and_entropy(logits, tensor([[0]]))[1]

    assert_close(entropy(torch.zeros(1, 1, 4)), tensor([[2 * LN2]]))
    # a token that cannot be sampled adds nothing, and no NaN
    assert_close(entropy(tensor([[[0.0, 0.0, -math.inf]]])), tensor([[LN2]]))
    # far from 0, where the sum over logits would be a difference of large numbers
    assert_close(entropy(tensor([[[3e4, 3e4, 0.0]]])), tensor([[LN2]]))
    assert not entropy(torch.zeros(1, 1, 4, requires_grad=True)).requires_grad


def test_impossible_token_is_minus_infinity_and_leaves_other_gradients_finite() -> None:
    logits = tensor([[[0.0, 0.0, -math.inf]]], requires_grad=True)
    assert token_log_probs(logits, tensor([[2]])).item() == -math.inf
    token_log_probs(logits, tensor([[0]])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[[0.5, -0.5, 0.0]]]


class _Sizes(TorchDispatchMode):
    """Records the number of elements of every newly made tensor of at least `least` elements, by dtype."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.made = least, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor) and x.numel() >= self.least and x.untyped_storage().data_ptr() not in known:
                self.made.append((x.dtype, x.numel()))
        return result


def test_half_precision_logits_are_never_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probs, "TILE_ELEMENTS", 1000)
    logits = torch.randn(4, 20, 100).bfloat16().requires_grad_()
    ids = torch.randint(100, (4, 20))
    with _Sizes(least=1001) as sizes:
        next_token_log_probs(logits, ids, 0.7).sum().backward()
    # the gradient itself, once, in the logits' own precision
    assert sizes.made == [(torch.bfloat16, logits.numel())]


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="do not match ids"):
        token_log_probs(torch.zeros(2, 3, 5), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(B, T, V\)"):
        token_log_probs(torch.zeros(1, 2, 3, 5), torch.zeros(1, 2, 3, dtype=torch.int64))


# -- on a GPU ------------------------------------------------------------------------------------------------------


def test_without_a_compiler_tiles_are_read_and_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    kernels = SimpleNamespace(norms_and_entropies=fails)
    monkeypatch.setattr(gpu_kernels, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "instructlit.ops.log_probs_kernels", kernels)
    monkeypatch.setattr(ops, "log_probs_kernels", kernels, raising=False)
    # without a GPU the device itself is what fails
    with pytest.warns(UserWarning, match=r"do not work on cuda: .*(C compiler|CUDA|NVIDIA)"):
        assert not gpu_kernels.kernels_run.__wrapped__(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("shape", "vocabulary"), [((70,), 128_256), ((3, 7), 50_257), ((5,), 11)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_gpu_reads_what_float64_says(
    monkeypatch: pytest.MonkeyPatch,
    kernels: bool,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    vocabulary: int,
    temperature: float,
) -> None:
    if not kernels:
        monkeypatch.setattr(log_probs, "_kernels", lambda _: None)
        monkeypatch.setattr(log_probs, "GPU_TILE_ELEMENTS", 1 << 18)
    logits = (4 * torch.randn(*shape, vocabulary, device="cuda")).to(dtype)
    logits[..., 3] = -math.inf  # a token that cannot be
    ids = torch.randint(4, vocabulary, shape, device="cuda")
    weights = torch.randn(shape, device="cuda")
    exactly = logits.double().requires_grad_()
    plain = torch.log_softmax(exactly / temperature, -1)
    expected = plain.gather(-1, ids[..., None])[..., 0]
    (gradient,) = torch.autograd.grad((expected * weights).sum(), exactly)
    assert (log_probs._kernels(logits) is not None) == kernels
    logits.requires_grad_()
    found, entropies = token_log_probs_and_entropy(logits, ids, temperature)
    (own,) = torch.autograd.grad((found * weights).sum(), logits)
    assert own.dtype == dtype
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    # exp(x) takes over the rounding of x, here down to some -30
    assert_close(own.double(), gradient, rtol=max(2 * torch.finfo(dtype).eps, 30 * 2**-23), atol=1e-6)
    spread = -(plain.exp() * plain.nan_to_num(neginf=0)).sum(-1)
    assert_close(entropies.double(), spread.detach(), rtol=1e-4, atol=1e-4)
