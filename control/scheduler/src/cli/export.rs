//! `hyperion-train export`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use hyperion_placement::policy::Network;
use hyperion_policy::{Card, PolicyFile, Quantisation, SlotStats, Statistics};
use serde_json::json;

use super::{policy, say, write};

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Policy file to read, safetensors or GGUF. Of several, the mean of their weights is written:
    /// they must be runs that began with the same policy.
    #[arg(long, required = true)]
    policy: Vec<PathBuf>,
    /// Multiplies all scores. More makes the policy surer of its choices where they are drawn, as
    /// in training; which candidate is best stays the same.
    #[arg(long, default_value_t = 1.0)]
    sharpen: f32,
    /// Precision to write.
    #[arg(long, value_enum, default_value = "q8")]
    precision: To,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum To {
    /// 32 bits, safetensors.
    Full,
    /// 8 bits, GGUF.
    Q8,
    /// 4 bits, GGUF.
    Q4,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let mut files = Vec::new();
    for path in &args.policy {
        let file = policy(path)?;
        if let Some(first) = files.first() {
            same(first, &file).with_context(|| path.display().to_string())?;
        }
        files.push(file);
    }
    let (card, mut network) = mean(files).context("no policy")?;
    sharpen(&mut network, args.sharpen)?;
    let (card, network) = (&card, &network);
    let bytes = match args.precision {
        To::Full => PolicyFile::write_safetensors(card, network)?,
        To::Q8 => PolicyFile::write_gguf(card, network, Quantisation::Q8)?,
        To::Q4 => PolicyFile::write_gguf(card, network, Quantisation::Q4)?,
    };
    write(&args.out, &bytes)?;
    say(&format!("{}: {} bytes", args.out.display(), bytes.len()));
    Ok(())
}

/// Multiplies the scores of a network: they are linear in its last two layers.
fn sharpen(network: &mut Network, factor: f32) -> Result<()> {
    if !(factor.is_finite() && factor > 0.0) {
        bail!("--sharpen must be more than 0");
    }
    for (name, layer) in network.layers_mut() {
        if matches!(name, "head" | "direct") {
            for value in layer.weight.iter_mut().chain(&mut layer.bias) {
                *value *= factor;
            }
        }
    }
    Ok(())
}

/// Refuses to mix what learnt different things.
fn same(first: &PolicyFile, other: &PolicyFile) -> Result<()> {
    if first.card.data != other.card.data {
        bail!("was trained on other data than the first policy");
    }
    if first.card.reward != other.card.reward {
        bail!("was trained for another reward than the first policy");
    }
    Ok(())
}

/// The mean of the weights (Wortsman et al., "Model soups", ICML 2022); none of no files. What
/// runs from the same beginning learnt adds up, and what is noise in each is gone.
fn mean(files: Vec<PolicyFile>) -> Option<(Card, Network)> {
    let count = files.len();
    let mut files = files.into_iter();
    let PolicyFile {
        mut card,
        mut network,
        ..
    } = files.next()?;
    if count == 1 {
        return Some((card, network));
    }
    let rest: Vec<PolicyFile> = files.collect();
    let each = 1.0 / count as f64;
    for (i, (_, layer)) in network.layers_mut().into_iter().enumerate() {
        let others: Vec<_> = rest.iter().map(|f| f.network.layers()[i].1).collect();
        for (at, weight) in layer.weight.iter_mut().enumerate() {
            let sum = others.iter().map(|l| f64::from(l.weight[at]));
            *weight = (each * (f64::from(*weight) + sum.sum::<f64>())) as f32;
        }
        for (at, bias) in layer.bias.iter_mut().enumerate() {
            let sum = others.iter().map(|l| f64::from(l.bias[at]));
            *bias = (each * (f64::from(*bias) + sum.sum::<f64>())) as f32;
        }
    }
    let mut evaluations = vec![card.evaluation.clone()];
    for other in rest {
        card.steps = card.steps.max(other.card.steps);
        pool(&mut card.statistics, &other.card.statistics);
        evaluations.push(other.card.evaluation);
    }
    card.evaluation = json!({ "mean_of": evaluations });
    Some((card, network))
}

/// Widens statistics to what another run saw. Means and deviations stay those of the first.
fn pool(statistics: &mut Statistics, other: &Statistics) {
    let widen = |slots: &mut Vec<SlotStats>, others: &[SlotStats]| {
        for (slot, other) in slots.iter_mut().zip(others) {
            slot.min = slot.min.min(other.min);
            slot.max = slot.max.max(other.max);
        }
    };
    widen(&mut statistics.request, &other.request);
    widen(&mut statistics.node, &other.node);
    widen(&mut statistics.pair, &other.pair);
    widen(&mut statistics.fit, &other.fit);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built_in() -> PolicyFile {
        super::super::built_in().unwrap()
    }

    #[test]
    fn of_one_policy_nothing_changes_and_of_several_weights_are_the_mean() {
        let (card, network) = mean(vec![built_in()]).unwrap();
        assert_eq!((&card, &network), (&built_in().card, &built_in().network));
        let mut other = built_in();
        other.network = Network::zeros();
        other.card.steps += 5;
        other.card.statistics.node[3].max += 1.0;
        let (card, found) = mean(vec![built_in(), other]).unwrap();
        for ((_, whole), (_, half)) in network.layers().into_iter().zip(found.layers()) {
            for (whole, half) in whole.weight.iter().zip(&half.weight) {
                assert!((whole / 2.0 - half).abs() < 1e-6);
            }
            for (whole, half) in whole.bias.iter().zip(&half.bias) {
                assert!((whole / 2.0 - half).abs() < 1e-6);
            }
        }
        let first = built_in().card;
        assert_eq!(card.steps, first.steps + 5);
        let (wide, narrow) = (&card.statistics.node[3], &first.statistics.node[3]);
        assert_eq!((wide.min, wide.max), (narrow.min, narrow.max + 1.0));
        assert_eq!(card.evaluation["mean_of"][0], first.evaluation);
        assert!(mean(Vec::new()).is_none());
    }

    #[test]
    fn sharper_scores_are_a_multiple_and_nonsense_is_refused() {
        let (whole, mut sharp) = (built_in().network, built_in().network);
        sharpen(&mut sharp, 2.0).unwrap();
        for ((name, whole), (_, sharp)) in whole.layers().into_iter().zip(sharp.layers()) {
            let factor = if matches!(name, "head" | "direct") {
                2.0
            } else {
                1.0
            };
            let times = |w: &[f32], s: &[f32]| w.iter().zip(s).all(|(w, s)| w * factor == *s);
            assert!(times(&whole.weight, &sharp.weight), "{name}");
            assert!(times(&whole.bias, &sharp.bias), "{name}");
        }
        sharpen(&mut sharp, 0.5).unwrap();
        assert_eq!(sharp, whole);
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(sharpen(&mut sharp, bad).is_err());
        }
        assert_eq!(sharp, whole);
    }

    #[test]
    fn policies_that_learnt_from_other_data_or_for_another_reward_are_not_mixed() {
        let mut other = built_in();
        other.card.data.hash.push('0');
        let error = same(&built_in(), &other).unwrap_err().to_string();
        assert!(error.contains("other data"), "{error}");
        let mut other = built_in();
        other.card.reward.cost.cost += 0.1;
        let error = same(&built_in(), &other).unwrap_err().to_string();
        assert!(error.contains("another reward"), "{error}");
        assert!(same(&built_in(), &built_in()).is_ok());
    }
}
