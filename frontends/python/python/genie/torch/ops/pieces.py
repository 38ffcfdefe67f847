"""What torch hands over in one piece: cells of recurrent networks, layers of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .. import build
from ..dispatch import HANDLERS
from ..node import Node
from ..tensor import RemoteTensor, node_of, wrap

Given = RemoteTensor | None


def _gates(gates: RemoteTensor, bias: Given, count: int) -> list[Node]:
    x = node_of(gates)
    if bias is not None:
        x = build.add(x, node_of(bias))
    size = x.shape[1] // count
    return [build.slice_axis(x, 1, i * size, (i + 1) * size) for i in range(count)]


def _sigmoid(x: Node) -> Node:
    return build.unary("sigmoid", x)


@HANDLERS.add("_thnn_fused_lstm_cell.default")
def lstm_cell(
    input_gates: RemoteTensor, hidden_gates: RemoteTensor, cx: RemoteTensor, input_bias: Given = None, hidden_bias: Given = None
) -> tuple[RemoteTensor, ...]:
    sums = [build.add(a, b) for a, b in zip(_gates(input_gates, input_bias, 4), _gates(hidden_gates, hidden_bias, 4))]
    take, keep, show = (_sigmoid(sums[i]) for i in (0, 1, 3))
    state = build.add(build.mul(keep, node_of(cx)), build.mul(take, build.unary("tanh", sums[2])))
    made = build.mul(show, build.unary("tanh", state))
    # The third is for the way back.
    return wrap(made), wrap(state), wrap(build.concat(sums, 1))


@HANDLERS.add("_thnn_fused_gru_cell.default")
def gru_cell(
    input_gates: RemoteTensor, hidden_gates: RemoteTensor, hx: RemoteTensor, input_bias: Given = None, hidden_bias: Given = None
) -> tuple[RemoteTensor, ...]:
    given, hidden = _gates(input_gates, input_bias, 3), _gates(hidden_gates, hidden_bias, 3)
    reset, update = (_sigmoid(build.add(given[i], hidden[i])) for i in (0, 1))
    new = build.unary("tanh", build.add(given[2], build.mul(reset, hidden[2])))
    made = build.add(build.mul(build.sub(node_of(hx), new), update), new)
    return wrap(made), wrap(build.concat([reset, update, new], 1))


def _shown(mask: torch.Tensor | None, mask_type: int | None) -> torch.Tensor | None:
    """A mask as attention takes it: those of layers are true where nothing is to be seen."""
    if mask is None:
        return None
    if mask_type == 1:
        mask = mask[:, None, None, :]
    return mask.logical_not() if mask.dtype == torch.bool else mask


def _heads(x: torch.Tensor, count: int) -> torch.Tensor:
    return x.view(*x.shape[:-1], count, -1).transpose(1, 2)


@HANDLERS.add("_native_multi_head_attention.default")
def multi_head_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, embed_dim: int, num_head: int,
    qkv_weight: torch.Tensor, qkv_bias: torch.Tensor, proj_weight: torch.Tensor, proj_bias: torch.Tensor,
    mask: torch.Tensor | None = None, need_weights: bool = True, average_attn_weights: bool = True, mask_type: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    weights, biases = qkv_weight.chunk(3), qkv_bias.chunk(3)
    q, k, v = (_heads(functional.linear(x, w, b), num_head) for x, w, b in zip((query, key, value), weights, biases))
    shown = _shown(mask, mask_type)
    made = functional.scaled_dot_product_attention(q, k, v, attn_mask=shown)
    out = functional.linear(made.transpose(1, 2).flatten(2), proj_weight, proj_bias)
    if not need_weights:
        return out, None
    scores = q * (q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if shown is not None:
        scores = scores.masked_fill(shown.logical_not(), float("-inf")) if shown.dtype == torch.bool else scores + shown
    seen = scores.softmax(-1)
    return out, seen.mean(1) if average_attn_weights else seen


@HANDLERS.add("_transformer_encoder_layer_fwd.default")
def encoder_layer(
    src: torch.Tensor, embed_dim: int, num_heads: int,
    qkv_weight: torch.Tensor, qkv_bias: torch.Tensor, proj_weight: torch.Tensor, proj_bias: torch.Tensor,
    use_gelu: bool, norm_first: bool, eps: float,
    norm_weight_1: torch.Tensor, norm_bias_1: torch.Tensor, norm_weight_2: torch.Tensor, norm_bias_2: torch.Tensor,
    ffn_weight_1: torch.Tensor, ffn_bias_1: torch.Tensor, ffn_weight_2: torch.Tensor, ffn_bias_2: torch.Tensor,
    mask: torch.Tensor | None = None, mask_type: int | None = None,
) -> Any:  # fmt: skip
    def attend(x: torch.Tensor) -> torch.Tensor:
        out, _ = multi_head_attention(
            x, x, x, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias, mask, False, False, mask_type
        )
        return out

    def feed(x: torch.Tensor) -> torch.Tensor:
        wide = functional.linear(x, ffn_weight_1, ffn_bias_1)
        return functional.linear(functional.gelu(wide) if use_gelu else wide.relu(), ffn_weight_2, ffn_bias_2)

    def first(x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def second(x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    if norm_first:
        x = src + attend(first(src))
        return x + feed(second(x))
    x = first(src + attend(src))
    return second(x + feed(x))
