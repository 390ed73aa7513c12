"""The exception for a person's mistake: train.py and evaluate.py print it, with exit code 2."""

import difflib
import errno
import traceback
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Bad input. Its message is one line that names the thing, the value and the fix."""


class DivergedError(UserError):
    """Training is past saving: its checkpoints are from before, and its settings must change."""


class SimulatorError(RuntimeError):
    """An environment raised an error, or the process that steps it died; one line says which."""


def told(error: BaseException) -> str:
    """An error in another's code in a line: its kind, its words, and where it was raised."""
    words = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {words}{place}"


def explanation(error: BaseException) -> str | None:
    """The line to print of an error that is no fault of the program; None of any other."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SimulatorError):
        return text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space is left on the disk ({text}); free some, or write elsewhere"
    lacks = ("out of memory", "can't allocate memory", "not enough memory")
    if isinstance(error, MemoryError) or any(words in text for words in lacks):
        return f"memory does not suffice ({text[:120]}); take smaller batches or a smaller policy"
    return None


def closest(name: str, choices: Iterable[str]) -> str | None:
    """The known name that an unknown `name` was most likely to be; None where none is close."""
    return next(iter(difflib.get_close_matches(name, sorted(choices), n=1)), None)


def nearest(name: str, choices: Iterable[str], most: int = 8) -> str:
    """Ending of a message about an unknown `name`: the closest known one, or a few known ones."""
    choices = sorted(choices)
    if (close := closest(name, choices)) is not None:
        return f"; did you mean '{close}'?"
    return f"; known: {', '.join(choices[:most])}{', …' if len(choices) > most else ''}"
