//! `ple chat` over a pipe: answers are those of `ple generate`, turns go on from each other, commands do what they say.

use super::program::{Ple, ple};
use super::{Data, TEMPLATE, objects, with_template};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;

fn chat(model: &Path) -> Ple {
    ple("chat --max_completion_length 24 --temperature 0.9 --seed 5").key("model_name_or_path", model)
}

/// The answers of `ple generate` to these rows, in their order.
fn generated(model: &Path, rows: &[Value], folder: &Path) -> Result<Vec<String>> {
    let (rows_file, out) = (folder.join("asked.jsonl"), folder.join("said.jsonl"));
    std::fs::write(&rows_file, rows.iter().map(|row| format!("{row}\n")).collect::<String>())?;
    let call = ple("generate --max_completion_length 24 --temperature 0.9 --seed 5 --max_prompt_length 512");
    call.key("model_name_or_path", model).key("dataset_name", &rows_file).key("output_file", &out).succeed()?;
    objects(&out)?.iter().map(|row| Ok(row["completion"].as_str().context("completion")?.to_string())).collect()
}

#[test]
fn a_conversation_is_what_generate_draws() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let (model, saved) = (with_template(&data.model, dir.path(), TEMPLATE)?, dir.path().join("talk.jsonl"));
    let input = format!("Once upon a time\r\n\nAnd then?\nThe dog ran.\n/save {}\n/quit\nnot read\n", saved.display());
    let said = chat(&model).key("system", "Tell a story.").fed(&input)?;
    let [row] = objects(&saved)?.try_into().map_err(|rows| anyhow::anyhow!("wanted one row, got {rows:?}"))?;
    let messages = row["messages"].as_array().context("messages")?.clone();
    let role = |m: &Value| m["role"].as_str().map(str::to_string);
    ensure!(messages.len() == 7 && messages.iter().filter_map(role).take(3).eq(["system", "user", "assistant"]), "{row}");
    // The n-th turn is row n, asked after all that was said before it.
    let asked: Vec<Value> = [2, 4, 6].map(|n| json!({ "prompt": messages[..n] })).to_vec();
    let wanted = generated(&model, &asked, dir.path())?;
    let answers: Vec<&str> = [2, 4, 6].map(|n| messages[n]["content"].as_str().unwrap_or("?")).to_vec();
    ensure!(answers == wanted, "{answers:?} against {wanted:?}");
    ensure!(said.out == wanted.iter().flat_map(|text| [text.as_str(), "\n"]).collect::<String>(), "{:?}", said.out);
    // What was saved is a row that trains.
    let call = ple("sft --dry_run").key("model_name_or_path", &model).key("dataset_name", &saved);
    ensure!(call.succeed()?.out.starts_with("1 steps"), "the saved row does not train");
    // Begun anew, the second answer is that of a first turn with its own random numbers.
    let again = chat(&model).fed("Once upon a time\n/reset\nThe dog ran.\n/system Be brief.\nThe dog ran.\n")?;
    let ask = |text: &str| json!([{ "role": "user", "content": text }]);
    let brief = json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "The dog ran." }]);
    let rows =
        [json!({ "prompt": ask("Once upon a time") }), json!({ "prompt": ask("The dog ran.") }), json!({ "prompt": brief })];
    let wanted = generated(&model, &rows, dir.path())?;
    ensure!(again.out == wanted.iter().flat_map(|text| [text.as_str(), "\n"]).collect::<String>(), "{:?}", again.out);
    Ok(())
}

#[test]
fn without_a_template_texts_go_on() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let saved = dir.path().join("talk.jsonl");
    let said = chat(&data.model).fed(format!("Once upon\nA dog\n/save {0}\n/save {0}\n", saved.display()))?;
    let wanted = generated(&data.model, &[json!({ "prompt": "Once upon" }), json!({ "prompt": "A dog" })], dir.path())?;
    ensure!(said.out == wanted.iter().flat_map(|text| [text.as_str(), "\n"]).collect::<String>(), "{:?}", said.out);
    let rows = objects(&saved)?;
    ensure!(rows.len() == 4 && rows[1] == json!({ "prompt": "A dog", "completion": wanted[1] }), "{rows:?}");
    let said = chat(&data.model).and("--dry_run").succeed()?;
    ensure!(said.out.starts_with("512 positions; "), "{}", said.out);
    Ok(())
}

