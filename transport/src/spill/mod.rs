//! Spilled objects on disk: files written and read through a core's ring, past the page cache where the file system allows it.
//!
//! [`Disk`] says which operations are to be begun on the ring and takes what they came to. It does none itself but what is quick:
//! it makes directories and asks how much room there is.

pub mod directory;
pub mod disk;
pub mod format;
pub mod read;
pub mod serve;
pub mod write;

#[cfg(test)]
mod tests;

pub use directory::{check_room, clear_leftovers, DirectoryError, SpillDirectory};
pub use disk::{Disk, DiskSettings, DiskUse, Outcome, ReadFailure, WriteFailure};
pub use format::Entry;
pub use read::{ReadError, Target};
pub use serve::{chunk_buffer_bytes, SpilledObject};
pub use write::Source;
