"""What to change in a config so that it fits: settings tried one after the other, each with its new total."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from instructlit.memory.estimate import Estimate, estimate
from instructlit.memory.run import Run
from instructlit.memory.shapes import Shapes
from instructlit.models.adapters import Lora


@dataclass
class Change:
    """A setting, and the memory that the run takes with it."""

    setting: str
    after: Estimate


def best(run: Run, count: int = 2, shapes: Shapes | None = None) -> list[Change]:
    """The settings that save the most, each alone, best first."""
    shapes = shapes or Shapes()
    before = estimate(run, shapes).peak
    tried = [Change(name, estimate(other, shapes)) for name, other in _settings(run)]
    tried = [change for change in tried if change.after.peak < before]
    return sorted(tried, key=lambda change: change.after.peak)[:count]


def fitting(run: Run, size: int, shapes: Shapes | None = None) -> list[Change]:
    """Settings, added one after another, until the run takes at most `size` bytes or nothing is left to change.

    Those that change nothing but time come first, then those that change what is trained, then more devices.
    """
    shapes = shapes or Shapes()
    found: list[Change] = []
    now, passed = estimate(run, shapes), set[str]()
    while now.peak > size:
        step = _next(now, shapes, passed)
        if step is None:
            break
        option = step.setting.partition(":")[0]
        found = [change for change in found if change.setting.partition(":")[0] != option]  # set again, to less
        found.append(step)
        now = step.after
    return found


def _next(now: Estimate, shapes: Shapes, passed: set[str]) -> Change | None:
    """The first setting not tried yet that makes the run smaller."""
    for name, other in _settings(now.run):
        if name in passed:
            continue
        passed.add(name)
        after = estimate(other, shapes)
        if after.peak < now.peak:
            return Change(name, after)
    return None


def _settings(run: Run) -> Iterator[tuple[str, Run]]:
    """Every setting that may help, as the option to set and the run with it."""
    size = run.rows // run.per_row
    while size > 1:
        size //= 2
        yield f"micro_batch_size: {size}", replace(run, rows=size * run.per_row, cut=True)
    if any(not run.models[role].gradient_checkpointing for role in run.trained):
        yield (
            f"gradient_checkpointing: true ({' and '.join(run.trained)})",
            run.with_models(lambda b: replace(b, gradient_checkpointing=True), run.trained),
        )
    yield from _generation(run)
    frozen = [r for r in run.models if r not in run.trained and run.models[r].dtype == "float32"]
    if frozen:
        setting = f"dtype: bfloat16 ({' and '.join(frozen)})"
        yield setting, run.with_models(lambda b: replace(b, dtype="bfloat16"), frozen)
    if run.ema:
        yield "ema_decay: null", replace(run, ema=False)
    if find_spec("bitsandbytes") is not None:
        yield "--config configs/optimizer/adamw_8bit.yaml", replace(run, make_optimizer=_eight_bit)
    yield from _adapters(run)
    for devices in (2, 4, 8):
        if devices > run.devices:
            setting = f"--config configs/strategy/fsdp2.yaml over {devices} devices"
            yield setting, _over(run, devices)


def _generation(run: Run) -> Iterator[tuple[str, Run]]:
    for part in (2, 4, 8):
        if run.sampled >= part:
            yield f"engine.batch_size: {run.sampled // part}", replace(run, sampled=run.sampled // part)
    for part in (2, 4, 8):
        if run.scored >= part:
            yield f"reward's batch_size: {run.scored // part}", replace(run, scored=run.scored // part)


def _adapters(run: Run) -> Iterator[tuple[str, Run]]:
    """Low-rank adapters on all that is trained, and then a packed trunk; the reference is the policy without them."""
    from instructlit.models.folders import adapter_config

    def adapted(name: str) -> bool:
        return run.models[name].lora is not None or adapter_config(run.models[name].path) is not None

    without = [role for role in run.trained if not adapted(role)]
    if without:
        other = run.with_models(lambda b: replace(b, lora=Lora(), random_init=False), without)
        if "reference" in other.models and other.models["reference"].path == run.models["policy"].path:
            other = replace(other, models={r: b for r, b in other.models.items() if r != "reference"})
        yield f"lora: {{rank: 16}} ({' and '.join(without)})", other
        return
    plain = [role for role, backbone in run.models.items() if backbone.quantization is None]
    if plain and find_spec("bitsandbytes") is not None:
        setting = f"quantization: nf4 ({', '.join(plain)})"
        yield setting, run.with_models(lambda b: replace(b, quantization="nf4", dtype="bfloat16"), plain)


def _over(run: Run, devices: int) -> Run:
    def part(count: int) -> int:
        return -(-count * run.devices // devices)

    text = None if run.text is None else (min(run.text[0], part(run.text[0])), run.text[1])
    return replace(
        run,
        devices=devices,
        strategy="sharded",
        sampled=part(run.sampled),
        scored=part(run.scored),
        text=text,
    )


def _eight_bit(parameters: Any) -> Any:
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(parameters)
