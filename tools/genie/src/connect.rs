//! Reaching a server.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use genie_transport::Uri;
use genie_transport::auth::Token;
use genie_transport::client::{ConnectOptions, blocking};
use genie_transport::link;
use genie_transport::link::choose::{self, Report};
use genie_transport::link::tls::{TlsClient, TlsFileError};
use genie_transport::wire::LinkScheme;

use crate::fail::Unreachable;

/// How a client of the command line connects.
#[derive(Clone, Copy, Debug, PartialEq, Args)]
pub(crate) struct LinkArgs {
    /// Microseconds to poll for an answer before the thread sleeps, while answers come fast; 0: sleep at once.
    #[arg(long, value_name = "US", default_value_t = spin())]
    pub(crate) spin: u64,
    /// Of genie://HOST:PORT, use this link or none: tcp, tcps, shm, rdma, uring, urings. Only tcps and urings encrypt: what goes by rdma
    /// can be read on the way, with a token as without.
    #[arg(long, value_name = "LINK")]
    pub(crate) link: Option<LinkScheme>,
    /// Seconds to wait for a server that is not there yet.
    #[arg(long, value_name = "S", default_value_t = 0.0, value_parser = seconds)]
    pub(crate) wait: f64,
    /// Seconds to wait for a server that goes away in the middle; what was lost with it is then built again.
    #[arg(long, value_name = "S", default_value_t = RECONNECT, value_parser = seconds)]
    pub(crate) reconnect: f64,
    /// The token that proves who this is: a file with one line, NAME SECRET, that nobody else can read.
    #[arg(long, value_name = "FILE", env = "GENIE_TOKEN_FILE", value_parser = path)]
    pub(crate) token_file: Option<&'static Path>,
    /// Whom to trust on tcps:// and urings://: the certificate of who signed the server's. With genie://, what leaves this host is encrypted
    /// then.
    #[arg(long, value_name = "FILE", env = "GENIE_CA", value_parser = path)]
    pub(crate) ca: Option<&'static Path>,
    /// This side's certificate, for a server that asks for one.
    #[arg(long, value_name = "FILE", env = "GENIE_TLS_CERT", requires = "tls_key", value_parser = path)]
    pub(crate) tls_cert: Option<&'static Path>,
    /// Its key.
    #[arg(long, value_name = "FILE", env = "GENIE_TLS_KEY", requires = "tls_cert", value_parser = path)]
    pub(crate) tls_key: Option<&'static Path>,
}

impl LinkArgs {
    /// These again, as they are written for another process of this program.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let numbers = [("--spin", self.spin.to_string()), ("--wait", self.wait.to_string())];
        let numbers = numbers.into_iter().chain([("--reconnect", self.reconnect.to_string())]);
        let link = self.link.map(|link| ("--link", link.name().into()));
        let files = [
            ("--token-file", self.token_file),
            ("--ca", self.ca),
            ("--tls-cert", self.tls_cert),
            ("--tls-key", self.tls_key),
        ];
        let files = files.into_iter().filter_map(|(name, path)| Some((name, path?.into())));
        let all = numbers.map(|(name, number)| (name, number.into())).chain(link).chain(files);
        all.flat_map(|(name, value): (&str, OsString)| [name.into(), value]).collect()
    }

    /// Whom to trust, where the address asks for it.
    pub(crate) fn tls(&self, uri: &Uri) -> Result<Option<TlsClient>> {
        let ca = match uri {
            uri if uri.is_encrypted() => self.ca.ok_or(TlsFileError::NoCa)?,
            Uri::Genie { .. } => match self.ca {
                Some(ca) => ca,
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        Ok(Some(TlsClient::load(ca, self.tls_cert.zip(self.tls_key))?))
    }
}

/// Microseconds: what clients do unless told otherwise.
fn spin() -> u64 {
    ConnectOptions::default().spin.as_micros() as u64
}

/// A path for the rest of the process's life: arguments are read once, and handed on by value.
fn path(text: &str) -> Result<&'static Path, std::convert::Infallible> {
    Ok(Path::new(text.to_owned().leak()))
}

impl Default for LinkArgs {
    fn default() -> Self {
        Self {
            spin: spin(),
            link: None,
            wait: 0.0,
            reconnect: RECONNECT,
            token_file: None,
            ca: None,
            tls_cert: None,
            tls_key: None,
        }
    }
}

/// A server that is started again is there within this time.
const RECONNECT: f64 = 15.0;

/// A session on the server. One that is not there is an error at once (or after `--wait`); one that goes away later is waited
/// for.
pub(crate) fn session(uri: &Uri, link: LinkArgs) -> Result<blocking::Session> {
    session_with(uri, link, |_| {})
}

/// The same with further options.
pub(crate) fn session_with(
    uri: &Uri,
    link: LinkArgs,
    more: impl FnOnce(&mut ConnectOptions),
) -> Result<blocking::Session> {
    let uri = &wanted(uri, link)?;
    reach(uri, link)?;
    another(uri, link, more)
}

/// The same on a server that is known to be there.
pub(crate) fn another(uri: &Uri, link: LinkArgs, more: impl FnOnce(&mut ConnectOptions)) -> Result<blocking::Session> {
    let mut options = ConnectOptions { spin: Duration::from_micros(link.spin), ..ConnectOptions::default() };
    // Whoever stops a command in the middle leaves its session behind: the server says for how long.
    options.client.lease_ms = 0;
    options.tls = link.tls(uri)?;
    options.client.token = link.token_file.map(Token::load).transpose()?.map(Arc::new);
    options.client.reconnect_for = Duration::from_secs_f64(link.reconnect);
    more(&mut options);
    blocking::Session::connect(uri, options).with_context(|| format!("connecting to {uri}"))
}

