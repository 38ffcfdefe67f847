"""SmolLM2-135M-Instruct as a transformers model, its weights dequantised from the GGUF file."""

import pathlib
import subprocess

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from synthetic import LLAMA_PARTS


def path() -> pathlib.Path:
    script = pathlib.Path(__file__).resolve().parent.parent / "fetch-smollm2"
    return pathlib.Path(subprocess.run([script], check=True, capture_output=True, text=True).stdout.strip())


class File:
    """The metadata and dequantised tensors of a GGUF file."""

    def __init__(self, file: pathlib.Path):
        self.reader = gguf.GGUFReader(file)
        self.tensors = {t.name: t for t in self.reader.tensors}

    def get(self, key: str):
        return self.reader.fields[key].contents()

    def tensor(self, name: str) -> np.ndarray:
        t = self.tensors[name]
        return gguf.quants.dequantize(t.data, t.tensor_type).reshape(tuple(reversed(t.shape.tolist())))


def half_style(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps rotary pairs side by side (2i, 2i + 1), transformers half a head apart (i, i + d / 2)."""
    out, inner = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, inner).swapaxes(1, 2).reshape(out, inner)


def config(file: File) -> LlamaConfig:
    get = lambda key: file.get(f"llama.{key}")
    return LlamaConfig(
        vocab_size=get("vocab_size"),
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=get("attention.head_count"),
        num_key_value_heads=get("attention.head_count_kv"),
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": get("rope.freq_base")},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )


def model(file: File, dtype=torch.float32, attention: str = "eager") -> LlamaForCausalLM:
    c = config(file)
    c._attn_implementation = attention
    state = {
        "model.embed_tokens.weight": file.tensor("token_embd.weight"),
        "lm_head.weight": file.tensor("token_embd.weight"),
        "model.norm.weight": file.tensor("output_norm.weight"),
    }
    heads = {"self_attn.q_proj": c.num_attention_heads, "self_attn.k_proj": c.num_key_value_heads}
    for layer in range(c.num_hidden_layers):
        for theirs, ours in LLAMA_PARTS.items():
            weight = file.tensor(f"blk.{layer}.{ours}.weight")
            if theirs in heads:
                weight = half_style(weight, heads[theirs])
            state[f"model.layers.{layer}.{theirs}.weight"] = weight
    llama = LlamaForCausalLM(c)
    llama.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
    return llama.to(dtype).eval()
