"""The artefact is what is tested: build the wheel, install it elsewhere, leave the checkout, run."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("instructlit", "callbacks", "configs", "tools", "pyproject.toml", "README.md", "LICENSE")

PROBE = """
import instructlit, instructlit.callbacks, instructlit.configs, instructlit.tools
from importlib import import_module, resources
from instructlit.cli import COMMANDS

for module in (instructlit, instructlit.callbacks, instructlit.configs, instructlit.tools):
    print(module.__name__, module.__file__)
assert len(instructlit.__path__) == 1, instructlit.__path__
for target, _ in COMMANDS.values():
    module, function = target.split(":")
    assert callable(getattr(import_module(module), function)), target
for name in instructlit.callbacks.__all__:
    getattr(instructlit.callbacks, name)
assert (resources.files("instructlit.configs") / "optimizer" / "adamw.yaml").is_file()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(origin, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next((source / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it; the dependencies are those of this one, without its editable install."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    packages = next((folder / "env" / "lib").glob("python*/site-packages"))
    # a path that a .pth file adds is not searched for further .pth files, and those are what make an install editable
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([*words], cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_the_wheel_holds_one_top_level_package_and_every_config(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"instructlit"}
    shipped = {n.removeprefix("instructlit/configs/") for n in names if n.endswith(".yaml")}
    assert shipped == {str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml")}
    sources = {f"instructlit/{p.relative_to(ROOT / 'instructlit')}" for p in (ROOT / "instructlit").rglob("*.py")}
    for beside in ("callbacks", "tools"):
        sources |= {f"instructlit/{beside}/{p.relative_to(ROOT / beside)}" for p in (ROOT / beside).rglob("*.py")}
    assert sources <= set(names)
    pages = {
        p.relative_to(ROOT / "tools")
        for p in (ROOT / "tools" / "label").rglob("*")
        if p.suffix in (".html", ".css", ".js")
    }
    assert {f"instructlit/tools/{page}" for page in pages} <= set(names)
    assert "instructlit/py.typed" in names
    assert any(n.endswith("LICENSE") for n in names)


def test_everything_imports_from_the_wheel(elsewhere: Path) -> None:
    done = run(elsewhere, elsewhere / "env" / "bin" / "python", "-c", PROBE)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout
    assert done.stdout.count(str(elsewhere)) == 4


def test_the_command_runs_from_the_wheel_and_finds_its_recipes(elsewhere: Path) -> None:
    command = elsewhere / "env" / "bin" / "instructlit"
    done = run(elsewhere, command, "--help")
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout
    done = run(elsewhere, command, "fit", "--config", "configs/sft/world.yaml", "--print_config")
    assert done.returncode == 0, done.stderr
    assert "instructlit.modules.SFTModule" in done.stdout
