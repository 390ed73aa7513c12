"""What a checkpoint's files hold: tensors in safetensors, all else in JSON, each with its hash."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from decision_s4.agents.tree_json import Tree, pack, unpack
from decision_s4.envs.errors import UserError

FORMAT = 1
WEIGHTS, TRAINER, STATE = "weights.safetensors", "trainer.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; its tensors are on the CPU."""

    step: int
    weights: dict[str, torch.Tensor]
    trainer: Tree
    metadata: dict[str, Any]
    path: Path


def encode(
    step: int, weights: Mapping[str, torch.Tensor], trainer: Tree, metadata: dict[str, Any]
) -> dict[str, bytes]:
    """The bytes of each file; state.json holds the hashes of the others and of itself."""
    tensors: dict[str, torch.Tensor] = {}
    packed = pack(trainer, tensors, "trainer")
    files = {WEIGHTS: _tensor_bytes(weights), TRAINER: _tensor_bytes(tensors)}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    body = {"format": FORMAT, "step": step, "metadata": pack(metadata, {}, "metadata")}
    body |= {"sha256_of": hashes, "trainer": packed}
    text = json.dumps(body | {"sha256": _hash_of(body)}, indent=1, allow_nan=False)
    return files | {STATE: text.encode()}


def _tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    # Clones, since safetensors refuses tensors that share memory, as tied weights do.
    contiguous = torch.contiguous_format
    copies = {n: t.detach().cpu().clone(memory_format=contiguous) for n, t in tensors.items()}
    return safetensors.torch.save(copies)


def _hash_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def read(path: Path, with_trainer: bool) -> Checkpoint:
    """Read and check one folder; UserError, whatever is wrong with it."""
    try:
        real = path.resolve()  # a link may move on while its files are read
        state = json.loads((real / STATE).read_bytes())
        if state.pop("sha256") != _hash_of(state) or state["format"] != FORMAT:
            raise ValueError(f"{STATE} is damaged or of another version")
        hashes = state["sha256_of"]
        weights = _read_tensors(real / WEIGHTS, hashes[WEIGHTS])
        trainer, metadata = None, unpack(state["metadata"], {})
        if with_trainer:
            tensors = _read_tensors(real / TRAINER, hashes[TRAINER])
            trainer = unpack(state["trainer"], tensors)
        return Checkpoint(state["step"], weights, trainer, metadata, real)
    except FileNotFoundError as error:
        reason = f"{Path(error.filename).name} is missing"
    except OSError as error:
        reason = str(error.strerror)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"damaged: {error}"
    raise UserError(f"{path}: no complete checkpoint ({reason}); choose last, best or a step")


def _read_tensors(path: Path, expected: str) -> dict[str, torch.Tensor]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{path.name} is not what was written")
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None
