//! Chat templates: Jinja, as Hugging Face's files carry it.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::ModelError;

const NAME: &str = "chat_template";
/// Steps that a template may take; those of real models take a few hundred.
const FUEL: u64 = 100_000;
/// Bytes of a template; the longest of real models have some 20,000.
const MAX_SOURCE: usize = 64 << 10;
/// Bytes that a template may write beside the user's words.
const MAX_OUTPUT: usize = 1 << 20;

/// A compiled template with the token names that it may mention.
pub(super) struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl Template {
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn new(source: &str, bos: String, eos: String) -> Result<Self, String> {
        if source.len() > MAX_SOURCE {
            return Err(format!("it has {} bytes, more than the {MAX_SOURCE} that are read", source.len()));
        }
        // The settings that Hugging Face renders with.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|e| e.to_string())?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        });
        environment.add_template_owned(NAME, source.to_owned()).map_err(|e| e.to_string())?;
        Ok(Self { environment, bos, eos })
    }

    /// The user's words, with the assistant's turn begun.
    pub(super) fn render(&self, user: &str) -> Result<String, ModelError> {
        let failed = |e: Error| ModelError::Template(e.to_string());
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let messages = vec![context! { role => "user", content => user }];
        let values = context! {
            messages => messages,
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        let mut written = Limited { text: Vec::new(), left: MAX_OUTPUT.saturating_add(user.len()) };
        let rendered = template.render_captured_to(values, &mut written).map(|_| ());
        if written.left == 0 {
            return Err(ModelError::Template(format!("it wrote more than {MAX_OUTPUT} bytes of its own")));
        }
        rendered.map_err(failed)?;
        String::from_utf8(written.text).map_err(|e| ModelError::Template(e.to_string()))
    }
}

/// Takes fewer than `left` bytes.
struct Limited {
    text: Vec<u8>,
    left: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.saturating_sub(bytes.len());
        if self.left == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("bos", &self.bos).field("eos", &self.eos).finish_non_exhaustive()
    }
}
