//! A policy: which indicators count together, for whom, while what holds, and when that is worth an alert.
//! Read from `config/policies/*.toml` by `policies.rs`; here it is already valid.
//! Next: `engine/mod.rs`, where signals meet policies.

use super::Level;
use super::indicator::Catalogue;

/// Whether a policy's alerts are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    On,
    /// Alerts go to `shadow-alerts` only.
    Shadow,
    Off,
}

/// What puts a user under a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Every user, always.
    None,
    /// From the announcement (or last working day) for `activation_days`.
    Leaving,
    /// A signal with an information type or DLP policy name and at least this vendor severity.
    DlpMatch { severity: Level },
}

/// A policy, valid and compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub id: String,
    /// Content hash of its file.
    pub version: String,
    pub name: String,
    pub template: String,
    pub description: String,
    pub status: Status,
    pub purpose: String,
    pub legal_basis: String,
    pub owner: String,
    /// `YYYY-MM-DD`.
    pub review_by: String,
    /// Directory groups the policy is limited to; empty means everybody.
    pub groups: Vec<String>,
    pub trigger: Trigger,
    pub look_back_days: i64,
    pub activation_days: i64,
    pub gap_hours: i64,
    pub max_days: i64,
    /// Sorted by position in the catalogue.
    pub indicators: Vec<PolicyIndicator>,
    pub open_at_milli: i64,
    /// The lowest severity that is published.
    pub min_severity: Level,
    pub expire_days: i64,
}

/// An indicator as a policy counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyIndicator {
    /// Position in the catalogue.
    pub position: usize,
    pub weight_milli: i64,
    pub cap_milli: i64,
}

/// A validated set: the catalogue and every policy, named by content hash.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicySet {
    pub hash: String,
    pub catalogue: Catalogue,
    pub policies: Vec<Policy>,
    /// Catalogue position to the positions in `policies` that count it.
    pub by_indicator: Vec<Vec<usize>>,
    /// First 8 bytes of blake3 of each policy's id, as state names policies.
    id_hashes: Vec<u64>,
}

impl PolicySet {
    /// A set of validated parts; policies with status `off` are left out.
    pub fn new(hash: String, catalogue: Catalogue, policies: Vec<Policy>) -> PolicySet {
        let policies: Vec<Policy> = policies.into_iter().filter(|p| p.status != Status::Off).collect();
        let mut by_indicator = vec![Vec::new(); catalogue.indicators.len()];
        for (n, policy) in policies.iter().enumerate() {
            for indicator in &policy.indicators {
                by_indicator[indicator.position].push(n);
            }
        }
        let id_hashes = policies.iter().map(|p| id_hash(&p.id)).collect();
        PolicySet { hash, catalogue, policies, by_indicator, id_hashes }
    }

    /// The hash by which state names the policy at a position.
    pub fn id_hash(&self, position: usize) -> u64 {
        self.id_hashes[position]
    }

    /// The position of the policy that state names by a hash.
    pub fn position_of_hash(&self, hash: u64) -> Option<usize> {
        self.id_hashes.iter().position(|h| *h == hash)
    }

    /// The policy with this id.
    pub fn policy(&self, id: &str) -> Option<&Policy> {
        self.policies.iter().find(|p| p.id == id)
    }
}

fn id_hash(id: &str) -> u64 {
    u64::from_le_bytes(blake3::hash(id.as_bytes()).as_bytes()[..8].try_into().expect("8 bytes"))
}
