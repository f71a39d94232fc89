//! The packages of the published client libraries, installed once under `target/clients`.
//!
//! What is installed stands in `tests/clients/requirements.txt` and `tests/clients/js/package-lock.json`, every
//! package with its version. A stamp with their text makes an installation from before good until they change;
//! a locked file makes other test processes wait for it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::server;

/// Where the scripts are.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");

/// Python interpreters to try, best first.
const PYTHONS: [&str; 3] = ["python3.11", "python3", "python"];

/// A Python interpreter that can import the packages of `clients/requirements.txt`.
pub(crate) fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| installed_python("python", "requirements.txt"))
}

/// A Python interpreter that can run Synapse, as `clients/synapse.txt` pins it.
pub(crate) fn synapse() -> &'static Path {
    static SYNAPSE: OnceLock<PathBuf> = OnceLock::new();
    SYNAPSE.get_or_init(|| installed_python("synapse", "synapse.txt"))
}

fn installed_python(name: &str, requirements: &str) -> PathBuf {
    let place = installed(name, &[requirements], |place| {
        let base = PYTHONS.into_iter().find(|name| runs(name)).expect("the tests need Python 3.11 or newer");
        run(Command::new(base).args(["-m", "venv"]).arg(place));
        run(Command::new(place.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"])
            .arg(script(requirements)));
    });
    place.join("bin/python")
}

/// A folder with `node_modules`, where a script can import the packages of `clients/js/package.json`.
pub(crate) fn node() -> &'static Path {
    static NODE: OnceLock<PathBuf> = OnceLock::new();
    NODE.get_or_init(|| {
        let scripts = ["js/client.mjs", "js/encryption.mjs"];
        let files = [&["js/package.json", "js/package-lock.json", "js/.npmrc"][..], &scripts].concat();
        installed("js", &files, |place| {
            fs::create_dir_all(place).expect("the target folder is writable");
            for file in &files {
                let source = script(file);
                let name = source.file_name().expect("a file has a name");
                fs::copy(&source, place.join(name)).expect("the target folder is writable");
            }
            let arguments = ["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"];
            run(Command::new("npm").args(arguments).current_dir(place));
        })
    })
}

/// The path of a script or of a list of packages.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(SCRIPTS).join(name)
}

/// The folder `name`, made by `install` unless the stamp says that it is what `files` ask for.
fn installed(name: &str, files: &[&str], install: impl FnOnce(&Path)) -> PathBuf {
    let target = server::profile_folder().parent().expect("a profile's folder is in `target`").to_owned();
    let clients = target.join("clients");
    fs::create_dir_all(&clients).expect("the target folder is writable");
    let lock = File::create(clients.join(format!("{name}.lock"))).expect("the target folder is writable");
    lock.lock().expect("a file can be locked"); // until it is dropped

    let wanted: String =
        files.iter().map(|file| fs::read_to_string(script(file)).expect("it is in the repository")).collect();
    let (place, stamp) = (clients.join(name), clients.join(format!("{name}.stamp")));
    if fs::read_to_string(&stamp).is_ok_and(|had| had == wanted) {
        return place;
    }
    if place.exists() {
        fs::remove_dir_all(&place).expect("an old installation can be removed");
    }
    install(&place);
    fs::write(&stamp, wanted).expect("the target folder is writable");
    place
}

fn runs(program: &str) -> bool {
    let check = "import sys; sys.exit(sys.version_info < (3, 11))";
    let status = Command::new(program).args(["-c", check]).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(output.status.success(), "{command:?} fails:\n{}", String::from_utf8_lossy(&text));
}
