//! `ple inspect`, the line that a run prints of its rows, and rows of messages where texts are expected.

use super::program::{Ple, Said, ple};
use super::{Data, TEMPLATE, number, objects, with_template};
use anyhow::{Context, Result, ensure};
use ple_tests::data::shared;
use serde_json::{Value, json};
use std::path::Path;

fn value(said: &Said) -> Result<Value> {
    serde_json::from_str(&said.out).with_context(|| format!("{} {}", said.out, said.err))
}

fn inspect(what: &str, model: &Path) -> Ple {
    ple("inspect").and(what).key("model_name_or_path", model)
}

fn rows(path: &Path, rows: &[Value]) -> Result<()> {
    Ok(std::fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>())?)
}

#[test]
fn a_model_says_what_it_is() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let model = with_template(&data.model, dir.path(), TEMPLATE)?;
    let facts = value(&inspect("model --json", &model).succeed()?)?;
    let names = ["family", "tied", "tokens", "bos", "eos", "parameters", "chat_template", "marks_assistant", "refused"];
    ensure!(names.iter().all(|name| facts.get(*name).is_some()), "{facts:#}");
    ensure!(facts["family"] == "llama" && facts["shapes"]["hidden_size"] == 64 && facts["tokens"] == 512, "{facts:#}");
    ensure!(facts["eos"] == "2 </s>" && facts["adds_bos"] == true && facts["refused"] == json!([]), "{facts:#}");
    // The name counts the layers' weights; the file has the embedding once.
    let parameters = facts["parameters"].as_u64().context("parameters")?;
    ensure!(parameters > 250_000 && facts["parameters_by_type"] == json!({ "f32": parameters }), "{facts:#}");
    let text = inspect("model", &model).succeed()?.out;
    ensure!(text.contains("family               llama\n") && text.ends_with("nothing is refused\n"), "{text}");
    // What would be refused is listed, all of it.
    let mut config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json"))?)?;
    config["model_type"] = json!("mamba");
    std::fs::write(model.join("config.json"), config.to_string())?;
    std::fs::write(model.join("chat_template.jinja"), "{% if %}")?;
    let said = inspect("model --json", &model).end()?;
    let facts = value(&said)?;
    let refused = facts["refused"].to_string();
    ensure!(said.code == 1 && refused.contains("model_type") && refused.contains("syntax error"), "{facts:#}");
    ensure!(facts["family"] == "mamba" && facts["parameters"] == parameters, "{facts:#}");
    inspect("model --rows 1", &model).refuse(2, &["--rows"])
}

#[test]
fn an_adapter_says_what_it_changes() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let Some(folder) = shared("data/adapters/stories260k-imdb-pos-r8") else { return Ok(()) };
    let call = || ple("inspect adapter --json").key("adapter", &folder);
    let alone = value(&call().end()?)?;
    let fitted = value(&call().key("model_name_or_path", &data.model).end()?)?;
    ensure!(alone["modules"].as_array().is_some_and(|list| list.len() == 35) && alone["r"] == 8, "{alone:#}");
    let sorted = |facts: &Value| -> Result<Vec<String>> {
        let mut all: Vec<String> = facts["modules"].as_array().context("modules")?.iter().map(Value::to_string).collect();
        all.sort();
        Ok(all)
    };
    ensure!(sorted(&alone)? == sorted(&fitted)?, "other norms on the base");
    for module in fitted["modules"].as_array().context("modules")? {
        let [a, b, change, scale] = ["norm_a", "norm_b", "norm_change", "scale"].map(|name| number(module, name));
        ensure!(a? > 0.0 && b? > 0.0 && scale? > 0.0, "{module}");
        ensure!(change? <= number(module, "scale")? * number(module, "norm_a")? * number(module, "norm_b")?, "{module}");
    }
    let text = ple("inspect adapter").key("adapter", &folder).succeed()?.out;
    ensure!(text.contains("unknown: no base.json") && text.contains("\nmodules              module model.layers.0"), "{text}");
    // On another base its modules are not there.
    let Some(other) = shared("fixtures/lm") else { return Ok(()) };
    let other = std::fs::read_dir(other)?.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    let other =
        other.iter().find(|p| p.ends_with("llama_base")).or(other.iter().find(|p| p.display().to_string().contains("llama")));
    let said = call().key("model_name_or_path", other.context("a llama")?.join("model")).end()?;
    ensure!(said.code == 1 && value(&said)?["refused"].to_string().contains("shape: wanted"), "{}", said.out);
    Ok(())
}

