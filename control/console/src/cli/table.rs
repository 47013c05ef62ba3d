//! Tables of the command line. In a terminal they fit its width; elsewhere nothing is cut and no
//! sign stands before a word, so that scripts can split at blanks.

use super::output::Out;
use crate::fleet::column::{Cell, Column, Context, Row};
use crate::fleet::explain::sign;
use crate::text::{self, Tone};

const GAP: usize = 2;

/// A table of rows, by the columns' order; with `hidden` columns left out.
#[must_use]
pub fn render<T: Row>(rows: &[&T], hidden: &[usize], context: Context, out: &Out) -> String {
    let shown: Vec<usize> = (0..T::COLUMNS.len())
        .filter(|c| !hidden.contains(c))
        .collect();
    let columns: Vec<Column> = shown.iter().map(|&c| T::COLUMNS[c]).collect();
    let cells = rows
        .iter()
        .map(|row| shown.iter().map(|&c| row.cell(c, context)).collect())
        .collect();
    render_cells(&columns, cells, out)
}

/// A table of cells.
#[must_use]
pub fn render_cells(columns: &[Column], mut cells: Vec<Vec<Cell>>, out: &Out) -> String {
    for cell in cells.iter_mut().flatten() {
        if let (Some(mark), true) = (cell.mark, out.width.is_some()) {
            cell.text = format!("{} {}", sign(mark, out.ascii), cell.text);
        }
        if cell.text.is_empty() {
            // An empty field would shift the columns for whoever splits at blanks.
            *cell = Cell::unknown();
        }
        if out.ascii && cell.text == "–" {
            "-".clone_into(&mut cell.text);
        }
    }
    let natural: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let widest = cells.iter().map(|row| text::width(&row[i].text)).max();
            widest.unwrap_or(0).max(text::width(column.title))
        })
        .collect();
    let widths = match out.width {
        Some(width) => fit(columns, &natural, usize::from(width)),
        None => natural.into_iter().map(Some).collect(),
    };
    let mut text = String::new();
    let heading: Vec<Cell> = columns
        .iter()
        .map(|c| Cell::toned(c.title, Tone::Dim))
        .collect();
    push_row(&mut text, columns, &heading, &widths, out.colour);
    for row in &cells {
        push_row(&mut text, columns, row, &widths, out.colour);
    }
    text
}

/// Width per column; none for those that have no room. Columns leave by rank, then the widest
/// shrink.
fn fit(columns: &[Column], natural: &[usize], width: usize) -> Vec<Option<usize>> {
    let least = |i: usize| natural[i].min(usize::from(columns[i].min));
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let needed = |shown: &[usize], size: &dyn Fn(usize) -> usize| {
        shown
            .iter()
            .map(|&i| size(i) + GAP)
            .sum::<usize>()
            .saturating_sub(GAP)
    };
    while shown.len() > 1 && needed(&shown, &least) > width {
        let last = shown.iter().copied().max_by_key(|&i| (columns[i].rank, i));
        shown.retain(|&i| Some(i) != last);
    }
    let mut sizes: Vec<Option<usize>> = vec![None; columns.len()];
    for &i in &shown {
        sizes[i] = Some(natural[i]);
    }
    loop {
        let total = needed(&shown, &|i| sizes[i].unwrap_or(0));
        let widest = shown
            .iter()
            .copied()
            .filter(|&i| sizes[i].is_some_and(|s| s > least(i)))
            .max_by_key(|&i| sizes[i]);
        let (Some(i), true) = (widest, total > width) else {
            return sizes;
        };
        sizes[i] = sizes[i].map(|s| s - 1);
    }
}

fn push_row(
    text: &mut String,
    columns: &[Column],
    cells: &[Cell],
    widths: &[Option<usize>],
    colour: bool,
) {
    let mut line = Vec::new();
    let last = widths.iter().rposition(Option::is_some);
    for (i, (column, cell)) in columns.iter().zip(cells).enumerate() {
        let Some(width) = widths[i] else { continue };
        if !line.is_empty() {
            line.push((Tone::Plain, " ".repeat(GAP)));
        }
        let mut padded = text::pad(&cell.text, width, column.right);
        if Some(i) == last {
            padded.truncate(padded.trim_end().len());
        }
        line.push((cell.tone, padded));
    }
    text.push_str(&text::render_line(&line, colour));
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Happening, Node, NodeState};

    fn plain(width: Option<u16>) -> Out {
        Out {
            width,
            ..Out::default()
        }
    }

    fn nodes() -> Vec<Node> {
        let mut rows = vec![
            Node {
                id: "edge-lab-1".to_owned(),
                state: NodeState::Ready,
                site: "lab".to_owned(),
                provider: "edge".to_owned(),
                arch: "arm64".to_owned(),
                instance_type: "orin-nano".to_owned(),
                created_ms: Some(0),
                ..Default::default()
            },
            Node {
                id: "a-cloud-node-with-quite-a-long-name".to_owned(),
                state: NodeState::Lost,
                provider: "aws".to_owned(),
                region: "us-east-1".to_owned(),
                price: 0.526,
                created_ms: Some(7_000_000),
                ..Default::default()
            },
        ];
        rows.iter_mut().for_each(Node::prepare);
        rows
    }

    fn table(width: Option<u16>) -> String {
        let rows = nodes();
        let rows: Vec<&Node> = rows.iter().collect();
        render(&rows, &[], Context { now_ms: 7_200_000 }, &plain(width))
    }

    #[test]
    fn a_pipe_gets_every_column_uncut_and_without_signs() {
        let expected = "\
NODE                                 STATE  SITE  PROV  REGION     TYPE       ARCH   CPU  MEM  GPU  NET/s  RTT  TEMP  REPL     $/h    AGE
edge-lab-1                           Ready  lab   edge  –          orin-nano  arm64    –    –    –      –    –     –     0   owned     2h
a-cloud-node-with-quite-a-long-name  Lost   –     aws   us-east-1  –          –        –    –    –      –    –     –     0  $0.526  3m20s
";
        assert_eq!(table(None), expected);
    }

    #[test]
    fn a_terminal_gets_lines_that_fit() {
        for width in 1..200_u16 {
            let table = table(Some(width));
            for line in table.lines() {
                let first_column = 18.max(usize::from(width));
                assert!(text::width(line) <= first_column, "{width}: {line}");
            }
        }
        assert!(table(Some(80)).contains("● Ready"));
    }

    #[test]
    fn colours_do_not_change_the_layout() {
        let rows = nodes();
        let rows: Vec<&Node> = rows.iter().collect();
        let out = Out {
            colour: true,
            ..plain(Some(100))
        };
        let context = Context { now_ms: 0 };
        let coloured = render(&rows, &[], context, &out);
        let bare = render(&rows, &[], context, &plain(Some(100)));
        let mut stripped = String::new();
        let mut escape = false;
        for c in coloured.chars() {
            match c {
                '\x1b' => escape = true,
                'm' if escape => escape = false,
                c if !escape => stripped.push(c),
                _ => {}
            }
        }
        assert_eq!(stripped, bare);
        assert!(coloured.contains("\x1b[31m"));
    }

    #[test]
    fn an_empty_table_is_its_heading() {
        let text = render::<Happening>(&[], &[], Context { now_ms: 0 }, &plain(None));
        assert_eq!(text.lines().count(), 1);
    }
}
