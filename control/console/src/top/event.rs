//! What happens to the TUI's state, and what its handling asks for. All of it can be written down
//! and played back.

use crossterm::event as ct;
use serde::{Deserialize, Serialize};

use crate::fleet::Change;

/// Something happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// A key was pressed.
    Key(Key),
    /// The left button was pressed.
    Click {
        /// Column.
        x: u16,
        /// Row.
        y: u16,
    },
    /// The wheel was turned.
    Wheel {
        /// Column.
        x: u16,
        /// Row.
        y: u16,
        /// Away from the person.
        up: bool,
    },
    /// The terminal has a new size.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Time went by: ages change.
    Clock,
    /// The fleet changed.
    Change(Change),
    /// An answer came.
    Reached(Channel),
    /// No answer, or a refusal.
    Failed {
        /// Where.
        channel: Channel,
        /// Why, in words.
        cause: String,
    },
}

/// Where data comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Channel {
    /// The API server.
    Api,
    /// Live telemetry, through the API server.
    Live,
    /// Watch of nodes.
    Nodes,
    /// Watch of workloads.
    Workloads,
    /// Watch of placements.
    Placements,
    /// Watch of events.
    Events,
}

impl Channel {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "control plane",
            Self::Live => "live telemetry",
            Self::Nodes => "nodes",
            Self::Workloads => "workloads",
            Self::Placements => "placements",
            Self::Events => "events",
        }
    }
}

/// What the loop should do after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing on the screen changed.
    Nothing,
    /// Draw, when convenient: data changed.
    Draw,
    /// Draw every cell at once: the terminal forgot what it showed.
    Repaint,
    /// Draw at once: somebody waits for it.
    DrawNow,
    /// End.
    Quit,
}

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "keys are named as on the keyboard")]
pub enum Key {
    Char(char),
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Esc,
    Backspace,
    Tab,
    BackTab,
    /// Ctrl-C or Ctrl-D.
    Interrupt,
    /// Ctrl-U: forget the line.
    Clear,
    /// Ctrl-L: draw everything anew.
    Refresh,
}

impl Event {
    /// From the terminal; none for what means nothing here.
    #[must_use]
    pub fn from_terminal(event: &ct::Event) -> Option<Self> {
        match event {
            ct::Event::Key(key) => Key::from_terminal(key).map(Self::Key),
            ct::Event::Resize(width, height) => Some(Self::Resize {
                width: *width,
                height: *height,
            }),
            ct::Event::Mouse(mouse) => {
                let (x, y) = (mouse.column, mouse.row);
                match mouse.kind {
                    ct::MouseEventKind::Down(ct::MouseButton::Left) => Some(Self::Click { x, y }),
                    ct::MouseEventKind::ScrollUp => Some(Self::Wheel { x, y, up: true }),
                    ct::MouseEventKind::ScrollDown => Some(Self::Wheel { x, y, up: false }),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

impl Key {
    fn from_terminal(key: &ct::KeyEvent) -> Option<Self> {
        use ct::KeyCode as K;
        if key.kind == ct::KeyEventKind::Release {
            return None;
        }
        let control = key.modifiers.contains(ct::KeyModifiers::CONTROL);
        Some(match key.code {
            K::Char('c' | 'd') if control => Self::Interrupt,
            K::Char('u') if control => Self::Clear,
            K::Char('l') if control => Self::Refresh,
            K::Char('f') if control => Self::PageDown,
            K::Char('b') if control => Self::PageUp,
            K::Char(_) if control || key.modifiers.contains(ct::KeyModifiers::ALT) => return None,
            K::Char(c) => Self::Char(c),
            K::Up => Self::Up,
            K::Down => Self::Down,
            K::Left => Self::Left,
            K::Right => Self::Right,
            K::PageUp => Self::PageUp,
            K::PageDown => Self::PageDown,
            K::Home => Self::Home,
            K::End => Self::End,
            K::Enter => Self::Enter,
            K::Esc => Self::Esc,
            K::Backspace => Self::Backspace,
            K::Tab => Self::Tab,
            K::BackTab => Self::BackTab,
            _ => return None,
        })
    }
}
