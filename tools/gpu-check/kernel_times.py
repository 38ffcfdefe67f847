"""Kernels of a decode step one by one, with their times: ncu around a server. It runs each kernel by itself, so that their sum is what a step
would take if no two of them overlapped and nothing lay between them."""

import collections
import concurrent.futures
import csv
import dataclasses
import pathlib
import statistics
import tempfile

import host
import journal
import proc
import random_model
from genie import Broken, Server
from report import LEFT_OUT, Row

READY_S = 60
PROMPT_TOKENS = 72
# So many clients at the same time, and the tokens of each.
CLIENTS = ((1, 4), (8, 8))
# Of one such run, in which each kernel takes some milliseconds, without what it takes to write it down.
MOST_S, WRITING_S = 45, 20
MOST_KERNELS = 12_000
# Both are had in one pass, so that no kernel runs twice.
TIME, READ = "gpu__time_duration.sum", "dram__bytes_read.sum"
# The kernels that end a step begin so; a step has at least as many.
LAST = ("argmax", "sample")
LEAST_OF_A_STEP = 8
# Rows of a table of kernels.
MOST_SHOWN = 16


@dataclasses.dataclass(frozen=True)
class Kernel:
    """`ns` it ran, and the bytes it read from the GPU's memory."""

    name: str
    grid: str
    block: str
    ns: float
    read: float

    @property
    def kind(self):
        return self.name, self.grid, self.block


def profile(step, language, limit, shape):
    """Rows for a decode step of one client, and of several. `language`: the models, with what runs them."""
    ncu = host.tool("ncu", language.env)
    if language.device == "cpu" or ncu is None:
        return [Row(step, "kernels of a decode step", "there is no GPU" if ncu else "ncu is not installed", outcome=LEFT_OUT)]
    until = proc.Deadline(language.deadline.part(limit))
    rows = []
    for clients, tokens in CLIENTS:
        what = f"{shape.name}: kernels of a decode step, each by itself" + (f", {clients} clients" if clients > 1 else "")
        try:
            language.folder(shape)
            rows.append(measured(step, what, ncu, language, shape, clients, tokens, proc.Deadline(until.part(MOST_S))))
        except Broken as error:
            # What it may read is up to whoever runs the machine: without it nothing of Genie failed.
            rows.append(Row(step, what, f"not measured: {error}", outcome=LEFT_OUT, log=error.log))
    return rows


def measured(step, what, ncu, language, shape, clients, tokens, until):
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        table = pathlib.Path(folder) / "kernels.csv"
        under = [ncu, "--csv", "--page", "raw", "--print-units", "base", "--log-file", table, "--metrics", f"{TIME},{READ}"]
        under += ["--clock-control", "none", "--cache-control", "none", "--graph-profiling", "node"]
        under += ["--target-processes", "all", "--launch-count", str(MOST_KERNELS)]
        # Under ncu no two kernels overlap in any case: without the flag it has less to be confused by.
        env = {**language.env, "GENIE_CUDA_OVERLAP": "0"}
        with Server(language.genie, language.device, env, min(READY_S, until.left()), under) as server:
            prompt = random_model.prompt(shape.vocabulary, PROMPT_TOKENS)
            failed = None
            with concurrent.futures.ThreadPoolExecutor(clients) as threads:
                asked = [threads.submit(language.generate, shape, server.uri, until, prompt, tokens) for _ in range(clients)]
                for one in asked:
                    failed = failed or one.exception()
            # What was measured is written when the server ends, also where its clients ran out of time.
            server.stop(patience=WRITING_S)
        text = table.read_text(errors="replace") if table.exists() else ""
    journal.add(f"ncu, {clients} clients", kernels=text)
    kernels = read(text)
    if not kernels:
        said = [line for line in text.splitlines() if line.startswith(("==ERROR==", "==WARNING=="))] or server.said().splitlines()
        raise Broken(f"ncu measured no kernel: {said[-1] if said else failed or 'it said nothing'}", "\n".join(said))
    row = told(step, what, kernels)
    if failed:
        row.notes.append(f"{step}: {what}: not all clients had their tokens: {failed}")
    return row


def read(text):
    """Kernels in the order in which they ran, of ncu's table: a head, a line of units, a line for each."""
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        return []
    kernels = []
    for cells in csv.DictReader(line for line in lines[head:] if not line.startswith("==")):
        try:
            ns = float(cells[TIME].replace(",", ""))
        except (KeyError, ValueError, AttributeError):
            # The line of units; or one that was cut off.
            continue
        try:
            bytes_read = float(cells[READ].replace(",", ""))
        except (KeyError, ValueError, AttributeError):
            bytes_read = 0.0
        kernels.append(Kernel(cells.get("Kernel Name") or "?", cells.get("Grid Size") or "?", cells.get("Block Size") or "?", ns, bytes_read))
    return kernels


def steps(kernels):
    """The kernels between the ends of steps."""
    found, now = [], []
    for i, kernel in enumerate(kernels):
        now.append(kernel)
        following = kernels[i + 1].name if i + 1 < len(kernels) else ""
        if kernel.name.startswith(LAST) and not following.startswith(LAST):
            found.append(now)
            now = []
    return [step for step in found if len(step) >= LEAST_OF_A_STEP]


def told(step, what, kernels):
    """The step that ran most often, as all clients were at work then: its sum, and its kernels by their time."""
    alike = collections.defaultdict(list)
    for one in steps(kernels):
        alike[tuple(kernel.kind for kernel in one)].append(one)
    if not alike:
        raise Broken(f"of {len(kernels)} kernels none ends a step", "\n".join(sorted({kernel.name for kernel in kernels})[:30]))
    often = max(alike.values(), key=len)
    total = statistics.median(sum(kernel.ns for kernel in one) for one in often)
    by_kind = collections.defaultdict(list)
    for one in often:
        for kernel in one:
            by_kind[kernel.kind].append(kernel)
    notes = []
    for (name, grid, block), those in sorted(by_kind.items(), key=lambda item: -sum(kernel.ns for kernel in item[1]))[:MOST_SHOWN]:
        ns = sum(kernel.ns for kernel in those) / len(often)
        rate = sum(kernel.read for kernel in those) / max(sum(kernel.ns for kernel in those), 1)
        count = len(those) / len(often)
        each = f"{count:g} x {ns / count / 1e3:.2f} us = {ns / 1e3:.0f} us, {100 * ns / total:.0f} %"
        notes.append(f"{step}: {what}: {name[:80]}, grid {grid}, block {block}: {each}, reading {rate:.0f} GB/s")
    said = f"{total / 1e6:.3f} ms in {len(often[0])} kernels"
    return Row(step, what, said, f"{len(often)} steps of {len(steps(kernels))}", notes=notes)
