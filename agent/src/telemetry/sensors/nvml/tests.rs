//! GPUs whose library says anything.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use hyperion_proto::convert;

use super::*;
use crate::telemetry::{Envelope, Sample};

type Answer = Result<Vec<Raw>, String>;

/// A library that answers what it is told to.
#[derive(Clone, Default)]
struct Script {
    answers: Rc<RefCell<VecDeque<Answer>>>,
    loads: Rc<Cell<u32>>,
    broken: Rc<Cell<bool>>,
}

impl Driver for Script {
    fn read(&mut self, slow: bool) -> Result<Vec<Raw>, String> {
        let mut answer = self.answers.borrow_mut().pop_front().unwrap();
        for raw in answer.iter_mut().flatten().filter(|_| !slow) {
            raw.slow = None;
        }
        answer
    }
}

impl Script {
    fn gpus(&self) -> Gpus {
        let script = self.clone();
        Gpus::new(move || {
            script.loads.set(script.loads.get() + 1);
            if script.broken.get() {
                return Err("the driver is not loaded".to_owned());
            }
            Ok(Box::new(script.clone()))
        })
    }

    fn answer(&self, answer: Answer) {
        self.answers.borrow_mut().push_back(answer);
    }
}

fn good(uuid: &str) -> Raw {
    Raw {
        uuid: Some(uuid.to_owned()),
        name: Some("NVIDIA L4".to_owned()),
        busy: Some(73),
        memory_busy: Some(40),
        memory: Some((3 << 30, 24 << 30)),
        celsius: Some(61),
        power: Some(55_250),
        throttle: Some(0x24),
        slow: Some(Slow {
            power_limit: Some(72_000),
            energy: Some(1_234_500),
            clocks: vec![
                ("sm", Some(1_590), Some(2_040)),
                ("memory", None, Some(6_251)),
            ],
            ecc: Some(true),
            ecc_corrected: Some(3),
            ecc_uncorrected: Some(0),
            mig: Some(false),
            instances: Vec::new(),
            processes: Some(vec![(4711, Some(1 << 30)), (4712, None)]),
        }),
    }
}

fn garbage(uuid: &str) -> Raw {
    Raw {
        uuid: Some(uuid.to_owned()),
        name: Some("\u{1b}[2J\u{7}".to_owned()),
        busy: Some(u32::MAX),
        memory_busy: Some(101),
        memory: Some((u64::MAX, 1)),
        celsius: Some(u32::MAX),
        power: Some(u32::MAX),
        throttle: Some(u64::MAX << 9),
        slow: Some(Slow {
            power_limit: Some(u32::MAX),
            energy: Some(u64::MAX),
            clocks: vec![("sm", Some(u32::MAX), Some(u32::MAX))],
            ecc: None,
            ecc_corrected: Some(u64::MAX),
            ecc_uncorrected: Some(u64::MAX),
            mig: Some(true),
            instances: vec![
                (None, None, Some(u64::MAX)),
                (Some(String::new()), None, None),
            ],
            processes: Some(vec![(0, Some(u64::MAX)); 1000]),
        }),
    }
}

fn values(look: &Look, metric: &'static Metric) -> Vec<f64> {
    look.of(metric).map(|r| r.value).collect()
}

#[test]
fn a_gpu_is_told_in_base_units() {
    let script = Script::default();
    script.answer(Ok(vec![good("GPU-1")]));
    let look = script.gpus().look(Instant::now());
    for (metric, value) in [
        (&m::GPU_UTILIZATION, 0.73),
        (&m::GPU_MEMORY_UTILIZATION, 0.4),
        (&m::GPU_MEMORY_USED, 3_221_225_472.0),
        (&m::GPU_TEMPERATURE, 61.0),
        (&m::GPU_POWER, 55.25),
        (&m::GPU_POWER_LIMIT, 72.0),
        (&m::GPU_ENERGY, 1234.5),
        (&m::GPU_CLOCK, 1.59e9),
        (&m::GPU_ECC_ENABLED, 1.0),
        (&m::GPU_MIG_ENABLED, 0.0),
        (&m::GPU_PROCESSES, 2.0),
    ] {
        assert_eq!(values(&look, metric), [value], "{}", metric.name);
    }
    assert_eq!(values(&look, &m::GPU_ECC_ERRORS), [3.0, 0.0]);
    let held: Vec<_> = look
        .of(&m::GPU_THROTTLED)
        .filter(|r| r.value > 0.0)
        .map(|r| r.sensor.label("reason"))
        .collect();
    assert_eq!(held, ["sw_power_cap", "sw_thermal"]);
    assert!(look.throttled_by_heat());
    assert_eq!(look.temperatures(), [("gpu/GPU-1".to_owned(), 61.0)]);
    let status = look.gpu_status().remove(0);
    assert_eq!(
        (status.utilization_percent, status.power_watts),
        (73.0, 55.25)
    );
    let gpu = look.gpu_list().remove(0);
    assert_eq!(
        (gpu.model.as_str(), gpu.memory_bytes),
        ("NVIDIA L4", 24 << 30)
    );
}

