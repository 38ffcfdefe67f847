"""What torch hands over in one piece: cells of recurrent networks, layers of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .. import build
from ..dispatch import HANDLERS
from ..node import Node
from ..operands import integers
from ..tensor import RemoteTensor, node_of, wrap

Given = RemoteTensor | None


@HANDLERS.add("_nested_tensor_from_mask_left_aligned.default")
def left_aligned(t: RemoteTensor, mask: RemoteTensor) -> bool:
    # There are no nested tensors here: TransformerEncoder goes on with padded ones.
    return False


@HANDLERS.add("_pack_padded_sequence.default")
def pack(input: RemoteTensor, lengths: torch.Tensor, batch_first: bool) -> tuple[RemoteTensor, torch.Tensor]:  # noqa: A002: torch's name
    x = node_of(input)
    counts = lengths.tolist()
    batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    if len(counts) != batch:
        raise RuntimeError(f"Expected `len(lengths)` to be equal to batch_size, but got {len(counts)} (batch_size={batch})")
    if any(a < b for a, b in zip(counts, counts[1:])) or min(counts) <= 0 or counts[0] > steps:
        raise RuntimeError("`lengths` must be in decreasing order, greater than 0, and no longer than the sequences: see enforce_sorted=")
    sizes = [sum(n > step for n in counts) for step in range(counts[0])]
    at = [row * steps + step if batch_first else step * batch + row for step, n in enumerate(sizes) for row in range(n)]
    rows = build.reshape(x, (batch * steps, *x.shape[2:]))
    return wrap(build.gather(rows, integers(at, (len(at),), x.device))), torch.tensor(sizes)


@HANDLERS.add("_pad_packed_sequence.default")
def unpack(
    data: RemoteTensor, batch_sizes: torch.Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[RemoteTensor, torch.Tensor]:
    x, sizes = node_of(data), batch_sizes.tolist()
    batch, steps = sizes[0], max(len(sizes), total_length)
    if 0 < total_length < len(sizes):
        raise RuntimeError(f"Expected total_length to be at least the length of the longest sequence in input, but got total_length={total_length} and max sequence length being {len(sizes)}")
    at, begin = [x.shape[0]] * (batch * steps), 0
    for step, n in enumerate(sizes):
        for row in range(n):
            at[row * steps + step if batch_first else step * batch + row] = begin + row
        begin += n
    # Where there is nothing, the row behind the last is taken.
    padded = build.pad(x, (0,) * len(x.shape), (1, *(0 for _ in x.shape[1:])), padding_value)
    outer = (batch, steps) if batch_first else (steps, batch)
    made = build.reshape(build.gather(padded, integers(at, (len(at),), x.device)), (*outer, *x.shape[1:]))
    return wrap(made), torch.tensor([sum(n > row for n in sizes) for row in range(batch)])


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
