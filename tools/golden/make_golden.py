#!/usr/bin/env python3
"""Writes the golden files in tests/golden: what the transformers library computes, for Genie's tests to compare with.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install -r tools/golden/requirements.txt
    /tmp/golden/bin/python tools/golden/make_golden.py

It is run by hand when a case is added; the tests need only its output. It takes a minute or two and no GPU.
"""

import json
import pathlib
import sys

import gguf
import jinja2.sandbox
import numpy as np
import regex
import torch
import transformers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import smollm2
import synthetic

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
NEW_TOKENS = 64

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Networks move bytes; what they do not know is what the bytes mean. A weight that was sent once need not be sent again, "
    "a cache that grows by one row a step should stay where it is read, and only a token should travel. With this in mind, "
    "the first thing to decide is",
]
CHATS = ["What is the capital of France?", "  Write a haiku about  tabs\tand trailing spaces.  "]
TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\r\n\r\n",
    "Hello, world!",
    " leading and trailing ",
    "two  spaces   three",
    "tab\tand\nnew\n\n\nlines  \n  indented",
    "I'm you're he'd it's WE'LL They'VE don't",
    "1", "42", "3.14159", "1234567890", "1,000,000.00", "x86_64 2026-01-31 12:34:56",
    "０１２ ٣٤٥ ①②③ Ⅻ ½",
    "naïve café Ångström Straße ŒUVRE",
    "e\u0301 vs \u00e9",
    "Привет, мир! Γειά σου Κόσμε",
    "你好，世界。こんにちは 안녕하세요",
    "שלום עולם مرحبا بالعالم नमस्ते दुनिया",
    "😀 👍🏽 👩‍👩‍👧‍👦 🇫🇷 ☃️",
    "\u200b\u00a0\u3000\ufeff",
    "a\u0000b \u0001\u007f",
    "\U00010348 \U0001d54f \U000e0041",
    "SELECT * FROM t WHERE a<>'b' AND c>=10; -- ok?",
    "https://example.org/a/b?c=d&e=%20#f user@example.org",
    "{\"key\": [1, 2.5, true, null]}",
    "!!!???...---___===+++***///\\\\\\",
    "don’t “quote” — dash… ™©®",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "<|im_start|> <|im_end >",
    "<repo_name>genie<file_sep>a.py",
]


def main() -> None:
    torch.set_num_threads(2)
    OUT.mkdir(parents=True, exist_ok=True)
    write("dequant.json", dequant_cases())
    print("tokenizer")
    file = smollm2.File(smollm2.path())
    tokenizer = ByteLevelBpe(file)
    write("tokenizer_smollm2.json", tokenizer_cases(file, tokenizer))
    models = {"smollm2": smollm2_cases(file, tokenizer)}
    for name, (model, seed) in random_models().items():
        models[name] = random_cases(name, model, seed)
    for name, cases in models.items():
        write(f"{name}.json", cases)
    save_folder("tiny-llama", random_models()["llama-tiny"], shard="24KB")
    save_folder("tiny-gpt2", random_models()["gpt2-tiny"], shard="5GB")
    save_folder("tiny-gptj", random_models()["gptj-tiny"], shard="5GB")


def write(name: str, value) -> None:
    (OUT / name).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
    print("wrote", name, (OUT / name).stat().st_size, file=sys.stderr)


# Dequantisation: stored bytes and what the gguf package makes of them.


