"""The exception for a person's mistake: train.py and evaluate.py print it, with exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. Its message is one line that names the thing, the value and the fix."""


def nearest(name: str, choices: Iterable[str], most: int = 8) -> str:
    """Ending of a message about an unknown `name`: the closest known one, or a few known ones."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(choices[:most])}{', …' if len(choices) > most else ''}"
