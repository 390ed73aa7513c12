"""What a gradient does at what a layer marks: the rules of attention and relevance."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rules:
    """What gradients do at each kind of mark. The value of a layer never changes."""

    activation: Literal["gradient", "ratio"] = "gradient"
    """ratio: f(x) = x · (f(x) / x), the ratio held: the identity rule of relevance propagation."""
    norm: Literal["gradient", "scale"] = "gradient"
    """scale: the standard deviation is held (Ali et al., arXiv 2202.07304)."""
    product: Literal["gradient", "held", "half"] = "gradient"
    """Of signal and gate. held: all to the signal; half: half to each (arXiv 2406.07592)."""
    coefficient: Literal["gradient", "held", "shared"] = "gradient"
    """Of factors such as queries and keys. shared: a product of n gives each of them 1 / n."""
    rate: Literal["gradient", "held"] = "gradient"
    """Of what is no factor of a product: time steps, decays, sigmoid gates."""


RULES = {
    "off": Rules(),
    "frozen": Rules("ratio", "scale", "held", "held", "held"),
    "lrp": Rules("ratio", "scale", "half", "held", "held"),
    "attnlrp": Rules("ratio", "scale", "half", "shared", "held"),
    "selection": Rules("ratio", "scale", "half", "shared", "gradient"),
}
"""frozen: the layer as a linear operator. lrp: MambaLRP (arXiv 2406.07592). attnlrp: AttnLRP's
products (arXiv 2402.05602). selection: as attnlrp, time steps and decays by their gradients."""
