//! When a user next changes by itself: a function of state, so timers need no storage of their own.

use super::{Context, User};
use crate::domain::Timestamp;

/// The earliest due instant: a window closes, a level falls, an alert expires, a trigger or booster begins or ends,
/// a day is dropped. Cheap: called once per changed user and on restore.
pub fn next_due(user: &User, ctx: &Context<'_>) -> Option<Timestamp> {
    let _ = (user, ctx);
    None
}
