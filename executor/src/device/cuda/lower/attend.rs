//! Attention, with the rotary embedding before it and the KV cache.

use genie_cuda_kernels::View;
use genie_cuda_kernels::launch::attention::{
    Append, Attention, Cache, Gpu, Heads, New, Rope, Source, Strided, append, decode, decode_scratch, prefill,
};
use genie_cuda_kernels::launch::rope::{Angles, Part, frequencies, rope};
use genie_graph::{DType, NodeId, Op, RopeStyle};

use super::super::plan::{At, Place, Step, V};
use super::{Lowering, Made, one};

/// Tokens of a step up to which all query heads of a key share its reading.
const FEW_TOKENS: u32 = 8;

/// Columns of a value: `[tokens, width]`, rows `stride` elements apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Columns {
    of: V,
    start: u64,
    stride: u64,
}

impl Columns {
    fn view(self, at: &At<'_>) -> View {
        let view = at.view(self.of);
        View::new(view.at + self.start * view.dtype.bytes(), view.dtype, view.elements - self.start)
    }

    fn strided(self, at: &At<'_>) -> Strided {
        Strided { view: self.view(at), stride: self.stride }
    }
}

/// A rotary embedding that has not been done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Turned {
    x: Columns,
    angles: Turn,
}

/// By what heads are turned.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Turn {
    positions: V,
    frequencies: V,
    style: RopeStyle,
    head_dim: u64,
}

impl Turn {
    fn at(self, at: &At<'_>) -> Rope {
        let (frequencies, positions) = (at.view(self.frequencies), Some(at.view(self.positions)));
        Rope { style: self.style, frequencies, positions }
    }
}

