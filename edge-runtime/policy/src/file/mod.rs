//! Policy files: safetensors in full precision, GGUF in 8 or 4 bits, with the same metadata.

mod gguf;
mod safetensors;

use hyperion_placement::policy::Network;

use crate::{Card, PolicyError};

/// No policy is larger, bytes. One in full precision has about 60 KiB.
pub const MAX_BYTES: usize = 16 << 20;

/// How weights are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantisation {
    /// GGML's Q8_0: 32 weights share a 16-bit scale, 8 bits each.
    Q8,
    /// GGML's Q4_0: the same with 4 bits each.
    Q4,
}

impl Quantisation {
    /// Name of a scorer with such weights.
    #[must_use]
    pub const fn scorer_name(self) -> &'static str {
        match self {
            Self::Q8 => "ppo-q8",
            Self::Q4 => "ppo-q4",
        }
    }
}

/// How the weights of a file are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floating point.
    Full,
    /// In 8 or 4 bits.
    Quantised(Quantisation),
}

/// A policy as a file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyFile {
    /// What it says of itself.
    pub card: Card,
    /// Its weights; those of a quantised file as they are after quantising.
    pub network: Network,
    /// How the file kept the weights.
    pub precision: Precision,
}

impl PolicyFile {
    /// Reads a file of either format, told by its first bytes. Whatever the bytes are, this does
    /// not panic and allocates in proportion to their number.
    ///
    /// # Errors
    /// Bytes that are not a policy for this program, with what is wrong.
    pub fn read(bytes: &[u8]) -> Result<Self, PolicyError> {
        if bytes.len() > MAX_BYTES {
            return Err(PolicyError::TooLarge {
                bytes: bytes.len(),
                most: MAX_BYTES,
            });
        }
        if gguf::is(bytes) {
            gguf::read(bytes)
        } else if safetensors::is(bytes) {
            safetensors::read(bytes)
        } else {
            Err(PolicyError::UnknownFormat)
        }
    }

    /// The file in full precision. The same policy gives the same bytes.
    ///
    /// # Errors
    /// A network or a card that [`Self::read`] would refuse.
    pub fn write_safetensors(card: &Card, network: &Network) -> Result<Vec<u8>, PolicyError> {
        check_network(network)?;
        safetensors::write(card, network)
    }

    /// The file in 8 or 4 bits. Biases and the head stay in full precision: they
    /// are few. The same policy gives
    /// the same bytes on one machine.
    ///
    /// # Errors
    /// A network or a card that [`Self::read`] would refuse.
    pub fn write_gguf(
        card: &Card,
        network: &Network,
        quantisation: Quantisation,
    ) -> Result<Vec<u8>, PolicyError> {
        check_network(network)?;
        gguf::write(card, network, quantisation)
    }
}

/// A tensor of the network.
pub(crate) struct Expected {
    pub(crate) name: String,
    pub(crate) shape: Vec<u64>,
}

impl Expected {
    pub(crate) fn values(&self) -> usize {
        self.shape.iter().product::<u64>() as usize
    }

    /// Vectors are few weights, and the head's act on the score itself.
    pub(crate) fn is_quantised(&self) -> bool {
        matches!(self.shape[..], [rows, _] if rows > 1)
    }
}

/// The tensors that a file must have, in the order of the network's layers.
pub(crate) fn expected() -> Vec<Expected> {
    let zeros = Network::zeros();
    let mut all = Vec::with_capacity(14);
    for (layer, linear) in zeros.layers() {
        all.push(Expected {
            name: format!("{layer}.weight"),
            shape: vec![linear.rows() as u64, linear.columns as u64],
        });
        if !linear.bias.is_empty() {
            all.push(Expected {
                name: format!("{layer}.bias"),
                shape: vec![linear.bias.len() as u64],
            });
        }
    }
    all
}

/// Values of the network's tensors, in the order of [`expected`].
pub(crate) fn values(network: &Network) -> Vec<&[f32]> {
    let mut all = Vec::with_capacity(14);
    for (_, linear) in network.layers() {
        all.push(linear.weight.as_slice());
        if !linear.bias.is_empty() {
            all.push(linear.bias.as_slice());
        }
    }
    all
}

/// Makes a network of values that `read` gets for each tensor.
fn assemble(
    mut read: impl FnMut(&Expected) -> Result<Vec<f32>, PolicyError>,
) -> Result<Network, PolicyError> {
    let mut tensors = expected().into_iter();
    let mut network = Network::zeros();
    for (_, linear) in network.layers_mut() {
        for part in [&mut linear.weight, &mut linear.bias] {
            if part.is_empty() {
                continue;
            }
            let Some(tensor) = tensors.next() else {
                continue;
            };
            let values = read(&tensor)?;
            check_values(&tensor, &values)?;
            *part = values;
        }
    }
    Ok(network)
}

fn check_values(tensor: &Expected, values: &[f32]) -> Result<(), PolicyError> {
    if values.len() != tensor.values() {
        return Err(PolicyError::Shape {
            name: tensor.name.clone(),
            found: vec![values.len() as u64],
            expected: tensor.shape.clone(),
        });
    }
    if values.iter().any(|v| !v.is_finite()) {
        return Err(PolicyError::NotFinite {
            name: tensor.name.clone(),
        });
    }
    Ok(())
}

fn check_shape(tensor: &Expected, found: &[u64]) -> Result<(), PolicyError> {
    if found == tensor.shape {
        return Ok(());
    }
    Err(PolicyError::Shape {
        name: tensor.name.clone(),
        found: found.to_vec(),
        expected: tensor.shape.clone(),
    })
}

/// The layers' fields are public: one of another length must not be written.
pub(crate) fn check_network(network: &Network) -> Result<(), PolicyError> {
    for ((layer, ours), (_, form)) in network.layers().iter().zip(Network::zeros().layers()) {
        for (part, ours, form) in [
            ("weight", &ours.weight, &form.weight),
            ("bias", &ours.bias, &form.bias),
        ] {
            let name = format!("{layer}.{part}");
            if ours.len() != form.len() {
                return Err(PolicyError::Shape {
                    name,
                    found: vec![ours.len() as u64],
                    expected: vec![form.len() as u64],
                });
            }
            if ours.iter().any(|v| !v.is_finite()) {
                return Err(PolicyError::NotFinite { name });
            }
        }
    }
    Ok(())
}
