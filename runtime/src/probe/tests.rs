use super::*;
use std::process::Command;

/// A folder that is removed with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("ple-probe-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    /// Compiles C text to a library; None, said aloud, without a C compiler.
    fn library(&self, name: &str, text: &str) -> Option<PathBuf> {
        let (source, out) = (self.0.join(format!("{name}.c")), self.0.join(name));
        std::fs::write(&source, text).unwrap();
        match Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&out).arg(&source).status() {
            Ok(status) => assert!(status.success(), "{status}"),
            Err(e) => {
                eprintln!("skip: stand-in for {name}: gcc: {e}");
                return None;
            }
        }
        Some(out)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn find_in(candidates: &[PathBuf], ask: Ask) -> Found {
    // SAFETY: the stand-ins have the declarations that the tests ask for.
    unsafe { find("stand-in", candidates, ask) }
}

#[test]
fn versions_are_read_as_each_vendor_call_writes_them() {
    let folder = Folder::new("versions");
    let cases: [(&str, &str, Ask, &str); 5] = [
        ("libcuda.so.1", "int cuDriverGetVersion(int *v) { *v = 12080; return 0; }", driver, "12.8"),
        ("libnvrtc.so.13", "int nvrtcVersion(int *a, int *b) { *a = 13; *b = 0; return 0; }", nvrtc, "13.0"),
        ("libcublasLt.so.13", "unsigned long cublasLtGetVersion(void) { return 130102; }", cublas_lt, "13.1.2"),
        ("libnccl.so.2", "int ncclGetVersion(int *v) { *v = 22703; return 0; }", nccl, "2.27.3"),
        ("libnccl_old.so.2", "int ncclGetVersion(int *v) { *v = 2804; return 0; }", nccl, "2.8.4"),
    ];
    for (name, text, ask, version) in cases {
        let Some(path) = folder.library(name, text) else { return };
        let found = find_in(&[folder.0.join("absent.so"), path.clone()], ask);
        assert_eq!(found.version.as_deref(), Some(version), "{found:?}");
        assert_eq!(found.path, Some(path), "{found:?}");
        assert_eq!(found.tried.len(), 2, "{found:?}");
        assert_eq!(found.note.as_deref(), Some("found outside the loader's search path"));
    }
}

#[test]
fn a_code_and_a_missing_function_are_noted() {
    let folder = Folder::new("notes");
    let Some(stub) = folder.library("libstub.so.1", "int cuDriverGetVersion(int *v) { return 34; }") else { return };
    let found = find_in(std::slice::from_ref(&stub), driver);
    assert_eq!((found.path, found.version), (Some(stub.clone()), None));
    assert_eq!(found.note.as_deref(), Some("cuDriverGetVersion failed with code 34"));
    for (ask, call) in [(nvrtc as Ask, "nvrtcVersion"), (cublas_lt, "cublasLtGetVersion"), (nccl, "ncclGetVersion")] {
        let found = find_in(std::slice::from_ref(&stub), ask);
        assert_eq!((found.path.as_ref(), found.note), (Some(&stub), Some(format!("has no {call}"))));
    }
}

#[test]
fn a_file_that_is_no_library_is_noted_and_an_absent_one_is_not() {
    let folder = Folder::new("refused");
    let text = folder.0.join("libnccl.so.2");
    std::fs::write(&text, "not a library").unwrap();
    let found = find_in(std::slice::from_ref(&text), nccl);
    assert_eq!(found.path, None);
    assert!(found.note.is_some_and(|n| n.starts_with(&format!("{} cannot be loaded: ", text.display()))));
    for absent in [folder.0.join("absent.so"), PathBuf::from("libple_no_such_library.so")] {
        let found = find_in(&[absent], nccl);
        assert_eq!((found.path, found.version, found.note, found.tried.len()), (None, None, None, 1));
    }
}

#[test]
fn this_machine_answers_in_order_and_with_what_was_tried() {
    let all = libraries();
    assert_eq!(all.iter().map(|f| f.name).collect::<Vec<_>>(), ["libcuda", "libnvrtc", "libcublasLt", "libnccl"]);
    for found in all {
        assert!(!found.tried.is_empty(), "{found:?}");
        assert!(found.path.is_some() || found.version.is_none(), "{found:?}");
    }
}
