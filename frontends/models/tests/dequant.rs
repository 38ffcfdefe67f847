//! Block formats against the `gguf` package's own results (`tools/golden/make_golden.py`).

use std::collections::BTreeMap;

use genie_models::dequant::dequantize;
use genie_models::gguf::GgmlType;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    bytes: String,
    values: Vec<f32>,
}

#[test]
fn results_are_bit_for_bit_the_packages() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/dequant.json");
    let cases: BTreeMap<String, Case> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(cases.len(), 6);
    for (name, case) in cases {
        let ty = match name.as_str() {
            "F16" => GgmlType::F16,
            "BF16" => GgmlType::BF16,
            "Q4_0" => GgmlType::Q4_0,
            "Q4_1" => GgmlType::Q4_1,
            "Q8_0" => GgmlType::Q8_0,
            "Q6_K" => GgmlType::Q6K,
            other => panic!("{other}"),
        };
        let byte = |i: usize| u8::from_str_radix(&case.bytes[2 * i..2 * i + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..case.bytes.len() / 2).map(byte).collect();
        let mut values = vec![f32::NAN; case.values.len()];
        assert!(dequantize(ty, &bytes, &mut values), "{name}");
        assert_eq!(values, case.values, "{name}");
    }
}
