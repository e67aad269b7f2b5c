use std::collections::BTreeMap;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::outcome::Outcome;
use crate::report::{NEEDLES, Report};
use crate::system::System;

type Canvas<'s> = DrawingArea<SVGBackend<'s>, Shift>;
/// What plotting may fail with.
pub type PlotError = Box<dyn std::error::Error + Send + Sync>;

/// Width and height of a chart in pixels.
const SIZE: (u32, u32) = (620, 360);
/// Bands of depth in a heat map.
const BANDS: usize = 5;
/// Systems whose needles are mapped.
const MAPPED: [System; 4] = [System::Soft, System::Expand, System::Rag, System::Full];

/// A drawing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chart {
    /// For a file's name, such as `length-ruler-vt`.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// An SVG document.
    pub svg: String,
}

/// Points by system.
type Lines = BTreeMap<System, Vec<(f64, f64)>>;

/// Score against length by kind of task and over all of them, score against compression, and heat maps of needles by depth
/// and length; what there are no figures for is left out.
///
/// # Errors
/// What drawing fails with.
pub fn charts(report: &Report, outcomes: &[Outcome]) -> Result<Vec<Chart>, PlotError> {
    let mut charts = Vec::new();
    for (task, lines) in by_length(report) {
        let title = format!("{task}: score in percent against tokens of the document");
        charts.push(draw(&format!("length {task}"), title, |canvas| lines_chart(canvas, &lines, &length_name))?);
    }
    let compression = by_compression(report);
    if !compression.is_empty() {
        let title = "Score in percent against compression, tokens of the document to a decoder position".to_owned();
        let ratio = |log2: f64| format!("{:.1}", log2.exp2());
        charts.push(draw("compression", title, |canvas| lines_chart(canvas, &compression, &ratio))?);
    }
    for system in MAPPED {
        let cells = heat(outcomes, system);
        if cells.keys().any(|(length, _)| cells.keys().any(|(other, _)| other != length)) {
            let title = format!("Needles with {system}: score in percent by depth and length");
            charts.push(draw(&format!("needles {system}"), title, |canvas| heat_map(canvas, &cells))?);
        }
    }
    Ok(charts)
}

fn draw(
    name: &str,
    title: String,
    with: impl FnOnce(&Canvas<'_>) -> Result<(), PlotError>,
) -> Result<Chart, PlotError> {
    let mut svg = String::new();
    let canvas = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    canvas.fill(&WHITE)?;
    with(&canvas)?;
    canvas.present()?;
    drop(canvas);
    let words: Vec<String> = name.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_lowercase).collect();
    let name = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-");
    Ok(Chart { name, title, svg })
}

/// Lines over log2 of lengths, in percent, of tasks measured at several; "all tasks" is their mean.
fn by_length(report: &Report) -> Vec<(String, Lines)> {
    let mut tasks: Vec<(String, Lines)> = Vec::new();
    let mut all: BTreeMap<(System, usize), Vec<f64>> = BTreeMap::new();
    for row in report.rows.iter().filter(|row| row.label.is_none()) {
        let Some(length) = row.length else { continue };
        if tasks.last().is_none_or(|(task, _)| *task != row.task) {
            tasks.push((row.task.clone(), Lines::new()));
        }
        for system in System::ALL {
            let Some(score) = row.scores.get(system.name()) else { continue };
            if row.task != NEEDLES {
                all.entry((system, length)).or_default().push(100.0 * score.value);
            }
            if let Some((_, lines)) = tasks.last_mut() {
                lines.entry(system).or_default().push(((length as f64).log2(), 100.0 * score.value));
            }
        }
    }
    // A mean of other tasks at one length than at another would say nothing.
    let everywhere = tasks.iter().all(|(_, lines)| {
        lines.len() == tasks[0].1.len() && lines.values().map(Vec::len).eq(tasks[0].1.values().map(Vec::len))
    });
    if tasks.len() > 1 && everywhere {
        let mut lines = Lines::new();
        for ((system, length), scores) in all {
            let mean = scores.iter().sum::<f64>() / scores.len() as f64;
            lines.entry(system).or_default().push(((length as f64).log2(), mean));
        }
        tasks.insert(0, ("All tasks".to_owned(), lines));
    }
    tasks.retain(|(_, lines)| lines.values().any(|points| points.len() > 1));
    tasks
}

