"""A folder with a GPT-2 of random weights in bf16, as Genie and the transformers library read it. Neither GPU host nor build machine
has a trained GPT-2-XL; how fast one decodes does not depend on what its weights are."""

import json
import pathlib
import random
import struct

XL = {"n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024, "vocab_size": 50257}
# For rehearsals.
TINY = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 160, "vocab_size": 257}

# As many random numbers are drawn; tensors are pieces of them, each from another place.
BLOCK = 8 << 20
# Prime, so that no two tensors begin at the same place.
STRIDE = 1_299_709
ONE = b"\x80\x3f"


def config(shape):
    """config.json."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        **shape,
    }


def tensors(shape):
    """Names and dimensions, as the transformers library has them: linear weights are [in, out]."""
    width = shape["n_embd"]
    yield "transformer.wte.weight", (shape["vocab_size"], width)
    yield "transformer.wpe.weight", (shape["n_positions"], width)
    for i in range(shape["n_layer"]):
        for name, rows, columns in [
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ]:
            yield f"transformer.h.{i}.{name}.weight", (rows, columns)
            yield f"transformer.h.{i}.{name}.bias", (columns,)
        for norm in ("ln_1", "ln_2"):
            yield f"transformer.h.{i}.{norm}.weight", (width,)
            yield f"transformer.h.{i}.{norm}.bias", (width,)
    yield "transformer.ln_f.weight", (width,)
    yield "transformer.ln_f.bias", (width,)


def count(dims):
    product = 1
    for n in dims:
        product *= n
    return product


def weight_bytes(shape):
    """Of all tensors, in bf16."""
    return sum(2 * count(dims) for _, dims in tensors(shape))


def numbers(seed, high):
    """bf16 of either sign, one power of two to the next (`high` 0x3d: 2^-5 to 2^-4), the low byte of each first."""
    draw = random.Random(seed).randbytes
    block = bytearray(2 * BLOCK)
    block[0::2] = draw(BLOCK).translate(bytes(i & 0x7F for i in range(256)))
    block[1::2] = draw(BLOCK).translate(bytes(high | (i & 0x80) for i in range(256)))
    return block


def write(folder, shape):
    """Writes config.json, model.safetensors and a tokenizer whose words are t0, t1, ..."""
    folder = pathlib.Path(folder)
    (folder / "config.json").write_text(json.dumps(config(shape)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(shape["vocab_size"])))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, dims in tensors(shape):
        size = 2 * count(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # Matrices around 2^-5, twice what GPT-2 begins with, so that attention matters to the outcome; biases a sixteenth of that.
    matrices, biases = memoryview(numbers(1, 0x3D)), memoryview(numbers(2, 0x3B))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for i, (name, dims) in enumerate(tensors(shape)):
            if "ln_" in name and name.endswith("weight"):
                file.write(ONE * count(dims))
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
