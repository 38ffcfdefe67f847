"""What is measured beside something: copies over the bus, transfers, decoding."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import proc
import random_model
from report import FAILED, LEFT_OUT, OK, Row

HERE = pathlib.Path(__file__).resolve().parent

PINNED = re.compile(r"pinned copies, (.+): ([\d.]+) GB/s to it, ([\d.]+) GB/s from it")
PINNED_TEST = "copies::the_bus_is_measured_and_everything_given_back"

SIZE = "64M"
# Of each row of a transfer, beside as long of its floor.
TRANSFER_S = 1.5
READY_S = 60
PROMPT_TOKENS, NEW_TOKENS = 72, 50
# Runs that count, after one that brings the model there.
TURNS = 3


class Broken(Exception):
    """A measurement could not be made: why."""


class Measurements:
    """`device` as `genie serve` names it. Keeps what later steps stand beside."""

    def __init__(self, programs, device, env, deadline, shape, torch_device):
        self.genie, self.gpu_tests = programs / "genie", programs / "gpu"
        self.device, self.env, self.deadline = device, env, deadline
        self.shape, self.torch_device = shape, torch_device
        self.pinned = None
        self.tokens = None
        self.decoded = None
        self._model = None

    def pcie(self, step, limit):
        """Pinned memory to the GPU and back, with nothing else: the most that a transfer can have."""
        command = [self.gpu_tests, PINNED_TEST, "--exact", "--nocapture"]
        done = proc.run(command, self.deadline.part(limit), self.env)
        found = PINNED.findall(done.out)
        if done.code != 0 or not found:
            return [Row(step, "pinned copies", "not measured", state=FAILED, notes=[f"{step}: {done.why()}"])]
        # The stand-in on the CPU is the first, the GPU the last.
        name, to, back = found[-1]
        self.pinned = {"put": float(to), "get": float(back)}
        return [
            Row(step, f"pinned memory to {name}", f"{self.pinned['put']:.1f} GB/s"),
            Row(step, f"{name} to pinned memory", f"{self.pinned['get']:.1f} GB/s"),
        ]

    def transfer(self, step, limit):
        """Puts and gets of 64 MiB to the device and to the CPU. The slower of the CPU's transfer and the pinned copy is the bound."""
        until = proc.Deadline(self.deadline.part(limit))
        plans = [("tcp", "heap", "put,get"), ("shm", "heap", "put,get"), ("shm", "shared", "put")]
        rows = []
        for link, memory, ops in plans:
            by_device, notes = {}, []
            # The CPU first: what it can is worth knowing where the device fails.
            for device in dict.fromkeys(["cpu", self.device]):
                try:
                    by_device[device] = self.moved(device, link, memory, ops, until)
                except Broken as error:
                    notes.append(f"{step}: {link}, {memory}, {device}: {error}")
            for op in ops.split(","):
                rows.append(self.transfer_row(step, (link, memory, op), by_device, notes))
                notes = []
        return rows

    def moved(self, device, link, memory, ops, until):
        """GB/s by op."""
        command = [self.genie, "--json", "bench", "transfer", "--serve", "--serve-device", device, "--links", link]
        command += ["--op", ops, "--sizes", SIZE, "--memory", memory, "--time", str(TRANSFER_S), "--no-floor"]
        done = proc.run(command, until.left(), self.env)
        if done.code != 0:
            raise Broken(done.why())
        return {row["op"]: row for row in json.loads(done.out)}

    def transfer_row(self, step, what, by_device, notes):
        link, memory, op = what
        name = f"{op} {SIZE} over {link}" + (", shared tensor" if memory == "shared" else "")
        on_cpu, here = (by_device.get(device, {}).get(op) for device in ("cpu", self.device))
        beside = [(f"CPU device {on_cpu['gb_s']:.2f}", on_cpu["gb_s"])] if on_cpu else []
        # A tensor that lies in shared memory is passed, not moved, to the CPU: that is no bound for a GPU.
        bounds = [] if memory == "shared" else [speed for _, speed in beside]
        if self.pinned:
            beside.append((f"pinned copy {self.pinned[op]:.2f}", self.pinned[op]))
            bounds.append(self.pinned[op])
        said = ", ".join(text for text, _ in beside)
        if here is None:
            return Row(step, name, "not measured", said, state=FAILED, notes=notes)
        copied = here.get("copied_per_byte")
        notes = [*notes, f"{step}: {name}: {copied:.3f} bytes copied in user space for each"] if copied else notes
        result = f"{here['gb_s']:.2f} GB/s"
        return Row(step, name, result, said, here["gb_s"] / min(bounds) if bounds else None, OK, notes=notes)

    def decode(self, step, limit):
        """A GPT-2 with random weights, resident on a server: tokens a second, streamed and asked for one by one."""
        until = proc.Deadline(self.deadline.part(limit))
        try:
            with Server(self.genie, self.device, self.env, min(READY_S, until.left())) as uri:
                first = self.generate(uri, until)
                runs = [self.generate(uri, until) for _ in range(TURNS)]
                single = [self.generate(uri, until, "--per-step") for _ in range(TURNS)]
        except Broken as error:
            return [Row(step, self.model_name(), "not measured", state=FAILED, notes=[f"{step}: {error}"])]
        self.tokens = first["tokens"]
        self.decoded = statistics.median(run["tokens_s"] for run in runs)
        one_by_one = statistics.median(run["tokens_s"] for run in single)
        to_first = 1e3 * statistics.median(run["first_token_s"] for run in runs)
        odd = sum(run["tokens"] != self.tokens for run in [*runs, *single])
        rate = first["upload_bytes"] / first["upload_s"] / 1e9
        rows = [
            Row(step, f"{self.model_name()}, streamed", f"{self.decoded:.1f} tokens/s"),
            Row(step, "one request a token", f"{one_by_one:.1f} tokens/s", f"streamed {self.decoded:.1f}", one_by_one / self.decoded),
            Row(step, f"first token, prompt of {PROMPT_TOKENS}", f"{to_first:.1f} ms"),
            Row(step, "weights to the server, hashed", f"{rate:.2f} GB/s"),
        ]
        if odd:
            text = f"{odd} of {len(runs) + len(single)} runs gave other tokens than the first"
            rows.append(Row(step, "the same tokens each time", text, state=FAILED))
        return rows

    def generate(self, uri, until, *more):
        words = " ".join(f"t{i}" for i in random_model.prompt(self.shape["vocab_size"], PROMPT_TOKENS))
        command = [self.genie, "--json", "generate", "--connect", uri, "--model", self.model(), "--kv-dtype", "bf16"]
        command += ["--prompt", words, "--max-new-tokens", str(NEW_TOKENS), "--ignore-end", *more]
        done = proc.run(command, until.left(), self.env)
        if done.code != 0:
            raise Broken(done.why())
        outcome = json.loads(done.out)
        if (outcome["prompt_tokens"], outcome["new_tokens"]) != (PROMPT_TOKENS, NEW_TOKENS):
            raise Broken(f"{outcome['prompt_tokens']} and {outcome['new_tokens']} tokens, not {PROMPT_TOKENS} and {NEW_TOKENS}")
        return outcome

    def torch(self, step, limit):
        """The same model by PyTorch on the same GPU, and the floor: reading all weights once a token."""
        command = [sys.executable, HERE / "torch_peer.py", "--model", self.model(), "--device", self.torch_device]
        command += ["--prompt-tokens", str(PROMPT_TOKENS), "--new-tokens", str(NEW_TOKENS)]
        done = proc.run(command, self.deadline.part(limit), self.env)
        lines = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
        parts = {line["part"]: line for line in lines}
        if not parts and "No module named" in done.err:
            return [Row(step, "PyTorch", done.err.strip().splitlines()[-1], state=LEFT_OUT)]
        return [self.peer_row(step, name, parts.get(name), done) for name in ("eager", "compiled", "floor")]

    def peer_row(self, step, name, part, done):
        """Genie beside this: the ratio is Genie's tokens/s by its."""
        what = {
            "eager": "transformers, eager",
            "compiled": "transformers, torch.compile with CUDA graphs",
            "floor": "every weight read once a token",
        }[name]
        if part is None or "error" in part:
            return Row(step, what, "not measured", state=FAILED, notes=[f"{step}: {what}: {part['error'] if part else done.why()}"])
        notes, state = [], OK
        if name == "floor":
            notes.append(f"{step}: a copy within the GPU's memory moves {part['copy_gb_s']:.0f} GB/s, reads and writes together")
        if part.get("graphs_skipped"):
            state = FAILED
            notes.append(f"{step}: {what}: PyTorch left {part['graphs_skipped']} graphs out: this is not its best")
        if self.tokens and "tokens" in part:
            same = next((i for i, pair in enumerate(zip(self.tokens, part["tokens"])) if pair[0] != pair[1]), NEW_TOKENS)
            notes.append(f"{step}: {what}: the first {same} of {NEW_TOKENS} tokens are Genie's")
        beside = f"Genie {self.decoded:.1f}" if self.decoded else ""
        ratio = self.decoded / part["tokens_s"] if self.decoded else None
        return Row(step, what, f"{part['tokens_s']:.1f} tokens/s", beside, ratio, state, notes=notes)

    def model_name(self):
        return "GPT-2-XL, random bf16" if self.shape == random_model.XL else "tiny GPT-2, random bf16"

    def model(self):
        """The model's folder, made when it is first asked for."""
        if self._model is None:
            needed = random_model.weight_bytes(self.shape) * 5 // 4
            places = [place for place in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(place) and os.access(place, os.W_OK)]
            roomy = [place for place in places if shutil.disk_usage(place).free > needed]
            if not roomy:
                raise Broken(f"no room for a model of {needed >> 20} MiB in {' or '.join(places)}: set TMPDIR")
            self._model = tempfile.mkdtemp(prefix="gpu-check-", dir=roomy[0])
            random_model.write(self._model, self.shape)
        return self._model

    def close(self):
        if self._model is not None:
            shutil.rmtree(self._model, ignore_errors=True)


class Server(contextlib.AbstractContextManager):
    """`genie serve`, which ends with its standard input. Its address is what `with` gives."""

    def __init__(self, genie, device, env, limit):
        command = [genie, "--json", "serve", "--listen", "tcp://127.0.0.1:0", "--device", device, "--with-parent"]
        self.what = f"genie serve --device {device}"
        self.log = tempfile.TemporaryFile()
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=self.log, start_new_session=True)
        self.limit = limit

    def __enter__(self):
        lines = []
        reader = threading.Thread(target=lambda: lines.append(self.child.stdout.readline()), daemon=True)
        reader.start()
        reader.join(self.limit)
        if not lines or not lines[0].strip():
            self.stop()
            self.log.seek(0)
            said = [line for line in self.log.read().decode(errors="replace").splitlines() if line.strip()]
            raise Broken(f"{self.what} did not get ready: {said[-1] if said else 'it said nothing'}")
        return json.loads(lines[0])["uri"]

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()
        until = time.monotonic() + 10
        while self.child.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        proc.end(self.child)
        self.child.wait()
