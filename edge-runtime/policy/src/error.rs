//! Why a policy file is refused.

/// Why bytes are not taken for a policy, or a policy can't be written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// More bytes than any policy has.
    #[error("the policy file has {bytes} bytes, more than the {most} that are read")]
    TooLarge {
        /// Bytes there are.
        bytes: usize,
        /// Bytes that are read at most.
        most: usize,
    },
    /// Neither of the formats.
    #[error("not a policy file: neither safetensors nor GGUF")]
    UnknownFormat,
    /// Ends early.
    #[error("the {format} file is truncated: {what}")]
    Truncated {
        /// `safetensors` or `GGUF`.
        format: &'static str,
        /// What is missing.
        what: String,
    },
    /// Breaks the format's own rules.
    #[error("the {format} file is damaged: {what}")]
    Damaged {
        /// `safetensors` or `GGUF`.
        format: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Another program's model.
    #[error(
        "a {format} file, but not a policy: its metadata lack hyperion.format = hyperion-policy"
    )]
    NotPolicy {
        /// `safetensors` or `GGUF`.
        format: &'static str,
    },
    /// Metadata that must be there.
    #[error("the policy's metadata lack {key}")]
    MissingKey {
        /// Which.
        key: &'static str,
    },
    /// Metadata that can't be read.
    #[error("{key} in the policy's metadata: {what}")]
    BadKey {
        /// Which.
        key: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Trained on features of another schema.
    #[error("the policy has feature schema {found}, this program {expected}: train it anew")]
    Schema {
        /// The file's.
        found: u32,
        /// This program's.
        expected: u32,
    },
    /// Trained on another feature table.
    #[error("the policy has feature table {found}, this program {expected}: train it anew")]
    Features {
        /// The file's hash.
        found: String,
        /// This program's.
        expected: String,
    },
    /// A network of another form.
    #[error("the policy's network is {found}, this program executes {expected}")]
    Form {
        /// The file's.
        found: String,
        /// This program's.
        expected: String,
    },
    /// A tensor that must be there.
    #[error("the policy lacks tensor {name}")]
    MissingTensor {
        /// Which.
        name: String,
    },
    /// A tensor that the network has no use for.
    #[error("the policy has a tensor {name:?} that its network has no use for")]
    UnexpectedTensor {
        /// Which.
        name: String,
    },
    /// A tensor of another shape.
    #[error("tensor {name} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Which.
        name: String,
        /// The file's.
        found: Vec<u64>,
        /// The network's.
        expected: Vec<u64>,
    },
    /// A tensor of a type that is not read there.
    #[error("tensor {name} has type {found}, expected {expected}")]
    Type {
        /// Which.
        name: String,
        /// The file's.
        found: String,
        /// What is read.
        expected: &'static str,
    },
    /// Weights that are NaN or infinite, or become so when quantised.
    #[error("tensor {name} has a weight that is not finite")]
    NotFinite {
        /// Which.
        name: String,
    },
    /// candle can't quantise, read or write it.
    #[error("quantised tensors: {what}")]
    Candle {
        /// candle's own words.
        what: String,
    },
}

impl From<candle_core::Error> for PolicyError {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle {
            what: error.to_string(),
        }
    }
}
