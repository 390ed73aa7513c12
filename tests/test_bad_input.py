"""Bad input to both programs: exit code 2, one line with the fix, nothing left behind."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from minari.serialization import serialize_space

from decision_s4 import evaluate, train
from decision_s4.agents import checkpoint, step_folders
from decision_s4.agents.logger import Logger
from decision_s4.agents.training import Training
from decision_s4.envs import video

TINY = (
    "--steps 4 --eval-every 2 --eval-episodes 1 --batch-steps 30 --no-video --d-model 8 "
    "--d-embed 8 --n-layers 1 --backbone-options d_state=4 --threads 1 --device cpu"
)


@pytest.fixture(autouse=True)
def folder(tmp_path, tmp_path_factory, monkeypatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "no-data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refusal(folder, capsys):
    """The one line that train.py says to these flags."""

    def refuse(flags: str, before_all: bool = True) -> str:
        before = contents(folder)
        capsys.readouterr()
        assert train.main([*TINY.split(), *flags.split()]) == 2
        said = capsys.readouterr()
        assert (said.out == "") is before_all
        assert said.err.startswith("train.py: ")
        assert said.err.count("\n") == 1
        assert contents(folder) == before
        return said.err

    return refuse


@pytest.fixture
def evaluation_refusal(folder, capsys):
    """The one line that evaluate.py says to this command line."""

    def refuse(argv: str) -> str:
        before = contents(folder)
        capsys.readouterr()
        assert evaluate.main(argv.split()) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("evaluate.py: ")
        assert said.err.count("\n") == 1
        assert contents(folder) == before
        return said.err

    return refuse


FLAGS = {
    "--stepz 3": "unknown flag --stepz; did you mean '--steps'?",
    "--algo decision-s5": "unknown algorithm 'decision-s5'; did you mean 'decision-s4'?",
    "--backbone s4dd": "backbone 's4dd' is unknown; ",
    "--backbone-options d_stat=4": "no option 'd_stat'; did you mean 'd_state'?",
    "--backbone-options d_state": "backbone option 'd_state' has no value; write name=value",
    "--backbone-options d_state=x": "backbone option d_state is 'x'; it needs int",
    "--dataset hopper-mixd": "unknown dataset 'hopper-mixd'; did you mean 'hopper-mixed'?",
    "--dataset nowhere.hdf5": "dataset 'nowhere.hdf5': no such file or folder; check the path",
    "--env Hoper-v5": "not registered; did you mean 'Hopper-v5'? --env none trains without eval",
    "--env HalfCheetah-v5": "environment 'HalfCheetah-v5' has observations Box(17,), the dataset",
    "--env os:Env": "environment id 'os:Env' is no registered name",
    "--run-dir /dev/null/run": "/dev/null/run: Not a directory; choose another run folder",
    "--resume nowhere": "--resume nowhere: no config.yaml there; give a run's folder",
    "--config nowhere.yaml": "nowhere.yaml: No such file or directory",
    "--steps 0": "--steps is 0; use 1 or more",
    "--steps abc": "--steps: invalid literal for int() with base 10: 'abc'",
    "--batch-steps 0": "--batch-steps is 0; use 1 or more",
    "--eval-every -1": "--eval-every is -1; use 1 or more",
    "--eval-episodes 0": "--eval-episodes is 0; use 1 to 1000000",
    "--log-every 0": "--log-every is 0; use 1 or more",
    "--d-model 0": "--d-model is 0; use 1 to 16384",
    "--n-layers -1": "--n-layers is -1; use 1 to 16384",
    "--d-model 16384 --n-layers 1000": "with n_layers 1000 needs more than 4000 GiB of memory",
    "--d-embed 100000": "--d-embed is 100000; use 1 to 16384",
    "--mlp-ratio -1": "--mlp-ratio is -1.0; use 0 to 64",
    "--mlp-ratio 1e9": "--mlp-ratio is 1000000000.0; use 0 to 64",
    "--observation-noise -1": "--observation-noise is -1.0; use 0 or more",
    "--observation-noise nan": "--observation-noise is nan; use 0 or more",
    "--backbone deltanet --backbone-options expand_k=1e5": "expand_k is 100000.0; it goes to 64",
    "--backbone mamba --backbone-options d_state=5000": "d_state is 5000; it goes to 4096, try 16",
    "--backbone transformer --backbone-options window=2000000": "window is 2000000; it goes",
    "--backbone hybrid --backbone-options linear=hybrid": "linear 'hybrid' is a mixture itself",
    "--dropout 2": "--dropout is 2.0; use 0 or more, and less than 1",
    "--average-decay 1": "--average-decay is 1.0; use 0 or more, and less than 1",
    "--learning-rate -1": "--learning-rate is -1.0; use a number above 0",
    "--learning-rate nan": "--learning-rate is nan; use a number above 0",
    "--learning-rate inf": "--learning-rate is inf; use a number above 0",
    "--gradient-clip 0": "--gradient-clip is 0.0; use a number above 0",
    "--return-scale 0": "--return-scale is 0.0; use a number above 0",
    "--return-scale 1e-30": "in units of --return-scale 1e-30; mend the rewards, or give a --ret",
    "--warmup-steps -1": "--warmup-steps is -1; use 0 or more",
    "--weight-decay nan": "--weight-decay is nan; use 0 or more",
    "--seed -1": "--seed is -1; use 0 to 4294967295",
    "--threads -1": "--threads is -1; use 0 to 1024",
    "--device gpu": "--device 'gpu' is unknown; use auto, cpu, cuda or cuda:1",
    "--device cuda:77": "--device cuda:77 cannot be used",
    "--target-returns x": "--target-returns: could not convert string to float: 'x'",
    "--target-returns 1,inf": "--target-returns has inf; use finite numbers, as 3600,1800",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags(flags, refusal):
    assert FLAGS[flags] in refusal(flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_is_not_there(refusal):
    assert "--device cuda cannot be used" in refusal("--device cuda")


def test_a_used_folder(refusal, folder):
    (folder / "run").mkdir()
    (folder / "run/notes.txt").write_text("mine")
    assert "run: already holds a run; continue it with --resume run" in refusal("--run-dir run")


@pytest.fixture
def data(folder) -> Path:
    """A sound Minari folder of CartPole-v1, two episodes of 20 steps, for a test to spoil."""
    env = gym.make("CartPole-v1")
    path = folder / "poles" / "data"
    path.mkdir(parents=True)
    metadata = {
        "data_format": "hdf5",
        "dataset_id": "poles",
        "total_episodes": 2,
        "observation_space": serialize_space(env.observation_space),
        "action_space": serialize_space(env.action_space),
        "env_spec": json.dumps({"id": "CartPole-v1", "entry_point": "named_by_data:Env"}),
    }
    (path / "metadata.json").write_text(json.dumps(metadata))
    with h5py.File(path / "main_data.hdf5", "w") as file:
        for i in range(2):
            group = file.create_group(f"episode_{i}")
            group["observations"] = np.zeros((21, 4), np.float32)
            group["actions"] = np.arange(20) % 2
            group["rewards"] = np.ones(20)
            group["terminations"] = np.arange(20) == 19
            group["truncations"] = np.zeros(20, bool)
    return path


def spoil(data: Path, array: str, values: np.ndarray) -> None:
    with h5py.File(data / "main_data.hdf5", "r+") as file:
        del file["episode_1"][array]
        file["episode_1"][array] = values


SPOILT = {
    "nan": ("observations", np.full((21, 4), np.nan), "observations is nan at step 0"),
    "inf": ("rewards", np.full(20, np.inf), "rewards is inf at step 0"),
    "short": ("actions", np.zeros(7, np.int64), "actions has 7 rows, not 20"),
    "empty": ("rewards", np.zeros(0), "it has no steps"),
    "range": ("actions", np.full(20, 2), "actions is 2 at step 0, outside Discrete(2)"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_arrays(case, data, refusal):
    array, values, words = SPOILT[case]
    spoil(data, array, values)
    error = refusal("--dataset poles --run-dir run")
    assert "dataset 'poles'" in error
    assert words in error


def test_returns_beyond_all_measure(data, refusal):
    spoil(data, "rewards", np.full(20, 1e30))
    error = refusal("--dataset poles --run-dir run")
    assert "returns reach 2e+31, which is 2e+28 in units of --return-scale 1000; mend the" in error


VALUE_LEARNERS = {
    "td3-bc": [],
    "iql": ["--no-scale-rewards"],
    "bc": ["--value-weight", "1"],
}


@pytest.mark.parametrize("algo", VALUE_LEARNERS)
def test_rewards_too_large_for_values(algo, data, capsys):
    spoil(data, "rewards", np.full(20, 1e30))
    flags = f"--algo {algo} --dataset poles --env none --run-dir run".split()
    assert train.main([*flags, *VALUE_LEARNERS[algo]]) == 2
    error = capsys.readouterr().err
    assert "rewards reach 1e+30, too large to learn values of; mend them, or divide all by" in error
    assert not Path("run").exists()


@pytest.mark.parametrize("size", [0, 3000])
def test_a_truncated_file(size, data, refusal):
    file = data / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:size])
    assert "cannot be read" in refusal("--dataset poles --run-dir run")


def change(data: Path, **changes) -> None:
    metadata = json.loads((data / "metadata.json").read_text())
    (data / "metadata.json").write_text(json.dumps(metadata | changes))


def test_no_episodes(data, refusal):
    change(data, total_episodes=0)
    assert "dataset 'poles' has no episodes" in refusal("--dataset poles --run-dir run")


@pytest.fixture
def planted(folder, monkeypatch):
    """A module that the dataset's metadata names; importing it fails the test."""
    place = folder / "code"
    place.mkdir()
    (place / "named_by_data.py").write_text("raise SystemExit('code of a data file ran')")
    monkeypatch.syspath_prepend(str(place))
    yield
    assert "named_by_data" not in sys.modules


