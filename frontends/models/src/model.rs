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
use crate::{ContentHash, ModelError, Tokenizer, gpt2, llama};

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
}

/// How to open a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Convert matrices to this float type. `None`: keep them as they are; quantised ones become f32. Norms and biases are
    /// f32 always.
    pub dtype: Option<DType>,
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
        }
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
        }
    }

    /// The content hash of each weight as uploaded, in the order of [`Self::weights`]. Hashes of an earlier run are taken from
    /// `cache` if the files are the same as then; the rest are computed on all cores, and kept there. `progress` is called
    /// with the bytes done and to do.
    pub fn hashes(&self, cache: &HashCache, mut progress: impl FnMut(u64, u64)) -> Vec<ContentHash> {
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
    let config = Config::from_gguf(&file)?;
    let weights = collect(&config, options, |spec| {
        let tensor = file.tensor(&spec.name);
        let found =
            tensor.map(|t| Found { name: spec.name.clone(), ty: t.ty, dims: t.dims.clone(), data: t.data.clone() });
        Ok(found)
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
        let name = if checkpoint.get(&plain).is_some() { plain } else { prefixed };
        let Some(tensor) = checkpoint.get(&name) else { return Ok(None) };
        let ty = tensor.ty(&name)?;
        Ok(Some(Found { name, ty, dims: tensor.dims.clone(), data: tensor.data.clone() }))
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
    find: impl Fn(&WeightSpec) -> Result<Option<Found>, ModelError>,
) -> Result<Vec<Weight>, ModelError> {
    let weight = |spec: WeightSpec| {
        if let Some(region) = config.made(&spec.name) {
            return Weight::new(spec, DType::F32, Source::Made(region));
        }
        let found = find(&spec)?.ok_or_else(|| ModelError::MissingTensor(spec.name.clone()))?;
        if found.dims != spec.dims {
            return Err(ModelError::TensorShape { name: found.name, expected: spec.dims, found: found.dims });
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
