//! The C interface from both sides: `examples/embed.c` compiled and run, and the functions called with what C can pass.

use ple::method::Example;
use ple::{logprob, pack};
use ple_capi::{
    BUG, OK, ple_last_error, ple_logprob, ple_model, ple_model_adapter, ple_model_close, ple_model_open, ple_version,
};
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::ptr::{null, null_mut};

const PROMPT: [u32; 4] = [1, 403, 407, 261];
const ANSWER: [u32; 5] = [378, 429, 306, 2, 511];

/// A path of the shared folder (`PLE_SHARED`, default beside the checkout); None, loudly, where it is absent.
fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var("PLE_SHARED").unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared").into());
    let found = PathBuf::from(root).join(path);
    if found.exists() {
        return Some(found);
    }
    let required = std::env::var("PLE_REQUIRE").is_ok_and(|v| v.split(',').any(|what| what == "shared"));
    assert!(!required, "{} is absent, and PLE_REQUIRE asks for it", found.display());
    eprintln!("skip: {} is absent (set PLE_SHARED)", found.display());
    None
}

/// The model and an adapter of it.
fn model() -> Option<(PathBuf, PathBuf)> {
    Some((shared("data/models/stories260k")?, shared("data/adapters/stories260k-imdb-pos-r8")?))
}

