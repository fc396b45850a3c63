"""What a GPU decodes with: kernels beside the plain operations that they stand for, and the decoder beside the model.

Without a GPU, Triton's interpreter runs the kernels on the CPU (see conftest).
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from decoder_helpers import CONFIGS, TEXTS, TOKENIZER, generator, made, sampled
from stage_helpers import prompt_batch
from torch import Tensor
from torch.nn import functional as F

from instructlit.rollout import CachedEngine, Sampling, decoders, engine, llama
from instructlit.rollout.decoders import ModelDecoder
from instructlit.rollout.drawing import draw
from instructlit.rollout.forward import response_log_probs

pytest.importorskip("triton")
from instructlit.rollout import kernels
from instructlit.rollout.llama_gpu import GPULlamaDecoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adds", [True, False])
def test_add_and_norm(adds: bool, dtype: torch.dtype) -> None:
    x, more, weight = normal(5, 48), normal(5, 48, dtype=dtype) if adds else None, normal(48)
    stream = x + more.float() if more is not None else x.clone()
    expected = F.rms_norm(stream, (48,), weight, 1e-5).to(dtype)
    got = kernels.add_and_norm(x, more, weight, 1e-5, dtype)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(x, stream)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 16), (6, 2, 24), (3, 1, 128), (16, 1, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter multiplies no bfloat16
@pytest.mark.parametrize("norms", [True, False])
def test_attend(norms: bool, dtype: torch.dtype, heads: int, kv_heads: int, size: int) -> None:
    slots, length = 4, 150
    qkv = normal(slots, (heads + 2 * kv_heads) * size, dtype=dtype)
    cos, sin, weights = normal(length, size), normal(length, size), normal(2, size)
    keys, values = (normal(slots, kv_heads, length, size, dtype=dtype) for _ in range(2))
    places, rows = torch.tensor([0, 6, 64, 149], device=DEVICE), torch.arange(slots, device=DEVICE)
    before = places * torch.tensor([1, 0, 1, 1], device=DEVICE)  # the second slot is free
    query, key, value = qkv.float().view(slots, -1, size).split([heads, kv_heads, kv_heads], dim=1)
    if norms:
        query, key = F.rms_norm(query, (size,), weights[0], 1e-6), F.rms_norm(key, (size,), weights[1], 1e-6)
    query, key = (llama.rotated(x, cos[places, None], sin[places, None]).to(dtype) for x in (query, key))
    expected_keys, expected_values = keys.clone(), values.clone()
    expected_keys[rows, :, places], expected_values[rows, :, places] = key, value.to(dtype)
    expected = F.scaled_dot_product_attention(
        query[:, :, None].float(),
        expected_keys.float().repeat_interleave(heads // kv_heads, dim=1),
        expected_values.float().repeat_interleave(heads // kv_heads, dim=1),
        (torch.arange(length, device=DEVICE) <= places[:, None])[:, None, None],
        scale=0.3,
    ).flatten(1)
    got = kernels.attend(qkv, cos, sin, places, before, keys, values, (weights, 1e-6) if norms else None, 0.3)
    exact, live = dtype == torch.float32, [0, 2, 3]
    relative, absolute = (1e-4, 1e-5) if exact else (2e-2, 1e-2)
    torch.testing.assert_close(got[live].float(), expected[live], rtol=relative, atol=absolute)
    torch.testing.assert_close(keys, expected_keys, rtol=1e-4 if exact else 2e-3, atol=1e-5 if exact else 2e-3)
    assert torch.equal(values, expected_values)
    torch.testing.assert_close(got[1].float(), value[1].repeat_interleave(heads // kv_heads, dim=0).flatten())


def test_gated() -> None:
    x = normal(3, 2 * 1500)
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(kernels.gated(x), F.silu(gate) * up)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_the_models_where_slots_are_free_and_taken_again(name: str) -> None:
    model = made(CONFIGS[name]).to(DEVICE)
    batch = prompt_batch(TEXTS[:4])
    ids, mask = batch.input_ids.to(DEVICE), batch.attention_mask.to(DEVICE)
    slots, live = torch.arange(4, device=DEVICE), torch.tensor([True, True, False, True], device=DEVICE)
    with torch.inference_mode():
        ours, theirs = GPULlamaDecoder(model, 4, 40), ModelDecoder(model)
        torch.testing.assert_close(ours.read(slots, ids, mask), theirs.read(slots, ids, mask), rtol=1e-4, atol=1e-5)
        for step in range(4):
            tokens = torch.tensor([7, 50 + step, 99, 3 * step], device=DEVICE)
            got, expected = ours.step(tokens, live), theirs.step(tokens, live)
            torch.testing.assert_close(got[live], expected[live], rtol=1e-4, atol=1e-5)
        again = torch.tensor([2], device=DEVICE)
        whole = ModelDecoder(model).read(again, ids[1:2], mask[1:2])
        torch.testing.assert_close(ours.read(again, ids[1:2], mask[1:2]), whole, rtol=1e-4, atol=1e-5)
        fresh = ModelDecoder(model)
        fresh.read(again, ids[1:2], mask[1:2])
        token = torch.tensor([9], device=DEVICE)
        expected = fresh.step(token, token > 0)
        got = ours.step(token.expand(4), torch.ones_like(live))[2:3]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_padding_counts_among_the_tokens_that_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long prompt among many short ones does not make attention's operands as large as all of them that long."""
    lengths, attended = [3, 3, 3, 2, 22, 4], []
    mask = torch.arange(22, device=DEVICE) >= 22 - torch.tensor(lengths, device=DEVICE)[:, None]
    ids = torch.randint(3, 100, mask.shape, generator=generator()).to(DEVICE) * mask
    model, attention = made(CONFIGS["llama"]).to(DEVICE), F.scaled_dot_product_attention
    with torch.inference_mode():
        expected = ModelDecoder(model).read(torch.arange(6, device=DEVICE), ids, mask)
        monkeypatch.setattr(GPULlamaDecoder, "tokens_at_once", sum(lengths))
        monkeypatch.setattr(
            F,
            "scaled_dot_product_attention",
            lambda query, *args, **more: attended.append(query.shape) or attention(query, *args, **more),
        )
        got = GPULlamaDecoder(model, 6, 30).read(torch.arange(6, device=DEVICE), ids, mask)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert max(rows * length for rows, _, length, _ in attended) <= sum(lengths)


