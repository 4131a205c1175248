//! The demo's directory: one demo at a time, what it was made with, its configuration and mappings, which other
//! commands read with `--config`, and the data of the broker and the store. Next: `worker.rs`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::domain::Timestamp;
use crate::domain::time::DAY_MS;
use crate::embedded::store::free_port;
use crate::generate::{self, Insiders};

/// Everything a demo puts into its directory, but for the lock.
const CONTENT: [&str; 6] = [SETTING, CONFIG, KEY, LOG, "mappings", "data"];
const SETTING: &str = "demo.json";
const CONFIG: &str = "casestream.toml";
const KEY: &str = "pseudonym.key";
const LOG: &str = "worker.log";
/// Partitions of every topic keyed by user.
const PARTITIONS: u32 = 4;
/// Insiders are one of so many people, and at least `INSIDERS_MIN` where there are enough people.
const PEOPLE_PER_INSIDER: u32 = 100;
const INSIDERS_MIN: u32 = 4;

/// The three sources, with their mappings as the binary was built with them.
const MAPPINGS: [(&str, &str); 3] = [
    ("m365-dlp", include_str!("../../../config/mappings/m365-dlp.toml")),
    ("google-workspace", include_str!("../../../config/mappings/google-workspace.toml")),
    ("code42", include_str!("../../../config/mappings/code42.toml")),
];

/// What a demo was made with, kept so that the next start continues it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    pub seed: u64,
    pub users: u32,
    pub days: u32,
    /// The month's first midnight.
    pub start: Timestamp,
    /// The whole month is in the raw topics.
    pub is_fed: bool,
}

impl Setting {
    /// A month that ends yesterday.
    pub fn new(seed: u64, users: u32, days: u32, now: Timestamp) -> Setting {
        let start = Timestamp((now.0.div_euclid(DAY_MS) - i64::from(days)) * DAY_MS);
        Setting { seed, users, days, start, is_fed: false }
    }

    /// The population of these.
    pub fn population(&self) -> generate::Config {
        let insiders = (self.users / PEOPLE_PER_INSIDER).max(INSIDERS_MIN).min(self.users.saturating_sub(1));
        let Setting { seed, users, days, start, is_fed: _ } = *self;
        generate::Config { seed, users, days, start, insiders: Insiders::Count(insiders), ..Default::default() }
    }

    /// As the command line says it.
    pub fn text(&self) -> String {
        let Setting { seed, users, days, start, is_fed: _ } = self;
        format!("--users {users} --days {days} --seed {seed}, from {}", start.day_at(0).iso())
    }
}

/// The directory, held for this process alone.
pub struct Place {
    dir: PathBuf,
    /// As the user named it, for what is printed.
    shown: PathBuf,
    /// Released by the kernel however this process ends.
    _lock: File,
}

impl Place {
    /// Takes a directory, which is made if need be.
    pub fn take(dir: &Path) -> Result<Place, Error> {
        let failed = |cause| Error::Disk { path: dir.to_owned(), cause };
        fs::create_dir_all(dir).map_err(failed)?;
        let path = dir.join("lock");
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = fs::read_to_string(&path).unwrap_or_default();
                let pid = if pid.is_empty() { pid } else { format!(", process {}", pid.trim()) };
                return Err(Error::Running { dir: dir.to_owned(), pid });
            }
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(failed)?;
        let whole = dir.canonicalize().map_err(failed)?;
        Ok(Place { dir: whole, shown: dir.to_owned(), _lock: lock })
    }

    /// What the demo here was made with; nothing if there is none, or one whose month never became whole.
    pub fn setting(&self) -> Option<Setting> {
        let text = fs::read_to_string(self.dir.join(SETTING)).ok()?;
        serde_json::from_str::<Setting>(&text).ok().filter(|setting| setting.is_fed)
    }

    /// Keeps it.
    pub fn keep(&self, setting: &Setting) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(setting).expect("numbers become text");
        self.write(SETTING, &text)
    }

    /// Removes what an earlier demo left here, and nothing else.
    pub fn clear(&self) -> Result<(), Error> {
        for name in CONTENT {
            let path = self.dir.join(name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(Error::Disk { path, cause }),
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes mappings, the pseudonym key if there is none yet, and the configuration of these addresses.
    pub fn configure(&self, bootstrap: &str, redis_url: &str) -> Result<(), Error> {
        let mappings = self.dir.join("mappings");
        fs::create_dir_all(&mappings).map_err(|cause| Error::Disk { path: mappings.clone(), cause })?;
        let mut sources = String::new();
        for (name, text) in MAPPINGS {
            self.write(&format!("mappings/{name}.toml"), text)?;
            let path = mappings.join(format!("{name}.toml"));
            sources += &format!("    {{ name = {name:?}, topic = \"raw.{name}\", mapping = {path:?} }},\n");
        }
        let key = self.dir.join(KEY);
        if !key.exists() {
            self.write(KEY, &fresh_key().map_err(|cause| Error::Disk { path: key.clone(), cause })?)?;
        }
        // Known before the worker runs, and the same when it runs again.
        let http = free_port(0).map_err(|cause| Error::Disk { path: self.dir.clone(), cause })?;
        self.write(
            CONFIG,
            &format!(
                "# Written by `casestream demo` at each start. Other commands use it with --config.\n\
                 [kafka]\nbootstrap_servers = {bootstrap:?}\npartitions = {PARTITIONS}\n\n\
                 [redis]\nurl = {redis_url:?}\n\n[engine]\n# A killed worker is missed soon.\nsession_timeout_ms = 6000\n\n\
                 [identity]\nkey_file = {key:?}\n\n[http]\nbind = \"127.0.0.1:{http}\"\n\n[log]\nfilter = \"warn\"\n\n\
                 [map]\ncompany_domains = [\"example.com\"]\nsources = [\n{sources}]\n"
            ),
        )
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(|cause| Error::Disk { path, cause })
    }

    /// Where the broker and the store keep their data.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What the worker says.
    pub fn log(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    /// The configuration, for this process's use.
    pub fn config(&self) -> PathBuf {
        self.dir.join(CONFIG)
    }

    /// The configuration as the user's shell finds it.
    pub fn config_shown(&self) -> PathBuf {
        self.shown.join(CONFIG)
    }
}

/// 32 random bytes in hexadecimal.
fn fresh_key() -> std::io::Result<String> {
    use std::io::Read;
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_demos_and_is_cleared_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::take(dir.path()).unwrap();
        assert!(matches!(Place::take(dir.path()), Err(Error::Running { .. })));
        fs::write(dir.path().join("mine.txt"), "x").unwrap();
        place.configure("127.0.0.1:1", "redis://127.0.0.1:2/").unwrap();
        let mut setting = Setting::new(7, 20, 3, Timestamp(1_770_000_000_000));
        place.keep(&setting).unwrap();
        assert_eq!(place.setting(), None, "half a month is no demo");
        setting.is_fed = true;
        place.keep(&setting).unwrap();
        assert_eq!(place.setting(), Some(setting));
        place.clear().unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["lock", "mine.txt"]);
    }

    #[test]
    fn small_populations_have_insiders_too() {
        for (users, insiders) in [(2, 1), (5, 4), (40, 4), (500, 5), (2_000, 20)] {
            let config = Setting::new(1, users, 3, Timestamp(1_770_000_000_000)).population();
            assert_eq!(config.insiders, Insiders::Count(insiders));
            assert!(generate::Population::new(&config).is_ok(), "{users}");
        }
    }
}
