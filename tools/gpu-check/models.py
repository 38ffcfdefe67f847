"""Language models of true configuration: on a server, in process, and beside PyTorch on the same GPU."""

import json
import pathlib
import shutil
import statistics
import sys
import tempfile
import traceback

import host
import proc
import random_model
from genie import Broken, Server, call
from report import FAILED, LEFT_OUT, OK, Goal, Row

HERE = pathlib.Path(__file__).resolve().parent

READY_S = 60
PROMPT_TOKENS, NEW_TOKENS = 72, 50
LONG_PROMPT = 2048
SESSIONS = 8
ROUND_TRIP_US = 50
# Of a step's time, what one of its measures may take.
MOST_OF_A_STEP = 0.45
# Runs that count, after one that brings the model there.
TURNS = 3
# Tokens that the GPU's must have in common with the CPU's.
GREEDY_TOKENS = 64
# How the parts of PyTorch are put into processes, and the seconds that each may take: what one dies of, or takes too long for, does not take
# the others with it.
PEERS = [(["floor", "eager", "prefill"], 150), (["compiled"], 200), (["autotuned"], 240)]
# The server's kernels run one after another, where they would else begin before those before them have ended.
IN_TURN = {"GENIE_CUDA_OVERLAP": "0"}

STREAMED, FAR, SEVERAL = Goal(at_most=1.03), Goal(at_most=1.05), Goal(at_least=6)
PEER_GOALS = {
    "floor": Goal(at_least=0.6),
    "eager": Goal(at_least=2),
    "prefill": Goal(at_least=0.8),
    "compiled": Goal(at_least=1.2),
    "autotuned": Goal(at_least=1.2),
}


