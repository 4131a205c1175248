//! What a schema registry would answer about our own schemas, read only: with no registry configured, standard Avro
//! consumers and Connect work against `/registry` of our HTTP port. Pure functions; the server is elsewhere.

use serde_json::{Value, json};

use crate::wire::avro::{Schemas, Subject, Version, subjects};

/// Status and JSON body for `GET <mount point><path>`. Empty when ids come from a registry: local ids would be wrong.
pub fn built_in_response(schemas: &Schemas, path: &str) -> (u16, String) {
    let path = path.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let result = if schemas.is_built_in() { answer(&parts) } else { Err(NOT_FOUND) };
    match result {
        Ok(body) => (200, body),
        Err((code, message)) => (status(code), json!({ "error_code": code, "message": message }).to_string()),
    }
}

type Failure = (u32, &'static str);

const NOT_FOUND: Failure = (404, "Not found.");
const NO_SUBJECT: Failure = (40_401, "Subject not found.");
const NO_VERSION: Failure = (40_402, "Version not found.");
const NO_SCHEMA: Failure = (40_403, "Schema not found.");
const BAD_VERSION: Failure = (42_202, "A version is a number from 1, or latest.");

/// A registry's error codes begin with the HTTP status.
const fn status(code: u32) -> u16 {
    (if code > 999 { code / 100 } else { code }) as u16
}

fn answer(parts: &[&str]) -> Result<String, Failure> {
    let body = match *parts {
        [] => json!({}),
        ["subjects"] => subjects().iter().map(|s| s.name.as_str()).collect::<Value>(),
        ["subjects", name, "versions"] => subject(name)?.versions.iter().map(|v| v.version).collect(),
        ["subjects", name, "versions", wanted] => {
            let (subject, version) = version(name, wanted)?;
            json!({ "subject": subject.name, "id": version.local_id, "version": version.version, "schema": version.text })
        }
        ["subjects", name, "versions", wanted, "schema"] => return Ok(version(name, wanted)?.1.text.to_owned()),
        ["schemas", "types"] => json!(["AVRO"]),
        ["schemas", "ids", id] => json!({ "schema": by_id(id)?[0].1.text }),
        ["schemas", "ids", id, "schema"] => return Ok(by_id(id)?[0].1.text.to_owned()),
        ["schemas", "ids", id, "subjects"] => by_id(id)?.iter().map(|(s, _)| s.name.as_str()).collect(),
        ["schemas", "ids", id, "versions"] => {
            by_id(id)?.iter().map(|(s, v)| json!({ "subject": s.name, "version": v.version })).collect()
        }
        ["config"] | ["config", _] => json!({ "compatibilityLevel": "FULL_TRANSITIVE" }),
        ["mode"] | ["mode", _] => json!({ "mode": "READONLY" }),
        _ => return Err(NOT_FOUND),
    };
    Ok(body.to_string())
}

fn subject(name: &str) -> Result<&'static Subject, Failure> {
    subjects().iter().find(|s| s.name == name).ok_or(NO_SUBJECT)
}

fn version(name: &str, wanted: &str) -> Result<(&'static Subject, &'static Version), Failure> {
    let subject = subject(name)?;
    if wanted == "latest" || wanted == "-1" {
        return Ok((subject, subject.latest()));
    }
    let number: u32 = wanted.parse().ok().filter(|n| *n > 0).ok_or(BAD_VERSION)?;
    let version = subject.versions.iter().find(|v| v.version == number).ok_or(NO_VERSION)?;
    Ok((subject, version))
}

/// Every subject and version with the id; never empty.
fn by_id(id: &str) -> Result<Vec<(&'static Subject, &'static Version)>, Failure> {
    let id: u32 = id.parse().map_err(|_| NO_SCHEMA)?;
    let versions = subjects().iter().flat_map(|s| s.versions.iter().map(move |v| (s, v)));
    let found: Vec<_> = versions.filter(|(_, v)| v.local_id == id).collect();
    if found.is_empty() { Err(NO_SCHEMA) } else { Ok(found) }
}
