//! The node.

pub mod ray;
pub mod cli;
pub mod config;
pub mod observe;
pub mod workers;
