//! raylet-transport
