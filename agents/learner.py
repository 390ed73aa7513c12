"""What a run from logged data is made of: something that learns, and an order of batches."""

from typing import Any, Protocol

from torch import Tensor

from decision_s4.agents.policy import Policy


class Learner(Protocol):
    """What takes gradient steps on batches."""

    @property
    def policy(self) -> Policy:
        """What it fits."""
        ...

    @property
    def averaged_policy(self) -> Policy:
        """What acts."""
        ...

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        ...

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One step; detached scalars."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


class Batches(Protocol):
    """An endless order of batches that can be gone on with."""

    def __next__(self) -> Any:
        """The next one: it has `valid`, and moves `to` a device."""
        ...

    def state_dict(self) -> dict[str, int]:
        """Where it stands."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        ...
