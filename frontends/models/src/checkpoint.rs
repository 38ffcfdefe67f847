//! safetensors files: one, or shards with an index.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use genie_transport::memory::Region;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::ModelError;
use crate::gguf::GgmlType;
use crate::mapping::map_file;

/// The tensors of a model's safetensors files.
pub(crate) struct Checkpoint {
    tensors: HashMap<String, StoredTensor>,
}

/// A tensor in a file.
pub(crate) struct StoredTensor {
    pub(crate) dtype: Dtype,
    pub(crate) dims: Vec<u64>,
    pub(crate) data: Region,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Maps these files and reads their tables.
    pub(crate) fn open(files: &[PathBuf]) -> Result<Self, ModelError> {
        let mut tensors = HashMap::new();
        for path in files {
            for (name, tensor) in read_table(path, &map_file(path)?)? {
                tensors.insert(name, tensor);
            }
        }
        Ok(Self { tensors })
    }

    /// The shards that an index names, in its own folder.
    pub(crate) fn shards(index: &Path) -> Result<Vec<PathBuf>, ModelError> {
        let bad = |reason: String| ModelError::Safetensors { path: index.to_owned(), reason };
        let text = std::fs::read(index).map_err(ModelError::io(index))?;
        let parsed: Index = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        let folder = index.parent().unwrap_or(Path::new(""));
        let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
        // An index could otherwise name any file on the machine.
        let plain =
            |name: &str| Path::new(name).file_name().is_some_and(|f| f == name) && name.ends_with(".safetensors");
        if let Some(odd) = names.iter().find(|n| !plain(n)) {
            return Err(bad(format!("it names '{odd}', which is not a .safetensors file beside it")));
        }
        Ok(names.iter().map(|n| folder.join(n)).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }
}

fn read_table(path: &Path, file: &Region) -> Result<Vec<(String, StoredTensor)>, ModelError> {
    let bad = |reason: String| ModelError::Safetensors { path: path.to_owned(), reason };
    let (header, metadata) = SafeTensors::read_metadata(file).map_err(|e| bad(e.to_string()))?;
    let data_start = header + size_of::<u64>();
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let range = data_start.checked_add(start).zip(data_start.checked_add(end));
        let data = range.and_then(|(start, end)| file.slice(start..end));
        let data = data.ok_or_else(|| bad(format!("the data of '{name}' lies outside the file: it is cut short")))?;
        let dims = info.shape.iter().map(|&d| d as u64).collect();
        tensors.push((name, StoredTensor { dtype: info.dtype, dims, data }));
    }
    Ok(tensors)
}

impl StoredTensor {
    /// The type, if it is one of those that are read.
    pub(crate) fn ty(&self, name: &str) -> Result<GgmlType, ModelError> {
        match self.dtype {
            Dtype::F32 => Ok(GgmlType::F32),
            Dtype::F16 => Ok(GgmlType::F16),
            Dtype::BF16 => Ok(GgmlType::BF16),
            other => Err(ModelError::TensorType {
                name: name.to_owned(),
                dtype: format!("{other:?}"),
                hint: "F32, F16 and BF16 are; convert the model",
            }),
        }
    }
}
