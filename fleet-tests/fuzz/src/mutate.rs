//! Changes inputs.

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// Numbers at the edges of their types.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Changes an input in one to eight ways.
pub fn mutate(
    input: &mut Vec<u8>,
    other: &[u8],
    dictionary: &[Vec<u8>],
    max_len: usize,
    rng: &mut StdRng,
) {
    for _ in 0..rng.random_range(1..=8) {
        once(input, other, dictionary, rng);
    }
    input.truncate(max_len);
}

fn once(input: &mut Vec<u8>, other: &[u8], dictionary: &[Vec<u8>], rng: &mut StdRng) {
    let at = rng.random_range(0..=input.len());
    match rng.random_range(0..10) {
        0 => flip(input, rng),
        1 => input.truncate(at),
        2 => {
            let end = (at + rng.random_range(1..=32)).min(input.len());
            input.drain(at..end);
        }
        3 => {
            let mut junk = vec![0; rng.random_range(1..=16)];
            rng.fill_bytes(&mut junk);
            input.splice(at..at, junk);
        }
        4 => {
            let from = rng.random_range(0..=input.len());
            let to = (from + rng.random_range(1..=64)).min(input.len());
            let piece = input.get(from..to).unwrap_or_default().to_vec();
            input.splice(at..at, piece);
        }
        5 => {
            let from = rng.random_range(0..=other.len());
            let tail = other.get(from..).unwrap_or_default();
            input.truncate(at);
            input.extend_from_slice(tail);
        }
        6 if !dictionary.is_empty() => {
            let word = dictionary.get(rng.random_range(0..dictionary.len()));
            let word = word.cloned().unwrap_or_default();
            let end = if rng.random_bool(0.5) {
                at
            } else {
                (at + word.len()).min(input.len())
            };
            input.splice(at..end, word);
        }
        7 => {
            let edge = EDGES[rng.random_range(0..EDGES.len())].to_le_bytes();
            let width = [1, 2, 4, 8][rng.random_range(0..4)];
            let mut bytes = edge.get(..width).unwrap_or_default().to_vec();
            if rng.random_bool(0.5) {
                bytes.reverse();
            }
            let end = (at + width).min(input.len());
            input.splice(at..end, bytes);
        }
        8 => {
            // A varint of any size, where a length may stand.
            let mut value = EDGES[rng.random_range(0..EDGES.len())];
            let mut bytes = Vec::new();
            while value >= 0x80 {
                bytes.push((value as u8) | 0x80);
                value >>= 7;
            }
            bytes.push(value as u8);
            let end = (at + 1).min(input.len());
            input.splice(at..end, bytes);
        }
        _ => {
            if let Some(byte) = input.get_mut(at) {
                *byte = rng.random();
            }
        }
    }
}

fn flip(input: &mut [u8], rng: &mut StdRng) {
    if input.is_empty() {
        return;
    }
    let at = rng.random_range(0..input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << rng.random_range(0..8);
    }
}
