//! Writing into the buffer: clipped, in the theme's colours, in ASCII where the terminal has
//! nothing else. Nothing here can write outside the buffer, whatever it is asked for.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

use crate::fleet::column::Mark;
use crate::fleet::explain::sign;
use crate::text::{self, Line, Tone};

/// Grey that shows on dark and on light backgrounds.
const GREY: Color = Color::Indexed(245);

/// A place to draw.
pub struct Pen<'a> {
    buffer: &'a mut Buffer,
    colour: bool,
    ascii: bool,
}

impl<'a> Pen<'a> {
    /// For a buffer.
    pub fn new(buffer: &'a mut Buffer, colour: bool, ascii: bool) -> Self {
        Self {
            buffer,
            colour,
            ascii,
        }
    }

    /// Only ASCII can be shown.
    #[must_use]
    pub fn ascii(&self) -> bool {
        self.ascii
    }

    /// Style of a tone. Without colours, weight carries what signs and words do not.
    #[must_use]
    pub fn style(&self, tone: Tone) -> Style {
        let style = Style::new();
        match (tone, self.colour) {
            (Tone::Plain, _) | (Tone::Good, false) => style,
            (Tone::Strong | Tone::Warn | Tone::Accent, false) | (Tone::Strong, true) => {
                style.add_modifier(Modifier::BOLD)
            }
            (Tone::Dim, false) => style.add_modifier(Modifier::DIM),
            (Tone::Bad, false) => style.add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
            (Tone::Dim, true) => style.fg(GREY),
            (Tone::Good, true) => style.fg(Color::Green),
            (Tone::Warn, true) => style.fg(Color::Yellow),
            (Tone::Bad, true) => style.fg(Color::Red).add_modifier(Modifier::BOLD),
            (Tone::Accent, true) => style.fg(Color::Cyan).add_modifier(Modifier::BOLD),
        }
    }

    /// Text of at most `width` columns; gives the columns that it took. What does not fit ends in
    /// an ellipsis.
    pub fn text(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) -> u16 {
        let area = self.buffer.area;
        if y < area.y || y >= area.bottom() || x < area.x || x >= area.right() {
            return 0;
        }
        let width = width.min(area.right() - x);
        let fitted = text::fit(text, usize::from(width));
        let (end, _) = if self.ascii && !fitted.is_ascii() {
            let plain: String = fitted.chars().map(plain_char).collect();
            self.buffer
                .set_stringn(x, y, plain, usize::from(width), style)
        } else {
            self.buffer
                .set_stringn(x, y, fitted, usize::from(width), style)
        };
        end.saturating_sub(x)
    }

    /// Text at the right end of `width` columns.
    pub fn text_right(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) {
        let used = u16::try_from(text::width(text))
            .unwrap_or(u16::MAX)
            .min(width);
        self.text(x.saturating_add(width - used), y, used, text, style);
    }

    /// Pieces one after the other; gives the columns that they took.
    pub fn line(&mut self, x: u16, y: u16, width: u16, line: &[(Tone, String)]) -> u16 {
        let mut used = 0;
        for (tone, text) in line {
            if used >= width {
                break;
            }
            let style = self.style(*tone);
            used += self.text(x.saturating_add(used), y, width - used, text, style);
        }
        used
    }

    /// Lines from `skip` on, as many as fit.
    pub fn lines(&mut self, area: Rect, lines: &[Line], skip: usize) {
        for (line, y) in lines.iter().skip(skip).zip(area.y..area.bottom()) {
            self.line(area.x, y, area.width, line);
        }
    }

    /// Gives an area a style.
    pub fn restyle(&mut self, area: Rect, style: Style) {
        let area = area.intersection(self.buffer.area);
        self.buffer.set_style(area, style);
    }

    /// Empties an area.
    pub fn clear(&mut self, area: Rect) {
        let area = area.intersection(self.buffer.area);
        for y in area.y..area.bottom() {
            for x in area.x..area.right() {
                if let Some(cell) = self.buffer.cell_mut((x, y)) {
                    cell.reset();
                }
            }
        }
    }

    /// The sign of a mark, with a blank.
    #[must_use]
    pub fn sign(&self, mark: Mark) -> String {
        format!("{} ", sign(mark, self.ascii))
    }

