//! One input through `decide` and `evolve`, and what is published of it.

use super::{Context, Input, Numbers, Outcome, Position, Sink, User};

/// Runs one input through decide and evolve; hands chronology entries to the sink as they come to be.
/// `position` is where the input was first written; `None` for a timer.
pub fn apply(
    user: &mut User,
    user_key: &str,
    input: Input<'_>,
    position: Option<&Position<'_>>,
    ctx: &Context<'_>,
    numbers: &mut Numbers,
    sink: &mut dyn Sink,
) -> Outcome {
    let _ = (user, user_key, input, position, ctx, numbers, sink);
    Outcome::Unchanged
}

/// Publishes the latest values (score, level, each changed alert): once per user and transaction, after the last
/// `apply`. Also notes in the head when the next fall comes, so `timer::next_due` is cheap.
pub fn finish(user: &mut User, user_key: &str, ctx: &Context<'_>, sink: &mut dyn Sink) {
    let _ = (user, user_key, ctx, sink);
}
