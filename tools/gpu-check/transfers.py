"""Copies over the bus, and transfers beside them."""

import contextlib
import gzip
import json
import re

import proc
from report import FAILED, LEFT_OUT, Goal, Row

PINNED = re.compile(r"pinned copies, (.+): ([\d.]+) GB/s to it, ([\d.]+) GB/s from it")
PINNED_TEST = "copies::the_bus_is_measured_and_everything_given_back"

SIZE = "64M"
# Of each row of a transfer.
TRANSFER_S = 1.5
# Of one that is traced: a few of them show what there is to see.
TRACED_S = 0.3
TCP_GOAL, SHM_GOAL = Goal(at_least=0.95), Goal(at_least=0.9)
# What kernels take to be compiled, and some more.
COMPILING_S = 10
# Link, where the client's tensors lie, what is done.
PLANS = [("tcp", "heap", "put,get"), ("shm", "shared", "put,get"), ("shm", "heap", "put,get")]


class Failed(Exception):
    """A program did not do what it should."""

    def __init__(self, done):
        super().__init__(done.why())
        self.log = done.tail()


class Transfers:
    """`device` as `genie serve` names it; traces go beside `page`."""

    def __init__(self, programs, device, env, deadline, page):
        self.genie, self.gpu_tests = programs / "genie", programs / "gpu"
        self.device, self.env, self.deadline, self.page = device, env, deadline, page
        # GB/s by op.
        self.pinned = None

    def pcie(self, step, limit):
        """Pinned memory to the GPU and back, with nothing else: the most that a transfer can have."""
        command = [self.gpu_tests, PINNED_TEST, "--exact", "--nocapture"]
        done = proc.run(command, self.deadline.part(limit), self.env)
        found = PINNED.findall(done.out)
        if done.code != 0 or not found:
            return [Row(step, "pinned copies", f"not measured: {done.why()}", outcome=FAILED, log=done.tail())]
        # The stand-in on the CPU is the first, the GPU the last.
        name, to, back = found[-1]
        self.pinned = {"put": float(to), "get": float(back)}
        return [
            Row(step, f"pinned memory to {name}", f"{self.pinned['put']:.1f} GB/s"),
            Row(step, f"{name} to pinned memory", f"{self.pinned['get']:.1f} GB/s"),
        ]

    def transfer(self, step, limit):
        """Puts and gets of 64 MiB to the device and to the CPU."""
        until = proc.Deadline(self.deadline.part(limit))
        rows = []
        # The driver compiles kernels when it first meets them, on half of the cores, and keeps them: not while something is measured.
        if self.device != "cpu":
            with contextlib.suppress(Failed):
                self.moved(self.device, "tcp", "heap", "put", until, COMPILING_S)
        for link, memory, ops in PLANS:
            # The CPU first: what it can is worth knowing where the device fails. Op by op: what one dies of, the other may not.
            for op in ops.split(","):
                found, failures = {}, []
                for device in dict.fromkeys(["cpu", self.device]):
                    try:
                        found[device] = self.moved(device, link, memory, op, until)
                    except Failed as error:
                        failures.append((device, error))
                rows.append(self.row(step, (link, memory, op), found, failures))
        return rows + [self.overlap(step, op, until) for op in ("put", "get")]

    def overlap(self, step, op, until):
        """For how much of the time that copies to and from the GPU took, the network was busy: by a trace, and so apart from the speeds."""
        name, trace = f"{op} {SIZE} over tcp: copies overlapped by the network", self.page.with_suffix(f".{op}.trace.json")
        packed = trace.with_name(trace.name + ".gz")
        if self.device == "cpu":
            return Row(step, name, "there is no GPU to copy to", outcome=LEFT_OUT)
        try:
            told = self.moved(self.device, "tcp", "heap", op, until, TRACED_S, "--trace", trace)
            packed.write_bytes(gzip.compress(trace.read_bytes(), mtime=0))
            trace.unlink()
        except (Failed, OSError) as error:
            return Row(step, name, f"not measured: {error}", outcome=FAILED, log=getattr(error, "log", ""))
        if told.get("copy_overlap") is None:
            return Row(step, name, "the server copied nothing", outcome=LEFT_OUT)
        return Row(step, name, f"{100 * told['copy_overlap']:.0f} % of their time", notes=[f"{step}: {name}: {packed.name}, for https://ui.perfetto.dev"])

    def moved(self, device, link, memory, op, until, seconds=TRANSFER_S, *more):
        """What `genie bench transfer` says of it."""
        command = [self.genie, "--json", "bench", "transfer", "--serve", "--serve-device", device, "--links", link]
        command += ["--op", op, "--sizes", SIZE, "--memory", memory, "--time", str(seconds), "--no-floor", *more]
        done = proc.run(command, until.left(), self.env)
        if done.code != 0 or not done.out.strip():
            raise Failed(done)
        return json.loads(done.out)[0]

    def row(self, step, what, found, failures):
        link, memory, op = what
        name = f"{op} {SIZE} over {link}" + (", shared tensor" if memory == "shared" else "")
        on_cpu, here = (found.get(device) for device in ("cpu", self.device))
        beside, bounds = [], []
        if on_cpu:
            beside.append(f"CPU device {on_cpu['gb_s']:.2f}")
            # A tensor that lies in shared memory is passed, not moved, to the CPU: that is no bound for a GPU.
            bounds += [] if memory == "shared" else [on_cpu["gb_s"]]
        if self.pinned:
            beside.append(f"pinned copy {self.pinned[op]:.2f}")
            bounds.append(self.pinned[op])
        said = ", ".join(beside)
        notes = [f"{step}: {name}, {device}: {error}" for device, error in failures]
        if here is None:
            log = "\n".join(error.log for device, error in failures if device == self.device)
            return Row(step, name, "not measured", said, outcome=FAILED, notes=notes, log=log)
        if here.get("copied_per_byte"):
            notes.append(f"{step}: {name}: {here['copied_per_byte']:.3f} bytes copied in user space for each")
        goal = TCP_GOAL if link == "tcp" else SHM_GOAL if memory == "shared" else None
        # Without the pinned copy or the CPU's, the least of what can be had is not known.
        known = bounds and (self.pinned is not None) and (on_cpu is not None or memory == "shared")
        ratio = here["gb_s"] / min(bounds) if known else None
        return Row(step, name, f"{here['gb_s']:.2f} GB/s", said, ratio, goal, notes=notes)
