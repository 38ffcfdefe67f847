//! The model that `--model` names: files, or a published configuration with random weights.

use std::path::Path;

use anyhow::{Result, bail};
use genie_graph::DType;
use genie_models::{Model, OpenOptions, synthetic};

/// Begins the name of a model that no file holds.
const RANDOM: &str = "random:";

/// Random weights are the same in every process, so that a second client finds those of the first on the server.
const SEED: u64 = 1;

/// Opens a file or folder, or makes `random:NAME`: matrices of the options' type, or f32.
pub(crate) fn open(model: &Path, options: OpenOptions) -> Result<Model> {
    match random(model) {
        Some(name) => Ok(synthetic::preset(name, SEED, options.dtype.unwrap_or(DType::F32))?),
        None => Ok(Model::open(model, options)?),
    }
}

/// Refuses to go on with a text by a model that has no tokenizer because its weights are random.
pub(crate) fn check_has_words(model: &Path) -> Result<()> {
    if random(model).is_some() {
        bail!(
            "{} has random weights and no tokenizer, so it reads and writes no text: measure it with `genie bench decode` or \
             `genie gap`, which run any token ids",
            model.display()
        );
    }
    Ok(())
}

fn random(model: &Path) -> Option<&str> {
    model.to_str()?.strip_prefix(RANDOM)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, dtype: Option<DType>) -> Result<Model> {
        open(Path::new(name), OpenOptions { dtype, ..OpenOptions::default() })
    }

    #[test]
    fn random_models_are_named() {
        for name in synthetic::PRESETS {
            let model = named(&format!("random:{name}"), Some(DType::BF16)).unwrap();
            assert_eq!(model.weights()[0].dtype(), DType::BF16);
            assert_eq!(model.name(), format!("{name}, random"));
        }
        let small = named("random:gpt2", None).unwrap();
        assert_eq!((small.weights()[0].dtype(), small.weight_bytes()), (DType::F32, 124_439_808 * 4));
        // Two processes have the same weights.
        assert_eq!(small.weights()[3].hash(), named("random:gpt2", None).unwrap().weights()[3].hash());
        let unknown = named("random:gpt7", None).unwrap_err().to_string();
        assert!(unknown.contains("gpt7") && unknown.contains("gpt2-xl"), "{unknown}");
        assert!(named("random:gpt2", Some(DType::I32)).is_err());
        assert!(named("gpt2", None).is_err(), "a file of that name");
    }

    #[test]
    fn random_weights_write_no_text() {
        assert!(check_has_words(Path::new("random:gpt2")).unwrap_err().to_string().contains("bench decode"));
        assert!(check_has_words(Path::new("model.gguf")).is_ok());
    }
}
