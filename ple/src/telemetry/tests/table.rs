//! The table: its columns, where it is cut, what pandas makes of it.

use super::*;

#[test]
fn the_table_grows_and_is_cut_back() {
    let folder = tempfile::tempdir().unwrap();
    let marks = stopped_and_resumed(folder.path());
    let text = std::fs::read_to_string(folder.path().join(METRICS)).unwrap();
    let wanted = "loss,\"rewards/a,b/mean\",ple/tau,step,epoch,eval_loss,late,reward,kind\n\
        4.0,0.5,,1,0.25\n3.0,0.5,,2,0.25\n,,,2,,2.5\n2.0,0.5,,3,0.25,,\n,,,,,,,1,x\n";
    assert_eq!(text, wanted);
    let header = text.lines().next().unwrap().len() as u64 + 1;
    assert_eq!(marks[1] + header, text.len() as u64);
    assert_eq!(&text[header as usize..(header + marks[0]) as usize], "4.0,0.5,,1,0.25\n3.0,0.5,,2,0.25\n,,,2,,2.5\n");
}

#[test]
fn pandas_reads_the_table() {
    let folder = tempfile::tempdir().unwrap();
    stopped_and_resumed(folder.path());
    let script = "import sys, pandas\nt = pandas.read_csv(sys.argv[1])\n\
        print(t.shape, t['loss'].tolist(), t['step'].count(), t['eval_loss'].dropna().tolist(), t['kind'].iloc[-1], sep='|')";
    let Some(said) = python("pandas", script, &folder.path().join(METRICS)) else { return };
    assert_eq!(said.trim(), "(5, 9)|[4.0, 3.0, nan, 2.0, nan]|4|[2.5]|x");
}

#[test]
fn a_table_cannot_go_on_where_no_row_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.csv");
    let resume = |text: &str, rows| {
        std::fs::write(&path, text).unwrap();
        Metrics::resume(&path, rows).map_err(|e| (e.exit_code(), e.to_string()))
    };
    assert!(resume("\"a\"\"\n,b\",c\n1,2\n3,4\n", 4).is_ok());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "\"a\"\"\n,b\",c\n1,2\n");
    for (text, rows, said) in [
        ("a\n1\n2\n", 3, "m.csv: wanted whole rows of 3 bytes to go on after, got 4 bytes of rows"),
        ("a\n1\n", 4, "got 2 bytes"),
        ("a\n1\n", u64::MAX, "got 2 bytes"),
        ("a\n", 1, "got 0 bytes"),
        ("a", 1, "line 1: wanted names of columns"),
        ("", 1, "line 1"),
        ("\"a\n1\n", 1, "line 1"),
    ] {
        let (code, error) = resume(text, rows).unwrap_err();
        assert!(code == 3 && error.contains(said), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    std::fs::remove_file(&path).unwrap();
    assert!(Metrics::resume(&path, 4).is_err_and(|e| e.exit_code() == 3));
    assert_eq!(Metrics::resume(&path, 0).unwrap().bytes(), 0);
}

#[test]
fn names_with_quotes_and_line_ends_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.csv");
    let mut table = Metrics::create(&path).unwrap();
    table.row(&row(json!({"a \"b\"": 1, "c\nd": [1, 2], "é,": true}))).unwrap();
    let rows = table.bytes();
    drop(table);
    let mut again = Metrics::resume(&path, rows).unwrap();
    again.row(&row(json!({"é,": false, "c\nd": 3}))).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, "\"a \"\"b\"\"\",\"c\nd\",\"é,\"\n1,\"[1,2]\",true\n,3,false\n");
}

#[test]
fn mutated_tables_and_states_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let marks = stopped_and_resumed(folder.path());
    let (table, state) = (folder.path().join(METRICS), folder.path().join(trainer_state::NAME));
    let (rows, text) = (std::fs::read(&table).unwrap(), std::fs::read(&state).unwrap());
    let mut random = crate::data::tests::Random::new(4);
    let mut refused = [0, 0];
    for _ in 0..300 {
        std::fs::write(&table, random.mutate(&rows)).unwrap();
        std::fs::write(&state, random.mutate(&text)).unwrap();
        refused[0] += u32::from(Metrics::resume(&table, marks[0]).is_err());
        refused[1] += u32::from(TrainerState::read(folder.path()).is_err());
    }
    assert!(refused[0] > 30 && refused[1] > 60, "{refused:?}");
}
