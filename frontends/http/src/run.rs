//! A graph and its tensors go to the server, and a tensor comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use genie_graph::{DType, Sizes, VerifiedGraph};
use genie_tensor_files::Tensor;
use genie_transport::client::{BindInputs, ClientError, Input, PutOptions, RunOptions, Session, Value};
use genie_transport::memory::Region;
use genie_transport::wire::{DecodeError, TensorSpec, limits};

use crate::sessions::Opened;

/// Inputs, and outputs, of so many bytes together travel with the request that runs the graph. Larger ones are put, stay on the
/// device while it runs, and are got: several requests, but no copy of them in any.
pub(crate) const INLINE: u64 = 64 << 10;

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) tensor: Tensor,
    /// The device that ran it, by name.
    pub(crate) device: String,
    /// From the tensors' way to the server to the result's way back.
    pub(crate) took: Duration,
}

/// Bytes of a graph's only output, which has no symbols.
pub(crate) fn output_bytes(graph: &VerifiedGraph) -> Option<u64> {
    let node = graph.outputs.first()?.node;
    let dims = graph.concrete(node, &Sizes::default())?;
    genie_graph::byte_len(graph.nodes.get(node.0 as usize)?.ty.dtype, &dims)
}

/// Its elements' type.
pub(crate) fn output_dtype(graph: &VerifiedGraph) -> Option<DType> {
    Some(graph.nodes.get(graph.outputs.first()?.node.0 as usize)?.ty.dtype)
}

/// Runs a graph with these inputs, in the order of its input nodes, which are its first.
///
/// # Errors
/// [`ClientError`].
pub(crate) async fn run(
    opened: &Arc<Opened>,
    device: u16,
    graph: &VerifiedGraph,
    inputs: &[Tensor],
) -> Result<Ran, ClientError> {
    let begun = Instant::now();
    let program = opened.programs.get(device, graph).await?;
    let bytes = inputs.iter().map(|tensor| tensor.data.len() as u64).sum::<u64>();
    let inline = bytes <= INLINE && output_bytes(graph).is_some_and(|bytes| bytes <= INLINE);
    let (tensor, device) = if inline {
        let inputs: Vec<_> = (0..).zip(inputs).map(|(index, tensor)| argument(index, tensor)).collect();
        let mut outputs = opened.session.run(program.binding, &inputs, RunOptions::default()).await?;
        match outputs.values.pop() {
            Some(Value::Inline { dtype, dims, data, .. }) => {
                (Tensor { dtype, dims, data: data.into() }, outputs.device)
            }
            _ => return Err(DecodeError::Range("the output that was wanted did not come").into()),
        }
    } else {
        let mut held = opened.programs.hold();
        let put = |tensor: &Tensor| {
            let (spec, data) = (TensorSpec::new(tensor.dtype, &tensor.dims), tensor.data.clone());
            async move {
                let options = PutOptions { device, ..PutOptions::default() };
                opened.session.put(&spec?, data, options).await
            }
        };
        let mut residents = Vec::with_capacity(inputs.len());
        // All of them end before the first error is told: what was put must be freed.
        let mut failed = None;
        for (node, put) in (0..).zip(join_all(inputs.iter().map(put)).await) {
            match put {
                Ok(tensor) => {
                    held.add(tensor.handle);
                    residents.push((node, tensor));
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let options = RunOptions { wanted: 0, keep: 1, ..RunOptions::default() };
        let mut outputs = if residents.len() <= limits::ARGUMENTS {
            let named: Vec<_> = residents.iter().map(|(node, tensor)| (*node, tensor)).collect();
            opened.session.run_with(program.binding, &[], &named, options).await?
        } else {
            let residents = residents.iter().map(|(node, tensor)| (u32::from(*node), tensor.handle)).collect();
            let inputs = BindInputs { residents, ..BindInputs::default() };
            let binding = opened.session.bind(&program.program, &inputs).await?;
            held.add(binding.0);
            opened.session.run(binding, &[], options).await?
        };
        match outputs.values.pop() {
            Some(Value::Resident { tensor, .. }) => {
                held.add(tensor.handle);
                let region = Some(opened.session.get(&tensor).await?);
                let data = Bytes::from_owner(Got { region, session: opened.session.clone() });
                let dims = tensor.spec.dims().to_vec();
                (Tensor { dtype: tensor.spec.dtype(), dims, data }, outputs.device)
            }
            _ => return Err(DecodeError::Range("the output that was to be kept was not").into()),
        }
    };
    let named = opened.devices.iter().find(|known| known.index == u32::from(device));
    let device = named.map_or_else(|| device.to_string(), |known| known.name.clone());
    Ok(Ran { tensor, device, took: begun.elapsed() })
}

/// A result, whose memory the next one of its size is got into.
struct Got {
    region: Option<Region>,
    session: Session,
}

impl AsRef<[u8]> for Got {
    fn as_ref(&self) -> &[u8] {
        self.region.as_deref().unwrap_or_default()
    }
}

impl Drop for Got {
    fn drop(&mut self) {
        if let Some(region) = self.region.take() {
            self.session.recycle(region);
        }
    }
}

fn argument(index: u16, tensor: &Tensor) -> Input<'_> {
    Input { index, dtype: tensor.dtype, dims: &tensor.dims, data: &tensor.data }
}
