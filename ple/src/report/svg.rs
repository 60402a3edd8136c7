//! SVG and HTML as text: escaping, numbers, and the marks that charts are made of.

use std::fmt::Write;

/// A text as it may stand between tags and in quoted attributes. Control characters that no page can hold are replaced.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A coordinate: one decimal is finer than a pixel.
fn at(x: f64) -> String {
    let text = format!("{x:.1}");
    text.strip_suffix(".0").map_or(text.clone(), String::from)
}

/// Where a text stands relative to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        }
    }
}

/// A drawing in the making; y points down.
#[derive(Clone, Debug)]
pub struct Svg {
    out: String,
}

impl Svg {
    /// An empty drawing with a name for those who cannot see it.
    pub fn new(width: f64, height: f64, name: &str) -> Svg {
        let (w, h, name) = (at(width), at(height), escape(name));
        let out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {w} {h}\" role=\"img\" aria-label=\"{name}\">"
        );
        Svg { out }
    }

    /// Text inside the element, before what is drawn later.
    pub fn raw(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(at);
        let _ = write!(self.out, "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>");
    }

    /// A line through points.
    pub fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let list: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", at(*x), at(*y))).collect();
        let _ = write!(self.out, "<polyline class=\"{class}\" points=\"{}\"/>", list.join(" "));
    }

    /// A filled area with these corners.
    pub fn polygon(&mut self, class: &str, corners: &[(f64, f64)]) {
        let list: Vec<String> = corners.iter().map(|(x, y)| format!("{},{}", at(*x), at(*y))).collect();
        let _ = write!(self.out, "<polygon class=\"{class}\" points=\"{}\"/>", list.join(" "));
    }

    /// A dot that says its values where the pointer rests on it.
    pub fn dot(&mut self, class: &str, x: f64, y: f64, title: &str) {
        let (x, y, title) = (at(x), at(y), escape(title));
        let _ = write!(self.out, "<circle class=\"{class}\" cx=\"{x}\" cy=\"{y}\" r=\"3\"><title>{title}</title></circle>");
    }

    /// A bar that says its value where the pointer rests on it.
    pub fn bar(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64, title: &str) {
        let [x, y, width, height] = [x, y, width, height].map(at);
        let title = escape(title);
        let _ = write!(
            self.out,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"><title>{title}</title></rect>"
        );
    }

    /// A line of text.
    pub fn text(&mut self, class: &str, x: f64, y: f64, anchor: Anchor, text: &str) {
        let (x, y, anchor, text) = (at(x), at(y), anchor.name(), escape(text));
        let _ = write!(self.out, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>");
    }

    /// The element.
    pub fn finish(mut self) -> String {
        self.out.push_str("</svg>");
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_text() {
        assert_eq!(escape("</td><script>\"a\" & 'b'\u{0}"), "&lt;/td&gt;&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;\u{fffd}");
        let mut svg = Svg::new(10.0, 10.0, "\"><script>");
        svg.text("label", 1.0, 2.05, Anchor::End, "</svg>");
        let text = svg.finish();
        assert_eq!((text.matches("<script>").count(), text.matches("</svg>").count()), (0, 1));
    }
}