/// DoRA and heads of its own: what they are, how large, and which commands take them, with a base and without.
#[test]
fn an_adapter_says_what_else_it_holds() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let Some(folder) = shared("data/adapters/stories260k-imdb-pos-r8") else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let config = model::Config::from_folder(&data.model)?;
    let plain = model::adapter::Adapter::load(&folder, &config.modules())?;
    let mut dora = plain.clone();
    dora.config.use_dora = true;
    dora.modules.iter_mut().for_each(|m| m.magnitude = Some(vec![0.5; m.out_features]));
    let mut headed = plain.clone();
    headed.config.modules_to_save = vec!["lm_head".into()];
    let spec = model::merge::whole(&config).into_iter().find(|s| s.name == "lm_head.weight").context("a head")?;
    headed.saved.push(model::adapter::SavedTensor { values: vec![0.01; spec.shape.iter().product()], spec });
    let numbers = |a: &model::adapter::Adapter| -> usize {
        let of = |m: &model::adapter::AdapterModule| m.a.len() + m.b.len() + m.magnitude.as_ref().map_or(0, Vec::len);
        a.modules.iter().map(of).sum::<usize>() + a.saved.iter().map(|t| t.values.len()).sum::<usize>()
    };
    for (name, adapter) in [("plain", &plain), ("dora", &dora), ("headed", &headed)] {
        adapter.save(&dir.path().join(name))?;
        let call = |words: &str| ple("inspect adapter").and(words).key("adapter", dir.path().join(name));
        let alone = value(&call("--json").succeed()?)?;
        let fitted = value(&call("--json").key("model_name_or_path", &data.model).succeed()?)?;
        for facts in [&alone, &fitted] {
            ensure!(facts["use_dora"] == (name == "dora") && facts["parameters"] == numbers(adapter), "{name}: {facts:#}");
            let lengths = facts["modules"].as_array().into_iter().flatten().filter(|m| m["norm_magnitude"].as_f64() > Some(0.0));
            ensure!(lengths.count() == if name == "dora" { 35 } else { 0 }, "{name}: {facts:#}");
            let taken = match name {
                "plain" => "all",
                "dora" => "all but training: DoRA is run and merged",
                _ => "ple merge alone: lm_head is saved whole, and beside a base it would be a second copy",
            };
            ensure!(facts["taken_by"] == taken, "{name}: {facts:#}");
            let whole = json!([{ "tensor": "lm_head.weight", "shape": [512, 64], "type": "f32", "parameters": 512 * 64 }]);
            ensure!(facts["saved_whole"] == if name == "headed" { whole } else { Value::Null }, "{name}: {facts:#}");
        }
        let text = call("").succeed()?.out;
        let word = if name == "dora" { "yes" } else { "no" };
        ensure!(text.contains(&format!("{:<20} {word}\n", "use_dora")), "{text}");
        ensure!((name == "headed") == text.contains("saved_whole          tensor lm_head.weight"), "{text}");
    }
    Ok(())
}

#[test]
fn a_template_is_shown_at_work() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let model = with_template(&data.model, dir.path(), TEMPLATE)?;
    let shown = value(&inspect("template --json", &model).succeed()?)?;
    let first = &shown["rendered"][0];
    let wanted = "<s>user: What is the capital of France?\nassistant: Paris.</s>\nuser: And of Spain?\nassistant: ";
    ensure!(first["text"] == wanted && shown["marks_assistant"] == false && shown["rendered"][1].is_object(), "{shown:#}");
    let marked = |of: &Value| -> String {
        let list = of["tokens"].as_array().into_iter().flatten();
        list.filter(|t| t["marked"] == true).filter_map(|t| t["piece"].as_str()).collect()
    };
    ensure!(marked(first).contains("</s>") && !marked(first).contains("France") && !marked(first).contains("Spain"), "{first:#}");
    // Of a file, with a template that marks what the assistant wrote.
    let marking = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    std::fs::write(model.join("chat_template.jinja"), marking)?;
    let file = dir.path().join("talk.jsonl");
    rows(&file, &[json!({ "conversations": [{ "from": "human", "value": "hi" }, { "from": "gpt", "value": "there" }] })])?;
    let text = inspect("template", &model).key("dataset_name", &file).succeed()?.out;
    ensure!(text.contains("marks what the assistant wrote") && text.contains("row 0\n[user]hi[assistant]there"), "{text}");
    ensure!(text.lines().any(|line| line.contains(" + ")) && !text.contains('\u{1b}'), "{text}");
    std::fs::write(
        model.join("chat_template.jinja"),
        "{{ raise_exception('no system') if messages[0].role == 'system' else 'x' }}",
    )?;
    let text = inspect("template", &model).succeed()?.out;
    ensure!(text.contains("without the system message that the template refuses"), "{text}");
    inspect("template", &data.model).refuse(3, &["wanted a folder with a chat template"])
}

