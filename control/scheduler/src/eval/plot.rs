//! Plots as SVG and PNG.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

const SIZE: (u32, u32) = (900, 540);
/// Name of the built-in font.
pub const FONT: &str = "sans-serif";

/// A curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name for the legend.
    pub name: String,
    /// x, y.
    pub points: Vec<(f64, f64)>,
}

/// A bar with its interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Name under the bar.
    pub name: String,
    /// Height.
    pub value: f64,
    /// Half the width of its confidence interval.
    pub ci95: f64,
}

/// Titles of a plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Titles {
    /// Over the plot.
    pub title: String,
    /// Under the x axis.
    pub x: String,
    /// Beside the y axis.
    pub y: String,
}

/// Draws curves to `base` with `.svg` and `.png`.
///
/// # Errors
/// Where a file can't be written, with its name.
pub fn lines(base: &Path, titles: &Titles, series: &[Series]) -> Result<()> {
    both(
        base,
        SIZE,
        |area| draw_lines(area, titles, series),
        |area| draw_lines(area, titles, series),
    )
}

/// Draws bars to `base` with `.svg` and `.png`.
///
/// # Errors
/// Where a file can't be written, with its name.
pub fn bars(base: &Path, titles: &Titles, bars: &[Bar]) -> Result<()> {
    both(
        base,
        SIZE,
        |area| draw_bars(area, titles, bars),
        |area| draw_bars(area, titles, bars),
    )
}

/// An SVG to draw on.
pub type Svg<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// A PNG to draw on.
pub type Png<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Draws something to `base` with `.svg` and `.png`, of so many pixels.
///
/// # Errors
/// Where a file can't be written, with its name.
pub fn both(
    base: &Path,
    size: (u32, u32),
    svg: impl FnOnce(&Svg<'_>) -> Result<()>,
    png: impl FnOnce(&Png<'_>) -> Result<()>,
) -> Result<()> {
    // The same font is registered again and again without harm.
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| anyhow!("the built-in font can't be read"))?;
    let path = base.with_extension("svg");
    svg(&SVGBackend::new(&path, size).into_drawing_area())
        .with_context(|| path.display().to_string())?;
    let path = base.with_extension("png");
    png(&BitMapBackend::new(&path, size).into_drawing_area())
        .with_context(|| path.display().to_string())
}

/// Lowest and highest of the finite values, with a little room around.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
            (l.min(v), h.max(v))
        });
    if low > high {
        return 0.0..1.0;
    }
    let room = ((high - low) * 0.08).max(1e-6);
    low - room..high + room
}

fn draw_lines<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    titles: &Titles,
    series: &[Series],
) -> Result<()>
where
    B::ErrorType: 'static,
{
    area.fill(&WHITE)?;
    let points = || series.iter().flat_map(|s| s.points.iter());
    let mut chart = ChartBuilder::on(area)
        .caption(&titles.title, (FONT, 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(range(points().map(|p| p.0)), range(points().map(|p| p.1)))?;
    chart
        .configure_mesh()
        .x_desc(&titles.x)
        .y_desc(&titles.y)
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (i, s) in series.iter().enumerate() {
        let colour = Palette99::pick(i).to_rgba();
        let finite = s.points.iter().copied().filter(|p| p.1.is_finite());
        chart
            .draw_series(LineSeries::new(finite, colour.stroke_width(2)))?
            .label(&s.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 14))
        .draw()?;
    area.present()?;
    Ok(())
}

fn draw_bars<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    titles: &Titles,
    bars: &[Bar],
) -> Result<()>
where
    B::ErrorType: 'static,
{
    area.fill(&WHITE)?;
    let heights = bars
        .iter()
        .flat_map(|b| [b.value - b.ci95, b.value + b.ci95])
        .chain([0.0]);
    let names: Vec<&str> = bars.iter().map(|b| b.name.as_str()).collect();
    let name = |x: &f64| {
        let at = x.round();
        let near = (x - at).abs() < 0.01 && at >= 0.0;
        let found = near.then(|| names.get(at as usize)).flatten();
        found.map_or_else(String::new, |n| (*n).to_owned())
    };
    let mut chart = ChartBuilder::on(area)
        .caption(&titles.title, (FONT, 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(-0.6..bars.len() as f64 - 0.4, range(heights))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * bars.len().max(1) + 1)
        .x_label_formatter(&name)
        .x_desc(&titles.x)
        .y_desc(&titles.y)
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .light_line_style(TRANSPARENT)
        .draw()?;
    chart.draw_series(bars.iter().enumerate().map(|(i, b)| {
        let x = i as f64;
        Rectangle::new(
            [(x - 0.35, 0.0), (x + 0.35, b.value)],
            Palette99::pick(i).filled(),
        )
    }))?;
    chart.draw_series(bars.iter().enumerate().map(|(i, b)| {
        let x = i as f64;
        PathElement::new(
            [(x, b.value - b.ci95), (x, b.value + b.ci95)],
            BLACK.stroke_width(2),
        )
    }))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_are_written_and_bad_values_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let titles = Titles {
            title: "t".to_owned(),
            x: "x".to_owned(),
            y: "y".to_owned(),
        };
        let base = dir.path().join("curve");
        let s = Series {
            name: "s".to_owned(),
            points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)],
        };
        lines(&base, &titles, &[s]).unwrap();
        let b = Bar {
            name: "b".to_owned(),
            value: 1.0,
            ci95: 0.2,
        };
        bars(&dir.path().join("bars"), &titles, &[b]).unwrap();
        for file in ["curve.svg", "curve.png", "bars.svg", "bars.png"] {
            assert!(std::fs::metadata(dir.path().join(file)).unwrap().len() > 500);
        }
        let gone = dir.path().join("no/such/curve");
        let error = lines(&gone, &titles, &[]).unwrap_err();
        assert!(format!("{error:#}").contains("curve"), "{error:#}");
    }
}
