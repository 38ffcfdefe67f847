//! Sessions.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_transport::Uri;
use genie_transport::auth::Token;
use genie_transport::client::{ConnectOptions, blocking};
use genie_transport::link::tls::TlsClient;
use genie_transport::wire::LinkScheme;

use crate::arguments::{Place, chars, fill, optional, optional_text, text};
use crate::core::Core;
use crate::handles::Table;
use crate::status::{Failure, entry, genie_error, genie_status};

/// The version of this interface: the number in the shared library's name. Functions are added within a version, none is changed.
pub const GENIE_ABI_VERSION: u32 = 0;

/// `genie_connect_options.poll_us` for a thread that sleeps at once.
pub const GENIE_NO_POLL: u32 = u32::MAX;

/// A session on a server. What is put, defined and bound belongs to one, and ends with it. Closed by `genie_close`.
pub struct genie_session {
    _opaque: [u8; 0],
}

/// How to connect. All zeros, or NULL instead of it, are the defaults: begin with `= {0}`.
#[repr(C)]
pub struct genie_connect_options {
    /// The file with the token that proves who this is, as `genie token new` writes it; NULL: no token.
    pub token_file: *const c_char,
    /// Whom to trust on tcps:// and urings://: the file (PEM) with the certificate of who signed the server's. With genie://, what leaves
    /// this host is encrypted then. NULL: nobody.
    pub ca_file: *const c_char,
    /// This side's certificate (PEM), for a server that asks for one; with `key_file`, or NULL.
    pub cert_file: *const c_char,
    /// Its key.
    pub key_file: *const c_char,
    /// For genie://HOST:PORT, use this link or none: "tcp", "tcps", "shm", "rdma", "uring", "urings". NULL: the best that both ends have.
    pub link: *const c_char,
    /// Bytes that the session may hold on the server; 0: the server's default.
    pub quota: u64,
    /// How long to try to reach the server, at first and after a loss, in milliseconds; 0: 15,000.
    pub timeout_ms: u32,
    /// How long the session outlives its connection, in milliseconds; 0: 600,000. A session says nothing between calls, and the server takes
    /// it for gone after some 30 s without one: the next call connects again, as long as the lease has not run out.
    pub lease_ms: u32,
    /// How long a thread polls for an answer before it sleeps, while answers come fast, in microseconds; 0: what suits the machine;
    /// `GENIE_NO_POLL`: not at all.
    pub poll_us: u32,
    /// Zeros.
    pub reserved: [u32; 9],
}

/// A device of a server.
#[repr(C)]
pub struct genie_device {
    /// What calls name it by.
    pub index: u32,
    /// Zero.
    pub reserved: u32,
    /// Bytes that tensors may take.
    pub total_bytes: u64,
    /// Bytes not taken.
    pub free_bytes: u64,
    /// "cpu:0", "cuda:3".
    pub name: [c_char; 32],
    /// What the hardware calls itself.
    pub model: [c_char; 128],
    /// Instruction set or compute capability.
    pub capability: [c_char; 64],
}

/// A counter of a server.
#[repr(C)]
pub struct genie_counter {
    /// What it counts: "genie_copied_bytes_total", for one.
    pub name: [c_char; 56],
    /// Its value.
    pub value: u64,
}

pub(crate) struct Session {
    pub(crate) core: Arc<Core>,
}

/// All of them.
pub(crate) fn sessions() -> &'static Table<Session> {
    static SESSIONS: Table<Session> = Table::new(1, "genie_session");
    &SESSIONS
}

/// The version of the library that is linked, "0.1.0". The text is the library's, and stays.
#[unsafe(no_mangle)]
pub extern "C" fn genie_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}

/// The `GENIE_ABI_VERSION` of the library that is linked: compare it with the header's where the library is loaded at run time.
#[unsafe(no_mangle)]
pub extern "C" fn genie_abi_version() -> u32 {
    GENIE_ABI_VERSION
}

/// Connects to `uri` ("tcp://HOST:PORT", "tcps://", "uring://", "urings://", "shm:///PATH", or "genie://HOST:PORT" for the best of
/// them) and opens a session. Waits for a server that is not there for as long as the options say.
///
/// `uri` and `options` (which may be NULL) are read before it returns. `*session` is the caller's, to be closed by `genie_close`.
/// Errors: GENIE_ERROR_ARGUMENT for what is no address, GENIE_ERROR_UNREACHABLE, GENIE_ERROR_ACCESS for tokens and certificates.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_connect(
    uri: *const c_char,
    options: *const genie_connect_options,
    session: *mut *mut genie_session,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(session, "session") }?;
        // SAFETY: the header's rules for what is read.
        let opened = unsafe { open(uri, options) }?;
        place.set(sessions().add(Session { core: Arc::new(Core::new(opened)?) })?);
        Ok(())
    })
}

/// A session of its own.
///
/// # Safety
/// As the header says of `genie_connect`.
pub(crate) unsafe fn open(
    uri: *const c_char,
    options: *const genie_connect_options,
) -> Result<blocking::Session, Failure> {
    // SAFETY: the caller upholds it.
    let (uri, options) = unsafe { (text(uri, "uri")?, optional(options, "options")?) };
    let uri: Uri = uri.parse()?;
    let (uri, options) = match options {
        // SAFETY: the caller upholds it.
        Some(options) => unsafe { chosen(uri, options) }?,
        None => (uri, ConnectOptions::default()),
    };
    Ok(blocking::Session::connect(&uri, options)?)
}

