//! Paths that two parties could read differently are refused, so that what is matched is what is forwarded.

/// Why a path is refused. Every one is a 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathFault {
    /// Not `/…`.
    NotOriginForm,
    /// `//`, `/./`, `/../`, also with an encoded dot.
    Segments,
    /// `%2f`, `%5c`, `%00`, another encoded control byte, or a backslash.
    Encoded,
    /// `%` without two hexadecimal digits, or a byte a URI cannot have.
    Malformed,
}

impl PathFault {
    /// A bounded label for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotOriginForm => "target_form",
            Self::Segments => "path_segments",
            Self::Encoded => "path_encoding",
            Self::Malformed => "path_malformed",
        }
    }
}

/// Checks a path without its query, byte by byte as it arrived.
pub fn check(path: &[u8]) -> Result<(), PathFault> {
    if path.first() != Some(&b'/') {
        return Err(PathFault::NotOriginForm);
    }
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b'/' if is_confusing_segment(after) => return Err(PathFault::Segments),
            b'\\' => return Err(PathFault::Encoded),
            b'%' => check_escape(after)?,
            b'"' | b'<' | b'>' | b'#' | b'^' | b'`' | b'{' | b'|' | b'}' => return Err(PathFault::Malformed),
            0x21..=0x7e => {}
            _ => return Err(PathFault::Malformed),
        }
        rest = after;
    }
    Ok(())
}

/// Whether the segment that begins here is empty (but not the last one), `.` or `..`, with plain or encoded dots.
fn is_confusing_segment(after: &[u8]) -> bool {
    let segment = after.split(|byte| *byte == b'/').next().unwrap_or_default();
    if segment.is_empty() {
        return !after.is_empty();
    }
    let mut rest = segment;
    let mut dots = 0;
    while let Some(&byte) = rest.first() {
        if byte == b'.' {
            rest = &rest[1..];
        } else if rest.len() >= 3 && rest[..3].eq_ignore_ascii_case(b"%2e") {
            rest = &rest[3..];
        } else {
            // `..;x` is a dot segment for servers that cut path parameters off.
            return byte == b';' && dots > 0;
        }
        dots += 1;
    }
    dots <= 2
}

fn check_escape(after: &[u8]) -> Result<(), PathFault> {
    let digit = |index: usize| after.get(index).and_then(|byte| char::from(*byte).to_digit(16));
    let (Some(high), Some(low)) = (digit(0), digit(1)) else {
        return Err(PathFault::Malformed);
    };
    match high * 16 + low {
        0..=0x1f | 0x7f | 0x2f | 0x5c => Err(PathFault::Encoded),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_paths_pass() {
        for path in [
            "/",
            "/api/chat",
            "/api/chat/",
            "/.well-known/jwks.json",
            "/a/...x",
            "/a/%20b",
            "/a/b.c",
            "/a/..b",
            "/a;b=c",
            "/a/~x!$&'()*+,=:@",
        ] {
            assert_eq!(check(path.as_bytes()), Ok(()), "{path}");
        }
    }

    #[test]
    fn confusing_paths_are_refused() {
        use PathFault::{Encoded, Malformed, NotOriginForm, Segments};
        for (path, fault) in [
            ("", NotOriginForm),
            ("*", NotOriginForm),
            ("https://host/", NotOriginForm),
            ("//", Segments),
            ("//host/api", Segments),
            ("/api//chat", Segments),
            ("/api/./chat", Segments),
            ("/api/../chat", Segments),
            ("/api/..", Segments),
            ("/api/.", Segments),
            ("/api/%2e%2E/chat", Segments),
            ("/api/.%2e/chat", Segments),
            ("/api/..;/chat", Segments),
            ("/api/%2e%2e;x/chat", Segments),
            ("/api%2fchat", Encoded),
            ("/api%2Fchat", Encoded),
            ("/api%5cchat", Encoded),
            ("/api\\chat", Encoded),
            ("/api/%00", Encoded),
            ("/api/%0d%0a", Encoded),
            ("/api/%7f", Encoded),
            ("/api/%", Malformed),
            ("/api/%4", Malformed),
            ("/api/%zz", Malformed),
            ("/api/a b", Malformed),
            ("/api/<x>", Malformed),
            ("/api/\u{e9}", Malformed),
            ("/api/\u{0}", Malformed),
            ("/api#x", Malformed),
        ] {
            assert_eq!(check(path.as_bytes()), Err(fault), "{path:?}");
        }
    }
}
