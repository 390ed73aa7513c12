"""Other readings of a policy than as it is: in chunks, with a shorter context, as a polynomial."""

from dataclasses import dataclass
from pathlib import Path

from decision_s4.agents import saved
from decision_s4.agents.flags import hyphened
from decision_s4.agents.long_context import long_context_agent
from decision_s4.envs import datasets
from decision_s4.envs.errors import UserError
from decision_s4.envs.timestep import Agent
from decision_s4.envs.trajectories import Trajectories


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How a policy is read to play."""

    chunk_steps: int = 0
    """Read episodes in chunks of so many steps, the surest chunk speaks; 0: as one (see docs)."""
    keep_steps: int = 0
    """Leave all but so many steps of a mamba or mamba2 policy's context out; 0: none."""
    polynomial: int = 0
    """Play as a polynomial: one of this degree for each activation, norm's root and quotient, on
    ranges of logged data; prints degree, depth, errors (also RUN/polynomial.csv). 0: as it is."""
    polynomial_data: str | None = None
    """The dataset for those ranges and errors; default: that of the training."""


def readings(options: ReadingOptions) -> dict[str, int]:
    """By their flags, what is asked for that reads the policy otherwise than it is."""
    names = ("chunk_steps", "keep_steps", "polynomial")
    given = {hyphened(name): getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value}


def agent_of_reading(
    policy: saved.Saved, options: ReadingOptions, dataset: str | None, run: Path
) -> Agent:
    """The policy as an agent, read as the options ask; for a polynomial, its report is printed.

    Args:
        policy: of a run.
        options: how to read it.
        dataset: what it learned from, on which the ranges of a polynomial are measured.
        run: the folder for a polynomial's table.

    Raises:
        UserError: for a policy or data that cannot be read so.
    """
    if options.polynomial_data and not options.polynomial:
        given = options.polynomial_data
        raise UserError(f"--polynomial-data {given} needs --polynomial and a degree, such as 7")
    if not options.polynomial:
        return long_context_agent(policy, options.chunk_steps, options.keep_steps)
    if options.chunk_steps or options.keep_steps:
        raise UserError("--polynomial excludes --chunk-steps and --keep-steps; leave them out")
    return _as_a_polynomial(policy, options, options.polynomial_data or dataset, run)


def data_for(policy: saved.Saved, name: str, flag: str) -> Trajectories:
    """The dataset that a flag names. Raises UserError where its spaces are not the policy's."""
    data = datasets.load(name)
    if (reason := saved.misfit(policy, data)) is not None:
        raise UserError(f"{flag} {name}: {reason}")
    return data


def _as_a_polynomial(
    policy: saved.Saved, options: ReadingOptions, dataset: str | None, run: Path
) -> Agent:
    from decision_s4.agents.polynomial import PolynomialAgent, check_polynomial
    from decision_s4.agents.polynomial_report import fit, report

    read = check_polynomial(policy, "--polynomial")  # before data are loaded, of any kind
    if dataset is None:
        raise UserError(f"{run} names no dataset; give one with --polynomial-data")
    data = data_for(read, dataset, "--polynomial-data")
    polynomials = fit(read, data, options.polynomial)
    print(*report(read, polynomials, data, run), sep="\n", flush=True)
    return PolynomialAgent(read, polynomials)
