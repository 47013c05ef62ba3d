//! Policy and critic on candle's tensors, for learning. The policy is the network of
//! [`hyperion_placement::policy::network`]; the critic is used in training only.

use candle_core::{D, Device, Tensor, Var};
use hyperion_placement::features::{FIT_LEN, NODE_LEN, PAIR_LEN};
use hyperion_placement::policy::network::{DIRECT, EMBED, HIDDEN};

use super::batch::Batch;
use super::parameters::{shapes, total_len};
use super::product::{product, product_of_data};

/// What the critic sees of a turn: mean and largest value over the candidates of the embeddings
/// and of the features, and the hidden layer of the request.
pub const POOLED: usize = 2 * EMBED + HIDDEN + 2 * (NODE_LEN + PAIR_LEN + FIT_LEN);
/// Width of the critic's hidden layers.
pub const CRITIC_HIDDEN: usize = 64;

struct Layer {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Layer {
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = product(x, &self.weight.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// The weights as tensors that gradients are taken of.
pub(super) struct Model {
    variables: Vec<Var>,
    node1: Tensor,
    node2: Layer,
    request1: Layer,
    request2: Layer,
    direct: Layer,
    pair: Layer,
    head: Layer,
    value: [Layer; 3],
}

/// What the network says of a batch.
pub(super) struct Output {
    /// Turns × candidates: the score, hugely negative where there is no candidate.
    pub scores: Tensor,
    /// `relu(e + h + g)`, turns × candidates × [`EMBED`].
    embeddings: Tensor,
    /// `q`, turns × [`HIDDEN`].
    request: Tensor,
}

impl Model {
    /// From the flat vector of [`super::parameters`].
    pub(super) fn new(values: &[f32]) -> candle_core::Result<Self> {
        let mut variables = Vec::new();
        let mut at = 0;
        let mut part = |dims: &[usize]| {
            let end = at + dims.iter().product::<usize>();
            let variable = Var::from_slice(&values[at..end], dims, &Device::Cpu)?;
            at = end;
            let tensor = variable.as_tensor().clone();
            variables.push(variable);
            candle_core::Result::Ok(tensor)
        };
        let layers = shapes()
            .map(|shape| {
                let weight = part(&[shape.rows, shape.columns])?;
                let bias = shape.bias.then(|| part(&[shape.rows])).transpose()?;
                Ok(Layer { weight, bias })
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        let [
            n1,
            node2,
            request1,
            request2,
            direct,
            pair,
            head,
            v1,
            v2,
            v3,
        ] = <[Layer; 10]>::try_from(layers)
            .map_err(|l| candle_core::Error::Msg(format!("{} layers", l.len())))?;
        // The features of nodes end in a 1, so that the bias is part of the product: adding it to
        // every candidate, and summing its gradient, would take longer than the product.
        let node1 = match &n1.bias {
            Some(bias) => Tensor::cat(&[&n1.weight, &bias.unsqueeze(1)?], 1)?,
            None => n1.weight,
        };
        Ok(Self {
            variables,
            node1,
            node2,
            request1,
            request2,
            direct,
            pair,
            head,
            value: [v1, v2, v3],
        })
    }

    /// Scores every candidate of the batch.
    pub(super) fn scores(&self, batch: &Batch) -> candle_core::Result<Output> {
        let (turns, width) = (batch.turns, batch.width);
        let q = self.request1.apply(&batch.request)?.relu()?;
        let mut h = self.request2.apply(&q)?;
        if let Some(bias) = &self.node2.bias {
            h = h.broadcast_add(bias)?;
        }
        let u = self.direct.apply(&q)?;
        let hidden = product_of_data(&batch.node, &self.node1.t()?)?.relu()?;
        let e = product(&hidden, &self.node2.weight.t()?)?;
        let rows = batch.direct.reshape((turns * width, DIRECT))?;
        let pair = rows.narrow(1, 0, PAIR_LEN)?;
        let g = product_of_data(&pair, &self.pair.weight.t()?)?;
        let embeddings = (e + g)?
            .reshape((turns, width, EMBED))?
            .broadcast_add(&h.unsqueeze(1)?)?
            .relu()?;
        let rows = embeddings.reshape((turns * width, EMBED))?;
        let hidden = product(&rows, &self.head.weight.t()?)?.reshape((turns, width))?;
        let direct = product_of_data(&batch.direct, &u.unsqueeze(2)?)?.squeeze(2)?;
        Ok(Output {
            scores: ((hidden + direct)? + &batch.absent)?,
            embeddings,
            request: q,
        })
    }

    /// What the critic expects of every turn, normalised.
    pub(super) fn values(
        &self,
        batch: &Batch,
        output: &Output,
        share_trunk: bool,
    ) -> candle_core::Result<Tensor> {
        let (embeddings, request) = if share_trunk {
            (output.embeddings.clone(), output.request.clone())
        } else {
            (output.embeddings.detach(), output.request.detach())
        };
        let mean = product_of_data(&batch.mean, &embeddings)?.squeeze(1)?;
        let present = batch.present.unsqueeze(2)?;
        let max = embeddings.broadcast_mul(&present)?.max(1)?;
        let x = Tensor::cat(&[&mean, &max, &request, &batch.pooled], 1)?;
        let [first, second, last] = &self.value;
        let x = first.apply(&x)?.relu()?;
        let x = second.apply(&x)?.relu()?;
        last.apply(&x)?.squeeze(D::Minus1)
    }

    /// Gradient of a loss as a flat vector.
    pub(super) fn gradient(&self, loss: &Tensor) -> candle_core::Result<Vec<f32>> {
        let gradients = loss.backward()?;
        let mut flat = Vec::with_capacity(total_len());
        for variable in &self.variables {
            match gradients.get(variable) {
                Some(gradient) => flat.extend(gradient.flatten_all()?.to_vec1::<f32>()?),
                None => flat.extend(std::iter::repeat_n(0.0, variable.elem_count())),
            }
        }
        Ok(flat)
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::{Purpose, Stream};
    use super::super::{Actor, CandidateFeatures, Turn, parameters};
    use super::*;

    fn noise<const N: usize>(random: &mut Stream) -> [f32; N] {
        std::array::from_fn(|_| random.normal() as f32)
    }

    fn turns(random: &mut Stream) -> Vec<Turn> {
        (1..9)
            .map(|candidates| Turn {
                actor: 0,
                hour: 0.0,
                earned: 0.0,
                team: 0.0,
                request: noise(random),
                candidates: (0..candidates)
                    .map(|_| CandidateFeatures {
                        node: noise(random),
                        pair: noise(random),
                        fit: noise(random),
                    })
                    .collect(),
            })
            .collect()
    }

    #[test]
    fn tensors_and_production_arithmetic_agree() {
        for seed in 0..5 {
            let mut random = Stream::new(seed, Purpose::Weights, 1, 1);
            let values: Vec<f32> = (0..total_len())
                .map(|_| (0.2 * random.normal()) as f32)
                .collect();
            let turns = turns(&mut random);
            let batch = Batch::new(&turns.iter().collect::<Vec<_>>()).unwrap();
            let model = Model::new(&values).unwrap();
            let found = model.scores(&batch).unwrap().scores;
            let found = found.to_vec2::<f32>().unwrap();
            let network = parameters::network(&values);
            let mut actor = Actor::new(&network);
            for (turn, row) in turns.iter().zip(found) {
                for (expected, found) in actor.scores(turn).iter().zip(&row) {
                    assert!((expected - found).abs() < 1e-4, "{expected} {found}");
                }
                for absent in &row[turn.candidates.len()..] {
                    assert!(*absent < -1e8);
                }
            }
        }
    }

    #[test]
    fn the_critic_does_not_see_padding() {
        let mut random = Stream::new(9, Purpose::Weights, 1, 1);
        let values = parameters::initial(9, &super::super::Config::default().taste);
        let model = Model::new(&values).unwrap();
        let turns = turns(&mut random);
        let value = |turns: &[&Turn]| {
            let batch = Batch::new(turns).unwrap();
            let output = model.scores(&batch).unwrap();
            let values = model.values(&batch, &output, false).unwrap();
            values.to_vec1::<f32>().unwrap()
        };
        let padded = value(&turns.iter().collect::<Vec<_>>());
        for (turn, padded) in turns.iter().zip(padded) {
            assert!((value(&[turn])[0] - padded).abs() < 1e-6);
        }
    }
}
