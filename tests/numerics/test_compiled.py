"""Compiled blocks give the numbers and gradients of plain ones, without a break in the graph and without compiling anew
for another length."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import varlen_on_cpu  # noqa: F401 - gives the operator its kernels
from stage_helpers import token_batch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from instructlit.errors import UserError
from instructlit.models import packed
from instructlit.models.adapters import Lora, reference_view
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.blocks import decoder_blocks
from instructlit.models.token_scores import target_log_probs
from instructlit.types import TokenBatch

BATCHES = [
    token_batch([("say red: ", "der"), ("no", "on"), ("count to five: ", "1 2 3 4 5")]),
    token_batch([("a", "b"), ("count: ", "1 2")]),
    token_batch([("say blue: ", "eulb"), ("to", "ot"), ("x", "y"), ("count to seven: ", "1 2 3 4 5 6 7"), ("p", "q")]),
]


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are made as for the compiler, and run as they are: seconds less."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def computed(model: nn.Module, batch: TokenBatch, mixed: bool = False) -> tuple[Tensor, Tensor]:
    """Log-probs, and the gradient of their sum."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = target_log_probs(model, batch)
    found.sum().backward()
    return found.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_equal(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    largest = float(expected[1].abs().max())
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-6 * largest)


def pair(folder: Path, **options: Any) -> tuple[Any, Any]:
    """A compiled model and a plain one, adapters included."""
    models = []
    for compile in (True, False):
        torch.manual_seed(1)
        models.append(load_causal_lm(Backbone(str(folder), compile=compile, **options)))
        with torch.no_grad():
            for p in models[-1].parameters():
                p.add_(0.1 * torch.randn_like(p) * p.requires_grad)
    return models[0], models[1]


@pytest.mark.usefixtures("traced_only", "as_on_a_gpu")
@pytest.mark.parametrize(
    ("mixed", "options"),
    [(True, {}), (False, {"gradient_checkpointing": True}), (True, {"gradient_checkpointing": True, "lora": Lora(4)})],
    ids=["mixed", "checkpointing", "mixed-checkpointing-lora"],
)
def test_one_graph_serves_all_blocks_and_lengths(tiny_llama_dir: Path, mixed: bool, options: dict[str, Any]) -> None:
    compiled, plain = pair(tiny_llama_dir, **options)
    for batch in BATCHES:
        assert_equal(computed(compiled, batch, mixed), computed(plain, batch, mixed))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.usefixtures("traced_only", "as_on_a_gpu")
def test_another_architecture(tiny_gpt2_dir: Path) -> None:
    compiled, plain = pair(tiny_gpt2_dir)
    for batch in BATCHES:
        assert_equal(computed(compiled, batch), computed(plain, batch))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("padded", [False, True])
def test_segments_and_masks_of_a_cpu(tiny_llama_dir: Path, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "WORTH_PACKING", 1 if padded else -1)
    compiled, plain = pair(tiny_llama_dir)
    assert_equal(computed(compiled, BATCHES[0]), computed(plain, BATCHES[0]))
    graphs = counters["stats"]["unique_graphs"]
    for batch in BATCHES[1:]:
        assert_equal(computed(compiled, batch), computed(plain, batch))
    assert counters["stats"]["unique_graphs"] == graphs
    assert sum(counters["graph_break"].values()) == 0 or not padded


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.usefixtures("as_on_a_gpu")
def test_what_the_compiler_makes_of_it(tiny_llama_dir: Path) -> None:
    compiled, plain = pair(tiny_llama_dir)
    for batch in BATCHES:
        assert_equal(computed(compiled, batch), computed(plain, batch))


@pytest.mark.usefixtures("traced_only", "as_on_a_gpu")
def test_the_reference_is_the_trunk_without_its_adapters(tiny_llama_dir: Path) -> None:
    compiled, plain = pair(tiny_llama_dir, lora=Lora(rank=4))
    computed(compiled, BATCHES[0])
    with reference_view(compiled), reference_view(plain), torch.no_grad():
        found, expected = target_log_probs(compiled, BATCHES[0]), target_log_probs(plain, BATCHES[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_equal(computed(compiled, BATCHES[1]), computed(plain, BATCHES[1]))


@pytest.mark.usefixtures("traced_only", "as_on_a_gpu")
def test_values_of_a_scalar_model(tiny_llama_dir: Path) -> None:
    values = []
    for compile in (True, False):
        torch.manual_seed(1)
        model = load_scalar_model(Backbone(str(tiny_llama_dir), compile=compile))
        values.append(model(BATCHES[0].input_ids, BATCHES[0].attention_mask))
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("traced_only")
def test_decoding_compiles_nothing(tiny_llama_dir: Path) -> None:
    compiled, plain = pair(tiny_llama_dir)
    prompt = {"input_ids": BATCHES[0].input_ids, "attention_mask": BATCHES[0].attention_mask.long()}
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(compiled.generate(**prompt, **options), plain.generate(**prompt, **options))
    assert not counters["stats"]


def test_weights_keep_their_names(tiny_llama_dir: Path, tmp_path: Path) -> None:
    compiled, plain = pair(tiny_llama_dir)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    compiled.save_pretrained(tmp_path)
    again = load_causal_lm(Backbone(str(tmp_path)))
    assert all(torch.equal(x, y) for x, y in zip(again.parameters(), plain.parameters(), strict=True))


def test_blocks_that_nobody_names_are_refused(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(Backbone(str(tiny_llama_dir)))
    assert [type(block).__name__ for block in decoder_blocks(model, "policy", "")] == ["LlamaDecoderLayer"] * 2
    for kind in (type(model), type(model.base_model)):
        monkeypatch.setattr(kind, "_no_split_modules", None)
    with pytest.raises(UserError, match=r"policy\.compile: LlamaForCausalLM does not say .*blocks"):
        load_causal_lm(Backbone(str(tiny_llama_dir), compile=True), "policy")
