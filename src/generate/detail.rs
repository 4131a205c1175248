//! The particulars of an act that its vendor event and its signal must agree on: ids, files, places, recipients.
//! All of them follow from the act and the person.

use super::activity::{Act, Kind, Source, Target};
use super::population::{Person, Population};
use super::prng::mix;

const STEMS: [&str; 16] = [
    "forecast",
    "contract",
    "roadmap",
    "pricing",
    "payroll",
    "customers",
    "minutes",
    "budget",
    "design",
    "pipeline",
    "invoice",
    "offer",
    "audit",
    "strategy",
    "handbook",
    "inventory",
];
const EXTENSIONS: [&str; 6] = ["xlsx", "docx", "pptx", "pdf", "csv", "png"];
const REPOSITORIES: [&str; 6] = ["billing", "gateway", "planner", "mobile", "models", "tools"];
const CLOUD_DRIVES: [&str; 4] = ["dropbox.com", "mega.nz", "wetransfer.com", "box.com"];

/// Name, and confidence in thousandths, of what DLP finds.
const INFO_TYPES: [(&str, i64); 3] = [("Credit Card Number", 850), ("IBAN", 750), ("EU Passport Number", 750)];

impl Source {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Source::M365 => "m365-dlp",
            Source::GoogleWorkspace => "google-workspace",
            Source::Code42 => "code42",
        }
    }
}

/// A version-4-shaped UUID of a number.
pub(super) fn uuid(n: u64) -> String {
    let low = mix(n);
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        n >> 32,
        (n >> 16) & 0xffff,
        n & 0xfff,
        0x8000 | (low >> 50),
        low & 0xffff_ffff_ffff
    )
}

/// The id the vendor gives the event. An undo has the id of what it undoes.
pub(super) fn event_id(act: &Act) -> String {
    match act.kind.source() {
        Source::GoogleWorkspace => (act.id as i64).to_string(),
        Source::M365 | Source::Code42 => uuid(act.id),
    }
}

/// Extension without the dot.
pub(super) fn extension(act: &Act) -> &'static str {
    match act.kind {
        Kind::Archived => "zip",
        Kind::LogDeleted => "evtx",
        Kind::CodeClone => "git",
        Kind::ReportDownload => "xlsx",
        _ => EXTENSIONS[(mix(act.id ^ 1) % EXTENSIONS.len() as u64) as usize],
    }
}

/// A file name, or the repository's for a clone.
pub(super) fn file_name(act: &Act) -> String {
    let draw = mix(act.id ^ 2);
    match act.kind {
        Kind::CodeClone => format!("{}.git", REPOSITORIES[(draw % REPOSITORIES.len() as u64) as usize]),
        Kind::LogDeleted => format!("Security-{:03}.evtx", draw % 1_000),
        _ => format!("{}-{:04}.{}", STEMS[(draw >> 32) as usize % STEMS.len()], draw % 10_000, extension(act)),
    }
}

/// Stable id of the file.
pub(super) fn file_id(act: &Act) -> String {
    format!("{:016x}", mix(act.id ^ 3))
}

/// What DLP found.
pub(super) struct Finding {
    pub(super) type_id: String,
    pub(super) name: &'static str,
    pub(super) count: i64,
    /// 0-1000.
    pub(super) confidence: i64,
}

/// What DLP found in the content of the act.
pub(super) fn finding(act: &Act) -> Finding {
    let draw = mix(act.id ^ 4);
    let n = draw % INFO_TYPES.len() as u64;
    let (name, confidence) = INFO_TYPES[n as usize];
    Finding { type_id: uuid(mix(100 + n)), name, count: 1 + (draw >> 32) as i64 % 20, confidence }
}

/// Serial number of the stick.
pub(super) fn stick(act: &Act) -> String {
    match act.target {
        Target::ItStick => "IT-MIGRATION-01".to_owned(),
        _ => format!("AA{:010X}", mix(u64::from(act.person) ^ 5) & 0xff_ffff_ffff),
    }
}

/// The domain something is uploaded to.
pub(super) fn upload_domain(population: &Population, act: &Act) -> String {
    match act.target {
        Target::Partner(n) => format!("share.partner{n:02}.example"),
        Target::Private => CLOUD_DRIVES[act.person as usize % CLOUD_DRIVES.len()].to_owned(),
        _ => format!("files.{}", population.config().company_domain),
    }
}

/// The address something is sent to or shared with.
pub(super) fn recipient(population: &Population, act: &Act) -> String {
    match act.target {
        Target::Partner(n) => format!("contact@partner{n:02}.example"),
        Target::Private => format!("{}@freemail.example", person(population, act).login),
        _ => format!("team@{}", population.config().company_domain),
    }
}

/// Public address: one per person, rarely another.
pub(super) fn ip(act: &Act) -> String {
    let of = if act.kind == Kind::SuspiciousLogin { act.id } else { u64::from(act.person) };
    let draw = mix(of ^ 6);
    // 198.18.0.0/15 is set aside for tests.
    format!("198.{}.{}.{}", 18 + draw % 2, (draw >> 8) % 256, 1 + (draw >> 16) % 254)
}

/// Who acts.
pub(super) fn person<'p>(population: &'p Population, act: &Act) -> &'p Person {
    &population.people()[act.person as usize]
}

/// The address as this event happens to spell it.
pub(super) fn spelling(person: &Person, act: &Act) -> String {
    match mix(act.id ^ 7) % 4 {
        0 => person.email.clone(),
        1 => person.canonical_id.to_uppercase(),
        _ => person.canonical_id.clone(),
    }
}
