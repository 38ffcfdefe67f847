//! Ops over images.

use genie_graph::{NodeId, Op, PoolKind};

use super::Def;
use super::call::Call;
use super::matrix::eps;
use crate::error::Failure;

pub(super) const TABLE: &[Def] = &[
    Def { names: &["conv2d"], inputs: (2, 3), kwargs: &["stride", "padding", "dilation", "groups"], build: conv2d },
    Def { names: &["batch_norm"], inputs: (5, 5), kwargs: &["eps"], build: batch_norm },
    Def {
        names: &["max_pool2d"],
        inputs: (1, 1),
        kwargs: &["kernel_size", "stride", "padding"],
        build: |c| pool(c, PoolKind::Max),
    },
    Def {
        names: &["avg_pool2d"],
        inputs: (1, 1),
        kwargs: &["kernel_size", "stride", "padding", "count_include_pad"],
        build: |c| pool(c, PoolKind::Average),
    },
];

/// x, weight, perhaps a bias.
fn conv2d(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (inputs, kwargs) = (call.inputs, call.kwargs);
    let groups = kwargs.int("groups")?.unwrap_or(1);
    let groups = u32::try_from(groups).map_err(|_| call.refuse("takes a positive number of 'groups'"))?;
    let op = Op::Conv2d {
        stride: kwargs.pair("stride")?.unwrap_or([1, 1]),
        padding: around(kwargs.pair("padding")?),
        dilation: kwargs.pair("dilation")?.unwrap_or([1, 1]),
        groups,
    };
    call.push(op, inputs)
}

/// x, running mean, running variance, weight, bias; PyTorch's own operator has the mean and the variance last.
fn batch_norm(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let eps = eps(call, 1e-5)?;
    let [mean, variance, weight, bias] = if call.native { [3, 4, 1, 2] } else { [1, 2, 3, 4] };
    let [weight, bias] = [call.input(weight)?, call.input(bias)?];
    let [x, mean, variance] = [call.input(0)?, call.input(mean)?, call.input(variance)?];
    call.push(Op::BatchNorm { eps }, &[x, weight, bias, mean, variance])
}

fn pool(call: &mut Call<'_>, kind: PoolKind) -> Result<NodeId, Failure> {
    let (x, kwargs) = (call.input(0)?, call.kwargs);
    let kernel = kwargs.pair("kernel_size")?.ok_or_else(|| call.refuse("needs 'kernel_size'"))?;
    let count_padding = match kind {
        PoolKind::Max => false,
        PoolKind::Average => !kwargs.has("count_include_pad") || kwargs.flag("count_include_pad")?,
    };
    let stride = kwargs.pair("stride")?.unwrap_or(kernel);
    call.push(Op::Pool { kind, kernel, stride, padding: around(kwargs.pair("padding")?), count_padding }, &[x])
}

/// The same above as below, and left as right.
fn around(padding: Option<[u32; 2]>) -> [u32; 4] {
    let [rows, columns] = padding.unwrap_or_default();
    [rows, columns, rows, columns]
}