/// For a session that is measured: a blocking one says nothing while its floor, or another session, has its turn, and the server
/// takes it for dead meanwhile. It has to find its tensors when it comes back, after a few minutes of other things or such turns of
/// `turn` seconds; but one whose command was killed should not hold a server's memory for long. A server may give less.
pub(crate) fn lasting(turn: f64) -> impl FnOnce(&mut ConnectOptions) {
    let lease = Duration::from_secs(300).saturating_add(Duration::try_from_secs_f64(2.0 * turn).unwrap_or_default());
    move |options| options.client.lease_ms = lease.as_millis().try_into().unwrap_or(u32::MAX)
}

/// Does something in a session that ends with it, whatever comes of it: what a failure left on the server would else stay there
/// until the session's lease has run out.
pub(crate) fn within<T>(
    uri: &Uri,
    link: LinkArgs,
    work: impl FnOnce(&mut blocking::Session) -> Result<T>,
) -> Result<T> {
    within_with(uri, link, |_| {}, work)
}

/// The same with further options.
pub(crate) fn within_with<T>(
    uri: &Uri,
    link: LinkArgs,
    more: impl FnOnce(&mut ConnectOptions),
    work: impl FnOnce(&mut blocking::Session) -> Result<T>,
) -> Result<T> {
    let mut session = session_with(uri, link, more)?;
    let done = work(&mut session);
    let closed = session.close();
    let done = done?;
    closed?;
    Ok(done)
}

/// The name of an address's link: `tcp`.
pub(crate) fn scheme(uri: &Uri) -> String {
    uri.to_string().split("://").next().unwrap_or_default().to_owned()
}

/// The address with what `--link` adds to it.
pub(crate) fn wanted(uri: &Uri, args: LinkArgs) -> Result<Uri> {
    let Some(link) = args.link else { return Ok(uri.clone()) };
    match uri {
        Uri::Genie { host, port, link: None } => Ok(Uri::Genie { host: host.clone(), port: *port, link: Some(link) }),
        // As it was settled before, or asked for twice.
        Uri::Genie { link: Some(named), .. } if *named == link => Ok(uri.clone()),
        uri if scheme(uri) == link.name() => Ok(uri.clone()),
        _ => bail!("--link {} is for genie://HOST:PORT, but {uri} names a link already: leave it out", link.name()),
    }
}

/// The link's own address, and how it was chosen where there was a choice. What is measured or explained is of one link, whichever
/// it turns out to be.
pub(crate) fn settled(uri: &Uri, args: LinkArgs) -> Result<(Uri, Option<Report>)> {
    let uri = wanted(uri, args)?;
    let Uri::Genie { host, port, link: forced } = &uri else { return Ok((uri, None)) };
    reach(&uri, args)?;
    let found = choose::find(host, *port, *forced, args.tls(&uri)?.as_ref())
        .with_context(|| format!("choosing a link to {uri}"))?;
    Ok((found.report.chosen.clone(), Some(found.report)))
}

/// Whether anybody listens.
///
/// # Errors
/// [`Unreachable`], after `--wait`.
pub(crate) fn reach(uri: &Uri, link: LinkArgs) -> Result<()> {
    let until = Instant::now() + Duration::from_secs_f64(link.wait);
    // Which link it will be is chosen later: whether the server is there shows without.
    let there = match uri {
        Uri::Genie { host, port, .. } => &Uri::Tcp { host: host.clone(), port: *port },
        uri => uri,
    };
    loop {
        match link::dialer_with(there, link.tls(there)?).control() {
            Ok(_) => return Ok(()),
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(Unreachable { uri: uri.to_string(), reason: error.to_string() }.into()),
        }
    }
}

/// A time that is neither negative nor endless.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.0..=86_400.0).contains(&s) => Ok(s),
        _ => Err("write seconds from 0 to 86400".to_owned()),
    }
}

/// Bytes: a number, alone or with k, M, G or T (powers of 1024).
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let bad = || "write a number of bytes, alone or with K, M, G or T: 64M".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).filter(|&n| n > 0).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_link_is_asked_for_once() {
        let args = |link: &str| LinkArgs { link: Some(link.parse().unwrap()), ..LinkArgs::default() };
        let of = |uri: &str, link| wanted(&uri.parse().unwrap(), args(link)).map(|uri| uri.to_string());
        for uri in ["tcp://a:1", "genie://a:1?link=tcp"] {
            assert_eq!(of(uri, "tcp").unwrap(), uri);
        }
        assert!(of("tcp://a:1", "shm").unwrap_err().to_string().contains("leave it out"));
        // What names a link is settled, and nobody is asked.
        let (uri, report) = settled(&"tcp://192.0.2.1:1".parse().unwrap(), LinkArgs::default()).unwrap();
        assert!(uri.to_string() == "tcp://192.0.2.1:1" && report.is_none());
    }

    #[derive(Debug, clap::Parser)]
    struct Other {
        #[command(flatten)]
        link: LinkArgs,
    }

    /// Whatever a user may give: another process that is told less would connect in another way, or not at all.
    #[test]
    fn another_process_is_told_all_of_it() {
        let given =
            "genie --spin 7 --link urings --wait 0.25 --reconnect 3 --token-file a --ca b --tls-cert c --tls-key d";
        let given = Other::parse_from(given.split(' ')).link;
        let told = Other::parse_from([OsString::from("genie")].into_iter().chain(given.arguments())).link;
        assert_eq!(told, given);
        let given = LinkArgs::default();
        let told = Other::parse_from([OsString::from("genie")].into_iter().chain(given.arguments())).link;
        assert_eq!(told, given);
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("65536"), Ok(65536));
        assert_eq!(size("64M"), Ok(64 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        for bad in ["", "0", "-1", "M", "1.5G", "1X", "99999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
