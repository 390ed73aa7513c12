"""What of the report stands without a script: tables, curves and evidence, as HTML and SVG.

Colours and sizes are those of report.html, by class and CSS variable.
"""

from collections.abc import Callable, Sequence
from html import escape
from math import isfinite

from decision_s4.agents.probes.base import PROBES, Curves, Findings, Table, make_probe
from decision_s4.agents.probes.faithfulness import GRADIENT, RANDOM, Faithfulness

Interval = tuple[float, float, float]
Place = Callable[[float], float]

MEASURES = {
    "deletion": "how far the answer moves when the first cells in the map's order are taken away",
    "insertion": "how far it stays off when only the first cells are left",
    "positive − negative": "how much more it falls without the cells said to push it up than "
    "without those said to push it down",
    "comprehensiveness, sufficiency": "deletion and insertion at 1, 5, 10, 20 and 50% of the cells",
}
TAKEN_AWAY = (
    "Cells of a map are taken away in its order, the largest first, and the action is watched: a "
    "true map moves it early. Taken away, a cell holds what other episodes held at the same step. "
    "Gains are mean deletion (area under the curve) less that of a control on the same queries, in "
    "units of the action, with 95% intervals over queries."
)
POLICY_S_OWN = (
    "The same method also explains two networks of shuffled weights. A map is the policy's own "
    "where it deletes more than such a map and is no more like it than two such maps are like each "
    "other: that much of any map is the layers' and the inputs'."
)
DASHES = ("", "6 3", "2 3", "8 3 2 3")


def evidence_section(evidence: Faithfulness) -> str:
    """Whether maps are true: gains over controls as a picture, all measures folded away."""
    terms = "".join(f"<dt>{name}</dt><dd>{said}</dd>" for name, said in MEASURES.items())
    return (
        '<section class="card" id="faithfulness"><h2>Can the maps be believed?</h2>'
        f'<p class="soft">{TAKEN_AWAY}</p>{forest(evidence)}'
        f"<details><summary>All measures</summary>{table(evidence.table())}"
        f'<dl class="soft">{terms}</dl><p class="soft">All in units of the action; ↑ larger is '
        "better, ↓ smaller.</p></details>"
        f"<details><summary>Are the maps the policy's own?</summary>"
        f'<p class="soft">{POLICY_S_OWN}</p>{table(evidence.weights_table())}</details></section>'
    )


def forest(evidence: Faithfulness) -> str:
    """A row a method: its gain in deletion over a random order and over the plain gradient."""
    gains = {
        name: [(kind, evidence.beats(name, kind)) for kind in (RANDOM, GRADIENT) if kind != name]
        for name in (*evidence.methods, GRADIENT)
    }
    ends = [end for row in gains.values() for _, gain in row for end in gain if isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    place = lambda value: 100 * (value - low) / ((high - low) or 1)  # noqa: E731
    rows = "".join(
        f'<b>{escape(name)}</b><div class="track"><i style="left:{place(0):.1f}%"></i>'
        + "".join(_mark(kind, gain, place) for kind, gain in row if isfinite(gain[0]))
        + "</div>"
        for name, row in gains.items()
    )
    legend = '<span class="random">● beats a random order by</span> '
    legend += '<span class="gradient">◆ beats the plain gradient by</span>'
    axis = f'<span style="left:{place(0):.1f}%">0</span>'
    axis += f'<span style="left:100%" class="end">{high:+.3f}</span>'
    axis += f'<span style="left:0" class="begin">{low:+.3f}</span>' if place(0) > 12 else ""
    return (
        f'<p class="key">{legend}</p><div class="forest">{rows}<b></b>'
        f'<div class="axis">{axis}</div></div>'
    )


def _mark(kind: str, gain: Interval, place: Place) -> str:
    mean, low, high = gain
    known = {RANDOM: "random", GRADIENT: "gradient"}[kind]
    said = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    return (
        f'<span class="{known}" title="{said}"><u style="left:{place(low):.1f}%;'
        f'width:{place(high) - place(low):.1f}%"></u><s style="left:{place(mean):.1f}%"></s></span>'
    )


def finding_section(found: Findings) -> str:
    """A probe's notes, tables and curves."""
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in found.notes)
    tables = "".join(f"<h3>{escape(t.title)}</h3>{table(t)}" for t in found.tables)
    lines = "".join(f"<div><h3>{escape(c.title)}</h3>{curves(c)}</div>" for c in found.curves)
    lines = f'<div class="pair">{lines}</div>' if lines else ""
    return (
        f'<section class="card"><h2>{escape(_heading(found))}</h2>{notes}{tables}{lines}</section>'
    )


