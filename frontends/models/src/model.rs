//! A model on disk, opened.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use genie_graph::{DType, VerifiedGraph};
use genie_transport::memory::Region;

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::gguf::{GgmlType, Gguf, Value};
use crate::graphs::GraphOptions;
use crate::hash::{HashCache, Stamp};
use crate::mapping::map_file;
use crate::weights::{Kind, Source, Weight, WeightSpec};
use crate::{ContentHash, ModelError, Tokenizer, gpt2, gptj, llama};

/// A model: configuration, tokenizer, weights. The files stay mapped while it, or bytes of it, live.
#[derive(Debug)]
pub struct Model {
    name: String,
    config: Config,
    weights: Vec<Weight>,
    tokenizer_source: TokenizerSource,
    tokenizer: OnceLock<Tokenizer>,
    /// What the weights were read from; empty where they were not.
    stamps: Vec<Stamp>,
    hashes: OnceLock<Vec<ContentHash>>,
}

/// How to open a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Convert matrices to this float type. `None`: keep them as they are; quantised ones become f32. Norms and biases are
    /// f32 always.
    pub dtype: Option<DType>,
    /// Keep quantised matrices in the file's own blocks where graphs read these (Q8_0, Q4_0, Q4_1): they are sent as they lie in
    /// the file, and become floats inside the products. `dtype` is for the others alone then.
    pub blocks: bool,
}

/// Where the tokenizer is read from, once it is asked for.
#[derive(Debug)]
enum TokenizerSource {
    None,
    Gguf(Arc<Gguf>),
    Folder(PathBuf),
}

impl Model {
    /// Opens a `.gguf` file, a `.safetensors` file beside its `config.json`, or a folder with `config.json` and
    /// `model.safetensors` or `model.safetensors.index.json`. Weights are listed and checked, not read.
    ///
    /// # Errors
    /// [`ModelError`]: the files cannot be read, are damaged, or are of a kind that is not supported.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self, ModelError> {
        let path = path.as_ref();
        if let Some(dtype) = options.dtype.filter(|d| !d.is_float()) {
            return Err(ModelError::TargetType(dtype));
        }
        let kind = std::fs::metadata(path).map_err(ModelError::io(path))?;
        if kind.is_dir() {
            return open_folder(path, options);
        }
        match path.extension().and_then(OsStr::to_str) {
            Some("gguf") => open_gguf(path, options),
            Some("safetensors") => {
                open_safetensors(path.parent().unwrap_or(Path::new("")), vec![path.to_owned()], options)
            }
            Some("pt" | "pth" | "bin" | "pkl" | "ckpt") => Err(ModelError::Pickle(path.to_owned())),
            _ => Err(ModelError::NotAModel(path.to_owned())),
        }
    }

    pub(crate) fn from_parts(name: String, config: Config, weights: Vec<Weight>) -> Self {
        Self {
            name,
            config,
            weights,
            tokenizer_source: TokenizerSource::None,
            tokenizer: OnceLock::new(),
            stamps: Vec::new(),
            hashes: OnceLock::new(),
        }
    }

    pub(crate) fn named(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// What the files call it, or the file's own name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its weights, in the order in which every graph of it has them as inputs.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// The float type of its matrices, if they have one in common; blocks have none.
    pub fn matrix_dtype(&self) -> Option<DType> {
        let mut types = self.weights.iter().filter(|w| w.dims().len() == 2).map(Weight::dtype);
        let first = types.next().filter(|dtype| dtype.is_float())?;
        types.all(|dtype| dtype == first).then_some(first)
    }

    /// Bytes of all weights as they are uploaded.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.iter().map(Weight::len_bytes).sum()
    }

    /// Its tokenizer, built when first asked for.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if it has none, or one that is not understood.
    pub fn tokenizer(&self) -> Result<&Tokenizer, ModelError> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let tokenizer = match &self.tokenizer_source {
            TokenizerSource::None => return Err(ModelError::Tokenizer("this model has none".into())),
            TokenizerSource::Gguf(file) => Tokenizer::from_gguf(file)?,
            TokenizerSource::Folder(folder) => Tokenizer::from_folder(folder)?,
        };
        Ok(self.tokenizer.get_or_init(|| tokenizer))
    }

    /// The program for a phase. See [`crate::inputs`] and [`crate::outputs`] for what goes in and comes out.
    ///
    /// # Errors
    /// [`ModelError::Graph`] if the verifier refuses it.
    pub fn graph(&self, options: GraphOptions) -> Result<VerifiedGraph, ModelError> {
        match &self.config {
            Config::Llama(c) => llama::graph(&self.name, c, &self.weights, options),
            Config::Gpt2(c) => gpt2::graph(&self.name, c, &self.weights, options),
            Config::GptJ(c) => gptj::graph(&self.name, c, &self.weights, options),
        }
    }

    /// The content hash of each weight as uploaded, in the order of [`Self::weights`]. Hashes of an earlier run are taken from
    /// `cache` if the files are the same as then; the rest are computed on all cores, and kept there, and here for the next
    /// call. `progress` is called with the bytes done and to do.
    pub fn hashes(&self, cache: &HashCache, progress: impl FnMut(u64, u64)) -> Vec<ContentHash> {
        if let Some(known) = self.hashes.get() {
            return known.clone();
        }
        let hashes = self.hash_all(cache, progress);
        self.hashes.get_or_init(|| hashes).clone()
    }

    fn hash_all(&self, cache: &HashCache, mut progress: impl FnMut(u64, u64)) -> Vec<ContentHash> {
        let stamped = !self.stamps.is_empty();
        if let Some(known) = stamped.then(|| cache.load(&self.stamps, &self.weights)).flatten() {
            return known;
        }
        let (mut done, total) = (0, self.weight_bytes());
        let mut hashes = Vec::with_capacity(self.weights.len());
        for weight in &self.weights {
            hashes.push(weight.hash());
            done += weight.len_bytes();
            progress(done, total);
        }
        if stamped {
            cache.store(&self.stamps, &self.weights, &hashes);
        }
        hashes
    }
}

