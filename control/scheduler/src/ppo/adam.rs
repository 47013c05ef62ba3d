//! The optimiser, over the flat vector, so that its state is three vectors that a checkpoint holds.

use super::config;
use super::parameters::{actor_len, total_len};

/// Weights and the state of Adam (Kingma and Ba, 2015).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Adam {
    /// The weights.
    pub values: Vec<f32>,
    /// Running mean of the gradients.
    pub first: Vec<f32>,
    /// Running mean of their squares.
    pub second: Vec<f32>,
    /// Steps of the policy and of the critic.
    pub steps: [u64; 2],
}

/// Learning rates of one step; a part with none stays as it is, its state too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    pub actor: Option<f64>,
    pub critic: Option<f64>,
}

impl Adam {
    pub(super) fn new(values: Vec<f32>) -> Self {
        Self {
            first: vec![0.0; values.len()],
            second: vec![0.0; values.len()],
            values,
            steps: [0; 2],
        }
    }

    /// Forgets all but the weights.
    pub(super) fn forget(&mut self) {
        *self = Self::new(std::mem::take(&mut self.values));
    }

    /// One step against the gradient, whose parts are first scaled down to the norm. Returns the
    /// norm of the policy's part before that.
    pub(super) fn step(
        &mut self,
        gradient: &[f32],
        rates: Rates,
        max_norm: f64,
        settings: &config::Adam,
    ) -> f64 {
        let parts = [
            (0..actor_len(), rates.actor),
            (actor_len()..total_len(), rates.critic),
        ];
        let mut norms = [0.0; 2];
        for (part, (range, rate)) in parts.into_iter().enumerate() {
            let norm = norm(&gradient[range.clone()]);
            norms[part] = norm;
            let Some(rate) = rate else { continue };
            self.steps[part] += 1;
            let scale = if norm > max_norm {
                max_norm / norm
            } else {
                1.0
            };
            let step = self.steps[part] as f64;
            let bias = |beta: f64| 1.0 - beta.powf(step);
            let (b1, b2) = (settings.beta1 as f32, settings.beta2 as f32);
            let rate = (rate * bias(settings.beta2).sqrt() / bias(settings.beta1)) as f32;
            let (scale, epsilon) = (scale as f32, settings.epsilon as f32);
            for i in range {
                let gradient = gradient[i] * scale;
                self.first[i] = b1 * self.first[i] + (1.0 - b1) * gradient;
                self.second[i] = b2 * self.second[i] + (1.0 - b2) * gradient * gradient;
                self.values[i] -= rate * self.first[i] / (self.second[i].sqrt() + epsilon);
            }
        }
        norms[0]
    }
}

fn norm(gradient: &[f32]) -> f64 {
    let squares = gradient.iter().map(|g| f64::from(*g) * f64::from(*g));
    squares.sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: config::Adam = config::Adam {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
    };

    #[test]
    fn the_first_step_has_the_length_of_the_learning_rate() {
        let mut adam = Adam::new(vec![0.0; total_len()]);
        let mut gradient = vec![0.0; total_len()];
        gradient[3] = 10.0;
        gradient[actor_len()] = -0.1;
        let rates = Rates {
            actor: Some(0.01),
            critic: Some(0.02),
        };
        let norm = adam.step(&gradient, rates, 0.5, &SETTINGS);
        assert_eq!(norm, 10.0);
        assert!((adam.values[3] + 0.01).abs() < 1e-5);
        assert!((adam.values[actor_len()] - 0.02).abs() < 1e-5);
        assert!((adam.first[3] - 0.05).abs() < 1e-6, "scaled to the norm");
    }

    #[test]
    fn a_part_without_rate_stays_as_it_is() {
        let mut adam = Adam::new(vec![1.0; total_len()]);
        let rates = Rates {
            actor: None,
            critic: Some(0.1),
        };
        adam.step(&vec![1.0; total_len()], rates, 0.5, &SETTINGS);
        assert!(adam.values[..actor_len()].iter().all(|v| *v == 1.0));
        assert!(adam.values[actor_len()..].iter().all(|v| *v < 1.0));
        assert_eq!(adam.steps, [0, 1]);
    }
}
