#!/usr/bin/env python3
"""How fast PyTorch runs a language model on this GPU, by the transformers library: batch 1, greedy, with its cache of keys and values.

  floor      what the GPU's memory gives: a copy within it (reads and writes counted), and a sum over it (reads)
  eager      the library as it is
  compiled   torch.compile(mode="reduce-overhead"): every decode step is one CUDA graph, the cache has a fixed size
  autotuned  the same with mode="max-autotune"
  prefill    a long prompt in one run

Prints one JSON line for each part, as soon as it is measured; {"part": ..., "error": ...} for one that fails. Needs torch 2.11,
transformers 5, and the folder of a model; no network. Exit code 1 if a part failed.

tokens_s counts the tokens behind the first; they stay on the GPU until the last is there, which is as kind to PyTorch as can be. GPT-J has no
attention by SDPA in the library: it is put in here, and where both are measured the faster one counts.
"""

import argparse
import faulthandler
import inspect
import json
import statistics
import sys
import time
import traceback

import random_model

COPY_BYTES = 2 << 30
LAST_WORDS_S = 3
COMPILED = {"compiled": "reduce-overhead", "autotuned": "max-autotune"}
PARTS = ["floor", "eager", "compiled", "autotuned", "prefill"]


def main():
    args = arguments()
    if args.limit > LAST_WORDS_S:
        # What it was about when whoever started it lost patience.
        faulthandler.dump_traceback_later(args.limit - LAST_WORDS_S, exit=False)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    peer = Peer(args, torch, transformers)
    failed = False
    for part in args.parts:
        try:
            say(part=part, **(peer.compiled(COMPILED[part]) if part in COMPILED else getattr(peer, part)()))
        except Exception as error:  # Whatever one part dies of, the others are measured.
            failed = True
            traceback.print_exc()
            say(part=part, error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:400])
    return 1 if failed else 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder with config.json and model.safetensors")
    parser.add_argument("--device", default="cuda", help="as PyTorch names it (default: cuda)")
    parser.add_argument("--prompt-tokens", type=int, default=72)
    parser.add_argument("--new-tokens", type=int, default=50)
    parser.add_argument("--prefill-tokens", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=3, help="turns that count, after some that do not (default: 3)")
    parser.add_argument("--limit", type=float, default=0, help="seconds after which it will be ended: shortly before, it says where it is")
    parser.add_argument("--parts", nargs="+", default=["floor", "eager", "compiled"], choices=PARTS)
    return parser.parse_args()


def say(**line):
    print(json.dumps(line), flush=True)


