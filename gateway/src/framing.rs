//! The head of an HTTP/1 request, byte by byte, before any parser that forgives sees it.
//!
//! Whatever two parsers could read differently (who ends a request where, for which host) is refused here, and nothing
//! of it reaches an upstream. The connection is closed, since where the next request would begin is not certain.

use fechatter_core::problem::Code;
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType};

/// Bounds of a request head.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    pub uri_bytes: usize,
    pub header_bytes: usize,
    pub header_fields: usize,
}

/// Why a request head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramingFault {
    /// A line feed without a carriage return, or the reverse.
    BareLineEnd,
    /// NUL or another control byte.
    ControlByte,
    /// Not `METHOD target HTTP/1.x`.
    RequestLine,
    /// A version other than 1.0 and 1.1.
    Version,
    /// Absolute-form, authority-form or `*`: this is no forward proxy.
    TargetForm,
    /// A target byte that a URI cannot have.
    TargetByte,
    UriTooLong,
    HeadTooLarge,
    TooManyFields,
    /// A field that continues on the next line.
    ObsoleteFold,
    /// A field name that is not a token, or white space before its colon.
    FieldName,
    /// Several or malformed `Content-Length`.
    ContentLength,
    /// `Transfer-Encoding` that is not exactly one `chunked`, or in HTTP/1.0.
    TransferEncoding,
    /// Both lengths.
    TwoLengths,
    /// No `Host`, several, or one that is not `name[:port]`.
    Host,
    /// A `Connection` option that names anything but the connection itself.
    ConnectionOption,
}

impl FramingFault {
    /// The problem a client is told.
    pub const fn code(self) -> Code {
        match self {
            Self::UriTooLong => Code::UriTooLong,
            Self::HeadTooLarge | Self::TooManyFields => Code::HeadersTooLarge,
            _ => Code::BadRequest,
        }
    }

    /// A bounded label for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BareLineEnd => "bare_line_end",
            Self::ControlByte => "control_byte",
            Self::RequestLine => "request_line",
            Self::Version => "version",
            Self::TargetForm => "target_form",
            Self::TargetByte => "target_byte",
            Self::UriTooLong => "uri_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyFields => "too_many_fields",
            Self::ObsoleteFold => "obs_fold",
            Self::FieldName => "field_name",
            Self::ContentLength => "content_length",
            Self::TransferEncoding => "transfer_encoding",
            Self::TwoLengths => "two_lengths",
            Self::Host => "host",
            Self::ConnectionOption => "connection_option",
        }
    }

    /// What is wrong, for the person who sent it.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::BareLineEnd => "Lines of the request head must end in CR LF.",
            Self::ControlByte => "The request head holds a control byte.",
            Self::RequestLine => "The request line is not `METHOD target HTTP/1.1`.",
            Self::Version => "Only HTTP/1.0, HTTP/1.1 and HTTP/2 are spoken here.",
            Self::TargetForm => "The request target must begin with `/`.",
            Self::TargetByte => "The request target holds a byte that must be percent-encoded.",
            Self::UriTooLong => "The request target is too long.",
            Self::HeadTooLarge => "The request head is too large.",
            Self::TooManyFields => "The request has too many header fields.",
            Self::ObsoleteFold => "Header fields must not continue on the next line.",
            Self::FieldName => "A header field name is not valid.",
            Self::ContentLength => "There must be one Content-Length and it must be a number.",
            Self::TransferEncoding => "The only transfer encoding spoken here is `chunked`, once, in HTTP/1.1.",
            Self::TwoLengths => "Content-Length and Transfer-Encoding must not come together.",
            Self::Host => "There must be one Host and it must be `name` or `name:port`.",
            Self::ConnectionOption => "The Connection field names something that is not about the connection.",
        }
    }
}

/// Looks for the end of a head in `bytes`, of which the first `seen` have been looked at before.
///
/// `Ok(None)` asks for more bytes. A head beyond its limits or with a bare line end is refused at once.
pub fn find_end(bytes: &[u8], seen: usize, limits: &HeadLimits) -> Result<Option<usize>, FramingFault> {
    if matches!(bytes.first(), Some(b'\r' | b'\n')) {
        return Err(FramingFault::RequestLine);
    }
    for at in memchr::memchr_iter(b'\n', &bytes[seen..]) {
        let at = seen + at;
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(FramingFault::BareLineEnd);
        }
        if at >= 3 && bytes[at - 2] == b'\n' {
            let end = at + 1;
            return if end > limits.header_bytes {
                Err(too_large(bytes, limits))
            } else {
                Ok(Some(end))
            };
        }
    }
    if bytes.len() > limits.header_bytes {
        return Err(too_large(bytes, limits));
    }
    Ok(None)
}

