"""Environments by registered id only, and one-line messages that say what to do."""

import pytest
from gymnasium import spaces

from decision_s4.envs import make as make_module
from decision_s4.envs.errors import UserError
from decision_s4.envs.make import check_compatible, describe, make, step_seconds


def test_makes_a_registered_environment():
    assert make("CartPole-v1").spec.id == "CartPole-v1"
    assert make("Hopper-v5", reset_noise_scale=0.0).unwrapped._reset_noise_scale == 0


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Hoper-v5", "environment 'Hoper-v5' is not registered; did you mean 'Hopper-v5'"),
        ("Hopper-v9", "did you mean 'Hopper-v"),
        ("", "environment '' is not registered"),
        ("this:Hopper-v5", "'this:Hopper-v5' is no registered name"),
        (None, "None is no registered name"),
        ("Hopper-v2", "'Hopper-v2' lacks a package"),
    ],
)
def test_unknown_ids(env_id, message):
    with pytest.raises(UserError, match=message) as caught:
        make(env_id)
    assert "\n" not in str(caught.value)


def test_an_id_never_imports_the_module_it_names(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError):
        make("planted:Hopper-v5")


def test_a_missing_package_names_its_installation(monkeypatch):
    monkeypatch.setattr(make_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs gymnasium_robotics: pip install -e '.\[robotics\]'"
    ):
        make("AdroitHandDoor-v99")


def test_refused_arguments_are_named():
    with pytest.raises(UserError, match=r"'Hopper-v5' refuses \{'colour': 1\}") as caught:
        make("Hopper-v5", colour=1)
    assert "\n" not in str(caught.value)


def test_mujoco_says_nothing_of_its_deprecated_attributes(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("HalfCheetah-v5")
    assert "deprecated" not in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compatible_spaces_pass():
    env = make("Hopper-v5")
    logged = spaces.Box(-10, 10, (11,), "float32")  # bounds and precision may differ
    check_compatible(env, logged, env.action_space)


def test_incompatible_spaces_are_both_named():
    env = make("Hopper-v5")
    with pytest.raises(UserError, match=r"observations Box\(11,\), the dataset Box\(17,\)"):
        check_compatible(env, spaces.Box(-1, 1, (17,)), env.action_space)
    with pytest.raises(UserError, match=r"actions Box\(3,\), the run Discrete\(2\)"):
        check_compatible(env, env.observation_space, spaces.Discrete(2), "the run")


def test_description_of_nested_spaces():
    inner = spaces.Tuple((spaces.Discrete(3), spaces.Discrete(3, start=1)))
    space = spaces.Dict({"a": inner, "b": spaces.Box(0, 255, (4, 4, 3), "uint8")})
    expected = "Dict(a: Tuple(Discrete(3), Discrete(3, start=1)), b: Box(4, 4, 3))"
    assert describe(space) == expected


@pytest.mark.parametrize(
    ("env_id", "seconds"),
    [("Hopper-v5", 0.008), ("HalfCheetah-v5", 0.05), ("CartPole-v1", 0.02), ("Pendulum-v1", 0.05)],
)
def test_seconds_of_a_step(env_id, seconds):
    assert step_seconds(env_id) == pytest.approx(seconds)


def test_steps_without_seconds():
    assert step_seconds("MountainCar-v0") is None
    assert step_seconds(None) is None


def test_what_an_environment_fails_by_is_one_line():
    with pytest.raises(UserError, match=r"'Hopper-v5' refuses \{'frame_skip': 0\}: float division"):
        make("Hopper-v5", frame_skip=0)