def test_kernels_start_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton starts them on the process's own device, which is another one where a user names `cuda:1`."""
    inside, started = [], []

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        inside.append(tensor)
        yield
        inside.clear()

    class Spied:
        def __init__(self, name: str):
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda first, *_: started.append((self.name, len(inside) == 1 and inside[0] is first))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    names = "_add_and_norm", "_attend", "_gated", "_sum_blocks", "_pick"
    for name in names:
        monkeypatch.setattr(kernels, name, Spied(name))
    kernels.add_and_norm(torch.zeros(1, 4), None, torch.zeros(4), 1e-5, torch.float32)
    cache, angles, slot = torch.zeros(1, 1, 8, 4), torch.zeros(8, 4), torch.zeros(1, dtype=torch.int64)
    kernels.attend(torch.zeros(1, 12), angles, angles, slot, slot, cache, cache, None, 1.0)
    kernels.gated(torch.zeros(1, 8))
    kernels.draw(torch.zeros(1, 8), 1.0, torch.zeros(1, 1, dtype=torch.float64))
    assert started == [(name, True) for name in names]


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels are compiled for the GPU: see the last tests")
@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("unasked", [1, 5])
def test_the_engine_says_with_it_what_it_says_without(
    size: int | None, unasked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(CONFIGS["llama"])
    expected = sampled(model, size)
    assert 0 < expected.ended.sum() < len(TEXTS)
    monkeypatch.setattr(engine, "decoder_for", GPULlamaDecoder)
    monkeypatch.setattr(engine, "STEPS_UNASKED", unasked)
    got = sampled(model, size)
    assert torch.equal(got.response_ids, expected.response_ids)
    torch.testing.assert_close(got.log_probs, expected.log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("vocabulary", [5, 2500])
def test_drawing_by_blocks_is_drawing(vocabulary: int, temperature: float) -> None:
    logits = 3 * torch.randn(100, vocabulary)
    logits[:, vocabulary // 2 + 1 : -1], logits[50:, -1] = -torch.inf, -torch.inf
    chance = torch.rand(100, 1, dtype=torch.float64)
    chance[0], chance[1], chance[51] = 0.0, 1 - 2**-53, 1 - 2**-53
    tokens, log_probs = draw(logits, temperature, chance)
    got, at = kernels.draw(logits.to(DEVICE), temperature, chance.to(DEVICE))
    assert torch.equal(got.cpu(), tokens)
    assert at.isfinite().all()
    torch.testing.assert_close(at.cpu(), log_probs)


COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from instructlit.rollout import kernels

def compiled(name, number, counts, **constants):
    kernel = getattr(kernels, name)
    types = {"before": "*i64", "places": "*i64", "tokens": "*i64", "sums": "*fp64", "chance": "*fp64",
             "x": "*fp32", "weight": "*fp32", "weights": "*fp32", "cos": "*fp32", "sin": "*fp32", "tops": "*fp32",
             "log_probs": "*fp32", "epsilon": "fp32", "scale": "fp32", "temperature": "fp32"}
    types |= dict.fromkeys(counts.split(), "i32")
    signature = {n: "constexpr" if n in constants else types.get(n, "*" + number) for n in kernel.arg_names}
    # pointers as torch aligns memory, without which nothing is fetched ahead
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n][0] == "*"}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, aligned)
    made = compile(source, target=GPUTarget("cuda", 86, 32))
    print(name, number, len(made.asm["ptx"]), made.metadata.shared)

