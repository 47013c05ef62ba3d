//! Policy files: what comes back, what is refused, and that nothing makes the reader panic.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../placement/tests/cases/mod.rs"]
#[allow(dead_code)]
mod cases;
mod common;

use std::collections::HashMap;

use candle_core::Device;
use cases::{Draw, network};
use common::card;
use hyperion_policy::{MAX_BYTES, PolicyError, PolicyFile, Precision, Quantisation};
use proptest::prelude::*;

fn full() -> Vec<u8> {
    PolicyFile::write_safetensors(&card(), &network(1)).unwrap()
}

fn quantised(quantisation: Quantisation) -> Vec<u8> {
    PolicyFile::write_gguf(&card(), &network(1), quantisation).unwrap()
}

fn refusal(bytes: &[u8]) -> PolicyError {
    PolicyFile::read(bytes).unwrap_err()
}

/// The file with one text in it replaced by another of the same length.
fn with(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes
        .windows(from.len())
        .position(|w| w == from.as_bytes())
        .unwrap_or_else(|| panic!("{from} is not in the file"));
    let mut changed = bytes.to_vec();
    changed[at..at + to.len()].copy_from_slice(to.as_bytes());
    changed
}

/// A safetensors file with another header.
fn with_header(bytes: &[u8], change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(&bytes[8 + length..]);
    out
}

#[test]
fn a_full_file_comes_back_as_it_was_written() {
    let file = PolicyFile::read(&full()).unwrap();
    assert_eq!(file.card, card());
    assert_eq!(file.network, network(1));
    assert_eq!(file.precision, Precision::Full);
    assert_eq!(full(), full());
}

#[test]
fn a_quantised_file_comes_back_with_rounded_weights() {
    for (quantisation, most) in [(Quantisation::Q8, 0.005), (Quantisation::Q4, 0.13)] {
        let bytes = quantised(quantisation);
        assert!(bytes.len() <= 256 << 10, "{} bytes", bytes.len());
        let file = PolicyFile::read(&bytes).unwrap();
        assert_eq!(file.card, card());
        assert_eq!(file.precision, Precision::Quantised(quantisation));
        for ((name, ours), (_, exact)) in file.network.layers().iter().zip(network(1).layers()) {
            assert_eq!(ours.bias, exact.bias, "{name}");
            let largest = exact.weight.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
            for (a, b) in ours.weight.iter().zip(&exact.weight) {
                assert!((a - b).abs() <= most * largest, "{name}: {a} and {b}");
            }
        }
        // Quantised again, nothing changes: a file can be read and executed without loss.
        let again = PolicyFile::write_gguf(&file.card, &file.network, quantisation).unwrap();
        assert_eq!(again, bytes);
    }
}

#[test]
fn other_programs_read_our_safetensors() {
    let tensors: HashMap<String, candle_core::Tensor> =
        candle_core::safetensors::load_buffer(&full(), &Device::Cpu).unwrap();
    assert_eq!(tensors.len(), 12);
    let head = tensors["head.weight"].flatten_all().unwrap();
    assert_eq!(head.to_vec1::<f32>().unwrap(), network(1).head.weight);
}

#[test]
fn bytes_that_are_no_policy_are_refused() {
    assert_eq!(refusal(b""), PolicyError::UnknownFormat);
    assert_eq!(refusal(b"#!/bin/sh\necho"), PolicyError::UnknownFormat);
    let large = refusal(&vec![b'{'; MAX_BYTES + 1]);
    assert!(matches!(large, PolicyError::TooLarge { .. }), "{large}");
    let foreign = with(&full(), "hyperion-policy", "another-program");
    let error = refusal(&foreign);
    assert!(matches!(error, PolicyError::NotPolicy { .. }), "{error}");
    // The first occurrence in GGUF is general.architecture.
    let bytes = quantised(Quantisation::Q8);
    let foreign = with(&bytes, "hyperion.format", "hyperion.former");
    let error = refusal(&foreign);
    assert!(matches!(error, PolicyError::NotPolicy { .. }), "{error}");
}

#[test]
fn files_that_end_early_are_refused() {
    for bytes in [full(), quantised(Quantisation::Q8)] {
        for cut in 0..bytes.len() - 40 {
            if cut > 200 && cut % 97 != 0 {
                continue;
            }
            let error = refusal(&bytes[..cut]);
            assert!(
                matches!(
                    error,
                    PolicyError::Truncated { .. } | PolicyError::UnknownFormat
                ),
                "cut at {cut}: {error}"
            );
        }
    }
}

