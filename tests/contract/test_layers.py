"""The layers of the package, read from the imports of every module: data flows down, and so do imports.

A module may import from its own layer and from those before it in `LAYERS`. Every import counts, those inside functions
and under TYPE_CHECKING too: what a type needs is a dependency like another. So is a name that `import_module` is given.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LAYERS = (
    *("errors", "dtypes", "files", "lazy", "redaction", "terminal", "http", "types"),
    *("intervals", "agreement", "rubric"),
    *("world", "ops", "losses", "data", "labels", "models", "rollout", "evaluation", "checkpoints", "modules"),
    *("memory", "labelling"),
    *("callbacks", "cli", "tools"),
)

PURE = {
    "errors": {"torch", "numpy"},
    "dtypes": {"torch", "transformers", "lightning", "numpy"},
    "files": {"torch", "transformers", "lightning", "numpy"},
    "lazy": {"torch", "transformers", "lightning", "numpy"},
    "redaction": {"torch", "numpy", "lightning"},
    "terminal": {"torch", "numpy", "lightning"},
    "http": {"torch", "numpy", "lightning"},
    "types": {"transformers", "lightning", "numpy"},
    "agreement": {"torch", "transformers", "lightning", "numpy"},
    "rubric": {"torch", "transformers", "lightning", "numpy"},
    "world": {"torch", "transformers", "lightning"},
    "ops": {"transformers", "lightning", "datasets", "numpy"},
    "losses": {"transformers", "lightning", "datasets", "numpy"},
    "data": {"peft", "bitsandbytes"},
    "models": {"datasets"},
    "intervals": {"torch", "numpy"},
    "labelling": {"torch", "transformers", "lightning", "numpy", "fastapi"},
    "checkpoints": {"torch", "transformers", "lightning", "numpy"},
}
"""Libraries that a layer must do without."""


def module_name(path: Path) -> str:
    """`instructlit.callbacks.x` for `callbacks/x.py`, which stands beside the package and installs inside it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "instructlit" else ("instructlit", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for folder in ("instructlit", "callbacks", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imported(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a module imports, relative imports resolved."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]) if base else ".".join(above)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield node.lineno, ast.unparse(node.args[0]).strip("'")


def layer(name: str) -> str | None:
    """The layer of a dotted name of ours; None for the package itself (its version) and for other people's modules."""
    parts = name.split(".")
    if parts[0] != "instructlit" or len(parts) == 1:
        return None
    head = parts[1]
    if head == "__main__":
        return "cli"
    return head if head in LAYERS else None


def violations(name: str, path: Path) -> list[str]:
    """What a module imports and must not, as `file:line: reason`."""
    here, found = layer(name), []
    for line, target in imported(name, path):
        there = layer(target)
        if here and there and LAYERS.index(there) > LAYERS.index(here):
            found.append(f"{path}:{line}: {here} imports {target}, of the later layer {there}")
        library = target.split(".")[0]
        if here and library in PURE.get(here, ()):
            found.append(f"{path}:{line}: {here} does without {library}")
        if library in ("callbacks", "tools", "configs", "tests"):
            found.append(f"{path}:{line}: {library} is imported as instructlit.{library} or not at all")
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_imports_from_its_own_and_earlier_layers(name: str) -> None:
    assert violations(name, SOURCES[name]) == []


def test_only_the_tools_know_the_embedded_world() -> None:
    others = {name: path for name, path in SOURCES.items() if layer(name) not in ("world", "tools")}
    assert [name for name, path in others.items() for _, to in imported(name, path) if layer(to) == "world"] == []


def test_every_module_has_a_layer() -> None:
    homeless = [name for name in SOURCES if layer(name) is None and name != "instructlit"]
    assert homeless == []
    assert {"instructlit.ops.masking", "instructlit.losses.ppo", "instructlit.types"} <= SOURCES.keys()


@pytest.mark.parametrize(
    ("home", "text", "fault"),
    [
        ("instructlit.ops.x", "from instructlit.losses import LossSum", "later layer losses"),
        ("instructlit.ops.x", "from ..losses.base import LossSum", "later layer losses"),
        ("instructlit.ops.x", "from .. import losses", "later layer losses"),
        ("instructlit.ops.x", "def f():\n    import transformers", "without transformers"),
        ("instructlit.losses.x", "import lightning.pytorch as pl", "without lightning"),
        ("instructlit.world.x", "import torch.nn", "without torch"),
        ("instructlit.world.x", "from instructlit import ops", "later layer ops"),
        ("instructlit.data.x", "import instructlit.models.backbone", "later layer models"),
        ("instructlit.rollout.x", "from instructlit.modules.ppo import PPOModule", "later layer modules"),
        ("instructlit.cli.fit", "from instructlit.tools import export", "later layer tools"),
        ("instructlit.modules.x", "from instructlit.callbacks.export import E", "later layer callbacks"),
        ("instructlit.callbacks.x", "importlib.import_module('instructlit.cli').main()", "later layer cli"),
        ("instructlit.modules.x", "import tools.world", "imported as instructlit.tools"),
        (
            "instructlit.modules.x",
            "from instructlit.rollout.engine import E\nfrom instructlit import __version__",
            None,
        ),
        ("instructlit.ops.x", "from .masking import widen\nimport torch", None),
    ],
)
def test_the_check_sees_what_it_should(tmp_path: Path, home: str, text: str, fault: str | None) -> None:
    path = tmp_path / "x.py"
    path.write_text(text)
    found = violations(home, path)
    assert [fault in line for line in found] == [True] if fault else not found


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("instructlit.cli", ("torch", "transformers", "lightning")),
        ("instructlit.world", ("torch", "transformers", "tokenizers")),
        ("instructlit.rollout, instructlit.data.tokenizers", ("lightning", "torchmetrics", "peft")),
    ],
)
def test_what_has_to_start_fast_imports_nothing_heavy(module: str, without: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {without!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.stdout.strip() == "[]", result.stderr