for number in ("bf16", "fp32"):
    compiled("_add_and_norm", number, "width", ADDS=True, BLOCK=128)
    keys = kernels.keys_at_once(128, 2 if number == "bf16" else 4)
    compiled("_attend", number, "kv_heads length", size=128, group=4, NORMS=True, ROWS=16, SIZE=128, KEYS=keys)
    compiled("_gated", number, "width", BLOCK=128)
    compiled("_sum_blocks", number, "vocabulary blocks", BLOCK=1024)
    compiled("_pick", number, "vocabulary blocks", BLOCK=1024, BLOCKS=8)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """What the interpreter takes Triton's compiler need not; it works without a GPU."""
    script, environment = tmp_path / "compiled.py", {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    script.write_text(COMPILED)  # it reads a kernel's source from a file
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shared = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(shared) == 10
    assert max(shared) <= 99 << 10, "more than a GPU such as RTX 3090, A10, L4 or RTX 4090 has for a block of threads"


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [None, 3])
def test_a_gpu_says_what_a_cpu_says(name: str, size: int | None) -> None:
    model = made(CONFIGS[name])
    expected = sampled(model, size, tokens=40)
    batch = prompt_batch(TEXTS)
    model, batch.input_ids, batch.attention_mask = model.cuda(), batch.input_ids.cuda(), batch.attention_mask.cuda()
    numbers = engine.chance(len(TEXTS), torch.device("cpu"), generator(), 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "chance", lambda *_: numbers.cuda())
        got = CachedEngine(size).generate(model, batch, Sampling(40), TOKENIZER)
    assert decoders.decoder_for(model, 1, 8).replays
    assert torch.equal(got.response_ids.cpu(), expected.response_ids)
    torch.testing.assert_close(got.log_probs.cpu(), expected.log_probs, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("mixed", [True, False])
def test_in_16_bits_the_log_probs_are_the_trainers(mixed: bool) -> None:
    model = made(CONFIGS["llama"]).cuda() if mixed else made(CONFIGS["llama"]).bfloat16().cuda()
    batch = prompt_batch(TEXTS)
    batch.input_ids, batch.attention_mask = batch.input_ids.cuda(), batch.attention_mask.cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed, cache_enabled=False), torch.no_grad():
        got = CachedEngine(3).generate(model, batch, Sampling(40), TOKENIZER)
        own = response_log_probs(model, got, 1.0)
    assert got.response_mask.sum() > 40
    assert (own - got.log_probs).abs()[got.response_mask].mean() < 2e-2


@pytest.mark.gpu
def test_a_step_is_recorded_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps = made(CONFIGS["llama"]).cuda(), []
    step = GPULlamaDecoder.step
    monkeypatch.setattr(GPULlamaDecoder, "step", lambda *args: steps.append(1) or step(*args))
    batch = prompt_batch(TEXTS)
    batch.input_ids, batch.attention_mask = batch.input_ids.cuda(), batch.attention_mask.cuda()
    got = CachedEngine(3).generate(model, batch, Sampling(40), TOKENIZER)
    assert got.response_mask.sum() > 60
    assert len(steps) == 2  # the first as it is, the second for the record


@pytest.mark.gpu
def test_memory_in_reserve_stays_while_a_step_is_recorded() -> None:
    torch.empty(1 << 28, device="cuda")  # and let go at once
    reserved = torch.cuda.memory_reserved()
    batch = prompt_batch(TEXTS)
    batch.input_ids, batch.attention_mask = batch.input_ids.cuda(), batch.attention_mask.cuda()
    CachedEngine(3).generate(made(CONFIGS["llama"]).cuda(), batch, Sampling(40), TOKENIZER)
    assert torch.cuda.memory_reserved() >= reserved
