//! GGUF, read and written by candle.
//!
//! [`vet`] walks the header first: candle's reader trusts the file's alignment (it divides by it)
//! and spends tens of bytes of memory on a byte of an array.

use std::collections::BTreeMap;
use std::io::Cursor;

use candle_core::Device;
use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use hyperion_placement::policy::Network;

use super::{
    Expected, PolicyFile, Precision, Quantisation, assemble, check_shape, check_values, expected,
    values,
};
use crate::card::shortened;
use crate::quantised::quantise;
use crate::{Card, PolicyError};

const NAME: &str = "GGUF";
/// Key under which GGUF readers look for the kind of model.
const ARCHITECTURE: &str = "general.architecture";
/// No policy has more keys or more tensors.
const MAX_ENTRIES: u64 = 64;
const MAX_NAME: u64 = 256;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

pub(super) fn is(bytes: &[u8]) -> bool {
    bytes.starts_with(b"GGUF")
}

pub(super) fn read(bytes: &[u8]) -> Result<PolicyFile, PolicyError> {
    vet(bytes)?;
    let mut cursor = Cursor::new(bytes);
    let content = Content::read(&mut cursor).map_err(|e| damaged(&e.to_string()))?;
    let card = Card::from_metadata(NAME, |key| match content.metadata.get(key) {
        Some(Value::String(text)) => Some(text.as_str()),
        _ => None,
    })?;
    let tensors = expected();
    let mut names: Vec<&String> = content.tensor_infos.keys().collect();
    names.sort();
    if let Some(name) = names
        .into_iter()
        .find(|n| !tensors.iter().any(|t| t.name == **n))
    {
        return Err(PolicyError::UnexpectedTensor {
            name: shortened(name),
        });
    }
    let quantisation = quantisation(&content, &tensors)?;
    let network = assemble(|tensor| {
        let quantised = content
            .tensor(&mut cursor, &tensor.name, &Device::Cpu)
            .map_err(|e| truncated(&format!("{}: {e}", tensor.name)))?;
        dequantise(&quantised)
    })?;
    Ok(PolicyFile {
        card,
        network,
        precision: Precision::Quantised(quantisation),
    })
}

/// The kind of the matrices, which must be one, with vectors in full precision. Shapes are checked
/// here, before a tensor is read.
fn quantisation(content: &Content, tensors: &[Expected]) -> Result<Quantisation, PolicyError> {
    let mut all = None;
    for tensor in tensors {
        let name = &tensor.name;
        let info = content
            .tensor_infos
            .get(name)
            .ok_or_else(|| PolicyError::MissingTensor { name: name.clone() })?;
        let found: Vec<u64> = info.shape.dims().iter().map(|d| *d as u64).collect();
        check_shape(tensor, &found)?;
        let wrong = |expected| PolicyError::Type {
            name: name.clone(),
            found: format!("{:?}", info.ggml_dtype),
            expected,
        };
        match (tensor.is_quantised(), info.ggml_dtype, all) {
            (false, GgmlDType::F32, _) => {}
            (false, ..) => return Err(wrong("F32")),
            (true, GgmlDType::Q8_0, None | Some(Quantisation::Q8)) => all = Some(Quantisation::Q8),
            (true, GgmlDType::Q4_0, None | Some(Quantisation::Q4)) => all = Some(Quantisation::Q4),
            (true, ..) => return Err(wrong("Q8_0 or Q4_0, the same for all matrices")),
        }
    }
    all.ok_or_else(|| damaged("it has no matrices"))
}

fn dequantise(tensor: &QTensor) -> Result<Vec<f32>, PolicyError> {
    Ok(tensor
        .dequantize(&Device::Cpu)?
        .flatten_all()?
        .to_vec1::<f32>()?)
}

