use super::*;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

struct Place {
    place: tempfile::TempDir,
    directories: Vec<PathBuf>,
}

impl Place {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let directories = ["low", "high"].map(|name| place.path().join(name)).to_vec();
        directories.iter().for_each(|directory| fs::create_dir(directory).unwrap());
        Self { place, directories }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn write(&self, name: &str, arg: &str) {
        self.write_with(name, arg, json!({}));
    }

    fn write_with(&self, name: &str, arg: &str, own: Value) {
        let file = json!({
            "version": "1.0.0",
            "hook": {"path": "/bin/true", "args": [arg]},
            "when": {"always": true},
            "stages": ["poststop"],
            "podinit": own,
        });
        fs::write(self.path(name), file.to_string()).unwrap();
    }

    fn catalogue(&self) -> Catalogue {
        Catalogue::read(self.directories.clone())
    }
}

fn shown(catalogue: &Catalogue) -> Vec<(&str, &str)> {
    catalogue.hooks().iter().map(|hook| (hook.name.as_str(), hook.args[0].as_str())).collect()
}

#[test]
fn a_later_directory_replaces_by_name() {
    let place = Place::new();
    place.write("low/b.json", "low b");
    place.write("low/A.json", "low A");
    place.write("low/c.json", "low c");
    place.write("high/b.json", "high b");
    place.write("high/a.json", "high a");
    place.write("high/d.jsonx", "never");
    place.write("high/json", "never");
    let catalogue = place.catalogue();
    assert_eq!(
        shown(&catalogue),
        [("A.json", "low A"), ("a.json", "high a"), ("b.json", "high b"), ("c.json", "low c")]
    );
    assert_eq!(catalogue.problems(), []);
}

#[test]
fn a_broken_file_takes_nothing_with_it() {
    let place = Place::new();
    place.write("low/good.json", "good");
    place.write("low/changed.json", "before");
    let mut catalogue = place.catalogue();
    assert_eq!(catalogue.obstacle(), None);

    fs::write(place.path("low/changed.json"), "{").unwrap();
    catalogue.reload();
    assert_eq!(shown(&catalogue), [("changed.json", "before"), ("good.json", "good")]);
    let [problem] = catalogue.problems() else { panic!("{catalogue:?}") };
    assert_eq!(problem.path, place.path("low/changed.json"));
    assert!(problem.kept && problem.reason.starts_with("it is not JSON"), "{problem}");
    assert_eq!(catalogue.obstacle(), None);

    // It has no before when everything is read for the first time.
    let anew = place.catalogue();
    assert_eq!(shown(&anew), [("good.json", "good")]);
    assert_eq!(anew.obstacle().map(|problem| problem.path.clone()), Some(place.path("low/changed.json")));

    place.write("low/changed.json", "after");
    catalogue.reload();
    assert_eq!(shown(&catalogue), [("changed.json", "after"), ("good.json", "good")]);
    fs::remove_file(place.path("low/changed.json")).unwrap();
    catalogue.reload();
    assert_eq!((shown(&catalogue), catalogue.problems()), (vec![("good.json", "good")], &[][..]));
}

#[test]
fn a_hook_that_did_not_change_is_the_same() {
    let place = Place::new();
    place.write("low/a.json", "a");
    let mut catalogue = place.catalogue();
    let before = catalogue.hooks()[0].clone();
    assert!(!catalogue.reload());
    assert!(Rc::ptr_eq(&before, &catalogue.hooks()[0]));
    place.write("high/b.json", "b");
    assert!(catalogue.reload());
    assert!(Rc::ptr_eq(&before, &catalogue.hooks()[0]));
    fs::write(place.path("high/c.json"), "{").unwrap();
    assert!(catalogue.reload());
    assert!(!catalogue.reload(), "it is as wrong as before");
    place.write_with("high/b.json", "b", json!({"before": ["a.json"]}));
    assert!(catalogue.reload());
}

