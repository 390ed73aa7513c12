"""D4RL HDF5 files as episodes: no gym, no mujoco-py.

A file holds flat arrays: observations, actions, rewards, terminals and, in most, timeouts and
next_observations. An episode ends at a terminal or a timeout. The steps after the last end are an
unfinished episode and dropped, as D4RL's `sequence_dataset` and Decision Transformer's do.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from decision_s4.envs.errors import UserError
from decision_s4.envs.infer_spaces import infer_action_space, infer_space
from decision_s4.envs.trajectories import DatasetInfo, Episode

# First word of a dataset's name -> today's environment and the time limit the data was logged with.
ENVIRONMENTS = {
    "hopper": ("Hopper-v5", 1000),
    "halfcheetah": ("HalfCheetah-v5", 1000),
    "walker2d": ("Walker2d-v5", 1000),
    "ant": ("Ant-v5", 1000),
    "pen": ("AdroitHandPen-v1", 100),
    "door": ("AdroitHandDoor-v1", 200),
    "hammer": ("AdroitHandHammer-v1", 200),
    "relocate": ("AdroitHandRelocate-v1", 200),
}
REQUIRED = ("observations", "actions", "rewards", "terminals")
CACHE_BYTES = 64 << 20  # HDF5 decompresses a chunk once, not once an episode
REPAIR = "download it again"

log = logging.getLogger(__name__)


def environment_of(name: str) -> tuple[str | None, int | None]:
    """Environment id and time limit that a D4RL id or file name tells, else (None, None)."""
    stem = Path(name).stem.lower().replace("ant_maze", "antmaze").replace("_", "-")
    return ENVIRONMENTS.get(stem.split("-")[0], (None, None))


def read_d4rl(path: Path, name: str) -> tuple[DatasetInfo, Iterator[Episode]]:
    """Description and episodes of a D4RL file; its spaces are inferred from the arrays.

    Raises UserError, also while the episodes are read.
    """
    env_id, limit = environment_of(name)
    try:
        with h5py.File(path) as file:
            _check_arrays(file, name)
            info = DatasetInfo(
                name=name,
                observation_space=infer_space([file["observations"]]),
                action_space=infer_action_space([file["actions"]]),
                env_id=env_id,
                max_episode_steps=limit,
                final_observation_known="next_observations" in file,
            )
    except OSError as error:
        raise _damaged(name, error) from error
    return info, _episodes(path, info)


def _check_arrays(file: h5py.File, name: str) -> None:
    if missing := [key for key in REQUIRED if not getattr(file.get(key), "shape", None)]:
        needed = ", ".join(REQUIRED)
        raise UserError(f"dataset '{name}': no array '{missing[0]}' in the file; give it {needed}")
    steps = len(file["rewards"])
    for key in ("observations", "actions", "terminals", "timeouts"):
        if key in file and len(file[key]) != steps:
            found = f"{key} has {len(file[key])} rows, rewards {steps}"
            raise UserError(f"dataset '{name}': {found}; {REPAIR}")
    if (
        "next_observations" in file
        and file["next_observations"].shape != file["observations"].shape
    ):
        raise UserError(f"dataset '{name}': next_observations differ in shape; {REPAIR}")
    if steps == 0:
        raise UserError(f"dataset '{name}' has no steps; {REPAIR}")


def _episodes(path: Path, info: DatasetInfo) -> Iterator[Episode]:
    try:
        with h5py.File(path, rdcc_nbytes=CACHE_BYTES) as file:
            terminations, truncations = _ends(file, info)
            lasts = np.flatnonzero(terminations | truncations)
            _report_unfinished(len(terminations), lasts, info.name)
            first = 0
            for last in lasts.tolist():
                steps = slice(first, last + 1)
                yield _episode(file, steps, terminations[steps], truncations[steps])
                first = last + 1
    except OSError as error:
        raise _damaged(info.name, error) from error


def _ends(file: h5py.File, info: DatasetInfo) -> tuple[np.ndarray, np.ndarray]:
    """Terminations and truncations of every step, (N,) bool each."""
    terminations = file["terminals"][:].reshape(-1).astype(bool)
    if "timeouts" in file:
        return terminations, file["timeouts"][:].reshape(-1).astype(bool)
    if info.max_episode_steps is None:
        log.warning("dataset '%s' has no 'timeouts': episodes end at terminals only", info.name)
        return terminations, np.zeros_like(terminations)
    return terminations, time_limits(terminations, info.max_episode_steps) & ~terminations


def time_limits(terminations: np.ndarray, limit: int) -> np.ndarray:
    """(N,) bool: True at every `limit`-th step since the last termination."""
    step = np.arange(len(terminations))
    starts = np.where(np.concatenate([[True], terminations[:-1]]), step, 0)
    return (step - np.maximum.accumulate(starts)) % limit == limit - 1


def _report_unfinished(steps: int, lasts: np.ndarray, name: str) -> None:
    if not len(lasts):
        raise UserError(
            f"dataset '{name}': none of its {steps} steps ends an episode; "
            "mark the ends in 'terminals' or 'timeouts'"
        )
    if unfinished := steps - 1 - int(lasts[-1]):
        log.info("dataset '%s': dropped %d steps of an unfinished last episode", name, unfinished)


def _episode(
    file: h5py.File, steps: slice, terminations: np.ndarray, truncations: np.ndarray
) -> Episode:
    observations = file["observations"][steps]
    last = steps.stop - 1
    final = file["next_observations"][last] if "next_observations" in file else observations[-1]
    return Episode(
        np.concatenate([observations, final[None]]),
        file["actions"][steps],
        file["rewards"][steps].reshape(-1),
        terminations,
        truncations,
    )


def _damaged(name: str, error: OSError) -> UserError:
    reason = " ".join(str(error).split())
    if Path(name).suffix not in (".hdf5", ".h5", ""):
        return UserError(
            f"dataset '{name}' is no HDF5 file ({reason}); convert it, docs/data.md shows how"
        )
    return UserError(f"dataset '{name}' is damaged or no HDF5 file ({reason}); {REPAIR}")
