"""Names of the dtypes that options take. The module loads no library: the commands' `--help` need it."""

from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]
"""What weights are held in."""

AutoDtype = Literal["auto", "float32", "bfloat16", "float16"]
"""As `Dtype`; "auto" is bfloat16 on a GPU and float32 elsewhere."""