impl Lowering<'_> {
    /// The columns that a node's value is, wherever they lie.
    fn columns(&mut self, id: NodeId) -> Option<Columns> {
        if let Some(Made::Columns { of, start, stride }) = self.of_node[id.0 as usize] {
            return Some(Columns { of, start, stride });
        }
        let stride = *self.dims(id)?.last()?;
        Some(Columns { of: self.value_of(id)?, start: 0, stride })
    }

    pub(super) fn rope(&mut self, theta: f32, head_dim: u64, style: RopeStyle) -> Option<()> {
        let x = self.columns(self.input_node(0)?)?;
        let positions = self.operand(1)?;
        let frequencies = if self.inputs() == 3 { self.operand(2)? } else { self.frequencies(theta, head_dim)? };
        let turned = Turned { x, angles: Turn { positions, frequencies, style, head_dim } };
        let read_by_attention = self.fusions.reader(self.at).is_some_and(|reader| {
            matches!(self.op(reader), Op::Attention { .. }) && self.graph.nodes[reader.0 as usize].inputs.len() == 4
        });
        if read_by_attention { self.set(Made::Turned(turned)) } else { self.turn(turned) }
    }

    fn frequencies(&mut self, theta: f32, head_dim: u64) -> Option<V> {
        let key = (theta.to_bits(), head_dim);
        if let Some(&table) = self.frequencies.get(&key) {
            return Some(table);
        }
        let table = self.value(DType::F32, head_dim / 2, Place::Constant(self.constant_bytes))?;
        let end = self.constant_bytes.checked_add(self.values[table.0].bytes())?;
        self.constant_bytes = end.checked_next_multiple_of(super::super::plan::ALIGN)?;
        self.constants.push(Step::new([table], move |at| one(frequencies(theta, head_dim, at.view(table)))));
        self.frequencies.insert(key, table);
        Some(table)
    }

    /// Does a rotary embedding on its own.
    pub(super) fn turn(&mut self, turned: Turned) -> Option<()> {
        let dims = self.dims(self.at)?;
        let [batch, sequence, width] = dims[..] else { return None };
        let tokens = batch.checked_mul(sequence)?;
        let Turned { x, angles } = turned;
        self.emit([x.of, angles.positions, angles.frequencies], move |at, y| {
            let Turn { positions, frequencies, style, head_dim } = angles;
            let part =
                Part { x: x.view(at), x_stride: x.stride, y: at.view(y), y_stride: width, heads: width / head_dim };
            let (positions, frequencies) = (at.view(positions), at.view(frequencies));
            one(rope(Angles { style, head_dim, tokens, positions, frequencies }, part, None, at.sms))
        })
    }

    pub(super) fn attention(&mut self) -> Option<()> {
        let &Op::Attention { layer, heads, kv_heads, head_dim, scale, causal } = self.op(self.at) else { return None };
        let heads = Heads { heads, kv_heads, head_dim };
        let [batch, tokens, _] = self.dims(self.at)?[..] else { return None };
        let (batch, tokens) = (u32::try_from(batch).ok()?, u32::try_from(tokens).ok()?);
        let [q, k, v] = [self.input_node(0)?, self.input_node(1)?, self.input_node(2)?];
        let gpu = Gpu { sms: self.machine.sms, shared: self.machine.shared };
        if self.inputs() == 3 {
            let [q, k, v] = [self.columns(q)?, self.columns(k)?, self.columns(v)?];
            // The kernel reads keys and values with one stride.
            let [k, v] = self.alike([(self.input_node(1)?, k), (self.input_node(2)?, v)])?;
            return self.emit([q.of, k.of, v.of], move |at, y| {
                let attention = Attention { batch, tokens, heads, scale, causal, q: q.strided(at), y: at.view(y) };
                let source = Source::Fresh { k: k.strided(at), v: v.strided(at) };
                one(prefill(&attention, &source, gpu))
            });
        }
        let Some(Made::Cache(cache)) = self.of_node[self.input_node(3)?.0 as usize] else { return None };
        let tables = *self.tables.get(cache)?;
        let (max_blocks, dtype) = (self.machine.max_blocks, tables.spec.dtype);
        let cache = move |at: &At<'_>| Cache {
            blocks: at.view(tables.blocks),
            max_blocks,
            lens: at.view(tables.lens),
            dtype,
            layer,
        };
        let (q, k, turn) = match (self.turned(q), self.turned(k)) {
            (Some(q), Some(k)) if q.angles == k.angles => (q.x, k.x, Some(k.angles)),
            _ => (self.columns(q)?, self.columns(k)?, None),
        };
        let (k, v) = match (turn, self.columns(v)?) {
            (_, v) if v.stride == k.stride => (k, v),
            (Some(_), _) => {
                // Keys and values lie apart differently: nothing is turned on the way.
                return self.attention_apart();
            }
            (None, v) => {
                let [k, v] = self.alike([(self.input_node(1)?, k), (self.input_node(2)?, v)])?;
                (k, v)
            }
        };
        let x_type = self.values[q.of.0].dtype;
        let turn_reads = turn.iter().flat_map(|turn| [turn.positions, turn.frequencies]).collect::<Vec<_>>();
        let scratch = decode_scratch(batch, tokens, heads, max_blocks);
        let few = tokens <= FEW_TOKENS;
        let partials = if few { Some(self.temporary(DType::F32, scratch.partials)?) } else { None };
        if few {
            self.counters(scratch.arrived.checked_mul(4)?, 0)?;
        }
        let arrived = move |at: &At<'_>| View::new(at.counters, DType::I32, scratch.arrived);
        if let (1, Some(partials), true) = (tokens, partials, self.values[k.of.0].dtype == x_type) {
            // The attention itself turns and appends.
            let reads = [q.of, k.of, v.of, partials].into_iter().chain(turn_reads);
            return self.emit(reads, move |at, y| {
                let attention = Attention { batch, tokens, heads, scale, causal, q: q.strided(at), y: at.view(y) };
                let new = New { k: k.strided(at), v: v.strided(at), rope: turn.map(|turn| turn.at(at)) };
                one(decode(&attention, &cache(at), Some(&new), at.view(partials), arrived(at), gpu))
            });
        }
        let width = u64::from(heads.heads) * u64::from(heads.head_dim);
        let elements = u64::from(batch).checked_mul(tokens.into())?.checked_mul(width)?;
        let (q, turned_q) = match turn {
            None => (q, None),
            Some(_) => {
                let dense = self.temporary(x_type, elements)?;
                (Columns { of: dense, start: 0, stride: width }, Some((q, dense)))
            }
        };
        let mut touched = vec![k.of, v.of];
        touched.extend(turn_reads);
        touched.extend(turned_q.iter().flat_map(|(q, dense)| [q.of, *dense]));
        self.steps.push(Step::new(touched, move |at| {
            let rope = turn.map(|turn| turn.at(at));
            let q = turned_q.map(|(q, dense)| (q.strided(at), at.view(dense)));
            let (k, v) = (k.strided(at), v.strided(at));
            one(append(&Append { batch, tokens, heads, k, v, cache: cache(at), rope, q }))
        }));
        self.emit([q.of].into_iter().chain(partials), move |at, y| {
            let attention = Attention { batch, tokens, heads, scale, causal, q: q.strided(at), y: at.view(y) };
            let launch = match partials {
                Some(partials) => decode(&attention, &cache(at), None, at.view(partials), arrived(at), gpu),
                None => prefill(&attention, &Source::Cached(cache(at)), gpu),
            };
            one(launch)
        })
    }

    /// The attention after a rotary embedding that is done by itself.
    fn attention_apart(&mut self) -> Option<()> {
        for input in 0..2 {
            self.operand(input)?;
        }
        self.attention()
    }

    /// The embedding that a node waits for.
    fn turned(&self, id: NodeId) -> Option<Turned> {
        match self.of_node[id.0 as usize] {
            Some(Made::Turned(turned)) => Some(turned),
            _ => None,
        }
    }

    /// Columns of the same stride: as they are, or each on its own.
    fn alike(&mut self, [(a_id, a), (b_id, b)]: [(NodeId, Columns); 2]) -> Option<[Columns; 2]> {
        if a.stride == b.stride {
            return Some([a, b]);
        }
        let mut alone = |id: NodeId| {
            let stride = *self.dims(id)?.last()?;
            Some(Columns { of: self.value_of(id)?, start: 0, stride })
        };
        Some([alone(a_id)?, alone(b_id)?])
    }
}
