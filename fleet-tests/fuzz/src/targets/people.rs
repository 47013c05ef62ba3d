//! What people write, and what they are shown.

use hyperion_api::request;
use hyperion_api::workload::HyperionWorkload;
use hyperion_console::text;

use crate::{Case, Outcome};

/// Workloads as JSON.
pub struct WorkloadCase;

const WORKLOAD: &str = r#"{"apiVersion":"hyperion.io/v1alpha1","kind":"HyperionWorkload",
"metadata":{"name":"infer","namespace":"default"},"spec":{"type":"service","replicas":2,
"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"main","image":"localhost/demo:1",
"args":["--x"],"env":[{"name":"A","value":"b"}],"ports":[{"containerPort":8080}],
"resources":{"requests":{"cpu":"500m","memory":"1Gi"},"limits":{"cpu":"2","memory":"4Gi","nvidia.com/gpu":"1"}},
"livenessProbe":{"httpGet":{"path":"/","port":8080}}}],"nodeSelector":{"kubernetes.io/arch":"arm64"},
"tolerations":[{"key":"k","operator":"Exists"}],"volumes":[{"name":"v","emptyDir":{}}]}},
"policy":{"goal":"latency","maxHourlyCost":1.5,"latencyTargetMs":100,
"clients":[{"geography":"EU","weight":2},{"site":"lab","weight":1}],
"constraints":{"geographies":["US","EU"],"clouds":["aws","gcp"],"tiers":["edge"],"preferSpot":true},
"data":{"source":"s3://b","locality":"aws:us-east-1"},
"disconnect":{"replaceAfter":"30s","stopAfter":"5m"},"exclusive":true}}}"#;

impl Case for WorkloadCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        vec![WORKLOAD.as_bytes().to_vec()]
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        let words = [
            "null",
            "true",
            "-1",
            "1e308",
            "1e400",
            "18446744073709551616",
            "\"\"",
            "[]",
            "{}",
            "\"9999999999E\"",
            "\"-1\"",
            "\"1.5Gi\"",
            "\"0.1m\"",
            "\"1e-30\"",
            "\"NaN\"",
            "\"hyperion.io/gpu-millis\":\"250\"",
            "\"initContainers\":[]",
            "\"hostPort\":70000",
            "\"weight\":-1",
            "\"locality\":\"a:b:c\"",
            "\"cpu\":\"1E\"",
            "\"memory\":\"1n\"",
        ];
        words.iter().map(|w| w.as_bytes().to_vec()).collect()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let workload: HyperionWorkload = match serde_json::from_slice(input) {
            Ok(workload) => workload,
            Err(e) => return Outcome::text(&e.to_string()),
        };
        let read = request::request(&workload.spec);
        if let Ok(read) = &read {
            let numbers = [read.max_hourly_cost, read.latency_target_ms];
            assert!(
                numbers.iter().flatten().all(|n| n.is_finite() && *n >= 0.0),
                "{read:?}"
            );
            assert!(read.gpu.millis <= 1000, "{read:?}");
            let weights = read.clients.iter().map(|c| c.weight);
            assert!(
                weights.into_iter().all(|w| w.is_finite() && w >= 0.0),
                "{read:?}"
            );
        }
        Outcome::of(&read)
    }
}

/// Text for a terminal. The first byte says how wide it is.
pub struct TextCase;

impl Case for TextCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let seeds = [
            "\u{8}plain text of some words",
            "\u{14}\u{1b}[31mred\u{1b}]0;title\u{7} \u{202e}backwards \u{200b}",
            "\u{5}日本語テキスト 한국어 👩‍👩‍👧 e\u{301}",
            "\u{0}",
        ];
        seeds.iter().map(|s| s.as_bytes().to_vec()).collect()
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        let words = [
            "\u{1b}",
            "\u{9b}",
            "\u{7}",
            "\u{fe0f}",
            "\u{200d}",
            "\u{1f468}",
            "\u{ff21}",
        ];
        words.iter().map(|w| w.as_bytes().to_vec()).collect()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let (max, rest) = input.split_first().unwrap_or((&0, &[]));
        let max = usize::from(*max);
        let raw = String::from_utf8_lossy(rest);
        let clean = text::clean(&raw);
        assert!(!clean.chars().any(char::is_control), "{clean:?}");
        assert_eq!(text::clean(&clean), clean, "cleaning again changes it");
        let fitted = text::fit(&clean, max);
        assert!(
            text::width(&fitted) <= max,
            "{fitted:?} is wider than {max}"
        );
        for line in text::wrap(&clean, max) {
            assert!(text::width(&line) <= max, "{line:?} is wider than {max}");
        }
        let padded = text::pad(&clean, max, max.is_multiple_of(2));
        assert_eq!(text::width(&padded), max, "{padded:?}");
        Outcome(u64::from(clean == raw) + 2 * u64::from(fitted == clean))
            .and(Outcome(clean.chars().count().ilog2_or_zero()))
    }
}

trait Magnitude {
    fn ilog2_or_zero(self) -> u64;
}

impl Magnitude for usize {
    fn ilog2_or_zero(self) -> u64 {
        self.checked_ilog2().map_or(0, u64::from)
    }
}
