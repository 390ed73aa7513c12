"""Names of observations and actions, from Gymnasium's documentation of each environment.

https://gymnasium.farama.org/environments/mujoco/ and https://robotics.farama.org/envs/adroit_hand/
"""

from gymnasium import spaces

_LEG = ("thigh", "leg", "foot")
_TWO_LEGS = (*_LEG, *(f"left {joint}" for joint in _LEG))
_CHEETAH = ("back thigh", "back shin", "back foot", "front thigh", "front shin", "front foot")


def _planar(body: str, joints: tuple[str, ...]) -> tuple[str, ...]:
    """A planar walker without its x position: positions, then velocities."""
    return (
        f"{body} height",
        f"{body} angle",
        *(f"{joint} angle" for joint in joints),
        f"{body} x velocity",
        f"{body} z velocity",
        f"{body} angular velocity",
        *(f"{joint} angular velocity" for joint in joints),
    )


_FINGERS = ("forefinger", "middle finger", "ring finger")
_HAND = (
    "wrist horizontal angle",
    "wrist vertical angle",
    *(
        f"{finger} {joint} angle"
        for finger in _FINGERS
        for joint in ("MCP horizontal", "MCP vertical", "PIP", "DIP")
    ),
    *(
        f"little finger {joint} angle"
        for joint in ("CMC", "MCP horizontal", "MCP vertical", "PIP", "DIP")
    ),
    *(
        f"thumb {joint} angle"
        for joint in ("CMC horizontal", "CMC vertical", "MCP horizontal", "MCP vertical", "IP")
    ),
)
_ARM_AND_HAND = (
    *(f"arm {joint} angle" for joint in ("vertical", "horizontal", "roll")),
    *_HAND,
)
_DOOR = (
    *_ARM_AND_HAND,
    "door latch angle",
    "door hinge angle",
    *(f"palm {axis} position" for axis in "xyz"),
    *(f"handle {axis} position" for axis in "xyz"),
    *(f"palm to handle {axis}" for axis in "xyz"),
    "door is open",
)
_PLANAR = {
    "Hopper": ("torso", _LEG),
    "Walker2d": ("torso", _TWO_LEGS),
    "HalfCheetah": ("front tip", _CHEETAH),
}
OBSERVATIONS: dict[str, tuple[str, ...]] = {
    **{name: _planar(*parts) for name, parts in _PLANAR.items()},
    "AdroitHandDoor": _DOOR,
}
"""By the environment's name without its version."""
ACTIONS: dict[str, tuple[str, ...]] = {
    **{name: tuple(f"{joint} torque" for joint in joints) for name, (_, joints) in _PLANAR.items()},
    "AdroitHandDoor": (
        "arm forward target",
        *(name.replace(" angle", " target") for name in _ARM_AND_HAND),
    ),
}


def _names(known: tuple[str, ...], space: spaces.Space, width: int, otherwise: str) -> list[str]:
    fits = isinstance(space, spaces.Box) and len(known) == width
    return list(known) if fits else [f"{otherwise}[{i}]" for i in range(width)]


def observation_names(env_id: str | None, space: spaces.Space, width: int) -> list[str]:
    """`width` names; obs[i] where the environment, or this form of its observation, is unknown."""
    return _names(OBSERVATIONS.get(_stem(env_id), ()), space, width, "obs")


def action_names(env_id: str | None, space: spaces.Space, width: int) -> list[str]:
    """`width` names; action[i] where unknown."""
    return _names(ACTIONS.get(_stem(env_id), ()), space, width, "action")


def _stem(env_id: str | None) -> str:
    return (env_id or "").rpartition("/")[2].rpartition("-v")[0]
