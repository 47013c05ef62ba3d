//! The network's form. With `n`, `r`, `p` and `f` the vectors of [`features`]:
//!
//! ```text
//! e = N2 relu(N1 n + b) + b        embedding of the node: changes only when the node does
//! q = relu(R1 r + b)               the request, once a decision
//! h = R2 q + b
//! u = U q + b
//! g = P p                          the kind of machine, once a decision and kind
//! score = v · relu(e + h + g) + u · [p; f]
//! ```
//!
//! So a candidate costs about a hundred multiplications at the moment of the decision, whatever the
//! depth of N and R, and its score does not depend on the other candidates. Sums are taken in a
//! fixed order of four lanes, without fused multiply-add: the same bits on x86-64 and aarch64.

use crate::features::{FIT_LEN, NODE_LEN, PAIR_LEN, REQUEST_LEN};

/// Length of an embedding.
pub const EMBED: usize = 32;
/// Width of the hidden layers of N and R.
pub const HIDDEN: usize = 64;
/// Length of `[p; f]`.
pub const DIRECT: usize = PAIR_LEN + FIT_LEN;

/// `y = W x + b`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Rows × columns, row by row.
    pub weight: Vec<f32>,
    /// One for each row; empty where the layer has none.
    pub bias: Vec<f32>,
    /// Length of `x`.
    pub columns: usize,
}

impl Linear {
    /// All zero.
    #[must_use]
    pub fn zeros(rows: usize, columns: usize, bias: bool) -> Self {
        Self {
            weight: vec![0.0; rows * columns],
            bias: vec![0.0; if bias { rows } else { 0 }],
            columns,
        }
    }

    /// Length of `y`.
    #[must_use]
    pub const fn rows(&self) -> usize {
        match self.weight.len().checked_div(self.columns) {
            Some(rows) => rows,
            None => 0,
        }
    }

    /// Writes `W x + b` to `out`.
    pub fn apply(&self, x: &[f32], out: &mut [f32]) {
        // The lanes of some rows first and then their sums: with each sum right behind its row, the
        // compiler goes by two lanes at a time.
        const ROWS: usize = 16;
        let mut sums = [[0.0; 4]; ROWS];
        let blocks = self.weight.chunks(self.columns * ROWS);
        for (n, (rows, out)) in blocks.zip(out.chunks_mut(ROWS)).enumerate() {
            for (row, sum) in rows.chunks_exact(self.columns).zip(&mut sums) {
                *sum = lanes(row, x);
            }
            for (i, (y, sum)) in out.iter_mut().zip(&sums).enumerate() {
                *y = fold(sum) + self.bias.get(n * ROWS + i).copied().unwrap_or(0.0);
            }
        }
    }
}

/// Dot product in four lanes, summed in a fixed order. The lengths are equal multiples of four.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    fold(&lanes(a, b))
}

fn lanes(a: &[f32], b: &[f32]) -> [f32; 4] {
    let mut lanes = [0.0_f32; 4];
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(4)) {
        for lane in 0..4 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes
}

fn fold(lanes: &[f32; 4]) -> f32 {
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}

/// The network in full precision.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// N1: [`HIDDEN`] × [`NODE_LEN`].
    pub node1: Linear,
    /// N2: [`EMBED`] × [`HIDDEN`].
    pub node2: Linear,
    /// R1: [`HIDDEN`] × [`REQUEST_LEN`].
    pub request1: Linear,
    /// R2: [`EMBED`] × [`HIDDEN`].
    pub request2: Linear,
    /// U: [`DIRECT`] × [`HIDDEN`].
    pub direct: Linear,
    /// P: [`EMBED`] × [`PAIR_LEN`], without bias.
    pub pair: Linear,
    /// v: 1 × [`EMBED`], without bias.
    pub head: Linear,
}

/// What a decision needs of its request: `h` and `u`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prepared {
    /// `h`.
    pub hidden: [f32; EMBED],
    /// `u`.
    pub direct: [f32; DIRECT],
}

