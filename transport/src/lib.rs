//! x
pub mod frame;
pub mod ids;
pub mod messages;
pub mod ring;
