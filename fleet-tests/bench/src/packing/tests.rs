use std::fmt::Write;

use super::{mean as mean_of, *};

const NODES: &str =
    "sn,cpu_milli,memory_mib,gpu,model\nn0,96000,393216,8,G2\nn1,16000,122880,2,P100\n";
const PODS: &str = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n\
                    p0,12000,16384,1,1000,\np1,6000,12288,1,460,G2|T4\np2,1000,1024,0,0,\n";

fn parsed(nodes: &str, pods: &str) -> anyhow::Result<(Cluster, Pods)> {
    read::parse(("nodes.csv", nodes), ("pods.csv", pods))
}

fn error(nodes: &str, pods: &str) -> String {
    format!("{:#}", parsed(nodes, pods).unwrap_err())
}

#[test]
fn nodes_and_pods_are_read_with_their_models() {
    let (cluster, pods) = parsed(NODES, PODS).unwrap();
    assert_eq!(cluster.gpu_millis(), 10_000);
    assert_eq!(cluster.nodes[1].memory_bytes, 122_880 << 20);
    let of = |pod: usize| pods.kinds[pods.kind_of[pod]];
    assert_eq!((of(0).gpu_count, of(0).gpu_millis), (1, 1000));
    assert!(of(1).models.overlaps(cluster.nodes[0].model));
    assert!(!of(1).models.overlaps(cluster.nodes[1].model));
    assert!(of(0).models.overlaps(cluster.nodes[1].model));
    assert_eq!(of(2).gpu_count, 0);
}

#[test]
fn a_missing_column_is_named_with_its_file() {
    let said = error(&NODES.replace("cpu_milli", "cpu"), PODS);
    assert!(
        said.contains("nodes.csv, line 1: no column cpu_milli"),
        "{said}"
    );
    let said = error(NODES, &PODS.replace("num_gpu", "gpus"));
    assert!(
        said.contains("pods.csv, line 1: no column num_gpu"),
        "{said}"
    );
}

#[test]
fn what_is_no_number_is_named_with_line_and_column() {
    for wrong in ["NaN", "-6000", "6e3", "", "18446744073709551616"] {
        let said = error(NODES, &PODS.replace("p1,6000", &format!("p1,{wrong}")));
        assert!(
            said.contains("pods.csv, line 3, column cpu_milli"),
            "{said}"
        );
    }
    let said = error(&NODES.replace(",2,P100", ",65,P100"), PODS);
    assert!(
        said.contains("nodes.csv, line 3, column gpu: 65 is more than 64"),
        "{said}"
    );
    let said = error(NODES, &PODS.replace("1,1000,", "1,1001,"));
    assert!(
        said.contains("pods.csv, line 2, column gpu_milli"),
        "{said}"
    );
    let said = error(NODES, &PODS.replace("1,1000,", "1,0,"));
    assert!(
        said.contains("column gpu_milli: 0, but num_gpu is 1"),
        "{said}"
    );
}

#[test]
fn files_that_say_nothing_are_refused() {
    assert!(error("", PODS).contains("nodes.csv: is empty"));
    assert!(error(NODES, "name,cpu_milli\n").contains("pods.csv: has a header and no rows"));
    let no_gpu = NODES.replace(",8,G2", ",0,").replace(",2,P100", ",0,");
    assert!(error(&no_gpu, PODS).contains("no node has a GPU"));
    let no_demand = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\np,1,1,0,0\n";
    assert!(error(NODES, no_demand).contains("no pod asks for a GPU"));
    let said = error(&NODES.replace("n1,", "n0,"), PODS);
    assert!(said.contains("line 3, column sn"), "{said}");
    let said = error(NODES, &PODS.replace("p1,6000,", "p1,"));
    assert!(said.contains("pods.csv, line 3"), "{said}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let args = Args {
        nodes: "no/such/nodes.csv".into(),
        pods: "no/such/pods.csv".into(),
        seeds: 1,
        seed: 1,
    };
    assert!(format!("{:#}", run(&args).unwrap_err()).contains("no/such/nodes.csv"));
}

/// Pods like those of a production cluster: mostly whole devices, and shares that pair badly.
fn crowd() -> (Cluster, Pods) {
    let mut nodes = String::from("sn,cpu_milli,memory_mib,gpu,model\n");
    for n in 0..30 {
        writeln!(nodes, "n{n},96000,393216,8,G2").unwrap();
    }
    let mut pods = String::from("name,cpu_milli,memory_mib,num_gpu,gpu_milli\n");
    let demands = [
        "3000,4096,1,810",
        "8000,8192,1,470",
        "8000,8192,1,530",
        "11000,8192,1,1000",
    ];
    for n in 0..200 {
        writeln!(pods, "p{n},{}", demands[n % 4]).unwrap();
        if n % 50 == 0 {
            writeln!(pods, "w{n},88000,65536,8,1000").unwrap();
        }
    }
    parsed(&nodes, &pods).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let (cluster, pods) = crowd();
    for kind in Kind::ALL {
        let run = || replay::run(&cluster, &pods, kind, 7).unwrap();
        assert_eq!(run(), run(), "{kind:?}");
    }
    let random = |seed| replay::run(&cluster, &pods, Kind::Random, seed).unwrap();
    assert_ne!(random(7), random(8));
}

#[test]
fn arrivals_stop_at_the_capacity_and_never_exceed_it_in_place() {
    let (cluster, pods) = crowd();
    for kind in Kind::ALL {
        let outcome = replay::run(&cluster, &pods, kind, 3).unwrap();
        assert!(outcome.placed <= outcome.arrived);
        assert!(
            (0.0..100.0).contains(&outcome.unallocated_percent),
            "{outcome:?}"
        );
    }
}

#[test]
fn learned_prices_leave_far_less_unallocated_than_chance() {
    let (cluster, pods) = crowd();
    let mean = |kind| {
        let run = |seed| replay::run(&cluster, &pods, kind, seed).unwrap();
        let runs: Vec<Outcome> = (1..=5).map(run).collect();
        mean_of(&runs, |o| o.unallocated_percent)
    };
    let (ours, chance) = (mean(Kind::Hyperion), mean(Kind::Random));
    assert!(ours < 0.7 * chance, "{ours} against {chance}");
}

#[test]
fn production_keeps_to_the_models_that_a_pod_accepts() {
    let pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np,6000,1024,1,460,P100|T4\n";
    let (cluster, pods) = parsed(NODES, pods).unwrap();
    for kind in [Kind::Rules, Kind::Policy] {
        let outcome = replay::run(&cluster, &pods, kind, 1).unwrap();
        // Only the second node has such devices, and CPU for two.
        assert_eq!(outcome.placed, 2, "{kind:?}");
    }
}

#[test]
fn spread_is_told_only_of_several_runs() {
    let outcome = |percent| Outcome {
        unallocated_percent: percent,
        arrived: 1,
        placed: 1,
        several_rejected_percent: 0.0,
    };
    let mut report = Report::new("packing", 1);
    figures(&mut report, "one", &[outcome(4.0)]);
    figures(&mut report, "two", &[outcome(4.0), outcome(6.0)]);
    assert_eq!(report.figures["one_stddev"], None);
    assert_eq!(report.figures["two_unallocated_percent"], Some(5.0));
    assert!((report.figures["two_stddev"].unwrap() - 2.0_f64.sqrt()).abs() < 1e-12);
    assert!((report.figures["two_unallocated_percent_ci95"].unwrap() - 12.706).abs() < 1e-9);
}
