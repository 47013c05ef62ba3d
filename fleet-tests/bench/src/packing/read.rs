//! Reading nodes and pods. Every error names file, line and column.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail};
use csv::StringRecord;
use hyperion_placement::packing::{Demand, Models};

/// One node as bought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Devices.
    pub gpus: usize,
    /// The devices' model.
    pub model: Models,
}

/// All nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// In the file's order.
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// GPU capacity, thousandths of a device.
    pub fn gpu_millis(&self) -> u64 {
        self.nodes.iter().map(|node| node.gpus as u64 * 1000).sum()
    }
}

/// All pods, as kinds and who is of which kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pods {
    /// Different demands, sorted.
    pub kinds: Vec<Demand>,
    /// By pod in the file's order, its place in `kinds`.
    pub kind_of: Vec<usize>,
}

const MIB: u64 = 1 << 20;
/// A million cores and an exbibyte: more than any machine has, and far from overflow.
const MOST_CPU_MILLIS: u64 = 1_000_000_000;
const MOST_MEMORY_MIB: u64 = 1 << 40;
const MOST_GPUS: u64 = 64;
/// GPU models that can be told apart, one per bit.
const MOST_MODELS: usize = 64;

/// Reads both files.
///
/// # Errors
/// See the module.
pub fn files(nodes: &Path, pods: &Path) -> anyhow::Result<(Cluster, Pods)> {
    let text = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("{}: can't read", path.display()))
    };
    parse(
        (&nodes.display().to_string(), &text(nodes)?),
        (&pods.display().to_string(), &text(pods)?),
    )
}

/// Reads (name, text) of both files.
pub(super) fn parse(nodes: (&str, &str), pods: (&str, &str)) -> anyhow::Result<(Cluster, Pods)> {
    let mut models = BTreeMap::new();
    let cluster = read_nodes(&Table::new(nodes.0, nodes.1)?, &mut models)?;
    let pods = read_pods(&Table::new(pods.0, pods.1)?, &models)?;
    Ok((cluster, pods))
}

fn read_nodes(table: &Table<'_>, models: &mut BTreeMap<String, Models>) -> anyhow::Result<Cluster> {
    let name = table.column("sn")?;
    let cpu = table.column("cpu_milli")?;
    let memory = table.column("memory_mib")?;
    let gpu = table.column("gpu")?;
    let model = table.column("model").ok();
    let mut names = BTreeSet::new();
    let mut nodes = Vec::new();
    for row in &table.rows {
        let sn = row.text(name);
        if sn.is_empty() || !names.insert(sn.to_owned()) {
            bail!("{}: {sn:?} is empty or was there before", row.at("sn"));
        }
        let named = model.map_or("", |model| row.text(model));
        let next = models.len();
        let known = models.get(named).copied();
        if known.is_none() && next == MOST_MODELS {
            bail!("{}: more than {MOST_MODELS} models", row.at("model"));
        }
        let model = known.unwrap_or(Models(1 << next.min(MOST_MODELS - 1)));
        models.insert(named.to_owned(), model);
        nodes.push(Node {
            cpu_millis: row.number(cpu, "cpu_milli", MOST_CPU_MILLIS)?,
            memory_bytes: row.number(memory, "memory_mib", MOST_MEMORY_MIB)? * MIB,
            gpus: usize::try_from(row.number(gpu, "gpu", MOST_GPUS)?)?,
            model,
        });
    }
    let cluster = Cluster { nodes };
    if cluster.gpu_millis() == 0 {
        bail!("{}: no node has a GPU", table.file);
    }
    Ok(cluster)
}

