"""What a layer is linear with, once it is held: gates, time steps, attention weights and so on."""

import torch
from torch import Tensor


class Coefficients:
    """What a layer held while it ran, in order; kept, it makes the layer the same linear map."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self._named: dict[str, list[Tensor]] = {}

    def add(self, name: str | None, value: Tensor) -> None:
        """The next one; a name may come once, or once a step."""
        self.values.append(value)
        if name is not None:
            self._named.setdefault(name, []).append(value)

    def get(self, name: str) -> Tensor | None:
        """(B, T, …) what was marked by that name; None if nothing was."""
        return self[name] if name in self._named else None

    def __getitem__(self, name: str) -> Tensor:
        """(B, T, …) what was marked by that name. Raises KeyError if nothing was."""
        found = self._named[name]
        return found[0] if len(found) == 1 else torch.stack(found, 1)

    def within(self, scope: str) -> "Coefficients":
        """Those marked within `scope`, by the names they have there."""
        inner = Coefficients()
        for name, values in self._named.items():
            if name.startswith(scope):
                inner._named[name.removeprefix(scope)] = values
        return inner

    def replaced(self, name: str, value: Tensor) -> "Coefficients":
        """As this, with `value` for what was marked by that name, once."""
        (old,), changed = self._named[name], Coefficients()
        changed.values = [value if x is old else x for x in self.values]
        return changed
