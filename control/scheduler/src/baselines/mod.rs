//! Schedulers to compare with, each as strong as its definition allows.
//!
//! | name | how it decides |
//! |---|---|
//! | `static` | the cheapest room on demand in AWS us-east-1; stays for ever |
//! | `kube-default` | Kubernetes' default scores over the nodes there are; an autoscaler that buys on demand in the home region where none fits; stays for ever |
//! | `cheapest` | the cheapest room there is, spot included; fails over to the next cheapest |
//! | `nearest` | the least round trip to the clients; the cheapest for who has none |
//! | `rules` | the hand-written scorer of production, with hysteresis |
//! | `greedy` | the greatest true reward of the next half hour |

mod cheapest;
mod greedy;
mod kube;
mod nearest;
mod rules;
mod steady;

pub use cheapest::Cheapest;
pub use greedy::Greedy;
pub use kube::KubeDefault;
pub use nearest::Nearest;
pub use rules::Rules;
pub use steady::Static;

use crate::sim::Brain;

/// Names of all baselines, the control group first.
pub const NAMES: [&str; 6] = [
    "static",
    "kube-default",
    "cheapest",
    "nearest",
    "rules",
    "greedy",
];

/// A baseline by its name.
#[must_use]
pub fn by_name(name: &str) -> Option<Box<dyn Brain + Send>> {
    Some(match name {
        "static" => Box::new(Static),
        "kube-default" => Box::new(KubeDefault),
        "cheapest" => Box::new(Cheapest::default()),
        "nearest" => Box::new(Nearest),
        "rules" => Box::new(Rules::default()),
        "greedy" => Box::new(Greedy::default()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
