//! The head of an HTTP/1 request, as the rules look at it once [`framing`](crate::framing) lets it through.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use pingora::http::RequestHeader;

use crate::framing::{self, Following, FramingFault, HeadLimits};

/// Checks and reads a whole head, its final empty line included, and says what follows it. The fields share the memory of the head.
///
/// # Errors
///
/// When it is none that [`framing::check`] lets through, or has a target that is no URI.
pub fn read(head: &Bytes, limits: &HeadLimits) -> Result<(RequestHeader, Following), FramingFault> {
    let count = memchr::memchr_iter(b'\n', head).count();
    let mut fields = HeaderMap::with_capacity(count.min(limits.header_fields));
    let (line, following) = framing::check(head, limits, |name, value| {
        let name = HeaderName::from_bytes(name).map_err(|_| FramingFault::FieldName)?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(value)).map_err(|_| FramingFault::ControlByte)?;
        fields.append(name, value);
        Ok(())
    })?;
    let mut request = http::Request::new(()).into_parts().0;
    request.method = Method::from_bytes(line.method).map_err(|_| FramingFault::RequestLine)?;
    request.uri = Uri::from_maybe_shared(head.slice_ref(line.target)).map_err(|_| FramingFault::TargetByte)?;
    request.version = line.version;
    request.headers = fields;
    Ok((request.into(), following))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits {
        uri_bytes: 100,
        header_bytes: 1_000,
        header_fields: 4,
    };

    fn target_of(target: &str) -> Result<Vec<u8>, FramingFault> {
        let head = Bytes::from(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
        read(&head, &LIMITS).map(|(request, _)| request.raw_path().to_owned())
    }

    #[test]
    fn a_head_is_read_as_it_was_sent() {
        let head =
            Bytes::from_static(b"PATCH /a%20b?c={d} HTTP/1.0\r\nHost: x\r\nX-One: 1\r\nx-one:2 \r\nEmpty:\r\n\r\n");
        let (request, following) = read(&head, &LIMITS).unwrap();
        assert_eq!(following, Following::Body(0));
        assert_eq!(request.method, "PATCH");
        assert_eq!(request.raw_path(), b"/a%20b?c={d}");
        assert_eq!(request.uri.path(), "/a%20b");
        assert_eq!(request.version, http::Version::HTTP_10);
        let fields = request.headers.iter();
        let fields: Vec<_> = fields.map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(
            fields,
            [("host", &b"x"[..]), ("x-one", b"1"), ("x-one", b"2"), ("empty", b"")]
        );
    }

    #[test]
    fn a_target_arrives_as_it_is_or_not_at_all() {
        for target in ["/", "/a?b=`{|}^", "/a%20b", "/a^b"] {
            assert_eq!(target_of(target), Ok(target.as_bytes().to_owned()), "{target}");
        }
        for target in ["/a`b", "/a<b", "/\u{e9}"] {
            assert_eq!(target_of(target), Err(FramingFault::TargetByte), "{target}");
        }
    }
}
