"""What `instructlit memory` says against what is allocated: counted parts to the byte, whole steps within 15 %."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import EOS_ID, PAD_ID, make_char_tokenizer, save_tiny_model
from live_bytes import LiveBytes
from stage_helpers import FixedBatches, trainer
from torch import Tensor, nn
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from instructlit.cli import main
from instructlit.errors import UserError
from instructlit.memory import Run, best, estimate, fitting, run_of
from instructlit.memory.optimizer import state_bytes
from instructlit.memory.outline import outline, weights
from instructlit.memory.table import as_text, parsed_size
from instructlit.memory.trace import cache_bytes, saved_bytes
from instructlit.models.adapters import Lora, unwrapped
from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.ema import EMA
from instructlit.models.export import export_folder
from instructlit.models.packed import cache_name
from instructlit.modules import PPOModule, RewardModule, SFTModule
from instructlit.rollout import CachedEngine, RewardModel, Sampling, WorkerEngine
from instructlit.rollout.decoders import decoder_for
from instructlit.rollout.llama import Linear, can_pack
from instructlit.types import ComparisonBatch, Prompt, PromptBatch, TokenBatch

COMMON: dict[str, Any] = {"vocab_size": 2000, "pad_token_id": PAD_ID, "eos_token_id": EOS_ID, "bos_token_id": None}
SHAPES: dict[str, Any] = {
    "llama": LlamaConfig(hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=256, **COMMON),
    "gpt2": GPT2Config(n_embd=96, n_layer=6, n_head=4, n_positions=256, **COMMON),
    "qwen3": Qwen3Config(hidden_size=192, intermediate_size=256, num_hidden_layers=14, num_attention_heads=6,
                         num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, **COMMON),
}  # fmt: skip
T = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model of each shape, and a reward model of it beside."""
    root, tokenizer = tmp_path_factory.mktemp("shapes"), make_char_tokenizer()
    found = {name: save_tiny_model(config, root / name, tokenizer) for name, config in SHAPES.items()}
    single = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, **COMMON)
    found["single"] = save_tiny_model(single, root / "single", tokenizer)
    for name, path in list(found.items()):
        found[f"{name}-reward"] = export_folder(load_scalar_model(Backbone(str(path))), tokenizer, root / f"{name}-rm")
    return found