#[test]
fn rows_are_shown_and_judged_as_a_run_reads_them() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("rows.jsonl");
    let look = |words: &str| inspect(&format!("data {words}"), &data.model).key("dataset_name", &file).end();
    let good = json!({ "prompt": "A dog", "completion": " ran." });
    rows(&file, &[good.clone(), good.clone()])?;
    let said = look("--json")?;
    let shown = value(&said)?;
    ensure!(said.code == 0 && shown["command"] == "sft" && shown["rows"] == 2 && shown["odd"] == json!([]), "{shown:#}");
    let tokens = shown["shown"][0]["tokens"].as_array().context("tokens")?;
    ensure!(tokens[0]["id"] == 1 && tokens[0]["part"] == "prompt" && tokens.last().is_some_and(|t| t["id"] == 2), "{shown:#}");
    ensure!(tokens.iter().all(|t| t["marked"] == (t["part"] == "answer")), "{shown:#}");
    // Each oddity: BOS by hand, an end by hand, nothing to learn, a border inside a token, and a cut.
    let bad = [
        json!({ "prompt": "<s>A dog", "completion": " ran." }),
        json!({ "prompt": "A dog", "completion": " ran.</s></s>" }),
        json!({ "prompt": "A dog", "completion": " " }),
        json!({ "prompt": "Once upon a ti", "completion": "me." }),
        json!({ "prompt": "A dog", "completion": " ran and ran and ran and ran and ran and ran." }),
        good,
    ];
    rows(&file, &bad)?;
    let said = look("--rows 1 --max_length 16")?;
    for words in [
        "6 rows, as `ple sft`",
        "begin with BOS twice (row 0)",
        "end with EOS twice (row 1)",
        "no text in the loss (row 2)",
        "inside a token (row 3)",
        "cut off at the length limit (row",
        "row 0: begin with BOS twice\n",
    ] {
        ensure!(said.out.contains(words), "{words}: {}", said.out);
    }
    ensure!(said.code == 1 && said.out.contains(" + \""), "{}", said.out);
    // Pairs and queries are read as their commands do.
    rows(&file, &[json!({ "prompt": "A dog", "chosen": " ran.", "rejected": " sat." })])?;
    let shown = value(&look("--json")?)?;
    ensure!(shown["command"] == "dpo" && shown.to_string().contains("rejected"), "{shown:#}");
    let shown = value(&look("--json --command reward")?)?;
    let marked = shown["shown"][0]["tokens"].as_array().context("tokens")?.iter().filter(|t| t["marked"] == true).count();
    ensure!(marked == 2, "{shown:#}");
    rows(&file, &[json!({ "prompt": "A dog " }), json!({ "prompt": "A dog" })])?;
    let said = look("")?;
    ensure!(
        said.code == 1 && said.out.contains("as `ple generate` reads them") && said.out.contains("inside a token (row 0)"),
        "{}",
        said.out
    );
    let said = look("--command train --reward_funcs length:4")?;
    ensure!(said.out.contains("guided"), "{}", said.out);
    inspect("data", &data.model).refuse(2, &["dataset_name"])?;
    ple("inspect dat").refuse(2, &["nearest known is `data`"])
}

