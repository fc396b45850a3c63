"""The wheel's list of packages is the list of folders, and each folder maps where it says."""

import re
import tomllib
from pathlib import Path

import instructlit
from instructlit.errors import extra_of

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
BESIDE = {"callbacks", "configs", "tools"}


def packages_in(folder: Path, name: str) -> set[str]:
    """`name` and every package below `folder`, as their import names."""
    found = {name}
    for init in folder.rglob("__init__.py"):
        found.add(".".join([name, *init.parent.relative_to(folder).parts]).rstrip("."))
    return found


def test_every_package_is_named_and_every_name_has_its_folder() -> None:
    folders = packages_in(ROOT / "instructlit", "instructlit")
    for beside in BESIDE:
        folders |= packages_in(ROOT / beside, f"instructlit.{beside}")
    assert set(SETUPTOOLS["packages"]) == folders
    assert len(SETUPTOOLS["packages"]) == len(folders)


def test_no_python_file_lies_outside_a_package() -> None:
    homes = [ROOT / "instructlit", *(ROOT / name for name in BESIDE)]
    strays = [
        str(file.relative_to(ROOT))
        for home in homes
        for file in home.rglob("*.py")
        if not (file.parent / "__init__.py").is_file()
    ]
    assert strays == []


def test_the_folders_beside_the_package_map_into_its_namespace() -> None:
    assert SETUPTOOLS["package-dir"] == {f"instructlit.{name}": name for name in BESIDE}
    assert not any(path.name in BESIDE for path in (ROOT / "instructlit").iterdir())


def test_every_config_is_package_data() -> None:
    # setuptools takes the pattern from the package's own folder, whatever depth
    assert SETUPTOOLS["package-data"]["instructlit.configs"] == ["**/*.yaml"]
    others = [p for p in (ROOT / "configs").rglob("*") if p.is_file() and p.suffix not in (".yaml", ".py", ".pyc")]
    assert others == []


def test_every_file_of_the_labelling_pages_is_package_data() -> None:
    folder = ROOT / "tools" / "label"
    patterns = SETUPTOOLS["package-data"]["instructlit.tools.label"]
    declared = {path for pattern in patterns for path in folder.glob(pattern)}
    files = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files == declared
    assert len(files) > 10


def test_one_home_for_the_version() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "instructlit.__version__"}
    assert f"## {instructlit.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_every_dependency() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = list(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    names = {w.partition(">=")[0].partition("[")[0].lower().replace("_", "-") for w in wanted}
    assert names <= pinned
    assert all(">=" in w for w in wanted), "every dependency states a lower bound"


def test_a_missing_package_of_an_extra_is_told_with_its_extra() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for extra in extras.keys() - {"dev"}:
        for requirement in extras[extra]:
            module = re.split(r"[\[>]", requirement)[0].replace("-", "_").removesuffix("_py")
            assert extra_of(f"{module}.inner") == f"pip install 'instructlit[{extra}]'"
