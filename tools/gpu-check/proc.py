"""Programs, each with a time limit; and the time that all of them have together."""

import os
import signal
import subprocess
import sys
import threading
import time

import journal

# A group of its own, which can be ended as a whole. Not a session, where that can be had: what ends this program's session ends these as well.
GROUP = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}

# Programs that run now, also those of other threads; and whether no other is to start.
_running, _ended = set(), threading.Event()
# For a program that was killed to be gone.
PATIENCE_S = 10


class Deadline:
    """Seconds until everything must have ended."""

    def __init__(self, seconds):
        self._ends = time.monotonic() + seconds

    def left(self):
        return max(0.0, self._ends - time.monotonic())

    def part(self, seconds):
        """So many, or what is left."""
        return min(seconds, self.left())


class Done:
    """What became of a program. `code` is None where it ran past its limit and was ended."""

    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds

    @property
    def timed_out(self):
        return self.code is None

    def tail(self, lines=30):
        """The last lines that it wrote, those of its standard error where there are any."""
        said = [line.rstrip()[:400] for line in (self.err if self.err.strip() else self.out).splitlines() if line.strip()]
        return "\n".join(said[-lines:])

    def why(self):
        """A sentence on how it ended, with the last line that it wrote."""
        if self.timed_out:
            how = f"ended after {self.seconds:.0f} s, its limit"
        elif self.code < 0:
            how = f"killed by {signal.Signals(-self.code).name}"
        else:
            how = f"exit code {self.code}"
        last = [line for line in (self.err + "\n" + self.out).splitlines() if line.strip()]
        said = [line for line in self.err.splitlines() if line.strip()] or last
        return f"{how}: {said[-1].strip()[:300]}" if said else how


def run(command, limit, env=None, cwd=None):
    """Runs a program and what it starts for at most `limit` seconds."""
    began = time.monotonic()
    if _ended.is_set():
        return Done(None, "", "", 0.0)
    try:
        child = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **GROUP,
        )
    except OSError as error:
        return recorded(command, env, Done(127, "", str(error), 0.0))
    code = None
    _running.add(child)
    try:
        out, err = child.communicate(timeout=max(limit, 0.1))
        code = child.returncode
    except subprocess.TimeoutExpired as late:
        end(child)
        try:
            out, err = child.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            # A driver that hangs holds its program in the kernel: the others are not to wait for it.
            out, err = late.stdout or b"", late.stderr or b""
    except BaseException:
        end(child)
        raise
    finally:
        _running.discard(child)
    text = [stream.decode(errors="replace") for stream in (out, err)]
    return recorded(command, env, Done(code, *text, time.monotonic() - began))


def recorded(command, env, done):
    """Leaves all that it wrote in the journal."""
    how = f"ended after {done.seconds:.1f} s, its limit" if done.timed_out else f"exit code {done.code} after {done.seconds:.1f} s"
    # What of the environment is Genie's own says which of two runs this was.
    told = [f"{name}={value}" for name, value in (env or {}).items() if name.startswith("GENIE_")]
    journal.add(f"{' '.join([*told, *map(str, command)])[:2000]}: {how}", out=done.out, err=done.err)
    return done


def end(child):
    """Ends a program that is the first of its group, and what it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def end_all():
    """Ends all that run, and lets none start behind them."""
    _ended.set()
    for child in list(_running):
        end(child)