#[test]
fn what_cannot_be_is_an_error_in_a_pipe() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let model = with_template(&data.model, dir.path(), TEMPLATE)?;
    let long = "word ".repeat(600);
    let absent = format!("/save {}\n", dir.path().join("absent/talk.jsonl").display());
    for (input, code, words) in [
        ("/nothing\n".as_bytes(), 3, "standard input: wanted /reset, /system TEXT, /save FILE, /help or /quit, got \"/nothing\""),
        (b"/save\n", 3, "/save: wanted a file"),
        (b"a\xff\n", 3, "standard input: wanted UTF-8"),
        (long.as_bytes(), 3, "leaves an answer no room in 512 positions"),
        (absent.as_bytes(), 3, "absent/talk.jsonl"),
    ] {
        let said = chat(&model).over(input)?;
        ensure!(said.code == code && said.err.contains(words), "{words}: {} {}", said.code, said.err);
    }
    let said = chat(&data.model).over("/system x\n")?;
    ensure!(said.code == 2 && said.err.contains("a model with a chat template"), "{} {}", said.code, said.err);
    chat(&data.model).and("--system x").refuse(2, &["system: wanted a model with a chat template"])?;
    ple("chat").refuse(2, &["model_name_or_path: wanted the folder of a model"])?;
    let raising = with_template(&data.model, &dir.path().join("other"), "{{ raise_exception('no talk') }}")?;
    let said = chat(&raising).over("hi\n")?;
    ensure!(said.code == 3 && said.err.contains("chat_template.jinja: chat template: line 1: no talk"), "{}", said.err);
    Ok(())
}

/// A signal at the prompt ends the program; one during an answer breaks off the answer alone.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_breaks_the_answer_off() -> Result<()> {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Command, Stdio};
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let model = slow(&data.model, dir.path())?;
    let mut child = Command::new(env!("CARGO_BIN_EXE_ple-tested"))
        .args(["chat", "--max_completion_length", "440", "--threads", "1", "--model_name_or_path"])
        .arg(&model)
        .env("PLE_SIMD", "portable")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (mut input, mut output) = (child.stdin.take().context("input")?, BufReader::new(child.stdout.take().context("output")?));
    let signal = |child: &std::process::Child| Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status();
    input.write_all(b"Once upon a time\n")?;
    let mut begun = [0; 8];
    output.read_exact(&mut begun)?;
    ensure!(signal(&child)?.success(), "no signal");
    let mut broken = String::new();
    output.read_line(&mut broken)?;
    let saved = dir.path().join("talk.jsonl");
    input.write_all(format!("/save {}\n/quit\n", saved.display()).as_bytes())?;
    let ended = child.wait_with_output()?;
    ensure!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    let row = &objects(&saved)?[0];
    let answer = row["messages"][1]["content"].as_str().context("an answer")?;
    let said = [String::from_utf8_lossy(&begun).into_owned(), broken].concat();
    ensure!(said.starts_with(answer) || answer.starts_with(said.trim_end_matches('\n')), "{answer:?} {said:?}");
    // A whole answer has a token for each of 440, most of them letters.
    let tokens = model::Tokenizer::open(&model)?.encode(answer, false)?.len();
    ensure!(tokens < 400, "{tokens} tokens: it was not broken off");
    Ok(())
}

/// A folder of random weights with that tokenizer and a template, large enough that an answer takes seconds, without an end token.
#[cfg(target_os = "linux")]
fn slow(from: &Path, dir: &Path) -> Result<std::path::PathBuf> {
    let seed = with_template(from, dir, TEMPLATE)?;
    let edit = |name: &str, change: &dyn Fn(&mut Value)| -> Result<()> {
        let mut file: Value = serde_json::from_slice(&std::fs::read(seed.join(name))?)?;
        change(&mut file);
        Ok(std::fs::write(seed.join(name), file.to_string())?)
    };
    edit("config.json", &|file| {
        for (key, n) in [("hidden_size", 256), ("intermediate_size", 704), ("num_hidden_layers", 6), ("num_attention_heads", 4)] {
            file[key] = json!(n);
        }
        (file["num_key_value_heads"], file["head_dim"], file["eos_token_id"]) = (json!(4), json!(64), Value::Null);
    })?;
    edit("generation_config.json", &|file| file["eos_token_id"] = Value::Null)?;
    edit("tokenizer_config.json", &|file| file["eos_token"] = Value::Null)?;
    let (rows, out) = (dir.join("one.jsonl"), dir.join("slow"));
    std::fs::write(&rows, json!({ "text": "Once upon a time" }).to_string())?;
    let call = ple("sft --tune full --report_to none").key("init_from_config", &seed).key("dataset_name", &rows);
    call.key("output_dir", &out).succeed()?;
    Ok(out)
}
