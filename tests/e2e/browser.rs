//! `ple report` in a real browser, where one is found: every chart is drawn with its points, and nothing is wider than the page.

use super::Data;
use super::program::ple;
use super::runs::train;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// Headless, on a page; None, after saying so, where there is no browser.
fn browser(page: &Path, width: u32, more: &[&str]) -> Result<Option<String>> {
    let mut call = Command::new("chromium");
    call.args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"])
        .arg(format!("--window-size={width},900"))
        .args(more)
        .arg(format!("file://{}", page.display()));
    let out = match call.output() {
        Ok(out) => out,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            ple::log::tell("skip: no chromium on PATH: the report was opened by no browser");
            return Ok(None);
        }
        Err(e) => return Err(e.into()),
    };
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(Some(String::from_utf8_lossy(&out.stdout).into_owned()))
}

/// What the browser laid out, written into the title by a copy of the page: overflow, charts, and those without height or with
/// a mark, a point or a text outside their frame.
const MEASURE: &str = r#"<script>addEventListener("load",()=>{const d=document,w=d.documentElement,c=[...d.querySelectorAll("svg.chart")];
const inside=(s,e)=>{const a=s.getBoundingClientRect(),b=e.getBoundingClientRect();return b.left>=a.left-1&&b.right<=a.right+1&&b.top>=a.top-1&&b.bottom<=a.bottom+1};
const bad=c.filter(s=>s.getBoundingClientRect().height<50||[...s.querySelectorAll("circle,rect,text,polyline,polygon")].some(e=>!inside(s,e)));
const off=[...d.querySelectorAll("figure,h1,h2,p")].filter(e=>e.getBoundingClientRect().right>w.clientWidth+1);
d.title=["laid",w.scrollWidth-w.clientWidth,c.length,bad.length,off.length,d.querySelectorAll("circle").length,bad.map(s=>s.getAttribute("aria-label")).join("/")].join(" ")})</script>"#;

#[test]
fn a_browser_draws_every_chart_inside_the_page() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let (rows, held) = (data.first(200, dir.path())?, data.first(12, dir.path())?);
    for (name, rate) in [("first", "0.001"), ("a-second-one-with-a-long-name", "0.01")] {
        train(&data, &rows, &at(name), 3)
            .key("eval_dataset_name", &held)
            .and(&format!("--eval_steps 1 --learning_rate {rate}"))
            .succeed()?;
    }
    let page = at("page.html");
    let runs = [at("first"), at("a-second-one-with-a-long-name")].map(|run| run.display().to_string());
    ple(&format!("report {}", runs.join(" "))).key("output_file", &page).succeed()?;
    let text = std::fs::read_to_string(&page)?;
    ensure!(text.len() < 300_000, "{} bytes", text.len());
    let differ =
        text.split_once("Settings that differ").context("the table of settings")?.1.split_once("</table>").context("its end")?.0;
    ensure!(differ.contains("learning_rate") && differ.contains("output_dir") && !differ.contains("<code>seed"), "{differ}");
    let count = |mark: &str| text.matches(mark).count();
    let (charts, dots) = (count("<svg"), count("<circle"));
    ensure!(count("class=\"band") == 2 * 3 + 4, "{} bands", count("class=\"band"));
    ensure!(count("before and after") == 2, "no answers before and after");
    let measured = at("measured.html");
    std::fs::write(&measured, text.replace("</head>", &format!("{MEASURE}</head>")))?;
    for width in [1200, 500] {
        let Some(dom) = browser(&measured, width, &["--dump-dom"])? else { return Ok(()) };
        let title = dom.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>")).context("a title")?.0;
        let wanted = format!("laid 0 {charts} 0 0 {dots} ");
        ensure!(title == wanted, "{width} px: wanted {wanted:?}, got {title:?}");
    }
    Ok(())
}
