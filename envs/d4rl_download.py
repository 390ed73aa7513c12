"""D4RL's files by id: where they are published, and a download that leaves nothing half done."""

import hashlib
import http.client
import json
import os
import tempfile
import urllib.request
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.progress import wrap_file

from decision_s4.envs.errors import UserError

BASE = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
TIMEOUT_S = 30
BLOCK_BYTES = 1 << 20


def _addresses() -> dict[str, str]:
    urls = {}
    kinds = ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
    for robot, kind in product(("hopper", "halfcheetah", "walker2d", "ant"), kinds):
        file = f"{robot}_{kind.replace('-', '_')}-v2.hdf5"
        urls[f"{robot}-{kind}-v2"] = f"{BASE}/gym_mujoco_v2/{file}"
    for task, kind in product(("pen", "hammer", "door", "relocate"), ("human", "cloned", "expert")):
        urls[f"{task}-{kind}-v1"] = f"{BASE}/hand_dapg_v1/{task}-{kind}-v1.hdf5"
    mazes = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}
    for (maze, word), diverse in product(mazes.items(), (False, True)):
        start = maze != "umaze" or diverse
        file = f"Ant_maze_{word}_noisy_multistart_{start}_multigoal_{diverse}_sparse_fixed.hdf5"
        kind = "-diverse" if diverse else "" if maze == "umaze" else "-play"
        urls[f"antmaze-{maze}{kind}-v2"] = f"{BASE}/ant_maze_v2/{file}"
    for maze in ("umaze", "medium", "large"):
        urls[f"maze2d-{maze}-v1"] = f"{BASE}/maze2d/maze2d-{maze}-sparse-v1.hdf5"
    kitchen = {
        "complete": "mini_kitchen_microwave_kettle_light_slider",
        "partial": "kitchen_microwave_kettle_light_slider",
        "mixed": "kitchen_microwave_kettle_bottomburner_light",
    }
    for kind, file in kitchen.items():
        urls[f"kitchen-{kind}-v0"] = f"{BASE}/kitchen/{file}-v0.hdf5"
    return urls


D4RL_URLS = _addresses()


def fetch_d4rl(name: str, folder: Path) -> Path:
    """The file of a D4RL id in `folder`, downloaded if it is not there. Raises UserError."""
    path = folder / f"{name}.hdf5"
    if not path.exists():
        try:
            download(D4RL_URLS[name], path)
        except OSError as error:
            raise UserError(
                f"dataset '{name}' is not at {path} and {D4RL_URLS[name]} cannot be had ({error}); "
                "connect to the network, or put the file there"
            ) from error
    return path


def download(url: str, path: Path) -> None:
    """Fetch `url` to `path` whole or not at all, with its sha256 in `path`.json. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        digest = _fetch(url, partial, path.name)
        record = {"url": url, "sha256": digest, "bytes": partial.stat().st_size}
        _record_of(path).write_text(json.dumps(record, indent=1))
        partial.replace(path)
    except http.client.HTTPException as error:
        raise OSError(f"the server's answer broke off: {error!r}") from error
    finally:
        partial.unlink(missing_ok=True)


def verify(path: Path, name: str) -> None:
    """Raise UserError if `path` is not what was downloaded; a file without a record passes."""
    record = _record_of(path)
    if not record.exists():
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != json.loads(record.read_text())["sha256"]:
        raise UserError(
            f"dataset '{name}': {path} has sha256 {digest[:12]}…, not that of the download; "
            "delete it to download again"
        )


def _record_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _fetch(url: str, partial: Path, title: str) -> str:
    """Write what `url` holds to `partial`, showing progress; its sha256."""
    digest, console = hashlib.sha256(), Console(stderr=True)
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, partial.open("wb") as file:
        expected = int(response.headers.get("Content-Length") or 0)
        with wrap_file(response, expected, description=title, console=console) as source:
            while block := source.read(BLOCK_BYTES):
                digest.update(block)
                file.write(block)
        if expected and file.tell() != expected:
            raise OSError(f"{file.tell()} of {expected} bytes came")
    return digest.hexdigest()
