//! The head of an upstream's answer, by the rules that heads of requests are held to: what two parsers could read differently is no answer.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pingora::http::ResponseHeader;

use crate::framing::{self, FramingFault, HeadLimits, Lines};

/// Bounds of a head. Upstreams are ours: these keep one that has gone wrong from filling our memory.
const LIMITS: HeadLimits = HeadLimits {
    uri_bytes: 8 * 1_024,
    header_bytes: 256 * 1_024,
    header_fields: 256,
};
/// Fields about the upstream's connection; `Transfer-Encoding` says how the client gets the body, too.
const OF_CONNECTION: [HeaderName; 4] = [
    CONNECTION,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// How long the body of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// So many bytes, often none.
    Exact(u64),
    /// Chunks, which say themselves where they end.
    Chunks,
    /// Until the connection ends.
    ToTheEnd,
}

/// A head that may be believed.
#[derive(Debug)]
pub struct AnswerHead {
    pub head: ResponseHeader,
    pub length: Length,
    /// Whether the upstream's connection may be used again after this answer.
    pub keeps: bool,
}

/// Where the head at the beginning of `bytes` ends, of which the first `seen` have been looked at before; `None` asks for more.
pub fn find_end(bytes: &[u8], seen: usize) -> Result<Option<usize>, FramingFault> {
    const BEGINNING: &[u8] = b"HTTP/1.";
    // Whoever speaks something else may wait for us to go on.
    if !bytes.starts_with(&BEGINNING[..bytes.len().min(BEGINNING.len())]) {
        return Err(FramingFault::Version);
    }
    framing::find_end(bytes, seen, &LIMITS)
}

/// Takes away what is about the upstream's connection.
pub fn bare(head: &mut ResponseHeader) {
    for name in OF_CONNECTION {
        head.remove_header(&name);
    }
}

/// Reads a whole head, its final empty line included, of an answer to a `HEAD` or another request.
pub fn parse(head: &Bytes, to_head: bool) -> Result<AnswerHead, FramingFault> {
    let mut lines = Lines { rest: head };
    let (is_http10, status) = status_of(lines.next_line()?)?;
    let mut fields = HeaderMap::with_capacity(16);
    loop {
        let line = lines.next_line()?;
        if line.is_empty() {
            break;
        }
        if fields.len() >= LIMITS.header_fields {
            return Err(FramingFault::TooManyFields);
        }
        let (name, value) = framing::split_field(line)?;
        let name = HeaderName::from_bytes(name).map_err(|_| FramingFault::FieldName)?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(value)).map_err(|_| FramingFault::ControlByte)?;
        fields.append(name, value);
    }
    let declared = length(&fields, is_http10)?;
    let is_bare = to_head || status.is_informational() || matches!(status.as_u16(), 204 | 304);
    let length = if is_bare { Length::Exact(0) } else { declared };
    let keeps = length != Length::ToTheEnd && framing::keeps(&fields, is_http10);
    for name in OF_CONNECTION {
        fields.remove(name);
    }
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = status;
    parts.headers = fields;
    Ok(AnswerHead {
        head: parts.into(),
        length,
        keeps,
    })
}

/// Whether it is HTTP/1.0, and the status.
fn status_of(line: &[u8]) -> Result<(bool, StatusCode), FramingFault> {
    if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(FramingFault::ControlByte);
    }
    let (version, rest) = line.split_at_checked(9).ok_or(FramingFault::RequestLine)?;
    let is_http10 = match version {
        b"HTTP/1.1 " => false,
        b"HTTP/1.0 " => true,
        _ => return Err(FramingFault::Version),
    };
    let (digits, reason) = rest.split_at_checked(3).ok_or(FramingFault::RequestLine)?;
    if !matches!(reason.first(), None | Some(b' ')) {
        return Err(FramingFault::RequestLine);
    }
    let status = StatusCode::from_bytes(digits).map_err(|_| FramingFault::RequestLine)?;
    Ok((is_http10, status))
}

/// How long a body is by the fields of an answer.
///
/// # Errors
///
/// When they say it twice, or in a way that others could read otherwise.
pub fn length(fields: &HeaderMap, is_http10: bool) -> Result<Length, FramingFault> {
    let length = single(fields, &CONTENT_LENGTH, FramingFault::ContentLength)?;
    let coding = single(fields, &TRANSFER_ENCODING, FramingFault::TransferEncoding)?;
    match (length, coding) {
        (Some(_), Some(_)) => Err(FramingFault::TwoLengths),
        (Some(length), None) => Ok(Length::Exact(framing::length_of(length)?)),
        (None, Some(coding)) if !is_http10 && coding.eq_ignore_ascii_case(b"chunked") => Ok(Length::Chunks),
        (None, Some(_)) => Err(FramingFault::TransferEncoding),
        (None, None) => Ok(Length::ToTheEnd),
    }
}

