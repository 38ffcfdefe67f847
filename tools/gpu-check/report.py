"""Rows of what was measured; the table of them, and the page, which a later run can add to."""

import dataclasses
import datetime
import json
import pathlib
import re

OK, MISSED, FAILED, LEFT_OUT, ALONE = "ok", "MISSED", "FAILED", "left out", "not compared"
BAD = (MISSED, FAILED)


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a ratio should be."""

    at_least: float | None = None
    at_most: float | None = None

    def __str__(self):
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"

    def met(self, ratio):
        return ratio >= self.at_least if self.at_least is not None else ratio <= self.at_most


@dataclasses.dataclass
class Row:
    """`what` was measured in a step, what came out, what it stands beside, and their ratio with what that should be. `outcome`: whether it
    could be measured. `took`: seconds. `log`: the last lines that a program wrote which did not do what it should."""

    step: str
    what: str
    result: str
    beside: str = ""
    ratio: float | None = None
    goal: Goal | None = None
    outcome: str = OK
    took: float | None = None
    notes: list = dataclasses.field(default_factory=list)
    log: str = ""

    @property
    def state(self):
        if self.outcome != OK or self.goal is None:
            return self.outcome
        if self.ratio is None:
            return ALONE
        return OK if self.goal.met(self.ratio) else MISSED

    def cells(self):
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}" if self.ratio < 10 else f"{self.ratio:.0f}"
        # A ratio that misses by less than is shown must not look as if it met its goal.
        if self.state == MISSED:
            ratio = f"{self.ratio:.4f}"
        took = "" if self.took is None else f"{self.took:.0f} s"
        return [self.step, self.what, self.result, self.beside, ratio, str(self.goal or ""), took, self.state]

    def as_json(self):
        return dataclasses.asdict(self)

    @classmethod
    def of_json(cls, told):
        goal = told.pop("goal")
        return cls(**told, goal=Goal(**goal) if goal else None)


WIDEST = 80
HEADER = ["step", "what", "result", "beside", "ratio", "goal", "took", "state"]


def table(rows):
    """For a terminal: what is long is whole on the page alone."""
    lines = [HEADER, *([cell if len(cell) <= WIDEST else cell[: WIDEST - 3] + "..." for cell in row.cells()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    lines.insert(1, ["-" * width for width in widths])
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
    return f"{text}\n\n{verdict(rows)}"


def verdict(rows):
    """One sentence on all of it."""
    count = lambda state: sum(row.state == state for row in rows)
    met = sum(row.goal is not None and row.state == OK for row in rows)
    return f"{met} goals met, {count(MISSED)} missed, {count(ALONE)} without what they stand beside; {count(FAILED)} rows failed, {count(LEFT_OUT)} left out"


def page(runs, rows, rehearsal):
    """For docs/gpu-results. `runs`: what was run where, one entry for each call."""
    title = f"{runs[0]['title']}, {runs[0]['when'][:10]}"
    lines = [f"# {title}", ""]
    if rehearsal:
        lines += ["**A rehearsal without a GPU: it shows that the steps work, and no number of it means anything.**", ""]
    # What all calls say alike is said once.
    lines += [f"- {line}" for line in dict.fromkeys(line for run in runs for line in run["lines"])]
    lines += [f"- run at {run['when']}: {', '.join(run['steps']) or 'nothing'}" for run in runs]
    lines += ["", verdict(rows) + ".", ""]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(escaped(cell) for cell in row.cells()) + " |" for row in rows]
    lines += ["", "## Failures", ""]
    lines += [f"- {row.step}, {escaped(row.what)}: {escaped(why(row))}" for row in rows if row.state in BAD] or ["None."]
    notes = [note for row in rows for note in row.notes]
    if notes:
        lines += ["", "## Notes", "", *(f"- {escaped(note)}" for note in notes)]
    logs = [row for row in rows if row.log]
    if logs:
        lines += ["", "## What programs wrote that failed", ""]
    for row in logs:
        lines += [f"{row.step}, {escaped(row.what)}:", "", *(f"    {line}" for line in row.log.splitlines()), ""]
    return "\n".join(lines).rstrip() + "\n"


def why(row):
    """What is wrong with a row."""
    if row.state == MISSED:
        return f"{row.result} beside {row.beside}: {row.ratio:.4f}, and the goal is {row.goal}"
    return row.result


def escaped(text):
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def place(out, device):
    """Where the page goes: what was asked for, or DATE-DEVICE.md among the others, or here. A page of the same day stays."""
    if out:
        return pathlib.Path(out)
    pages = pathlib.Path("docs/gpu-results")
    folder = pages if pages.is_dir() else pathlib.Path()
    stem = f"{now()[:10]}-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}"
    return free(folder / f"{stem}.md")


def free(path):
    """This path, or NAME-2 and so on where there is one."""
    others = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, 1000))
    return next(path for path in (path, *others) if not path.exists())


def beside(path):
    """The file with all that a page was made of, which a later run reads to add to it."""
    return path.with_suffix(".json")


def save(path, runs, rows, rehearsal):
    """Writes the page and what it was made of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, page(runs, rows, rehearsal))
    replace(beside(path), json.dumps({"runs": runs, "rows": [row.as_json() for row in rows], "rehearsal": rehearsal}, indent=1))


def replace(path, text):
    """Whoever is killed here leaves the old file."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def load(path):
    """Runs and rows of a page, and whether it is of a rehearsal."""
    told = json.loads(beside(path).read_text())
    return told["runs"], [Row.of_json(row) for row in told["rows"]], told["rehearsal"]
