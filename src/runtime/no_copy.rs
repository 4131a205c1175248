//! No readable copy: for deployments without Redis.

use super::copy_sink::{CopySink, DirtyUser, Loaded, Standing};
use super::ports::{CopyMeta, CopyUser, Error};

/// Takes what a worker hands over and keeps nothing; finds nothing when a partition is taken over.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCopy;

impl CopySink for NoCopy {
    fn meta(&mut self, _partition: i32) -> Result<Option<CopyMeta>, Error> {
        Ok(None)
    }

    fn users(&mut self, _partition: i32, _each: &mut dyn FnMut(CopyUser)) -> Result<(), Error> {
        Ok(())
    }

    fn assigned(&mut self, _standing: &Standing, _loaded: Loaded) {}

    fn dirty(&mut self, _standing: &Standing, _users: Vec<DirtyUser>) {}

    fn revoked(&mut self, _partition: i32) {}

    fn lost(&mut self) -> Vec<i32> {
        Vec::new()
    }
}
