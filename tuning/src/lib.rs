//! raylet-tuning
