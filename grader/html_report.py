"""The tracker as one page of HTML: for paper, a phone, light and dark. It asks nothing of the network.

Made of progress_data's document and a date, and of nothing else: the same two give the same bytes. All text
is escaped, and a policy in the page forbids whatever could be asked for anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from typing import Any

from .words import duration

NOTHING = "–"
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
LONGEST = 12  # gradings of a day that are drawn, the latest
STATE = {
    "passed": "good",
    "passed, edited since": "soon",
    "passed, now broken": "bad",
    "partial": "soon",
    "in progress": "now",
    "not started": "none",
}

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2129; --soft: #5b6472; --line: #d9dde4;
  --good: #1a7f4b; --soon: #96690a; --bad: #b3261e; --now: #1f5fbf; --none: #79828f; --fill: #f3f5f8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e9ee; --soft: #a3acb9;
  --line: #333a45; --good: #4cc38a; --soon: #e0b04c; --bad: #ff8a80; --now: #7fb2ff; --none: #8c96a4;
  --fill: #1c2129; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--paper);
  color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
.sums { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem; padding: 0;
  margin: 1.2rem 0; list-style: none; }
.sums li { background: var(--fill); border: 1px solid var(--line); border-radius: .5rem;
  padding: .6rem .8rem; }
.sums b { display: block; font-size: 1.35rem; line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.good { color: var(--good); } .soon { color: var(--soon); } .bad { color: var(--bad); }
.now { color: var(--now); }
.none { color: var(--none); }
.bar { display: inline-block; width: 5rem; height: .55rem; background: var(--line); border-radius: .3rem;
  overflow: hidden; vertical-align: middle; margin-right: .4rem; }
.bar i { display: block; height: 100%; background: var(--now); }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; margin: .7rem 0;
  break-inside: avoid; }
article header { display: flex; flex-wrap: wrap; gap: .2rem 1rem; justify-content: space-between; }
article ul { margin: .5rem 0 .2rem; padding-left: 1.2rem; }
svg { display: block; width: 100%; height: auto; max-width: 30rem; margin-top: .5rem; }
svg text { fill: var(--soft); font-size: 9px; }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #bbb;
  --fill: #fff;
  --good: #000; --soon: #000; --bad: #000; --now: #000; --none: #555; }
  body { max-width: none; padding: 0; font-size: 10.5pt; } .wide { overflow: visible; }
  .bar { border: 1px solid #888; }
  .bar i, svg rect { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""


def page(document: Mapping[str, Any], on: date, name: str = "") -> str:
    """The whole page. `on` is the day it is made; `name` whose progress it is."""
    days = [d for d in document["days"] if not d["retired"]]
    retired = [d for d in document["days"] if d["retired"]]
    title = f"Progress of {name}" if name else "Progress"
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="robots" content="noindex">',
        f"<title>{_t(title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{_t(title)}</h1>",
        f'<p class="soft">{_t(document["course"])} · {on.isoformat()}</p>',
        _sums(days),
        _next(document, days),
    ]
    if document["unreadable_lines"]:
        numbers = ", ".join(map(str, document["unreadable_lines"]))
        parts.append(f'<p class="soon">Left out: lines of the log that cannot be read ({numbers}).</p>')
    weeks = dict(document["weeks"])
    for week in sorted({d["week"] for d in days}):
        rows = [d for d in days if d["week"] == week]
        parts += [f"<h2>Week {week}: {_t(weeks.get(str(week), ''))}</h2>", _table(rows)]
    begun = [d for d in days if d["gradings"] or d["hints"] or d["questions"]["answered"]]
    if begun:
        parts += ["<h2>Day by day</h2>", *map(_card, begun)]
    if retired:
        parts += ["<h2>No longer in the course</h2>", _table(retired)]
    parts += [f'<p class="soft">{_LEGEND}</p>', "</body>", "</html>"]
    return "\n".join(parts) + "\n"


_LEGEND = (
    "Times are UTC. Time spent is taken from the gaps between the log's events, pauses over 30 minutes left "
    "out. Questions: those right when last answered, of all the day has. Made by tinyllm-grade report from a "
    "log that its owner keeps: it shows work, it does not prove it."
)


def _sums(days: Sequence[Mapping[str, Any]]) -> str:
    tasks = [t for d in days for t in d["tasks"]]
    asked = sum(d["questions"]["asked"] for d in days)
    sums = (
        (f"{sum(d['finished'] for d in days)} of {len(days)}", "days passed"),
        (f"{sum(t['passed'] for t in tasks)} of {len(tasks)}", "tasks passed"),
        (duration(sum(d["seconds"] for d in days)), "of work"),
        (str(sum(d["attempts"] for d in days)), "gradings"),
        (str(sum(d["hints"] for d in days)), "hints taken"),
        (f"{sum(d['questions']['mastered'] for d in days)} of {asked}", "questions mastered"),
    )
    return '<ul class="sums">' + "".join(f"<li><b>{_t(n)}</b> {_t(what)}</li>" for n, what in sums) + "</ul>"


def _next(document: Mapping[str, Any], days: Sequence[Mapping[str, Any]]) -> str:
    following = next((d for d in days if d["day"] == document["next"]), None)
    if following is None:
        return "<p>Every day has passed.</p>" if days else "<p>This course has no days yet.</p>"
    return f"<p>Next: day {_t(following['day'])}, {_t(following['title'])}.</p>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = (
        ("Day", ""), ("Title", ""), ("Status", ""), ("Tasks", "n"), ("Gradings", "n"), ("Time", "n"),
        ("Hints", "n"), ("Questions", "n"), ("Reference seen", ""), ("Passed", ""),
    )  # fmt: skip
    head = "".join(
        f'<th class="{c}" scope="col">{_t(h)}</th>' if c else f'<th scope="col">{_t(h)}</th>'
        for h, c in heads
    )
    body = "".join(map(_row, rows))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(d: Mapping[str, Any]) -> str:
    done, tasks = sum(t["passed"] for t in d["tasks"]), len(d["tasks"])
    share = round(100 * done / tasks) if tasks else 0
    questions = d["questions"]
    looked = d["reference"]
    seen = NOTHING if looked["looked"] == "no" else f"{looked['looked']}, {_day(looked['at'])}"
    passed = _day(d["passed"]["at"]) if d["passed"] else NOTHING
    cells = (
        ("", _t(d["day"])),
        ("", _t(d["title"])),
        ("", f'<span class="{STATE.get(d["status"], "none")}">{_t(d["status"])}</span>'),
        ("n", f'<span class="bar"><i style="width:{share}%"></i></span>{done}/{tasks}'),
        ("n", str(d["attempts"] or NOTHING)),
        ("n", _t(duration(d["seconds"])) if d["seconds"] else NOTHING),
        ("n", str(d["hints"] or NOTHING)),
        ("n", f"{questions['mastered']}/{questions['asked']}" if questions["answered"] else NOTHING),
        ("", _t(seen)),
        ("", _t(passed)),
    )
    return "<tr>" + "".join(f'<td class="{c}">{x}</td>' if c else f"<td>{x}</td>" for c, x in cells) + "</tr>"


def _card(d: Mapping[str, Any]) -> str:
    """A day on which something was done: its tasks, and its gradings as a row of columns."""
    state = STATE.get(d["status"], "none")
    items = []
    for t in d["tasks"]:
        checks = t["checks"]
        outcome = "passed" if t["passed"] else t["outcome"] or "not graded yet"
        note = (
            "" if t["passed"] or not t["outcome"] else f", {checks['passed']} of {checks['expected']} checks"
        )
        note += f", {t['hints']} hint{'s' if t['hints'] > 1 else ''}" if t["hints"] else ""
        colour = "good" if t["passed"] else "none" if outcome in ("not started", "not graded yet") else "now"
        items.append(f'<li>{_t(t["title"])}: <span class="{colour}">{_t(outcome)}</span>{_t(note)}</li>')
    extra = ""
    if d["passed"] and d["passed"]["borrowed"]:
        extra = f'<p class="soft">Passed with days borrowed: {_t(", ".join(d["passed"]["borrowed"]))}.</p>'
    return (
        f"<article><header><h3>day {_t(d['day'])} · {_t(d['title'])}</h3>"
        f'<span class="{state}">{_t(d["status"])}</span></header>'
        f"<ul>{''.join(items)}</ul>{extra}{_columns(d['gradings'])}</article>"
    )


def _columns(gradings: Sequence[Mapping[str, Any]]) -> str:
    """The day's gradings, oldest first: a column each, as high as the share of checks that passed."""
    shown = [g for g in gradings if not g["regression"]][-LONGEST:]
    if not shown:
        return ""
    width, high = 360, 48
    step = width / LONGEST
    parts = []
    for i, g in enumerate(shown):
        share = g["checks"]["passed"] / g["checks"]["expected"] if g["checks"]["expected"] else 0.0
        tall = max(round(high * share), 1)
        colour = "good" if g["verdict"] == "passed" else "bad" if g["verdict"] == "refused" else "now"
        told = (
            f"{_minute(g['at'])}: {g['verdict']}, {g['checks']['passed']} of {g['checks']['expected']} checks"
        )
        parts.append(
            f'<rect x="{i * step + 2:.0f}" y="{high - tall}" width="{step - 6:.0f}" height="{tall}" '
            f'fill="var(--{colour})"><title>{_t(told)}</title></rect>'
        )
    hidden = len([g for g in gradings if not g["regression"]]) - len(shown)
    label = f"{len(shown)} gradings, {_minute(shown[0]['at'])} to {_minute(shown[-1]['at'])}"
    if len(shown) == 1:
        label = f"1 grading, {_minute(shown[0]['at'])}"
    label += f"; {hidden} earlier not drawn" if hidden else ""
    return (
        f'<svg viewBox="0 0 {width} {high + 14}" role="img" aria-label="{_t(label)}: share of checks passed">'
        f'{"".join(parts)}<text x="2" y="{high + 11}">{_t(label)}: share of checks passed</text></svg>'
    )


def _day(at: str | None) -> str:
    return at[:10] if at else NOTHING


def _minute(at: str | None) -> str:
    return at[:16].replace("T", " ") if at else NOTHING


def _t(text: object) -> str:
    """Text as HTML holds it, whatever it is: a lone surrogate, which JSON can hold, becomes a "?"."""
    return escape(str(text).encode("utf-8", "replace").decode("utf-8"), quote=True)
