//! A network executed with candle's quantised tensors on the CPU.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use hyperion_placement::features::{
    Features, NODE_LEN, PAIR_LEN, REQUEST_LEN, Summary, encode_request,
};
use hyperion_placement::filter::Candidate;
use hyperion_placement::model::Request;
use hyperion_placement::policy::network::{DIRECT, EMBED, Prepared, PreparedKind, dot};
use hyperion_placement::policy::{Linear, Network};
use hyperion_placement::score::{PACKING, Score, Scorer};

use crate::file::{Expected, check_network};
use crate::{Encoded, PolicyError, Quantisation};

/// Embeddings kept at most; beyond, all are dropped. A fleet whose nodes change with every
/// decision has no use for old ones, and one of half this many nodes never gets here.
const MOST_EMBEDDINGS: usize = 8192;

/// Quantises a matrix; a vector stays as it is.
pub(crate) fn quantise(
    tensor: &Expected,
    values: &[f32],
    quantisation: Quantisation,
) -> Result<QTensor, PolicyError> {
    let shape: Vec<usize> = tensor.shape.iter().map(|d| *d as usize).collect();
    let full = Tensor::from_slice(values, shape, &Device::Cpu)?;
    let kind = match quantisation {
        _ if !tensor.is_quantised() => GgmlDType::F32,
        Quantisation::Q8 => GgmlDType::Q8_0,
        Quantisation::Q4 => GgmlDType::Q4_0,
    };
    Ok(QTensor::quantize(&full, kind)?)
}

/// One layer: the matrix quantised, the biases not.
#[derive(Debug)]
struct Layer {
    weight: QMatMul,
    bias: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl Layer {
    fn new(linear: &Linear, quantisation: Quantisation) -> Result<Self, PolicyError> {
        let matrix = Expected {
            name: String::new(),
            shape: vec![linear.rows() as u64, linear.columns as u64],
        };
        Ok(Self {
            weight: QMatMul::from_qtensor(quantise(&matrix, &linear.weight, quantisation)?)?,
            bias: linear.bias.clone(),
            rows: linear.rows(),
            columns: linear.columns,
        })
    }

    /// `W x + b` for each of the vectors in `x`, one after the other. All NaN where candle fails,
    /// which it does not for sizes that were checked: the guard then leaves the decision to the
    /// rules.
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let count = x.len() / self.columns;
        if count == 0 {
            return Vec::new();
        }
        let mut y = self
            .multiply(x, count)
            .unwrap_or_else(|_| vec![f32::NAN; count * self.rows]);
        if !self.bias.is_empty() {
            for row in y.chunks_exact_mut(self.rows) {
                for (y, b) in row.iter_mut().zip(&self.bias) {
                    *y += b;
                }
            }
        }
        y
    }

    /// candle rounds what it multiplies with to 8 bits, too, which costs more first choices than
    /// the rounding of weights does (979 of 1,000 stayed the same, and not 99 %). So each vector
    /// goes in as two: what it is after rounding, and what rounding lost.
    fn multiply(&self, x: &[f32], count: usize) -> candle_core::Result<Vec<f32>> {
        let full = Tensor::from_slice(x, (count, self.columns), &Device::Cpu)?;
        let rounded = QTensor::quantize(&full, GgmlDType::Q8_0)?
            .dequantize(&Device::Cpu)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        let mut both = rounded;
        for (i, exact) in x.iter().enumerate() {
            both.push(exact - both[i]);
        }
        let both = Tensor::from_vec(both, (2 * count, self.columns), &Device::Cpu)?;
        let mut y: Vec<f32> = self.weight.forward(&both)?.flatten_all()?.to_vec1()?;
        let lost = y.split_off(count * self.rows);
        for (y, lost) in y.iter_mut().zip(lost) {
            *y += lost;
        }
        Ok(y)
    }
}

fn relu(mut values: Vec<f32>) -> Vec<f32> {
    for value in &mut values {
        // max() would turn NaN into 0 and hide it.
        if *value < 0.0 {
            *value = 0.0;
        }
    }
    values
}

/// Content of a vector, to look it up by.
type Bits<const N: usize> = [u32; N];

fn bits<const N: usize>(values: &[f32; N]) -> Bits<N> {
    values.map(f32::to_bits)
}

fn arrays<const N: usize>(values: &[f32]) -> Vec<[f32; N]> {
    values.as_chunks::<N>().0.to_vec()
}

/// A network in 8 or 4 bits.
///
/// Matrices are multiplied by candle, many vectors in one call. What is left for each candidate,
/// `v · relu(e + h + g) + u · [p; f]`, are 80 multiplications: fewer than a call into candle
/// costs, so they are done here, in full precision.
///
/// As a [`Scorer`] it keeps embeddings by the content of the node's vector, so that a node is
/// embedded again only when it has changed.
#[derive(Debug)]
pub struct Quantised {
    quantisation: Quantisation,
    node1: Layer,
    node2: Layer,
    request1: Layer,
    request2: Layer,
    direct: Layer,
    pair: Layer,
    /// The head; all else is zero.
    last: Network,
    embeddings: Mutex<HashMap<Bits<NODE_LEN>, [f32; EMBED]>>,
}

impl Quantised {
    /// Quantises a network. One that was read from a quantised file becomes what the file held.
    ///
    /// # Errors
    /// Layers of another size, and weights that are not finite.
    pub fn new(network: &Network, quantisation: Quantisation) -> Result<Self, PolicyError> {
        check_network(network)?;
        let layer = |linear: &Linear| Layer::new(linear, quantisation);
        let mut last = Network::zeros();
        last.head = network.head.clone();
        Ok(Self {
            quantisation,
            node1: layer(&network.node1)?,
            node2: layer(&network.node2)?,
            request1: layer(&network.request1)?,
            request2: layer(&network.request2)?,
            direct: layer(&network.direct)?,
            pair: layer(&network.pair)?,
            last,
            embeddings: Mutex::default(),
        })
    }