/// A tensor that a file holds, under whatever name.
struct Found {
    name: String,
    ty: GgmlType,
    dims: Vec<u64>,
    data: Region,
}

fn open_gguf(path: &Path, options: OpenOptions) -> Result<Model, ModelError> {
    let stamps = vec![Stamp::of(path)?];
    let file = Gguf::parse(&map_file(path)?).map_err(|source| ModelError::Gguf { path: path.to_owned(), source })?;
    let number = |key: &str| file.get(key).and_then(Value::as_u64).unwrap_or(0);
    let parts = number("split.count");
    if parts > 1 {
        return Err(ModelError::Split { path: path.to_owned(), part: number("split.no").saturating_add(1), parts });
    }
    let config = Config::from_gguf(&file)?;
    let weights = collect(&config, options, |spec| {
        let t = file.tensor(&spec.name).ok_or_else(|| ModelError::MissingTensor(spec.name.clone()))?;
        Ok(Found { name: spec.name.clone(), ty: t.ty, dims: t.dims.clone(), data: t.data.clone() })
    })?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = file.get("general.name").and_then(Value::as_str).map_or_else(|| stem.into_owned(), str::to_owned);
    Ok(Model {
        tokenizer_source: TokenizerSource::Gguf(Arc::new(file)),
        stamps,
        ..Model::from_parts(short_name(&name), config, weights)
    })
}

fn open_folder(folder: &Path, options: OpenOptions) -> Result<Model, ModelError> {
    let (single, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
    if single.is_file() {
        return open_safetensors(folder, vec![single], options);
    }
    if index.is_file() {
        return open_safetensors(folder, Checkpoint::shards(&index)?, options);
    }
    for pickle in ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt"] {
        let pickle = folder.join(pickle);
        if pickle.exists() {
            return Err(ModelError::Pickle(pickle));
        }
    }
    Err(ModelError::NotAModel(folder.to_owned()))
}