class Models:
    """`device` as `genie serve` names it; files with samples of how busy the GPU was go beside `page`. What is made for one step stays for
    later ones."""

    def __init__(self, programs, device, env, deadline, page):
        self.genie, self.device, self.env, self.deadline, self.page = programs / "genie", device, env, deadline, page
        self._folders = {}
        # By model: what Genie's steps found, which PyTorch's stand beside.
        self.tokens, self.decoded, self.prefilled = {}, {}, {}

    def folder(self, shape):
        """The model's files, made when they are first asked for."""
        if shape not in self._folders:
            needed = shape.weight_bytes * 9 // 8
            places = host.places()
            roomy = [place for place in places if shutil.disk_usage(place).free > needed]
            if not roomy:
                raise Broken(f"no room for a model of {needed >> 20} MiB in {' or '.join(places)}: set TMPDIR")
            folder = tempfile.mkdtemp(prefix="gpu-check-", dir=roomy[0])
            try:
                random_model.write(folder, shape)
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise Broken(f"writing a model of {needed >> 20} MiB to {roomy[0]}: {error}") from None
            self._folders[shape] = folder
        return self._folders[shape]

    def close(self):
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)

    # ---- Genie

    def decode(self, step, limit, shape):
        """A model that is resident on a server: tokens a second, and the same beside this process's own."""
        until = proc.Deadline(self.deadline.part(limit))
        try:
            self.folder(shape)
        except Broken as error:
            return [broken(step, shape.name, error)]
        most = limit * MOST_OF_A_STEP
        rows = self.served(step, shape, until, most, self.env, [self.streamed, self.in_process, self.long_prompt])
        return rows + self.served(step, shape, until, most, self.env | IN_TURN, [self.in_turn])

    def served(self, step, shape, until, most, env, measures):
        """Rows of measures, on one server; what breaks one may have broken the server, so that those behind it have another. One that
        hangs has `most` seconds."""
        rows, waiting, warned = [], list(measures), []
        while waiting:
            try:
                with Server(self.genie, self.device, env, min(READY_S, until.left())) as server:
                    failed = False
                    while waiting and not failed:
                        done, failed = self.attempt(waiting.pop(0), step, shape, server, proc.Deadline(until.part(most)))
                        rows += done
                    warned += server.warned()
            except Broken as error:
                rows.append(broken(step, f"{shape.name}: {named(waiting.pop(0))}", error))
        rows[0].notes += [f"{step}: {shape.name}: the server warned: {line}" for line in list(dict.fromkeys(warned))[:8]]
        return rows

    def attempt(self, measure, step, shape, server, until):
        """Rows of a measure, and whether it failed."""
        try:
            return measure(step, shape, server.uri, until), False
        except (Broken, LookupError, TypeError, ValueError, ArithmeticError) as error:
            log = getattr(error, "log", traceback.format_exc()) + f"\n{server.what}:\n{server.said()}"
            why = f"{error}" if isinstance(error, Broken) else repr(error)
            return [broken(step, f"{shape.name}: {named(measure)}", Broken(why, log))], True

    def streamed(self, step, shape, uri, until):
        """Tokens by the server alone, streamed."""
        first, runs, speed = self.spoken(shape, uri, until)
        self.tokens[shape], self.decoded[shape] = first["tokens"], speed
        to_first = 1e3 * statistics.median(run["first_token_s"] for run in runs)
        rate = first["upload_bytes"] / first["upload_s"] / 1e9
        odd = sum(run["tokens"] != first["tokens"] for run in runs)
        what = f"{shape.name}, random {shape.dtype}: prompt of {PROMPT_TOKENS}, {NEW_TOKENS} tokens over tcp"
        return [
            Row(step, what, f"{speed:.1f} tokens/s"),
            Row(step, f"{shape.name}: first token", f"{to_first:.1f} ms"),
            Row(step, f"{shape.name}: weights to the server, hashed", f"{rate:.2f} GB/s"),
            Row(step, f"{shape.name}: the same tokens each time", f"{TURNS - odd} of {TURNS} runs", outcome=FAILED if odd else OK),
        ]

    def spoken(self, shape, uri, until):
        """A first run, which brings the model there; those behind it, and the tokens a second of these."""
        prompt = random_model.prompt(shape.vocabulary, PROMPT_TOKENS)
        first, *runs = [self.generate(shape, uri, until, prompt, NEW_TOKENS) for _ in range(1 + TURNS)]
        return first, runs, statistics.median(run["tokens_s"] for run in runs)

    def in_turn(self, step, shape, uri, until):
        """Kernels one after another."""
        first, _, speed = self.spoken(shape, uri, until)
        overlapped, tokens = self.decoded.get(shape), self.tokens.get(shape)
        what = f"{shape.name}: the same with kernels one after another"
        notes = []
        if tokens is None:
            # What stands beside PyTorch is this, where nothing else ran.
            self.tokens[shape], self.decoded[shape] = first["tokens"], speed
            notes.append(f"{step}: {shape.name}: with overlap nothing was measured: what stands beside PyTorch is without it")
        elif tokens != first["tokens"]:
            notes.append(f"{step}: {what}: the first {in_common(tokens, first['tokens'])} of {NEW_TOKENS} tokens are those with overlap")
        return [
            Row(
                step,
                what,
                f"{speed:.1f} tokens/s",
                f"overlapped {overlapped:.1f}" if overlapped else "",
                overlapped / speed if overlapped else None,
                outcome=FAILED if tokens not in (None, first["tokens"]) else OK,
                notes=notes,
            )
        ]

    def generate(self, shape, uri, until, prompt, new_tokens, *more):
        words = " ".join(f"t{i}" for i in prompt)
        command = [self.genie, "--json", "generate", "--connect", uri, "--model", self.folder(shape)]
        command += ["--prompt", words, "--max-new-tokens", str(new_tokens), "--ignore-end", *more]
        outcome = call(command, until, self.env)
        if (outcome["prompt_tokens"], outcome["new_tokens"]) != (len(prompt), new_tokens):
            raise Broken(f"{outcome['prompt_tokens']} and {outcome['new_tokens']} tokens, not {len(prompt)} and {new_tokens}")
        return outcome

    def in_process(self, step, shape, uri, until):
        """Beside the same executor in process."""
        more = ["--sessions", str(SESSIONS), "--round-trip", str(ROUND_TRIP_US), "--turns", str(TURNS)]
        more += ["--utilisation", self.page.with_suffix(f".{step}.sm.csv")]
        found = self.bench(shape, uri, until, PROMPT_TOKENS, NEW_TOKENS, *more)
        far, several = found["far"], found["several"]
        # Where the relay's round trip is shorter than it should be, a step that waits for it has to pay for the rest as well.
        waited_ms = far["remote_decode_ms"] + max(0, ROUND_TRIP_US - far["round_trip_us"]) / 1e3
        here = f"in process {found['local_decode_ms']:.3f} ms"
        note = f"{step}: {shape.name}: the first {found['streamed_alike']} of {NEW_TOKENS} streamed tokens are those asked for one by one"
        rows = [
            Row(step, f"{shape.name}: streamed", f"{found['streamed_decode_ms']:.3f} ms a token", here, found["streamed_ratio"], STREAMED, notes=[note]),
            Row(
                step,
                f"{shape.name}: one request a token, {found['ahead']} ahead, round trip of {far['round_trip_us']:.0f} us",
                f"{far['ahead_decode_ms']:.3f} ms a token",
                f"in process {far['local_decode_ms']:.3f} ms",
                far["ahead_ratio"],
                FAR,
            ),
            Row(
                step,
                f"{shape.name}: one request a token, each waits, round trip of {far['round_trip_us']:.0f} us",
                f"{waited_ms:.3f} ms a token",
                f"in process {far['local_decode_ms']:.3f} ms",
                waited_ms / far["local_decode_ms"],
            ),
            Row(
                step,
                f"{shape.name}: one request a token, loopback",
                f"{found['remote_decode_ms']:.3f} ms a token",
                here,
                found["decode_ratio"],
            ),
            Row(
                step,
                f"{shape.name}: {several['sessions']} sessions",
                f"{several['tokens_s_all']:.1f} tokens/s",
                f"one {several['tokens_s_one']:.1f}",
                several["speedup"],
                SEVERAL,
            ),
        ]
        if found.get("avg_sm") is not None:
            rows.append(Row(step, f"{shape.name}: avg_sm of all that", f"{found['avg_sm']:.0f} %"))
        elif self.device != "cpu":
            rows.append(Row(step, f"{shape.name}: avg_sm", "NVML did not tell", outcome=LEFT_OUT))
        return rows

    def long_prompt(self, step, shape, uri, until):
        """A long prompt in one run."""
        length = min(LONG_PROMPT, shape.positions)
        found = self.bench(shape, uri, until, length, 0, "--sessions", "0", "--turns", "5")
        self.prefilled[shape] = found["remote_prefill_ms"]
        said, here = f"{found['remote_prefill_ms']:.2f} ms", f"in process {found['local_prefill_ms']:.2f} ms"
        return [Row(step, f"{shape.name}: prefill of {length}", said, here, found["prefill_ratio"])]

    def bench(self, shape, uri, until, prompt_tokens, new_tokens, *more):
        command = [self.genie, "--json", "bench", "decode", "--connect", uri, "--serve-device", self.device, "--model", self.folder(shape)]
        command += ["--prompt-tokens", str(prompt_tokens), "--new-tokens", str(new_tokens), *more]
        return call(command, until, self.env)

    def greedy(self, step, limit, shape):
        """The likeliest tokens in f32, on the device and on the CPU."""
        until = proc.Deadline(self.deadline.part(limit))
        prompt = random_model.prompt(shape.vocabulary, PROMPT_TOKENS)
        what = f"{shape.name}, f32: the CPU device's tokens"
        tokens = []
        for device in ("cpu", self.device):
            try:
                with Server(self.genie, device, self.env, min(READY_S, until.left())) as server:
                    tokens.append(self.generate(shape, server.uri, until, prompt, GREEDY_TOKENS, "--dtype", "f32")["tokens"])
            except Broken as error:
                return [broken(step, f"{what} ({device})", error)]
        same = in_common(*tokens)
        return [Row(step, what, f"the first {same} of {GREEDY_TOKENS}", outcome=OK if same == GREEDY_TOKENS else FAILED)]

    # ---- PyTorch

    def torch(self, step, limit, shape):
        """The same model by PyTorch on the same GPU, and what the GPU's memory gives."""
        until = proc.Deadline(self.deadline.part(limit))
        try:
            command = [sys.executable, HERE / "torch_peer.py", "--model", self.folder(shape), "--device", self.device]
        except Broken as error:
            return [broken(step, shape.name, error)]
        command += ["--prompt-tokens", str(PROMPT_TOKENS), "--new-tokens", str(NEW_TOKENS)]
        command += ["--prefill-tokens", str(min(LONG_PROMPT, shape.positions)), "--parts"]
        rows = []
        for parts, seconds in PEERS:
            # As its user runs it: what helps Genie find a library is not for it.
            seconds = until.part(seconds)
            done = proc.run([*command, *parts, "--limit", f"{seconds:.0f}"], seconds, host.peers_environment())
            lines = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
            found = {line["part"]: line for line in lines}
            if not found and "No module named" in done.err:
                return [Row(step, f"{shape.name}: PyTorch", done.err.strip().splitlines()[-1], outcome=LEFT_OUT)]
            for part in parts:
                rows.append(self.peer(step, shape, part, found.get(part), done))
        return rows

    def peer(self, step, shape, part, found, done):
        """Genie beside this part: the ratio is Genie's speed by its."""
        what = {
            "eager": f"{shape.name}: transformers, eager",
            "compiled": f"{shape.name}: transformers, torch.compile with CUDA graphs",
            "autotuned": f"{shape.name}: the same, max-autotune",
            "floor": f"{shape.name}: weights and cache read once a token",
            "prefill": f"{shape.name}: transformers, prefill of {min(LONG_PROMPT, shape.positions)}",
        }[part]
        if found is None or "error" in found:
            why = found["error"] if found else done.why()
            # It has what time the others leave, and is no more than a second try at the same peer.
            outcome = LEFT_OUT if part == "autotuned" and found is None and done.timed_out else FAILED
            return Row(step, what, f"not measured: {why}", outcome=outcome, log=done.tail() if outcome == FAILED else "")
        return getattr(self, "beside_" + {"floor": "floor", "prefill": "prefill"}.get(part, "decode"))(step, shape, part, what, found)

    def beside_floor(self, step, shape, part, what, found):
        cached = shape.cache_bytes(PROMPT_TOKENS + NEW_TOKENS // 2)
        rate = max(found["copy_gb_s"], found["read_gb_s"])
        speed = rate * 1e9 / (shape.step_bytes + cached)
        ours = self.decoded.get(shape)
        note = f"{step}: {what}: a copy within the GPU's memory moves {found['copy_gb_s']:.0f} GB/s, reads and writes together, and a sum over"
        note += f" it reads {found['read_gb_s']:.0f} GB/s: the faster counts, for {shape.step_bytes / 1e6:.0f} MB of weights and {cached / 1e6:.0f} MB of cache"
        return Row(step, what, f"{speed:.1f} tokens/s", genies(ours), ours / speed if ours else None, PEER_GOALS[part], notes=[note])

    def beside_decode(self, step, shape, part, what, found):
        ours, notes, outcome = self.decoded.get(shape), [], OK
        if "attention" in found:
            notes.append(f"{step}: {what}: attention is {found['attention']}")
        if found.get("graphs_skipped"):
            outcome = FAILED
            notes.append(f"{step}: {what}: PyTorch left {found['graphs_skipped']} graphs out: this is not its best")
        if found.get("graph_breaks"):
            notes.append(f"{step}: {what}: PyTorch could not compile a step as one graph: {found['graph_breaks']}")
        if found.get("compiled_late"):
            outcome = FAILED
            notes.append(f"{step}: {what}: PyTorch compiled {found['compiled_late']} times while it was measured: this is not its best")
        if "seconds" in found:
            notes.append(f"{step}: {what}: it took {found['seconds']:.0f} s to compile and measure")
        if shape in self.tokens:
            same = in_common(self.tokens[shape], found["tokens"])
            notes.append(f"{step}: {what}: the first {same} of {NEW_TOKENS} tokens are Genie's")
        ratio = ours / found["tokens_s"] if ours else None
        return Row(step, what, f"{found['tokens_s']:.1f} tokens/s", genies(ours), ratio, PEER_GOALS[part], outcome, notes=notes)

    def beside_prefill(self, step, shape, part, what, found):
        ours = self.prefilled.get(shape)
        notes = [f"{step}: {what}: attention is {found['attention']}"]
        beside = f"Genie {ours:.2f} ms" if ours else ""
        ratio = found["prefill_ms"] / ours if ours else None
        return Row(step, what, f"{found['prefill_ms']:.2f} ms", beside, ratio, PEER_GOALS[part], notes=notes)


def named(measure):
    """The first line of its description, as the name of a row."""
    return measure.__doc__.splitlines()[0].rstrip(".").lower()


def broken(step, what, error):
    return Row(step, what, f"not measured: {error}", outcome=FAILED, log=error.log)


def genies(tokens_s):
    return f"Genie {tokens_s:.1f}" if tokens_s else ""


def in_common(ours, theirs):
    """How many of the first tokens are the same."""
    return next((i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), min(len(ours), len(theirs)))
