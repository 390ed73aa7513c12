"""benchmarks/search.py: what a line of --space means, and a study that goes on."""

import argparse
import shlex

import pytest

optuna = pytest.importorskip("optuna", reason="pip install -e '.[search]'")


@pytest.fixture(scope="module")
def search(program_of):
    return program_of("benchmarks/search.py")


def test_a_space_becomes_flags(search):
    values = {"d_model": "64", "n_layers": 2, "dropout": 0.25, "learning_rate": 1e-3}
    space = ["d_model=choice:64,96", "n_layers=int:1:3", "dropout=float:0:0.3"]
    flags = search.flags_of(
        optuna.trial.FixedTrial(values), [*space, "learning_rate=log:1e-4:1e-2"]
    )
    assert " ".join(flags) == "--d-model 64 --n-layers 2 --dropout 0.25 --learning-rate 0.001"
    for wrong in ("d_model=around:64", "d_model=int:a:b", "d_model"):
        with pytest.raises(SystemExit, match="write name=int"):
            search.flags_of(optuna.trial.FixedTrial({}), [wrong])


def test_a_trial_is_worth_its_last_evaluation_at_the_first_target(search, tmp_path, monkeypatch):
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path / "cache"))
    tiny = shlex.split("--steps 4 --eval-every 2 --eval-episodes 1 --n-layers 1 --device cpu")
    given = argparse.Namespace(
        runs=tmp_path, study="s", space=["d_model=choice:8"], dataset="hopper-mixed",
        algo="decision-s4", flags=tiny,
    )  # fmt: skip
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: search.run_trial(trial, given), n_trials=1)
    step, score = search.worth(search.evaluations(tmp_path / "s/0"))
    assert (step, score) == (4, study.best_value)
    (best, found, where, _, again) = search.conclusion(study, given)
    assert best == f"1 trials; best {score:.4g} (trial 0)"
    assert found.endswith(" --d-model 8")
    assert where.endswith("s/0")
    command = f"python train.py --dataset hopper-mixed --algo decision-s4 {shlex.join(tiny)}"
    assert again.split(maxsplit=1)[1] == f"{command} --d-model 8 --seed 1"
