//! Bugs on purpose, which the simulator must find. See [`steading_core::mutation`].

pub use steading_core::mutation::{Mutation, with};
