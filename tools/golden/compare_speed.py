#!/usr/bin/env python3
"""Times SmolLM2-135M-Instruct in the transformers library on the CPU: the figures that docs/performance.md compares with.

    /tmp/golden/bin/python tools/golden/compare_speed.py [--threads 2] [--trials 5]

(For the virtual environment see make_golden.py.) Prints one JSON object; times are medians over the trials, in milliseconds.
Run it on a quiet machine, right before or after Genie's own measurement.
"""

import argparse
import json
import statistics
import time

import torch
import transformers

import smollm2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=72)
    parser.add_argument("--new-tokens", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    file = smollm2.File(smollm2.path())
    prompt = torch.tensor([[(i * 7919) % 49152 for i in range(1, options.prompt_tokens + 1)]])
    results = {}
    for name, dtype in {"f32": torch.float32, "bf16": torch.bfloat16}.items():
        model = smollm2.model(file, dtype, attention="sdpa")
        run(model, prompt, options.new_tokens)  # the first run allocates
        trials = [run(model, prompt, options.new_tokens) for _ in range(options.trials)]
        results[name] = {
            "prefill_ms": round(1e3 * statistics.median(t[0] for t in trials), 2),
            "decode_ms_per_token": round(1e3 * statistics.median(t[1] for t in trials), 2),
        }
    about = {"torch": torch.__version__, "transformers": transformers.__version__, **vars(options)}
    print(json.dumps(about | results))


def run(model, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of the prefill, and of one decode step on average. Greedy, without the overhead of `generate`."""
    with torch.inference_mode():
        start = time.perf_counter()
        out = model(prompt, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        prefilled = time.perf_counter()
        for _ in range(new_tokens):
            out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
        return prefilled - start, (time.perf_counter() - prefilled) / new_tokens


if __name__ == "__main__":
    main()
