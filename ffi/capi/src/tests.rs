use super::*;
use std::path::PathBuf;

fn last_error() -> String {
    // SAFETY: the text is valid until this thread's next call.
    unsafe { CStr::from_ptr(ple_last_error()) }.to_str().unwrap().to_string()
}

#[test]
fn a_panic_is_a_status_and_its_text() {
    assert_eq!(boundary(|| panic!("row {}", 3)), BUG);
    assert_eq!(last_error(), "a fault of PLE: row 3");
    assert_eq!(boundary(|| usage("a\0b")), 2);
    assert_eq!(last_error(), "a b");
    std::thread::spawn(|| assert_eq!(last_error(), "", "texts belong to threads")).join().unwrap();
    assert_eq!((boundary(|| Ok(())), last_error().as_str()), (OK, ""));
}

#[test]
fn a_model_that_met_a_panic_can_only_be_closed() {
    let root = std::env::var("PLE_SHARED").unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared").into());
    let folder = PathBuf::from(root).join("data/models/stories260k");
    if !folder.exists() {
        let required = std::env::var("PLE_REQUIRE").is_ok_and(|v| v.split(',').any(|what| what == "shared"));
        assert!(!required, "{} is absent, and PLE_REQUIRE asks for it", folder.display());
        eprintln!("skip: {} is absent (set PLE_SHARED)", folder.display());
        return;
    }
    let folder = CString::new(folder.to_str().unwrap()).unwrap();
    let (mut model, mut out) = (std::ptr::null_mut(), [7.0f32]);
    // SAFETY: C strings, a pointer of this frame, an open model, arrays with their lengths; closed last.
    unsafe {
        assert_eq!(ple_model_open(folder.as_ptr(), std::ptr::null(), 1, &mut model), OK, "{}", last_error());
        assert_eq!(ple_logprob(model, [1].as_ptr(), 1, [2].as_ptr(), 1, out.as_mut_ptr()), OK, "{}", last_error());
        assert!(out[0] < 0.0, "{out:?}");
        assert_eq!(locked(model, |_| panic!("in the middle")), BUG);
        out = [7.0];
        assert_eq!(ple_logprob(model, [1].as_ptr(), 1, [2].as_ptr(), 1, out.as_mut_ptr()), BUG);
        assert_eq!((last_error().contains("close it"), out), (true, [7.0]));
        assert_eq!(ple_model_adapter(model, std::ptr::null()), BUG);
        ple_model_close(model);
    }
}