#[test]
fn every_run_says_what_it_looked_at() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let train = |command: &str, file: &str, out: &str| {
        let call = ple(command).and("--max_steps 1 --report_to none").key("model_name_or_path", &data.model);
        call.key("dataset_name", at(file)).key("output_dir", at(out)).succeed()
    };
    let plain = json!({ "prompt": "A dog", "completion": " ran." });
    let mut many = vec![plain; 70];
    many[3] = json!({ "prompt": "<s>A dog", "completion": " ran." });
    rows(&at("rows.jsonl"), &many)?;
    let lines = |said: &Said| said.out.lines().filter(|line| line.starts_with("check ")).map(str::to_string).collect::<Vec<_>>();
    let said = train("sft", "rows.jsonl", "sft")?;
    ensure!(lines(&said) == ["check first 64 of 70 rows: 1 begin with BOS twice (row 3)"], "{}", said.out);
    rows(&at("pairs.jsonl"), &[json!({ "prompt": "A dog", "chosen": " ran.", "rejected": " sat." })])?;
    for command in ["dpo", "reward"] {
        let said = train(command, "pairs.jsonl", command)?;
        ensure!(lines(&said) == ["check 1 rows: nothing is odd about BOS, EOS, borders and loss"], "{command}: {}", said.out);
    }
    rows(&at("queries.jsonl"), &[json!({ "prompt": "A dog " })])?;
    let settings =
        "--reward_funcs length:4 --ple_iters 1 --ple_queries_per_iter 1 --max_completion_length 4 --max_prompt_length 64";
    for (command, more) in [("train", "--ple_principle Kind."), ("raft", "")] {
        let said = train(&format!("{command} {settings} {more}"), "queries.jsonl", command)?;
        ensure!(lines(&said) == ["check 1 rows: 1 have a prompt that ends inside a token (row 0)"], "{command}: {}", said.out);
    }
    Ok(())
}

#[test]
fn an_end_that_the_tokenizer_does_not_name_is_the_models() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let model = with_template(&data.model, dir.path(), TEMPLATE)?;
    let mut file: Value = serde_json::from_slice(&std::fs::read(model.join("tokenizer_config.json"))?)?;
    file["eos_token"] = Value::Null;
    std::fs::write(model.join("tokenizer_config.json"), file.to_string())?;
    std::fs::write(model.join("generation_config.json"), json!({ "eos_token_id": [2, 5] }).to_string())?;
    let rows_file = dir.path().join("rows.jsonl");
    rows(&rows_file, &[json!({ "prompt": "A dog", "completion": " ran." })])?;
    let said = inspect("data", &model).key("dataset_name", &rows_file).succeed()?;
    ensure!(said.out.contains("note  eos_token is not in tokenizer_config.json: answers end with 2 \"</s>\""), "{}", said.out);
    ensure!(said.out.contains("  2  answer    + \"</s>\""), "{}", said.out);
    let call = ple("sft --max_steps 1 --report_to none").key("model_name_or_path", &model).key("dataset_name", &rows_file);
    let said = call.key("output_dir", dir.path().join("out")).succeed()?;
    ensure!(said.out.contains("note  eos_token is not in") && said.out.contains("nothing is odd"), "{}", said.out);
    Ok(())
}

