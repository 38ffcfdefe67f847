"""The random weights of genie_models::synthetic, bit for bit, in NumPy."""

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
CENTRE_AND_HALF_WIDTH = {"matrix": (0.0, 0.0703125), "norm": (1.0, 0.125), "vector": (0.0, 0.03125)}


def mix(z: int) -> int:
    """SplitMix64's output function."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def mix_array(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def fnv1a(text: str) -> int:
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def kind(name: str) -> str:
    if name.endswith(".bias"):
        return "vector"
    return "norm" if name.endswith("_norm.weight") else "matrix"


def tensor(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight that Genie calls `name`, f32."""
    centre, half_width = (np.float32(x) for x in CENTRE_AND_HALF_WIDTH[kind(name)])
    start = np.uint64(mix(seed ^ fnv1a(name)))
    index = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        bits = mix_array(start + index * np.uint64(GOLDEN))
    unit = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    values = centre + (np.float32(2.0) * unit - np.float32(1.0)) * half_width
    assert values.dtype == np.float32
    return values.reshape(shape)


GPT2_PARTS = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
GPTJ_PARTS = {
    "attn.q_proj": "attn_q",
    "attn.k_proj": "attn_k",
    "attn.v_proj": "attn_v",
    "attn.out_proj": "attn_output",
    "mlp.fc_in": "ffn_up",
    "mlp.fc_out": "ffn_down",
}
LLAMA_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "lm_head.bias": "output.bias",
}
PARTS = GPT2_PARTS | GPTJ_PARTS | LLAMA_PARTS


def genie_name(name: str) -> str:
    """What Genie calls a parameter of transformers' GPT-2, GPT-J, Llama or Qwen2."""
    name = name.removeprefix("transformer.").removeprefix("model.")
    if name in WHOLE:
        return WHOLE[name]
    _, layer, rest = name.split(".", 2)
    part, suffix = rest.rsplit(".", 1)
    return f"blk.{layer}.{PARTS[part]}.{suffix}"


def fill(model, seed: int):
    """Overwrites a transformers model's parameters with the random weights."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(tensor(seed, genie_name(name), tuple(parameter.shape))))
    model.tie_weights()
    return model.eval()
