"""What every training run shares: how far it is, and checkpoints that it goes on from."""

import shlex
from pathlib import Path
from typing import Any

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.distributed import ALONE, World
from decision_s4.agents.options import RunOptions
from decision_s4.agents.policy import Policy
from decision_s4.agents.rng import rng_state, set_rng_state
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import Task


class Resumable:
    """Saves what a subclass's `state_dict` holds, its acting policy and the random generators."""

    config: RunOptions
    task: Task
    step: int
    world: World = ALONE
    best = float("-inf")
    """The highest score of a checkpoint so far."""

    @property
    def finished(self) -> bool:
        """Whether all of `config.steps` are done."""
        return self.step >= self.config.steps

    @property
    def update_steps(self) -> int:
        """Steps of one update: it is taken whole, and may lead beyond `config.steps`."""
        return 1

    @property
    def total_steps(self) -> int:
        """The step at which it is finished."""
        updates = -(-max(0, self.config.steps - self.step) // self.update_steps)
        return self.step + updates * self.update_steps

    @property
    def acting_policy(self) -> saved.Saved:
        """What is evaluated and saved."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the next update depends on, apart from random generators."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on exactly where `state_dict` was taken, at `step`."""
        raise NotImplementedError

    def metadata(self) -> dict[str, Any]:
        """Plain values that a checkpoint tells of the run."""
        return {"algo": self.config.algo, "task": self.task.describe()}

    def explain(self, logger: Any) -> None:
        """Nothing: probes look at logged data, which most runs have not."""

    def conclusion(self, run_dir: Path) -> list[str]:
        """Where the weights are, and the command that says most of them."""
        folder = shlex.quote(str(run_dir))
        weights = f"weights {run_dir / 'checkpoints' / 'best'}"
        if self.task.env_id is None:
            return [weights]
        explained = isinstance(self.acting_policy, Policy)
        report = f" --report {shlex.quote(str(run_dir / 'report.html'))}" if explained else ""
        return [weights, f"next    python evaluate.py {folder}{report}"]

    def close(self) -> None:
        """Nothing: most runs learn in no environment."""

    def save(self, run_dir: Path, score: float | None = None) -> None:
        """Write a checkpoint. `best` is that of the highest score, or the newest before any."""
        best = self.best == float("-inf") if score is None else score > self.best
        self.best = self.best if score is None else max(self.best, score)
        policy = self.acting_policy
        state = self.state_dict() | {"random": rng_state(), "best": self.best}
        metadata = saved.describe(policy) | self.metadata()
        checkpoint.save(run_dir, self.step, policy.state_dict(), state, metadata, best)

    def restore(self, run_dir: Path) -> None:
        """Go on where the run's last checkpoint stands; without one, at the beginning.

        Raises UserError for a checkpoint that is damaged or of another kind of run.
        """
        if not checkpoint.any_in(run_dir):
            return
        found = checkpoint.load(run_dir)
        try:
            self.load_state_dict(found.trainer, found.step)
            self.best = float(found.trainer["best"])
            set_rng_state(found.trainer["random"])
        except UserError:
            raise
        except Exception as error:  # torch's loaders raise whatever a foreign tree leads to
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{found.path}: is not a checkpoint of this policy and optimiser ({reason}); "
                "resume with the settings and the data that it was trained with"
            ) from error
