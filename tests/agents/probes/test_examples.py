"""The examples of docs/probes.md run, one after the other, as they stand there."""

import re
from pathlib import Path

import decision_s4
from decision_s4 import train

TINY = (
    "--steps 2 --eval-every 2 --eval-episodes 1 --batch-steps 50 --no-video --d-model 8 "
    "--d-embed 8 --n-layers 1 --backbone-options d_state=4 --threads 1 --device cpu --run-dir RUN"
)


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path / "cache"))
    assert train.main(TINY.split()) == 0
    page = Path(decision_s4.__file__).parent / "docs" / "probes.md"
    known: dict[str, object] = {}
    examples = re.findall("```python\n(.*?)```", page.read_text("utf-8"), re.S)
    for example in examples:
        exec(example, known)
    assert len(examples) == 2
    assert known["found"].inputs["observation"].shape[-1] == 11
    mean, low, high = known["judged"].beats("unusual", "random order")
    assert low <= mean <= high
