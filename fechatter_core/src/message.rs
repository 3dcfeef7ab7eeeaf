//! What a message may contain.

/// Longest message, in Unicode scalar values.
pub const CONTENT_CHARS_MAX: usize = 10_000;
/// Longest message, in UTF-8 bytes (the outbox and NATS carry it whole).
pub const CONTENT_BYTES_MAX: usize = 65_536;
/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// Why a text cannot be a message; the text is safe to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContentFault {
    #[error("a message has at least one character")]
    Empty,
    #[error("a message has at most 10000 characters and 65536 bytes")]
    TooLong,
    #[error("control characters other than newline and tab are not allowed")]
    ControlCharacter,
}

/// Checks message content; it is stored exactly as sent, never trimmed or normalised.
pub fn check_content(content: &str) -> Result<(), ContentFault> {
    if content.is_empty() {
        return Err(ContentFault::Empty);
    }
    if content.len() > CONTENT_BYTES_MAX || content.chars().count() > CONTENT_CHARS_MAX {
        return Err(ContentFault::TooLong);
    }
    if has_control_characters(content, &['\n', '\t']) {
        return Err(ContentFault::ControlCharacter);
    }
    Ok(())
}

/// Whether the text holds a control character (C0, DEL, C1) that is not in `allowed`.
pub fn has_control_characters(text: &str, allowed: &[char]) -> bool {
    text.chars().any(|c| c.is_control() && !allowed.contains(&c))
}

/// Checks an idempotency key: 1 to 255 visible ASCII characters.
pub fn is_idempotency_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_BYTES_MAX && key.bytes().all(|b| (0x20..0x7f).contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_counted_in_characters_and_bounded_in_bytes() {
        assert_eq!(check_content(""), Err(ContentFault::Empty));
        assert_eq!(check_content(&"é".repeat(10_000)), Ok(()));
        assert_eq!(check_content(&"é".repeat(10_001)), Err(ContentFault::TooLong));
        assert_eq!(check_content(&"界".repeat(10_000)), Ok(()));
    }

    #[test]
    fn newline_and_tab_are_text_other_controls_are_not() {
        assert_eq!(check_content("a\n\tb"), Ok(()));
        for bad in ["\0", "a\rb", "\u{7f}", "\u{85}", "\u{1b}[31m"] {
            assert_eq!(check_content(bad), Err(ContentFault::ControlCharacter), "{bad:?}");
        }
    }

    #[test]
    fn idempotency_keys_are_short_visible_ascii() {
        assert!(is_idempotency_key("0190-abc"));
        assert!(!is_idempotency_key(""));
        assert!(!is_idempotency_key("a\n"));
        assert!(!is_idempotency_key("ключ"));
        assert!(!is_idempotency_key(&"k".repeat(256)));
    }
}