def test_a_datasets_entry_point_is_never_run(data, planted):
    assert train.main([*TINY.split(), "--dataset", "poles", "--run-dir", "run"]) == 0


def test_an_unregistered_environment_is_not_imported(data, planted, refusal):
    change(data, env_spec=json.dumps({"id": "Pole-v0", "entry_point": "named_by_data:Env"}))
    error = refusal("--dataset poles --run-dir run")
    assert "environment 'Pole-v0' is not registered" in error
    assert "--env none trains without evaluation" in error


def test_an_id_that_names_a_module_is_no_environment(data, planted):
    change(
        data,
        env_spec=json.dumps({"id": "named_by_data:Pole-v0", "entry_point": "named_by_data:Env"}),
    )
    assert train.main([*TINY.split(), "--dataset", "poles", "--run-dir", "run"]) == 0


@pytest.fixture
def run(folder) -> Path:
    assert train.main([*TINY.split(), "--env", "none", "--run-dir", "run"]) == 0
    return folder / "run"


def rewrite(run: Path, weights=None, trainer=None) -> None:
    """Replace parts of the last checkpoint, its hashes included."""
    found = checkpoint.load(run)
    shutil.rmtree(run / "checkpoints")
    checkpoint.save(
        run,
        found.step,
        found.weights if weights is None else weights,
        found.trainer if trainer is None else trainer,
        found.metadata,
        best=True,
    )


