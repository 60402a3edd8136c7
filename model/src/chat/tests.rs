use super::*;
use crate::shared::shared;

/// 2025-07-10, 12:00:00.
const JULY: u64 = 1_752_148_800;

fn tokens() -> Map<String, Value> {
    let Value::Object(map) = json!({"bos_token": "<s>", "eos_token": "</s>"}) else { panic!() };
    map
}

fn of(source: &str, special: Map<String, Value>) -> Result<Template> {
    Template::new(Path::new("t.jinja"), vec![(DEFAULT.into(), source.into())], special, JULY)
}

fn rows(name: &str) -> Option<Vec<Value>> {
    let text = std::fs::read_to_string(shared(&format!("data/chat_templates/{name}"))?).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Where a rendering leaves what was wanted.
fn differ(label: &str, wanted: Option<&str>, got: Result<String>) -> String {
    let (Some(wanted), Ok(got)) = (wanted, &got) else {
        return format!("{label}: wanted {}, got {got:?}", if wanted.is_some() { "a text" } else { "an error" });
    };
    let at = wanted.bytes().zip(got.bytes()).take_while(|(a, b)| a == b).count();
    let around =
        |text: &str| String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(20)..text.len().min(at + 60)]).into_owned();
    format!("{label}: wanted ..{:?}, got ..{:?}", around(wanted), around(got))
}

/// Renders with exactly the variables of a row: what a suite leaves out is undefined there.
fn with(source: &str, data: &Map<String, Value>) -> Result<String> {
    let (text, _) = rewrite::rewrite(source);
    let mut env = environment::environment().map_err(|e| fault(Path::new("t"), &e))?;
    env.add_template_owned("t", text).map_err(|e| fault(Path::new("t"), &e))?;
    let mut data = data.clone();
    data.insert(environment::NOW.into(), json!(JULY));
    let out = env.get_template("t").and_then(|t| t.render(minijinja::Value::from(Serde(&data))));
    out.map(|text| text.replace(environment::MARKS, "")).map_err(|e| fault(Path::new("t"), &e))
}

