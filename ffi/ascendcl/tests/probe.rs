//! `probe` against a small library that is compiled here.

use ple_ascendcl::{Error, Probe, candidates, probe};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Probes files that are the stand-in, no library, or not there.
fn probe_at(candidates: &[PathBuf]) -> Result<Probe, Error> {
    // SAFETY: the stand-in has AscendCL's declarations; nothing else that is passed here loads.
    unsafe { ple_ascendcl::probe_at(candidates) }
}

/// Compiles the stand-in with macros into `folder`; None, said aloud, without a C compiler.
fn library(folder: &Path, macros: &[&str]) -> Option<PathBuf> {
    let out = folder.join("libascendcl.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ascendcl.c");
    let mut command = Command::new("gcc");
    command.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(&out).arg(source).args(macros);
    match command.status() {
        Ok(status) => assert!(status.success(), "{command:?}: {status}"),
        Err(e) => {
            eprintln!("skip: AscendCL stand-in: gcc: {e}");
            return None;
        }
    }
    Some(out)
}

#[test]
fn a_library_tells_version_devices_and_soc_and_can_be_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = library(folder.path(), &[]) else { return };
    let want = Probe { path: path.clone(), version: "1.14.0".into(), devices: 2, soc: Some("Ascend910B3".into()) };
    let missing = folder.path().join("libacl_rt.so");
    assert_eq!(probe_at(&[missing.clone(), path.clone()]).unwrap(), want);
    assert_eq!(probe_at(&[path, missing]).unwrap(), want, "the first probe must have finalised");
}

#[test]
fn an_unknown_soc_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = library(folder.path(), &["-DSOC=NULL"]) else { return };
    assert_eq!(probe_at(&[path]).unwrap().soc, None);
}

#[test]
fn an_old_library_is_named_with_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = library(folder.path(), &["-DWITHOUT_COUNT"]) else { return };
    let error = probe_at(std::slice::from_ref(&path)).unwrap_err();
    assert!(matches!(&error, Error::Symbol { path: p, symbol: "aclrtGetDeviceCount" } if *p == path), "{error}");
}

#[test]
fn vendor_codes_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = library(folder.path(), &["-DINIT=500004"]) else { return };
    let error = probe_at(&[path]).unwrap_err();
    assert!(matches!(error, Error::Call { call: "aclInit", code: 500004, .. }), "{error}");
    assert!(error.to_string().ends_with("code 500004 (DRV_FAILURE): E10000: the driver is not installed"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let Some(path) = library(folder.path(), &["-DCOUNT=507999"]) else { return };
    let error = probe_at(&[path]).unwrap_err();
    assert!(matches!(error, Error::Call { call: "aclrtGetDeviceCount", code: 507999, .. }), "{error}");
    assert!(error.to_string().ends_with("code 507999: no message"), "{error}");
}

#[test]
fn a_file_that_is_no_library_is_said_to_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libascendcl.so");
    std::fs::write(&path, "not a library").unwrap();
    let error = probe_at(&[folder.path().join("libacl_rt.so"), path.clone()]).unwrap_err();
    assert!(matches!(&error, Error::Load { path: p, text } if *p == path && !text.is_empty()), "{error}");
}

#[test]
fn every_place_is_tried_in_order_and_named() {
    let set = |name: &str| match name {
        "ASCEND_HOME_PATH" => Some(OsString::from("/opt/cann")),
        _ => Some(OsString::new()),
    };
    let places: Vec<String> = candidates(set).iter().map(|p| p.display().to_string()).collect();
    assert_eq!(
        places,
        [
            "libacl_rt.so",
            "libascendcl.so",
            "/opt/cann/lib64/libacl_rt.so",
            "/opt/cann/lib64/libascendcl.so",
            "/usr/local/Ascend/ascend-toolkit/latest/lib64/libacl_rt.so",
            "/usr/local/Ascend/ascend-toolkit/latest/lib64/libascendcl.so",
            "/usr/local/Ascend/cann/lib64/libacl_rt.so",
            "/usr/local/Ascend/cann/lib64/libascendcl.so",
        ]
    );
    let folder = tempfile::tempdir().unwrap();
    let nowhere: Vec<PathBuf> = ["a.so", "b.so"].iter().map(|name| folder.path().join(name)).collect();
    match probe_at(&nowhere).unwrap_err() {
        Error::NotFound { tried } => assert_eq!(tried, nowhere.iter().map(|p| p.display().to_string()).collect::<Vec<_>>()),
        other => panic!("{other}"),
    }
    match probe_at(&[PathBuf::from("libple_no_such_library.so")]).unwrap_err() {
        Error::NotFound { tried } => assert_eq!(tried, ["libple_no_such_library.so"]),
        other => panic!("{other}"),
    }
}

#[test]
fn this_machine_answers_without_a_panic() {
    match probe() {
        Ok(found) => assert!(found.path.is_file(), "{found:?}"),
        Err(Error::NotFound { tried }) => assert!(tried.len() >= 6, "{tried:?}"),
        Err(other) => eprintln!("AscendCL on this machine: {other}"),
    }
}
