"""The example of docs/add_a_backbone.md is a backbone like any other: the laws run over it."""

import importlib.util
import re
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs/add_a_backbone.md"


def import_example() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "leaky_average.py")
        file.write_text(code)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


import_example()
