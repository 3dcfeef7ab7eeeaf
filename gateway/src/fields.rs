//! Changes the fields of a head where they are stored.
//!
//! Pingora keeps beside each field the letters its name was written with, for peers that take `Content-Length` for another name
//! than `content-length`. Ours do not, and HTTP/2 has no such letters; to keep them costs three allocations for every field that
//! is added. So a head loses them when it is changed here.

use http::HeaderMap;
use http::request::Parts as RequestParts;
use http::response::Parts as AnswerParts;
use pingora::http::{RequestHeader, ResponseHeader};

/// Changes the fields of an answer's head; its reason phrase becomes the standard one.
pub fn of_answer<T>(answer: &mut ResponseHeader, edit: impl FnOnce(&mut HeaderMap) -> T) -> T {
    let blank = http::Response::new(()).into_parts().0;
    let mut parts = AnswerParts::from(std::mem::replace(answer, blank.into()));
    let result = edit(&mut parts.headers);
    *answer = parts.into();
    result
}

/// Changes the fields of a request's head. `None` when its target cannot be written again from its URI, which no request does that
/// came through our checks; nothing was changed then.
pub fn of_request<T>(request: &mut RequestHeader, edit: impl FnOnce(&mut HeaderMap) -> T) -> Option<T> {
    let target = request.uri.path_and_query().map(http::uri::PathAndQuery::as_str);
    if target.unwrap_or_default().as_bytes() != request.raw_path() {
        return None;
    }
    let blank = http::Request::new(()).into_parts().0;
    let mut parts = RequestParts::from(std::mem::replace(request, blank.into()));
    let result = edit(&mut parts.headers);
    *request = parts.into();
    Some(result)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::{CONTENT_LENGTH, SERVER};

    use super::*;

    #[test]
    fn a_changed_head_keeps_everything_else() {
        let mut answer = ResponseHeader::build(207, None).unwrap();
        answer.insert_header("Content-Length", "3").unwrap();
        of_answer(&mut answer, |fields| {
            fields.insert(SERVER, HeaderValue::from_static("x"))
        });
        assert_eq!(answer.status, 207);
        assert_eq!(answer.headers[CONTENT_LENGTH], "3");
        assert_eq!(answer.headers[SERVER], "x");

        let mut request = RequestHeader::build("PATCH", b"/a%20b?c=d", None).unwrap();
        request.append_header("X-One", "1").unwrap();
        request.append_header("x-one", "2").unwrap();
        let both = of_request(&mut request, |fields| fields.get_all("x-one").iter().count());
        assert_eq!(both, Some(2));
        assert_eq!(request.method, "PATCH");
        assert_eq!(request.raw_path(), b"/a%20b?c=d");
        let mut wire = Vec::new();
        request.header_to_h1_wire(&mut wire);
        assert_eq!(String::from_utf8(wire).unwrap(), "x-one: 1\r\nx-one: 2\r\n");
    }

    #[test]
    fn a_target_that_is_no_uri_is_left_alone() {
        let mut request = RequestHeader::build("GET", b"/\xff", None).unwrap();
        request.insert_header("x-one", "1").unwrap();
        assert!(of_request(&mut request, HeaderMap::clear).is_none());
        assert_eq!(request.raw_path(), b"/\xff");
        assert_eq!(request.headers["x-one"], "1");
    }
}
