//! The TUI without a terminal, for measuring: the real state, drawing and escape sequences, into
//! a sink that counts bytes.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};

use super::event::{Action, Event};
use super::run::frame;
use super::state::{Options, State};

/// State and screen.
pub struct Headless {
    state: State,
    terminal: Terminal<CrosstermBackend<Sink>>,
    bytes: Arc<AtomicU64>,
}

struct Sink(Arc<AtomicU64>);

impl Write for Sink {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Headless {
    /// A screen of this size.
    ///
    /// # Errors
    /// None that this sink has; the signature is the terminal's.
    pub fn new(options: Options, size: (u16, u16), now_ms: i64) -> io::Result<Self> {
        let bytes = Arc::new(AtomicU64::new(0));
        let viewport = Viewport::Fixed(Rect::new(0, 0, size.0, size.1));
        let backend = CrosstermBackend::new(Sink(bytes.clone()));
        Ok(Self {
            state: State::new(options, size, now_ms),
            terminal: Terminal::with_options(backend, TerminalOptions { viewport })?,
            bytes,
        })
    }

    /// Takes an event, as the loop of the real program does.
    pub fn handle(&mut self, event: Event, now_ms: i64) -> Action {
        self.state.handle(event, now_ms)
    }

    /// Makes a frame, as the loop of the real program does.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn frame(&mut self) -> io::Result<()> {
        self.state.settle();
        frame(&mut self.terminal, &self.state)
    }

    /// Bytes that a terminal would have been sent so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }
}
