"""train.py from the outside: what a run leaves and says, for every kind of dataset."""

import csv
import dataclasses
import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from decision_s4 import evaluate, train
from decision_s4.agents import checkpoint
from decision_s4.agents.algorithms import ALGORITHMS
from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS
from decision_s4.agents.config import CONFIGS
from decision_s4.agents.options import RANGES
from decision_s4.agents.training import Training

TINY = (
    "--steps 12 --eval-every 6 --eval-episodes 2 --log-every 3 --batch-steps 50 --no-video "
    "--d-model 8 --d-embed 8 --n-layers 1 --backbone-options d_state=4 --threads 1 --device cpu"
)


def run(flags: str, name: str = "run") -> int:
    """The exit code of a tiny run in the folder `name`."""
    return train.main([*TINY.split(), "--run-dir", name, *flags.split()])


@pytest.fixture(autouse=True)
def folders(tmp_path, tmp_path_factory, monkeypatch):
    """Work in an empty folder, with a data root of its own."""
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def rows_of(run: str) -> list[dict[str, str]]:
    with Path(run, "eval.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_and_says_what_it_promises(capsys):
    assert run("") == 0
    rows = [(row["step"], row["target_return"]) for row in rows_of("run")]
    assert rows == [("6", "3600.0"), ("6", "1800.0"), ("12", "3600.0"), ("12", "1800.0")]
    assert checkpoint.load(Path("run")).step == 12
    said = capsys.readouterr()
    assert said.err == ""
    starts = ["data ", "      ", "policy", "task  ", "score ", "run   ", "watch ", "step 3/12"]
    for line, start in zip(said.out.splitlines(), starts, strict=False):
        assert line.startswith(start)
        assert len(line) <= 80
    assert "100 = 3234.30 (expert)" in said.out
    assert "timesteps/s" in said.out
    weights, command = said.out.splitlines()[-2:]
    assert weights == "weights run/checkpoints/best"
    assert command == "next    python evaluate.py run --report run/report.html"


def test_the_curves_have_their_usual_names():
    run("")
    events = EventAccumulator("run").Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/learning_rate", "time/timesteps_per_s"} <= tags
    assert {"eval/3600/return_mean", "eval/1800/normalized_score"} <= tags
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6, 9, 12]


def test_a_run_finds_a_folder_of_its_own():
    assert train.main([*TINY.split(), "--env", "none", "--seed", "7"]) == 0
    (folder,) = Path("runs/decision-s4/hopper-mixed").iterdir()
    assert folder.name.startswith("7-")


def test_the_seed_decides_the_weights():
    def weights(name: str, seed: int) -> bytes:
        assert run(f"--env none --seed {seed}", name) == 0
        return Path(name, "checkpoints/last/weights.safetensors").read_bytes()

    assert weights("a", 0) == weights("b", 0) != weights("c", 1)


def test_without_environment_and_with_other_targets(capsys):
    assert run("--env none", "none") == 0
    assert rows_of("none") == []
    said = capsys.readouterr().out
    assert "no evaluation here; later: evaluate.py with --env" in said
    assert "score" not in said
    assert said.splitlines()[-1] == "weights none/checkpoints/best"
    assert run("--target-returns -5,7.5,-5") == 0
    assert [row["target_return"] for row in rows_of("run")] == ["-5.0", "7.5"] * 2


@pytest.fixture
def pendulum(tmp_path) -> Path:
    """A D4RL file of Pendulum-v1, which tells neither environment nor scale."""
    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "swing.hdf5", "w") as file:
        file["observations"] = random.normal(size=(60, 3)).astype(np.float32)
        file["actions"] = random.uniform(-1, 1, (60, 1)).astype(np.float32)
        file["rewards"] = np.full(60, -1.0)
        file["terminals"] = np.arange(60) % 20 == 19
    return tmp_path / "swing.hdf5"


def test_a_dataset_without_environment_or_scale_prints_no_score(pendulum, capsys):
    flags = f"--dataset {pendulum} --steps 4"
    assert run(flags, "blind") == 0
    assert "no evaluation here" in capsys.readouterr().out
    assert run(f"{flags} --env Pendulum-v1") == 0
    said = capsys.readouterr().out
    assert "score   none: no reference returns known" in said
    assert "target returns -20\n" in said
    assert [row["normalized_score"] for row in rows_of("run")] == [""]
    assert "  return -" in said.partition("step 4/4")[2].splitlines()[0]