#[test]
fn golden_renderings_and_errors() {
    let (Some(rows), Some(path)) = (rows("golden.jsonl"), shared("data/chat_templates/conversations.json")) else { return };
    let conversations: Map<String, Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (mut equal, mut refused, mut wrong) = (0, 0, Vec::new());
    for row in &rows {
        let (name, source) = (row["name"].as_str().unwrap(), row["template"].as_str().unwrap());
        for case in row["cases"].as_array().unwrap() {
            let label = case["case"].as_str().unwrap();
            let chat = &conversations[label];
            let conversation = Conversation {
                tools: chat.get("tools"),
                ..Conversation::new(&chat["messages"], chat["add_generation_prompt"].as_bool().unwrap())
            };
            let got = of(source, tokens()).and_then(|t| t.render(&conversation));
            match (case["expected"].as_str(), got) {
                (Some(wanted), Ok(got)) if got.text == wanted => equal += 1,
                (None, Err(_)) => refused += 1,
                (wanted, got) => wrong.push(differ(&format!("{name} {label}"), wanted, got.map(|r| r.text))),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n\n"));
    println!("{equal} equal, {refused} refused of {} templates", rows.len());
    assert_eq!((equal, refused), (599, 85));
}

#[test]
fn suites_of_others_give_what_jinja2_gives() {
    let (mut equal, mut refused, mut wrong) = (0, 0, Vec::new());
    for name in ["hfjs_e2e.jsonl", "llamacpp.jsonl", "hfjs_language.jsonl"] {
        let Some(rows) = rows(name) else { return };
        for row in rows {
            let data = row["data"].as_object().unwrap();
            match (row["jinja2"].as_str(), with(row["template"].as_str().unwrap(), data)) {
                (Some(wanted), Ok(got)) if got == wanted => equal += 1,
                (None, Err(_)) => refused += 1,
                (wanted, got) => wrong.push(differ(&format!("{name} {}", row["name"]), wanted, got)),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n\n"));
    println!("{equal} equal, {refused} refused");
    assert_eq!((equal, refused), (116, 8));
}

fn render(source: &str, messages: Value) -> Result<Rendered> {
    of(source, tokens())?.render(&Conversation::new(&messages, false))
}

fn refusal(source: &str) -> String {
    render(source, json!([])).expect_err(source).to_string()
}

#[test]
fn what_the_assistant_wrote_is_marked() {
    let source = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{%- generation -%}\n {{ m.content }}!\n{%- endgeneration %}\n{% else %}{{ m.content }}{% endif %}{% endfor %}.";
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "é"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]);
    let got = render(source, messages).unwrap();
    assert_eq!(got.text, "<user>a<assistant>é!<user>c<assistant>d!.");
    assert_eq!(got.assistant.iter().map(|r| &got.text[r.clone()]).collect::<Vec<_>>(), ["é!", "d!"]);
    assert!(
        of(source, tokens()).unwrap().marks_assistant() && !of("{# {% generation %} #}", tokens()).unwrap().marks_assistant()
    );
    for forged in ["\u{fdd1}", "\u{fdd0}x"] {
        let error = render(source, json!([{"role": "user", "content": forged}])).unwrap_err().to_string();
        assert!(error.contains("U+FDD0"), "{error}");
    }
    let raw = render("{% raw %}{% generation %}{{ x ~ true }}{% endraw %}{{ '{% generation %}' }}", json!([])).unwrap();
    assert_eq!((raw.text.as_str(), raw.assistant.len()), ("{% generation %}{{ x ~ true }}{% generation %}", 0));
}

#[test]
fn a_template_cannot_run_away() {
    let endless = refusal("{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}");
    assert!(endless.contains("1000000 steps"), "{endless}");
    let long = refusal(
        "{% for i in range(100000) %}{{ '0123456789012345678901234567890123456789012345678901234567890123' }}{% endfor %}",
    );
    assert!(long.contains("at most 4194304 bytes"), "{long}");
    refusal("{{ 'x' * 99999999 }}");
    refusal("{{ 'x'.join(range(100000)|list).join(range(100000)|list) }}");
    refusal("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}");
    let nest = "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    for end in ["{{ ns.x }}", "{{ ns.x | tojson }}", "{{ ns.x == ns.x }}", ""] {
        let _ = render(&format!("{nest}{end}"), json!([]));
    }
    for piece in ["(", "[", "-", "not ", "1+", "1**", "1~", "a.", "a|", "1 if 1 else ", "f(", "1 in ", "{{", "{%", "{% if 1 %}"] {
        // A chain of constants is joined while it is compiled, in the square of its length.
        let many = piece.repeat(if piece == "1~" { 1000 } else { 60_000 / piece.len() });
        for source in [many.clone(), format!("{{{{ {many}1 }}}}"), format!("{{% if 1 %}}{many}")] {
            let _ = render(&source, json!([]));
        }
    }
    let _ = render(&format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(5000)), json!([]));
    assert!(refusal(&" ".repeat(LONGEST + 1)).contains("at most 65536 bytes"));
}

#[test]
fn errors_name_the_file_and_the_line() {
    for (source, wanted) in [
        ("\n{{ raise_exception('roles ' ~ true) }}", "t.jinja: chat template: line 2: roles True"),
        ("{{ messages.x.y }}", "t.jinja: chat template: line 1: undefined value"),
        ("{% for x in none %}{% endfor %}", "line 1: 'NoneType' object is not iterable"),
        ("{% if %}", "line 1: syntax error"),
        ("{{ 'a", "line 1: syntax error"),
        ("{% include 'x' %}", "template not found"),
        ("{{ strftime_now('%Q') }}", "strftime_now: wanted a directive of strftime, got %Q"),
        ("{{ undefined_name | tojson }}", "not JSON serializable"),
    ] {
        let got = refusal(source);
        assert!(got.contains(wanted), "{source}: {got}");
    }
}

#[test]
fn dates_are_those_of_the_calendar() {
    let all = "%Y-%m-%d %j %a %A %b %B %H:%M:%S %I %p %y %-d %e %F %D %T %%";
    for (seconds, wanted) in [
        (JULY, "2025-07-10 191 Thu Thursday Jul July 12:00:00 12 PM 25 10 10 2025-07-10 07/10/25 12:00:00 %"),
        (0, "1970-01-01 001 Thu Thursday Jan January 00:00:00 12 AM 70 1  1 1970-01-01 01/01/70 00:00:00 %"),
        (951_782_399, "2000-02-28 059 Mon Monday Feb February 23:59:59 11 PM 00 28 28 2000-02-28 02/28/00 23:59:59 %"),
        (951_782_400, "2000-02-29 060 Tue Tuesday Feb February 00:00:00 12 AM 00 29 29 2000-02-29 02/29/00 00:00:00 %"),
        (4_107_542_400, "2100-03-01 060 Mon Monday Mar March 00:00:00 12 AM 00 1  1 2100-03-01 03/01/00 00:00:00 %"),
    ] {
        assert_eq!(clock::strftime(all, seconds).as_deref(), Ok(wanted));
    }
}

#[test]
fn a_folder_names_its_template_in_four_ways() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let open = || Template::open(folder.path(), JULY);
    let text = |tools: &Value| {
        let messages = json!([]);
        let chat = Conversation { tools: Some(tools), ..Conversation::new(&messages, false) };
        open().unwrap().unwrap().render(&chat).unwrap().text
    };
    assert!(open().unwrap().is_none());
    write("chat_template.json", r#"{"chat_template": "old"}"#);
    assert_eq!(text(&Value::Null), "old");
    write(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "</s>"}, "chat_template": [{"name": "default", "template": "d{{ eos_token }}"}, {"name": "tool_use", "template": "t"}]}"#,
    );
    assert_eq!((text(&json!([])), text(&json!([{}]))), ("d</s>".into(), "t".into()));
    write("chat_template.jinja", "new{{ eos_token }}{{ bos_token }}");
    assert_eq!(text(&json!([{}])), "new</s>");
    write("additional_chat_templates/tool_use.jinja", "more");
    assert_eq!((text(&json!([])), text(&json!([{}]))), ("new</s>".into(), "more".into()));
    let other = tempfile::tempdir().unwrap();
    let lone = Template::from_path(&folder.path().join("chat_template.jinja"), other.path(), JULY).unwrap();
    assert_eq!(lone.render(&Conversation::new(&json!([]), false)).unwrap().text, "new");
    assert!(Template::from_path(other.path(), other.path(), JULY).unwrap_err().to_string().contains("one without"));
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    for (config, wanted) in [
        (r#"{"chat_template": 1}"#, "chat_template: wanted a string, or a list"),
        (r#"{"chat_template": [{"name": "x"}]}"#, "chat_template: wanted a string, or a list"),
        (
            r#"{"chat_template": [{"name": "x", "template": ""}, {"name": "y", "template": ""}]}"#,
            "a template with the name `default`",
        ),
        (r#"{"chat_template": "{{"}"#, "tokenizer_config.json: chat template: line 1: syntax error"),
    ] {
        write("tokenizer_config.json", config);
        let got = open().unwrap_err().to_string();
        assert!(got.contains(wanted), "{got}");
    }
}
