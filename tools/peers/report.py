"""From the drivers' reports to a table, and into a page."""

import harness

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
GROUPS = {"tcp": "Over TCP", "shm": "Over shared memory"}


def merged(environment, rows):
    """One figure a cell: the median of the rounds."""
    return {"environment": environment, "rows": [one(row) for row in rows]}


def one(row):
    reports = [r for r in row["rounds"] if "missing" not in r]
    head = {"peer": row["peer"], "link": row["link"]}
    if not reports:
        return {**head, "missing": row["rounds"][0]["missing"]}
    echoes = [r["echo"] for r in reports if r["echo"]]
    echo = {name: middle(e[name] for e in echoes) for name in ["p50_us", "p99_us"]} if echoes else None
    puts = [
        {"bytes": put["bytes"], "depth": put["depth"], "gb_s": middle(r["puts"][i]["gb_s"] for r in reports)}
        for i, put in enumerate(reports[0]["puts"])
    ]
    return {**head, "version": reports[0]["version"], "echo": echo, "puts": puts, "rounds": row["rounds"]}


def middle(values):
    return harness.median(list(values))


def brief(report):
    """One line for whoever waits."""
    if "missing" in report:
        return report["missing"]
    echo = f"echo {report['echo']['p50_us']:.2f} us, " if report["echo"] else ""
    return echo + "puts " + ", ".join(f"{put['gb_s']:.2f}" for put in report["puts"]) + " GB/s"


def markdown(outcome):
    lines = [f"{rounds(outcome)} {fingerprint(outcome)}"]
    for link, title in GROUPS.items():
        rows = [row for row in outcome["rows"] if row["link"] == link]
        if not rows:
            continue
        sizes = [f"{size >> 20} MiB x {depth}" for size in harness.PUT_BYTES for depth in harness.DEPTHS]
        names = [title, "echo p50 us", "p99 us", *(f"{size}, GB/s" for size in sizes), "version"]
        lines += ["", "| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 2) + "---|"]
        lines += ["| " + " | ".join(cells(row, len(names))) + " |" for row in rows]
    return "\n".join(lines)


def rounds(outcome):
    """How many there were: one round is not a median of any."""
    turns = max((len(row["rounds"]) for row in outcome["rows"] if "rounds" in row), default=0)
    return "One round over all peers." if turns == 1 else f"Medians of {turns} rounds over all peers."


def fingerprint(outcome):
    """What these figures are of, as far as it was found out."""
    e = outcome["environment"]
    copy = next((row for row in outcome["rows"] if row["peer"].startswith("memcpy") and "missing" not in row), None)
    facts = [
        e["cpu"],
        f"{e['cores']} cores",
        f"{e['memory_gb']} GB",
        e.get("virtualization"),
        e.get("distribution"),
        e["kernel"],
        f"congestion control {e['congestion_control']}",
        f"Python {e['python']}",
        e.get("rustc"),
        f"Genie at {e['commit']}" if "commit" in e else None,
        f"memcpy {copy['puts'][-1]['gb_s']:.1f} GB/s ({copy['puts'][-1]['bytes'] >> 20} MiB)" if copy else None,
    ]
    return f"{', '.join(fact for fact in facts if fact)}; load {e['load']} before the run; {e['date']}."


def cells(row, count):
    name = f"**{row['peer']}**" if row["peer"].startswith("Genie") else row["peer"]
    if "missing" in row:
        return [name, *["-"] * (count - 2), row["missing"]]
    echo = [f"{row['echo'][key]:.2f}" for key in ["p50_us", "p99_us"]] if row["echo"] else ["-", "-"]
    return [name, *echo, *(f"{put['gb_s']:.2f}" for put in row["puts"]), row["version"] or "ours"]


def write(page, outcome):
    """Puts the tables between the page's marks."""
    before, mark, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"{page} has no place for the table: it needs the lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{markdown(outcome)}\n{END}{after}")