def record(env: gym.Env, name: str, /, **about) -> None:
    """A Minari dataset of five random episodes."""
    env.action_space.seed(0)
    episodes = [random_episode(env, seed) for seed in range(5)]
    minari.create_dataset_from_buffers(name, episodes, **about)


def random_episode(env: gym.Env, seed: int) -> EpisodeBuffer:
    observations, steps, ended = [env.reset(seed=seed)[0]], [], False
    while not ended:
        action = env.action_space.sample()
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        steps.append((action, reward, terminated, truncated))
        ended = terminated or truncated
    actions, rewards, terminations, truncations = map(list, zip(*steps, strict=True))
    return EpisodeBuffer(
        id=seed,
        observations=stacked(observations),
        actions=np.array(actions),
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
    )


def stacked(values: list) -> Any:
    """A list of trees as a tree of arrays."""
    if isinstance(values[0], dict):
        return {key: stacked([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stacked(list(parts)) for parts in zip(*values, strict=True))
    return np.stack(values)


@pytest.mark.parametrize("name", [*BACKBONES, *MEMORYLESS])
def test_help_lists_the_options_of_a_backbone(name, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--backbone", name, "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").replace("|", " ").split())
    options = [field.name for field in dataclasses.fields((BACKBONES | MEMORYLESS)[name].Options)]
    assert stop.value.code == 0
    assert all(f"{option}=" in said.replace("- ", "-") for option in options)
    assert (f"{name} takes" in said) is bool(options)


def test_discrete_actions():
    record(gym.make("CartPole-v1"), "pole/random-v0", env="CartPole-v1")
    assert run("--dataset pole/random-v0 --steps 20 --eval-every 20") == 0
    assert len(rows_of("run")) == 2
    assert evaluate.main(["run", "--episodes", "3"]) == 0


class Corridor(gym.Env):
    """Walk right for five steps: a Dict of an image, a Tuple of a number and a position."""

    observation_space = spaces.Dict(
        image=spaces.Box(0, 255, (8, 8, 3), np.uint8),
        place=spaces.Tuple([spaces.Discrete(6), spaces.Box(-1, 1, (1,))]),
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return self._look(), {}

    def step(self, action):
        self.place = max(0, self.place + (1 if action else -1))
        return self._look(), float(action), self.place == 5, False, {}

    def _look(self):
        image = np.full((8, 8, 3), 20 * self.place, np.uint8)
        return {"image": image, "place": (self.place, np.full(1, self.place / 5, np.float32))}


def test_a_dict_with_an_image():
    env = Corridor()
    about = {"observation_space": env.observation_space, "action_space": env.action_space}
    gym.register("Corridor-v0", Corridor, max_episode_steps=9)
    try:
        record(gym.make("Corridor-v0"), "corridor/random-v0", **about)
        assert run("--dataset corridor/random-v0 --env Corridor-v0 --steps 4") == 0
        assert len(rows_of("run")) == 2
        assert evaluate.main(["run", "--episodes", "2"]) == 0
    finally:
        gym.registry.pop("Corridor-v0")


def test_a_missing_package_names_both_ways_out(datasets_root, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(datasets_root))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run("--dataset D4RL/door/human-v2") == 2
    error = capsys.readouterr().err
    assert "environment 'AdroitHandDoor-v1' needs gymnasium_robotics" in error
    assert error.endswith("pip install -e '.[robotics]'; --env none trains without evaluation\n")
    assert not Path("run").exists()


def test_demonstrations_train_without_their_environment(datasets_root, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(datasets_root))
    assert run("--dataset D4RL/door/human-v2 --env none") == 0


def test_a_run_that_diverges_before_a_checkpoint_leaves_no_folder(capsys):
    wild = "--learning-rate 1e20 --recurrence-learning-rate 1e20 --gradient-clip 1e20"
    assert run(f"{wild} --warmup-steps 0 --env none") == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: training diverged: ")
    assert error.endswith("lower --learning-rate 1e+20; no checkpoint had been written\n")
    assert not Path("run").exists()


def test_a_crash_before_a_checkpoint_leaves_no_folder(monkeypatch):
    def crash(training: Training):
        raise RuntimeError("simulator")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "evaluate", crash)
        with pytest.raises(RuntimeError, match="simulator"):
            run("")
    assert run("") == 0


def test_help_is_complete(capsys):
    for program, words in [(train, "--learning-rate"), (evaluate, "--episodes")]:
        with pytest.raises(SystemExit) as stop:
            program.main(["--help"])
        assert stop.value.code == 0
        assert words in capsys.readouterr().out


def test_help_names_every_choice(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    words = set(re.findall(r"[\w%-]+", capsys.readouterr().out))
    algorithms = {path.stem for path in CONFIGS.glob("*.yaml")}
    known = BACKBONES | MEMORYLESS  # without those that tests add
    ours = {name for name, kind in known.items() if kind.__module__.startswith("decision_s4.")}
    assert algorithms | ours <= words


@pytest.mark.parametrize("program", [train, evaluate])
def test_a_reader_that_has_seen_enough_is_no_mistake(program):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, program.__file__, "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("algo", ["td3-bc", "iql"])
def test_an_algorithm_of_values_runs_resumes_and_is_evaluated(algo, capsys):
    flags = f"--algo {algo} --eval-every 2 --eval-episodes 1 --d-model 8 --batch-steps 9 --no-video"
    assert train.main([*flags.split(), "--steps", "4", "--run-dir", "whole"]) == 0
    assert train.main([*flags.split(), "--steps", "2", "--run-dir", "cut"]) == 0
    assert train.main(["--resume", "cut", "--steps", "4"]) == 0
    whole, resumed = checkpoint.load(Path("whole")).weights, checkpoint.load(Path("cut")).weights
    if algo == "td3-bc":  # the other's rate falls along another schedule
        assert all((resumed[name] == value).all() for name, value in whole.items())
    assert evaluate.main(["whole", "--episodes", "1"]) == 0
    said = capsys.readouterr().out
    assert f"{algo} on a perceptron" in said
    assert "next    python evaluate.py cut" in said
    assert "asking for that" not in said  # it aims at no return, so none is held


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_number_among_the_settings_has_a_range(algo):
    config = ALGORITHMS[algo]().config
    kinds = get_type_hints(config)
    numbers = {f.name for f in dataclasses.fields(config) if kinds[f.name] in (int, float)}
    assert numbers <= RANGES.keys()


def test_every_algorithm_has_its_settings_file_and_the_other_way_round():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(ALGORITHMS)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--algo iql --backbone s4", "unknown flag --backbone"),
        ("--algo td3bc", "did you mean 'td3-bc'"),
        ("--resume nowhere --algo iql", "--resume nowhere: no config.yaml there"),
    ],
)
def test_each_algorithm_takes_its_own_flags_only(flags, words, capsys):
    assert train.main(flags.split()) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("algo", ["ppo", "ds4-online", "sb3-ppo"])
def test_a_run_leaves_no_simulators_behind(algo, tmp_path):
    """They live in processes of their own, and many runs may follow on one another in one."""
    flags = f"--algo {algo} --env Pendulum-v1 --steps 8 --eval-episodes 1 --no-video --workers 2"
    rows = "--rows 2 --rollout-steps 4" if algo == "ppo" else "--environments 2"
    more = {"sb3-ppo": "--agent-options n_steps=4,batch_size=4", "ds4-online": "--round-steps 4"}
    line = f"{flags} {rows} {more.get(algo, '')} --device cpu --run-dir {tmp_path / 'run'}"
    assert train.main(line.split()) == 0
    assert multiprocessing.active_children() == []


def test_an_algorithm_may_be_named_by_a_file():
    Path("mine.yaml").write_text("algo: iql\nexpectile: 0.9\nsteps: 2\neval_every: 2\n")
    flags = "--config mine.yaml --eval-episodes 1 --no-video --run-dir run --d-model 8"
    assert train.main(flags.split()) == 0
    assert "expectile: 0.9" in Path("run/config.yaml").read_text()
