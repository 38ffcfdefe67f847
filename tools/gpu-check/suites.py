"""Test programs of Rust: run, read, and run again test by test where one failed; and the same under compute-sanitizer."""

import collections
import concurrent.futures
import re

import proc
from report import FAILED, LEFT_OUT, OK, Goal, Row

SUMMARY = re.compile(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored")
VERDICT = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", re.M)
STORY = re.compile(r"^---- (\S+) stdout ----\n(.*?)(?=^---- |^failures:|\Z)", re.M | re.S)

PANIC = re.compile(r"thread '[^']*' (?:\(\d+\) )?panicked at (\S+:\d+):\d+: ?")

# What of a program needs no GPU: CI runs that.
BESIDE_THE_GPU = {"device": ["--skip", "models::"]}
# Tests that are figures of their own.
FIGURES = {"device": {"gpu::greedy_tokens_are_those_of_the_cpu": "tiny models, f32: the CPU device's tokens, 64 of them"}}
# Lines of numbers, of the tests whose names begin so.
GOLDENS = {"device": "goldens::"}
GOLDEN = re.compile(r"golden, (.+): error (\S+), at most (\S+)")
GOLDENS_S = 60

# Of one test by itself, and of all of them; so many at the same time, each a process with a context of its own.
ALONE_S, ALL_ALONE_S = 20, 60
AT_ONCE = 6
# Those that fail by themselves run once more with kernels one after another, and so many under compute-sanitizer.
IN_TURN_S, EXPLAINED_S = 30, 45
MOST_EXPLAINED = 6
PASSES, NO_TIME = "passes", "not run, as no time was left"
# How many a note names.
MOST_NAMED = 12

# Kernels whose threads talk to each other, first: what a sanitizer can find is there.
FIRST = ["matvec", "gemm", "attention", "softmax", "norm", "reduce", "argmax", "sample", "attention_cache", "conv", "pool"]
MODULES_A_GROUP = 5
SANITIZER_SUMMARY = {
    "memcheck": re.compile(r"ERROR SUMMARY: (\d+) error"),
    "racecheck": re.compile(r"RACECHECK SUMMARY: (\d+) hazard"),
}
FIRST_OF_REPORT = re.compile(r"(?:ERROR: |Error: |Warning: )?(?:Invalid|Misaligned|Race reported|Potential|Program hit)")
ADDRESS = re.compile(r"\bat 0x[0-9a-f]+")
# What a program exits with where the sanitizer found something: none of a test's own codes.
FOUND = 86


def names(command, env):
    """The tests of a program."""
    listed = proc.run([*command, "--list"], 5, env)
    return [line.removesuffix(": test") for line in listed.out.splitlines() if line.endswith(": test")]


def suite(step, program, limit, env, deadline, sanitizer):
    """Rows for a test program. A fault breaks the GPU for every test behind it in the process: what failed runs again by itself."""
    command = [program, *BESIDE_THE_GPU.get(step, [])]
    done = proc.run(command, deadline.part(limit), env)
    verdicts = dict(VERDICT.findall(done.out))
    rows = [whole(step, program, command, done, verdicts, env, deadline, sanitizer)]
    for name, what in FIGURES.get(step, {}).items():
        verdict = verdicts.get(name, "did not end")
        rows.append(Row(step, what, verdict, outcome=OK if verdict == "ok" else FAILED))
    if step in GOLDENS:
        rows += goldens(step, program, env, deadline)
    return rows


def whole(step, program, command, done, verdicts, env, deadline, sanitizer):
    """The row of all tests together."""
    stories = dict(STORY.findall(done.out))
    summary = SUMMARY.search(done.out)
    failed = [name for name, verdict in verdicts.items() if verdict == "FAILED"]
    if done.code == 0 and summary and int(summary[1]) > 0:
        return Row(step, "tests", f"{summary[1]} passed", took=done.seconds)
    notes = [] if summary else [f"{step}: {done.why()}"]
    if summary and not failed:
        notes.append(f"{step}: {'no test was there to run' if done.code == 0 else done.why()}")
    unseen = [] if summary else [name for name in names(command, env) if name not in verdicts]
    if unseen:
        notes.append(f"{step}: {len(unseen)} tests had not ended: {some(unseen)}")
    notes += grouped(step, "", [(name, brief(stories.get(name, ""))) for name in failed])
    ends = alone(program, failed + unseen, env, proc.Deadline(deadline.part(ALL_ALONE_S)))
    notes += grouped(step, "by itself: ", ends)
    broken = [name for name, end in ends if end not in (PASSES, NO_TIME)]
    if broken and env["GENIE_TEST_GPU"] == "1":
        # Whether overlap is to blame, and where a kernel touches what it must not.
        in_turn = alone(program, broken, {**env, "GENIE_CUDA_OVERLAP": "0"}, proc.Deadline(deadline.part(IN_TURN_S)))
        notes += grouped(step, "by itself, with GENIE_CUDA_OVERLAP=0: ", [(name, end) for name, end in in_turn if end != dict(ends)[name]])
        notes += explained(step, program, broken[:MOST_EXPLAINED], env, deadline, sanitizer)
    passed = sum(verdict == "ok" for verdict in verdicts.values())
    said = f"{passed} passed, {len(failed)} failed" + (f", {len(unseen)} did not end" if unseen else "")
    return Row(step, "tests", said, outcome=FAILED, took=done.seconds, notes=notes, log=done.tail())


def goldens(step, program, env, deadline):
    """A row for each number that the goldens print."""
    done = proc.run([program, GOLDENS[step], "--nocapture", "--test-threads=1"], deadline.part(GOLDENS_S), env)
    rows = []
    for what, error, most in GOLDEN.findall(done.out):
        rows.append(Row(step, f"golden, {what}", f"error {error}", f"at most {most}", float(error) / float(most), Goal(at_most=1)))
    if done.code != 0 or not rows:
        rows.append(Row(step, "goldens", done.why(), outcome=FAILED, log=done.tail()))
    return rows


def alone(program, suspects, env, until):
    """What becomes of tests that run by themselves: names, and how each ends."""

    def end(name):
        if until.left() < ALONE_S / 2:
            return name, NO_TIME
        done = proc.run([program, name, "--exact"], until.part(ALONE_S), env)
        story = STORY.search(done.out)
        return name, PASSES if done.code == 0 else brief(story[2]) if story else done.why()

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(end, suspects))


