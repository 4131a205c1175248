//! What only the embedded broker is asked: it must outlive any frame, say that a directory is in use, and end with the
//! process that runs it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::client::{Broker, PATIENCE, flush, send};
use crate::support::{Devkit, Isolation, wait_for};

fn throw(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // The broker may hang up at any byte.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn no_frame_ends_the_broker() {
    let devkit = Devkit::start();
    let mut seed = 42_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u32
    };
    throw(&devkit.bootstrap(), &[0xff; 64]);
    throw(&devkit.bootstrap(), &i32::MAX.to_be_bytes());
    throw(&devkit.bootstrap(), b"GET / HTTP/1.1\r\n\r\n");
    for api in 0..70_u16 {
        for version in 0..10_u16 {
            let mut body = vec![(api >> 8) as u8, api as u8, 0, version as u8, 0, 0, 0, 1, 0xff, 0xff];
            // Half of them announce arrays far longer than the frame.
            body.extend(if version % 2 == 0 { [0x7f, 0xff, 0xff, 0xff] } else { [0, 0, 0, 1] });
            body.extend((0..random() % 80).map(|_| random() as u8));
            let mut frame = (body.len() as u32).to_be_bytes().to_vec();
            frame.extend(body);
            throw(&devkit.bootstrap(), &frame);
        }
    }
    let (pid, log) = (devkit.pid(), devkit.log());
    assert!(!log.contains("panicked"), "{log}");
    let broker = Broker::OwnEmbedded(devkit);
    let topic = broker.topic("after", 1, &[]);
    let producer = broker.producer(&[]);
    send(&producer, &topic, 0, "k", "alive");
    flush(&producer);
    assert_eq!(broker.values(&topic, Isolation::ReadCommitted), ["alive"]);
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
}

fn binary(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casestream"));
    command.arg("devkit").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn spawn(dir: &std::path::Path) -> std::io::Result<casestream::embedded::Devkit> {
    let options = casestream::embedded::devkit::Options { dir: dir.to_owned(), ..Default::default() };
    casestream::embedded::Devkit::spawn_with(env!("CARGO_BIN_EXE_casestream").as_ref(), &options)
}

#[test]
fn a_taken_port_or_directory_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let first = spawn(dir.path());
    let first = first.unwrap();
    let output = binary(&["--dir", path]).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another process uses it"), "{output:?}");
    let port = first.bootstrap.rsplit(':').next().unwrap();
    let other = tempfile::tempdir().unwrap();
    let output = binary(&["--dir", other.path().to_str().unwrap(), "--kafka-port", port]).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("could not listen on 127.0.0.1:{port}")));
    first.stop();
}

#[test]
fn a_child_ends_with_whoever_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let devkit = spawn(dir.path());
    let mut devkit = devkit.unwrap();
    assert!(redis::Client::open(devkit.redis_url.as_str()).unwrap().get_connection().is_ok());
    // What the kernel does to a parent's descriptors when it is killed.
    drop(devkit.child.stdin.take());
    let status = wait_for("the child to end", PATIENCE, || devkit.child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}