def bytes_of(tensors: Any) -> int:
    """Each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def allocated(model: nn.Module) -> int:
    """Parameters, with what unpacks those that are packed."""
    extra: list[Tensor] = []
    for p in model.parameters():
        state = getattr(p, "quant_state", None)
        if state is not None:
            extra += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        extra += [t for t in (getattr(p, "SCB", None),) if t is not None]
    return bytes_of(model.parameters()) + sum(t.numel() * t.element_size() for t in extra)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize(
    ("lora", "quantization"), [(None, None), (Lora(rank=4), None), *((Lora(rank=4), q) for q in ("nf4", "int8"))]
)
def test_weights_gradients_and_state_to_the_byte(
    folders: dict[str, Path], name: str, scalar: bool, lora: Lora | None, quantization: Any
) -> None:
    if quantization:
        pytest.importorskip("bitsandbytes")
    backbone = Backbone(str(folders[name]), lora=lora, quantization=quantization)
    counted = weights(outline(backbone, scalar=scalar, where="model"), backbone)
    model = load_scalar_model(backbone) if scalar else load_causal_lm(backbone)
    assert sum(w.bytes for w in counted) == allocated(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(w.bytes for w in counted if w.trained) == bytes_of(trained)
    average = EMA(model)
    assert 4 * sum(w.shape.numel() for w in counted if w.trained) == bytes_of(average._average.values())


OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


def eight_bit(name: str) -> Any:
    optim: Any = pytest.importorskip("bitsandbytes").optim
    return lambda p: getattr(optim, name)(p, lr=1e-3)


@pytest.mark.parametrize("kind", [*OPTIMIZERS, "AdamW8bit", "Lion8bit", "AdamW"])
def test_optimiser_state_to_the_byte(kind: str) -> None:
    make = OPTIMIZERS[kind] if kind in OPTIMIZERS else eight_bit(kind)
    shapes = [torch.Size(s) for s in ((64, 100), (4096,), (33, 7), (200, 300))]
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = make(parameters)
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer.step()
    kept = [x for s in optimizer.state.values() for key, x in s.items() if isinstance(x, Tensor) and "qmap" not in key]
    assert state_bytes(make, shapes) == sum(x.numel() * x.element_size() for x in kept)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("lora", "dtype", "mixed"), [(None, "float32", False), (None, "float32", True), (Lora(4), "bfloat16", True)]
)
def test_activations_are_the_tensors_that_autograd_keeps(
    folders: dict[str, Path], name: str, lora: Lora | None, dtype: Any, mixed: bool
) -> None:
    backbone = Backbone(str(folders[name]), lora=lora, dtype=dtype)
    found = saved_bytes(outline(backbone, scalar=False, where="model"), 3, 20, mixed)
    model: Any = load_causal_lm(backbone)
    owned, kept = {p.untyped_storage()._cdata for p in model.parameters()}, {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in owned:
            kept[x.untyped_storage()._cdata] = x
        return x

    mask = torch.ones(3, 20, dtype=torch.long)
    mask[1, 15:] = 0  # padding, as in a real batch: without any the attention needs no mask
    mixing = torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), mixing:
        model(
            input_ids=torch.zeros(3, 20, dtype=torch.long), attention_mask=mask,
            position_ids=mask.cumsum(1) - 1, use_cache=False, logits_to_keep=1,
        )  # fmt: skip
    assert found.total(checkpointing=False) == sum(x.untyped_storage().nbytes() for x in kept.values())


@pytest.mark.parametrize("name", SHAPES)
def test_keys_and_values_to_the_byte(folders: dict[str, Path], name: str) -> None:
    backbone = Backbone(str(folders[name]))
    model: Any = load_causal_lm(backbone)
    with torch.no_grad():
        cache = model(input_ids=torch.ones(2, 11, dtype=torch.long), use_cache=True)[cache_name(model)]
    kept = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    assert cache_bytes(outline(backbone, scalar=False, where="model"), 2, 11, autocast=False) == kept


# -- whole steps ---------------------------------------------------------------------------------------------------


class Data(FixedBatches):
    """Batches with padding, and what an estimate asks of a datamodule."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stage: str, rows: int):
        self.max_length, self.max_prompt_length = T, T - T // 4
        super().__init__(tokenizer, [made(stage, rows)] * 2)
        self.batch_size = rows


def made(stage: str, rows: int) -> Any:
    width = T - T // 4 if stage == "ppo" else T
    count = 2 * rows if stage == "reward" else rows
    ids, mask = torch.randint(5, 120, (count, width)), torch.ones(count, width, dtype=torch.bool)
    if stage == "ppo":
        mask[1::2, :4] = False
        return {"prompts": PromptBatch(ids, mask, [Prompt("")] * rows)}
    mask[1::2, -4:] = False
    if stage == "sft":
        return TokenBatch(ids, mask, mask)
    index, ranks = torch.arange(rows).repeat_interleave(2), torch.tensor([1, 2] * rows)
    return ComparisonBatch(ids, mask, mask, index, ranks, ["a"] * rows)