fn open_safetensors(folder: &Path, files: Vec<PathBuf>, options: OpenOptions) -> Result<Model, ModelError> {
    let config_path = folder.join("config.json");
    if !config_path.is_file() {
        return Err(ModelError::NotAModel(files.into_iter().next().unwrap_or_else(|| folder.to_owned())));
    }
    let config = Config::from_json(&std::fs::read(&config_path).map_err(ModelError::io(&config_path))?)?;
    let mut stamps = files.iter().map(|f| Stamp::of(f)).collect::<Result<Vec<_>, _>>()?;
    // Some weights are computed from the configuration.
    stamps.push(Stamp::of(&config_path)?);
    let checkpoint = Checkpoint::open(&files)?;
    let weights = collect(&config, options, |spec| {
        let plain = config.hugging_face_name(&spec.name);
        let prefixed = format!("transformer.{plain}");
        let name = if checkpoint.get(&prefixed).is_some() { prefixed } else { plain };
        let tensor = checkpoint.get(&name).ok_or_else(|| ModelError::MissingTensor(name.clone()))?;
        let ty = tensor.ty(&name)?;
        Ok(Found { name, ty, dims: tensor.dims.clone(), data: tensor.data.clone() })
    })?;
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let name = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Model {
        tokenizer_source: TokenizerSource::Folder(folder.to_owned()),
        stamps,
        ..Model::from_parts(short_name(&name), config, weights)
    })
}

/// The weights that the configuration calls for, each from where `find` says it is.
fn collect(
    config: &Config,
    options: OpenOptions,
    find: impl Fn(&WeightSpec) -> Result<Found, ModelError>,
) -> Result<Vec<Weight>, ModelError> {
    let weight = |spec: WeightSpec| {
        if let Some(region) = config.made(&spec.name) {
            return Weight::new(spec, DType::F32, Source::Made(region));
        }
        let found = find(&spec)?;
        if found.dims != spec.dims {
            return Err(ModelError::TensorShape { name: found.name, expected: spec.dims, found: found.dims });
        }
        if options.blocks
            && spec.kind == Kind::Matrix
            && let Some(weight) = Weight::in_blocks(&spec, found.ty, &found.data)?
        {
            return Ok(weight);
        }
        let kept = options.dtype.or(found.ty.element()).unwrap_or(DType::F32);
        let dtype = if spec.kind == Kind::Matrix { kept } else { DType::F32 };
        Weight::new(spec, dtype, Source::Stored { ty: found.ty, data: found.data })
    };
    config.weights().into_iter().map(weight).collect()
}

