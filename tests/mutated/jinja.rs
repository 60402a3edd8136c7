//! Templates changed as templates: pieces of text, blocks and expressions, words inside them, whole loops around them.

use ple_tests::tiny::Random;

/// Words that stand for other words.
const WORDS: [&str; 36] = [
    "messages",
    "message",
    "m",
    "loop",
    "none",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "99999999",
    "'x'",
    "''",
    "[]",
    "{}",
    "loop.index",
    "tools",
    "bos_token",
    "undefined_name",
    "messages[0]",
    "messages[-1:]",
    "range(100000)",
    "range(0)",
    "namespace()",
    "raise_exception('no')",
    "strftime_now('%Y')",
    "m.role",
    "m['content']",
    "(messages|tojson)",
    "(1, 2)",
    "not",
    "is defined",
    "is string",
    "+",
    "~",
    "*",
];
const FILTERS: [&str; 12] = [
    " | tojson",
    " | trim",
    " | length",
    " | upper",
    " | list",
    " | join(', ')",
    " | first",
    " | safe",
    " | reverse | list",
    " | int",
    " | items",
    " | default('d')",
];
/// What is put around a piece.
const AROUND: [(&str, &str); 9] = [
    ("{% for i in range(3) %}", "{% endfor %}"),
    ("{% for i in range(1000) %}", "{% endfor %}"),
    ("{% for i in range(99999) %}", "{% endfor %}"),
    ("{% for i in range(9999) %}{% for j in range(9999) %}", "{% endfor %}{% endfor %}"),
    ("{% for i in range(99999) %}{{ 'long ' * 20 }}", "{% endfor %}"),
    ("{% if true %}", "{% endif %}"),
    ("{% generation %}", "{% endgeneration %}"),
    ("{% set x %}", "{% endset %}{{ x }}"),
    ("{% filter upper %}", "{% endfilter %}"),
];

/// Texts, `{{ }}`, `{% %}` and `{# #}`, in order.
fn pieces(source: &str) -> Vec<String> {
    let (mut pieces, mut rest) = (Vec::new(), source);
    while let Some(at) = rest.find("{{").into_iter().chain(rest.find("{%")).chain(rest.find("{#")).min() {
        let end = match &rest[at..at + 2] {
            "{{" => "}}",
            "{%" => "%}",
            _ => "#}",
        };
        let Some(len) = rest[at..].find(end) else { break };
        pieces.push(rest[..at].to_string());
        pieces.push(rest[at..at + len + 2].to_string());
        rest = &rest[at + len + 2..];
    }
    pieces.push(rest.to_string());
    pieces
}

fn pick<'a, T>(list: &'a [T], random: &mut Random) -> &'a T {
    &list[random.below(list.len() as u32) as usize]
}

/// Another word for one inside a block or expression.
fn reworded(piece: &str, random: &mut Random) -> String {
    let words: Vec<(usize, &str)> = piece
        .split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty())
        .map(|word| (word.as_ptr() as usize - piece.as_ptr() as usize, word))
        .collect();
    // The first word of a block says what it is.
    let skipped = usize::from(piece.starts_with("{%"));
    let Some(rest) = words.get(skipped..).filter(|rest| !rest.is_empty()) else { return piece.into() };
    let (at, word) = *pick(rest, random);
    format!("{}{}{}", &piece[..at], pick(&WORDS, random), &piece[at + word.len()..])
}

fn filtered(piece: &str, random: &mut Random) -> String {
    match piece.strip_suffix("}}") {
        Some(body) => format!("{}{} }}}}", body.trim_end_matches('-'), pick(&FILTERS, random)),
        None => piece.into(),
    }
}

/// One to three changes; `others` lend their pieces.
pub fn mutated(seed: &str, others: &[String], random: &mut Random) -> String {
    let mut all = pieces(seed);
    for _ in 0..1 + random.below(3) {
        let at = random.below(all.len() as u32) as usize;
        match random.below(12) {
            0 => drop(all.remove(at)),
            1 => all.insert(at, all[at].clone()),
            2 => {
                let lent = pieces(pick::<String>(others, random));
                all.insert(at, pick(&lent, random).clone());
            }
            3 => {
                let to = random.below(all.len() as u32) as usize;
                all.swap(at, to);
            }
            4 | 5 => {
                let (before, after) = *pick(&AROUND, random);
                all[at] = format!("{before}{}{after}", all[at]);
                if all[at].contains("{% end") && random.below(2) == 0 {
                    all = vec![format!("{before}{}{after}", all.concat())];
                }
            }
            6 => all[at] = filtered(&all[at], random),
            7 => all.insert(at, format!("{{{{ {}{} }}}}", pick(&WORDS, random), pick(&FILTERS, random))),
            _ => all[at] = reworded(&all[at], random),
        }
        if all.is_empty() {
            all.push(String::new());
        }
    }
    all.concat()
}
