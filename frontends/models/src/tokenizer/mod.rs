//! Text to token ids and back.

mod folder;
mod gguf;
mod stream;
mod template;

use std::path::Path;
use std::sync::Arc;

use crate::ModelError;
use crate::gguf::Gguf;

pub use stream::TokenStream;

use template::Template;

/// A model's tokenizer. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tokenizer: tokenizers::Tokenizer,
    /// Put before plain text.
    bos: Option<u32>,
    /// Tokens that end a text, ascending.
    eos: Vec<u32>,
    /// For chats alone: what is wrong with it is said when one is asked for.
    template: Option<Result<Template, String>>,
}

/// Control tokens that end a turn or a text in the model families that are read here, whatever the metadata calls the end.
const ENDS: [&str; 6] = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "</s>"];

impl Tokenizer {
    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if there is none, or one of a kind that is not built here.
    pub fn from_gguf(file: &Gguf) -> Result<Self, ModelError> {
        gguf::build(file).map(Self::new)
    }

    /// From `tokenizer.json`, and the settings beside it, in a model's folder.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if it is missing or damaged.
    pub fn from_folder(folder: &Path) -> Result<Self, ModelError> {
        folder::build(folder).map(Self::new)
    }

    fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Token ids of a text, after the model's opening token if it has one. Names of control tokens in the text become them.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the vocabulary cannot express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids: Vec<u32> = self.inner.bos.into_iter().collect();
        ids.extend(self.raw(text)?);
        Ok(ids)
    }

    /// Token ids of a conversation in which the user says this and the assistant is next.
    ///
    /// # Errors
    /// [`ModelError::Template`] if the model has no chat template, or a failing one.
    pub fn encode_chat(&self, user: &str) -> Result<Vec<u32>, ModelError> {
        self.raw(&self.chat_text(user)?)
    }

    /// The text of such a conversation, as the model's template lays it out.
    ///
    /// # Errors
    /// As [`Self::encode_chat`].
    pub fn chat_text(&self, user: &str) -> Result<String, ModelError> {
        let none = || ModelError::Template("this model has none: it continues text, it does not chat".into());
        match self.inner.template.as_ref().ok_or_else(none)? {
            Ok(template) => template.render(user),
            Err(reason) => Err(ModelError::Template(reason.clone())),
        }
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.inner.template.is_some()
    }

    /// The text of these ids, control tokens left out; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.inner.tokenizer.decode(ids, true).map_err(failed)
    }

    /// Decodes ids as they come: a text of its own.
    pub fn stream(&self) -> TokenStream {
        TokenStream::new(self.clone())
    }

    /// Decodes ids that go on with a prompt. The space before the first word, which decoders drop where a text begins, is kept.
    pub fn stream_after(&self, prompt: &[u32]) -> TokenStream {
        TokenStream::after(self.clone(), prompt)
    }

    /// Ids that end a text.
    pub fn eos_ids(&self) -> &[u32] {
        &self.inner.eos
    }

    /// The id put before plain text, if any.
    pub fn bos_id(&self) -> Option<u32> {
        self.inner.bos
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    fn raw(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        Ok(self.inner.tokenizer.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }
}

/// The end tokens of a vocabulary, with those that the metadata names.
fn end_ids(tokenizer: &tokenizers::Tokenizer, named: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let added = tokenizer.get_added_vocabulary();
    let known = ENDS.iter().filter(|t| added.is_special_token(t)).filter_map(|t| tokenizer.token_to_id(t));
    let mut ids: Vec<u32> = known.chain(named).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn failed(error: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}
