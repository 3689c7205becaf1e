//! Line charts as inline SVG, without scripts, fonts or other resources.

use std::fmt::Write as _;

use super::number;

pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) y_unit: &'a str,
    /// Ticks of the horizontal axis and their labels; if empty, the axis shows seconds.
    pub(super) x_marks: Vec<(f64, String)>,
    pub(super) is_y_logarithmic: bool,
    pub(super) lines: Vec<Line>,
}

impl Chart<'_> {
    /// Renders the chart; empty if there are no points.
    pub(super) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let Some(frame) = Frame::around(points(), self.is_y_logarithmic) else {
            return String::new();
        };
        let mut svg = format!(
            "<figure><figcaption>{}, {}</figcaption>\n\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n",
            escape(self.title),
            escape(self.y_unit)
        );
        self.axes(&frame, &mut svg);
        for (at, line) in self.lines.iter().enumerate() {
            let color = COLORS[at % COLORS.len()];
            let _ = write!(
                svg,
                "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"2\" points=\""
            );
            for (x, y) in &line.points {
                let _ = write!(svg, "{:.1},{:.1} ", frame.x(*x), frame.y(*y));
            }
            let _ = writeln!(svg, "\"/>");
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" style=\"fill:{color}\">{}</text>",
                LEFT + 10.0,
                TOP + 14.0 + 16.0 * at as f64,
                escape(&line.name)
            );
        }
        svg.push_str("</svg></figure>\n");
        svg
    }

    fn axes(&self, frame: &Frame, svg: &mut String) {
        let bottom = HEIGHT - BOTTOM;
        for mark in frame.y_marks() {
            let y = frame.y(mark);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                number(mark)
            );
        }
        let marks = if self.x_marks.is_empty() {
            steps(frame.x_least, frame.x_most)
                .into_iter()
                .map(|mark| (mark, format!("{} s", number(mark))))
                .collect()
        } else {
            self.x_marks.clone()
        };
        for (mark, text) in marks {
            let x = frame.x(mark);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                escape(&text)
            );
        }
    }
}

/// Maps values to positions in the picture.
struct Frame {
    x_least: f64,
    x_most: f64,
    y_least: f64,
    y_most: f64,
    is_logarithmic: bool,
}

impl Frame {
    fn around<'p>(
        points: impl Iterator<Item = &'p (f64, f64)>,
        is_logarithmic: bool,
    ) -> Option<Self> {
        let mut frame = Self {
            x_least: f64::INFINITY,
            x_most: f64::NEG_INFINITY,
            y_least: if is_logarithmic { f64::INFINITY } else { 0.0 },
            y_most: f64::NEG_INFINITY,
            is_logarithmic,
        };
        for (x, y) in points {
            frame.x_least = frame.x_least.min(*x);
            frame.x_most = frame.x_most.max(*x);
            frame.y_least = frame.y_least.min(*y);
            frame.y_most = frame.y_most.max(*y);
        }
        if is_logarithmic {
            frame.y_least = 10_f64.powf(frame.y_least.max(1e-6).log10().floor());
            frame.y_most = 10_f64.powf(frame.y_most.max(1e-6).log10().ceil());
        }
        let is_flat = frame.y_most <= frame.y_least;
        if is_flat {
            frame.y_most = if is_logarithmic {
                frame.y_least * 10.0
            } else {
                1.0
            };
        }
        (frame.x_most > frame.x_least).then_some(frame)
    }

    fn x(&self, value: f64) -> f64 {
        let share = (value - self.x_least) / (self.x_most - self.x_least);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = if self.is_logarithmic {
            let value = value.max(self.y_least);
            (value / self.y_least).log10() / (self.y_most / self.y_least).log10()
        } else {
            (value - self.y_least) / (self.y_most - self.y_least)
        };
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn y_marks(&self) -> Vec<f64> {
        if !self.is_logarithmic {
            return steps(self.y_least, self.y_most);
        }
        let (least, most) = (self.y_least.log10().round(), self.y_most.log10().round());
        (least as i32..=most as i32)
            .map(|power| 10_f64.powi(power))
            .collect()
    }
}

/// Returns about five round numbers between two bounds.
fn steps(least: f64, most: f64) -> Vec<f64> {
    let rough = (most - least).max(1e-9) / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(power * 10.0);
    let first = (least / step).ceil() as i64;
    let last = (most / step).floor() as i64;
    (first..=last).take(20).map(|at| at as f64 * step).collect()
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 30.0;
const COLORS: [&str; 6] = [
    "#3574c4", "#d0582b", "#3a9a52", "#9050b8", "#b38600", "#468a98",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>, is_y_logarithmic: bool) -> String {
        let chart = Chart {
            title: "a < b",
            y_unit: "ms",
            x_marks: Vec::new(),
            is_y_logarithmic,
            lines: vec![Line {
                name: "one".to_owned(),
                points,
            }],
        };
        chart.svg()
    }

    #[test]
    fn a_chart_stays_in_its_frame() {
        for is_logarithmic in [false, true] {
            let svg = chart(vec![(0.0, 0.0), (1.0, 5.0), (9.0, 1234.5)], is_logarithmic);
            let points = svg.split("points=\"").nth(1).unwrap();
            let points = points.split('"').next().unwrap();
            for point in points.split_whitespace() {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!(
                    (0.0..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y),
                    "{point}"
                );
            }
            assert!(svg.contains("a &lt; b"));
        }
    }

    #[test]
    fn nothing_to_show_is_no_chart_and_a_flat_line_is_one() {
        assert_eq!(chart(vec![], false), "");
        assert_eq!(chart(vec![(1.0, 2.0)], false), "");
        for is_logarithmic in [false, true] {
            let svg = chart(vec![(0.0, 0.0), (1.0, 0.0)], is_logarithmic);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn marks_are_round_and_few() {
        let marks = steps(0.0, 1234.0);
        assert_eq!(marks, [0.0, 500.0, 1000.0]);
        assert_eq!(steps(0.0, 0.0).len(), 1);
    }
}