FOREIGN = {
    "missing": lambda learner: learner | {"policy": dict(list(learner["policy"].items())[1:])},
    "shape": lambda learner: (
        learner | {"policy": {k: torch.zeros(2, 3) for k in learner["policy"]}}
    ),
    "empty": lambda learner: {},
    "list": lambda learner: [1, 2],
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_checkpoint(case, run, refusal):
    trainer = checkpoint.load(run).trainer
    rewrite(run, trainer=trainer | {"learner": FOREIGN[case](trainer["learner"])})
    error = refusal("--resume run --env none --steps 8")
    assert "is not a checkpoint of this policy and optimiser" in error
    assert error.endswith("resume with the settings and the data that it was trained with\n")


def test_a_checkpoint_with_flipped_bits(run, refusal):
    path = run / "checkpoints/last/trainer.safetensors"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    assert "no complete checkpoint (damaged: trainer" in refusal("--resume run --steps 8")


FOREIGN_WEIGHTS = {
    "missing": (lambda w: dict(list(w.items())[1:]), "1 missing (first: "),
    "unknown": (lambda w: w | {"soul": torch.zeros(1)}, "1 unknown (first: soul)"),
    "shape": (lambda w: {k: torch.zeros(2, 3) for k in w}, "of another shape (first: "),
    "dtype": (lambda w: {k: v.double() for k, v in w.items()}, "of another dtype (first: "),
}


@pytest.mark.parametrize("case", FOREIGN_WEIGHTS)
def test_foreign_weights(case, run, evaluation_refusal):
    change_weights, words = FOREIGN_WEIGHTS[case]
    rewrite(run, weights=change_weights(checkpoint.load(run).weights))
    error = evaluation_refusal("run --env Hopper-v5")
    assert "weights of another model: " in error
    assert words in error


def test_links_that_lead_to_each_other(run, refusal, evaluation_refusal):
    for name in ("last", "best"):
        (run / "checkpoints" / name).unlink()
        (run / "checkpoints" / name).symlink_to(name)
    assert "no complete checkpoint (" in evaluation_refusal("run --env Hopper-v5")
    shutil.rmtree(run / "checkpoints/4")
    assert "no complete checkpoint (" in refusal("--resume run --steps 8")


def test_an_evaluations_file_that_is_no_text(run, refusal):
    (run / "eval.csv").write_bytes(b"\xff\x00 no table")
    assert "run/eval.csv: its columns are not step," in refusal("--resume run --steps 8")


@pytest.mark.parametrize("name", ["weights.safetensors", "trainer.safetensors", "state.json"])
@pytest.mark.parametrize("size", [None, 0, 100])
def test_a_checkpoint_that_is_not_whole(name, size, run, refusal, evaluation_refusal):
    path = run / "checkpoints" / "4" / name
    data = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(data[:size])
    if name != "trainer.safetensors":  # which a policy that plays does without
        assert "no complete checkpoint (" in evaluation_refusal("run --env Hopper-v5")
    assert "no complete checkpoint (" in refusal("--resume run --steps 8")


def test_a_device_is_not_replaced_by_a_table(run, folder, evaluation_refusal):
    os.mkfifo(folder / "pipe")
    fault = "--output pipe cannot be written; give a file in a writable folder"
    assert fault in evaluation_refusal("run --env Hopper-v5 --output pipe")
    assert (folder / "pipe").is_fifo()


def raises(error: Exception):
    def fail(*arguments, **options):
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
FAILURES = {
    "checkpoint": (step_folders, "_write_whole", FULL, "cannot write checkpoint 2: No space left"),
    "events": (Logger, "log", FULL, "no space is left on the disk ([Errno 28] No space left"),
    "memory": (Training, "update", MemoryError(), "memory does not suffice (); take smaller batch"),
    "torch": (
        Training,
        "update",
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        "memory does not suffice (DefaultCPUAllocator: can't allocate memory); take smaller",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_machine_that_has_not_enough(case, refusal, monkeypatch):
    owner, name, error, words = FAILURES[case]
    monkeypatch.setattr(owner, name, raises(error))
    assert words in refusal("--env none --run-dir run", before_all=False)


def test_no_renderer_no_video(folder, monkeypatch):
    monkeypatch.setattr(video, "choose_renderer", lambda: None)
    assert train.main([*TINY.split(), "--video", "--run-dir", "run"]) == 0
    assert not (folder / "run/videos").exists()


def test_an_unwritable_folder_no_video(run, folder, caplog):
    (folder / "run/videos").write_text("in the way")
    flags = "--env Hopper-v5 --episodes 1 --target-returns 9 --video"
    assert evaluate.main(["run", *flags.split()]) == 0
    assert "no video of 'Hopper-v5'" in caplog.text or "MuJoCo cannot render" in caplog.text


def test_a_renderer_that_keeps_mujoco_from_loading(folder):
    command = [sys.executable, train.__file__, *TINY.split(), "--run-dir", "run"]
    done = subprocess.run(
        command, env=os.environ | {"MUJOCO_GL": "bogus"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("train.py: MuJoCo cannot be loaded (invalid value for ")
    assert "MUJOCO_GL: bogus); unset MUJOCO_GL; --env none trains" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(folder.iterdir())


def test_a_home_that_is_no_folder_is_no_matter_for_matplotlib(folder):
    clean = {n: v for n, v in os.environ.items() if n not in ("MPLCONFIGDIR", "XDG_CONFIG_HOME")}
    flags = [*TINY.split(), "--env", "none", "--video", "--run-dir", "run"]
    command = [sys.executable, train.__file__, *flags]
    done = subprocess.run(
        command, env=clean | {"HOME": "/dev/null/home"}, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "atplotlib" not in done.stderr
