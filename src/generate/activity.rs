//! What a person does on a day: ordinary acts of the trade, ordinary events that mean nothing, and the person's story.
//! A day is a pure function of (seed, person, day), so nobody's day depends on anybody else's or on the order asked.
//! Next: `delivery.rs`, when the news of it arrives.

use super::population::{Person, Population, Scenario, Trade};
use super::prng::{Prng, mix};
use crate::domain::Timestamp;
use crate::domain::time::{DAY_MS, HOUR_MS, SECOND_MS};

/// Partner companies everybody's work goes to: `partner00.example` and so on.
pub(super) const PARTNERS: u64 = 40;
const MINUTE_MS: i64 = 60_000;
/// How long after a DLP match its undo comes.
const UNDO_AFTER_MS: i64 = 2 * HOUR_MS;
const MB: i64 = 1_000_000;

/// Where an act is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Source {
    M365,
    GoogleWorkspace,
    Code42,
}

/// What was done. The first block is reported by Microsoft 365, the second by Google Workspace, the third by Code42.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    DlpEmail,
    DlpEmailUndo,
    DlpCloud,
    AnonymousLink,
    SensitiveRead,
    ControlDisabled,
    FileAccessed,

    DriveDownload,
    DriveShareExternal,
    DrivePublicLink,
    DriveDelete,
    SuspiciousLogin,
    DriveView,
    DriveEdit,
    DriveShareInternal,
    Login,

    RemovableMedia,
    BrowserUpload,
    AppUpload,
    Mail,
    Print,
    ReportDownload,
    CodeClone,
    Archived,
    Deleted,
    LogDeleted,
    FileCreated,
}

impl Kind {
    pub(super) fn source(self) -> Source {
        match self {
            k if k <= Kind::FileAccessed => Source::M365,
            k if k <= Kind::Login => Source::GoogleWorkspace,
            _ => Source::Code42,
        }
    }

    /// The indicator of the act, or `None` for what a mapping ignores.
    pub(super) fn indicator(self) -> Option<&'static str> {
        Some(match self {
            Kind::DlpEmail | Kind::DlpEmailUndo => "dlp_email_match",
            Kind::DlpCloud => "dlp_cloud_match",
            Kind::AnonymousLink | Kind::DrivePublicLink => "public_link",
            Kind::SensitiveRead => "sensitive_read",
            Kind::ControlDisabled => "control_disabled",
            Kind::DriveDownload => "download",
            Kind::DriveShareExternal => "external_share",
            Kind::DriveDelete | Kind::Deleted => "file_deleted",
            Kind::SuspiciousLogin => "sign_in_unusual",
            Kind::RemovableMedia => "removable_media_copy",
            Kind::BrowserUpload | Kind::AppUpload => "cloud_upload",
            Kind::Mail => "external_email",
            Kind::Print => "print",
            Kind::ReportDownload => "report_download",
            Kind::CodeClone => "source_code_clone",
            Kind::Archived => "file_archived",
            Kind::LogDeleted => "log_deleted",
            Kind::FileAccessed
            | Kind::DriveView
            | Kind::DriveEdit
            | Kind::DriveShareInternal
            | Kind::Login
            | Kind::FileCreated => return None,
        })
    }
}

/// Where something went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Stays inside.
    Internal,
    /// A partner company the person deals with, or a new one.
    Partner(u8),
    /// The person's own account at a cloud drive or mail provider.
    Private,
    /// The person's own USB stick.
    OwnStick,
    /// A stick of the IT department.
    ItStick,
}

/// One observed act.
#[derive(Clone, Copy, Debug)]
pub(super) struct Act {
    pub(super) person: u32,
    pub(super) at: Timestamp,
    pub(super) kind: Kind,
    /// The vendor event's identity; every detail that matters to nobody is drawn from it.
    pub(super) id: u64,
    pub(super) bytes: i64,
    pub(super) target: Target,
    pub(super) confidential: bool,
    /// A warning was shown and overridden.
    pub(super) overridden: bool,
    pub(super) harmful: bool,
}

impl Act {
    /// When the person acted. An undo is news of an earlier act, and counts for that act's day.
    pub(super) fn occurred_at(&self) -> Timestamp {
        match self.kind {
            Kind::DlpEmailUndo => self.at.plus_ms(-UNDO_AFTER_MS),
            _ => self.at,
        }
    }
}

/// Kinds with their weights, out of 100.
type Mix = [(u8, Kind)];