/// Tells a long target from too many fields.
fn too_large(bytes: &[u8], limits: &HeadLimits) -> FramingFault {
    match memchr::memchr(b'\n', bytes) {
        Some(line) if line <= limits.uri_bytes => FramingFault::HeadTooLarge,
        _ => FramingFault::UriTooLong,
    }
}

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Following {
    /// So many bytes of body, often none.
    Body(u64),
    /// Chunks, which say themselves where they end.
    Chunks,
    /// Another protocol: it has no end.
    Open,
}

/// The first line of a head.
#[derive(Debug, Clone, Copy)]
pub struct RequestLine<'a> {
    pub method: &'a [u8],
    pub target: &'a [u8],
    pub version: Version,
}

/// Checks a whole head, its final empty line included, and says what follows it. `take` gets the name and the value of each field.
pub fn check<'a>(
    head: &'a [u8],
    limits: &HeadLimits,
    mut take: impl FnMut(&'a [u8], &'a [u8]) -> Result<(), FramingFault>,
) -> Result<(RequestLine<'a>, Following), FramingFault> {
    let mut lines = Lines { rest: head };
    let line = request_line(lines.next_line()?, limits)?;
    let mut fields = Fields::default();
    let mut count = 0;
    loop {
        let line = lines.next_line()?;
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > limits.header_fields {
            return Err(FramingFault::TooManyFields);
        }
        let (name, value) = split_field(line)?;
        fields.check(name, value)?;
        take(name, value)?;
    }
    Ok((line, fields.conclude(line.version)?))
}

/// The lines of a head.
#[derive(Debug)]
pub struct Lines<'a> {
    pub rest: &'a [u8],
}

impl<'a> Lines<'a> {
    /// The next one, without its end.
    pub fn next_line(&mut self) -> Result<&'a [u8], FramingFault> {
        let end = memchr::memchr(b'\n', self.rest).ok_or(FramingFault::BareLineEnd)?;
        let line = self.rest[..end].strip_suffix(b"\r").ok_or(FramingFault::BareLineEnd)?;
        self.rest = &self.rest[end + 1..];
        if line.contains(&b'\r') {
            return Err(FramingFault::BareLineEnd);
        }
        Ok(line)
    }
}

fn request_line<'a>(line: &'a [u8], limits: &HeadLimits) -> Result<RequestLine<'a>, FramingFault> {
    if line.iter().any(u8::is_ascii_control) {
        return Err(FramingFault::ControlByte);
    }
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(FramingFault::RequestLine);
    };
    if method.is_empty() || method.len() > 16 || !method.iter().all(|byte| is_token_byte(*byte)) || target.is_empty() {
        return Err(FramingFault::RequestLine);
    }
    let version = match version {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        other if other.starts_with(b"HTTP/") => return Err(FramingFault::Version),
        _ => return Err(FramingFault::RequestLine),
    };
    if target.len() > limits.uri_bytes {
        return Err(FramingFault::UriTooLong);
    }
    if target[0] != b'/' {
        return Err(FramingFault::TargetForm);
    }
    if !is_target(target) {
        return Err(FramingFault::TargetByte);
    }
    Ok(RequestLine {
        method,
        target,
        version,
    })
}

/// Whether every byte may stand in a request target. Browsers leave ``^`{|}`` in queries as they are.
pub fn is_target(target: &[u8]) -> bool {
    target
        .iter()
        .all(|byte| matches!(byte, 0x21..=0x7e) && !matches!(byte, b'"' | b'<' | b'>' | b'#'))
}

#[derive(Default)]
struct Fields<'a> {
    content_length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    upgrade: bool,
}

impl<'a> Fields<'a> {
    fn check(&mut self, name: &[u8], value: &'a [u8]) -> Result<(), FramingFault> {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => set_once(&mut self.host, value, FramingFault::Host),
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade = true;
                Ok(())
            }
            10 if name.eq_ignore_ascii_case(b"connection") => check_connection(value),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                set_once(&mut self.content_length, value, FramingFault::ContentLength)
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                set_once(&mut self.transfer_encoding, value, FramingFault::TransferEncoding)
            }
            _ => Ok(()),
        }
    }

    fn conclude(&self, version: Version) -> Result<Following, FramingFault> {
        if self.content_length.is_some() && self.transfer_encoding.is_some() {
            return Err(FramingFault::TwoLengths);
        }
        if let Some(value) = self.transfer_encoding
            && (version == Version::HTTP_10 || !value.eq_ignore_ascii_case(b"chunked"))
        {
            return Err(FramingFault::TransferEncoding);
        }
        let length = self.content_length.map(length_of).transpose()?;
        match self.host {
            Some(host) if is_host(host) => {}
            None if version == Version::HTTP_10 => {}
            _ => return Err(FramingFault::Host),
        }
        if self.transfer_encoding.is_some() {
            return Ok(Following::Chunks);
        }
        Ok(match length.unwrap_or(0) {
            // What has a body is over with it, whatever protocol it asks for.
            0 if self.upgrade => Following::Open,
            length => Following::Body(length),
        })
    }
}

