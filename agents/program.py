"""How a program ends: its exit code, and one line for a person where something is in the way."""

import logging
import os
import sys
from collections.abc import Callable

from decision_s4.agents.interrupt import interruptible
from decision_s4.envs.errors import explanation


def exit_code(program: str, work: Callable[[], object]) -> int:
    """Of `work`: 0 when done, 2 after bad input, 130 interrupted, 141 unread.

    What is a fault of the program is raised.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("decision_s4.kernels.extension").setLevel(logging.INFO)  # why it waits
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its cache, where HOME is no folder
    interruptible()
    try:
        work()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output, as `| head` does, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        line = explanation(error)
        if line is None:
            raise
        print(f"{program}: {line}", file=sys.stderr)
        return 2
    return 0
