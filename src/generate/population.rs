//! Who the people are: names, posts, places, habits, and for a few a story. What they do on a day is `activity.rs`.

use serde::{Deserialize, Serialize};

use super::prng::{Prng, mix};
use super::{Config, Error};
use crate::domain::Timestamp;
use crate::domain::directory::{Alias, Directory, Leaving};
use crate::domain::time::DAY_MS;

const GIVEN: [&str; 48] = [
    "Anna", "Ben", "Chiara", "David", "Elif", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kavya", "Liam", "Mei",
    "Noah", "Olga", "Pedro", "Quinn", "Rosa", "Samir", "Thea", "Umar", "Vera", "Willem", "Ximena", "Yusuf", "Zoe",
    "Amara", "Bruno", "Cora", "Dmitri", "Emil", "Freya", "Goran", "Hana", "Ivan", "Jana", "Kofi", "Lena", "Marek",
    "Nadia", "Omar", "Priya", "Ravi", "Sofia", "Tariq", "Uma", "Viktor", "Wanda",
];
const FAMILY: [&str; 48] = [
    "Abara", "Berg", "Costa", "Dietz", "Eriksen", "Fischer", "Garcia", "Haddad", "Ito", "Jansen", "Kumar", "Lindgren",
    "Moreau", "Novak", "Okafor", "Petrov", "Quist", "Rossi", "Sato", "Tanaka", "Ueda", "Varga", "Weber", "Xu",
    "Yilmaz", "Zhang", "Almeida", "Brandt", "Cohen", "Duarte", "Egger", "Farkas", "Gruber", "Horvat", "Ivanova",
    "Joshi", "Keller", "Larsen", "Meyer", "Nilsen", "Ortega", "Popescu", "Reyes", "Schmidt", "Toth", "Urban", "Vogel",
    "Wolff",
];

/// A place of work. Only zones without daylight saving, so that the offset below is right all year.
struct Site {
    name: &'static str,
    time_zone: &'static str,
    offset_min: i64,
}

const SITES: [Site; 8] = [
    Site { name: "Reykjavik", time_zone: "Atlantic/Reykjavik", offset_min: 0 },
    Site { name: "Lagos", time_zone: "Africa/Lagos", offset_min: 60 },
    Site { name: "Johannesburg", time_zone: "Africa/Johannesburg", offset_min: 120 },
    Site { name: "Bengaluru", time_zone: "Asia/Kolkata", offset_min: 330 },
    Site { name: "Singapore", time_zone: "Asia/Singapore", offset_min: 480 },
    Site { name: "Brisbane", time_zone: "Australia/Brisbane", offset_min: 600 },
    Site { name: "Bogota", time_zone: "America/Bogota", offset_min: -300 },
    Site { name: "Phoenix", time_zone: "America/Phoenix", offset_min: -420 },
];

/// A department's name, directory group and usual title.
pub(super) struct Department {
    pub(super) name: &'static str,
    group: &'static str,
    title: &'static str,
    pub(super) trade: Trade,
}

/// Which mix of activity a department has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trade {
    Office,
    Engineering,
    Sales,
}

const DEPARTMENTS: [Department; 7] = [
    Department { name: "Sales", group: "sales", title: "Account Manager", trade: Trade::Sales },
    Department { name: "Engineering", group: "engineering", title: "Engineer", trade: Trade::Engineering },
    Department { name: "Finance", group: "finance", title: "Analyst", trade: Trade::Office },
    Department { name: "People", group: "people", title: "Partner", trade: Trade::Office },
    Department { name: "Legal", group: "legal", title: "Counsel", trade: Trade::Office },
    Department { name: "Operations", group: "operations", title: "Coordinator", trade: Trade::Office },
    Department { name: "IT", group: "it-admins", title: "Administrator", trade: Trade::Engineering },
];
const IT: usize = 6;

/// What a person's part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// Announces leaving, then copies to USB and a personal cloud drive for a week of nights.
    Leaver,
    /// Copies a little more every week, in office hours.
    JobHunter,
    /// Overrides a warning once and mails a confidential file to a private address.
    Slip,
    /// Disables a control and deletes logs.
    Administrator,
    /// Benign: leaves without taking anything.
    HonestLeaver,
    /// Benign: copies everything to a drive of IT on the day of a laptop migration.
    Migration,
}

impl Scenario {
    /// The four that do harm, in the order they are handed out.
    pub const HARMFUL: [Scenario; 4] = [Scenario::Leaver, Scenario::JobHunter, Scenario::Slip, Scenario::Administrator];

    /// Whether harm is done.
    pub const fn is_harmful(self) -> bool {
        !matches!(self, Scenario::HonestLeaver | Scenario::Migration)
    }
}

/// A scenario with its first and last day, counted from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Story {
    pub scenario: Scenario,
    pub first_day: u32,
    pub last_day: u32,
}

