"""Rows of what was measured; the table of them, and the page."""

import dataclasses
import datetime
import pathlib
import re

OK, FAILED, LEFT_OUT = "ok", "FAILED", "left out"


@dataclasses.dataclass
class Row:
    """`what` was measured in a step, what came out, what it stands beside, and their ratio. `took`: seconds."""

    step: str
    what: str
    result: str
    beside: str = ""
    ratio: float | None = None
    state: str = OK
    took: float | None = None
    notes: list = dataclasses.field(default_factory=list)

    def cells(self):
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        took = "" if self.took is None else f"{self.took:.0f} s"
        return [self.step, self.what, self.result, self.beside, ratio, took, self.state]


HEADER = ["step", "what", "result", "beside", "ratio", "took", "state"]


def table(rows):
    """For a terminal."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def page(about, rows, rehearsal):
    """For docs/gpu-results."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    lines = [f"# {about['title']}, {now[:10]}", ""]
    if rehearsal:
        lines += ["**A rehearsal without a GPU: it shows that the steps work, and no number of it means anything.**", ""]
    lines += [f"- {line}" for line in [*about["lines"], f"run at {now}"]]
    lines += ["", "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(escaped(cell) for cell in row.cells()) + " |" for row in rows]
    notes = [note for row in rows for note in row.notes]
    failed = [row for row in rows if row.state == FAILED]
    lines += ["", "## Failures", ""]
    lines += [f"- {row.step}, {row.what}: {escaped(row.result)}" for row in failed] or ["None."]
    if notes:
        lines += ["", "## Notes", "", *(f"- {escaped(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def escaped(text):
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def place(out, device):
    """Where the page goes: what was asked for, or DATE-DEVICE.md among the others, or here. A page of the same day stays."""
    if out:
        return pathlib.Path(out)
    pages = pathlib.Path("docs/gpu-results")
    folder = pages if pages.is_dir() else pathlib.Path()
    day = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    stem = f"{day}-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}"
    free = (folder / (stem + (f"-{n}" if n > 1 else "") + ".md") for n in range(1, 1000))
    return next(path for path in free if not path.exists())
