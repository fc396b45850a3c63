"""The InstructGPT recipe on PyTorch Lightning: SFT, a reward model from ranked comparisons, PPO, evaluation."""

from pathlib import Path

__version__ = "0.1.0"

# `callbacks/`, `tools/` and `configs/` stand beside this folder in a checkout and inside it in a wheel. In a checkout
# (editable install included) the root joins the search path, so that `instructlit.tools` means the same in both.
_root = Path(__file__).resolve().parent.parent
if not (Path(__file__).resolve().parent / "tools").is_dir() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))
