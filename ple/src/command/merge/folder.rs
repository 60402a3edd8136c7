//! The folder of a merge: filled under a name of its own, then renamed; what goes along from the base.

use crate::{Error, Result};
use model::merge::Merged;
use runtime::{DType, host};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Endings of files that hold weights in some form; those of the base would not be the result's.
const WEIGHTS: [&str; 12] = ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "ggml", "h5", "msgpack", "onnx", "npz", "tflite"];
/// Files that speak of an adapter or of another merge.
const OTHERS: [&str; 3] = ["adapter_config.json", "base.json", super::NAME];

fn failed(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| runtime::Error::File { path, action, source }.into()
}

/// Fills a new folder beside `output` and gives it that name. `output` must not be there, or be empty. On any error nothing is left; what a
/// kill leaves is removed by the next merge to the same name.
pub fn place<T>(output: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let there = output.symlink_metadata().is_ok();
    let empty = || fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
    if there && !empty() {
        return Err(Error::Usage(format!("output_dir: wanted a folder that is not there or is empty, got {}", output.display())));
    }
    let name = output
        .file_name()
        .ok_or_else(|| Error::Usage(format!("output_dir: wanted a path that ends in a name, got {}", output.display())))?;
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).map_or(PathBuf::from("."), Path::to_path_buf);
    crate::checkpoint::create_folder(&parent)?;
    let new = parent.join(format!(".{}.merging", name.to_string_lossy()));
    if new.exists() {
        fs::remove_dir_all(&new).map_err(failed(&new, "remove"))?;
    }
    fs::create_dir(&new).map_err(failed(&new, "create"))?;
    let outcome = fill(&new).and_then(|value| {
        sync(&new)?;
        if there {
            fs::remove_dir(output).map_err(failed(output, "replace"))?;
        }
        fs::rename(&new, output).map_err(failed(&new, "rename"))?;
        sync(&parent)?;
        Ok(value)
    });
    if outcome.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&new);
    }
    outcome
}

fn sync(folder: &Path) -> Result<()> {
    fs::File::open(folder).and_then(|f| f.sync_all()).map_err(failed(folder, "sync"))
}

/// Copies what lies beside the base's weights, byte for byte but for what the merge changed in config.json, and returns what was left:
/// weights in other forms, and folders. Hidden files stay where they are.
pub fn copy(base: &Path, new: &Path, merged: &Merged, dtype: Option<DType>) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let entries = fs::read_dir(base).and_then(|all| all.collect::<std::io::Result<Vec<_>>>()).map_err(failed(base, "list"))?;
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if name.starts_with('.') || merged.files.contains(&name) || name == "model.safetensors.index.json" {
            continue;
        }
        if path.is_dir() || WEIGHTS.contains(&ending.as_str()) || name.ends_with(".index.json") || OTHERS.contains(&name.as_str())
        {
            left.push(name);
        } else if name == "config.json" {
            let text = configuration(&path, merged, dtype)?;
            host::write_file(&new.join(name), |out| out.write_all(text.as_bytes()))?;
        } else {
            let mut from = fs::File::open(&path).map_err(failed(&path, "open"))?;
            host::write_file(&new.join(name), |out| std::io::copy(&mut from, out).map(drop))?;
        }
    }
    Ok(left)
}

/// The base's config.json, to the byte unless the merge changed what it says.
fn configuration(path: &Path, merged: &Merged, dtype: Option<DType>) -> Result<String> {
    let text = fs::read_to_string(path).map_err(failed(path, "read"))?;
    let mut map: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not valid JSON: {e}")))?;
    let before = map.clone();
    if merged.untied {
        map.insert("tie_word_embeddings".into(), json!(false));
    }
    if merged.headed {
        let named = map.get("architectures").and_then(|a| a[0].as_str()).unwrap_or("LlamaForCausalLM").to_string();
        map.insert("architectures".into(), json!([named.replace("ForCausalLM", "ForSequenceClassification")]));
        map.insert("id2label".into(), json!({"0": "LABEL_0"}));
        map.insert("label2id".into(), json!({"LABEL_0": 0}));
    }
    if let Some(dtype) = dtype {
        let key = if map.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        let name = match dtype {
            DType::Bf16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        };
        map.insert(key.into(), json!(name));
    }
    Ok(if map == before { text } else { format!("{:#}\n", Value::Object(map)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_whole_or_absent() -> Result<()> {
        let io = |e: std::io::Error| Error::Usage(e.to_string());
        let dir = tempfile::tempdir().map_err(io)?;
        let (output, hidden) = (dir.path().join("a/out"), dir.path().join("a/.out.merging"));
        let put = |new: &Path| fs::write(new.join("file"), "x").map_err(io);
        let broken = place(&output, |new| put(new).and(Err::<(), _>(Error::Numeric("no".into()))));
        assert!(broken.is_err() && !output.exists() && !hidden.exists());
        // A killed merge's remains are no obstacle, nor is an empty folder.
        fs::create_dir_all(hidden.join("deep")).and_then(|()| fs::create_dir_all(&output)).map_err(io)?;
        place(&output, put)?;
        assert!(output.join("file").exists() && !hidden.exists());
        let again = place(&output, put).map_err(|e| (e.exit_code(), e.to_string()));
        assert!(
            again.is_err_and(
                |(code, text)| code == 2 && text.contains("output_dir: wanted a folder that is not there or is empty")
            )
        );
        Ok(())
    }

    #[test]
    fn a_configuration_changes_only_in_what_the_merge_changed() -> Result<()> {
        let io = |e: std::io::Error| Error::Usage(e.to_string());
        let dir = tempfile::tempdir().map_err(io)?;
        let path = dir.path().join("config.json");
        let text = "{\"architectures\": [\"LlamaForCausalLM\"],\n\"torch_dtype\":\"bfloat16\", \"rms_norm_eps\": 1e-05}";
        fs::write(&path, text).map_err(io)?;
        let plain = Merged::default();
        assert_eq!(configuration(&path, &plain, None)?, text);
        assert_eq!(configuration(&path, &plain, Some(DType::Bf16))?, text);
        let read = |merged: &Merged, dtype| -> Result<Value> {
            serde_json::from_str(&configuration(&path, merged, dtype)?).map_err(|e| Error::Usage(e.to_string()))
        };
        assert_eq!(read(&plain, Some(DType::F32))?["torch_dtype"], "float32");
        assert_eq!(read(&Merged { untied: true, ..Merged::default() }, None)?["tie_word_embeddings"], false);
        let headed = read(&Merged { headed: true, ..Merged::default() }, None)?;
        assert_eq!(
            (&headed["architectures"][0], &headed["id2label"]["0"]),
            (&json!("LlamaForSequenceClassification"), &json!("LABEL_0"))
        );
        Ok(())
    }
}
