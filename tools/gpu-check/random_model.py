"""Folders with language models of true configuration and random weights, as Genie and the transformers library read them. No trained ones
of these sizes need to be fetched: how fast a model decodes does not depend on what its weights are."""

import dataclasses
import json
import pathlib
import random
import struct


@dataclasses.dataclass(frozen=True)
class Shape:
    """A configuration. `power`: matrices hold numbers from 2^power to twice that, of either sign, so that attention matters to what comes
    out and nothing overflows."""

    name: str
    family: str
    dtype: str
    width: int
    layers: int
    heads: int
    positions: int
    vocabulary: int
    power: int
    rotary: int = 0

    @property
    def weight_bytes(self):
        """Of all tensors."""
        return sum(2 * count(dims) for _, dims in tensors(self))

    @property
    def step_bytes(self):
        """Of the tensors that a decode step reads whole. It looks one row up in a table of positions, and in an embedding that is not the
        head's as well."""
        looked_up = ["wpe."] if self.family == "gpt2" else ["wte."]
        return sum(2 * count(dims) for name, dims in tensors(self) if not any(part in name for part in looked_up))

    def cache_bytes(self, tokens):
        """Of keys and values of so many tokens, two bytes each."""
        return 2 * 2 * self.layers * self.width * tokens


XL = Shape("GPT-2-XL", "gpt2", "bf16", width=1600, layers=48, heads=25, positions=1024, vocabulary=50257, power=-5)
SMALL = Shape("GPT-2", "gpt2", "bf16", width=768, layers=12, heads=12, positions=1024, vocabulary=50257, power=-5)
SIX_B = Shape("GPT-J-6B", "gptj", "f16", width=4096, layers=28, heads=16, positions=2048, vocabulary=50400, power=-6, rotary=64)
# For rehearsals.
TINY = Shape("tiny GPT-2", "gpt2", "bf16", width=64, layers=2, heads=4, positions=160, vocabulary=257, power=-5)
TINY_J = Shape("tiny GPT-J", "gptj", "f16", width=64, layers=2, heads=2, positions=160, vocabulary=257, power=-4, rotary=16)

# As many random numbers are drawn; tensors are pieces of them, each from another place.
BLOCK = 8 << 20
# Prime, so that no two tensors begin at the same place.
STRIDE = 1_299_709
# Biases are that many powers of two below matrices.
BELOW = 4


@dataclasses.dataclass(frozen=True)
class Format:
    """Of 16 bits: bits of the mantissa, what is added to the exponent, its name in a safetensors file, and in a config.json."""

    mantissa: int
    bias: int
    stored: str
    named: str

    def bits(self, power):
        """Of 2^power."""
        return (power + self.bias) << self.mantissa


FORMATS = {"bf16": Format(7, 127, "BF16", "bfloat16"), "f16": Format(10, 15, "F16", "float16")}


def config(shape):
    """config.json."""
    common = {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "dtype": FORMATS[shape.dtype].named,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_positions": shape.positions,
        "vocab_size": shape.vocabulary,
    }
    if shape.family == "gptj":
        own = {"architectures": ["GPTJForCausalLM"], "model_type": "gptj", "rotary_dim": shape.rotary, "tie_word_embeddings": False}
    else:
        own = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "tie_word_embeddings": True}
    return {**own, **common}


def tensors(shape):
    """Names and dimensions, as the transformers library has them."""
    return gptj_tensors(shape) if shape.family == "gptj" else gpt2_tensors(shape)


def gpt2_tensors(shape):
    """Linear weights are [in, out]."""
    width = shape.width
    yield "transformer.wte.weight", (shape.vocabulary, width)
    yield "transformer.wpe.weight", (shape.positions, width)
    for i in range(shape.layers):
        for name, rows, columns in [
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ]:
            yield f"transformer.h.{i}.{name}.weight", (rows, columns)
            yield f"transformer.h.{i}.{name}.bias", (columns,)
        yield from norm(f"transformer.h.{i}.ln_1", width)
        yield from norm(f"transformer.h.{i}.ln_2", width)
    yield from norm("transformer.ln_f", width)


def gptj_tensors(shape):
    """Linear weights are [out, in]."""
    width = shape.width
    yield "transformer.wte.weight", (shape.vocabulary, width)
    for i in range(shape.layers):
        yield from norm(f"transformer.h.{i}.ln_1", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"transformer.h.{i}.attn.{name}.weight", (width, width)
        for name, outputs, inputs in [("fc_in", 4 * width, width), ("fc_out", width, 4 * width)]:
            yield f"transformer.h.{i}.mlp.{name}.weight", (outputs, inputs)
            yield f"transformer.h.{i}.mlp.{name}.bias", (outputs,)
    yield from norm("transformer.ln_f", width)
    yield "lm_head.weight", (shape.vocabulary, width)
    yield "lm_head.bias", (shape.vocabulary,)


def norm(name, width):
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def count(dims):
    product = 1
    for n in dims:
        product *= n
    return product


def numbers(seed, form, power):
    """Numbers of either sign, from 2^power to twice that, the low byte of each first."""
    draw = random.Random(seed).randbytes
    block = bytearray(2 * BLOCK)
    low, high = (form.bits(power) >> shift & 0xFF for shift in (0, 8))
    # Of the mantissa every bit is drawn, of the exponent none, and the sign.
    mantissa = (1 << form.mantissa) - 1
    low_drawn, high_drawn = mantissa & 0xFF, mantissa >> 8 | 0x80
    block[0::2] = draw(BLOCK).translate(bytes(low | (i & low_drawn) for i in range(256)))
    block[1::2] = draw(BLOCK).translate(bytes(high | (i & high_drawn) for i in range(256)))
    return block


def write(folder, shape):
    """Writes config.json, model.safetensors and a tokenizer whose words are t0, t1, ..."""
    folder, form = pathlib.Path(folder), FORMATS[shape.dtype]
    (folder / "config.json").write_text(json.dumps(config(shape)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(shape.vocabulary)))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, dims in tensors(shape):
        size = 2 * count(dims)
        header[name] = {"dtype": form.stored, "shape": list(dims), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    matrices = memoryview(numbers(1, form, shape.power))
    biases = memoryview(numbers(2, form, shape.power - BELOW))
    one = form.bits(0).to_bytes(2, "little")
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for i, (name, dims) in enumerate(tensors(shape)):
            if "ln_" in name and name.endswith("weight"):
                file.write(one * count(dims))
            else:
                put(file, matrices if len(dims) == 2 else biases, i * STRIDE % BLOCK, count(dims))


def put(file, block, first, elements):
    while elements:
        some = min(elements, BLOCK - first)
        file.write(block[2 * first : 2 * (first + some)])
        elements -= some
        first = 0


def tokenizer(vocabulary):
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(vocabulary)}, "unk_token": "t0"},
    }


def prompt(vocabulary, length):
    """Ids that are spread over the vocabulary."""
    return [(1 + i * 7919) % vocabulary for i in range(length)]