/// The address and the options as C says them.
///
/// # Safety
/// As the header says of `genie_connect`.
unsafe fn chosen(uri: Uri, from: &genie_connect_options) -> Result<(Uri, ConnectOptions), Failure> {
    // SAFETY: the caller upholds it of all five.
    let [token, ca, cert, key, link] = unsafe {
        [
            optional_text(from.token_file, "token_file")?,
            optional_text(from.ca_file, "ca_file")?,
            optional_text(from.cert_file, "cert_file")?,
            optional_text(from.key_file, "key_file")?,
            optional_text(from.link, "link")?,
        ]
    };
    if from.reserved.iter().any(|&r| r != 0) {
        return Err(Failure::argument("genie_connect_options.reserved is not zero: begin with `= {0}`"));
    }
    let mut options = ConnectOptions::default();
    options.client.quota = from.quota;
    options.client.token = token.map(|path| Token::load(Path::new(path))).transpose()?.map(Arc::new);
    if from.timeout_ms != 0 {
        options.client.reconnect_for = Duration::from_millis(from.timeout_ms.into());
    }
    if from.lease_ms != 0 {
        options.client.lease_ms = from.lease_ms;
    }
    match from.poll_us {
        0 => {}
        GENIE_NO_POLL => options.spin = Duration::ZERO,
        poll => options.spin = Duration::from_micros(poll.into()),
    }
    let own = match (cert, key) {
        (Some(cert), Some(key)) => Some((Path::new(cert), Path::new(key))),
        (None, None) => None,
        _ => return Err(Failure::argument("cert_file and key_file go together: give both or none")),
    };
    options.tls = match ca {
        Some(ca) => Some(TlsClient::load(Path::new(ca), own)?),
        None if uri.is_encrypted() || own.is_some() => {
            return Err(Failure::argument("whom to trust is not said: name the authority's certificate in ca_file"));
        }
        None => None,
    };
    let uri = match (uri, link) {
        (Uri::Genie { host, port, link: None }, Some(link)) => {
            let link: LinkScheme = link.parse().map_err(|e| Failure::argument(format!("link \"{link}\": {e}")))?;
            Uri::Genie { host, port, link: Some(link) }
        }
        (uri, None) => uri,
        (uri, Some(_)) => {
            return Err(Failure::argument(format!("{uri} names a link already: leave out genie_connect_options.link")));
        }
    };
    Ok((uri, options))
}

/// Ends a session, and frees all that it holds on the server. Calls of other threads that wait in it end with GENIE_ERROR_CLOSED. What else
/// was made in it (tensors, programs, ...) is of no use any more, and is still to be freed, which then always works.
///
/// `session` is freed whatever the result, and must not be used again. NULL is nothing, and is GENIE_OK. On an error the server frees what
/// the session held when its lease has run out.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_close(session: *mut genie_session, error: *mut genie_error) -> genie_status {
    entry(error, || if session.is_null() { Ok(()) } else { sessions().remove(session)?.core.close() })
}

/// The time of an empty round trip, in nanoseconds; `nanoseconds` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_ping(
    session: *const genie_session,
    nanoseconds: *mut u64,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { crate::arguments::optional_place(nanoseconds, "nanoseconds") }?;
        let core = &sessions().get(session)?.core;
        let began = Instant::now();
        core.call(|s| Ok(s.start_echo(&[])), |s, pending| s.finish_echo(pending, &mut Vec::new()))?;
        let took = began.elapsed();
        if let Some(place) = place {
            place.set(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
        Ok(())
    })
}

/// The server's devices: the first `room` of them go to `devices`, and how many there are to `*count`. With `room` 0 it only counts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_devices(
    session: *const genie_session,
    devices: *mut genie_device,
    room: usize,
    count: *mut usize,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(count, "count") }?;
        let all = sessions().get(session)?.core.call(|s| Ok(s.start_devices()), |s, p| s.finish_devices(p))?;
        let there = all.iter().map(|d| genie_device {
            index: d.index,
            reserved: 0,
            total_bytes: d.total_bytes,
            free_bytes: d.free_bytes,
            name: chars(&d.name),
            model: chars(&d.model),
            capability: chars(&d.capability),
        });
        // SAFETY: the header's rules for results.
        unsafe { fill(devices, room, there, "devices") }?;
        place.set(all.len());
        Ok(())
    })
}

/// The server's counters: the first `room` of them go to `counters`, and how many there are to `*count`. With `room` 0 it only counts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_stats(
    session: *const genie_session,
    counters: *mut genie_counter,
    room: usize,
    count: *mut usize,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(count, "count") }?;
        let all = sessions().get(session)?.core.call(|s| Ok(s.start_stats()), |s, p| s.finish_stats(p))?;
        let there = all.iter().map(|(name, value)| genie_counter { name: chars(name), value: *value });
        // SAFETY: the header's rules for results.
        unsafe { fill(counters, room, there, "counters") }?;
        place.set(all.len());
        Ok(())
    })
}

/// Bytes that this session has sent and received so far, headers included; either may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_traffic(
    session: *const genie_session,
    sent: *mut u64,
    received: *mut u64,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let places = unsafe {
            [crate::arguments::optional_place(sent, "sent")?, crate::arguments::optional_place(received, "received")?]
        };
        let (up, down) = sessions().get(session)?.core.with(|s| Ok(s.traffic()))?;
        for (place, bytes) in places.into_iter().zip([up, down]) {
            if let Some(place) = place {
                place.set(bytes);
            }
        }
        Ok(())
    })
}