#[test]
fn what_must_not_be_read_is_not() {
    let place = Place::new();
    place.write("outside.json", "outside");
    place.write("low/here.json.real", "here");
    symlink("here.json.real", place.path("low/here.json")).unwrap();
    symlink("../outside.json", place.path("low/out1.json")).unwrap();
    symlink(place.path("outside.json"), place.path("low/out2.json")).unwrap();
    symlink("nothing", place.path("low/to_nothing.json")).unwrap();
    fs::create_dir(place.path("low/directory.json")).unwrap();
    let fifo = nix::sys::stat::Mode::from_bits_truncate(0o600);
    nix::unistd::mkfifo(&place.path("low/fifo.json"), fifo).unwrap();
    place.write("low/everybody.json", "everybody");
    fs::set_permissions(place.path("low/everybody.json"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::write(place.path("low/large.json"), vec![b' '; 70_000]).unwrap();
    let program = json!({"version": "1.0.0", "hook": {"path": "/no/such"}, "when": {}, "stages": []});
    fs::write(place.path("low/program.json"), program.to_string()).unwrap();

    let catalogue = place.catalogue();
    assert_eq!(shown(&catalogue), [("here.json", "here")]);
    let wrong: Vec<_> = catalogue.problems().iter().map(ToString::to_string).collect();
    let expected = [
        ("directory.json", "no regular file"),
        ("everybody.json", "chmod o-w"),
        ("fifo.json", "no regular file"),
        ("large.json", "larger than 65536"),
        ("out1.json", "out of its directory"),
        ("out2.json", "out of its directory"),
        ("program.json", "there is no /no/such: No such file"),
    ];
    assert_eq!(wrong.len(), expected.len(), "{wrong:#?}");
    for (said, (name, reason)) in wrong.iter().zip(expected) {
        assert!(said.contains(name) && said.contains(reason), "{said}");
    }
}

#[test]
fn a_directory_that_cannot_be_read_keeps_its_hooks() {
    let place = Place::new();
    place.write("low/a.json", "a");
    place.write("high/b.json", "b");
    let mut catalogue = place.catalogue();
    fs::rename(place.path("low"), place.path("away")).unwrap();
    fs::write(place.path("low"), "").unwrap();
    catalogue.reload();
    assert_eq!(shown(&catalogue), [("a.json", "a"), ("b.json", "b")]);
    assert!(catalogue.problems()[0].reason.contains("directory"), "{catalogue:?}");
    fs::remove_file(place.path("low")).unwrap();
    catalogue.reload();
    assert_eq!((shown(&catalogue), catalogue.problems()), (vec![("b.json", "b")], &[][..]));
}

#[test]
fn a_directory_of_everybody_is_not_read() {
    let place = Place::new();
    place.write("low/a.json", "a");
    fs::set_permissions(place.path("low"), fs::Permissions::from_mode(0o777)).unwrap();
    let catalogue = place.catalogue();
    assert!(catalogue.hooks().is_empty());
    assert!(catalogue.obstacle().unwrap().reason.contains("chmod o-w"), "{catalogue:?}");
}

#[test]
fn after_and_before_go_across_directories_and_a_cycle_is_told() {
    let place = Place::new();
    place.write_with("low/1.json", "1", json!({"after": ["3.json"]}));
    place.write("low/2.json", "2");
    place.write("high/3.json", "3");
    let mut catalogue = place.catalogue();
    assert_eq!(shown(&catalogue), [("2.json", "2"), ("3.json", "3"), ("1.json", "1")]);
    place.write_with("high/3.json", "3", json!({"after": ["1.json"]}));
    catalogue.reload();
    assert_eq!(shown(&catalogue), [("1.json", "1"), ("2.json", "2"), ("3.json", "3")]);
    let obstacle = catalogue.obstacle().unwrap().to_string();
    assert!(obstacle.contains("1.json comes before 3.json comes before 1.json"), "{obstacle}");
}

#[test]
fn too_many_files_are_told() {
    let place = Place::new();
    for at in 0..=HOOK_FILES_MAX {
        place.write(&format!("low/{at:04}.json"), "x");
    }
    let catalogue = place.catalogue();
    assert_eq!(catalogue.hooks().len(), HOOK_FILES_MAX);
    assert!(catalogue.obstacle().unwrap().reason.contains("more than 512 hook files"));
}
