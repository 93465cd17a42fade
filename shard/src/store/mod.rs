//! The plasma object store of one core, and the bank of spans that the cores of a node share.

mod api;
mod config;

pub use api::*;
pub use config::*;
