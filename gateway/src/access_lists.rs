//! Who may come, by address, and as whom we may be addressed, by host name.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config;

/// Allowed and denied client networks.
#[derive(Debug, Clone)]
pub struct Addresses {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

impl Addresses {
    /// The lists of validated settings.
    pub fn new(settings: &config::Addresses) -> Self {
        Self {
            allow: settings.allow.clone(),
            deny: settings.deny.clone(),
        }
    }

    /// Whether a client at this address is let in: not denied and, where there is an allow list, on it.
    pub fn permit(&self, address: IpAddr) -> bool {
        if self.allow.is_empty() && self.deny.is_empty() {
            return true;
        }
        let address = address.to_canonical();
        let on = |list: &[IpNet]| list.iter().any(|network| network.contains(&address));
        !on(&self.deny) && (self.allow.is_empty() || on(&self.allow))
    }
}

/// The host names we answer to.
#[derive(Debug, Clone)]
pub struct Hosts {
    exact: Vec<String>,
    /// `.example.org` for `*.example.org`.
    suffixes: Vec<String>,
}

impl Hosts {
    /// Names of validated settings; an empty list answers to any name.
    pub fn new(names: &[String]) -> Self {
        let lower = || names.iter().map(|name| name.to_ascii_lowercase());
        Self {
            exact: lower().filter(|name| !name.starts_with('*')).collect(),
            suffixes: lower()
                .filter_map(|name| name.strip_prefix('*').map(str::to_owned))
                .collect(),
        }
    }

    /// Whether we answer to `authority`, which is `name` or `name:port`.
    pub fn answer_to(&self, authority: &str) -> bool {
        if self.exact.is_empty() && self.suffixes.is_empty() {
            return true;
        }
        let name = match authority.rfind(':') {
            Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
            _ => authority,
        };
        let is_below = |suffix: &String| {
            name.len() > suffix.len()
                && name.as_bytes()[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
        };
        self.exact.iter().any(|known| known.eq_ignore_ascii_case(name)) || self.suffixes.iter().any(is_below)
    }
}

/// Whether `name` can stand in the list of host names: a name, an address, or `*.` and a name.
pub fn is_host_name(name: &str) -> bool {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    crate::framing::is_host(rest.as_bytes()) && (rest.starts_with('[') || !rest.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn denial_wins_and_an_allow_list_is_exclusive() {
        let permit = |allow: &[&str], deny: &[&str], address: &str| {
            let lists = config::Addresses {
                allow: networks(allow),
                deny: networks(deny),
            };
            Addresses::new(&lists).permit(address.parse().unwrap())
        };
        assert!(permit(&[], &[], "192.0.2.1"));
        assert!(!permit(&[], &["192.0.2.0/24"], "192.0.2.1"));
        assert!(!permit(&[], &["192.0.2.0/24"], "::ffff:192.0.2.1"));
        assert!(permit(&["192.0.2.0/24"], &[], "192.0.2.1"));
        assert!(!permit(&["192.0.2.0/24"], &[], "198.51.100.1"));
        assert!(!permit(&["192.0.2.0/24"], &["192.0.2.1/32"], "192.0.2.1"));
        assert!(!permit(&[], &["2001:db8::/32"], "2001:db8::1"));
    }

    #[test]
    fn hosts_are_exact_or_below_a_name() {
        let names = ["chat.example.org", "*.example.net", "[::1]"].map(str::to_owned);
        let hosts = Hosts::new(&names);
        for good in [
            "chat.example.org",
            "CHAT.example.org:8443",
            "a.example.net",
            "a.b.example.net:1",
            "[::1]:443",
        ] {
            assert!(hosts.answer_to(good), "{good}");
        }
        for bad in [
            "example.org",
            "example.net",
            "badexample.net",
            "chat.example.org.evil",
            "127.0.0.1",
            "",
        ] {
            assert!(!hosts.answer_to(bad), "{bad}");
        }
        assert!(Hosts::new(&[]).answer_to("anything"));
        for (name, good) in [
            ("a.b", true),
            ("*.a.b", true),
            ("a:1", false),
            ("*", false),
            ("a/b", false),
            ("[::1]", true),
        ] {
            assert_eq!(is_host_name(name), good, "{name}");
        }
    }
}
