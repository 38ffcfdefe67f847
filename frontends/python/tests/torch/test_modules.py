"""Modules of torch.nn that are more than one operation, against the same module on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

DEVICE = "remote_accelerator:0"

MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lstm": (lambda: nn.LSTM(5, 7, 2, batch_first=True), (2, 3, 5)),
    "gru": (lambda: nn.GRU(5, 7, bidirectional=True), (4, 2, 5)),
    "rnn": (lambda: nn.RNN(5, 7), (4, 2, 5)),
    "lstm cell": (lambda: nn.LSTMCell(5, 7), (2, 5)),
    "gru cell": (lambda: nn.GRUCell(5, 7), (2, 5)),
    "encoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2), (2, 5, 16)),
    "encoder, norm first": (lambda: nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", norm_first=True, batch_first=True), (2, 5, 16)),
    "convolution back": (lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, 1), (1, 3, 5, 5)),
    "convolution of volumes": (lambda: nn.Conv3d(2, 4, 3, padding=1, stride=2, groups=2), (1, 2, 5, 6, 7)),
    "circular convolution": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (1, 2, 6)),
    "upsample": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (1, 3, 4, 4)),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), (1, 8, 3, 3)),
    "fold": (lambda: nn.Fold((4, 5), (2, 2)), (1, 12, 12)),
    "unfold": (lambda: nn.Unfold((2, 2)), (1, 3, 4, 5)),
    "local response": (lambda: nn.LocalResponseNorm(2), (2, 4, 3, 3)),
    "instance norm": (lambda: nn.InstanceNorm2d(3, affine=True), (2, 3, 4, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (2, 6, 4)),
    "rms norm": (lambda: nn.RMSNorm(8), (2, 8)),
    "adaptive pool": (lambda: nn.AdaptiveMaxPool2d((3, 2)), (1, 2, 7, 5)),
    "reflection": (lambda: nn.ReflectionPad2d(2), (1, 2, 5, 5)),
    "glu": (lambda: nn.GLU(), (3, 6)),
}


def compare(found: Any, wanted: Any) -> None:
    if isinstance(wanted, torch.Tensor):
        assert found.device.type == "remote_accelerator"
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=1e-5)
    elif wanted is None:
        assert found is None
    else:
        for a, b in zip(found, wanted, strict=True):
            compare(a, b)


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str, grad: bool) -> None:
    make, shape = MODULES[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    with torch.set_grad_enabled(grad):
        compare(copy.deepcopy(model).to(DEVICE)(x.to(DEVICE)), model(x))


def test_batch_norm_keeps_statistics_while_it_trains() -> None:
    here = nn.BatchNorm2d(3)
    there = copy.deepcopy(here).to(DEVICE)
    with torch.no_grad():
        for seed in range(3):
            torch.manual_seed(seed)
            x = torch.randn(4, 3, 5, 5) * 3 + 1
            compare(there(x.to(DEVICE)), here(x))
    compare(there.running_mean, here.running_mean)
    compare(there.running_var, here.running_var)
    assert there.num_batches_tracked.item() == 3


PADDED = torch.tensor([[False, False, False, True, True], [False] * 5])
LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(
    "options",
    [{}, {"need_weights": False}, {"average_attn_weights": False}, {"key_padding_mask": PADDED}, {"attn_mask": LATER, "need_weights": False}],
    ids=["plain", "no weights", "weights by head", "padding", "causal"],
)
def test_attention_of_a_sequence_to_itself(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = nn.MultiheadAttention(16, 4, batch_first=True).eval(), torch.randn(2, 5, 16)
    moved = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    with torch.no_grad():
        y = x.to(DEVICE)
        compare(copy.deepcopy(model).to(DEVICE)(y, y, y, **moved), model(x, x, x, **options))


def test_autocast() -> None:
    x = torch.randn(4, 4, device=DEVICE)
    with torch.no_grad(), torch.autocast("remote_accelerator", dtype=torch.bfloat16):
        product = x @ x.t()
        assert product.dtype == torch.bfloat16
        assert torch.softmax(product, -1).dtype == torch.float32
        assert (product + 1).dtype == torch.bfloat16
        assert nn.functional.linear(x, x).dtype == torch.bfloat16
    assert (x @ x).dtype == torch.float32
    torch.testing.assert_close(product.float().cpu(), x.cpu() @ x.cpu().t(), rtol=0.05, atol=0.05)


def test_lists_of_tensors_at_once() -> None:
    here = [torch.arange(4.0), torch.ones(2, 3)]
    there = [x.to(DEVICE) for x in here]
    compare(torch._foreach_mul(there, 2.0), torch._foreach_mul(here, 2.0))
    compare(torch._foreach_add(there, there), torch._foreach_add(here, here))
    compare(torch._foreach_norm(there), torch._foreach_norm(here))
    for tensors in (here, there):
        torch._foreach_add_(tensors, 1.0)
        torch._foreach_sqrt_(tensors)
    compare(there, here)