    /// A bar of `width` columns, filled by `share`.
    pub fn bar(&mut self, x: u16, y: u16, width: u16, share: f32, style: Style) {
        let share = if share.is_finite() {
            share.clamp(0.0, 1.0)
        } else {
            0.0
        };
        let full = (share * f32::from(width)).round() as usize;
        let (on, off) = if self.ascii {
            ("#", ".")
        } else {
            ("━", "─")
        };
        let used = self.text(x, y, width, &on.repeat(full), style);
        let rest = usize::from(width.saturating_sub(used));
        let dim = self.style(Tone::Dim);
        self.text(
            x.saturating_add(used),
            y,
            width - used.min(width),
            &off.repeat(rest),
            dim,
        );
    }

    /// A chart: the last values, one a column, the newest at the right; `most` is full height.
    /// Values that are not known leave a gap.
    pub fn chart(
        &mut self,
        area: Rect,
        values: impl DoubleEndedIterator<Item = f32>,
        most: f32,
        tone: Tone,
    ) {
        const STEPS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
        const ASCII: [&str; 9] = [" ", ".", ".", ":", ":", "|", "|", "#", "#"];
        let steps = if self.ascii { ASCII } else { STEPS };
        let style = self.style(tone);
        let rows = f32::from(area.height);
        for (value, i) in values.rev().zip(0..area.width) {
            let x = area.right() - 1 - i;
            let share = if most > 0.0 { value / most } else { 0.0 };
            if !share.is_finite() {
                continue;
            }
            // At least one eighth: a quiet node is not a missing one.
            let eighths = (share.clamp(0.0, 1.0) * rows * 8.0).round().max(1.0) as usize;
            for row in 0..area.height {
                let below = usize::from(row) * 8;
                let step = eighths.saturating_sub(below).min(8);
                if step > 0 {
                    self.text(x, area.bottom() - 1 - row, 1, steps[step], style);
                }
            }
        }
    }
}

/// The nearest ASCII character.
fn plain_char(c: char) -> char {
    match c {
        _ if c.is_ascii() => c,
        '…' => '.',
        '–' | '—' | '─' => '-',
        '·' | '│' => '|',
        '━' | '█' => '#',
        '▲' | '↑' => '^',
        '▼' | '↓' => 'v',
        '●' => '*',
        '→' | '›' => '>',
        '°' => ' ',
        _ => '?',
    }
}

/// Breaks a line into lines of at most `width` columns, between words; what follows the first is
/// indented.
#[must_use]
pub fn wrap_line(line: &Line, width: u16, indent: usize) -> Vec<Line> {
    let width = usize::from(width);
    let total: usize = line.iter().map(|(_, t)| text::width(t)).sum();
    if total <= width || width < indent + 10 {
        return vec![line.clone()];
    }
    let mut lines: Vec<Line> = vec![Vec::new()];
    let mut used = 0;
    for (tone, piece) in line {
        for word in piece.split_inclusive(' ') {
            let columns = text::width(word.trim_end());
            if used + columns > width && used > indent {
                let pad = " ".repeat(indent);
                lines.push(vec![(Tone::Plain, pad)]);
                used = indent;
            }
            used += text::width(word);
            if let Some(last) = lines.last_mut() {
                match last.last_mut() {
                    Some((t, text)) if t == tone => text.push_str(word),
                    _ => last.push((*tone, word.to_owned())),
                }
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_outside_the_buffer() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 5, 2));
        let mut pen = Pen::new(&mut buffer, true, false);
        for (x, y) in [(0, 0), (4, 1), (5, 0), (0, 2), (u16::MAX, u16::MAX)] {
            pen.text(x, y, u16::MAX, "日本語の名前", Style::new());
            pen.text_right(x, y, 300, "abc", Style::new());
            pen.bar(x, y, 100, f32::NAN, Style::new());
        }
        let big = Rect::new(3, 1, 50, 50);
        pen.chart(
            big,
            [1.0, f32::NAN, f32::INFINITY].into_iter(),
            0.0,
            Tone::Good,
        );
        pen.restyle(big, Style::new());
        pen.clear(big);
    }

    #[test]
    fn lines_break_between_words_and_keep_their_tones() {
        let line = vec![
            (Tone::Strong, "alpha beta ".to_owned()),
            (Tone::Plain, "gamma delta epsilon".to_owned()),
        ];
        let lines = wrap_line(&line, 18, 2);
        let plain: Vec<String> = lines.iter().map(|l| text::render_line(l, false)).collect();
        assert_eq!(plain, ["alpha beta gamma ", "  delta epsilon"]);
        assert_eq!(lines[0][0].0, Tone::Strong);
    }
}
