"""benchmarks/memory_tasks.py: a small grid is trained once, and what its table says."""

import sys

import pytest

TINY = "--steps 64 --eval-every 32 --eval-episodes 1 --rows 2 --rollout-steps 16 --epochs 1"


@pytest.fixture
def module(program_of):
    return program_of("benchmarks/memory_tasks.py")


def run(module, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["memory_tasks.py", *arguments])
    module.main()


def test_a_grid_is_trained_once_with_its_tasks_settings(module, tmp_path, monkeypatch, capsys):
    table = tmp_path / "table.md"
    arguments = ["--tasks", "TMaze-v0", "--seeds", "0", "--runs", str(tmp_path / "runs")]
    arguments += ["--processes", "1", "--flags", f"{TINY} --d-model 8", "--output", str(table)]
    run(module, monkeypatch, *arguments)
    assert "done" in capsys.readouterr().out
    settings = (tmp_path / "runs/TMaze-v0/lru/0/config.yaml").read_text()
    assert "discount: 0.9" in settings and "steps: 64" in settings
    before = table.read_text()
    run(module, monkeypatch, *arguments)
    assert "done" not in capsys.readouterr().out
    assert table.read_text() == before


def test_a_line_tells_mean_interval_and_when_the_slowest_seed_got_there(
    module, tmp_path, monkeypatch
):
    jobs = []
    for seed, returns in enumerate([(0.2, 0.8, 0.9), (0.2, 0.3, 0.8)]):
        folder = tmp_path / str(seed)
        folder.mkdir()
        rows = [f"{step},{value}" for step, value in zip((1000, 2000, 3000), returns, strict=True)]
        (folder / "eval.csv").write_text("\n".join(["step,return_mean", *rows]) + "\n")
        (folder / "seconds.json").write_text('{"seconds": 90, "finished": true}')
        jobs.append(module.Job("RepeatPrevious-v0", "lru", (), seed, folder))
    *_, line = module.table(jobs).splitlines()
    assert line.startswith("| RepeatPrevious-v0 | lru | 2 | 0.85 [0.80, 0.90] | 0.80 | 0.74")
    assert line.endswith("| 3k | 3k | 1.5 |")


def test_every_backbone_is_a_learner_and_last_returns_become_rows(module, tmp_path, monkeypatch):
    folder = tmp_path / "runs/RepeatPrevious-v0/gla/0"
    folder.mkdir(parents=True)
    (folder / "eval.csv").write_text("step,return_mean\n1000,0.1\n2000,0.5\n")
    rows = tmp_path / "rows.csv"
    other = "RepeatPrevious-v0,gla,1,2000,0.7"  # of another machine: kept
    rows.write_text(f"task,learner,seed,step,return_mean\n{other}\n")
    for _ in range(2):  # the second time they are not added again
        run(
            module,
            monkeypatch,
            *("--tasks", "RepeatPrevious-v0", "--learners", "every", "--processes", "0"),
            *("--runs", str(tmp_path / "runs"), "--rows", str(rows)),
        )
    assert rows.read_text().splitlines() == [
        "task,learner,seed,step,return_mean",
        "RepeatPrevious-v0,gla,0,2000,0.5",
        other,
    ]
    assert {"s4=--backbone s4", "mlp=--backbone mlp"} <= set(module.EVERY)
