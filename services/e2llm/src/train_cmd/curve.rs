//! `e2llm train curve`: losses of runs as one SVG.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use plotters::prelude::*;
use serde_json::Value;

/// Width and height of the drawing in pixels.
const SIZE: (u32, u32) = (1_200, 700);
/// Share of the newest step in the smoothed loss: a memory of about 20 steps.
const NEWEST: f64 = 0.05;

#[derive(Debug, Args)]
pub(crate) struct CurveArgs {
    /// Directories of runs (the --output of `e2llm train`), or their curve.jsonl
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Where to write the drawing
    #[arg(long, value_name = "FILE.svg")]
    output: PathBuf,
    /// Only this objective; for many runs in one drawing
    #[arg(long, value_name = "NAME")]
    objective: Option<String>,
}

/// One line of the drawing.
struct Series {
    name: String,
    /// Samples seen so far, smoothed nats per token.
    points: Vec<(f64, f64)>,
    is_held_out: bool,
}

pub(crate) fn draw(args: &CurveArgs) -> Result<()> {
    let mut all = Vec::new();
    for run in &args.runs {
        let path = if run.is_dir() { run.join("curve.jsonl") } else { run.clone() };
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = if args.runs.len() > 1 { run_name(run) } else { String::new() };
        all.extend(series(&name, &text));
    }
    if let Some(wanted) = &args.objective {
        all.retain(|series| series.name.ends_with(wanted.as_str()));
    }
    if all.is_empty() {
        bail!("the runs have no losses to draw; train some steps, or name an --objective of theirs");
    }
    plot(&all, &args.output).map_err(|error| anyhow!("cannot draw {}: {error}", args.output.display()))
}

fn run_name(run: &Path) -> String {
    let directory = if run.is_dir() { Some(run) } else { run.parent() };
    directory.and_then(Path::file_name).map_or_else(String::new, |name| format!("{} ", name.to_string_lossy()))
}

/// Losses by objective, and held-out losses. A step that was done twice, because a run was killed between checkpoints, counts
/// as it was done last.
fn series(run: &str, curve: &str) -> Vec<Series> {
    let mut trained: BTreeMap<String, BTreeMap<u64, f64>> = BTreeMap::new();
    let mut held_out: BTreeMap<u64, f64> = BTreeMap::new();
    let mut samples = 0;
    for news in curve.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        samples = news["samples"].as_u64().unwrap_or(samples);
        match (news["event"].as_str(), news["losses"].as_object()) {
            (Some("step"), Some(losses)) => {
                for (objective, own) in losses {
                    let points = trained.entry(objective.clone()).or_default();
                    own["loss"].as_f64().into_iter().for_each(|loss| _ = points.insert(samples, loss));
                }
            }
            (Some("step"), None) => {
                let points = trained.entry("all objectives".to_owned()).or_default();
                news["loss"].as_f64().into_iter().for_each(|loss| _ = points.insert(samples, loss));
            }
            (Some("evaluated"), _) => {
                let right = news["evaluation"]["right"].as_f64();
                right.into_iter().for_each(|loss| _ = held_out.insert(samples, loss));
            }
            _ => {}
        }
    }
    let of_training = trained.into_iter().map(|(objective, points)| Series {
        name: format!("{run}{objective}"),
        points: smoothed(&points),
        is_held_out: false,
    });
    let points: Vec<(f64, f64)> = held_out.into_iter().map(|(at, loss)| (at as f64, loss)).collect();
    let of_held_out = Series { name: format!("{run}held out: reconstruct"), points, is_held_out: true };
    of_training.chain(Some(of_held_out)).filter(|series| !series.points.is_empty()).collect()
}

fn smoothed(points: &BTreeMap<u64, f64>) -> Vec<(f64, f64)> {
    let (mut sum, mut weight) = (0.0, 0.0);
    let smooth = |(at, loss): (&u64, &f64)| {
        sum = sum * (1.0 - NEWEST) + loss * NEWEST;
        weight = weight * (1.0 - NEWEST) + NEWEST;
        (*at as f64, sum / weight)
    };
    points.iter().map(smooth).collect()
}

fn plot(all: &[Series], output: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let points = || all.iter().flat_map(|series| &series.points);
    let right = points().map(|(at, _)| *at).fold(1.0, f64::max);
    let (low, high) = points().fold((f64::MAX, f64::MIN), |(low, high), (_, loss)| (low.min(*loss), high.max(*loss)));
    let margin = ((high - low) * 0.05).max(0.05);
    let root = SVGBackend::new(output, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(20)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..right, (low - margin).max(0.0)..high + margin)?;
    chart
        .configure_mesh()
        .x_desc("samples")
        .y_desc("nats per token")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .draw()?;
    for (index, series) in all.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let points = series.points.iter().copied();
        let drawn = if series.is_held_out {
            chart.draw_series(points.map(|point| Circle::new(point, 4, color.filled())))?
        } else {
            chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?
        };
        drawn
            .label(series.name.clone())
            .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 16, y + 4)], color.filled()));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURVE: &str = r#"
{"event":"pretrain","step":1,"of":2,"loss":9.0,"accuracy":0.1}
{"event":"step","step":1,"samples":8,"loss":4.0,"losses":{"reconstruct":{"loss":4.0,"tokens":10}}}
{"event":"step","step":2,"samples":16,"loss":5.0,"losses":{"reconstruct":{"loss":9.0,"tokens":10}}}
{"event":"step","step":2,"samples":16,"loss":2.5,"losses":{"reconstruct":{"loss":2.0,"tokens":10},"continue":{"loss":3.0,"tokens":5}}}
{"event":"evaluated","step":2,"evaluation":{"right":2.5}}
"#;

    #[test]
    fn a_step_done_twice_counts_once_and_losses_are_told_apart() {
        let all = series("", CURVE);
        let names: Vec<&str> = all.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["continue", "reconstruct", "held out: reconstruct"]);
        assert_eq!(all[2].points, [(16.0, 2.5)]);
        let (at, loss) = all[1].points[1];
        assert!(at == 16.0 && (loss - (4.0 * 0.95 + 2.0) / 1.95).abs() < 1e-9, "{loss}");
    }

    #[test]
    fn runs_are_drawn_into_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let runs: Vec<PathBuf> = ["one", "two"].map(|name| directory.path().join(name)).into();
        for run in &runs {
            std::fs::create_dir(run).unwrap();
            std::fs::write(run.join("curve.jsonl"), CURVE).unwrap();
        }
        let output = directory.path().join("curve.svg");
        draw(&CurveArgs { runs: runs.clone(), output: output.clone(), objective: None }).unwrap();
        let svg = std::fs::read_to_string(&output).unwrap();
        assert!(svg.contains("<svg") && svg.contains("two continue") && svg.contains("<circle"), "{svg}");
        let none = CurveArgs { runs, output, objective: Some("sing".to_owned()) };
        assert!(draw(&none).unwrap_err().to_string().contains("--objective"));
    }
}