fn single<'a>(fields: &'a HeaderMap, name: &HeaderName, fault: FramingFault) -> Result<Option<&'a [u8]>, FramingFault> {
    let mut values = fields.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(fault),
        (value, None) => Ok(value.map(HeaderValue::as_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str], to_head: bool) -> Result<AnswerHead, FramingFault> {
        let head = format!("{}\r\n\r\n", lines.join("\r\n"));
        assert_eq!(find_end(head.as_bytes(), 0)?, Some(head.len()));
        parse(&Bytes::from(head), to_head)
    }

    #[test]
    fn an_answer_says_how_long_it_is_and_whether_another_may_follow() {
        for (lines, length, keeps) in [
            (&["HTTP/1.1 200 OK", "Content-Length: 12"][..], Length::Exact(12), true),
            (&["HTTP/1.1 200", "content-length:0"], Length::Exact(0), true),
            (&["HTTP/1.1 200 ", "transfer-encoding: Chunked"], Length::Chunks, true),
            (&["HTTP/1.1 200 OK"], Length::ToTheEnd, false),
            (
                &["HTTP/1.1 200 OK", "content-length: 1", "connection: x, CLOSE"],
                Length::Exact(1),
                false,
            ),
            (&["HTTP/1.0 200 OK", "content-length: 1"], Length::Exact(1), false),
            (
                &["HTTP/1.0 200 OK", "content-length: 1", "connection: keep-alive"],
                Length::Exact(1),
                true,
            ),
            (
                &["HTTP/1.1 204 No Content", "content-length: 5"],
                Length::Exact(0),
                true,
            ),
            (
                &["HTTP/1.1 304 Not Modified", "content-length: 5"],
                Length::Exact(0),
                true,
            ),
            (&["HTTP/1.1 204 No Content"], Length::Exact(0), true),
            (&["HTTP/1.1 103 Early Hints", "link: </x>"], Length::Exact(0), true),
        ] {
            let answer = read(lines, false).unwrap();
            assert_eq!((answer.length, answer.keeps), (length, keeps), "{lines:?}");
        }
        let answer = read(&["HTTP/1.1 200 OK", "content-length: 12"], true).unwrap();
        assert_eq!(answer.length, Length::Exact(0));
        assert_eq!(answer.head.headers[CONTENT_LENGTH], "12", "as it would be");
    }

    #[test]
    fn what_could_be_read_otherwise_is_no_answer() {
        for lines in [
            &["HTTP/1.1 200 OK", "content-length: 1", "transfer-encoding: chunked"][..],
            &["HTTP/1.1 200 OK", "content-length: 1", "content-length: 1"],
            &["HTTP/1.1 200 OK", "content-length: 1, 1"],
            &["HTTP/1.1 200 OK", "content-length: +1"],
            &["HTTP/1.1 200 OK", "content-length:"],
            &["HTTP/1.1 200 OK", "content-length: 9999999999999999999"],
            &["HTTP/1.1 200 OK", "transfer-encoding: gzip, chunked"],
            &[
                "HTTP/1.1 200 OK",
                "transfer-encoding: chunked",
                "transfer-encoding: chunked",
            ],
            &["HTTP/1.0 200 OK", "transfer-encoding: chunked"],
            &["HTTP/1.1 200 OK", "x: a\0b"],
            &["HTTP/1.1 200 OK", "x : a"],
            &["HTTP/1.1 200 OK", "x: a", " folded"],
            &["HTTP/1.1 200 OK", "no colon"],
            &["HTTP/1.1 200 O\0K"],
            &["HTTP/1.1 20 OK"],
            &["HTTP/1.1 2000"],
            &["HTTP/1.1  200 OK"],
            &["HTTP/2.0 200 OK"],
            &["hello"],
        ] {
            assert!(read(lines, false).is_err(), "{lines:?}");
        }
        assert!(find_end(b"HTTP/1.1 200 OK\nx: y\n\n", 0).is_err());
        assert!(find_end(b"SSH-2.0-OpenSSH_9.2\r\n", 0).is_err());
        assert_eq!(find_end(b"HTT", 0), Ok(None));
        assert!(find_end(format!("HTTP/1.1 200 {}", "x".repeat(300 * 1_024)).as_bytes(), 0).is_err());
        let many = std::iter::once("HTTP/1.1 200 OK").chain(std::iter::repeat_n("x: y", 257));
        assert!(read(&many.collect::<Vec<_>>(), false).is_err());
    }

    #[test]
    fn what_is_about_the_upstreams_connection_ends_here() {
        let lines = [
            "HTTP/1.1 200 OK",
            "connection: keep-alive",
            "keep-alive: timeout=5",
            "x: y",
            "x: z",
        ];
        let answer = read(&lines, false).unwrap();
        let names: Vec<_> = answer.head.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x"]);
        assert_eq!(answer.head.headers.get_all("x").iter().count(), 2);
    }
}
