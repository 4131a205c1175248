//! Policy files: the shipped set compiles, and every way to break one is reported with its place and its fix.
//! `tests/golden/check/<case>.toml` takes the place of one file of a small valid set (its first line says which);
//! `<case>.txt` is the exact message. Rewrite the messages with `UPDATE=1 cargo test --test policies`.

use std::collections::BTreeMap;
use std::path::Path;

use casestream::domain::Level;
use casestream::domain::policy::{Status, Trigger};
use casestream::policies::catalogue::ALERTING_CAP_MILLI;
use casestream::policies::{Files, Problem, compile, compile_with_tests, hash, run_tests};

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/check");

fn text(problems: &[Problem]) -> String {
    problems.iter().map(|p| format!("{p}\n")).collect()
}

fn case(name: &str) -> (String, String) {
    let content = std::fs::read_to_string(Path::new(CASES).join(name)).unwrap();
    let file = content.lines().next().and_then(|l| l.strip_prefix("# ")).expect("the first line names the file");
    (file.to_owned(), content.clone())
}

fn small() -> Files {
    Files([case("valid_catalogue.toml"), case("valid_policy.toml")].into())
}

#[test]
fn the_shipped_set_compiles() {
    let files = Files::built_in();
    let compiled = compile_with_tests(&files).unwrap_or_else(|problems| panic!("{}", text(&problems)));
    let set = compiled.set;
    assert_eq!(set.hash, hash(&files));
    assert_eq!(set.catalogue.indicators.len(), 86);
    assert_eq!(compiled.tests.len(), 6);
    let facts: Vec<_> = set.policies.iter().map(|p| (p.id.as_str(), p.status, &p.trigger, p.open_at_milli)).collect();
    let dlp = Trigger::DlpMatch { severity: Level::High };
    assert_eq!(
        facts,
        [
            ("data-leaks", Status::On, &dlp, 40_000),
            ("departing-users", Status::On, &Trigger::Leaving, 40_000),
            ("general-dlp", Status::On, &Trigger::None, 40_000),
        ]
    );
    assert_eq!(set.catalogue.factors.labels["highly confidential"], 2_500);
    assert_eq!(set.catalogue.boosters.leaving, 1_500);
}

/// Theft or evasion through one channel must be able to alert; and a policy counts with the catalogue's numbers.
#[test]
fn the_shipped_caps_let_one_channel_alert() {
    let set = compile(&Files::built_in()).unwrap();
    for indicator in &set.catalogue.indicators {
        if ["exfiltration", "security"].contains(&indicator.category.as_str()) {
            assert!(indicator.cap_milli > ALERTING_CAP_MILLI, "{}", indicator.id);
        }
        assert!(indicator.cap_milli <= indicator.category.cap_milli(), "{}", indicator.id);
    }
    let counted = set.policy("departing-users").unwrap().indicators.iter();
    for counted in counted {
        assert_eq!(counted.weight_milli, set.catalogue.indicators[counted.position].weight_milli);
    }
}

#[test]
fn the_directory_and_the_built_in_set_are_one() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let files = Files::read_dir(&dir).unwrap();
    assert_eq!(hash(&files), hash(&Files::built_in()));
    let record = files.to_record();
    assert_eq!(record.hash.as_str(), hash(&files));
    assert_eq!(Files::from_record(&record), files);
}

#[test]
fn a_missing_directory_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let problems = Files::read_dir(dir.path()).unwrap_err();
    assert_eq!(problems.iter().map(|p| p.file.as_str()).collect::<Vec<_>>(), ["indicators.toml", "policies"]);
    let problems = compile(&Files::default()).unwrap_err();
    assert_eq!(problems.len(), 2, "{}", text(&problems));
}

#[test]
fn every_byte_and_every_name_is_in_the_hash() {
    let files = small();
    let mut names = vec![hash(&files)];
    for (name, content) in &files.0 {
        let mut other = files.clone();
        other.0.insert(name.clone(), format!("{content} "));
        names.push(hash(&other));
        let mut other = files.clone();
        other.0.remove(name);
        other.0.insert(format!("{name}x"), content.clone());
        names.push(hash(&other));
    }
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(names.iter().all(|n| n.len() == 16));
}

#[test]
fn a_policy_that_is_off_is_not_in_the_set() {
    let mut files = small();
    let policy = files.0.get_mut("policies/leaks.toml").unwrap();
    *policy = policy.replace("status = \"on\"", "status = \"off\"");
    let compiled = compile_with_tests(&files).unwrap();
    assert!(compiled.set.policies.is_empty());
    assert!(run_tests(&compiled.set, &compiled.tests, |_, _| panic!("its tests do not run")).is_empty());
}

#[test]
fn overrides_replace_the_catalogue() {
    let set = compile(&small()).unwrap();
    let counted: Vec<_> = set.policies[0].indicators.iter().map(|i| (i.weight_milli, i.cap_milli)).collect();
    assert_eq!(counted, [(6_000, 45_000), (4_000, 22_000)]);
}

#[test]
fn a_failing_test_names_file_and_line() {
    let compiled = compile_with_tests(&small()).unwrap();
    let run = |verdict| {
        run_tests(&compiled.set, &compiled.tests, |_, case| {
            assert_eq!(case.signals[0].repeat, 9);
            Ok(verdict)
        })
    };
    assert!(run(Some(Level::Medium)).is_empty());
    assert_eq!(
        text(&run(None)),
        "policies/leaks.toml:31:1: test \"uploads\" fails: expected an alert, found none\n    \
           31 | [[test]]\n       | ^^^^^^^^\n  fix: correct the policy, or what the test expects\n"
    );
}

#[test]
fn every_broken_file_is_reported_exactly() {
    let mut names: Vec<String> = std::fs::read_dir(CASES)
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().into_string().ok())
        .filter(|n| n.ends_with(".toml") && !n.starts_with("valid_"))
        .collect();
    names.sort();
    assert!(names.len() >= 20);
    assert!(compile(&small()).is_ok());
    let mut wrong = BTreeMap::new();
    for name in names {
        let mut files = small();
        let (file, content) = case(&name);
        files.0.insert(file, content);
        let found = match compile(&files) {
            Ok(_) => "accepted\n".to_owned(),
            Err(problems) => text(&problems),
        };
        let golden = Path::new(CASES).join(&name).with_extension("txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&golden, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if expected != found || found == "accepted\n" {
            wrong.insert(name, found);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.iter().map(|(n, f)| format!("== {n}\n{f}")).collect::<String>());
}

/// Whatever is in a file, the answer is a set or problems whose text can be printed.
#[test]
fn no_content_breaks_the_reader() {
    let valid = small();
    for (name, content) in &valid.0 {
        for at in (0..content.len()).filter(|at| content.is_char_boundary(*at)) {
            for mutant in [
                content[..at].to_owned(),
                format!("{}\u{e9}{}", &content[..at], &content[at + 1..]),
                format!("{}\"{}", &content[..at], &content[at..]),
                format!("{}={}", &content[..at], &content[at + 1..]),
                format!("{}-9{}", &content[..at], &content[at..]),
            ] {
                let mut files = valid.clone();
                files.0.insert(name.clone(), mutant);
                if let Err(problems) = compile(&files) {
                    assert!(!problems.is_empty() && problems.iter().all(|p| !p.fix.is_empty()));
                    assert!(!text(&problems).is_empty());
                }
            }
        }
    }
}
