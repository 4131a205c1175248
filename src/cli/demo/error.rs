//! Why a demo cannot start or go on. Codes are explained in `docs/operations.md`. Next: `place.rs`.

use std::io;
use std::path::PathBuf;

use crate::cli::{Exit, Failure};

/// What went wrong, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not use {}: another demo runs there{pid}\n  fix: use that one, end it, or give this one a --dir of its own", dir.display())]
    Running { dir: PathBuf, pid: String },
    #[error(
        "could not listen on 127.0.0.1:{port}: {cause}\n  fix: choose another --{name}-port, or leave it out for a free one"
    )]
    Port { name: &'static str, port: u16, cause: io::Error },
    #[error("could not write to {}: {cause}\n  fix: see that the disk has room and the directory is yours, or use another --dir", path.display())]
    Disk { path: PathBuf, cause: io::Error },
    #[error("could not continue the demo in {}: it was made with {was}\n  fix: leave these options out, or start over with --fresh", dir.display())]
    Other { dir: PathBuf, was: String },
    #[error(
        "the broker and the store did not start or ended: {cause}\n  fix: see that the disk has room; what was acknowledged is there at the next start"
    )]
    Devkit { cause: String },
    #[error("the worker ended again and again: {cause}\n  fix: its log is {}", log.display())]
    Worker { cause: String, log: PathBuf },
}

impl Error {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Error::Running { .. } => "demo.running",
            Error::Port { .. } => "demo.port",
            Error::Disk { .. } => "demo.disk",
            Error::Other { .. } => "demo.other",
            Error::Devkit { .. } => "demo.devkit",
            Error::Worker { .. } => "demo.worker",
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let exit = if matches!(error, Error::Other { .. }) { Exit::Usage } else { Exit::Dependency };
        let text = error.to_string();
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        Failure::new(exit, format!("{first} ({})\n{rest}", error.code()).trim_end())
    }
}