/// The number in a `Content-Length`: digits and nothing else.
pub fn length_of(value: &[u8]) -> Result<u64, FramingFault> {
    if !matches!(value.len(), 1..=18) || !value.iter().all(u8::is_ascii_digit) {
        return Err(FramingFault::ContentLength);
    }
    Ok(value
        .iter()
        .fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

/// The name and the value of a line that may stand in a head and is not empty.
pub fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), FramingFault> {
    if matches!(line[0], b' ' | b'\t') {
        return Err(FramingFault::ObsoleteFold);
    }
    let colon = memchr::memchr(b':', line).ok_or(FramingFault::FieldName)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|byte| is_token_byte(*byte)) {
        return Err(FramingFault::FieldName);
    }
    // All bytes without a way out in between: the compiler looks at many at once. Tokens are long.
    let has_control = |found, byte: &u8| found | (byte.is_ascii_control() && *byte != b'\t');
    if value.iter().fold(false, has_control) {
        return Err(FramingFault::ControlByte);
    }
    Ok((name, value.trim_ascii()))
}

/// Whether a line may stand behind the last chunk: a field, and none that says where a request goes, ends or comes from.
pub fn is_trailer(line: &[u8]) -> bool {
    const FORBIDDEN: [&[u8]; 12] = [
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"cookie",
        b"expect",
        b"host",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ];
    split_field(line).is_ok_and(|(name, _)| !FORBIDDEN.iter().any(|one| name.eq_ignore_ascii_case(one)))
}

fn set_once<'a>(slot: &mut Option<&'a [u8]>, value: &'a [u8], fault: FramingFault) -> Result<(), FramingFault> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(fault),
    }
}

/// Refuses an upstream's answer whose end a client could see elsewhere than we do: one with another coding than a single `chunked`, or that
/// changes the protocol where nobody asked for that.
pub fn check_answer(answer: &ResponseHeader, may_upgrade: impl FnOnce() -> bool) -> pingora::Result<()> {
    let mut codings = answer.headers.get_all(TRANSFER_ENCODING).iter();
    let is_clear = match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    };
    let fault = if !is_clear {
        "the answer has an unknown transfer coding"
    } else if answer.status == StatusCode::SWITCHING_PROTOCOLS && !may_upgrade() {
        "the answer changes the protocol unasked"
    } else {
        return Ok(());
    };
    Err(Error::explain(ErrorType::InvalidHTTPHeader, fault).into_up())
}

/// `Connection` may speak of the connection only: naming another field would have it removed on the way.
pub fn check_connection(value: &[u8]) -> Result<(), FramingFault> {
    const OPTIONS: [&[u8]; 5] = [b"keep-alive", b"close", b"upgrade", b"te", b"http2-settings"];
    let known = |option: &[u8]| option.is_empty() || OPTIONS.iter().any(|known| option.eq_ignore_ascii_case(known));
    if value
        .split(|byte| *byte == b',')
        .all(|option| known(option.trim_ascii()))
    {
        Ok(())
    } else {
        Err(FramingFault::ConnectionOption)
    }
}

/// Whether a connection is used again after a message with these fields.
pub fn keeps(fields: &HeaderMap, is_http10: bool) -> bool {
    let has = |wanted: &[u8]| {
        let values = fields.get_all(CONNECTION).iter();
        let mut options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(wanted))
    };
    !has(b"close") && (!is_http10 || has(b"keep-alive"))
}

/// Whether `host` is a name or address with an optional port, and nothing more.
pub fn is_host(host: &[u8]) -> bool {
    let (name, port) = match host.strip_prefix(b"[") {
        Some(rest) => {
            let Some(close) = memchr::memchr(b']', rest) else {
                return false;
            };
            let address = std::str::from_utf8(&rest[..close]).ok();
            if address
                .and_then(|text| text.parse::<std::net::Ipv6Addr>().ok())
                .is_none()
            {
                return false;
            }
            (&b"ipv6"[..], &rest[close + 1..])
        }
        None => host.split_at(memchr::memchr(b':', host).unwrap_or(host.len())),
    };
    let port_is_good = match port.strip_prefix(b":") {
        Some(digits) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        None => port.is_empty(),
    };
    let is_name_byte = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    port_is_good && matches!(name.len(), 1..=255) && name.iter().all(is_name_byte)
}

/// Whether a byte may stand in a method or field name (RFC 9110, `tchar`).
pub const fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES[byte as usize]
}

/// Looked up, since every byte of every field's name is.
const TOKEN_BYTES: [bool; 256] = {
    let mut bytes = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        bytes[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < others.len() {
        bytes[others[at] as usize] = true;
        at += 1;
    }
    bytes
};

#[cfg(test)]
mod tests;