/// What the library for Rust gives, on one thread of portable code.
fn expected(folder: &Path, adapter: Option<&Path>, prompt: &[u32], answer: &[u32]) -> Vec<f32> {
    let s = runtime::Stream::cpu(1, runtime::Isa::portable());
    let mut transformer = model::Transformer::load(&s, folder, None).unwrap();
    let slot = adapter.map_or(model::Adapter::Off, |folder| {
        let adapter = model::adapter::Adapter::load(folder, &transformer.modules()).unwrap();
        let lora = model::Lora::upload(&s, transformer.base(), adapter).unwrap();
        transformer.add_slot(lora).unwrap()
    });
    let example = Example { prompt: prompt.to_vec(), answers: vec![answer.to_vec()], ..Example::default() };
    let limits = pack::limits(pack::longest([&example]));
    let mut acts = transformer.acts(&s, limits, model::Keep::Nothing, None).unwrap();
    logprob::score(&s, &transformer, &mut acts, slot, &[&example]).unwrap().remove(0)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn c(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn last_error() -> String {
    // SAFETY: the text is valid until this thread's next call.
    unsafe { CStr::from_ptr(ple_last_error()) }.to_str().unwrap().to_string()
}

fn open(folder: &Path, threads: i32) -> (i32, *mut ple_model) {
    let mut model = null_mut();
    // SAFETY: a C string and a pointer of this frame.
    let status = unsafe { ple_model_open(c(folder).as_ptr(), c"cpu".as_ptr(), threads, &mut model) };
    (status, model)
}

fn score(model: *mut ple_model, prompt: &[u32], answer: &[u32]) -> Result<Vec<f32>, i32> {
    let mut out = vec![7.0; answer.len()];
    // SAFETY: slices with their lengths; the model is open or NULL.
    let status = unsafe { ple_logprob(model, prompt.as_ptr(), prompt.len(), answer.as_ptr(), answer.len(), out.as_mut_ptr()) };
    if status == OK { Ok(out) } else { Err(status) }
}

/// The built libraries, which Cargo leaves beside or above this test; the newest of each kind.
fn library(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let folders = exe.ancestors().skip(1).take(2);
    let age = |path: &PathBuf| path.metadata().and_then(|m| m.modified()).ok();
    let found = folders.map(|folder| folder.join(name)).filter(|path| path.is_file()).max_by_key(age);
    found.unwrap_or_else(|| panic!("{name} is not beside {}", exe.display()))
}

/// Compiles `examples/embed.c` against one of the libraries; None, said aloud, without a C compiler.
fn embed(folder: &Path, name: &str) -> Option<PathBuf> {
    let (out, library, root) = (folder.join(format!("embed-{name}")), library(name), env!("CARGO_MANIFEST_DIR"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I"]).arg(format!("{root}/include"));
    gcc.arg("-o").arg(&out).arg(format!("{root}/examples/embed.c")).arg(&library);
    gcc.arg(format!("-Wl,-rpath,{}", library.parent().unwrap().display())).args(["-lpthread", "-ldl", "-lm"]);
    match gcc.status() {
        Ok(status) => assert!(status.success(), "{gcc:?}: {status}"),
        Err(e) => {
            eprintln!("skip: embed.c: gcc: {e}");
            return None;
        }
    }
    Some(out)
}

fn run(program: &Path, model: &Path, adapter: &Path, prompt: &[u32], answer: &[u32]) -> Output {
    let text = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    Command::new(program).arg(model).arg(adapter).arg(text(prompt)).arg(text(answer)).output().unwrap()
}

fn printed(output: &Output) -> Vec<f32> {
    assert!(output.status.success(), "{output:?}");
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| line.split_once(' ').unwrap().1.parse().unwrap()).collect()
}

#[test]
fn a_c_program_gets_the_bits_of_the_rust_library() {
    let Some((folder, adapter)) = model() else { return };
    let build = tempfile::tempdir().unwrap();
    for name in ["libple_capi.so", "libple_capi.a"] {
        let Some(program) = embed(build.path(), name) else { return };
        let plain = printed(&run(&program, &folder, Path::new("-"), &PROMPT, &ANSWER));
        assert_eq!(bits(&plain), bits(&expected(&folder, None, &PROMPT, &ANSWER)), "{name}");
        let tuned = printed(&run(&program, &folder, &adapter, &PROMPT, &ANSWER));
        assert_eq!(bits(&tuned), bits(&expected(&folder, Some(&adapter), &PROMPT, &ANSWER)), "{name}");
        assert_ne!(bits(&plain), bits(&tuned), "{name}");
        let text = printed(&run(&program, &folder, Path::new("-"), &[], &ANSWER));
        assert!(text[0].is_nan(), "{name}: {text:?}");
        assert_eq!(bits(&text[1..]), bits(&expected(&folder, None, &[], &ANSWER)), "{name}");

        let output = run(&program, Path::new("/no/such/model"), Path::new("-"), &PROMPT, &ANSWER);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{name}: {said}");
        assert!(said.contains("/no/such/model/config.json"), "{name}: {said}");
    }
}

#[test]
fn adapters_come_and_go_and_texts_may_grow() {
    let Some((folder, adapter)) = model() else { return };
    let (status, model) = open(&folder, 2);
    assert_eq!((status, last_error().as_str()), (OK, ""));
    let plain = score(model, &PROMPT, &ANSWER).unwrap();
    // SAFETY: an open model and a C string.
    assert_eq!(unsafe { ple_model_adapter(model, c(&adapter).as_ptr()) }, OK, "{}", last_error());
    let tuned = score(model, &PROMPT, &ANSWER).unwrap();
    assert_eq!(bits(&tuned), bits(&expected(&folder, Some(&adapter), &PROMPT, &ANSWER)));
    // SAFETY: an open model and a C string.
    assert_eq!(unsafe { ple_model_adapter(model, c"/no/such/adapter".as_ptr()) }, 3);
    assert!(last_error().contains("/no/such/adapter"), "{}", last_error());
    assert_eq!(bits(&score(model, &PROMPT, &ANSWER).unwrap()), bits(&tuned), "the active one stays");
    // SAFETY: an open model; NULL switches adapters off.
    assert_eq!(unsafe { ple_model_adapter(model, null()) }, OK);
    let long: Vec<u32> = (0..200).map(|i| 3 + i % 500).collect();
    assert_eq!(bits(&score(model, &PROMPT, &long).unwrap()), bits(&expected(&folder, None, &PROMPT, &long)));
    assert_eq!(bits(&score(model, &PROMPT, &ANSWER).unwrap()), bits(&plain), "shorter after longer");
    // SAFETY: opened above, used no more.
    unsafe { ple_model_close(model) };
}

#[test]
fn threads_may_share_a_model() {
    let Some((folder, _)) = model() else { return };
    let (_, model) = open(&folder, 1);
    let (want, address) = (bits(&expected(&folder, None, &PROMPT, &ANSWER)), model as usize);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert_eq!(bits(&score(address as *mut ple_model, &PROMPT, &ANSWER).unwrap()), want);
                }
            });
        }
    });
    // SAFETY: opened above, used no more.
    unsafe { ple_model_close(model) };
}

