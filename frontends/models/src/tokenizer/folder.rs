//! The tokenizer of a model folder: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`,
//! `generation_config.json`.

use std::path::Path;

use serde_json::Value as Json;

use super::template::Template;
use super::{Inner, end_ids, failed};
use crate::ModelError;

pub(super) fn build(folder: &Path) -> Result<Inner, ModelError> {
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        return Err(ModelError::Tokenizer(format!("{} is missing", path.display())));
    }
    let tokenizer = tokenizers::Tokenizer::from_file(&path).map_err(failed)?;
    let settings = read_json(folder, "tokenizer_config.json")?;
    let token = |key: &str| {
        let value = settings.get(key)?;
        // Either the text, or an object with the text and how to match it.
        value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
    };
    let (bos, eos) = (token("bos_token").unwrap_or_default(), token("eos_token").unwrap_or_default());
    let source = match std::fs::read_to_string(folder.join("chat_template.jinja")) {
        Ok(text) => Some(text),
        Err(_) => default_template(&settings),
    };
    let template = source.map(|s| Template::new(&s, bos, eos.clone())).transpose()?;
    let mut named: Vec<u32> = tokenizer.token_to_id(&eos).into_iter().collect();
    for file in ["generation_config.json", "config.json"] {
        named.extend(ids(read_json(folder, file)?.get("eos_token_id")));
    }
    // What the file's own post-processor puts before a text.
    let opening = tokenizer.encode_fast("", true).map_err(failed)?.get_ids().to_vec();
    let bos = match opening[..] {
        [] => None,
        [id] => (!named.contains(&id) || token("bos_token") == token("eos_token")).then_some(id),
        [id, ..] => Some(id),
    };
    let eos = end_ids(&tokenizer, named);
    Ok(Inner { tokenizer, bos, eos, template })
}

/// A missing file is an empty object.
fn read_json(folder: &Path, name: &str) -> Result<Json, ModelError> {
    let path = folder.join(name);
    if !path.is_file() {
        return Ok(Json::Null);
    }
    let text = std::fs::read(&path).map_err(ModelError::io(&path))?;
    serde_json::from_slice(&text).map_err(|e| ModelError::Tokenizer(format!("{}: {e}", path.display())))
}

/// One template, or a list of named ones of which `default` is for chats.
fn default_template(settings: &Json) -> Option<String> {
    let template = settings.get("chat_template")?;
    let named = |list: &Vec<Json>| {
        let entry = list.iter().find(|t| t.get("name").and_then(Json::as_str) == Some("default"))?;
        entry.get("template")?.as_str().map(str::to_owned)
    };
    template.as_str().map(str::to_owned).or_else(|| named(template.as_array()?))
}

/// One id or a list of them.
fn ids(value: Option<&Json>) -> Vec<u32> {
    let id = |v: &Json| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Some(Json::Array(list)) => list.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}
