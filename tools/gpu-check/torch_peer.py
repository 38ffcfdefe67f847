#!/usr/bin/env python3
"""How fast PyTorch decodes a GPT-2 on this GPU: the transformers library as it is (eager), and compiled with CUDA graphs. Batch 1, bf16,
greedy. Beside them the floor: how long reading every weight once takes at the speed of a copy within the GPU's memory.

Prints one JSON line for each part, as soon as it is measured; {"part": ..., "error": ...} for one that fails. Needs torch 2.11 and
transformers 5, and no network: weights are random, or those of --model. Exit code 1 if a part failed.

tokens_s counts the tokens behind the first; they stay on the GPU until the last is there, which is as kind to PyTorch as can be.
"""

import argparse
import json
import statistics
import sys
import time

import random_model

COPY_BYTES = 2 << 30


def main():
    args = arguments()
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    peer = Peer(args, torch, transformers)
    parts = {"floor": peer.floor, "eager": peer.eager, "compiled": peer.compiled}
    failed = False
    for part in args.parts:
        try:
            say(part=part, **parts[part]())
        except Exception as error:  # Whatever one part dies of, the others are measured.
            failed = True
            say(part=part, error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:400])
    return 1 if failed else 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="a folder with config.json and model.safetensors; without it GPT-2-XL with random weights")
    parser.add_argument("--device", default="cuda", help="as PyTorch names it (default: cuda)")
    parser.add_argument("--prompt-tokens", type=int, default=72)
    parser.add_argument("--new-tokens", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3, help="turns that count, after one that does not (default: 3)")
    parser.add_argument("--parts", nargs="+", default=["floor", "eager", "compiled"], choices=["floor", "eager", "compiled"])
    return parser.parse_args()


def say(**line):
    print(json.dumps(line), flush=True)


class Peer:
    def __init__(self, args, torch, transformers):
        self.args, self.torch, self.transformers = args, torch, transformers
        self.device = torch.device(args.device)
        if args.model:
            made = transformers.GPT2LMHeadModel.from_pretrained(args.model, dtype=torch.bfloat16, local_files_only=True)
            self.model = made.to(self.device)
        else:
            torch.manual_seed(0)
            config = transformers.GPT2Config(**random_model.config(random_model.XL))
            torch.set_default_dtype(torch.bfloat16)
            with self.device:
                self.model = transformers.GPT2LMHeadModel(config)
            torch.set_default_dtype(torch.float32)
        self.model.eval()
        ids = random_model.prompt(self.model.config.vocab_size, args.prompt_tokens)
        self.prompt = torch.tensor([ids], device=self.device)

    def wait(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def floor(self):
        """Reading the weights once, at the speed of a copy. The position table is looked up, not read."""
        torch = self.torch
        read = sum(p.numel() * p.element_size() for p in self.model.parameters())
        read -= self.model.transformer.wpe.weight.numel() * self.model.transformer.wpe.weight.element_size()
        count = COPY_BYTES if self.device.type == "cuda" else COPY_BYTES >> 5
        source = torch.ones(count, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        times = []
        for turn in range(6):
            self.wait()
            began = time.perf_counter()
            for _ in range(8):
                target.copy_(source)
            self.wait()
            times.append((time.perf_counter() - began) / 8)
        # Every byte is read and written.
        rate = 2 * count / min(times[1:])
        return {
            "copy_gb_s": rate / 1e9,
            "weight_bytes": read,
            "tokens_s": rate / read,
            "torch": torch.__version__,
            "transformers": self.transformers.__version__,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
        }

    def eager(self):
        return self.measure(lambda: self.transformers.DynamicCache(config=self.model.config), self.model)

    def compiled(self):
        """Fixed shapes, so that a step is one CUDA graph: a cache of fixed size. The prompt runs as it is."""
        length = self.args.prompt_tokens + self.args.new_tokens
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        step = self.torch.compile(self.model, mode=mode, fullgraph=True)
        cache = self.transformers.StaticCache(config=self.model.config, max_cache_len=length)

        def fresh():
            # The same memory each time: a graph has its addresses.
            cache.reset()
            return cache

        # PyTorch goes on without graphs where it cannot make them, and only counts that.
        from torch._dynamo.utils import counters

        measured = self.measure(fresh, step)
        return {**measured, "graphs_skipped": counters["inductor"]["cudagraph_skips"]}

    def measure(self, cache, step):
        """Turns of a prompt and its decode steps, which `step` runs."""
        with self.torch.no_grad():
            # What compiles, does so here; a graph is recorded in the second turn at the latest.
            for _ in range(2):
                self.turn(cache(), step)
            turns = [self.turn(cache(), step) for _ in range(self.args.turns)]
        again = all(tokens == turns[0][2] for _, _, tokens in turns)
        return {
            "first_token_ms": 1e3 * statistics.median(first for first, _, _ in turns),
            "tokens_s": (self.args.new_tokens - 1) / statistics.median(rest for _, rest, _ in turns),
            "repeatable": again,
            "tokens": turns[0][2],
        }

    def turn(self, cache, step):
        """Seconds to the first token, seconds of the others, and all of them."""
        torch = self.torch
        self.wait()
        began = time.perf_counter()
        logits = self.model(self.prompt, past_key_values=cache, logits_to_keep=1).logits
        token = logits[:, -1].argmax(-1, keepdim=True)
        self.wait()
        first = time.perf_counter()
        made = [token]
        for _ in range(self.args.new_tokens - 1):
            if self.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            logits = step(token, past_key_values=cache).logits
            # A tensor of its own: the next replay writes over the logits.
            token = logits[:, -1].argmax(-1, keepdim=True)
            made.append(token)
        self.wait()
        rest = time.perf_counter() - first
        return first - began, rest, torch.cat(made, 1)[0].tolist()


if __name__ == "__main__":
    sys.exit(main())
