//! One vocabulary for level, severity and priority: none < low < medium < high < critical.

use serde::{Deserialize, Serialize};

/// A band of the 0–100 scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    #[default]
    None,
    Low,
    Medium,
    High,
    Critical,
}

impl Level {
    /// Every level, rising.
    pub const ALL: [Level; 5] = [Level::None, Level::Low, Level::Medium, Level::High, Level::Critical];

    /// The lowest score of this level, in thousandths of a point.
    pub const fn floor_milli(self) -> i64 {
        match self {
            Level::None => 0,
            Level::Low => 20_000,
            Level::Medium => 40_000,
            Level::High => 70_000,
            Level::Critical => 90_000,
        }
    }

    /// The level of a score.
    pub fn of(score_milli: i64) -> Level {
        Level::ALL.into_iter().rev().find(|l| score_milli >= l.floor_milli()).unwrap_or(Level::None)
    }

    /// The word used on every topic, page and key.
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::None => "none",
            Level::Low => "low",
            Level::Medium => "medium",
            Level::High => "high",
            Level::Critical => "critical",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|l| l.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_the_upper_level() {
        for (score, level) in [
            (0, "none"),
            (19_999, "none"),
            (20_000, "low"),
            (40_000, "medium"),
            (69_999, "medium"),
            (70_000, "high"),
            (90_000, "critical"),
            (100_000, "critical"),
        ] {
            assert_eq!(Level::of(score).as_str(), level);
            assert_eq!(Level::parse(level), Some(Level::of(score)));
        }
    }
}
