//! The servers that a bench measures: some that run already, or one of its own.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use genie_transport::Uri;

use super::rounded;
use crate::connect::{self, LinkArgs};
use crate::gpu::{self, Watch};
use crate::server::OwnServer;

/// Which servers to measure.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server; several, one after the other: tcp://HOST:PORT,shm:///path. With --serve: where to listen. rdma:// does not encrypt.
    #[arg(long, visible_alias = "connect", value_name = "URI", value_delimiter = ',')]
    uri: Vec<Uri>,
    /// Start a server in a process of its own for as long as it takes, on this machine.
    #[arg(long)]
    serve: bool,
    /// With --serve: links to measure one after the other, each on an address that is free: tcp,shm,uring.
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "serve", conflicts_with = "uri")]
    links: Vec<String>,
    /// With --links: this machine's address to listen at, and to reach the server by; rdma needs one that an RDMA device has. For one that
    /// others can reach, the server asks for more: --serve-args '--tokens FILE --plaintext-off-host', and --token-file.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", requires = "links")]
    host: String,
    /// With --serve: the server's devices, as for `genie serve`.
    #[arg(long, value_name = "NAME", default_value = "cpu", requires = "serve")]
    serve_device: String,
    /// With --serve: further arguments of `genie serve`, in one word: '--tls-cert cert.pem --tls-key key.pem'.
    #[arg(long, value_name = "ARGS", default_value = "", requires = "serve", allow_hyphen_values = true)]
    serve_args: String,
    /// With --serve: the server writes into this file when each slice of a tensor was on the network, and when it was copied to or from its
    /// GPU, as `genie serve --trace` does.
    #[arg(long, value_name = "FILE.json", requires = "serve")]
    trace: Option<PathBuf>,
    /// Where a table of how busy the server's GPU was goes, if it is one of this machine: time_s, sm (percent), memory (bytes).
    #[arg(long, value_name = "FILE.csv")]
    utilisation: Option<PathBuf>,
}

/// Servers that are ready.
pub(super) struct Servers {
    uris: Vec<Uri>,
    /// Of the device that is measured, of the first server.
    watch: Option<Watch>,
    utilisation: Option<PathBuf>,
    /// Stopped with this value.
    _own: Option<OwnServer>,
}

impl ServerArgs {
    /// Starts the server, if one is to be started. It polls if its client does. From here on its `device` is watched, if that is a GPU of
    /// this machine.
    pub(super) fn ready(&self, link: &LinkArgs, device: u16) -> Result<Servers> {
        let (uris, own) = self.open(link)?;
        let asked = self.utilisation.is_some() || (self.serve && !self.serve_device.starts_with("cpu"));
        let watch = match uris.first() {
            Some(uri) if asked => {
                let uuid = connect::within(uri, *link, |session| gpu::uuid_of(session, device))?;
                uuid.and_then(|uuid| Watch::start(&uuid))
            }
            _ => None,
        };
        if let Some(path) = self.utilisation.as_ref().filter(|_| watch.is_none()) {
            bail!(
                "{}: nobody tells how busy device {device} is: it is no GPU of this machine, or NVIDIA's management library is missing",
                path.display()
            );
        }
        Ok(Servers { uris, watch, utilisation: self.utilisation.clone(), _own: own })
    }

    fn open(&self, link: &LinkArgs) -> Result<(Vec<Uri>, Option<OwnServer>)> {
        if !self.serve {
            if self.uri.is_empty() {
                bail!("say which server: --uri tcp://HOST:PORT, or --serve to start one");
            }
            // A row names the link that it is of, and stands beside that link's floor.
            let settled = self.uri.iter().map(|uri| connect::settled(uri, *link).map(|(uri, _)| uri));
            return Ok((settled.collect::<Result<_>>()?, None));
        }
        let mut listen = self.uri.clone();
        for name in &self.links {
            listen.push(free_address(name, &self.host)?);
        }
        if listen.is_empty() {
            listen.push(free_address("tcp", &self.host)?);
        }
        let mut more: Vec<&str> = self.serve_args.split_whitespace().collect();
        if link.spin == 0 {
            more.extend(["--spin", "0"]);
        }
        if let Some(path) = &self.trace {
            more.extend(["--trace", path.to_str().context("--trace: a path that is no text")?]);
        }
        let own = OwnServer::start_at(&listen, &self.serve_device, &more)?;
        Ok((own.uris().to_vec(), Some(own)))
    }
}

impl Servers {
    /// Where they listen.
    pub(super) fn uris(&self) -> &[Uri] {
        &self.uris
    }

    /// Percent of the time since then in which the device ran a kernel, if it is a GPU that is watched.
    pub(super) fn avg_sm(&self, since: Instant) -> Option<f64> {
        self.watch.as_ref()?.average(since, Instant::now()).map(rounded)
    }

    /// Writes how busy the device was, where that is wanted.
    pub(super) fn write_utilisation(&self) -> Result<()> {
        match (&self.watch, &self.utilisation) {
            (Some(watch), Some(path)) => watch.write(path),
            _ => Ok(()),
        }
    }
}

/// An address of this link that nobody has: a free port, or a path that names this process.
fn free_address(link: &str, host: &str) -> Result<Uri> {
    let text = match link {
        "shm" => {
            let path = std::env::temp_dir().join(format!("genie-bench-{}.sock", std::process::id()));
            format!("shm://{}", path.display())
        }
        "rdma" if host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) => {
            bail!("--links rdma: no RDMA device has the address {host}; name one that a device has, with --host")
        }
        // An IPv6 address stands in brackets.
        other if host.contains(':') => format!("{other}://[{host}]:0"),
        other => format!("{other}://{host}:0"),
    };
    text.parse().with_context(|| format!("--links {link} --host {host}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::scheme;

    #[test]
    fn links_have_free_addresses() {
        let uri = free_address("tcp", "127.0.0.1").unwrap();
        assert_eq!((uri.to_string().as_str(), scheme(&uri).as_str()), ("tcp://127.0.0.1:0", "tcp"));
        assert_eq!(free_address("tcp", "192.0.2.1").unwrap().to_string(), "tcp://192.0.2.1:0");
        assert_eq!(free_address("tcp", "::1").unwrap().to_string(), "tcp://[::1]:0");
        let error = format!("{:#}", free_address("pigeon", "127.0.0.1").unwrap_err());
        assert!(error.contains("--links pigeon"), "{error}");
        let error = free_address("rdma", "127.0.0.1").unwrap_err().to_string();
        assert!(error.contains("--host"), "{error}");
    }
}
