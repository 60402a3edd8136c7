use super::*;

/// A machine with nothing to mend.
fn healthy() -> Report {
    let absent = |name: &str| Library { name: name.into(), tried: vec![format!("{name}.so")], ..Library::default() };
    Report {
        version: "0.1.0",
        system: "linux x86_64".into(),
        device: Device { name: "cpu".into(), model: "a processor".into(), arch: "avx2".into(), memory: 8 << 30, cores: 2 },
        simd: Simd {
            used: Some("avx2".into()),
            available: vec!["portable".into(), "avx2".into()],
            features: vec!["fma", "avx2"],
            forced: None,
        },
        processors: 2,
        cores: Some(1),
        caches: vec![
            Cache { level: 1, kind: "Data".into(), bytes: 48 << 10, shared_by: "0".into() },
            Cache { level: 2, kind: "Unified".into(), bytes: 2 << 20, shared_by: "0-1".into() },
        ],
        memory: Memory { total: 8 << 30, available: 4 << 30, limit: None },
        open_files: Some(OpenFiles { soft: Some(1024), hard: None }),
        limits: vec![Limit { name: "processes", soft: 5000, hard: None }],
        disk: Some(Disk { path: "/home/a".into(), free: 3 << 30, total: 9 << 30, read_only: false }),
        variables: vec![Variable { name: "PLE_LONG".into(), value: "1".into(), effect: Some("long tests") }],
        libraries: vec![absent("libcuda"), absent("libnvrtc"), absent("AscendCL")],
        model_cache: Folder { path: "/home/a/.cache/huggingface/hub".into(), present: false, variable: None },
        shared: None,
        findings: Vec::new(),
    }
}

/// The findings of a healthy machine after one change.
fn after(change: impl FnOnce(&mut Report)) -> Vec<Finding> {
    let mut report = healthy();
    change(&mut report);
    findings::of(&report)
}

fn found(version: &str) -> impl Fn(&mut Library) {
    move |library| {
        library.path = Some(format!("/lib/{}.so", library.name));
        library.version = Some(version.to_string());
    }
}