class Peer:
    def __init__(self, args, torch, transformers):
        self.args, self.torch, self.transformers = args, torch, transformers
        self.device = torch.device(args.device)
        self._model = None

    @property
    def model(self):
        """In the type that its folder says; loaded when it is first asked for."""
        if self._model is None:
            auto = self.transformers.AutoModelForCausalLM
            self._model = auto.from_pretrained(self.args.model, dtype="auto", local_files_only=True).to(self.device).eval()
        return self._model

    def prompt(self, length):
        return self.torch.tensor([random_model.prompt(self.model.config.vocab_size, length)], device=self.device)

    def wait(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def floor(self):
        torch = self.torch
        count = COPY_BYTES if self.device.type == "cuda" else COPY_BYTES >> 5
        source = torch.ones(count // 4, dtype=torch.float32, device=self.device)
        target = torch.empty_like(source)
        return {
            # Every byte is read and written.
            "copy_gb_s": 2 * count / self.quickest(lambda: target.copy_(source)) / 1e9,
            "read_gb_s": count / self.quickest(source.sum) / 1e9,
            "torch": torch.__version__,
            "transformers": self.transformers.__version__,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
        }

    def quickest(self, work):
        """Seconds of the quickest turn, of some that do the work often."""
        times = []
        for _ in range(6):
            self.wait()
            began = time.perf_counter()
            for _ in range(8):
                work()
            self.wait()
            times.append((time.perf_counter() - began) / 8)
        return min(times[1:])

    def eager(self):
        fresh = lambda: self.transformers.DynamicCache(config=self.model.config)
        return max(self.by_attention(lambda: self.measure(fresh, self.model), grows=True), key=lambda found: found["tokens_s"])

    def prefill(self):
        return min(self.by_attention(self.measure_prefill, grows=True), key=lambda found: found["prefill_ms"])

    def compiled(self, mode):
        """Fixed shapes, so that a step is one CUDA graph. The prompt runs as it is."""
        if self.device.type != "cuda":
            mode = "default"
        if self.is_gptj():
            put_sdpa_into_gptj(self.torch, grows=False)
        try:
            return self.measure_compiled(mode, fullgraph=True)
        except self.torch._dynamo.exc.Unsupported as error:
            self.torch._dynamo.reset()
            return {**self.measure_compiled(mode, fullgraph=False), "graph_breaks": str(error).splitlines()[0][:300]}

    def measure_compiled(self, mode, fullgraph):
        step = self.torch.compile(self.model, mode=mode, fullgraph=fullgraph)
        # Attention with a mask is fastest where its rows begin at multiples of eight.
        length = -(-(self.args.prompt_tokens + self.args.new_tokens) // 8) * 8
        cache = self.transformers.StaticCache(config=self.model.config, max_cache_len=length)

        def fresh():
            # The same memory each time: a graph has its addresses.
            cache.reset()
            return cache

        # PyTorch goes on without graphs where it cannot make them, and only counts that.
        from torch._dynamo.utils import counters

        began = time.perf_counter()
        measured = self.measure(fresh, step, then=lambda: dict(counters["stats"]))
        made, at_last = measured.pop("then"), dict(counters["stats"])
        return {
            **measured,
            "seconds": time.perf_counter() - began,
            "graphs_skipped": counters["inductor"]["cudagraph_skips"],
            "compiled_late": at_last.get("unique_graphs", 0) - made.get("unique_graphs", 0),
        }

    def is_gptj(self):
        return self.model.config.model_type == "gptj"

    def by_attention(self, measure, grows):
        """What is measured with each way to compute attention that there is."""
        found = [{**measure(), "attention": "the library's"}]
        if self.is_gptj():
            take_out = put_sdpa_into_gptj(self.torch, grows)
            try:
                found.append({**measure(), "attention": "SDPA, put in"})
            finally:
                take_out()
        return found

    def measure_prefill(self):
        torch = self.torch
        prompt, times = self.prompt(self.args.prefill_tokens), []
        with torch.no_grad():
            for turn in range(2 + self.args.turns):
                cache = self.transformers.DynamicCache(config=self.model.config)
                self.wait()
                began = time.perf_counter()
                logits = self.model(prompt, past_key_values=cache, logits_to_keep=1).logits
                logits[:, -1].argmax(-1).item()
                times.append(time.perf_counter() - began)
        return {"prefill_ms": 1e3 * statistics.median(times[2:]), "tokens": self.args.prefill_tokens}

    def measure(self, cache, step, then=lambda: None):
        """Turns of a prompt and its decode steps, which `step` runs. `then` is asked between the turns that do not count and those that do."""
        prompt = self.prompt(self.args.prompt_tokens)
        with self.torch.no_grad():
            # What compiles, does so here; a graph is recorded in the second turn at the latest.
            for _ in range(2):
                self.turn(prompt, cache(), step)
            between = then()
            turns = [self.turn(prompt, cache(), step) for _ in range(self.args.turns)]
        again = all(tokens == turns[0][2] for _, _, tokens in turns)
        return {
            "first_token_ms": 1e3 * statistics.median(first for first, _, _ in turns),
            "tokens_s": (self.args.new_tokens - 1) / statistics.median(rest for _, rest, _ in turns),
            "repeatable": again,
            "tokens": turns[0][2],
            **({"then": between} if between is not None else {}),
        }

    def turn(self, prompt, cache, step):
        """Seconds to the first token, seconds of the others, and all of them."""
        torch = self.torch
        # Some releases work positions out of the cache if nobody says them, which stops a graph.
        told = "cache_position" in inspect.signature(self.model.forward).parameters
        positions = torch.arange(self.args.prompt_tokens + self.args.new_tokens, device=self.device)

        def run(model, ids, begin):
            more = {"cache_position": positions[begin : begin + ids.shape[1]]} if told else {}
            return model(ids, past_key_values=cache, logits_to_keep=1, **more).logits[:, -1].argmax(-1, keepdim=True)

        self.wait()
        began = time.perf_counter()
        token = run(self.model, prompt, 0)
        self.wait()
        first = time.perf_counter()
        made = [token]
        for i in range(self.args.new_tokens - 1):
            if self.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            # A tensor of its own: the next replay writes over the logits.
            token = run(step, token, self.args.prompt_tokens + i)
            made.append(token)
        self.wait()
        rest = time.perf_counter() - first
        return first - began, rest, torch.cat(made, 1)[0].tolist()


def put_sdpa_into_gptj(torch, grows):
    """GPT-J's attention by scaled_dot_product_attention, in its own type. `grows`: the cache holds nothing but what was read, so that no
    mask is needed, which lets the fastest kernels in; a cache of fixed size needs one. Returns what takes it out again."""
    from transformers.models.gptj import modeling_gptj

    def attend(module, query, key, value, attention_mask=None, *_):
        whole = query.shape[-2] == key.shape[-2] > 1
        unmasked = whole or (grows and query.shape[-2] == 1)
        mask = None if unmasked or attention_mask is None else attention_mask
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=whole)
        return out, None

    kind = modeling_gptj.GPTJAttention
    own, kind._attn = kind._attn, attend
    return lambda: setattr(kind, "_attn", own)


if __name__ == "__main__":
    sys.exit(main())