def dequant_cases() -> dict:
    types = gguf.GGMLQuantizationType
    scales_at = {types.Q4_0: [0], types.Q4_1: [0, 2], types.Q8_0: [0], types.Q6_K: [208], types.F16: [0], types.BF16: []}
    cases = {}
    for ty, scales in scales_at.items():
        elements, size = gguf.GGML_QUANT_SIZES[ty]
        blocks = max(2, 16 // elements)
        data = np.array([synthetic.mix(int(ty) << 32 | i) & 255 for i in range(blocks * size)], np.uint8).reshape(blocks, size)
        for at in scales:
            # A finite scale near 1/8, of either sign.
            data[:, at + 1] = data[:, at + 1] & 0x83 | 0x30
        if ty == types.BF16:
            data[:, 1] = data[:, 1] & 0x81 | 0x3E
        values = gguf.quants.dequantize(data, ty).reshape(-1)
        cases[ty.name] = {"bytes": data.tobytes().hex(), "values": floats(values)}
    return cases


# The tokenizer: byte-level BPE written out plainly, so that it shares no code with the library that Genie uses.


class ByteLevelBpe:
    PATTERN = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self, file: smollm2.File):
        assert file.get("tokenizer.ggml.pre") == "smollm"
        self.tokens = file.get("tokenizer.ggml.tokens")
        self.ids = {t: i for i, t in enumerate(self.tokens)}
        self.ranks = {tuple(m.split(" ")): i for i, m in enumerate(file.get("tokenizer.ggml.merges"))}
        control = [t for t, k in zip(self.tokens, file.get("tokenizer.ggml.token_type")) if k == 3]
        self.control = regex.compile("(" + "|".join(map(regex.escape, sorted(control, key=len, reverse=True))) + ")")
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in printable]
        self.letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}

    def encode(self, text: str) -> list[int]:
        ids = []
        for i, part in enumerate(self.control.split(text)):
            if i % 2 == 1:
                ids.append(self.ids[part])
                continue
            for digits_apart in regex.split(r"(\p{N})", part):
                for word in self.PATTERN.findall(digits_apart):
                    ids += [self.ids[t] for t in self.merge([self.letters[b] for b in word.encode()])]
        return ids

    def merge(self, parts: list[str]) -> list[str]:
        while len(parts) > 1:
            rank, at = min((self.ranks.get(pair, 1 << 60), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == 1 << 60:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts


def render_chat(file: smollm2.File, user: str) -> str:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(file.get("tokenizer.chat_template"))
    return template.render(messages=[{"role": "user", "content": user}], add_generation_prompt=True)


def tokenizer_cases(file: smollm2.File, tokenizer: ByteLevelBpe) -> dict:
    chats = [(user, render_chat(file, user)) for user in CHATS]
    return {
        "texts": [{"text": t, "ids": tokenizer.encode(t)} for t in TEXTS + PROMPTS],
        "chats": [{"user": user, "text": text, "ids": tokenizer.encode(text)} for user, text in chats],
    }


# Logits and greedy tokens.


def smollm2_cases(file: smollm2.File, tokenizer: ByteLevelBpe) -> dict:
    model = smollm2.model(file)
    prompts = [tokenizer.encode(p) for p in PROMPTS] + [tokenizer.encode(render_chat(file, CHATS[0]))]
    cases = [case("smollm2", model, ids) for ids in prompts]
    full = logits(model, prompts[0])[-1]
    (OUT / "smollm2_last.f32").write_bytes(full.astype("<f4").tobytes())
    return {"transformers": transformers.__version__, "cases": cases}


def random_models() -> dict:
    """Name: (model, seed). Every shape is repeated in tests/tests/models.rs."""
    llama = dict(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, rms_norm_eps=1e-5, attn_implementation="eager",
    )
    llama3 = dict(
        rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32,
    )
    tiny = GPT2Config(vocab_size=96, n_positions=160, n_embd=32, n_layer=2, n_head=4, attn_implementation="eager")
    small = GPT2Config(attn_implementation="eager")
    scaled = LlamaConfig(
        **llama, head_dim=12, rope_parameters=llama3, tie_word_embeddings=False, attention_bias=True, mlp_bias=True
    )
    # Half of a head is rotated.
    gptj = GPTJConfig(
        vocab_size=96, n_positions=160, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, attn_implementation="eager"
    )
    qwen = Qwen2Config(**llama, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=True)
    return {
        "gpt2-tiny": (GPT2LMHeadModel(tiny), 1),
        "gpt2-124m": (GPT2LMHeadModel(small), 2),
        "llama-tiny": (LlamaForCausalLM(scaled), 3),
        "qwen2-tiny": (Qwen2ForCausalLM(qwen), 4),
        "gptj-tiny": (GPTJForCausalLM(gptj), 5),
    }


def random_cases(name: str, model, seed: int) -> dict:
    synthetic.fill(model, seed)
    vocab = model.config.vocab_size
    prompts = [[synthetic.mix(seed * 1000 + i) % vocab for i in range(n)] for n in (1, 7, 72)]
    return {"transformers": transformers.__version__, "seed": seed, "cases": [case(name, model, ids) for ids in prompts]}


def case(name: str, model, ids: list[int]) -> dict:
    every = logits(model, ids)
    rows = sorted({0, len(ids) // 2, len(ids) - 1})
    greedy, margin = greedy_tokens(model, ids)
    print(f"{name}: {len(ids)} tokens, least greedy margin {margin:.5f}, continues {greedy[:8]}", file=sys.stderr)
    return {
        "prompt": ids,
        "positions": [position(row, every[row]) for row in rows],
        "greedy": greedy,
        # How far the best token was from the second best at the closest step, over the larger of 1 and the best.
        "least_margin": float(f"{margin:.6g}"),
    }


def position(row: int, values: np.ndarray) -> dict:
    """The 64 largest logits, and some fixed ones."""
    fixed = np.arange(0, len(values), max(1, len(values) // 64))
    indices = np.unique(np.concatenate([np.argsort(-values)[:64], fixed]))
    return {"position": row, "indices": indices.tolist(), "logits": floats(values[indices])}


def logits(model, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def greedy_tokens(model, ids: list[int]) -> tuple[list[int], float]:
    tokens, margin, past, step = [], float("inf"), None, ids
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            out = model(torch.tensor([step]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            best, second = out.logits[0, -1].topk(2).values.tolist()
            margin = min(margin, (best - second) / max(1.0, abs(best)))
            step = [int(out.logits[0, -1].argmax())]
            tokens += step
    return tokens, margin


def floats(values: np.ndarray) -> list[float]:
    """The shortest decimals that give the same f32."""
    return [float(str(np.float32(v))) for v in values]


# Model folders as the library writes them.


def save_folder(name: str, model_and_seed, shard: str) -> None:
    model, seed = model_and_seed
    folder = OUT / name
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    synthetic.fill(model, seed).save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for written in folder.iterdir():
        written.chmod(0o644)


if __name__ == "__main__":
    main()
