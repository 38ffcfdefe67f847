//! Prompts of an exact length, for measurements.

use anyhow::{Result, bail};
use genie_models::Model;

/// A passage to be continued. Its words do not matter; that it is ordinary text does.
const TEXT: &str = "The harbour lay quiet under a thin fog when the first boats came in. On the quay the women sorted the \
     catch by size, the small ones for soup, the large ones for the market in the town above. An old man who had mended nets \
     there for fifty years looked up and said that the wind would turn before noon. Nobody answered him, but two of the \
     younger men went back to tie the boats a second time. By eleven the fog had lifted, the water was the colour of slate, \
     and along the horizon stood a line of cloud so straight that it might have been drawn with a ruler. The children were \
     called in. Shutters were closed one after another, up the hill and around the church, until only the baker's door \
     remained open, and from it came the smell of bread and the sound of a radio that nobody was listening to. ";

/// Token ids of ordinary text, exactly `count` of them: the passage, as often as needed. A model without a tokenizer gets ids
/// that are spread over its vocabulary.
pub(crate) fn of_length(model: &Model, count: usize) -> Result<Vec<i32>> {
    if count == 0 {
        bail!("a prompt has at least one token: choose a larger --prompt-tokens");
    }
    let Ok(tokenizer) = model.tokenizer() else {
        let vocab = model.config().vocab();
        return Ok((0..count as u64).map(|i| (i * 7919 % vocab) as i32).collect());
    };
    let mut text = String::new();
    loop {
        text.push_str(TEXT);
        let ids = tokenizer.encode(&text)?;
        if let Some(ids) = ids.get(..count) {
            return ids.iter().map(|&id| Ok(i32::try_from(id)?)).collect();
        }
    }
}

/// Whether the model sees so many tokens of a prompt and after it.
///
/// # Errors
/// If it does not.
pub(crate) fn fits(model: &Model, prompt: u32, new: u32) -> Result<()> {
    let (all, max) = (u64::from(prompt) + u64::from(new), model.config().max_positions());
    if all > max {
        bail!(
            "{prompt} + {new} tokens are more than the {max} that the model sees: choose fewer --prompt-tokens or --new-tokens"
        );
    }
    Ok(())
}

/// Token ids for the wire.
pub(crate) fn ids(ids: &[u32]) -> Result<Vec<i32>> {
    Ok(ids.iter().map(|&id| i32::try_from(id)).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use genie_graph::{DType, LinearLayout};
    use genie_models::{Gpt2Config, synthetic};

    #[test]
    fn a_prompt_has_its_length() {
        let config = Gpt2Config {
            vocab: 50,
            max_positions: 64,
            hidden: 16,
            layers: 1,
            heads: 2,
            intermediate: 32,
            eps: 1e-5,
            layout: LinearLayout::InOut,
            tied: true,
        };
        let model = synthetic::random_gpt2(config, 1, DType::F32).unwrap();
        let prompt = of_length(&model, 30).unwrap();
        assert_eq!(prompt.len(), 30);
        assert!(prompt.iter().all(|&id| (0..50).contains(&id)));
        assert!(of_length(&model, 0).is_err());
        assert!(fits(&model, 30, 34).is_ok() && fits(&model, 30, 35).is_err());
    }
}
