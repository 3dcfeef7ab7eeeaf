//! What the API document says of texts that requests carry. The rules themselves are `user::is_…` and `message::check_…`;
//! a test holds the two together.

use std::ops::RangeInclusive;
use std::sync::LazyLock;

use serde_json::json;
use utoipa::openapi::schema::{Object, SchemaType};
use utoipa::openapi::{ObjectBuilder, Type};

use crate::chat::{DESCRIPTION_CHARS_MAX, NAME_CHARS_MAX};
use crate::message::{CONTENT_CHARS_MAX, IDEMPOTENCY_KEY_BYTES_MAX};
use crate::user::{
    EMAIL_BYTES_MAX, FULLNAME_CHARS_MAX, MISLEADING, PASSWORD_CHARS_MAX, PASSWORD_CHARS_MIN, QUIET,
    WORKSPACE_NAME_CHARS_MAX,
};

/// Beginning with something to see, no spaces around, no control and no misleading characters.
static NAME: LazyLock<String> = LazyLock::new(|| {
    let (misleading, quiet) = (class(&MISLEADING), class(&QUIET));
    let never = format!(r"\x00-\x1f\x7f-\x9f{misleading}");
    format!(r"^[^\s{never}{quiet}]([^{never}]*[^\s{never}])?$")
});
/// No control characters but newline and tab.
const TEXT: &str = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$";
/// `local@domain`; the rule accepts more, such as letters beyond ASCII.
const EMAIL: &str = r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$";
/// Printable ASCII.
const KEY: &str = "^[ -~]*$";

/// Ranges as within the brackets of a pattern. Validators agree on no escape beyond four digits, so that such characters stand there
/// themselves.
fn class(ranges: &[RangeInclusive<char>]) -> String {
    let one = |c: &char| match u32::from(*c) {
        code @ ..=0xffff => format!(r"\u{code:04x}"),
        _ => c.to_string(),
    };
    let ranges = ranges
        .iter()
        .map(|range| format!("{}-{}", one(range.start()), one(range.end())));
    ranges.collect()
}

fn text(pattern: &str, min: usize, max: usize, example: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern((!pattern.is_empty()).then_some(pattern))
        .min_length((min > 0).then_some(min))
        .max_length(Some(max))
        .examples([json!(example)])
}

fn or_null(text: ObjectBuilder) -> Object {
    text.schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .build()
}

fn fullname_text() -> ObjectBuilder {
    text(&NAME, 1, FULLNAME_CHARS_MAX, "Ada Lovelace")
}

fn email_text() -> ObjectBuilder {
    text(EMAIL, 3, EMAIL_BYTES_MAX, "ada@example.org")
}

fn chat_name_text() -> ObjectBuilder {
    text(&NAME, 1, NAME_CHARS_MAX, "general")
}

/// A person's name.
pub fn fullname() -> Object {
    fullname_text().build()
}

/// A person's name, or `null`.
pub fn fullname_or_null() -> Object {
    or_null(fullname_text())
}

/// A workspace's name.
pub fn workspace_name() -> Object {
    text(&NAME, 1, WORKSPACE_NAME_CHARS_MAX, "Analytical Engines").build()
}

/// An email address.
pub fn email() -> Object {
    email_text().build()
}

/// An email address, or `null`.
pub fn email_or_null() -> Object {
    or_null(email_text())
}

/// A new password.
pub fn new_password() -> Object {
    let password = text("", PASSWORD_CHARS_MIN, PASSWORD_CHARS_MAX, "correct horse battery");
    password.build()
}

/// A chat's name, or `null`.
pub fn chat_name_or_null() -> Object {
    or_null(chat_name_text())
}

/// What a chat is about, or `null`.
pub fn description_or_null() -> Object {
    or_null(text(TEXT, 0, DESCRIPTION_CHARS_MAX, "What concerns everybody"))
}

/// What a message says.
pub fn content() -> Object {
    text(TEXT, 1, CONTENT_CHARS_MAX, "Shall we ship on Friday?").build()
}

/// An idempotency key, or `null`.
pub fn idempotency_key_or_null() -> Object {
    or_null(text(
        KEY,
        1,
        IDEMPOTENCY_KEY_BYTES_MAX,
        "0190a7c0-4f6e-7b1e-9d52-5b1f0c6e2d11",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{check_content, has_control_characters, is_idempotency_key};
    use crate::user::{is_email, is_name};

    /// What a rule refuses, its pattern refuses; and what the pattern accepts, the rule accepts.
    fn agree(pattern: &str, rule: impl Fn(&str) -> bool) {
        let pattern = regex::Regex::new(pattern).unwrap();
        for text in [
            "a",
            "a b",
            " a",
            "a ",
            "",
            "a\nb",
            "a\tb",
            "\u{0}",
            "a\u{7f}",
            "\u{85}a",
            "é",
            "提案",
            "a@b.co",
            "a@b",
            "a@-b",
            "a@b-",
            "a@b..c",
            "@b",
            "a@",
            "a@b@c",
            "a b@c",
            "\u{2003}a",
            "a\u{a0}",
            "~",
            "\u{1f}",
            "a\r",
            "\u{ad}",
            "a\u{202e}b",
            "a\u{2028}",
            "\u{3164}",
            "\u{fe0f}a",
            "\u{1d175}",
            "\u{e0041}",
        ] {
            assert!(
                !pattern.is_match(text) || rule(text),
                "{text:?} fits {pattern} and breaks the rule"
            );
        }
    }

    #[test]
    fn patterns_accept_nothing_that_the_rules_refuse() {
        agree(&NAME, |text| is_name(text, 64));
        agree(TEXT, |text| text.is_empty() || check_content(text).is_ok());
        agree(TEXT, |text| !has_control_characters(text, &['\n', '\t']));
        agree(EMAIL, is_email);
        agree(KEY, |text| text.is_empty() || is_idempotency_key(text));
    }

    #[test]
    fn patterns_refuse_nothing_that_the_rules_accept() {
        let fits = |pattern: &str, text: &str| regex::Regex::new(pattern).unwrap().is_match(text);
        for name in [
            "a",
            "Ada Lovelace",
            "提案",
            "a  b",
            "Œuvre",
            "\u{2764}\u{fe0f}",
            "a\u{200d}b",
        ] {
            assert!(is_name(name, 64) && fits(&NAME, name), "{name}");
        }
        for content in ["a\nb\tc", " ", "🦀"] {
            assert!(check_content(content).is_ok() && fits(TEXT, content), "{content}");
        }
        assert!(fits(EMAIL, "ada+tag@mail.example.org") && fits(KEY, "a b-~"));
    }
}
