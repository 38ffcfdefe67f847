//! Chat templates: Jinja, as Hugging Face's files carry it.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::ModelError;

const NAME: &str = "chat_template";
/// Steps that a template may take; those of real models take a few hundred.
const FUEL: u64 = 100_000;

/// A compiled template with the token names that it may mention.
pub(super) struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl Template {
    pub(super) fn new(source: &str, bos: String, eos: String) -> Result<Self, ModelError> {
        // The settings that Hugging Face renders with.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|e| ModelError::Template(e.to_string()))?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        });
        environment.add_template_owned(NAME, source.to_owned()).map_err(|e| ModelError::Template(e.to_string()))?;
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
        template.render(values).map_err(failed)
    }
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("bos", &self.bos).field("eos", &self.eos).finish_non_exhaustive()
    }
}
