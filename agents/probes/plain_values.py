"""Tables, curves and measures as plain values, for a page to show."""

from typing import Any

import numpy as np

from decision_s4.agents.probes.base import Findings, Table
from decision_s4.agents.probes.faithfulness import GRADIENT, RANDOM, Faithfulness


def evidence_values(evidence: Faithfulness | None) -> dict[str, Any] | None:
    """Gains, tables and a note; None where faithfulness was not measured."""
    if evidence is None:
        return None
    gains: list[dict[str, Any]] = [
        {"name": n, "random": evidence.beats(n, RANDOM), "gradient": evidence.beats(n, GRADIENT)}
        for n in evidence.methods
    ]
    gains.append({"name": GRADIENT, "random": evidence.beats(GRADIENT, RANDOM), "gradient": None})
    note = (
        "Taken away means: holds what other episodes held at the same time step. ↑ larger is "
        "better, ↓ smaller. A map is the policy's own where it beats the same method's map of the "
        "same network with shuffled weights, and is no more like that one than two such maps are "
        "like each other: so much of any map is the layers' and the inputs'."
    )
    tables = [_table_values(evidence.table()), _table_values(evidence.weights_table())]
    return {"gains": gains, "tables": tables, "note": note}


def finding_values(found: Findings) -> dict[str, Any]:
    """A probe's notes, tables and curves."""
    return {
        "method": found.method,
        "notes": list(found.notes),
        "tables": [_table_values(table) for table in found.tables],
        "curves": [
            {
                "title": c.title,
                "x_label": c.x_label,
                "x": [float(x) for x in c.x],
                "lines": {name: [float(y) for y in ys] for name, ys in c.lines.items()},
            }
            for c in found.curves
        ],
    }


def _table_values(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "columns": list(table.columns),
        "rows": [[_plain(cell) for cell in row] for row in table.rows],
    }


def _plain(cell: str | float) -> str | float:
    return cell if isinstance(cell, str) else float(cell) if np.isfinite(cell) else "–"
