//! The terminal and the loop: events in, at most so many frames out.

use std::io::{self, BufWriter, IsTerminal as _};
use std::time::Duration;

use crossterm::cursor::Show;
use crossterm::event::{DisableMouseCapture, EnableMouseCapture, EventStream};
use crossterm::execute;
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode,
};
use futures::StreamExt as _;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Args;
use super::draw::draw;
use super::event::{Action, Event};
use super::source;
use super::state::{Options, State};
use crate::cli::lists::now_ms;
use crate::cli::output::ascii_locale;
use crate::connect::ConnectArgs;
use crate::error::CliError;

/// Frames for keys: as smooth as a terminal shows.
const INPUT_FRAME: Duration = Duration::from_millis(16);
/// Frames for data: at most ten a second.
const DATA_FRAME: Duration = Duration::from_millis(100);
/// Ages grow.
const CLOCK: Duration = Duration::from_secs(1);
/// Changes that wait to be taken in; more make the watches wait.
const QUEUE: usize = 4096;
/// Changes taken in before a key gets its turn.
const BATCH: usize = 256;

/// Shows the fleet until somebody quits.
///
/// # Errors
/// There is no terminal, or the kubeconfig is wrong.
pub async fn run(args: &Args, connect: Option<ConnectArgs>, colour: bool) -> Result<(), CliError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(CliError::usage("hyperion top needs a terminal")
            .hint("`hyperion nodes` and `hyperion workloads` print to files and pipes"));
    }
    let (events, arriving) = mpsc::channel(QUEUE);
    let mut options = Options {
        colour,
        ascii: args.ascii || ascii_locale(),
        server: String::new(),
        simulated: args.simulate,
    };
    let started = match (args.simulate, connect) {
        (Some(nodes), _) => source::simulate(nodes, events),
        (None, Some(connect)) => {
            // Once here for the error message; the thread makes its own client.
            options.server = connect.connect().await?.server;
            source::start(connect, events)
        }
        (None, None) => Ok(()),
    };
    started.map_err(|e| CliError::new(format!("cannot start: {e}")))?;

    let broken = |e: io::Error| CliError::new(format!("the terminal: {e}"));
    let screen = Screen::enter(!args.no_mouse).map_err(broken)?;
    let shown = show(options, arriving).await;
    drop(screen);
    shown.map_err(broken)
}

async fn show(options: Options, mut arriving: mpsc::Receiver<Event>) -> io::Result<()> {
    let backend = CrosstermBackend::new(BufWriter::with_capacity(1 << 16, io::stdout()));
    let mut terminal = Terminal::new(backend)?;
    let size = terminal.size()?;
    let mut state = State::new(options, (size.width, size.height), now_ms());
    let mut input = EventStream::new();
    let mut clock = tokio::time::interval(CLOCK);
    let mut quit = Quit::new()?;
    let mut last_frame = Instant::now();
    let mut due = Some(last_frame);
    loop {
        let mut action = Action::Nothing;
        tokio::select! {
            biased;
            () = quit.asked() => return Ok(()),
            event = input.next() => match event {
                None => return Ok(()),
                Some(Err(e)) => return Err(e),
                Some(Ok(event)) => {
                    if let Some(event) = Event::from_terminal(&event) {
                        action = state.handle(event, now_ms());
                    }
                }
            },
            () = sleep_until(due) => {
                due = None;
                state.settle();
                frame(&mut terminal, &state)?;
                last_frame = Instant::now();
            }
            Some(event) = arriving.recv() => {
                action = state.handle(event, now_ms());
                for _ in 1..BATCH {
                    let Ok(event) = arriving.try_recv() else { break };
                    state.handle(event, now_ms());
                }
            }
            _ = clock.tick() => action = state.handle(Event::Clock, now_ms()),
        }
        let gap = match action {
            Action::Nothing => continue,
            Action::Quit => return Ok(()),
            Action::Draw => DATA_FRAME,
            Action::DrawNow => INPUT_FRAME,
            Action::Repaint => {
                terminal.clear()?;
                INPUT_FRAME
            }
        };
        let at = last_frame + gap;
        due = Some(due.map_or(at, |d| d.min(at)));
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// One frame of a settled state.
pub(super) fn frame<W: io::Write>(
    terminal: &mut Terminal<CrosstermBackend<W>>,
    state: &State,
) -> io::Result<()> {
    // The terminal shows the frame when it has all of it: no tearing.
    crossterm::queue!(terminal.backend_mut(), BeginSynchronizedUpdate)?;
    // Where the terminal has changed since the state heard of its size, the pen clips, and the
    // next frame, after the event, is right.
    terminal.draw(|frame| draw(state, frame.buffer_mut()))?;
    execute!(terminal.backend_mut(), EndSynchronizedUpdate)
}

/// SIGTERM, SIGHUP, SIGINT.
struct Quit([tokio::signal::unix::Signal; 3]);

impl Quit {
    fn new() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::interrupt())?,
        ]))
    }

    async fn asked(&mut self) {
        let [a, b, c] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
        }
    }
}

/// The terminal in the TUI's hands; given back when dropped, and before a panic is printed.
struct Screen;

impl Screen {
    fn enter(mouse: bool) -> io::Result<Self> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            leave();
            before(info);
        }));
        enable_raw_mode()?;
        let screen = Self;
        execute!(io::stdout(), EnterAlternateScreen)?;
        if mouse {
            execute!(io::stdout(), EnableMouseCapture)?;
        }
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

fn leave() {
    // Each as far as it goes: the terminal may be gone.
    let _ = execute!(
        io::stdout(),
        EndSynchronizedUpdate,
        DisableMouseCapture,
        LeaveAlternateScreen,
        Show
    );
    let _ = disable_raw_mode();
}