/// One person, or the one service account.
#[derive(Clone, Debug)]
pub struct Person {
    /// Lower-case address: the canonical id.
    pub canonical_id: String,
    /// The address as people write it.
    pub email: String,
    pub display_name: String,
    /// Short sign-in name, unique.
    pub login: String,
    /// Numeric id in one vendor's feed.
    pub profile_id: String,
    pub device: String,
    pub service_account: bool,
    pub high_impact: bool,
    pub leaving: Option<Leaving>,
    pub story: Option<Story>,
    /// Position of the manager, `None` for the head.
    pub manager: Option<u32>,
    department: u8,
    site: u8,
    /// First hour of work, local.
    pub(super) starts_hour: u8,
    pub(super) hours: u8,
    /// Relevant events on a usual working day.
    pub(super) daily_rate: u16,
    /// Numbers of the partner companies dealt with.
    pub(super) partners: [u8; 3],
    pub(super) uses_usb: bool,
}

impl Person {
    /// Minutes east of UTC, the same all year.
    pub fn zone_offset_min(&self) -> i64 {
        SITES[self.site as usize].offset_min
    }

    pub(super) fn department(&self) -> &'static Department {
        &DEPARTMENTS[self.department as usize]
    }

    fn new(config: &Config, number: u32) -> Person {
        let mut prng = Prng::of(&[config.seed, 1, u64::from(number)]);
        let name = Name::of(config.seed, number);
        let address = format!("{}@{}", name.local, config.company_domain);
        let department = if prng.chance(40) { IT } else { prng.below(IT as u64) as usize };
        let daily_rate = match prng.below(100) {
            0..80 => prng.between(2, 8),
            80..95 => prng.between(9, 20),
            _ => prng.between(30, 60),
        };
        Person {
            canonical_id: address.to_lowercase(),
            display_name: name.display,
            login: name.login,
            profile_id: format!("10{:019}", mix(config.seed ^ u64::from(number)) % 10_000_000_000_000_000_000),
            device: format!("LT-{number:06}"),
            email: address,
            service_account: false,
            high_impact: department == IT || number == 1 || prng.chance(20),
            leaving: None,
            story: None,
            manager: (number > 1).then(|| 1 + (number - 2) / 8),
            department: department as u8,
            site: prng.below(SITES.len() as u64) as u8,
            starts_hour: prng.between(7, 10) as u8,
            hours: prng.between(7, 9) as u8,
            daily_rate: daily_rate as u16,
            partners: [0; 3].map(|_| prng.below(super::activity::PARTNERS) as u8),
            uses_usb: prng.chance(100),
        }
    }

    /// The backup agent: nobody's account, large nightly volume, at the first site.
    fn service(config: &Config) -> Person {
        let mut person = Person::new(config, 0);
        person.canonical_id = format!("svc-backup@{}", config.company_domain);
        person.email = person.canonical_id.clone();
        person.display_name = "Backup service".to_owned();
        person.login = "svc-backup".to_owned();
        person.device = "BACKUP-01".to_owned();
        person.service_account = true;
        person.high_impact = false;
        (person.department, person.site, person.daily_rate) = (IT as u8, 0, 40);
        person
    }

    fn directory(&self, people: &[Person], user_key: &impl Fn(&str) -> String) -> Directory<'static> {
        let alias = |kind: &'static str, value: &str| Alias { kind: kind.into(), value: value.to_owned().into() };
        let (site, department) = (&SITES[self.site as usize], self.department());
        let mut groups = vec!["all-staff".into(), department.group.into()];
        if self.high_impact {
            groups.push("high-impact".into());
        }
        Directory {
            user_key: user_key(&self.canonical_id).into(),
            canonical_id: self.canonical_id.clone().into(),
            display_name: Some(self.display_name.clone().into()),
            email: Some(self.email.clone().into()),
            aliases: vec![
                alias("email", &self.email),
                alias("upn", &self.canonical_id.to_uppercase()),
                alias("login", &self.login),
                alias("domain_user", &format!("CORP\\{}", self.login)),
                alias("profile_id", &self.profile_id),
            ],
            department: Some(department.name.into()),
            title: Some(if self.service_account { "Service account" } else { department.title }.into()),
            manager_key: self.manager.map(|n| user_key(&people[n as usize].canonical_id).into()),
            site: Some(site.name.into()),
            time_zone: Some(site.time_zone.into()),
            work_schedule: Some(
                format!("mon-fri {:02}:00-{:02}:00", self.starts_hour, self.starts_hour + self.hours).into(),
            ),
            fte: Some(1_000),
            groups,
            high_impact: self.high_impact,
            service_account: self.service_account,
            leaving: self.leaving,
            absences: Vec::new(),
            version: 1,
        }
    }
}

/// The names of one person: unique by construction.
struct Name {
    local: String,
    display: String,
    login: String,
}