fn read_pods(table: &Table<'_>, models: &BTreeMap<String, Models>) -> anyhow::Result<Pods> {
    let cpu = table.column("cpu_milli")?;
    let memory = table.column("memory_mib")?;
    let gpus = table.column("num_gpu")?;
    let millis = table.column("gpu_milli")?;
    let spec = table.column("gpu_spec").ok();
    let mut demands = Vec::new();
    for row in &table.rows {
        let gpu_count = u32::try_from(row.number(gpus, "num_gpu", MOST_GPUS)?)?;
        let gpu_millis = u32::try_from(row.number(millis, "gpu_milli", 1000)?)?;
        if gpu_count > 0 && gpu_millis == 0 {
            bail!("{}: 0, but num_gpu is {gpu_count}", row.at("gpu_milli"));
        }
        demands.push(Demand {
            cpu_millis: row.number(cpu, "cpu_milli", MOST_CPU_MILLIS)?,
            memory_bytes: row.number(memory, "memory_mib", MOST_MEMORY_MIB)? * MIB,
            gpu_count,
            gpu_millis: if gpu_count == 0 { 0 } else { gpu_millis },
            models: accepted(spec.map_or("", |spec| row.text(spec)), models),
        });
    }
    if demands.iter().all(|demand| demand.gpu_count == 0) {
        bail!("{}: no pod asks for a GPU", table.file);
    }
    let sorted: BTreeSet<Demand> = demands.iter().copied().collect();
    let kinds: Vec<Demand> = sorted.into_iter().collect();
    let kind_of = demands
        .iter()
        .filter_map(|demand| kinds.binary_search(demand).ok())
        .collect();
    Ok(Pods { kinds, kind_of })
}

/// Models that will do; those of no node are left out, so a pod that accepts only such ones fits
/// nowhere.
fn accepted(spec: &str, models: &BTreeMap<String, Models>) -> Models {
    if spec.is_empty() {
        return Models::ANY;
    }
    let bits = spec
        .split('|')
        .filter_map(|model| models.get(model.trim()))
        .fold(0, |bits, model| bits | model.0);
    Models(bits)
}

struct Table<'a> {
    file: &'a str,
    header: StringRecord,
    rows: Vec<Row<'a>>,
}

struct Row<'a> {
    file: &'a str,
    line: u64,
    fields: StringRecord,
}

impl<'a> Table<'a> {
    fn new(file: &'a str, text: &str) -> anyhow::Result<Self> {
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_reader(text.as_bytes());
        let header = reader.headers().map_err(|e| broken(file, &e))?.clone();
        if header.is_empty() {
            bail!("{file}: is empty; a header and at least one row are expected");
        }
        let mut rows = Vec::new();
        for fields in reader.records() {
            let fields = fields.map_err(|e| broken(file, &e))?;
            let line = fields.position().map_or(0, csv::Position::line);
            rows.push(Row { file, line, fields });
        }
        if rows.is_empty() {
            bail!("{file}: has a header and no rows");
        }
        Ok(Self { file, header, rows })
    }

    fn column(&self, name: &str) -> anyhow::Result<usize> {
        let found = self.header.iter().position(|column| column == name);
        found.with_context(|| {
            let there: Vec<&str> = self.header.iter().collect();
            format!(
                "{}, line 1: no column {name}; there are {}",
                self.file,
                there.join(", ")
            )
        })
    }
}

/// The csv crate's own words name the line, but not the file.
fn broken(file: &str, error: &csv::Error) -> anyhow::Error {
    let line = error.position().map_or(1, csv::Position::line);
    anyhow::anyhow!("{file}, line {line}: {error}")
}

impl Row<'_> {
    fn at(&self, column: &str) -> String {
        format!("{}, line {}, column {column}", self.file, self.line)
    }

    fn text(&self, column: usize) -> &str {
        self.fields.get(column).unwrap_or_default()
    }

    fn number(&self, column: usize, name: &str, most: u64) -> anyhow::Result<u64> {
        let text = self.text(column);
        let value: u64 = text.parse().map_err(|_| {
            anyhow::anyhow!(
                "{}: {text:?} is not a whole number from 0 to {most}",
                self.at(name)
            )
        })?;
        if value > most {
            bail!("{}: {value} is more than {most}", self.at(name));
        }
        Ok(value)
    }
}
