use proptest::prelude::*;

use super::testing::FileWriter;
use super::*;
use crate::{Config, Tokenizer};

/// A whole model: one layer, a byte-level tokenizer of three tokens.
fn small() -> FileWriter {
    let f32s = |n: usize| vec![0u8; n * 4];
    FileWriter::default()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 4)
        .u32("llama.attention.head_count", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab"])
        .texts("tokenizer.ggml.merges", &["a b"])
        .i32s("tokenizer.ggml.token_type", &[1, 1, 1])
        .u32("tokenizer.ggml.eos_token_id", 1)
        .tensor("token_embd.weight", &[3, 8], 0, f32s(24))
        .tensor("blk.0.attn_norm.weight", &[8], 0, f32s(8))
        .tensor("odd", &[2, 32], 8, vec![1; 68])
}

fn parse(file: &FileWriter) -> Result<Gguf, GgufError> {
    Gguf::parse(&file.region())
}

#[test]
fn what_was_written_is_read() {
    let file = parse(&small()).unwrap();
    assert_eq!(file.get("general.architecture").and_then(Value::as_str), Some("llama"));
    assert_eq!(file.get("llama.block_count").and_then(Value::as_u64), Some(1));
    let tokens = file.get("tokenizer.ggml.tokens").and_then(Value::as_array).unwrap();
    assert_eq!(tokens.strings().unwrap(), ["a", "b", "ab"]);
    assert_eq!((tokens.len(), tokens.numbers()), (3, None));
    let types = file.get("tokenizer.ggml.token_type").and_then(Value::as_array).unwrap();
    assert_eq!((types.numbers().unwrap(), types.strings()), (vec![1.0; 3], None));
    let odd = file.tensor("odd").unwrap();
    assert_eq!((odd.ty, &odd.dims[..], &odd.data[..]), (GgmlType::Q8_0, &[2, 32][..], &[1; 68][..]));
    assert_eq!(file.tensors().count(), 3);
    assert!(Config::from_gguf(&file).is_ok());
    assert_eq!(Tokenizer::from_gguf(&file).unwrap().encode("abba").unwrap(), [2, 1, 0]);
}

#[test]
fn version_2_is_read_and_others_are_refused() {
    let with_version = |version: u32| {
        let mut bytes = small().bytes();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        Gguf::parse(&Region::copy_of(&bytes)).map(|_| ())
    };
    assert_eq!(with_version(2), Ok(()));
    for version in [0, 1, 4, 0x0300_0000] {
        assert_eq!(with_version(version), Err(GgufError::Version(version)));
    }
    assert_eq!(Gguf::parse(&Region::copy_of(b"GGML")).unwrap_err(), GgufError::Magic);
    assert_eq!(Gguf::parse(&Region::copy_of(b"GG")).unwrap_err(), GgufError::Magic);
}

#[test]
fn every_cut_is_an_error() {
    let whole = small().bytes();
    for len in 0..whole.len() {
        // The last tensor ends 28 bytes before the padding of its data does.
        let result = Gguf::parse(&Region::copy_of(&whole[..len]));
        assert_eq!(result.is_ok(), len + 28 >= whole.len(), "{len} of {}", whole.len());
    }
}

#[test]
fn counts_that_cannot_be_are_refused_before_memory_is_taken() {
    for at in [8, 16] {
        for count in [1 << 20, u64::MAX / 2, u64::MAX] {
            let mut bytes = small().bytes();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            assert!(matches!(Gguf::parse(&Region::copy_of(&bytes)), Err(GgufError::Truncated(_))));
        }
    }
    let huge = |element: u32| [&element.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    for element in [0, 4, 8, 10] {
        let result = parse(&FileWriter::default().entry("array", 9, &huge(element)));
        assert_eq!(result.unwrap_err(), GgufError::Truncated("a metadata value"));
    }
}

#[test]
fn values_of_unknown_types_are_named() {
    let refused = |code| GgufError::ValueType { key: "k".into(), code };
    assert_eq!(parse(&FileWriter::default().entry("k", 13, &[0; 8])).unwrap_err(), refused(13));
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    assert_eq!(parse(&FileWriter::default().entry("k", 9, &nested)).unwrap_err(), refused(9));
}

#[test]
fn names_occur_once() {
    assert_eq!(
        parse(&small().u32("llama.block_count", 2)).unwrap_err(),
        GgufError::Duplicate("llama.block_count".into())
    );
    assert_eq!(parse(&small().tensor("odd", &[1], 0, vec![0; 4])).unwrap_err(), GgufError::Duplicate("odd".into()));
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    let with = |dims: &[u64], ty: u32| parse(&small().tensor("t", dims, ty, vec![0; 64])).map(|_| ());
    let dimensions = || Err(GgufError::Dimensions("t".into()));
    assert_eq!(with(&[4, 4], 0), Ok(()));
    assert_eq!(with(&[4, 0], 0), dimensions());
    assert_eq!(with(&[1 << 33, 1 << 33], 0), dimensions());
    assert_eq!(with(&[1 << 62], 0), dimensions());
    assert_eq!(with(&[], 0), dimensions());
    assert_eq!(with(&[1; 5], 0), dimensions());
    assert_eq!(with(&[2, 31], 8), dimensions(), "half a block");
    assert_eq!(with(&[4, 5], 0), Err(GgufError::Data("t".into())), "beyond the end");
    for (code, name) in [(12, "Q4_K"), (6, "Q5_0"), (99, "type 99")] {
        let named = GgufError::TensorType { name: "t".into(), type_name: name.into() };
        assert_eq!(with(&[256], code), Err(named));
    }
}

#[test]
fn alignments_are_checked() {
    assert!(parse(&small().u32("general.alignment", 32)).is_ok());
    for alignment in [0, 4, 48, 1 << 17] {
        let result = parse(&small().u32("general.alignment", alignment));
        assert_eq!(result.unwrap_err(), GgufError::Alignment(alignment.into()));
    }
    assert!(parse(&small().text("general.alignment", "32")).is_err());
}

/// Everything that a file's content reaches without weights being computed with.
fn read_all(bytes: &[u8]) {
    let Ok(file) = Gguf::parse(&Region::copy_of(bytes)) else { return };
    let _ = Config::from_gguf(&file);
    if let Ok(tokenizer) = Tokenizer::from_gguf(&file) {
        let _ = tokenizer.encode("ab ab");
        let _ = tokenizer.decode(&[0, 1, 2, 3]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read_all(&bytes);
        read_all(&[b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
    }

    #[test]
    fn mutated_files_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = small().bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_all(&bytes);
    }

    #[test]
    fn mutated_numbers_never_panic(at in any::<prop::sample::Index>(), value in prop::sample::select(vec![
        0u64, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 62, u64::MAX - 7, u64::MAX,
    ])) {
        let mut bytes = small().bytes();
        let at = at.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        read_all(&bytes);
    }
}