#[test]
fn garbage_is_left_out_and_never_refused() {
    let script = Script::default();
    let nameless = Raw::default();
    script.answer(Ok(vec![
        garbage("GPU-1"),
        nameless,
        good("GPU-2"),
        good("GPU-2"),
    ]));
    let look = script.gpus().look(Instant::now());
    let of = |gpu: &str| {
        let readings = look.readings.iter();
        readings.filter(|r| r.sensor.label("gpu") == gpu).count()
    };
    // That it is divided, into none that has a name, has so many processes, and nothing holds it.
    let kept = ["mig_enabled", "mig_instances", "processes", "throttled"];
    let odd = look
        .readings
        .iter()
        .filter(|r| r.sensor.label("gpu") == "GPU-1");
    for reading in odd {
        let name = reading.sensor.metric.name;
        assert!(kept.iter().any(|k| name.ends_with(k)), "{reading:?}");
    }
    assert!(of("GPU-2") > 15, "{}", of("GPU-2"));
    assert_eq!(look.left_out.len(), 2, "{:?}", look.left_out);
    assert!(
        look.processes
            .iter()
            .all(|p| p.memory_bytes.is_none_or(|b| b < 1 << 40))
    );
    let uuids: Vec<_> = look.gpus.iter().map(|g| g.uuid.as_str()).collect();
    assert_eq!(uuids, ["GPU-2"]);
    let sample = Sample {
        sensors: look,
        ..Sample::default()
    };
    let message = sample.message(Envelope::default());
    assert_eq!(convert::telemetry(&message).err(), None);
}

#[test]
fn a_divided_gpu_is_offered_by_its_instances() {
    let script = Script::default();
    let mut raw = good("GPU-1");
    let slow = raw.slow.as_mut().unwrap();
    slow.mig = Some(true);
    slow.instances = ["MIG-a", "MIG-b"]
        .map(|uuid| (Some(uuid.to_owned()), None, Some(5 << 30)))
        .to_vec();
    script.answer(Ok(vec![raw]));
    let look = script.gpus().look(Instant::now());
    let gpus = look.gpu_list();
    let uuids: Vec<_> = gpus
        .iter()
        .map(|g| (g.uuid.as_str(), g.memory_bytes))
        .collect();
    assert_eq!(uuids, [("MIG-a", 5 << 30), ("MIG-b", 5 << 30)]);
    assert_eq!(values(&look, &m::GPU_MIG_INSTANCES), [2.0]);
    assert_eq!(look.gpu_status()[1].temperature_celsius, 61.0);
}

#[test]
fn a_driver_that_goes_away_is_loaded_again_later() {
    let script = Script::default();
    script.broken.set(true);
    let mut gpus = script.gpus();
    let t0 = Instant::now();
    let at = |seconds| t0 + Duration::from_secs(seconds);
    let absent = gpus.look(at(0));
    assert_eq!(absent.left_out[0].why, "the driver is not loaded");
    assert!(absent.readings.is_empty());
    gpus.look(at(1));
    assert_eq!(script.loads.get(), 1, "not at each look");

    script.broken.set(false);
    script.answer(Ok(vec![good("GPU-1")]));
    assert_eq!(gpus.look(at(30)).gpus.len(), 1);
    // What is asked for seldom is still told in between.
    script.answer(Ok(vec![good("GPU-1")]));
    assert_eq!(values(&gpus.look(at(31)), &m::GPU_POWER_LIMIT), [72.0]);

    script.answer(Err("the driver was unloaded".to_owned()));
    let gone = gpus.look(at(32));
    assert!(gone.readings.is_empty() && gone.gpus.is_empty());
    assert_eq!(gone.left_out[0].why, "the driver was unloaded");
    gpus.look(at(33));
    assert_eq!(script.loads.get(), 2, "a new driver needs a while");
    script.answer(Ok(vec![good("GPU-1"), good("GPU-2")]));
    assert_eq!(gpus.look(at(62)).gpus.len(), 2);
    assert_eq!(script.loads.get(), 3);
}

#[test]
fn a_board_keeps_the_name_of_its_gpu_with_a_driver() {
    let script = Script::default();
    let mut raw = good("GPU-1");
    raw.memory = None;
    script.answer(Ok(vec![raw]));
    let mut look = Look {
        gpus: vec![GpuNow {
            uuid: "tegra-gpu-gpc-0".to_owned(),
            model: "Thor".to_owned(),
            memory_bytes: Some(1 << 37),
            measured_as: "gpu-gpc-0".to_owned(),
        }],
        ..Look::default()
    };
    look.add(script.gpus().look(Instant::now()));
    let status = look.gpu_status();
    assert_eq!(look.gpu_list()[0].memory_bytes, 1 << 37);
    assert_eq!(status.len(), 1);
    assert_eq!(status[0].uuid, "tegra-gpu-gpc-0");
    assert_eq!(status[0].utilization_percent, 73.0);
}