/// What a decision needs of a kind of machine: `h + g`, and `u · p`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreparedKind {
    /// `h + g`.
    pub hidden: [f32; EMBED],
    /// `u · p`.
    pub direct: f32,
}

impl Network {
    /// All zero: every candidate scores 0.
    #[must_use]
    pub fn zeros() -> Self {
        Self {
            node1: Linear::zeros(HIDDEN, NODE_LEN, true),
            node2: Linear::zeros(EMBED, HIDDEN, true),
            request1: Linear::zeros(HIDDEN, REQUEST_LEN, true),
            request2: Linear::zeros(EMBED, HIDDEN, true),
            direct: Linear::zeros(DIRECT, HIDDEN, true),
            pair: Linear::zeros(EMBED, PAIR_LEN, false),
            head: Linear::zeros(1, EMBED, false),
        }
    }

    /// Layers by the name that policy files give them. The names of tensors are these plus
    /// `.weight` and `.bias`.
    #[must_use]
    pub fn layers(&self) -> [(&'static str, &Linear); 7] {
        [
            ("node.0", &self.node1),
            ("node.2", &self.node2),
            ("request.0", &self.request1),
            ("request.2", &self.request2),
            ("direct", &self.direct),
            ("pair", &self.pair),
            ("head", &self.head),
        ]
    }

    /// The same, to be written to.
    pub fn layers_mut(&mut self) -> [(&'static str, &mut Linear); 7] {
        [
            ("node.0", &mut self.node1),
            ("node.2", &mut self.node2),
            ("request.0", &mut self.request1),
            ("request.2", &mut self.request2),
            ("direct", &mut self.direct),
            ("pair", &mut self.pair),
            ("head", &mut self.head),
        ]
    }

    /// `e`.
    #[must_use]
    pub fn embed(&self, node: &[f32; NODE_LEN]) -> [f32; EMBED] {
        let mut hidden = [0.0; HIDDEN];
        self.node1.apply(node, &mut hidden);
        relu(&mut hidden);
        let mut out = [0.0; EMBED];
        self.node2.apply(&hidden, &mut out);
        out
    }

    /// `h` and `u`.
    #[must_use]
    pub fn prepare(&self, request: &[f32; REQUEST_LEN]) -> Prepared {
        let mut q = [0.0; HIDDEN];
        self.request1.apply(request, &mut q);
        relu(&mut q);
        let mut prepared = Prepared {
            hidden: [0.0; EMBED],
            direct: [0.0; DIRECT],
        };
        self.request2.apply(&q, &mut prepared.hidden);
        self.direct.apply(&q, &mut prepared.direct);
        prepared
    }

    /// `h + g`, and `u · p`.
    #[must_use]
    pub fn prepare_kind(&self, prepared: &Prepared, pair: &[f32; PAIR_LEN]) -> PreparedKind {
        let mut hidden = [0.0; EMBED];
        self.pair.apply(pair, &mut hidden);
        for (g, h) in hidden.iter_mut().zip(&prepared.hidden) {
            *g += h;
        }
        PreparedKind {
            hidden,
            direct: dot(&prepared.direct[..PAIR_LEN], pair),
        }
    }

    /// The score of a candidate.
    #[must_use]
    pub fn score(
        &self,
        prepared: &Prepared,
        kind: &PreparedKind,
        embedding: &[f32; EMBED],
        fit: &[f32; FIT_LEN],
    ) -> f32 {
        let mut lanes = [0.0_f32; 4];
        let rows = embedding
            .chunks_exact(4)
            .zip(kind.hidden.chunks_exact(4))
            .zip(self.head.weight.chunks_exact(4));
        for ((e, h), v) in rows {
            for lane in 0..4 {
                lanes[lane] += v[lane] * (e[lane] + h[lane]).max(0.0);
            }
        }
        let hidden = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        hidden + kind.direct + dot(&prepared.direct[PAIR_LEN..], fit)
    }
}

fn relu(values: &mut [f32]) {
    for value in values {
        *value = value.max(0.0);
    }
}