#[test]
fn messages_are_scored_as_their_texts_are() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let model = with_template(&data.model, dir.path(), TEMPLATE)?;
    let say = |role: &str, content: &str| json!({ "role": role, "content": content });
    let query = json!([say("user", "Tell of a dog.")]);
    let pair = |a: &str, b: &str| json!({ "prompt": query, "chosen": [say("assistant", a)], "rejected": [say("assistant", b)] });
    rows(&at("pairs.jsonl"), &[pair("A dog ran.", "No."), pair("A good dog.", "x")])?;
    let call = ple("reward --max_steps 3 --report_to none --learning_rate 1e-2").key("model_name_or_path", &model);
    call.key("dataset_name", at("pairs.jsonl")).key("output_dir", at("head")).succeed()?;
    // What generate draws, scored as it wrote it, and as messages.
    rows(&at("queries.jsonl"), &vec![json!({ "prompt": query }); 4])?;
    let call = ple("generate --max_completion_length 60").key("model_name_or_path", &model);
    call.key("dataset_name", at("queries.jsonl")).key("output_file", at("drawn.jsonl")).succeed()?;
    let score = |file: &str, out: &str| {
        let funcs = [format!("adapter:{}", at("head").display()), data.lexicon(), "length:9".into()];
        let call =
            ple("score --quiet").key("model_name_or_path", &model).key("dataset_name", at(file)).key("output_file", at(out));
        funcs.iter().fold(call, |call, func| call.key("reward_funcs", func)).succeed()
    };
    score("drawn.jsonl", "texts.jsonl")?;
    let drawn = objects(&at("texts.jsonl"))?;
    let told = |row: &Value| -> Result<[Value; 3]> {
        let answer = say("assistant", row["completion"].as_str().context("completion")?);
        let talk = json!([{ "from": "human", "value": "Tell of a dog." }, { "from": "gpt", "value": row["completion"] }]);
        Ok([
            json!({ "prompt": query, "completion": [answer] }),
            json!({ "messages": [query[0], answer] }),
            json!({ "conversations": talk }),
        ])
    };
    for kind in 0..3 {
        let all = drawn.iter().map(|row| Ok(told(row)?[kind].clone())).collect::<Result<Vec<_>>>()?;
        rows(&at("told.jsonl"), &all)?;
        score("told.jsonl", "scored.jsonl")?;
        for (text, talk) in drawn.iter().zip(objects(&at("scored.jsonl"))?) {
            ensure!(text["rewards"] == talk["rewards"] && number(&talk, "reward")?.is_finite(), "{text}\n{talk}");
            let list = talk.get("messages").or(talk.get("prompt")).or(talk.get("conversations"));
            ensure!(list.is_some_and(Value::is_array), "{talk}");
        }
    }
    // Tokens of an answer are counted with its end and without what a template writes behind it.
    let tokens = model::Tokenizer::open(&model)?.encode("Yes.", false)?.len() + 1;
    rows(&at("told.jsonl"), &[json!({ "messages": [query[0], say("assistant", "Yes.")] })])?;
    let call = ple("score --quiet --reward_funcs length:100").key("model_name_or_path", &model);
    call.key("dataset_name", at("told.jsonl")).key("output_file", at("scored.jsonl")).succeed()?;
    ensure!(number(&objects(&at("scored.jsonl"))?[0], "reward")? == tokens as f64 / 100.0, "other than {tokens} tokens");
    // The head was trained on texts with one first token that end with the end token.
    let shown = inspect("data --json --command reward", &model).key("dataset_name", at("pairs.jsonl")).succeed()?;
    let shown = value(&shown)?;
    let list = shown["shown"][0]["tokens"].as_array().context("tokens")?;
    let ids: Vec<u64> = list.iter().filter(|t| t["part"] != "rejected").filter_map(|t| t["id"].as_u64()).collect();
    ensure!(ids.iter().filter(|id| **id == 1).count() == 1 && ids.last() == Some(&2), "{shown:#}");
    let call =
        || ple("score --quiet --reward_funcs length:9").key("dataset_name", at("told.jsonl")).key("output_file", at("none"));
    call().refuse(3, &["told.jsonl: line 1: a row of messages: wanted model_name_or_path, the folder whose chat template"])?;
    rows(&at("told.jsonl"), &[json!({ "messages": [query[0]] })])?;
    call()
        .key("model_name_or_path", &model)
        .refuse(3, &["told.jsonl: line 1: field messages: wanted a query and the assistant's answer"])
}

#[test]
fn marks_are_colours_on_a_terminal() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    if !std::process::Command::new("script").arg("--version").output().is_ok_and(|said| said.status.success()) {
        ple_tests::data::say("skip: no `script` to make a terminal with");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("rows.jsonl");
    rows(&file, &[json!({ "prompt": "A dog", "completion": " ran." })])?;
    let program = env!("CARGO_BIN_EXE_ple-tested");
    let shown = |line: &str, plain: &str| -> Result<String> {
        let model = data.model.display();
        let line = format!("{program} {line} --model_name_or_path {model}");
        let out = std::process::Command::new("script").args(["-qec", &line, "/dev/null"]).env("NO_COLOR", plain).output()?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let line = format!("inspect data --dataset_name {}", file.display());
    let (coloured, plain) = (shown(&line, "")?, shown(&line, "1")?);
    ensure!(coloured.contains("\u{1b}[32m") && coloured.contains(" + \""), "{coloured}");
    ensure!(!plain.contains('\u{1b}') && plain.contains(" + \""), "{plain}");
    // Somebody who sits in front of it is asked, told of mistakes, and goes on.
    let said = shown(&format!("chat --max_completion_length 4 < {}", file.display()), "1")?;
    ensure!(!said.contains("> "), "a prompt though the input is a file: {said}");
    let line = format!("chat --max_completion_length 4 --model_name_or_path {}", data.model.display());
    let typed = "printf '/nothing\\nA dog\\n/quit\\n'";
    let call = format!("{typed} | script -qec '{program} {line}' /dev/null");
    let out = std::process::Command::new("sh").args(["-c", &call]).output()?;
    let said = String::from_utf8_lossy(&out.stdout);
    let wanted =
        ["no chat template: a message is continued as a text", "> ", "wanted /reset, /system TEXT", "(cut off at 4 tokens)"];
    ensure!(wanted.iter().all(|words| said.contains(words)), "{said}");
    Ok(())
}
