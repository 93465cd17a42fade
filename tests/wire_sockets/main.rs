//! Ray's two Unix-socket protocols as bytes: against frames that Ray sent, there and back, and damaged.

mod damage;
mod recorded;
mod round_trip;
mod support;