#[test]
fn a_healthy_machine_has_no_findings() {
    assert_eq!(after(|_| {}), []);
    let text = healthy().to_string();
    assert!(text.contains("libcuda      not found; tried libcuda.so\n"), "{text}");
    assert!(text.contains("open files   1024 (at most unlimited)\n"), "{text}");
    assert!(text.contains("memory       4.0 GiB of 8.0 GiB available\n"), "{text}");
    for line in [
        "features     fma, avx2\n",
        "threads      2 on 2 processors, 1 cores\n",
        "caches       L1d 48 KiB, L2 2048 KiB\n",
        "limits       processes 5000 (at most unlimited)\n",
        "disk         3.0 GiB of 9.0 GiB free in /home/a\n",
        "variables    PLE_LONG=1\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    assert!(text.ends_with("findings     none\n"), "{text}");
}

#[test]
fn each_fault_is_one_finding_with_its_fix() {
    type Change = fn(&mut Report);
    let limit = |name, soft, hard| vec![Limit { name, soft, hard }];
    let limited: [(&'static str, u64, Option<u64>, &str, &str); 6] = [
        ("cpu time", 60, None, "ends this process after 60 s", "ulimit -t unlimited"),
        ("file size", 5 << 20, Some(7 << 20), "grow to 5120 KiB", "ulimit -f 7168"),
        ("address space", 5 << 20, None, "address space is limited to 5 MiB", "ulimit -v unlimited"),
        ("data size", 5 << 20, Some(5 << 20), "data size is limited to 5 MiB", "administrator"),
        ("processes", 20, Some(30), "20 processes and threads", "ulimit -u 30"),
        ("address space", 9 << 40, None, "", ""),
    ];
    for (name, soft, hard, what, fix) in limited {
        let list = after(|r| r.limits = limit(name, soft, hard));
        assert_eq!(list.len(), usize::from(!what.is_empty()), "{name}: {list:?}");
        assert!(list.iter().all(|f| f.what.contains(what) && f.fix.contains(fix)), "{name}: {list:?}");
    }
    let cases: [(Change, &str, &str); 12] = [
        (|r| r.simd.used = Some("portable".into()), "portable is used, this machine has avx2", "unset PLE_SIMD"),
        (|r| (r.simd.used, r.simd.available) = (Some("portable".into()), vec!["portable".into()]), "no AVX2", "processor"),
        (|r| r.device.cores = 8, "8 threads share 2 processors", "--threads 2"),
        (|r| r.memory.available = 100 << 20, "100 MiB of memory", "smaller model"),
        (|r| r.memory.limit = Some(512 << 20), "may use 512 MiB", "raise the container's memory limit"),
        (|r| r.open_files = Some(OpenFiles { soft: Some(64), hard: None }), "64 files", "ulimit -n 1024"),
        (|r| r.disk.as_mut().unwrap().free = 50 << 20, "50 MiB are free in /home/a", "another disk"),
        (|r| r.disk.as_mut().unwrap().read_only = true, "/home/a is read-only", "can be written"),
        (
            |r| r.variables.push(Variable { name: "PLE_SMID".into(), value: "x".into(), effect: None }),
            "PLE_SMID is set and nothing reads it",
            "PLE_SIMD",
        ),
        (|r| r.model_cache.variable = Some("HF_HOME"), "HF_HOME leads to /home/a", "unset HF_HOME"),
        (
            |r| r.shared = Some(folder("/no/such/folder".into(), Some("PLE_SHARED"))),
            "PLE_SHARED leads to /no/such/folder",
            "unset PLE_SHARED",
        ),
        (
            |r| r.libraries[2].note = Some("aclInit failed with code 500004".into()),
            "AscendCL: aclInit failed with code 500004",
            "set_env.sh",
        ),
    ];
    for (change, what, fix) in cases {
        let list = after(change);
        assert_eq!(list.len(), 1, "{what}: {list:?}");
        assert!(list[0].what.contains(what) && list[0].fix.contains(fix), "{what}: {list:?}");
    }
}

#[test]
fn cuda_findings_compare_compiler_and_driver() {
    let with = |driver: &'static str, compiler: &'static str| {
        after(move |r| {
            found(driver)(&mut r.libraries[0]);
            found(compiler)(&mut r.libraries[1]);
        })
    };
    assert_eq!(with("13.0", "12.9").len(), 1, "only that the driver is not used");
    assert_eq!(with("13.0", "13.0").len(), 1);
    let list = with("12.8", "13.0");
    assert_eq!(list[0].what, "the compiler is of CUDA 13.0, the driver serves up to 12.8");
    let list = after(|r| {
        found("13.0")(&mut r.libraries[1]);
        r.libraries[1].note = Some("found outside the loader's search path".into());
    });
    assert_eq!(list.iter().map(|f| f.fix.as_str()).collect::<Vec<_>>(), ["add /lib to LD_LIBRARY_PATH"]);
}

#[test]
fn the_system_files_are_read_as_linux_writes_them() {
    let limits = system::limits("Limit  Soft  Hard\nMax open files            1024                 unlimited            files\n");
    assert_eq!(limits, Some(OpenFiles { soft: Some(1024), hard: None }));
    assert_eq!(system::limits("Max open files  many\n"), None);
    assert_eq!(system::limits(""), None);
    assert_eq!(system::field("MemTotal:        2 kB\nMemAvailable:    1 kB\n", "MemAvailable:"), 1024);
    assert_eq!(system::field("MemTotal: two kB", "MemTotal:"), 0);
}

#[test]
fn the_host_is_read_as_linux_tells_it() {
    let cpuinfo = "processor : 0\nflags\t\t: fpu fma avx2 amx_bf16 avx\nprocessor : 1\nflags : sve\n";
    assert_eq!(host::features(cpuinfo), ["avx", "fma", "avx2", "amx_bf16"]);
    assert_eq!(host::features("Features\t: fp asimd sve\n"), ["asimd", "sve"]);
    assert!(host::features("").is_empty());
    let text = "Limit  Soft  Hard  Units\nMax cpu time              unlimited   unlimited   seconds\n\
        Max file size             1024                 unlimited            bytes\n\
        Max processes             10                   20                   processes\n";
    let wanted = [Limit { name: "file size", soft: 1024, hard: None }, Limit { name: "processes", soft: 10, hard: Some(20) }];
    assert_eq!(host::limits(text), wanted);
    let set = [("PLE_X", "1"), ("HOME", "/"), ("PLE_SIMD", "avx2")].map(|(n, v)| (n.to_string(), v.to_string()));
    let found = host::variables(set.into_iter());
    assert_eq!(
        found.iter().map(|v| (v.name.as_str(), v.effect.is_some())).collect::<Vec<_>>(),
        [("PLE_SIMD", true), ("PLE_X", false)]
    );
    let folder = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for (cpu, core) in [("cpu0", "0\n"), ("cpu1", "0\n"), ("cpu2", "1\n")] {
        put(&format!("{cpu}/topology/core_id"), core);
        put(&format!("{cpu}/topology/physical_package_id"), "0\n");
    }
    for (index, level, kind, size) in [("0", "2", "Unified", "2M"), ("1", "1", "Data", "48K"), ("2", "1", "Instruction", "much")]
    {
        for (file, text) in [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", "0-1")] {
            put(&format!("cpu0/cache/index{index}/{file}"), text);
        }
    }
    assert_eq!(host::cores(folder.path()), Some(2));
    let found = host::caches(&folder.path().join("cpu0"));
    assert_eq!(found.iter().map(|c| (c.level, c.bytes)).collect::<Vec<_>>(), [(1, 48 << 10), (2, 2 << 20)]);
    assert_eq!((host::cores(Path::new("/no/such")), host::caches(Path::new("/no/such")).len()), (None, 0));
    let disk = host::disk(folder.path()).unwrap();
    assert!(disk.free > 0 && disk.free <= disk.total && !disk.read_only, "{disk:?}");
    assert_eq!(host::disk(Path::new("/no/such")), None);
}

#[test]
fn the_model_cache_follows_the_variables_in_order() {
    let at = |set: &'static [(&str, &str)]| {
        let cache = model_cache(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v)));
        (cache.path, cache.variable)
    };
    assert_eq!(at(&[("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("HOME", "/h")]), ("/a".into(), Some("HF_HUB_CACHE")));
    assert_eq!(at(&[("HF_HOME", "/b"), ("HOME", "/h")]), ("/b/hub".into(), Some("HF_HOME")));
    assert_eq!(at(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/h")]), ("/c/huggingface/hub".into(), None));
    assert_eq!(at(&[("HOME", "/h")]), ("/h/.cache/huggingface/hub".into(), None));
    assert_eq!(at(&[]), (".cache/huggingface/hub".into(), None));
}

#[test]
fn this_machine_is_reported_as_text_and_as_json() {
    let isa = Isa::detect();
    let report = report(&Stream::cpu(2, isa));
    assert_eq!((report.device.name.as_str(), report.device.cores), ("cpu", 2));
    assert_eq!(report.simd.used, Some(isa.to_string()));
    assert_eq!(report.libraries.len(), 5);
    let json = report.json();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&format!("{json:#}")).unwrap(), json);
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["libraries"][4]["name"], "AscendCL");
    assert_eq!(json["findings"].as_array().unwrap().len(), report.findings.len());
    let text = report.text();
    let facts = 11 + report.libraries.len() + 3;
    assert_eq!(text.lines().count(), facts + 2 * report.findings.len(), "{text}");
    eprintln!("{text}");
}