#[test]
fn another_schema_table_or_form_is_refused() {
    let schema = format!(
        "\"hyperion.schema\":\"{}\"",
        hyperion_placement::features::SCHEMA
    );
    let error = refusal(&with(&full(), &schema, "\"hyperion.schema\":\"7\""));
    assert!(
        matches!(error, PolicyError::Schema { found: 7, .. }),
        "{error}"
    );
    let hash = hyperion_placement::features::table_hash();
    for bytes in [full(), quantised(Quantisation::Q8)] {
        let error = refusal(&with(&bytes, &hash, &"0".repeat(64)));
        assert!(matches!(error, PolicyError::Features { .. }), "{error}");
        assert!(error.to_string().contains(&hash));
    }
    let bytes = quantised(Quantisation::Q8);
    let error = refusal(&with(&bytes, "\"embed\":32", "\"embed\":64"));
    assert!(matches!(error, PolicyError::Form { .. }), "{error}");
}

#[test]
fn missing_and_unreadable_metadata_are_named() {
    let error = refusal(&with_header(&full(), |h| {
        h["__metadata__"]
            .as_object_mut()
            .unwrap()
            .remove("hyperion.seed");
    }));
    assert_eq!(
        error.to_string(),
        "the policy's metadata lack hyperion.seed"
    );
    let error = refusal(&with_header(&full(), |h| {
        h["__metadata__"]["hyperion.steps"] = "many".into();
    }));
    assert!(error.to_string().contains("hyperion.steps"), "{error}");
    let error = refusal(&with_header(&full(), |h| {
        h["__metadata__"]["hyperion.statistics"] =
            "{\"request\":[],\"node\":[],\"pair\":[],\"fit\":[]}".into();
    }));
    assert!(error.to_string().contains("request has 0 slots"), "{error}");
    let error = refusal(&with_header(&full(), |h| {
        h["__metadata__"]["hyperion.reward"] = "{}".into();
    }));
    assert!(error.to_string().contains("hyperion.reward"), "{error}");
}

#[test]
fn absurd_shapes_are_refused_before_anything_is_made_of_them() {
    for shape in [vec![u64::MAX, u64::MAX], vec![64], vec![], vec![32, 64]] {
        let error = refusal(&with_header(&full(), |h| {
            h["node.0.weight"]["shape"] = shape.clone().into();
        }));
        assert!(matches!(&error, PolicyError::Shape { name, .. } if name == "node.0.weight"));
    }
    let error = refusal(&with_header(&full(), |h| {
        h["node.0.weight"]["data_offsets"] = vec![u64::MAX, 0].into();
    }));
    assert!(matches!(error, PolicyError::Damaged { .. }), "{error}");
    let mut long = full();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(refusal(&long), PolicyError::Damaged { .. }));
    // In GGUF the numbers of tensors and keys, and then dimensions.
    for at in [8, 16] {
        let mut bytes = quantised(Quantisation::Q8);
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(refusal(&bytes), PolicyError::Damaged { .. }));
    }
    let mut bytes = quantised(Quantisation::Q8);
    let name = b"node.0.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4;
    bytes[at..at + 16].fill(0xff);
    let error = refusal(&bytes);
    assert!(matches!(&error, PolicyError::Shape { name, .. } if name == "node.0.weight"));
}

#[test]
fn tensors_must_be_there_and_no_others() {
    let error = refusal(&with_header(&full(), |h| {
        h.as_object_mut().unwrap().remove("pair.weight");
    }));
    assert_eq!(error.to_string(), "the policy lacks tensor pair.weight");
    let error = refusal(&with_header(&full(), |h| {
        h["extra"] = h["pair.weight"].clone();
    }));
    assert!(
        matches!(error, PolicyError::UnexpectedTensor { .. }),
        "{error}"
    );
    let error = refusal(&with_header(&full(), |h| {
        h["pair.weight"]["dtype"] = "F64".into();
    }));
    assert!(matches!(error, PolicyError::Type { .. }), "{error}");
    let renamed = with(&quantised(Quantisation::Q8), "pair.weight", "pear.weight");
    let error = refusal(&renamed);
    assert!(
        matches!(error, PolicyError::UnexpectedTensor { .. }),
        "{error}"
    );
}