const OFFICE: &Mix = &[
    (26, Kind::DriveDownload),
    (18, Kind::Mail),
    (14, Kind::SensitiveRead),
    (12, Kind::Print),
    (9, Kind::Deleted),
    (6, Kind::DriveShareExternal),
    (5, Kind::BrowserUpload),
    (2, Kind::RemovableMedia),
    (2, Kind::Archived),
    (2, Kind::DlpEmail),
    (1, Kind::DlpCloud),
    (1, Kind::AnonymousLink),
    (1, Kind::DriveDelete),
    (1, Kind::SuspiciousLogin),
];
const ENGINEERING: &Mix = &[
    (24, Kind::CodeClone),
    (24, Kind::DriveDownload),
    (14, Kind::Deleted),
    (10, Kind::Mail),
    (8, Kind::Archived),
    (6, Kind::SensitiveRead),
    (4, Kind::AppUpload),
    (3, Kind::RemovableMedia),
    (2, Kind::Print),
    (2, Kind::DriveShareExternal),
    (1, Kind::DlpCloud),
    (1, Kind::DrivePublicLink),
    (1, Kind::SuspiciousLogin),
];
const SALES: &Mix = &[
    (28, Kind::Mail),
    (18, Kind::ReportDownload),
    (18, Kind::DriveDownload),
    (14, Kind::DriveShareExternal),
    (8, Kind::Print),
    (4, Kind::BrowserUpload),
    (3, Kind::DlpEmail),
    (2, Kind::AnonymousLink),
    (1, Kind::DrivePublicLink),
    (1, Kind::RemovableMedia),
    (1, Kind::Deleted),
    (1, Kind::DlpCloud),
    (1, Kind::SuspiciousLogin),
];
const NOISE: &Mix = &[
    (34, Kind::DriveView),
    (20, Kind::DriveEdit),
    (18, Kind::FileAccessed),
    (12, Kind::FileCreated),
    (10, Kind::Login),
    (6, Kind::DriveShareInternal),
];

fn draw(mix: &Mix, prng: &mut Prng) -> Kind {
    let mut rest = prng.below(mix.iter().map(|(weight, _)| u64::from(*weight)).sum());
    for (weight, kind) in mix {
        match rest.checked_sub(u64::from(*weight)) {
            Some(less) => rest = less,
            None => return *kind,
        }
    }
    unreachable!("the draw is below the sum of the weights")
}

/// Writes down one day of one person.
struct Diary<'a> {
    person: &'a Person,
    number: u32,
    /// Local midnight.
    midnight: Timestamp,
    prng: Prng,
    acts: &'a mut Vec<Act>,
}

/// Adds everything a person does on a day, in no order.
pub(super) fn day(population: &Population, number: u32, day: u32, acts: &mut Vec<Act>) {
    let config = population.config();
    let person = &population.people()[number as usize];
    let midnight = config.start.plus_ms(i64::from(day) * DAY_MS).plus_ms(-person.zone_offset_min() * MINUTE_MS);
    let prng = Prng::of(&[config.seed, 3, u64::from(number), u64::from(day)]);
    let mut diary = Diary { person, number, midnight, prng, acts };
    if person.service_account {
        return diary.back_up();
    }
    diary.ordinary(population.is_weekend(day));
    if let Some(story) = person.story
        && (story.first_day..=story.last_day).contains(&day)
    {
        diary.story(story.scenario, day - story.first_day, population.is_weekend(day));
    }
}

