//! Tokenizers from GGUF metadata: `gpt2` (byte-level BPE, Sennrich et al. 2016 over bytes) and `llama` (SentencePiece BPE
//! with byte fallback, Kudo and Richardson 2018).

use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer, decoders,
    normalizers,
};

use super::template::Template;
use super::{Inner, end_ids, failed};
use crate::ModelError;
use crate::gguf::{Gguf, Value};

/// SentencePiece's mark for a space.
const SPACE: &str = "\u{2581}";

/// `tokenizer.ggml.token_type`.
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// Names of Llama 3's pre-tokenizer in models that open a text with a token.
const LLAMA_3: [&str; 4] = ["llama-bpe", "llama3", "llama-v3", "falcon3"];

/// Bytes of the longest piece that is looked at for ways to cut it; those of real models have some 50.
const MAX_CUT: usize = 512;

pub(super) fn build(file: &Gguf) -> Result<Inner, ModelError> {
    let keys = Keys(file);
    let tokens = keys.strings("tokens")?;
    let vocab: Vocab = (0..).zip(&tokens).map(|(id, t)| ((*t).to_owned(), id)).collect();
    let mut tokenizer = match keys.text("model").unwrap_or("") {
        "gpt2" => byte_level(&keys, vocab)?,
        "llama" => sentence_piece(&keys, &tokens, vocab)?,
        "" => return Err(ModelError::Tokenizer("the file has none".into())),
        other => {
            let text = format!("tokenizers of kind '{other}' are not supported: byte-level and SentencePiece BPE are");
            return Err(ModelError::Tokenizer(text));
        }
    };
    let types = keys.numbers("token_type").unwrap_or_default();
    let of_type = |ty: f64| tokens.iter().zip(&types).filter(move |(_, t)| **t == ty).map(|(token, _)| *token);
    let control: Vec<_> = of_type(CONTROL).map(|t| AddedToken::from(t, true)).collect();
    let user: Vec<_> = of_type(USER_DEFINED).map(|t| AddedToken::from(t, false).normalized(false)).collect();
    tokenizer.add_special_tokens(&control);
    tokenizer.add_tokens(&user);

    let id = |key: &str| keys.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let text_of =
        |id: Option<u32>| id.and_then(|id| tokens.get(id as usize)).map(|&t| t.to_owned()).unwrap_or_default();
    let (bos, eos) = (id("bos_token_id"), id("eos_token_id"));
    let template = file.get("tokenizer.chat_template").and_then(Value::as_str);
    let template = template.map(|source| Template::new(source, text_of(bos), text_of(eos)));
    // SentencePiece models and Llama 3's open with the token unless told not to, others only if told to.
    let default = keys.text("model") == Some("llama") || keys.text("pre").is_some_and(|pre| LLAMA_3.contains(&pre));
    let opens = keys.get("add_bos_token").and_then(Value::as_bool).unwrap_or(default);
    let eos = end_ids(&tokenizer, eos.into_iter().chain(id("eot_token_id")));
    Ok(Inner { tokenizer, bos: bos.filter(|_| opens), eos, template })
}

struct Keys<'a>(&'a Gguf);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(&format!("tokenizer.ggml.{key}"))
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    fn strings(&self, key: &str) -> Result<Vec<&'a str>, ModelError> {
        let strings = self.get(key).and_then(Value::as_array).and_then(|a| a.strings());
        strings.ok_or_else(|| ModelError::Tokenizer(format!("tokenizer.ggml.{key} is missing or no list of strings")))
    }

    fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        self.get(key).and_then(Value::as_array).and_then(|a| a.numbers())
    }
}

fn byte_level(keys: &Keys<'_>, vocab: Vocab) -> Result<Tokenizer, ModelError> {
    let mut merges = Merges::new();
    for merge in keys.strings("merges")? {
        let bad = || ModelError::Tokenizer(format!("the merge '{merge}' is not two tokens"));
        // A token may begin with a space only where it is that space's byte, which is written otherwise.
        let (a, b) = merge.split_once(' ').ok_or_else(bad)?;
        merges.push((a.to_owned(), b.to_owned()));
    }
    let kind = keys.text("pre").unwrap_or("default");
    let rules = PreTokenizer::of(kind).ok_or_else(|| {
        ModelError::Tokenizer(format!("the pre-tokenizer '{kind}' is not known: take a tokenizer.json of this model"))
    })?;
    let builder = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(rules == PreTokenizer::Llama3);
    let mut tokenizer = Tokenizer::new(builder.build().map_err(failed)?);
    if rules == PreTokenizer::Qwen2 {
        tokenizer.with_normalizer(Some(NFC));
    }
    tokenizer.with_pre_tokenizer(Some(rules.build()?));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, false)));
    Ok(tokenizer)
}

