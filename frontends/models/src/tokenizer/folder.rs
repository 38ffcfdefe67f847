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
        let hint = "write it with the transformers library: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)";
        return Err(ModelError::Tokenizer(format!("{} is missing: {hint}", path.display())));
    }
    let mut tokenizer = tokenizers::Tokenizer::from_file(&path).map_err(failed)?;
    // What was set for training batches would cut a prompt, or fill it up.
    tokenizer.with_truncation(None).map_err(failed)?;
    tokenizer.with_padding(None);
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
    let template = source.map(|s| Template::new(&s, bos.clone(), eos.clone()));
    let mut named: Vec<u32> = tokenizer.token_to_id(&eos).into_iter().collect();
    for file in ["generation_config.json", "config.json"] {
        named.extend(ids(read_json(folder, file)?.get("eos_token_id")));
    }
    // What the file's own post-processor puts before a text.
    let opening = tokenizer.encode_fast("", true).map_err(failed)?.get_ids().to_vec();
    let opening = match opening[..] {
        [] => None,
        [id] => (!named.contains(&id) || bos == eos).then_some(id),
        [id, ..] => Some(id),
    };
    // The classes of Llama's tokenizers build the post-processor anew.
    let class = settings.get("tokenizer_class").and_then(Json::as_str).unwrap_or_default();
    let told = settings.get("add_bos_token").and_then(Json::as_bool).filter(|_| class.starts_with("Llama"));
    let bos = match told {
        Some(true) => tokenizer.token_to_id(&bos),
        Some(false) => None,
        None => opening,
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

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use crate::{ModelError, Tokenizer};

    /// A word-level tokenizer that opens texts with `<s>`.
    fn tokenizer_json() -> serde_json::Value {
        json!({
            "version": "1.0",
            "added_tokens": [
                {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
                {"id": 1, "content": "<|eot_id|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
            ],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
            },
            "model": {"type": "WordLevel", "vocab": {"<s>": 0, "<|eot_id|>": 1, "hi": 2, "user": 3, "end": 4}, "unk_token": "<s>"},
        })
    }

    fn write(folder: &tempfile::TempDir, name: &str, value: &serde_json::Value) {
        fs::write(folder.path().join(name), value.to_string()).unwrap();
    }

    #[test]
    fn the_settings_beside_the_tokenizer_count() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder, "tokenizer.json", &tokenizer_json());
        let bare = Tokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(bare.encode("hi user").unwrap(), [0, 2, 3]);
        assert_eq!((bare.bos_id(), bare.eos_ids(), bare.has_chat_template()), (Some(0), &[1][..], false));
        assert!(matches!(bare.encode_chat("hi"), Err(ModelError::Template(_))));

        let template = "{{ bos_token }} user {{ messages[0]['content'] }} {% if add_generation_prompt %}{{ eos_token }}{% endif %}";
        write(
            &folder,
            "tokenizer_config.json",
            &json!({
                "bos_token": "<s>",
                "eos_token": {"content": "<|eot_id|>"},
                "chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": template}],
            }),
        );
        write(&folder, "generation_config.json", &json!({"eos_token_id": [1, 4]}));
        let full = Tokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(full.eos_ids(), [1, 4]);
        assert_eq!(full.chat_text("hi").unwrap(), "<s> user hi <|eot_id|>");
        assert_eq!(full.encode_chat("hi").unwrap(), [0, 3, 2, 1]);
        write(&folder, "tokenizer_config.json", &json!({"bos_token": "<s>", "chat_template": "{% broken"}));
        let broken = Tokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(broken.encode("hi").unwrap(), [0, 2], "a text needs no template");
        assert!(matches!(broken.chat_text("hi"), Err(ModelError::Template(_))));
        fs::write(folder.path().join("chat_template.jinja"), "user").unwrap();
        assert_eq!(Tokenizer::from_folder(folder.path()).unwrap().chat_text("hi").unwrap(), "user");
    }

    #[test]
    fn what_was_set_for_training_is_not_obeyed() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = tokenizer_json();
        file["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        file["padding"] = json!({
            "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 4, "pad_type_id": 0, "pad_token": "end",
        });
        write(&folder, "tokenizer.json", &file);
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(tokenizer.encode("hi user end hi").unwrap(), [0, 2, 3, 4, 2]);
    }

    #[test]
    fn llamas_classes_are_told_whether_to_open() {
        let folder = tempfile::tempdir().unwrap();
        let encoded = |opens: bool, class: &str, add: bool| {
            let mut file = tokenizer_json();
            if !opens {
                file["post_processor"] = json!(null);
            }
            write(&folder, "tokenizer.json", &file);
            let settings = json!({"bos_token": "<s>", "add_bos_token": add, "tokenizer_class": class});
            write(&folder, "tokenizer_config.json", &settings);
            Tokenizer::from_folder(folder.path()).unwrap().encode("hi").unwrap()
        };
        assert_eq!(encoded(true, "LlamaTokenizerFast", false), [2]);
        assert_eq!(encoded(false, "LlamaTokenizer", true), [0, 2]);
        assert_eq!(encoded(true, "PreTrainedTokenizerFast", false), [0, 2]);
        assert_eq!(encoded(false, "Qwen2Tokenizer", true), [2]);
    }

    #[test]
    fn missing_and_damaged_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = || Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(message().contains("tokenizer.json is missing") && message().contains("save_pretrained"));
        fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
        assert!(message().contains("no usable tokenizer"));
        write(&folder, "tokenizer.json", &tokenizer_json());
        fs::write(folder.path().join("config.json"), "[").unwrap();
        assert!(message().contains("config.json"));
    }
}
