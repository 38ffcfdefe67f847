//! Genie's server side: sessions, residents, programs, devices and the scheduler.

pub mod device;
