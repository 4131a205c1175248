//! The journal on disk: frames of an event and its batches, each with a checksum. A frame is there or not; a torn
//! last frame is cut off at start. Written without `fsync`: it survives the process, not the machine. Knows nothing of
//! what events mean. Next: `groups.rs`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::state::Event;

const NAME: &str = "journal";
const REWRITTEN: &str = "journal.new";
const LOCK: &str = "lock";
/// Lengths of the two parts, and the checksum of what follows.
const FRAME_HEADER_BYTES: usize = 12;
/// Longest part of a frame; a length beyond it is damage.
const PART_BYTES_MAX: usize = 128 << 20;
const BUFFER_BYTES: usize = 1 << 20;

/// An open journal.
pub struct Journal {
    dir: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    /// Held as long as a process uses the directory.
    lock: Arc<File>,
}

impl Journal {
    /// Opens the journal of a directory, made if need be, and hands over every event in it.
    pub fn open(dir: &Path, each: &mut dyn FnMut(Event, Bytes)) -> io::Result<Journal> {
        fs::create_dir_all(dir).map_err(|e| context(dir, "create", &e))?;
        let lock = lock(dir)?;
        let path = dir.join(NAME);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = file.map_err(|e| context(&path, "open", &e))?;
        let bytes = replay(&file, each).map_err(|e| context(&path, "read", &e))?;
        file.set_len(bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(|e| context(&path, "open", &e))?;
        Ok(Journal { dir: dir.to_owned(), file: BufWriter::with_capacity(BUFFER_BYTES, file), bytes, lock })
    }

    /// Adds a frame; `flush` makes it last.
    pub fn append(&mut self, event: &Event, body: &[u8]) -> io::Result<()> {
        let written = write_frame(&mut self.file, event, body).map_err(|e| context(&self.dir, "write to", &e))?;
        self.bytes += written;
        Ok(())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(|e| context(&self.dir, "write to", &e))
    }

    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A journal with other frames in the place of this one. This one stays in force if that fails.
    pub fn rewrite(
        &self,
        frames: impl FnOnce(&mut dyn FnMut(&Event, &[u8]) -> io::Result<()>) -> io::Result<()>,
    ) -> io::Result<Journal> {
        let path = self.dir.join(REWRITTEN);
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(&path)?);
        let mut bytes = 0;
        let written = frames(&mut |event, body| {
            bytes += write_frame(&mut file, event, body)?;
            Ok(())
        });
        written.and_then(|()| file.flush()).map_err(|e| context(&path, "write", &e))?;
        fs::rename(&path, self.dir.join(NAME)).map_err(|e| context(&path, "rename", &e))?;
        Ok(Journal { dir: self.dir.clone(), file, bytes, lock: self.lock.clone() })
    }
}

fn lock(dir: &Path) -> io::Result<Arc<File>> {
    let path = dir.join(LOCK);
    let file = File::create(&path).map_err(|e| context(&path, "open", &e))?;
    match file.try_lock() {
        Ok(()) => Ok(Arc::new(file)),
        Err(TryLockError::WouldBlock) => {
            let hint = "another process uses it: end that one or take another directory";
            Err(io::Error::new(io::ErrorKind::WouldBlock, format!("could not use {}: {hint}", dir.display())))
        }
        Err(TryLockError::Error(error)) => Err(context(&path, "lock", &error)),
    }
}

fn context(path: &Path, what: &str, error: &io::Error) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull => ": free space and start again, nothing acknowledged is lost",
        _ => "",
    };
    io::Error::new(error.kind(), format!("could not {what} {}: {error}{hint}", path.display()))
}

fn write_frame(file: &mut impl Write, event: &Event, body: &[u8]) -> io::Result<u64> {
    let head = serde_json::to_vec(event)?;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&head), body);
    file.write_all(&(head.len() as u32).to_be_bytes())?;
    file.write_all(&(body.len() as u32).to_be_bytes())?;
    file.write_all(&checksum.to_be_bytes())?;
    file.write_all(&head)?;
    file.write_all(body)?;
    Ok((FRAME_HEADER_BYTES + head.len() + body.len()) as u64)
}

/// Reads whole frames and gives where they end.
fn replay(file: &File, each: &mut dyn FnMut(Event, Bytes)) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let mut good = 0;
    while let Some((event, body, bytes)) = read_frame(&mut reader, length - good)? {
        each(event, body);
        good += bytes;
    }
    if good < length {
        tracing::warn!(bytes = length - good, "cut an unfinished end off the journal");
    }
    Ok(good)
}

fn read_frame(reader: &mut impl Read, left: u64) -> io::Result<Option<(Event, Bytes, u64)>> {
    let mut header = [0; FRAME_HEADER_BYTES];
    if left < FRAME_HEADER_BYTES as u64 {
        return Ok(None);
    }
    reader.read_exact(&mut header)?;
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (head, body, checksum) = (number(0) as usize, number(4) as usize, number(8));
    let bytes = (FRAME_HEADER_BYTES + head) as u64 + body as u64;
    if head > PART_BYTES_MAX || body > PART_BYTES_MAX || bytes > left {
        return Ok(None);
    }
    let mut parts = vec![0; head + body];
    reader.read_exact(&mut parts)?;
    if crc32c::crc32c(&parts) != checksum {
        return Ok(None);
    }
    let Ok(event) = serde_json::from_slice(&parts[..head]) else { return Ok(None) };
    Ok(Some((event, Bytes::from(parts).slice(head..), bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        Journal::open(dir, &mut |event, body| found.push(format!("{event:?} {}", body.len()))).unwrap();
        found
    }

    #[test]
    fn a_torn_frame_is_cut_off_wherever_it_tore() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path(), &mut |_, _| {}).unwrap();
        journal.append(&Event::ProducerIds { next: 7 }, b"one").unwrap();
        journal.flush().unwrap();
        let good = journal.bytes();
        journal.append(&Event::Delete { name: "t".into() }, b"two").unwrap();
        journal.flush().unwrap();
        drop(journal);
        let whole = fs::read(dir.path().join(NAME)).unwrap();
        assert_eq!(read(dir.path()).len(), 2);
        for end in good as usize..whole.len() {
            fs::write(dir.path().join(NAME), &whole[..end]).unwrap();
            assert_eq!(read(dir.path()), ["ProducerIds { next: 7 } 3"], "cut at {end}");
            assert_eq!(fs::metadata(dir.path().join(NAME)).unwrap().len(), good);
        }
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = Journal::open(dir.path(), &mut |_, _| {}).unwrap();
        let error = Journal::open(dir.path(), &mut |_, _| {}).err().unwrap();
        assert!(error.to_string().contains("another process uses it"), "{error}");
        drop(first);
        Journal::open(dir.path(), &mut |_, _| {}).unwrap();
    }
}
