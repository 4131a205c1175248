//! The indicator catalogue: which kinds of act there are and what each is worth. Read from `config/indicators.toml`
//! by `policies.rs`; here it is already valid.
//! Next: `policy.rs`, which indicators count together.

use std::collections::BTreeMap;

use hashbrown::HashMap;

/// A family of indicators with a cap of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Category {
    Access,
    Collection,
    Obfuscation,
    Exfiltration,
    Deletion,
    Security,
    Context,
}

impl Category {
    /// Every category, in the order of a theft.
    pub const ALL: [Category; 7] = [
        Category::Access,
        Category::Collection,
        Category::Obfuscation,
        Category::Exfiltration,
        Category::Deletion,
        Category::Security,
        Category::Context,
    ];

    /// The word used in files and on topics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Category::Access => "access",
            Category::Collection => "collection",
            Category::Obfuscation => "obfuscation",
            Category::Exfiltration => "exfiltration",
            Category::Deletion => "deletion",
            Category::Security => "security",
            Category::Context => "context",
        }
    }

    /// Most evidence the category can add, in thousandths of a point.
    pub const fn cap_milli(self) -> i64 {
        match self {
            Category::Access | Category::Collection | Category::Obfuscation => 45_000,
            Category::Exfiltration | Category::Security => 90_000,
            Category::Deletion => 30_000,
            Category::Context => 20_000,
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Category> {
        Category::ALL.into_iter().find(|c| c.as_str() == word)
    }
}

/// How the signals of one day become a magnitude, see `engine/score.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The sum of the signals' factors.
    Count,
    /// The mean factor times (1 + bytes of the day / 1 MB).
    Volume,
    /// 10, 20, 30 a day give a third, two thirds, all of three points' worth.
    Steps,
}

/// The half-lives a catalogue may use, in days.
pub const HALF_LIVES_DAYS: [u16; 5] = [1, 3, 7, 14, 30];

/// One kind of act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indicator {
    /// Stable number in state; never reused.
    pub code: u16,
    pub id: String,
    pub title: String,
    pub category: Category,
    pub weight_milli: i64,
    pub cap_milli: i64,
    pub half_life_days: u16,
    pub measure: Measure,
}

/// The factors of a signal's magnitude, in thousandths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Factors {
    /// Sensitivity label, lower case.
    pub labels: BTreeMap<String, i64>,
    /// Added to 1000 per information type at full confidence, up to `info_types_max`.
    pub info_type_step: i64,
    pub info_types_max: i64,
    pub unallowed_destination: i64,
    pub blocked: i64,
    pub overridden: i64,
    /// Domains whose acts are worth nothing. An entry covers its subdomains.
    pub allowed_destinations: Vec<String>,
    pub unallowed_destinations: Vec<String>,
}

/// Multipliers of the whole score while a fact about the person holds, in thousandths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boosters {
    pub leaving: i64,
    /// Days around the announcement and the last working day.
    pub leaving_before_days: i64,
    pub leaving_after_days: i64,
    pub violation: i64,
    pub violation_days: i64,
    pub priority_group: i64,
    /// Directory groups that make a priority user.
    pub priority_groups: Vec<String>,
    pub high_impact: i64,
}

/// Every indicator, with the factors and boosters that apply to all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalogue {
    /// Sorted by code.
    pub indicators: Vec<Indicator>,
    pub factors: Factors,
    pub boosters: Boosters,
    /// Source to the first day it was connected; evidence of a young source counts less.
    pub sources_since: BTreeMap<String, super::Day>,
    oldest_source: Option<super::Day>,
    by_id: HashMap<String, usize>,
}

impl Catalogue {
    /// A catalogue of validated parts.
    pub fn new(
        mut indicators: Vec<Indicator>,
        factors: Factors,
        boosters: Boosters,
        sources_since: BTreeMap<String, super::Day>,
    ) -> Catalogue {
        indicators.sort_by_key(|i| i.code);
        assert!(indicators.windows(2).all(|w| w[0].code < w[1].code), "indicator codes are unique");
        let by_id = indicators.iter().enumerate().map(|(n, i)| (i.id.clone(), n)).collect();
        let oldest_source = sources_since.values().min().copied();
        Catalogue { indicators, factors, boosters, sources_since, oldest_source, by_id }
    }

    /// The first day on which any source was connected.
    pub fn oldest_source(&self) -> Option<super::Day> {
        self.oldest_source
    }

    /// The position of an indicator by its id.
    #[inline]
    pub fn position(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// The position of an indicator by its code.
    #[inline]
    pub fn position_of_code(&self, code: u16) -> Option<usize> {
        self.indicators.binary_search_by_key(&code, |i| i.code).ok()
    }
}