impl Name {
    fn of(seed: u64, number: u32) -> Name {
        let pairs = (GIVEN.len() * FAMILY.len()) as u64;
        // 1,237 is prime to the number of pairs, so every pair comes once before any comes again.
        let pair = ((u64::from(number) * 1_237 + mix(seed) % pairs) % pairs) as usize;
        let (given, family) = (GIVEN[pair % GIVEN.len()], FAMILY[pair / GIVEN.len()]);
        let round = u64::from(number) / pairs;
        let suffix = if round == 0 { String::new() } else { (round + 1).to_string() };
        Name {
            local: format!("{given}.{family}{suffix}"),
            display: format!("{given} {family}"),
            login: format!("{}{}{number}", given[..1].to_lowercase(), family.to_lowercase()),
        }
    }
}

/// Everybody, and what was asked for.
#[derive(Clone, Debug)]
pub struct Population {
    pub(super) config: Config,
    people: Vec<Person>,
}

impl Population {
    /// Makes the people of a configuration. Number 0 is the service account.
    pub fn new(config: &Config) -> Result<Population, Error> {
        config.validate()?;
        let mut people = vec![Person::service(config)];
        people.extend((1..config.users).map(|number| Person::new(config, number)));
        let mut population = Population { config: config.clone(), people };
        population.cast();
        Ok(population)
    }

    /// What was asked for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Everybody, in order of number.
    pub fn people(&self) -> &[Person] {
        &self.people
    }

    /// One directory record per person. `user_key` makes the pseudonym of a canonical id. The record states an HR
    /// date from the start; what follows from it begins at the date.
    pub fn directory<'p>(
        &'p self,
        user_key: impl Fn(&str) -> String + 'p,
    ) -> impl Iterator<Item = Directory<'static>> + 'p {
        self.people.iter().map(move |person| person.directory(&self.people, &user_key))
    }

    /// Hands out the scenarios: insiders first, then one leaver and two migrating laptops per hundred people.
    fn cast(&mut self) {
        let mut prng = Prng::of(&[self.config.seed, 2]);
        let mut free: Vec<u32> = (1..self.config.users).collect();
        let insiders = self.config.insider_count() as usize;
        let benign = if self.config.users < 20 { 0 } else { self.config.users.div_ceil(100) as usize };
        let harmful = Scenario::HARMFUL.into_iter().cycle().take(insiders);
        let others = [(Scenario::HonestLeaver, benign), (Scenario::Migration, 2 * benign)];
        let others = others.into_iter().flat_map(|(scenario, count)| std::iter::repeat_n(scenario, count));
        let migration_day = self.working_day(self.config.days / 2);
        for scenario in harmful.chain(others) {
            if free.is_empty() {
                break;
            }
            let number = free.swap_remove(prng.below(free.len() as u64) as usize);
            self.give(number as usize, scenario, migration_day, &mut prng);
        }
    }

    fn give(&mut self, number: usize, scenario: Scenario, migration_day: u32, prng: &mut Prng) {
        let days = self.config.days;
        let middle = days / 2 + prng.below(u64::from(days / 4 + 1)) as u32;
        let (first_day, last_day) = match scenario {
            Scenario::Leaver | Scenario::HonestLeaver => ((middle + 1).min(days - 1), (middle + 7).min(days - 1)),
            Scenario::JobHunter => (days / 3, days - 1),
            Scenario::Slip | Scenario::Administrator => [self.working_day(middle.min(days - 1)); 2].into(),
            Scenario::Migration => (migration_day, migration_day),
        };
        let day = |n: u32| self.config.start.plus_ms(i64::from(n) * DAY_MS);
        let leaving = matches!(scenario, Scenario::Leaver | Scenario::HonestLeaver)
            .then(|| Leaving { announced: Some(day(middle)), last_day: Some(day(middle + 14)) });
        let person = &mut self.people[number];
        person.story = Some(Story { scenario, first_day, last_day });
        person.leaving = leaving;
        match scenario {
            Scenario::Administrator => (person.department, person.high_impact) = (IT as u8, true),
            // A habit would hide the theft; whoever has it is a separate question.
            Scenario::Leaver | Scenario::JobHunter => person.uses_usb = false,
            _ => {}
        }
    }

    /// The day itself, or the nearest working day before it; day 0 if there is none.
    fn working_day(&self, day: u32) -> u32 {
        (0..=day).rev().find(|n| !self.is_weekend(*n)).unwrap_or(0)
    }

    /// Whether a day of the activity is a Saturday or Sunday.
    pub(super) fn is_weekend(&self, day: u32) -> bool {
        let since_epoch: Timestamp = self.config.start.plus_ms(i64::from(day) * DAY_MS);
        // 1970-01-01 was a Thursday.
        (since_epoch.day_at(0).0 + 3).rem_euclid(7) >= 5
    }
}