/// Names go into graphs and logs: no control characters, no more than 100 characters.
fn short_name(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use genie_graph::{LinearLayout, Op, Phase, QuantFormat, RopeStyle};

    use super::*;
    use crate::gguf::testing::FileWriter;
    use crate::{Gpt2Config, LlamaConfig};

    const Q8_0: u32 = 8;

    /// Adds every weight that the configuration calls for: matrices as Q8_0 (each block: scale 1, values 0 to 31), the rest as
    /// f32 zeros.
    fn with_weights(mut file: FileWriter, config: &Config) -> FileWriter {
        let block: Vec<u8> = [0x00, 0x3C].into_iter().chain(0..32).collect();
        for spec in config.weights() {
            let elements = spec.dims.iter().product::<u64>() as usize;
            file = match spec.kind {
                Kind::Matrix => file.tensor(&spec.name, &spec.dims, Q8_0, block.repeat(elements / 32)),
                Kind::Norm | Kind::Vector => file.tensor(&spec.name, &spec.dims, 0, vec![0; elements * 4]),
            };
        }
        file
    }

    fn open(file: &FileWriter) -> Result<Model, ModelError> {
        open_with(file, OpenOptions::default())
    }

    fn open_with(file: &FileWriter, options: OpenOptions) -> Result<Model, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        Model::open(path, options)
    }

    fn llama_entries(architecture: &str) -> FileWriter {
        let key = |k: &str| format!("{architecture}.{k}");
        FileWriter::default()
            .text("general.architecture", architecture)
            .text("general.name", "Tiny\n model")
            .u32(&key("block_count"), 2)
            .u32(&key("context_length"), 64)
            .u32(&key("embedding_length"), 32)
            .u32(&key("feed_forward_length"), 64)
            .u32(&key("attention.head_count"), 4)
            .u32(&key("attention.head_count_kv"), 2)
            .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
    }

    fn llama_config() -> LlamaConfig {
        LlamaConfig {
            vocab: 10,
            hidden: 32,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            intermediate: 64,
            max_positions: 64,
            rms_eps: 1e-5,
            rope_theta: 1e4,
            rope_style: RopeStyle::Interleaved,
            inv_freq: None,
            tied: true,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
        }
    }

    fn assert_opens(file: FileWriter, config: &Config) -> Model {
        let model = open(&with_weights(file, config)).unwrap();
        assert_eq!(model.config(), config);
        assert!(model.graph(GraphOptions::new(Phase::Decode)).is_ok());
        model
    }

    #[test]
    fn gguf_llama_is_interleaved_and_dequantised() {
        let model = assert_opens(llama_entries("llama"), &Config::Llama(llama_config()));
        assert_eq!(model.name(), "Tiny model");
        let table = model.weights()[0].bytes();
        let values: Vec<f32> = table.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        assert_eq!(values, (0..320).map(|i| (i % 32) as f32).collect::<Vec<_>>());
        assert!(matches!(model.tokenizer(), Err(ModelError::Tokenizer(_))));
    }

    #[test]
    fn gguf_blocks_may_stay_as_they_are() {
        let file = with_weights(llama_entries("llama"), &Config::Llama(llama_config()));
        let dtype = Some(DType::BF16);
        let model = open_with(&file, OpenOptions { dtype, blocks: true }).unwrap();
        for (weight, spec) in model.weights().iter().zip(model.config().weights()) {
            if spec.kind == Kind::Matrix {
                // 32 numbers in 34 bytes.
                let bytes = spec.dims[1] / 32 * 34;
                assert_eq!((weight.dtype(), weight.dims()), (DType::U8, &[spec.dims[0], bytes][..]), "{}", spec.name);
                assert_eq!(weight.format(), Some(QuantFormat::Q8_0));
                assert_eq!(weight.len_bytes(), spec.dims[0] * bytes);
                assert_eq!(weight.bytes()[..3], [0x00, 0x3C, 0]);
            } else {
                assert_eq!((weight.dtype(), weight.format()), (DType::F32, None), "{}", spec.name);
            }
        }
        for phase in [Phase::Prefill, Phase::Decode] {
            let graph = model.graph(GraphOptions::new(phase)).unwrap();
            let unpacked = graph.nodes.iter().filter(|n| matches!(n.op, Op::Dequantize { .. })).count();
            // Seven matrices a layer, the rows of the embedding, and the same table as the output layer.
            assert_eq!(unpacked, 7 * 2 + 2);
            assert_eq!(graph.nodes.iter().filter(|n| n.op == Op::Gather).count(), 1);
        }
        // Products take what the activations are of; what the layers add to stays f32.
        let narrow = GraphOptions { activations: DType::BF16, ..GraphOptions::new(Phase::Decode) };
        let graph = model.graph(narrow).unwrap();
        let of = |format: DType| {
            let unpacked = |n: &&genie_graph::Node| matches!(n.op, Op::Dequantize { to, .. } if to == format);
            graph.nodes.iter().filter(unpacked).count()
        };
        assert_eq!((of(DType::BF16), of(DType::F32)), (7 * 2 + 1, 1));
        assert_eq!(model.matrix_dtype(), None);
        // What no graph reads in blocks is converted, to the type that was asked for.
        let mut mixed = llama_entries("llama");
        for spec in model.config().weights() {
            let elements = spec.dims.iter().product::<u64>() as usize;
            mixed = match (spec.kind, spec.name.as_str()) {
                (Kind::Matrix, "token_embd.weight") => mixed.tensor(&spec.name, &spec.dims, 1, vec![0; elements * 2]),
                (Kind::Matrix, _) => mixed.tensor(&spec.name, &spec.dims, Q8_0, vec![0; elements / 32 * 34]),
                _ => mixed.tensor(&spec.name, &spec.dims, 0, vec![0; elements * 4]),
            };
        }
        let model = open_with(&mixed, OpenOptions { dtype, blocks: true }).unwrap();
        assert_eq!((model.weights()[0].dtype(), model.weights()[0].format()), (DType::BF16, None));
        assert_eq!(model.weights()[2].format(), Some(QuantFormat::Q8_0));
        assert!(model.graph(GraphOptions::new(Phase::Decode)).is_ok());
    }

    #[test]
    fn gguf_qwen2_has_biases_and_half_pairs() {
        let config = LlamaConfig { rope_style: RopeStyle::Half, qkv_bias: true, tied: false, ..llama_config() };
        assert_opens(llama_entries("qwen2"), &Config::Llama(config));
    }

    #[test]
    fn gguf_frequencies_may_be_divided() {
        let plain = |i: i32| 1e4f64.powf(f64::from(i) / -4.0) as f32;
        let config =
            |divided: [f32; 4]| Config::Llama(LlamaConfig { inv_freq: Some(divided.into()), ..llama_config() });
        let divisors: Vec<u8> = [1f32, 1.0, 2.0, 8.0].iter().flat_map(|d| d.to_le_bytes()).collect();
        let each = llama_entries("llama").tensor("rope_freqs.weight", &[4], 0, divisors);
        let model = assert_opens(each, &config([plain(0), plain(1), plain(2) / 2.0, plain(3) / 8.0]));
        assert_eq!(model.weights()[1].name(), "rope.inv_freq");
        let linear = llama_entries("llama").text("llama.rope.scaling.type", "linear");
        let linear = linear.f32("llama.rope.scaling.factor", 4.0);
        assert_opens(linear, &config([0, 1, 2, 3].map(|i| plain(i) / 4.0)));
        // Without a type, and by the key of older files.
        for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
            assert_opens(llama_entries("llama").f32(key, 4.0), &config([0, 1, 2, 3].map(|i| plain(i) / 4.0)));
        }
        let none = llama_entries("llama").text("llama.rope.scaling.type", "none").f32("llama.rope.scaling.factor", 4.0);
        assert_opens(none, &Config::Llama(llama_config()));
        let refused = |file| open(&with_weights(file, &Config::Llama(llama_config()))).unwrap_err();
        let yarn = llama_entries("llama").text("llama.rope.scaling.type", "yarn");
        assert!(matches!(refused(yarn), ModelError::Config(_)));
        for factor in [0.0, -2.0, f32::NAN, f32::INFINITY] {
            let error = refused(llama_entries("llama").f32("llama.rope.scaling.factor", factor));
            assert!(error.to_string().contains("factor"), "{error}");
        }
    }

    #[test]
    fn a_window_bounds_the_positions() {
        let window = llama_entries("llama").u32("llama.attention.sliding_window", 24);
        let model = assert_opens(window, &Config::Llama(LlamaConfig { max_positions: 24, ..llama_config() }));
        assert_eq!(model.config().max_positions(), 24);
    }

    #[test]
    fn gguf_gpt2_is_stored_out_in() {
        let file = FileWriter::default()
            .text("general.architecture", "gpt2")
            .u32("gpt2.block_count", 2)
            .u32("gpt2.context_length", 64)
            .u32("gpt2.embedding_length", 32)
            .u32("gpt2.feed_forward_length", 128)
            .u32("gpt2.attention.head_count", 4)
            .f32("gpt2.attention.layer_norm_epsilon", 1e-5);
        let config = Gpt2Config {
            vocab: 10,
            max_positions: 64,
            layout: LinearLayout::OutIn,
            tied: false,
            ..Gpt2Config::of(2, 4, 32)
        };
        assert_opens(file, &Config::Gpt2(config));
    }

    #[test]
    fn what_gguf_lacks_is_named() {
        let file = with_weights(llama_entries("llama"), &Config::Llama(LlamaConfig { layers: 1, ..llama_config() }));
        assert!(matches!(open(&file), Err(ModelError::MissingTensor(n)) if n == "blk.1.attn_norm.weight"));
        let other = FileWriter::default().text("general.architecture", "rwkv");
        assert!(matches!(open(&other), Err(ModelError::Architecture(n)) if n == "rwkv"));
        let message = |file: &FileWriter| open(file).unwrap_err().to_string();
        assert!(message(&FileWriter::default()).contains("general.architecture"));
        let part = FileWriter::default().u32("split.count", 3).u32("split.no", 1);
        let message = message(&part);
        assert!(message.contains("part 2 of 3") && message.contains("llama-gguf-split --merge"), "{message}");
        assert!(matches!(open(&llama_entries("llama").u32("llama.expert_count", 8)), Err(ModelError::Config(_))));
        assert!(matches!(
            open(&llama_entries("llama").u32("llama.rope.dimension_count", 4)),
            Err(ModelError::Config(_))
        ));
    }
}