def _heading(found: Findings) -> str:
    """A probe's name and what it answers."""
    known = found.method in PROBES
    return f"{found.method}: {make_probe(found.method).question}" if known else found.method


def table(shown: Table) -> str:
    """A number and its interval on two lines; a bar beside what was lost."""
    head = "".join(f"<th>{escape(column)}</th>" for column in shown.columns)
    most = {
        i: max((_leading(row[i]) for row in shown.rows), default=0.0)
        for i, column in enumerate(shown.columns)
        if column == "lost"
    }
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(v, most.get(i))}</td>" for i, v in enumerate(row)) + "</tr>"
        for row in shown.rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _leading(cell: str | float) -> float:
    """The mean of `120 [101, 140]`; 0 for none."""
    try:
        return float(str(cell).split(" ")[0])
    except ValueError:
        return 0.0


def _cell(value: str | float, most: float | None) -> str:
    if not isinstance(value, str):
        return short(value)
    mean, bracket, rest = value.partition(" [")
    shown = f"{escape(mean)}<small>[{escape(rest)}</small>" if bracket else escape(value)
    share = max(0.0, _leading(value)) / most if most else 0.0
    return (f'<span class="bar" style="width:{180 * share:.0f}px"></span>' if share else "") + shown


def short(value: float) -> str:
    """Four digits at most."""
    if not isfinite(value):
        return "–"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


def curves(shown: Curves, width: int = 540, height: int = 210) -> str:
    """Lines over one axis, told apart by dashes as well as by colour, and named."""
    values = [y for ys in shown.lines.values() for y in ys if isfinite(y)]
    low, high = min([0.0, *values]), max(values, default=0.0)
    first, last = min(shown.x), max(shown.x)
    place_x = lambda x: 52 + (width - 64) * (x - first) / ((last - first) or 1)  # noqa: E731
    place_y = lambda y: height - 34 - (height - 72) * (y - low) / ((high - low) or 1)  # noqa: E731
    parts = [f'<line class="rule" x1="52" x2="{width - 12}" y1="{place_y(0):.1f}" '
             f'y2="{place_y(0):.1f}"/>']  # fmt: skip
    for i, (name, ys) in enumerate(shown.lines.items()):
        parts.append(_curve(shown.x, ys, i, place_x, place_y))
        at = f'x="{60 + i % 3 * 160}" y="{12 + 13 * (i // 3)}"'
        mark = ("—", "– –", "···", "–·–")[i % len(DASHES)]
        parts.append(f'<text {at} style="fill:var(--line{i % 6})">{mark} {escape(name)}</text>')
    for y, text in ((place_y(high) + 4, short(high)), (place_y(low), short(low))):
        parts.append(f'<text class="dim" x="46" y="{y:.1f}" text-anchor="end">{text}</text>')
    for x in (first, (first + last) / 2, last):
        anchor = "end" if x == last else "middle"
        at = f'x="{place_x(x):.1f}" y="{height - 19}" text-anchor="{anchor}"'
        parts.append(f'<text class="dim" {at}>{short(round(x))}</text>')
    label = f'x="{width / 2 + 26}" y="{height - 4}" text-anchor="middle"'
    parts.append(f'<text class="dim" {label}>{escape(shown.x_label)}</text>')
    return f'<svg viewBox="0 0 {width} {height}" width="100%">{"".join(parts)}</svg>'


def _curve(xs: Sequence[float], ys: Sequence[float], i: int, place_x: Place, place_y: Place) -> str:
    points = " ".join(
        f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in zip(xs, ys, strict=True) if isfinite(y)
    )
    style = f"stroke:var(--line{i % 6});stroke-dasharray:{DASHES[i % len(DASHES)] or 'none'}"
    return f'<polyline points="{points}" fill="none" stroke-width="1.8" style="{style}"/>'


def pushes(title: str, method: str, names: Sequence[str], sums: Sequence[float]) -> str:
    """The inputs that moved one answer most."""
    order = sorted(range(len(names)), key=lambda i: -abs(sums[i]))[:8]
    rows = [[names[i], f"{sums[i]:+.3f}"] for i in order]
    shown = Table(title, ["input", f"pushed it by ({method})"], rows)
    return f"<h3>{escape(title)}</h3>{table(shown)}"