impl Diary<'_> {
    fn ordinary(&mut self, weekend: bool) {
        let rate = i64::from(self.person.daily_rate);
        let relevant = match (weekend, self.prng.chance(50)) {
            (false, _) => self.prng.between(rate - rate / 3, rate + rate / 3),
            (true, true) => 1,
            (true, false) => 0,
        };
        let mix = match self.person.department().trade {
            Trade::Office => OFFICE,
            Trade::Engineering => ENGINEERING,
            Trade::Sales => SALES,
        };
        for _ in 0..relevant {
            let at = self.at_work();
            let kind = match draw(mix, &mut self.prng) {
                Kind::RemovableMedia if !self.person.uses_usb => Kind::DriveDownload,
                kind => kind,
            };
            self.usual(kind, at);
        }
        // A feed is mostly noise: as many events again that say nothing.
        for _ in 0..relevant {
            let (at, kind) = (self.at_work(), draw(NOISE, &mut self.prng));
            self.note(kind, at, Target::Internal);
        }
    }

    /// An act in the person's usual way.
    fn usual(&mut self, kind: Kind, at: Timestamp) {
        let partner =
            if self.prng.chance(15) { self.prng.below(PARTNERS) as u8 } else { self.prng.pick(&self.person.partners) };
        let target = match kind {
            Kind::Mail | Kind::DriveShareExternal | Kind::BrowserUpload | Kind::DlpEmail => Target::Partner(partner),
            Kind::RemovableMedia => Target::OwnStick,
            _ => Target::Internal,
        };
        let labelled = self.prng.chance(30);
        let act = self.note(kind, at, target);
        act.confidential = labelled || kind == Kind::SensitiveRead;
        let undone = Act { kind: Kind::DlpEmailUndo, at: act.at.plus_ms(UNDO_AFTER_MS), ..*act };
        if kind == Kind::DlpEmail && self.prng.chance(40) {
            self.acts.push(undone);
        }
    }

    fn story(&mut self, scenario: Scenario, since: u32, weekend: bool) {
        match scenario {
            Scenario::Leaver => self.steal_by_night(),
            Scenario::JobHunter if !weekend => self.copy_more_every_week(since),
            Scenario::Slip => {
                let at = self.at_work();
                let act = self.harm(Kind::DlpEmail, at, Target::Private);
                act.overridden = true;
            }
            Scenario::Administrator => self.cover_tracks(),
            Scenario::Migration => {
                for _ in 0..60 {
                    let at = self.at_work();
                    self.note(Kind::RemovableMedia, at, Target::ItStick).bytes *= 8;
                }
            }
            Scenario::JobHunter | Scenario::HonestLeaver => {}
        }
    }

    fn steal_by_night(&mut self) {
        let begin = self.midnight.plus_ms(22 * HOUR_MS);
        let mut minute = 0;
        let steps = [(Kind::Archived, 2, 3), (Kind::RemovableMedia, 6, 15), (Kind::BrowserUpload, 2, 5)];
        for (kind, low, high) in steps {
            for _ in 0..self.prng.between(low, high) {
                minute += self.prng.between(2, 9);
                let target = match kind {
                    Kind::RemovableMedia => Target::OwnStick,
                    Kind::BrowserUpload => Target::Private,
                    _ => Target::Internal,
                };
                self.harm(kind, begin.plus_ms(minute * MINUTE_MS), target).bytes *= 10;
            }
        }
    }

    fn copy_more_every_week(&mut self, since: u32) {
        for n in 0..1 + since / 7 {
            let at = self.at_work();
            let (kind, target) = match n % 3 {
                0 => (Kind::RemovableMedia, Target::OwnStick),
                1 => (Kind::DriveDownload, Target::Internal),
                _ => (Kind::BrowserUpload, Target::Private),
            };
            self.harm(kind, at, target);
        }
    }

    fn cover_tracks(&mut self) {
        let begin = self.midnight.plus_ms(20 * HOUR_MS);
        let steps = [Kind::ControlDisabled, Kind::ControlDisabled, Kind::DriveDownload, Kind::DriveDownload];
        let logs = [Kind::LogDeleted; 4];
        for (n, kind) in steps.into_iter().chain(logs).enumerate() {
            self.harm(kind, begin.plus_ms(n as i64 * 7 * MINUTE_MS), Target::Internal);
        }
    }

    /// The backup agent's night: large, regular, inside.
    fn back_up(&mut self) {
        for n in 0..i64::from(self.person.daily_rate) {
            let at = self.midnight.plus_ms(HOUR_MS + n * 2 * MINUTE_MS);
            self.note(Kind::AppUpload, at, Target::Internal).bytes *= 50;
        }
    }

    fn harm(&mut self, kind: Kind, at: Timestamp, target: Target) -> &mut Act {
        let act = self.note(kind, at, target);
        (act.confidential, act.harmful) = (true, true);
        act
    }

    fn note(&mut self, kind: Kind, at: Timestamp, target: Target) -> &mut Act {
        // Most files are small; one in eight is large.
        let bytes = if self.prng.below(8) == 0 { self.prng.between(MB, 40 * MB) } else { self.prng.between(2_000, MB) };
        let id = mix(self.prng.next() ^ u64::from(self.number));
        // Microsoft's feed has whole seconds; so do all, and a feed's time equals the signal's.
        let at = Timestamp(at.0 - at.0 % SECOND_MS);
        let (confidential, overridden, harmful) = (false, false, false);
        self.acts.push(Act { person: self.number, at, kind, id, bytes, target, confidential, overridden, harmful });
        self.acts.last_mut().expect("an act was just written")
    }

    /// Some time in working hours.
    fn at_work(&mut self) -> Timestamp {
        let length = i64::from(self.person.hours) * HOUR_MS;
        let into = self.prng.below(length as u64) as i64;
        self.midnight.plus_ms(i64::from(self.person.starts_hour) * HOUR_MS + into)
    }
}
