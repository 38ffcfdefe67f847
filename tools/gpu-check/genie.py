"""The `genie` command: a server, and calls of it."""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time

import journal
import proc


# How long a server's kernels are waited for.
KERNELS_S = 40


class Broken(Exception):
    """A measurement could not be made: why, and what the program wrote."""

    def __init__(self, why, log=""):
        super().__init__(why)
        self.log = log


def call(arguments, until, env):
    """What a call says as JSON."""
    done = proc.run(arguments, until.left(), env)
    if done.code != 0 or not done.out.strip():
        raise Broken(done.why(), done.tail())
    return json.loads(done.out)


class Server(contextlib.AbstractContextManager):
    """`genie serve`, which ends with its standard input. `uri` is its address. `under`: a program, with arguments, that it runs under."""

    def __init__(self, genie, device, env, limit, under=()):
        command = [*under, genie, "--json", "serve", "--listen", "tcp://127.0.0.1:0", "--device", device, "--with-parent"]
        if device != "cpu":
            # It says when its kernels are ready.
            command.append("-v")
        self.what = f"genie serve --device {device}"
        self.compiles = device != "cpu"
        self.log = tempfile.TemporaryFile()
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=self.log, **proc.GROUP)
        self.limit, self.uri, self.stopped = limit, None, False

    def __enter__(self):
        lines = []
        reader = threading.Thread(target=lambda: lines.append(self.line()), daemon=True)
        reader.start()
        reader.join(self.limit)
        try:
            self.uri = json.loads(lines[0])["uri"]
        except (LookupError, TypeError, ValueError):
            self.stop()
            said = self.said()
            last = said.splitlines()[-1] if said else "it said nothing"
            raise Broken(f"{self.what} did not get ready: {last}", said) from None
        self.wait_for_kernels()
        return self

    def wait_for_kernels(self):
        """Kernels that are being compiled take cores and locks of the driver from what is measured. Without a word of them it goes on."""
        until = time.monotonic() + KERNELS_S
        while self.compiles and self.child.poll() is None and time.monotonic() < until:
            if "all kernels are ready" in self.wrote():
                return
            time.sleep(0.05)

    def __exit__(self, *_):
        self.stop()

    def line(self):
        """The first line that is its own: what it runs under may write before it."""
        for line in self.child.stdout:
            if line.startswith(b"{"):
                return line
        return b""

    def said(self, lines=30):
        """The last lines of its standard error."""
        said = [line.rstrip()[:400] for line in self.wrote().splitlines() if line.strip()]
        return "\n".join(said[-lines:])

    def warned(self):
        """What it warned of, each once, without the time."""
        lines = [line.split(" WARN ", 1)[1].strip()[:300] for line in self.wrote().splitlines() if " WARN " in line]
        return list(dict.fromkeys(lines))

    def wrote(self):
        # It writes where the file's position is, which is shared: reading leaves that alone.
        file = self.log.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def stop(self, patience=10):
        if self.stopped:
            return
        self.stopped = True
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()
        until = time.monotonic() + patience
        while self.child.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        proc.end(self.child)
        # A driver that hangs holds its program in the kernel: nobody waits for that.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(proc.PATIENCE_S)
        journal.add(f"{self.what}: exit code {self.child.returncode}", err=self.wrote())
