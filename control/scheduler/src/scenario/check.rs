//! What holds for every episode, whatever it was drawn from.

use std::collections::BTreeSet;

use super::{Path, Scenario};

impl Path {
    /// What is wrong with it, if anything: times must rise, all numbers must be finite, values not
    /// negative, and it must say something.
    fn problem(&self) -> Option<&'static str> {
        if self.points.is_empty() {
            return Some("is empty");
        }
        if !self.points.windows(2).all(|w| w[0].0 < w[1].0) {
            return Some("has times that do not rise");
        }
        if !self
            .points
            .iter()
            .all(|(t, v)| t.is_finite() && v.is_finite() && *v >= 0.0)
        {
            return Some("has a number that is not finite, or a negative value");
        }
        None
    }
}

impl Scenario {
    /// Checks that the simulator and the bound may rely on it: sorted, with unique names, finite
    /// numbers and paths that rise in time.
    ///
    /// # Errors
    /// The first thing that is wrong, by name.
    pub fn check(&self) -> Result<(), String> {
        unique(self.pools.iter().map(|p| p.offer.id.as_str()))?;
        unique(self.devices.iter().map(|d| d.node.id.as_str()))?;
        if !self
            .workloads
            .windows(2)
            .all(|w| w[0].arrival <= w[1].arrival)
        {
            return Err("workloads are not sorted by arrival".to_owned());
        }
        let names: BTreeSet<_> = self.workloads.iter().map(|w| &w.request.replica).collect();
        if names.len() != self.workloads.len() {
            return Err("two workloads have the same name".to_owned());
        }
        for pool in &self.pools {
            let id = &pool.offer.id;
            path(id, "price", &pool.price)?;
            path(id, "obtainable", &pool.obtainable)?;
            above_zero(id, "list price", pool.list_price)?;
            above_zero(id, "boot hours", pool.boot_hours)?;
            above_zero(id, "network", pool.network_gbps)?;
            above_zero(id, "limit", f64::from(pool.limit))?;
            if pool.price.points.iter().any(|(_, price)| *price <= 0.0) {
                return Err(format!("{id}: a price is zero"));
            }
        }
        for device in &self.devices {
            path(&device.node.id, "up", &device.up)?;
            above_zero(&device.node.id, "price", device.node.price_per_hour)?;
            above_zero(&device.node.id, "network", device.network_gbps)?;
        }
        for workload in &self.workloads {
            let name = &workload.request.replica;
            path(name, "load", &workload.load)?;
            above_zero(name, "demanded hours", workload.demanded_hours())?;
            above_zero(name, "image", workload.image_gib)?;
            if !(0.0..self.horizon).contains(&workload.arrival) || workload.end > self.horizon {
                return Err(format!("{name}: outside the episode"));
            }
        }
        if let Some((pair, _)) = self
            .throughput
            .iter()
            .find(|(_, g)| !g.is_finite() || **g <= 0.0)
        {
            return Err(format!("throughput of {pair:?} is not above zero"));
        }
        Ok(())
    }
}

fn unique<'a>(ids: impl Iterator<Item = &'a str> + Clone) -> Result<(), String> {
    match ids.clone().zip(ids.skip(1)).find(|(a, b)| a >= b) {
        Some((_, id)) => Err(format!("{id}: not sorted by id, or twice there")),
        None => Ok(()),
    }
}

fn path(name: &str, what: &str, path: &Path) -> Result<(), String> {
    path.problem()
        .map_or(Ok(()), |problem| Err(format!("{name}: {what} {problem}")))
}

fn above_zero(name: &str, what: &str, value: f64) -> Result<(), String> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(format!("{name}: {what} is {value}"))
    }
}
