//! Which product asks for which weight before its turn ([`genie_cuda_kernels::launch::ahead`]).

use genie_cuda_kernels::LaunchError;
use genie_cuda_kernels::launch::ahead::Part;

use super::super::plan::{At, Place, V};
use super::Lowering;

/// Bytes that are asked for a kernel that lies between a product's end and the next large one: what an H200's memory brings in the
/// microsecond for which it would have little to do.
const EACH: u64 = 4 << 20;
/// The most for one product: of what is in the second-level cache much is used, and half of it is far from half of the multiprocessors.
const MOST: u64 = 12 << 20;

impl Lowering<'_> {
    /// The step that comes next is a product of few rows by the weight `v`: the large product before it asks for what `later` says of
    /// it. A product is large where its blocks do not begin with all of its weight; others leave memory something to do.
    pub(super) fn ask_for(
        &mut self,
        v: V,
        later: impl Fn(&At<'_>, u64) -> Result<Option<Part>, LaunchError>,
    ) -> Option<()> {
        // What a kernel of this run writes is not there yet.
        if !self.machine.prefetches || !matches!(self.values[v.0].place, Place::Weight(_)) {
            return Some(());
        }
        let here = self.steps.len();
        let between = self.asks.map_or(1, |asks| here.saturating_sub(asks) as u64);
        let most = EACH.saturating_mul(between).min(MOST);
        if let Some(part) = self.nowhere(|at| later(at, most)).ok()? {
            if let Some(asks) = self.asks.and_then(|asks| self.steps.get_mut(asks)) {
                asks.ahead = Some((v, part));
            }
            self.asks = Some(here);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use genie_graph::{DType, GraphBuilder, InputRole, LinearLayout, Op, Sizes, TensorType, VerifiedGraph};

    use super::super::{Machine, lower};
    use super::*;

    const H200: Machine = Machine { sms: 132, shared: 227 << 10, max_blocks: 1, prefetches: true };

    /// The products of a layer of GPT-2 XL and the first one of the next, with a kernel where the attention is.
    fn layer(rows: u64, role: InputRole) -> VerifiedGraph {
        let mut builder = GraphBuilder::new("layer");
        let ty = |dims: [u64; 2]| TensorType::new(DType::BF16, dims.map(Into::into));
        let mut x = builder.input("x", InputRole::Argument, ty([rows, 1600])).expect("an input");
        let widths = [(1600, 4800), (1600, 1600), (1600, 6400), (6400, 1600), (1600, 4800)];
        for (i, (k, n)) in widths.into_iter().enumerate() {
            let weight = builder.input(&format!("w{i}"), role, ty([k, n])).expect("an input");
            x = builder.push(Op::Linear { layout: LinearLayout::InOut }, &[x, weight]).expect("a product");
            if i == 0 {
                let columns = Op::Slice { axis: 1, start: 1600, end: Some(3200), step: 1 };
                x = builder.push(columns, &[x]).expect("columns");
            }
        }
        builder.output("y", x);
        builder.finish().expect("a graph")
    }

    /// Of each step, the number of the weight that it asks for, and how many bytes.
    fn asked(graph: &VerifiedGraph, machine: Machine) -> Vec<Option<(usize, u64)>> {
        let lowered = lower(graph, &Sizes { batch: 1, sequence: 1, position: 0 }, machine).expect("a plan");
        let of = |(v, part): (V, Part)| match lowered.values[v.0].place {
            Place::Weight(i) => (i, u64::from(part.rows) * u64::from(part.bytes)),
            other => panic!("{other:?} is no weight"),
        };
        lowered.steps.iter().map(|step| step.ahead.map(of)).collect()
    }

    #[test]
    fn large_products_ask_for_the_next_large_one() {
        // The first asks over three kernels' ends, for all that the blocks of the third do not begin with; the second begins with all.
        let (up, down, next) = (704 * 12_800, 3 * (EACH / 3 / 128 * 128), EACH);
        let expected = [Some((2, up)), None, None, Some((3, down)), Some((4, next)), None];
        assert_eq!(asked(&layer(1, InputRole::Weight), H200), expected);
        assert!(up < MOST && up > 2 * EACH);
    }

    #[test]
    fn nobody_asks_where_it_is_off_or_for_what_is_no_weight_or_with_many_rows() {
        let none = |graph: &VerifiedGraph, machine| asked(graph, machine).iter().all(Option::is_none);
        assert!(none(&layer(1, InputRole::Weight), Machine { prefetches: false, ..H200 }));
        assert!(none(&layer(1, InputRole::Argument), H200));
        assert!(none(&layer(100, InputRole::Weight), H200));
    }
}