/// How text is cut before merging.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    /// GPT-2's pattern.
    Gpt2,
    /// Single digits, then GPT-2's pattern.
    Digits,
    /// Llama 3's pattern: up to three digits.
    Llama3,
    /// Qwen 2's: as Llama 3's with single digits, over composed characters.
    Qwen2,
}

impl PreTokenizer {
    /// By GGUF's names.
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" | "gpt2" | "default" | "phi-2" | "mpt" | "olmo" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => Self::Digits,
            "smaug-bpe" => Self::Llama3,
            name if LLAMA_3.contains(&name) => Self::Llama3,
            "qwen2" | "deepseek-r1-qwen" => Self::Qwen2,
            _ => return None,
        })
    }

    fn build(self) -> Result<PreTokenizerWrapper, ModelError> {
        let bytes = |pattern| PreTokenizerWrapper::from(ByteLevel::new(false, true, pattern));
        let digits = match self {
            Self::Gpt2 => return Ok(bytes(true)),
            Self::Digits => return Ok(Sequence::new(vec![Digits::new(true).into(), bytes(true)]).into()),
            Self::Llama3 => r"\p{N}{1,3}",
            Self::Qwen2 => r"\p{N}",
        };
        let pattern = [
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            r"[^\r\n\p{L}\p{N}]?\p{L}+",
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ]
        .join("|");
        let split =
            Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false).map_err(failed)?;
        Ok(Sequence::new(vec![split.into(), bytes(false)]).into())
    }
}