#[test]
fn weights_that_are_no_numbers_are_refused_and_not_written() {
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut bytes = full();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&odd.to_le_bytes());
        assert!(matches!(refusal(&bytes), PolicyError::NotFinite { .. }));
        let mut network = network(1);
        network.pair.weight[7] = odd;
        let error = PolicyFile::write_safetensors(&card(), &network).unwrap_err();
        assert!(matches!(&error, PolicyError::NotFinite { name } if name == "pair.weight"));
    }
    // A scale of Q8_0 that is infinite: the first two bytes of a block.
    let bytes = quantised(Quantisation::Q8);
    let mut found = false;
    for at in (0..bytes.len() - 2).rev() {
        let mut changed = bytes.clone();
        changed[at..at + 2].copy_from_slice(&[0x00, 0x7c]);
        if let Err(PolicyError::NotFinite { .. }) = PolicyFile::read(&changed) {
            found = true;
            break;
        }
    }
    assert!(found);
    let mut network = network(1);
    network.pair.weight[7] = 1e30;
    let error = PolicyFile::write_gguf(&card(), &network, Quantisation::Q8).unwrap_err();
    assert!(matches!(error, PolicyError::NotFinite { .. }), "{error}");
    network.pair.weight.pop();
    let error = PolicyFile::write_safetensors(&card(), &network).unwrap_err();
    assert!(matches!(error, PolicyError::Shape { .. }), "{error}");
}

/// A GGUF header with one key.
fn gguf_key(key: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend((key.len() as u64).to_le_bytes());
    bytes.extend(key);
    bytes.extend(kind.to_le_bytes());
    bytes.extend(value);
    bytes
}

#[test]
fn gguf_that_candle_would_not_survive_is_refused() {
    for key in ["general.alignment", "general.alignment\0\0"] {
        let error = refusal(&gguf_key(key.as_bytes(), 4, &0_u32.to_le_bytes()));
        assert!(error.to_string().contains("alignment"), "{error}");
    }
    let error = refusal(&gguf_key(b"list", 9, &[0; 12]));
    assert!(error.to_string().contains("array"), "{error}");
    let error = refusal(&gguf_key(b"odd", 77, &[0; 12]));
    assert!(error.to_string().contains("type 77"), "{error}");
    let mut bytes = quantised(Quantisation::Q8);
    bytes[4] = 9;
    assert!(refusal(&bytes).to_string().contains("version 9"));
}

fn mutated(mut bytes: Vec<u8>, seed: u64, changes: u64) -> Vec<u8> {
    let mut draw = Draw(seed);
    for _ in 0..changes {
        // Headers are where it matters.
        let within = if draw.below(4) == 0 {
            bytes.len()
        } else {
            1024.min(bytes.len())
        };
        let at = draw.below(within as u64) as usize;
        match draw.below(5) {
            0 => bytes[at] = draw.next() as u8,
            1 => bytes[at] ^= 1 << draw.below(8),
            2 => bytes.truncate(at.max(1)),
            3 => bytes.insert(at, draw.next() as u8),
            _ => {
                let end = (at + 8).min(bytes.len());
                let value = if draw.below(2) == 0 { 0xff } else { 0 };
                bytes[at..end].fill(value);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_reader_panic(
        start in prop::sample::select(vec![&b""[..], b"GGUF", b"GGUF\x03\0\0\0", b"\x20\0\0\0\0\0\0\0{\""]),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let bytes: Vec<u8> = start.iter().copied().chain(rest).collect();
        prop_assert!(PolicyFile::read(&bytes).is_err());
    }

    #[test]
    fn no_change_of_a_file_makes_the_reader_panic(
        kind in 0..3,
        seed in any::<u64>(),
        changes in 1_u64..6,
    ) {
        let bytes = match kind {
            0 => full(),
            1 => quantised(Quantisation::Q8),
            _ => quantised(Quantisation::Q4),
        };
        if let Ok(file) = PolicyFile::read(&mutated(bytes, seed, changes)) {
            for (_, linear) in file.network.layers() {
                prop_assert!(linear.weight.iter().chain(&linear.bias).all(|w| w.is_finite()));
            }
        }
    }
}
