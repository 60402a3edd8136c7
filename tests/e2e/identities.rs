//! What an adapter was trained with is checked by whoever uses it: another tokenizer, chat template or set of end ids
//! under the base is refused.

use super::program::{Ple, ple};
use super::{Data, TEMPLATE, with_template};
use anyhow::{Result, ensure};
use serde_json::json;

#[test]
fn another_template_or_tokenizer_is_refused_by_every_command() -> Result<()> {
    let Some(data) = Data::find() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let model = with_template(&data.model, dir.path(), TEMPLATE)?;
    let say = |role: &str, content: &str| json!({ "role": role, "content": content });
    std::fs::write(at("rows.jsonl"), json!({ "messages": [say("user", "Hi."), say("assistant", "Yes.")] }).to_string())?;
    let train = |command: &str, rows: &str, out: &str| {
        let call = ple(command).and("--max_steps 1 --report_to none").key("model_name_or_path", &model);
        call.key("dataset_name", at(rows)).key("output_dir", at(out)).succeed()
    };
    train("sft", "rows.jsonl", "adapter")?;
    let pair =
        json!({ "prompt": [say("user", "Hi.")], "chosen": [say("assistant", "Yes.")], "rejected": [say("assistant", "No.")] });
    std::fs::write(at("pairs.jsonl"), pair.to_string())?;
    train("reward", "pairs.jsonl", "head")?;
    std::fs::write(at("answers.jsonl"), json!({ "prompt": "Hi.", "completion": " Yes." }).to_string())?;
    let on = |call: Ple, rows: &str| {
        call.key("model_name_or_path", &model).key("dataset_name", at(rows)).key("output_file", at("out"))
    };
    let all = |wanted: Option<&str>| -> Result<()> {
        let adapter = at("adapter");
        let sft = ple("sft --dry_run").key("model_name_or_path", &model).key("dataset_name", at("rows.jsonl"));
        let merge = ple("merge --dry_run").key("model_name_or_path", &model).key("output_dir", at("merged"));
        let calls = [
            ("generate", on(ple("generate --max_completion_length 4"), "rows.jsonl").key("adapter", &adapter).end()?),
            ("logprob", on(ple("logprob"), "answers.jsonl").key("adapter", &adapter).end()?),
            ("score", on(ple("score"), "answers.jsonl").key("reward_funcs", format!("adapter:{}", at("head").display())).end()?),
            ("chat", ple("chat").key("model_name_or_path", &model).key("adapter", &adapter).over("")?),
            ("sft", sft.key("adapter", &adapter).end()?),
            ("merge", merge.key("adapter", &adapter).end()?),
        ];
        for (name, said) in calls {
            match wanted {
                None => ensure!(said.code == 0, "{name}: {}{}", said.out, said.err),
                Some(words) => ensure!(said.code == 3 && said.err.contains(words), "{name}: {} {}", said.code, said.err),
            }
        }
        Ok(())
    };
    all(None)?;
    std::fs::write(model.join("chat_template.jinja"), TEMPLATE.replace("assistant: ", "bot: "))?;
    all(Some("base.json: chat_template: wanted the one that the adapter was trained with"))?;
    std::fs::write(model.join("chat_template.jinja"), TEMPLATE)?;
    all(None)?;
    let text = std::fs::read_to_string(model.join("tokenizer.json"))?;
    std::fs::write(model.join("tokenizer.json"), text.clone() + "\n")?;
    all(Some("base.json: tokenizer_sha256: wanted the tokenizer that the adapter was trained with"))?;
    std::fs::write(model.join("tokenizer.json"), text)?;
    all(None)?;
    std::fs::write(model.join("generation_config.json"), json!({ "eos_token_id": [2, 7] }).to_string())?;
    all(Some("base.json: stop_ids: wanted the ids that ended an answer when the adapter was trained, [2], got [2,7]"))
}