/// SentencePiece merges the pair whose joined piece has the best score; as a list of merges, that is every way to cut a
/// piece into two others, by falling score.
fn sentence_piece(keys: &Keys<'_>, tokens: &[&str], vocab: Vocab) -> Result<Tokenizer, ModelError> {
    let missing = || ModelError::Tokenizer("tokenizer.ggml.scores is missing or of another length".into());
    let scores = keys.numbers("scores").filter(|s| s.len() == tokens.len()).ok_or_else(missing)?;
    let mut ranked = Vec::new();
    for (token, &score) in tokens.iter().zip(&scores).filter(|(token, _)| token.len() <= MAX_CUT) {
        for (cut, _) in token.char_indices().skip(1) {
            let (a, b) = token.split_at(cut);
            if let (Some(&left), Some(&right)) = (vocab.get(a), vocab.get(b)) {
                ranked.push((score, left, right, a, b));
            }
        }
    }
    ranked.sort_by(|x, y| y.0.total_cmp(&x.0).then((x.1, x.2).cmp(&(y.1, y.2))));
    let merges: Merges = ranked.into_iter().map(|(.., a, b)| (a.to_owned(), b.to_owned())).collect();
    let unknown = keys.get("unknown_token_id").and_then(Value::as_u64).unwrap_or(0);
    let unknown = usize::try_from(unknown).ok().and_then(|i| tokens.get(i));
    let mut builder: BpeBuilder = BPE::builder().vocab_and_merges(vocab, merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown {
        builder = builder.unk_token((*unknown).to_owned());
    }
    let mut tokenizer = Tokenizer::new(builder.build().map_err(failed)?);
    let prefix = keys.get("add_space_prefix").and_then(Value::as_bool).unwrap_or(true);
    let spaces: NormalizerWrapper = Replace::new(" ", SPACE).map_err(failed)?.into();
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if prefix {
        steps.push(Prepend::new(SPACE.to_owned()).into());
    }
    steps.push(spaces);
    tokenizer.with_normalizer(Some(normalizers::Sequence::new(steps)));
    let mut undo: Vec<DecoderWrapper> = vec![
        Replace::new(SPACE, " ").map_err(failed)?.into(),
        decoders::byte_fallback::ByteFallback::new().into(),
        decoders::fuse::Fuse::new().into(),
    ];
    if prefix {
        undo.push(decoders::strip::Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(decoders::sequence::Sequence::new(undo)));
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use crate::gguf::Gguf;
    use crate::gguf::testing::FileWriter;
    use crate::{ModelError, Tokenizer};

    fn tokenizer(file: &FileWriter) -> Result<Tokenizer, ModelError> {
        Tokenizer::from_gguf(&Gguf::parse(&file.region()).unwrap())
    }

    /// A SentencePiece vocabulary: control tokens, all bytes, then pieces with falling scores.
    fn sentence_piece(pieces: &[&str]) -> FileWriter {
        let bytes: Vec<String> = (0..256).map(|b| format!("<0x{b:02X}>")).collect();
        let tokens: Vec<&str> = ["<unk>", "<s>", "</s>"]
            .into_iter()
            .chain(bytes.iter().map(String::as_str))
            .chain(pieces.iter().copied())
            .collect();
        let types: Vec<i32> =
            (0..tokens.len()).map(|i| [2, 3, 3].get(i).copied().unwrap_or(if i < 259 { 6 } else { 1 })).collect();
        let scores: Vec<f32> = (0..tokens.len()).map(|i| if i < 259 { 0.0 } else { 259.0 - i as f32 }).collect();
        FileWriter::default()
            .text("tokenizer.ggml.model", "llama")
            .texts("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &types)
            .f32s("tokenizer.ggml.scores", &scores)
            .u32("tokenizer.ggml.bos_token_id", 1)
            .u32("tokenizer.ggml.eos_token_id", 2)
    }

    const PIECES: [&str; 9] = ["\u{2581}a", "ab", "\u{2581}ab", "bc", "abc", "a", "b", "c", "\u{2581}"];

    #[test]
    fn sentence_piece_merges_the_best_pair_first_and_falls_back_to_bytes() {
        let t = tokenizer(&sentence_piece(&PIECES)).unwrap();
        let piece = |p: &str| t.id(p).unwrap();
        // "\u{2581}a" scores best of all pairs, so "ab" and "abc" are never made; then "\u{2581}ab" beats "bc".
        assert_eq!(t.encode("abc").unwrap(), [1, piece("\u{2581}ab"), piece("c")]);
        assert_eq!(t.encode("a bbc").unwrap(), [1, piece("\u{2581}a"), piece("\u{2581}"), piece("b"), piece("bc")]);
        assert_eq!(t.encode("é</s>").unwrap(), [1, piece("\u{2581}"), 3 + 0xC3, 3 + 0xA9, 2]);
        assert_eq!(t.eos_ids(), [2]);
        for text in ["abc", "a  b c", "né\u{1F600}"] {
            let ids = t.encode(text).unwrap();
            assert_eq!(t.decode(&ids).unwrap(), text);
            let mut stream = t.stream();
            let mut streamed: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
            streamed.extend(stream.finish());
            assert_eq!(streamed, text);
        }
    }

    #[test]
    fn a_stream_after_a_prompt_keeps_the_space() {
        let t = tokenizer(&sentence_piece(&PIECES)).unwrap();
        for (prompt, more) in [("ab", " a b"), ("né", " ab"), ("né", "éa"), ("\u{1F600}", "\u{1F600}"), ("", "ab")] {
            let (before, all) = (t.encode(prompt).unwrap(), t.encode(&format!("{prompt}{more}")).unwrap());
            assert!(all.starts_with(&before), "{all:?} goes on from {before:?}");
            let mut stream = t.stream_after(&before);
            let mut streamed: String = all[before.len()..].iter().filter_map(|&id| stream.push(id)).collect();
            streamed.extend(stream.finish());
            assert_eq!(streamed, more, "after {prompt:?}");
        }
    }

    #[test]
    fn a_long_piece_is_not_cut() {
        let long = "a".repeat(1 << 20);
        let mut pieces = PIECES.to_vec();
        pieces.push(&long);
        let t = tokenizer(&sentence_piece(&pieces)).unwrap();
        assert_eq!(t.encode("abc").unwrap(), [1, t.id("\u{2581}ab").unwrap(), t.id("c").unwrap()]);
    }

    #[test]
    fn the_opening_token_and_space_can_be_turned_off() {
        let file = sentence_piece(&PIECES).bool("tokenizer.ggml.add_bos_token", false);
        let t = tokenizer(&file.bool("tokenizer.ggml.add_space_prefix", false)).unwrap();
        assert_eq!(t.encode("abc").unwrap(), [t.id("abc").unwrap()]);
        assert_eq!(t.decode(&t.encode(" a").unwrap()).unwrap(), " a");
    }

    fn byte_level(pre: &str, tokens: &[&str], merges: &[&str]) -> FileWriter {
        FileWriter::default()
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", pre)
            .texts("tokenizer.ggml.tokens", tokens)
            .texts("tokenizer.ggml.merges", merges)
    }

    #[test]
    fn pre_tokenizers_differ_in_how_they_cut_digits() {
        let tokens = ["1", "2", "3", "4", "12", "34", "1234", "123"];
        let merges = ["1 2", "3 4", "12 34", "12 3"];
        for (pre, expected) in
            [("gpt-2", &["1234"][..]), ("smollm", &["1", "2", "3", "4"]), ("llama-bpe", &["123", "4"])]
        {
            let t = tokenizer(&byte_level(pre, &tokens, &merges)).unwrap();
            let ids: Vec<u32> = expected.iter().map(|e| t.id(e).unwrap()).collect();
            assert_eq!(t.encode("1234").unwrap(), ids, "{pre}");
        }
    }

    #[test]
    fn llama_3_opens_unless_told_not_to() {
        let file = |pre: &str| byte_level(pre, &["a", "<s>"], &[]).u32("tokenizer.ggml.bos_token_id", 1);
        for (pre, opens) in [
            ("llama-bpe", true),
            ("llama3", true),
            ("llama-v3", true),
            ("falcon3", true),
            ("smaug-bpe", false),
            ("gpt-2", false),
        ] {
            assert_eq!(tokenizer(&file(pre)).unwrap().bos_id(), opens.then_some(1), "{pre}");
            for told in [true, false] {
                let t = tokenizer(&file(pre).bool("tokenizer.ggml.add_bos_token", told)).unwrap();
                assert_eq!(t.bos_id(), told.then_some(1), "{pre}");
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let message = |file: &FileWriter| tokenizer(file).unwrap_err().to_string();
        assert!(message(&byte_level("tekken", &["a"], &[])).contains("'tekken'"));
        assert!(message(&byte_level("gpt-2", &["a"], &["a"])).contains("not two tokens"));
        assert!(message(&byte_level("gpt-2", &["a"], &["a z"])).contains('z'));
        assert!(
            message(&FileWriter::default().text("tokenizer.ggml.model", "bert").texts("tokenizer.ggml.tokens", &[]))
                .contains("'bert'")
        );
        assert!(message(&FileWriter::default()).contains("tokens"));
    }

    #[test]
    fn chat_templates_cannot_run_for_ever() {
        let file = |template: &str| byte_level("gpt-2", &["a"], &[]).text("tokenizer.chat_template", template);
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(matches!(tokenizer(&file(endless)).unwrap().chat_text("hi"), Err(ModelError::Template(_))));
        let refusing = tokenizer(&file("{{ raise_exception('no users here') }}")).unwrap();
        assert!(refusing.chat_text("hi").unwrap_err().to_string().contains("no users here"));
        let python = tokenizer(&file("{% for m in messages %}{{ m['content'].strip() | upper }}{% endfor %}")).unwrap();
        assert_eq!(python.chat_text("  hi ").unwrap(), "HI");
        let loops = tokenizer(&file("{% for m in [1, 2] %}{{ m }}{% break %}{% endfor %}")).unwrap();
        assert_eq!(loops.chat_text("hi").unwrap(), "1");
    }

    #[test]
    fn chat_templates_are_bounded_and_only_chats_need_them() {
        let file = |template: &str| byte_level("gpt-2", &["a"], &[]).text("tokenizer.chat_template", template);
        let long = format!("{{# {} #}}", "x".repeat(64 << 10));
        for (template, reason) in [
            ("{% broken", "syntax"),
            (long.as_str(), "65"),
            ("{% for a in range(99) %}{{ 'x' * 20000 }}{% endfor %}", "1048576"),
        ] {
            let t = tokenizer(&file(template)).unwrap();
            assert_eq!(t.encode("a").unwrap(), [0]);
            assert!(t.has_chat_template());
            let error = t.chat_text("hi").unwrap_err();
            assert!(matches!(&error, ModelError::Template(text) if text.contains(reason)), "{error}");
        }
        let words = "w".repeat(3 << 20);
        assert_eq!(tokenizer(&file("{{ messages[0].content }}")).unwrap().chat_text(&words).unwrap(), words);
    }
}
