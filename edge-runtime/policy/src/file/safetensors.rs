//! safetensors: eight bytes with the header's length, a header in JSON, the tensors.
//!
//! Read here and not by the crate of that name, so that a tensor of an absurd shape is named
//! before anything is made of it, and written here, so that the same policy gives the same bytes.

use std::collections::BTreeMap;

use hyperion_placement::policy::Network;
use serde::{Deserialize, Serialize};

use super::{Expected, PolicyFile, Precision, assemble, check_shape, expected, values};
use crate::card::shortened;
use crate::{Card, PolicyError};

const NAME: &str = "safetensors";
/// No header of a policy is larger, bytes.
const MAX_HEADER: usize = 4 << 20;

#[derive(Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", default)]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Entry>,
}

/// Every safetensors file has a brace after the length of its header.
pub(super) fn is(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{')
}

pub(super) fn read(bytes: &[u8]) -> Result<PolicyFile, PolicyError> {
    let (header, data) = split(bytes)?;
    let text = std::str::from_utf8(header).map_err(|_| damaged("its header is not UTF-8"))?;
    let header: Header =
        serde_json::from_str(text).map_err(|e| damaged(&format!("its header: {e}")))?;
    let card = Card::from_metadata(NAME, |key| header.metadata.get(key).map(String::as_str))?;
    let tensors = expected();
    if let Some(name) = header
        .tensors
        .keys()
        .find(|name| !tensors.iter().any(|t| t.name == **name))
    {
        return Err(PolicyError::UnexpectedTensor {
            name: shortened(name),
        });
    }
    Ok(PolicyFile {
        card,
        network: assemble(|tensor| read_tensor(&header.tensors, data, tensor))?,
        precision: Precision::Full,
    })
}

fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), PolicyError> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(PolicyError::UnknownFormat);
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER as u64 {
        return Err(damaged(&format!(
            "its header claims {length} bytes, more than the {MAX_HEADER} that are read"
        )));
    }
    rest.split_at_checked(length as usize)
        .ok_or_else(|| PolicyError::Truncated {
            format: NAME,
            what: format!("{} of the header's {length} bytes are there", rest.len()),
        })
}

fn read_tensor(
    entries: &BTreeMap<String, Entry>,
    data: &[u8],
    tensor: &Expected,
) -> Result<Vec<f32>, PolicyError> {
    let name = &tensor.name;
    let entry = entries
        .get(name)
        .ok_or_else(|| PolicyError::MissingTensor { name: name.clone() })?;
    check_shape(tensor, &entry.shape)?;
    if entry.dtype != "F32" {
        return Err(PolicyError::Type {
            name: name.clone(),
            found: shortened(&entry.dtype),
            expected: "F32",
        });
    }
    let [begin, end] = entry.data_offsets;
    if end.checked_sub(begin) != Some(tensor.values() as u64 * 4) {
        return Err(damaged(&format!(
            "{name} lies at bytes {begin} to {end}, which is not its size"
        )));
    }
    if end > data.len() as u64 {
        return Err(PolicyError::Truncated {
            format: NAME,
            what: format!("{name} ends at byte {end} of {}", data.len()),
        });
    }
    let (numbers, _) = data[begin as usize..end as usize].as_chunks::<4>();
    Ok(numbers.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

pub(super) fn write(card: &Card, network: &Network) -> Result<Vec<u8>, PolicyError> {
    let mut entries = BTreeMap::new();
    let mut data = Vec::new();
    for (tensor, values) in expected().into_iter().zip(values(network)) {
        let begin = data.len() as u64;
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        entries.insert(
            tensor.name,
            Entry {
                dtype: "F32".to_owned(),
                shape: tensor.shape,
                data_offsets: [begin, data.len() as u64],
            },
        );
    }
    let metadata = card.to_metadata()?;
    let header = Header {
        metadata: metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        tensors: entries,
    };
    let mut header =
        serde_json::to_vec(&header).map_err(|e| damaged(&format!("its header: {e}")))?;
    // Other readers map the tensors where they lie, which takes eight bytes' alignment.
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() > MAX_HEADER {
        return Err(PolicyError::TooLarge {
            bytes: header.len(),
            most: MAX_HEADER,
        });
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    Ok(bytes)
}

fn damaged(what: &str) -> PolicyError {
    PolicyError::Damaged {
        format: NAME,
        what: what.to_owned(),
    }
}
