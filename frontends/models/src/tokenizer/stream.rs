//! Decoding while tokens come.

use super::Tokenizer;

/// Tokens whose bytes never make a character are given up on after this many; the longest character has four bytes.
const PATIENCE: usize = 8;

/// Gives text as soon as it is certain: characters whose bytes are spread over several tokens come whole.
#[derive(Clone, Debug)]
pub struct TokenStream {
    tokenizer: Tokenizer,
    /// Tokens that were given out last, as decoders treat a first token differently, then those not given out yet.
    ids: Vec<u32>,
    /// How many of them were given out.
    given: usize,
}

impl TokenStream {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), given: 0 }
    }

    /// As if the prompt's last characters had just been given out.
    pub(super) fn after(tokenizer: Tokenizer, prompt: &[u32]) -> Self {
        let whole =
            |ids: &&[u32]| tokenizer.decode(ids).is_ok_and(|text| !text.is_empty() && !text.contains('\u{FFFD}'));
        let mut lasts = (1..=PATIENCE.min(prompt.len())).map(|n| &prompt[prompt.len() - n..]);
        let ids = lasts.find(whole).unwrap_or_default().to_vec();
        let given = ids.len();
        Self { tokenizer, ids, given }
    }

    /// The next token: the text that became certain with it, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.ids.push(id);
        self.take(self.ids.len() - self.given >= PATIENCE)
    }

    /// The end: the text held back, with U+FFFD for characters that were never completed.
    pub fn finish(&mut self) -> Option<String> {
        self.take(true)
    }

    fn take(&mut self, even_if_cut: bool) -> Option<String> {
        // The decoder does not fail for the kinds of decoders that byte-level and byte-fallback models have.
        let before = self.tokenizer.decode(&self.ids[..self.given]).ok()?;
        let now = self.tokenizer.decode(&self.ids).ok()?;
        if now.ends_with('\u{FFFD}') && !even_if_cut {
            return None;
        }
        // A character that was given up on may yet be completed: then what was given out is no prefix of what it is now.
        let same =
            before.chars().zip(now.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum::<usize>();
        let text = now.get(same..).unwrap_or_default().to_owned();
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        (!text.is_empty()).then_some(text)
    }
}
