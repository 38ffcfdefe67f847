//! What this machine has that tests need. What is lacking is not tested, and that is said where it is seen though the tests pass.

use std::io::Write;
use std::sync::Once;

/// Those of these schemes whose links can be tested here.
pub fn links<'a>(schemes: &[&'a str]) -> Vec<&'a str> {
    schemes.iter().copied().filter(|scheme| has(scheme)).collect()
}

/// Whether this scheme's link can be tested here. A machine without io_uring has all but its links tested.
pub fn has(scheme: &str) -> bool {
    if !scheme.starts_with("uring") {
        return true;
    }
    let Err(why) = rings() else { return true };
    static SAID: Once = Once::new();
    SAID.call_once(|| tell(&format!("not tested: uring and urings: {why}")));
    false
}

/// Says a line that is seen though the test passes: what a test prints is kept from whoever runs it.
pub fn tell(line: &str) {
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[cfg(target_os = "linux")]
fn rings() -> Result<(), String> {
    genie_transport::link::uring::available().map_err(|why| why.to_string())
}

#[cfg(not(target_os = "linux"))]
fn rings() -> Result<(), String> {
    Err("io_uring is Linux's".to_owned())
}