def explained(step, program, suspects, env, deadline, sanitizer):
    """Notes on what compute-sanitizer says of tests that fail by themselves."""
    if sanitizer is None:
        return []
    until = proc.Deadline(deadline.part(EXPLAINED_S))

    def said(name):
        command = [sanitizer, "--tool", "memcheck", "--report-api-errors", "no", "--print-limit", "10"]
        done = proc.run([*command, program, name, "--exact", "--test-threads=1"], until.left(), env)
        text = done.out + done.err
        # Without its summary it saw no end, or could not begin.
        ended = SANITIZER_SUMMARY["memcheck"].search(text)
        return name, errors_of(text) or ["nothing found" if ended else f"not checked: {done.why()}"]

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
        return [f"{step}: {name} under memcheck: {line}" for name, lines in threads.map(said, suspects) for line in lines]


def grouped(step, how, ends):
    """A note for each way to end, with those that ended so."""
    names_by_end = {}
    for name, end in ends:
        names_by_end.setdefault(end, []).append(name)
    return [f"{step}: {how}{end} ({some(names)})" for end, names in names_by_end.items()]


def some(names):
    shown = ", ".join(names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"


def brief(story):
    """The first lines of what a failing test wrote, as one."""
    lines = [line.strip() for line in story.splitlines()]
    said = [line for line in lines if line and not line.startswith("note: ") and not line.startswith("stack backtrace")]
    return PANIC.sub(r"\1: ", " ".join(said))[:400] or "it said nothing"


def sanitized(tool, sanitizer, program, limit, env, deadline):
    """The kernel tests under compute-sanitizer, group by group, each for its share of the time that is left."""
    if sanitizer is None:
        return [Row(tool, "compute-sanitizer", "not installed", outcome=LEFT_OUT)]
    tests = names([program], env)
    modules = sorted({name.split("::")[0] for name in tests} - {"host"}, key=lambda m: (FIRST.index(m) if m in FIRST else len(FIRST), m))
    groups = [modules[i : i + MODULES_A_GROUP] for i in range(0, len(modules), MODULES_A_GROUP)]
    until = proc.Deadline(deadline.part(limit))
    ended, findings, notes, log, took = 0, 0, [], "", 0.0
    for i, group in enumerate(groups):
        chosen = [name for name in tests if name.split("::")[0] in group]
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
        # Tests ask for more memory than there is, and for launches that cannot be: refusals are not errors.
        command += ["--report-api-errors", "no"] if tool == "memcheck" else []
        done = proc.run([*command, program, "--exact", *chosen, "--test-threads=1"], until.left() / (len(groups) - i), env)
        took += done.seconds
        verdicts = VERDICT.findall(done.out)
        ended += len(verdicts)
        text = done.out + done.err
        if "Device not supported" in text:
            return [Row(tool, "kernel tests", "compute-sanitizer refuses this device", took=took, outcome=LEFT_OUT)]
        found = found_by(tool, text)
        findings += found
        if found or done.code not in (0, None):
            log = log or done.tail()
        if found:
            notes += [f"{tool}: {line}" for line in errors_of(text)]
        failed = [name for name, verdict in verdicts if verdict == "FAILED"]
        notes += [f"{tool}: {name} fails under it" for name in failed]
        if not found and not failed and done.code not in (0, None):
            notes.append(f"{tool}: {', '.join(group)}: {done.why()}")
    wanted = sum(name.split("::")[0] in modules for name in tests)
    said = f"{findings} found in {ended} of {wanted} tests"
    if ended == 0 and not notes:
        return [Row(tool, "kernel tests", f"none of {wanted} tests ended in time", took=took, outcome=FAILED)]
    return [Row(tool, "kernel tests", said, took=took, outcome=FAILED if notes or findings else OK, notes=notes, log=log)]


def found_by(tool, text):
    """How much it reports. A program that was ended had no time for the summary: then its errors count."""
    summary = SANITIZER_SUMMARY[tool].search(text)
    return int(summary[1]) if summary else len(errors_of(text))


def errors_of(text):
    """What it reports, each in a line with the kernel and the first thread, and how often."""
    lines = [line.lstrip("= ").rstrip() if line.startswith("=====") else "" for line in text.splitlines()]
    found = collections.Counter()
    for i, line in enumerate(lines):
        if not FIRST_OF_REPORT.match(line):
            continue
        where = [more for more in lines[i + 1 : i + 5] if more.startswith(("at ", "Address", "Access", "and "))]
        # One fault of a kernel is the same at every address.
        found[ADDRESS.sub("at an address", "; ".join([line, *where]))[:400]] += 1
    return [line if count == 1 else f"{line} ({count} times)" for line, count in found.most_common(20)]