pub(super) fn write(
    card: &Card,
    network: &Network,
    quantisation: Quantisation,
) -> Result<Vec<u8>, PolicyError> {
    let mut metadata: BTreeMap<&str, Value> = card
        .to_metadata()?
        .into_iter()
        .map(|(key, value)| (key, Value::String(value)))
        .collect();
    metadata.insert(ARCHITECTURE, Value::String(crate::card::OURS.to_owned()));
    let mut tensors = Vec::new();
    for (tensor, values) in expected().into_iter().zip(values(network)) {
        let quantised = quantise(&tensor, values, quantisation)?;
        // A scale has 16 bits: large weights overflow it.
        check_values(&tensor, &dequantise(&quantised)?)?;
        tensors.push((quantised, tensor.name));
    }
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (*k, v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(t, n)| (n.as_str(), t)).collect();
    let mut cursor = Cursor::new(Vec::new());
    gguf_file::write(&mut cursor, &metadata, &tensors)?;
    Ok(cursor.into_inner())
}

/// Bytes not yet read.
struct Walk<'a>(&'a [u8]);

impl<'a> Walk<'a> {
    fn take(&mut self, bytes: u64, what: &str) -> Result<&'a [u8], PolicyError> {
        let split = usize::try_from(bytes)
            .ok()
            .and_then(|n| self.0.split_at_checked(n));
        let Some((taken, rest)) = split else {
            return Err(truncated(&format!(
                "{what} has {bytes} bytes, {} are left",
                self.0.len()
            )));
        };
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32, PolicyError> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4, what)?);
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self, what: &str) -> Result<u64, PolicyError> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8, what)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn name(&mut self, what: &str) -> Result<String, PolicyError> {
        let length = self.u64(what)?;
        if length > MAX_NAME {
            return Err(damaged(&format!("{what} claims {length} bytes")));
        }
        Ok(String::from_utf8_lossy(self.take(length, what)?).into_owned())
    }
}

/// Refuses what no policy has and what candle's reader would not survive.
fn vet(bytes: &[u8]) -> Result<(), PolicyError> {
    let mut walk = Walk(bytes);
    walk.take(4, "the magic")?;
    let version = walk.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(damaged(&format!("version {version}, expected 2 or 3")));
    }
    let tensors = walk.u64("the number of tensors")?;
    let keys = walk.u64("the number of keys")?;
    if tensors.max(keys) > MAX_ENTRIES {
        return Err(damaged(&format!(
            "{tensors} tensors and {keys} keys, at most {MAX_ENTRIES} are read"
        )));
    }
    for _ in 0..keys {
        vet_key(&mut walk)?;
    }
    for _ in 0..tensors {
        let name = walk.name("a tensor's name")?;
        let dimensions = walk.u32("a tensor's dimensions")?;
        if dimensions > 2 {
            return Err(damaged(&format!(
                "tensor {:?} has {dimensions} dimensions, expected 1 or 2",
                shortened(&name)
            )));
        }
        // Type and place follow the dimensions.
        walk.take(u64::from(dimensions) * 8 + 12, "a tensor's shape")?;
    }
    Ok(())
}

fn vet_key(walk: &mut Walk<'_>) -> Result<(), PolicyError> {
    let key = walk.name("a key")?;
    // candle drops zeros from the end of names.
    if key.trim_end_matches('\0') == "general.alignment" {
        return Err(damaged("it sets an alignment, which policies leave at 32"));
    }
    let size = match walk.u32("a value's type")? {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        TEXT => walk.u64("a text")?,
        ARRAY => {
            return Err(damaged(&format!(
                "key {:?} is an array, policies have none",
                shortened(&key)
            )));
        }
        other => {
            return Err(damaged(&format!(
                "key {:?} has unknown type {other}",
                shortened(&key)
            )));
        }
    };
    walk.take(size, "a value")?;
    Ok(())
}

fn damaged(what: &str) -> PolicyError {
    PolicyError::Damaged {
        format: NAME,
        what: what.to_owned(),
    }
}

fn truncated(what: &str) -> PolicyError {
    PolicyError::Truncated {
        format: NAME,
        what: what.to_owned(),
    }
}