/// Points over log2 of tokens per position: one for each length, the mean over tasks.
fn by_compression(report: &Report) -> Lines {
    let mut sums: BTreeMap<(System, usize), Vec<(f64, f64)>> = BTreeMap::new();
    for row in report.rows.iter().filter(|row| row.label.is_none() && row.task != NEEDLES) {
        let (Some(tokens), Some(length)) = (row.tokens.filter(|tokens| *tokens > 0.0), row.length) else { continue };
        for system in System::ALL.into_iter().filter(|system| *system != System::None) {
            let (Some(score), Some(positions)) = (row.scores.get(system.name()), row.positions.get(system.name()))
            else {
                continue;
            };
            let ratio = tokens / positions.max(1.0);
            sums.entry((system, length)).or_default().push((ratio.log2(), 100.0 * score.value));
        }
    }
    let mut lines = Lines::new();
    for ((system, _), points) in sums {
        let count = points.len() as f64;
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        lines.entry(system).or_default().push((sum.0 / count, sum.1 / count));
    }
    lines
}

fn length_name(log2: f64) -> String {
    let tokens = log2.exp2();
    if tokens >= 1024.0 { format!("{:.0}k", tokens / 1024.0) } else { format!("{tokens:.0}") }
}

fn lines_chart(canvas: &Canvas<'_>, lines: &Lines, name: &dyn Fn(f64) -> String) -> Result<(), PlotError> {
    let points = || lines.values().flatten();
    let (left, right) = points().fold((f64::MAX, f64::MIN), |(low, high), (x, _)| (low.min(*x), high.max(*x)));
    let mut chart = ChartBuilder::on(canvas)
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(40)
        .build_cartesian_2d(left - 0.2..right + 0.2, 0.0..100.0)?;
    chart.configure_mesh().x_labels(8).x_label_formatter(&|x| name(*x)).disable_x_mesh().draw()?;
    for (system, points) in lines {
        let color = Palette99::pick(*system as usize).to_rgba();
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
            .label(system.name())
            .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 14, y + 4)], color.filled()));
    }
    let legend = SeriesLabelPosition::UpperRight;
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// Mean scores of needles by length and band of depth.
fn heat(outcomes: &[Outcome], system: System) -> BTreeMap<(usize, usize), f64> {
    let mut cells: BTreeMap<(usize, usize), (f64, f64)> = BTreeMap::new();
    for outcome in outcomes.iter().filter(|o| o.system == system.name() && o.task.starts_with("niah_single")) {
        let (Some(length), Some(depth)) = (outcome.length, outcome.depth) else { continue };
        let band = ((depth * BANDS as f64) as usize).min(BANDS - 1);
        let cell = cells.entry((length, band)).or_default();
        *cell = (cell.0 + outcome.score, cell.1 + 1.0);
    }
    cells.into_iter().map(|(at, (sum, count))| (at, sum / count)).collect()
}

fn heat_map(canvas: &Canvas<'_>, cells: &BTreeMap<(usize, usize), f64>) -> Result<(), PlotError> {
    let mut lengths: Vec<usize> = cells.keys().map(|(length, _)| *length).collect();
    lengths.dedup();
    let mut chart = ChartBuilder::on(canvas)
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(90)
        .build_cartesian_2d((0..lengths.len().max(1) - 1).into_segmented(), (0..BANDS - 1).into_segmented())?;
    let name_length = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(at) => lengths.get(*at).map_or(String::new(), |l| length_name((*l as f64).log2())),
        _ => String::new(),
    };
    // The beginning of the document on top.
    let name_band = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(at) if *at < BANDS => {
            let band = BANDS - 1 - at;
            format!("{}–{} % deep", band * 100 / BANDS, (band + 1) * 100 / BANDS)
        }
        _ => String::new(),
    };
    let mesh = &mut chart.configure_mesh();
    mesh.disable_mesh().x_label_formatter(&name_length).y_label_formatter(&name_band).draw()?;
    let cell = |((length, band), score): (&(usize, usize), &f64)| {
        let (x, y) = (lengths.iter().position(|l| l == length).unwrap_or(0), BANDS - 1 - band);
        let corners = [(edge(x, lengths.len()), edge(y, BANDS)), (edge(x + 1, lengths.len()), edge(y + 1, BANDS))];
        Rectangle::new(corners, heat_color(*score).filled())
    };
    chart.draw_series(cells.iter().map(cell))?;
    let text = |((length, band), score): (&(usize, usize), &f64)| {
        let (x, y) = (lengths.iter().position(|l| l == length).unwrap_or(0), BANDS - 1 - band);
        let at = (SegmentValue::CenterOf(x), SegmentValue::CenterOf(y));
        Text::new(format!("{:.0}", 100.0 * score), at, ("sans-serif", 14).into_font().color(&BLACK))
    };
    chart.draw_series(cells.iter().map(text))?;
    Ok(())
}

/// Where a cell begins; the last one ends at `count`.
fn edge(at: usize, count: usize) -> SegmentValue<usize> {
    if at < count { SegmentValue::Exact(at) } else { SegmentValue::Last }
}

/// From red over yellow to green.
fn heat_color(score: f64) -> HSLColor {
    HSLColor(score.clamp(0.0, 1.0) / 3.0, 0.7, 0.6)
}