def module_of(stage: str, folder: Path, **options: Any) -> Any:
    backbone = Backbone(str(folder), **options)
    common: dict[str, Any] = {"optimizer": OPTIMIZERS["adamw"], "micro_batch_size": 4, "lr_scheduler": None}
    if stage == "sft":
        return SFTModule(backbone, **common)
    if stage == "reward":
        return RewardModule(backbone, **common)
    reward = RewardModel(Backbone(str(folder.with_name(f"{folder.name}-rm"))), batch_size=4)
    return PPOModule(
        backbone, reward, backbone, minibatch_size=8, episodes=16, sampling=Sampling(T // 4), engine=CachedEngine(4),
        self_check=False, **common,
    )  # fmt: skip


def peak_of(module: Any, data: Data, root: Path, **options: Any) -> int:
    """Most bytes alive at once in a step after the first, when every state is there."""
    live = LiveBytes()

    class Start(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            live.peak = 0
            for p in module.parameters():
                live.see(p.data)

    with live:
        trainer(root, callbacks=[Start()], **options).fit(module, data)
    return live.peak


@pytest.mark.parametrize(("stage", "name"), [("sft", "gpt2"), ("reward", "llama"), ("ppo", "llama")])
@pytest.mark.parametrize(
    "options",
    [{}, {"lora": Lora(8)}, {"lora": Lora(8), "gradient_checkpointing": True}],
    ids=["full", "lora", "lora-checkpointing"],
)
def test_a_step_takes_what_was_said_within_15_percent(
    folders: dict[str, Path],
    char_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    stage: str,
    name: str,
    options: dict[str, Any],
) -> None:
    module, data = module_of(stage, folders[name], **options), Data(char_tokenizer, stage, 8)
    found = estimate(run_of(module, data, completions=2))
    for phase in found.phases:
        phase.parts.pop("temporaries", None)  # of torch's optimisers on a GPU; on a CPU they take tensor by tensor
    assert found.peak == pytest.approx(peak_of(module, data, tmp_path), rel=0.15)


def test_ppo_on_one_trunk_takes_at_most_1_35_times_what_sft_takes(
    folders: dict[str, Path], char_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base, lora = str(folders["llama"]), Lora(8)
    options: dict[str, Any] = {"dtype": "bfloat16", "gradient_checkpointing": True}
    reward = load_scalar_model(Backbone(base, lora=lora))
    adapters = str(export_folder(reward, char_tokenizer, tmp_path / "reward", merge=False))
    policy = Backbone(base, lora=lora, **options)
    common: dict[str, Any] = {"optimizer": OPTIMIZERS["adamw"], "micro_batch_size": 4, "lr_scheduler": None}
    ppo = PPOModule(
        policy, RewardModel(Backbone(adapters, dtype="bfloat16"), batch_size=4), Backbone(adapters, **options),
        minibatch_size=8, episodes=16, sampling=Sampling(T // 4), engine=CachedEngine(4), self_check=False, **common,
    )  # fmt: skip
    peaks = {}
    for stage, module in (("sft", SFTModule(policy, **common)), ("ppo", ppo)):
        data = Data(char_tokenizer, stage, 8)
        peaks[stage] = peak_of(module, data, tmp_path, precision="bf16-mixed")
    assert peaks["ppo"] <= 1.35 * peaks["sft"], peaks


def ppo_run(folders: dict[str, Path], tokenizer: PreTrainedTokenizerFast, **options: Any) -> Run:
    return run_of(module_of("ppo", folders["single"], **options), Data(tokenizer, "ppo", 8))


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16-mixed"])
@pytest.mark.parametrize("packed", [False, True], ids=["as they are", "packed"])
@pytest.mark.parametrize("name", ["llama", "llama, adapted", "qwen3", "gpt2"])
def test_what_the_decoder_holds_once_more(
    folders: dict[str, Path],
    char_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    mixed: bool,
    packed: bool,
) -> None:
    """To the byte but for the norms, which are float32 already, and the adapters."""
    name, *lora = name.split(", ")
    options: dict[str, Any] = {"lora": Lora(8)} if lora else {}
    if not packed:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif not can_pack(torch.bfloat16 if mixed else torch.float32):
        pytest.skip("this torch or this CPU packs no weights of that type")
    model: Any = load_causal_lm(Backbone(str(folders[name]), **options)).eval()
    ours = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        decoder: Any = decoder_for(model, 2, T)
    linears = [part for layer in getattr(decoder, "_layers", []) for part in vars(layer).values()
               if isinstance(part, Linear)]  # fmt: skip
    linears += [decoder._head] if name != "gpt2" else []
    held = [weight for linear in linears for weight, _ in linear._parts]
    copies = [w for w in held if w.is_mkldnn or w.untyped_storage().data_ptr() not in ours]
    counted = sum(w.numel() * w.dtype.itemsize for w in copies)
    module, data = module_of("ppo", folders[name], **options), Data(char_tokenizer, "ppo", 8)
    for cpu in (True, False):  # a GPU's only casts
        run = run_of(module, data, precision="bf16-mixed" if mixed else "32-true", cpu=cpu)
        (sampling,) = (phase for phase in estimate(run).phases if phase.name == "sampling")
        assert sampling.parts.get("decoder's weights", 0) == (counted if cpu or mixed else 0)
    assert bool(copies) == ((mixed or packed) and name != "gpt2")


def test_an_engine_of_its_own_process_takes_nothing_of_this_device(
    folders: dict[str, Path], char_tokenizer: PreTrainedTokenizerFast
) -> None:
    module, data = module_of("ppo", folders["llama"]), Data(char_tokenizer, "ppo", 8)
    module.engine = WorkerEngine()
    found = estimate(run_of(module, data, cpu=True))
    (sampling,) = (phase for phase in found.phases if phase.name == "sampling")
    assert sum(sampling.parts.values()) == 0
    assert any("separate process" in note for note in found.notes)
    assert fitting(found.run, found.peak - 1) is not None


def test_a_shared_trunk_is_counted_once(folders: dict[str, Path], char_tokenizer: PreTrainedTokenizerFast) -> None:
    one = estimate(ppo_run(folders, char_tokenizer, lora=Lora(8))).held
    full = estimate(ppo_run(folders, char_tokenizer)).held
    assert set(full) - set(one) == {"reference weights"}
    assert one["value weights"] < 0.1 * one["policy weights"]
    assert full["policy weights"] - full["value weights"] == 4 * (2000 * 64 - 64)  # float32: lm_head for a scalar head


def test_advice_saves_memory_and_stops_when_it_fits(
    folders: dict[str, Path], char_tokenizer: PreTrainedTokenizerFast
) -> None:
    run = ppo_run(folders, char_tokenizer)
    before = estimate(run).peak
    two = best(run, 2)
    assert len(two) == 2
    assert two[0].after.peak <= two[1].after.peak < before
    peaks = [before, *(change.after.peak for change in fitting(run, before // 2))]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] <= before // 2 < peaks[-2]
    assert not fitting(run, before)


def test_shards_divide_what_is_held(folders: dict[str, Path], char_tokenizer: PreTrainedTokenizerFast) -> None:
    from dataclasses import replace

    run = ppo_run(folders, char_tokenizer)
    one, four = estimate(run), estimate(replace(run, devices=4, strategy="sharded"))
    for name, size in one.held.items():
        assert four.held[name] == -(-size // 4)
    assert "gathered weights" in four.phases[0].parts


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * 2**30), ("24G", 24 * 2**30), ("80GB", 80 * 10**9), ("1.5 MiB", 3 * 2**19)]
)
def test_sizes(text: str, size: int) -> None:
    assert parsed_size(text, "--fit") == size


@pytest.mark.parametrize("text", ["much", "12 apples", "1.2.3G", "."])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(UserError, match="is not a size"):
        parsed_size(text, "--fit")


# -- the command and the message -----------------------------------------------------------------------------------


def recipe(folder: Path, path: Path) -> str:
    config = {
        "model": {"class_path": "instructlit.modules.SFTModule", "init_args": {"policy": {"path": str(folder)}}},
        "data": {
            "class_path": "instructlit.data.DemonstrationData",
            "init_args": {"tokenizer": "none", "train": "none.jsonl", "batch_size": 8, "max_length": 32},
        },
    }
    path.write_text(json.dumps(config))
    return str(path)


def test_the_command_needs_a_config_json_and_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SHAPES["llama"].save_pretrained(tmp_path / "shape")
    config = recipe(tmp_path / "shape", tmp_path / "r.json")
    assert main(["memory", "--config", config, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    weight = 4 * outline_size(tmp_path / "shape")
    assert found["held"] == {"weights": weight, "optimiser state": 2 * weight + 4 * 39}  # AdamW: a step count a tensor
    assert found["peak"] == max(phase["total"] for phase in found["phases"].values())
    assert set(found["phases"]["optimiser step"]) == {"gradients", "total"}
    plain = tmp_path / "plain.yaml"
    plain.write_text("model: {init_args: {optimizer: {init_args: {fused: false}}}}")
    assert main(["memory", "--config", config, "--config", str(plain), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["phases"]["optimiser step"]["temporaries"] == weight
    assert main(["memory", "--config", config, "--fit", "1KiB"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert main(["memory", "--config", config, "--fit", "1GiB"]) == 0
    assert "fits in" in capsys.readouterr().out


@pytest.mark.parametrize("overlay", ["adamw_8bit", "lion_8bit"])
def test_the_command_takes_an_optimiser_whose_arguments_have_no_types(
    overlay: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes")
    SHAPES["llama"].save_pretrained(tmp_path / "shape")
    config = recipe(tmp_path / "shape", tmp_path / "r.json")
    assert main(["memory", "--config", config, "--config", f"configs/optimizer/{overlay}.yaml", "--json"]) == 0
    model = outline(Backbone(str(tmp_path / "shape")), scalar=False, where="model")
    sizes = [p.numel() for p in unwrapped(model).parameters()]
    moment = sum(n + 4 * -(-n // 256) if n >= 4096 else 4 * n for n in sizes)  # small weights keep float32
    assert json.loads(capsys.readouterr().out)["held"]["optimiser state"] == moment * (2 if "adamw" in overlay else 1)


def outline_size(folder: Path) -> int:
    model = outline(Backbone(str(folder)), scalar=False, where="model")
    return sum(p.numel() for p in unwrapped(model).parameters())


def test_a_folder_to_come_has_a_stand_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SHAPES["llama"].save_pretrained(tmp_path / "shape")
    config = recipe(tmp_path / "to-come", tmp_path / "r.json")
    assert main(["memory", "--config", config]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["memory", "--config", config, "--completions", "0"]) == 2
    assert "--completions: found 0" in capsys.readouterr().err
    assert main(["memory", "--config", config, "--stand_in", str(tmp_path / "shape")]) == 0
    assert "stands in for" in capsys.readouterr().out.replace("\n", " ")


def test_running_out_of_memory_ends_with_the_table_and_two_settings(
    folders: dict[str, Path], char_tokenizer: PreTrainedTokenizerFast
) -> None:
    from instructlit.cli.memory import out_of_memory

    module, data = module_of("ppo", folders["single"]), Data(char_tokenizer, "ppo", 8)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    message = str(out_of_memory(error, module, data, pl.Trainer(accelerator="cpu", logger=False, devices=1)))
    assert "Tried to allocate 2.00 GiB" in message
    assert as_text(estimate(run_of(module, data))).splitlines()[-2] in message
    assert message.count("->") == 2


def test_what_kept_the_memory_from_being_told_is_named_though_it_begins_with_an_empty_line(
    folders: dict[str, Path], char_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instructlit.cli import memory

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("\nno such layer")

    monkeypatch.setattr(memory, "estimate", failing)
    module, data = module_of("sft", folders["single"]), Data(char_tokenizer, "sft", 8)
    trainer = pl.Trainer(accelerator="cpu", logger=False, devices=1)
    message = str(memory.out_of_memory(torch.OutOfMemoryError("full"), module, data, trainer))
    assert "process less at once (no such layer)" in message