#[test]
fn what_cannot_be_meant_is_a_usage_error_that_names_it() {
    // SAFETY: NULL is allowed everywhere and refused by name.
    unsafe {
        assert_eq!(ple_model_open(c"/a".as_ptr(), null(), 0, null_mut()), 2);
        assert_eq!(last_error(), "out is NULL");
        let mut model = std::ptr::dangling_mut();
        assert_eq!(ple_model_open(null(), null(), 0, &mut model), 2);
        assert_eq!((last_error().as_str(), model.is_null()), ("folder is NULL", true));
        assert_eq!(ple_model_open(c"/a".as_ptr(), c"toaster:0".as_ptr(), 0, &mut model), 4);
        assert!(last_error().contains("toaster:0"), "{}", last_error());
        assert_eq!(ple_model_open(c"/a".as_ptr(), null(), -1, &mut model), 2);
        assert_eq!(ple_model_adapter(null_mut(), null()), 2);
        assert_eq!(last_error(), "model is NULL");
        ple_model_close(null_mut());
        assert_eq!(CStr::from_ptr(ple_version()).to_str(), Ok(env!("CARGO_PKG_VERSION")));
    }
    assert_eq!(score(null_mut(), &PROMPT, &ANSWER), Err(2));

    let Some((folder, _)) = model() else { return };
    let (_, model) = open(&folder, 1);
    assert_eq!((score(model, &PROMPT, &[]), score(model, &[], &[1])), (Err(2), Err(2)));
    assert_eq!(score(model, &vec![1; 1 << 20], &ANSWER), Err(2));
    assert!(last_error().contains("positions"), "{}", last_error());
    assert_eq!(score(model, &PROMPT, &[3, 4_000_000_000]), Err(3));
    assert!(last_error().contains("4000000000"), "{}", last_error());
    let mut out = [7.0f32; 1];
    // SAFETY: NULL with a length is refused before it is read or written.
    unsafe {
        assert_eq!(ple_logprob(model, null(), 3, ANSWER.as_ptr(), 1, out.as_mut_ptr()), 2);
        assert_eq!(last_error(), "prompt is no array of 3 ids");
        assert_eq!(ple_logprob(model, PROMPT.as_ptr(), 4, ANSWER.as_ptr(), 1, null_mut()), 2);
        assert_eq!(out, [7.0]);
        assert_eq!(ple_logprob(model, PROMPT.as_ptr(), 4, ANSWER.as_ptr(), 1, out.as_mut_ptr()), OK);
        assert_eq!(last_error(), "");
        ple_model_close(model);
    }
}

#[test]
fn the_header_says_the_exit_codes_of_the_program() {
    use ple::Error;
    let header = include_str!("../include/ple.h");
    let value =
        |name: &str| header.split_once(&format!("{name} = ")).and_then(|(_, rest)| rest.split([',', ' ']).next()?.parse().ok());
    let device = runtime::Error::NoDevice(String::new()).into();
    let cases: [(&str, Error); 4] = [
        ("PLE_USAGE", Error::Usage(String::new())),
        ("PLE_FILE", Error::file(Path::new("a"), "")),
        ("PLE_DEVICE", device),
        ("PLE_NUMERIC", Error::Numeric(String::new())),
    ];
    for (name, error) in cases {
        assert_eq!(value(name), Some(error.exit_code()), "{name}");
    }
    assert_eq!((value("PLE_OK"), value("PLE_BUG")), (Some(OK), Some(BUG)));
}
