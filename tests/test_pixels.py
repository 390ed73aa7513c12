"""benchmarks/pixels.py: its dataset holds pictures of what a controller did well; its table."""

import argparse

import numpy as np
import pytest

from decision_s4.envs import datasets
from decision_s4.envs.frames import Frames


@pytest.fixture(scope="module")
def pixels(program_of):
    return program_of("benchmarks/pixels.py")


def test_the_dataset_holds_pictures(pixels, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path / "cache"))
    pixels.make_dataset(400)
    data = datasets.load(pixels.DATASET)
    assert data.env_id == "CartPolePixels-v1"
    assert data.observations.dtype == np.uint8
    assert data.observations.shape[1:] == (24, 24, 1)
    assert isinstance(data.observations, Frames)  # not held in memory
    raw = np.prod(data.observations.shape)
    assert len(data.observations.streams) < raw / 4
    assert (tmp_path / "data/cartpole/pixels-v0/data/main_data.hdf5").stat().st_size < raw / 2
    assert data.rewards.sum() / data.num_episodes > 100  # it balances


def test_the_table_has_the_last_evaluation_of_each_seed(pixels, tmp_path):
    for seed, mean in ((0, 100), (1, 300)):
        (tmp_path / f"vit-{seed}").mkdir()
        rows = f"step,return_mean\n200,7\n400,{mean}\n"
        (tmp_path / f"vit-{seed}/eval.csv").write_text(rows)
    (tmp_path / "vit-ssm-0").mkdir()  # another kind's, not finished
    given = argparse.Namespace(eyes=["vit", "vit-ssm"], backbone="lru", runs=tmp_path)
    *_, last = pixels.table(given)
    assert last == "| vit | **200** [100, 300] (100, 300) |"
