//! (to be written)
#[derive(Clone, Debug, Default)]
pub struct User;
