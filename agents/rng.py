"""The random generators a run draws from, as plain values and tensors that a checkpoint holds."""

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's global and torch's generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """States of Python's, numpy's global, torch's CPU and torch's CUDA generators."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002 (others draw from it)
    assert isinstance(numpy_state, tuple), "a dict only of other generators"
    numpy_name, numpy_words, *numpy_rest = numpy_state
    return {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "name": numpy_name,
            "words": torch.from_numpy(numpy_words.astype(np.int64)),
            "rest": numpy_rest,
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` took; CUDA devices that this machine lacks are left out."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    words = numpy["words"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], words, *numpy["rest"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for device, generator in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(generator, device)
