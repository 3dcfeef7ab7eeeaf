//! What the machine allows one process: file descriptors and local ports.

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that a process needs besides its connections.
const SPARE: u64 = 256;
/// Streams that share a connection of the gateway to notify_service, or fewer than do.
const SHARED: u64 = 64;

/// Makes room for this many connections in this process and in each of those it starts, or says what stands in the way and
/// what to give `option` instead.
pub fn require_descriptors(connections: u64, option: &str, what: &str) -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of file descriptors")?;
    // The gateway has one connection to a client, and one to a server for a hundred of them.
    let needed = connections + connections / SHARED + SPARE;
    if needed > hard {
        bail!(
            "{what} takes {needed} file descriptors in one process and {hard} is the most allowed here; use at most \
             {option} {}, or raise the hard limit: as root `ulimit -Hn {needed}`, or LimitNOFILE= of the unit",
            hard.saturating_sub(SPARE) * SHARED / (SHARED + 1)
        );
    }
    if needed > soft {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of file descriptors")?;
    }
    Ok(())
}

/// Checks that this many connections from one address to one port have local ports.
pub fn require_ports(connections: u64, sources: u64) -> anyhow::Result<()> {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let ports: Vec<u64> = text.split_whitespace().filter_map(|port| port.parse().ok()).collect();
    let [low, high] = ports[..] else {
        bail!("{path} holds no range: {text:?}");
    };
    let available = (high - low + 1) * sources;
    if connections > available {
        bail!(
            "{connections} connections need as many local ports and there are {available} ({path} is {low} to {high}, \
             {sources} source addresses); lower the number, or widen the range: sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\""
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_said_with_the_limit_and_the_way_out() {
        require_descriptors(10, "--streams", "a test").unwrap();
        let error = require_descriptors(1 << 40, "--clients", "a test")
            .unwrap_err()
            .to_string();
        let hard = getrlimit(Resource::RLIMIT_NOFILE).unwrap().1;
        assert!(
            error.contains(&hard.to_string())
                && error.contains("ulimit -Hn")
                && error.contains("use at most --clients "),
            "{error}"
        );
        require_ports(10, 1).unwrap();
        let error = require_ports(1 << 30, 2).unwrap_err().to_string();
        assert!(error.contains("ip_local_port_range"), "{error}");
    }
}
