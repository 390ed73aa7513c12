"""Every backbone: returns, memory, size and speed as one Markdown table, from files of those runs.

    python benchmarks/backbone_returns.py
    python benchmarks/memory_tasks.py --tasks RepeatPrevious-v0 --learners every --seeds 0 1 2 \
        --flags "--steps 75000" --rows benchmarks/results/backbone_memory.csv
    python benchmarks/micro_tasks.py --device cuda --results benchmarks/results/micro_tasks.csv
    python benchmarks/backbones.py --results benchmarks/results/backbones_cpu.csv
    python benchmarks/backbones.py --results benchmarks/results/backbones_gpu.csv --device cuda
    python benchmarks/backbone_table.py

Returns: the mean over seeds, the 95% bootstrap interval of that mean, and each seed's own. What the
other columns are say the programs that made them. Best first; what was not measured is left empty.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import csv_rows
import micro_tasks
import numpy as np
from symbols import TASKS

from decision_s4.envs.statistics import bootstrap_interval

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "parameters",
    "training, steps/s: CPU",
    "GPU",
    "resets: CPU",
    "GPU",
    "step p50 / p99, µs: CPU",
    "compiled: CPU",
    "GPU",
    "a block beside GRUCell: CPU",
    "GPU",
    "state, bytes",
)
Returns = dict[str, dict[float, list[float]]]


def returns(path: Path) -> Returns:
    """By backbone and return asked for, each seed's."""
    found: Returns = {}
    for row in sorted(csv_rows.read(path), key=lambda row: int(row["seed"])):
        target = float(row["target_return"])
        seeds = found.setdefault(row["backbone"], {}).setdefault(target, [])
        seeds.append(float(row["return_mean"]))
    return found


def speeds(path: Path) -> dict[str, csv_rows.Row]:
    return {row["backbone"]: row for row in csv_rows.read(path)}


def return_cell(means: list[float]) -> str:
    if not means:
        return ""
    low, high = bootstrap_interval(np.array(means))
    each = ", ".join(f"{mean:.0f}" for mean in means)
    return f"**{np.mean(means):.0f}** [{low:.0f}, {high:.0f}] ({each})"


def speed_cells(cpu: Mapping[str, str], gpu: Mapping[str, str]) -> list[str]:
    def each(show: str, *names: str) -> list[str]:
        """By device."""
        return [_cell(row, show, *names) for row in (cpu, gpu)]

    parameters, state = (
        each("{:,.0f}", name)[0 if cpu else 1] for name in ("parameters", "state_bytes")
    )
    ratios = (each("{:.1f} ×", f"{what}_over_gru_cell") for what in ("acting", "block"))
    step, replayed = each("{:.0f} / {:.0f}", "step_p50_us", "step_p99_us")
    return [
        parameters,
        *each("{:,.0f}", "steps_per_second"),
        *each("{:+.0f}%", "resets_percent"),
        step,
        _cell(cpu, "{:.0f} / {:.0f}", "compiled_p50_us", "compiled_p99_us"),
        replayed,
        *(acting or blocks for acting, blocks in zip(*ratios, strict=True)),
        state,
    ]


def _cell(row: Mapping[str, str], show: str, *names: str) -> str:
    """Empty where the row lacks one of them."""
    known = all(row.get(name) for name in names)
    return show.format(*(float(row[name]) for name in names)) if known else ""


def memory_cells(name: str, memory: list[csv_rows.Row], micro: list[csv_rows.Row]) -> list[str]:
    """The mean return of each memory task, and the shares of right answers of each micro-task."""
    cells = []
    for task in tasks_of(memory):
        own = [row for row in memory if (row["task"], row["learner"]) == (task, name)]
        cells.append(_memory_cell([float(row["return_mean"]) for row in own]))
    for task in TASKS:
        own = [row for row in micro if (row["task"], row["name"]) == (task, name)]
        cells.append(micro_tasks.cell(own))
    return cells


def _memory_cell(means: list[float]) -> str:
    """The mean over seeds; the lowest and the highest too, where they differ."""
    if not means:
        return ""
    mean, low, high = (f"{x:.2f}" for x in (np.mean(means), min(means), max(means)))
    return mean if low == high else f"{mean} ({low} … {high})"


def tasks_of(memory: list[csv_rows.Row]) -> list[str]:
    return sorted({row["task"] for row in memory})


def table(
    found: Returns,
    cpu: dict[str, csv_rows.Row],
    gpu: dict[str, csv_rows.Row],
    memory: list[csv_rows.Row],
    micro: list[csv_rows.Row],
) -> str:
    targets = sorted({target for each in found.values() for target in each}, reverse=True)
    names = sorted(set(found) | set(cpu) | set(gpu))
    best = {name: np.mean(found.get(name, {}).get(targets[0], [-np.inf])) for name in names}
    asked = [f"asked for {target:g}" for target in targets]
    head = ["backbone", *asked, *tasks_of(memory), *TASKS, *COLUMNS]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in sorted(names, key=lambda name: -best[name]):
        cells = [return_cell(found.get(name, {}).get(target, [])) for target in targets]
        cells += memory_cells(name, memory, micro)
        cells += speed_cells(cpu.get(name, {}), gpu.get(name, {}))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--returns", type=Path, default=RESULTS / "backbone_returns.csv")
    parser.add_argument("--cpu", type=Path, default=RESULTS / "backbones_cpu.csv")
    parser.add_argument("--gpu", type=Path, default=RESULTS / "backbones_gpu.csv")
    parser.add_argument("--memory", type=Path, default=RESULTS / "backbone_memory.csv")
    parser.add_argument("--micro", type=Path, default=RESULTS / "micro_tasks.csv")
    given = parser.parse_args()
    cpu, gpu = speeds(given.cpu), speeds(given.gpu)
    for device, rows in (("CPU", cpu), ("GPU", gpu)):
        for machine in sorted({row["machine"] for row in rows.values()}):
            given_loads = [row["load"] for row in rows.values() if row["machine"] == machine]
            loads = sorted(float(load) for load in given_loads if load) or [float("nan")]
            print(f"{device}: {machine}; load {loads[0]:.0f} to {loads[-1]:.0f}")
    print()
    memory, micro = csv_rows.read(given.memory), csv_rows.read(given.micro)
    print(table(returns(given.returns), cpu, gpu, memory, micro))


if __name__ == "__main__":
    main()
