//! Looks at all sensors without ever waiting for one that hangs.

use std::path::Path;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout_at};
use tracing::{info, warn};

use super::board::Board;
use super::look::{LATE, LeftOut, Look};
use super::nvml::{self, Gpus};
use super::watch::{Hung, Step};

/// A file of a sensor that took this long hangs: the slowest, behind a slow bus, take milliseconds.
const FILE: Duration = Duration::from_secs(1);
/// NVIDIA's driver takes seconds to start where nothing keeps it running.
const DRIVER: Duration = Duration::from_secs(10);
/// A look is over after this time, with what there is: the node has more to tell than sensors.
const LOOK: Duration = Duration::from_secs(2);
/// Threads that may hang at a time; then no more are started.
const MOST_STUCK: usize = 4;
/// What a thread needs is small.
const STACK: usize = 256 * 1024;

type Looking = Box<dyn FnMut(Instant) -> Look>;
type Make = Box<dyn Fn() -> Box<dyn FnOnce(Arc<Step>) -> Looking + Send> + Send>;

/// All sensors of a machine.
pub struct Sensors {
    parts: Vec<Part>,
    /// The library is looked for on the machine itself only, and once its driver is there.
    nvml: bool,
    due: Option<Instant>,
}

impl Sensors {
    /// Of the machine whose procfs and sysfs are under `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        let folder = root.to_owned();
        let board: Make = Box::new(move || {
            let root = folder.clone();
            Box::new(move |step| {
                let mut board = Board::watched(root, step);
                Box::new(move |now| board.look(now))
            })
        });
        Self {
            parts: vec![Part::new("sensors", FILE, board)],
            nvml: root == Path::new("/"),
            due: None,
        }
    }

    /// Begins to look, where it does not already.
    pub fn begin(&mut self) {
        if self.due.is_some() {
            return;
        }
        self.due = Some(Instant::now() + LOOK);
        if self.nvml && driver_is_there() {
            self.nvml = false;
            self.parts.push(Part::new("nvml", DRIVER, library()));
        }
        for part in &mut self.parts {
            part.got = None;
            part.ask();
        }
    }

    /// What the look that was begun gave; waits where none was. May be dropped and called again.
    pub async fn done(&mut self) -> Look {
        let Some(due) = self.due else {
            return std::future::pending().await;
        };
        let mut look = Look::default();
        for part in &mut self.parts {
            if part.got.is_none() {
                let answer = timeout_at(due.into(), part.answer()).await;
                part.got = Some(answer.unwrap_or_else(|_| left(part.name, LATE)));
            }
        }
        for part in &mut self.parts {
            look.add(part.got.take().unwrap_or_default());
            for what in part.hung.names() {
                look.left_out.push(LeftOut {
                    what,
                    why: "hangs when it is read".to_owned(),
                });
            }
        }
        self.due = None;
        look
    }

    /// Looks until every part has answered, for as long as a driver may need to start: what GPUs a
    /// machine has is told when it connects.
    pub async fn first_look(&mut self) -> Look {
        let until = Instant::now() + DRIVER + LOOK;
        loop {
            let look = self.look().await;
            if !look.is_late() || Instant::now() >= until {
                return look;
            }
        }
    }

    /// Looks now.
    pub async fn look(&mut self) -> Look {
        self.begin();
        self.done().await
    }
}

fn left(what: &str, why: &str) -> Look {
    Look {
        left_out: vec![LeftOut {
            what: what.to_owned(),
            why: why.to_owned(),
        }],
        ..Look::default()
    }
}

/// Files of NVIDIA's driver; the last is its stand-in under Windows.
fn driver_is_there() -> bool {
    ["/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg"]
        .iter()
        .any(|path| Path::new(path).exists())
}

fn library() -> Make {
    Box::new(|| {
        Box::new(|step| {
            let mut gpus = Gpus::new(nvml::load);
            Box::new(move |now| step.run("nvml", || gpus.look(now)).unwrap_or_default())
        })
    })
}

/// Sensors that share a thread.
struct Part {
    name: &'static str,
    /// Time after which the thread hangs.
    limit: Duration,
    make: Make,
    hung: Hung,
    thread: Option<Thread>,
    asked: bool,
    got: Option<Look>,
}

struct Thread {
    asks: std_mpsc::Sender<()>,
    looks: mpsc::UnboundedReceiver<Look>,
    step: Arc<Step>,
}

impl Part {
    fn new(name: &'static str, limit: Duration, make: Make) -> Self {
        Self {
            name,
            limit,
            make,
            hung: Hung::default(),
            thread: None,
            asked: false,
            got: None,
        }
    }

    /// Asks for a look, where none is under way.
    fn ask(&mut self) {
        if self.asked {
            return;
        }
        if self.thread.is_none() && self.hung.names().len() < MOST_STUCK {
            self.thread = self.start();
        }
        self.asked = self
            .thread
            .as_ref()
            .is_some_and(|thread| thread.asks.send(()).is_ok());
        if !self.asked {
            self.thread = None;
        }
    }

    /// Waits for the look that was asked for. May be dropped and called again.
    async fn answer(&mut self) -> Look {
        loop {
            let Some(thread) = &mut self.thread else {
                return left(self.name, "no thread can be started for it");
            };
            let since = thread.step.since().unwrap_or_else(Instant::now);
            tokio::select! {
                look = thread.looks.recv() => {
                    self.asked = false;
                    return look.unwrap_or_else(|| {
                        // It panicked; the panic has been told.
                        self.thread = None;
                        left(self.name, "its thread ended")
                    });
                }
                () = sleep_until((since + self.limit).into()) => {
                    if let Some(what) = thread.step.abandon_after(self.limit) {
                        warn!(sensor = %what, "hangs when it is read: left out until it comes back");
                        self.thread = None;
                        self.asked = false;
                        self.ask();
                    }
                }
            }
        }
    }

    fn start(&self) -> Option<Thread> {
        let (asks, asked) = std_mpsc::channel();
        let (answers, looks) = mpsc::unbounded_channel();
        let step = Arc::new(Step::beside(self.hung.clone()));
        let make = (self.make)();
        let watched = step.clone();
        let started = std::thread::Builder::new()
            .name(self.name.to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let mut look = make(watched);
                while asked.recv().is_ok() {
                    if answers.send(look(Instant::now())).is_err() {
                        // Given up long ago; it may hang no more.
                        info!("a sensor came back");
                        return;
                    }
                }
            });
        match started {
            Ok(_) => Some(Thread { asks, looks, step }),
            Err(e) => {
                warn!(error = %e, part = self.name, "no thread for sensors");
                None
            }
        }
    }
}