    /// How its weights are quantised.
    #[must_use]
    pub const fn quantisation(&self) -> Quantisation {
        self.quantisation
    }

    /// `e` of each node.
    #[must_use]
    pub fn embed(&self, nodes: &[[f32; NODE_LEN]]) -> Vec<[f32; EMBED]> {
        let hidden = relu(self.node1.apply(nodes.as_flattened()));
        arrays(&self.node2.apply(&hidden))
    }

    /// `h` and `u`.
    #[must_use]
    pub fn prepare(&self, request: &[f32; REQUEST_LEN]) -> Prepared {
        let q = relu(self.request1.apply(request));
        let mut prepared = Prepared {
            hidden: [f32::NAN; EMBED],
            direct: [f32::NAN; DIRECT],
        };
        prepared.hidden.copy_from_slice(&self.request2.apply(&q));
        prepared.direct.copy_from_slice(&self.direct.apply(&q));
        prepared
    }

    /// `h + g` and `u · p` of each pair.
    #[must_use]
    pub fn prepare_kinds(
        &self,
        prepared: &Prepared,
        pairs: &[[f32; PAIR_LEN]],
    ) -> Vec<PreparedKind> {
        let hidden = arrays::<EMBED>(&self.pair.apply(pairs.as_flattened()));
        let kind = |(mut hidden, pair): ([f32; EMBED], &[f32; PAIR_LEN])| {
            for (g, h) in hidden.iter_mut().zip(&prepared.hidden) {
                *g += h;
            }
            PreparedKind {
                hidden,
                direct: dot(&prepared.direct[..PAIR_LEN], pair),
            }
        };
        hidden.into_iter().zip(pairs).map(kind).collect()
    }

    /// Scores of candidates, in their order.
    #[must_use]
    pub fn scores(&self, request: &[f32; REQUEST_LEN], candidates: &[Encoded]) -> Vec<f32> {
        let prepared = self.prepare(request);
        let nodes: Vec<_> = candidates.iter().map(|c| c.node).collect();
        let pairs: Vec<_> = candidates.iter().map(|c| c.pair).collect();
        let embeddings = self.embed(&nodes);
        let kinds = self.prepare_kinds(&prepared, &pairs);
        candidates
            .iter()
            .zip(embeddings.iter().zip(&kinds))
            .map(|(candidate, (e, kind))| self.last.score(&prepared, kind, e, &candidate.fit))
            .collect()
    }

    /// `e` of a node, kept for the next time.
    fn embedding(&self, node: &[f32; NODE_LEN]) -> [f32; EMBED] {
        let mut kept = self
            .embeddings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        remembered(&mut kept, bits(node), || {
            first(self.embed(std::slice::from_ref(node)), [f32::NAN; EMBED])
        })
    }

    /// The scorer for one decision.
    #[must_use]
    pub fn ready(&self, request: &Request, summary: &Summary) -> ReadyQuantised<'_> {
        ReadyQuantised {
            model: self,
            prepared: self.prepare(&encode_request(request, summary)),
            kinds: RefCell::default(),
        }
    }
}

fn remembered<K: Eq + Hash, V: Copy>(
    kept: &mut HashMap<K, V>,
    key: K,
    make: impl FnOnce() -> V,
) -> V {
    if kept.len() >= MOST_EMBEDDINGS {
        kept.clear();
    }
    *kept.entry(key).or_insert_with(make)
}

fn first<T>(values: Vec<T>, otherwise: T) -> T {
    values.into_iter().next().unwrap_or(otherwise)
}

impl Scorer for Quantised {
    fn name(&self) -> &str {
        self.quantisation.scorer_name()
    }

    /// As in a fleet of which nothing is known; [`Scorer::for_request`] takes what is known.
    fn score(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> Score {
        self.ready(request, &Summary::default())
            .score(request, candidate, features)
    }

    fn for_request<'a>(
        &'a self,
        request: &Request,
        summary: &Summary,
    ) -> Option<Box<dyn Scorer + 'a>> {
        Some(Box::new(self.ready(request, summary)))
    }

    fn packing_weight(&self) -> f64 {
        PACKING
    }
}

/// A quantised network that has read a request.
#[derive(Debug)]
pub struct ReadyQuantised<'a> {
    model: &'a Quantised,
    prepared: Prepared,
    /// Machines of one kind have one pair: a fleet has few kinds.
    kinds: RefCell<HashMap<Bits<PAIR_LEN>, PreparedKind>>,
}

impl ReadyQuantised<'_> {
    fn of(&self, features: &Features) -> f64 {
        let pair = &features.pair;
        let kind = remembered(&mut self.kinds.borrow_mut(), bits(pair), || {
            let unknown = PreparedKind {
                hidden: [f32::NAN; EMBED],
                direct: f32::NAN,
            };
            let kinds = self
                .model
                .prepare_kinds(&self.prepared, std::slice::from_ref(pair));
            first(kinds, unknown)
        });
        let embedding = self.model.embedding(&features.node);
        let last = &self.model.last;
        f64::from(last.score(&self.prepared, &kind, &embedding, &features.fit))
    }
}

impl Scorer for ReadyQuantised<'_> {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn score(&self, _: &Request, _: &Candidate<'_>, features: &Features) -> Score {
        Score {
            terms: vec![("policy", self.of(features))],
        }
    }

    fn total(&self, _: &Request, _: &Candidate<'_>, features: &Features) -> f64 {
        self.of(features)
    }

    fn packing_weight(&self) -> f64 {
        PACKING
    }
}
