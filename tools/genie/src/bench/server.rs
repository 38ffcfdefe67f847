//! The servers that a bench measures: some that run already, or one of its own.

use anyhow::{Context, Result, bail};
use clap::Args;
use genie_transport::Uri;

use crate::connect::LinkArgs;
use crate::server::OwnServer;

/// Which servers to measure.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server; several, one after the other: tcp://HOST:PORT,shm:///path. With --serve: where to listen.
    #[arg(long, visible_alias = "connect", value_name = "URI", value_delimiter = ',')]
    uri: Vec<Uri>,
    /// Start a server in a process of its own for as long as it takes, on this machine.
    #[arg(long)]
    serve: bool,
    /// With --serve: links to measure one after the other, each on an address that is free: tcp,shm,uring.
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "serve", conflicts_with = "uri")]
    links: Vec<String>,
    /// With --serve: the server's devices, as for `genie serve`.
    #[arg(long, value_name = "NAME", default_value = "cpu", requires = "serve")]
    serve_device: String,
    /// With --serve: further arguments of `genie serve`, in one word: '--tls-cert cert.pem --tls-key key.pem'.
    #[arg(long, value_name = "ARGS", default_value = "", requires = "serve", allow_hyphen_values = true)]
    serve_args: String,
}

/// Servers that are ready.
#[derive(Debug)]
pub(super) struct Servers {
    uris: Vec<Uri>,
    /// Stopped with this value.
    _own: Option<OwnServer>,
}

impl ServerArgs {
    /// Starts the server, if one is to be started. It polls if its client does.
    pub(super) fn ready(&self, link: &LinkArgs) -> Result<Servers> {
        if !self.serve {
            if self.uri.is_empty() {
                bail!("say which server: --uri tcp://HOST:PORT, or --serve to start one");
            }
            return Ok(Servers { uris: self.uri.clone(), _own: None });
        }
        let mut listen = self.uri.clone();
        for name in &self.links {
            listen.push(free_address(name)?);
        }
        if listen.is_empty() {
            listen.push(free_address("tcp")?);
        }
        let mut more: Vec<&str> = self.serve_args.split_whitespace().collect();
        if link.spin == 0 {
            more.extend(["--spin", "0"]);
        }
        let own = OwnServer::start_at(&listen, &self.serve_device, &more)?;
        Ok(Servers { uris: own.uris().to_vec(), _own: Some(own) })
    }
}

impl Servers {
    /// Where they listen.
    pub(super) fn uris(&self) -> &[Uri] {
        &self.uris
    }
}

/// The name of an address's link: `tcp`.
pub(super) fn scheme(uri: &Uri) -> String {
    uri.to_string().split("://").next().unwrap_or_default().to_owned()
}

/// An address of this link that nobody has: a free port, or a path that names this process.
fn free_address(link: &str) -> Result<Uri> {
    let text = match link {
        "shm" => {
            let path = std::env::temp_dir().join(format!("genie-bench-{}.sock", std::process::id()));
            format!("shm://{}", path.display())
        }
        other => format!("{other}://127.0.0.1:0"),
    };
    text.parse().with_context(|| format!("--links {link}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_have_free_addresses() {
        let uri = free_address("tcp").unwrap();
        assert_eq!((uri.to_string().as_str(), scheme(&uri).as_str()), ("tcp://127.0.0.1:0", "tcp"));
        let error = format!("{:#}", free_address("pigeon").unwrap_err());
        assert!(error.contains("--links pigeon"), "{error}");
    }
}
