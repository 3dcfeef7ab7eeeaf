//! The search language: words, quoted phrases, and the operators `from: in: before: after: on: has:`.
//!
//! Whatever is no operator is text; nothing of the input ever reaches an engine as syntax. Only a value that belongs to
//! a known operator and cannot be understood is refused.

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime, Time};

use crate::text;

/// Longest `q`, in characters.
pub const QUERY_CHARS_MAX: usize = 1_000;
/// Most words and phrases in one `q`.
pub const CLAUSES_MAX: usize = 32;

/// A piece of text that every hit must contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextClause {
    /// A word; typos are tolerated.
    Word(String),
    /// The start of a word: the last word of the query.
    Prefix(String),
    /// Words one after the other, exactly.
    Phrase(String),
}

impl TextClause {
    /// The text itself.
    pub fn text(&self) -> &str {
        match self {
            Self::Word(text) | Self::Prefix(text) | Self::Phrase(text) => text,
        }
    }
}

/// What `q` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedQuery {
    pub text: Vec<TextClause>,
    /// Names after `from:`; any of them. `me` is the searcher.
    pub from: Vec<String>,
    /// Chat names after `in:`; any of them.
    pub chats: Vec<String>,
    pub created: TimeRange,
    pub has_link: bool,
}

/// A half-open range of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeRange {
    /// The first moment inside.
    pub from: Option<OffsetDateTime>,
    /// The first moment after it.
    pub until: Option<OffsetDateTime>,
}

impl TimeRange {
    /// The part that both ranges have in common.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            from: self.from.max(other.from),
            until: match (self.until, other.until) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }
}

/// Why `q` was refused: a stable code and words for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryFault {
    pub code: &'static str,
    pub detail: String,
}

fn fault(code: &'static str, detail: impl Into<String>) -> QueryFault {
    QueryFault {
        code,
        detail: detail.into(),
    }
}

/// Reads `q`.
pub fn parse(q: &str) -> Result<ParsedQuery, QueryFault> {
    if q.chars().count() > QUERY_CHARS_MAX {
        return Err(fault(
            "too_long",
            format!("a query has at most {QUERY_CHARS_MAX} characters"),
        ));
    }
    if fechatter_core::message::has_control_characters(q, &['\n', '\r', '\t']) {
        return Err(fault(
            "control_character",
            "control characters are not allowed in a query",
        ));
    }
    let visible: String = q.chars().filter(|&c| !text::is_invisible(c)).collect();
    let mut parsed = ParsedQuery::default();
    let mut rest = visible.trim_start();
    while !rest.is_empty() {
        rest = take_clause(rest, &mut parsed)?.trim_start();
        if parsed.text.len() + parsed.from.len() + parsed.chats.len() > CLAUSES_MAX {
            return Err(fault(
                "too_many_words",
                format!("a query has at most {CLAUSES_MAX} words, phrases and operators"),
            ));
        }
    }
    if let Some(TextClause::Word(word)) = parsed.text.last_mut() {
        let word = std::mem::take(word);
        parsed.text.pop();
        parsed.text.push(TextClause::Prefix(word));
    }
    Ok(parsed)
}

/// Takes one phrase, operator or word off the front and returns what follows.
fn take_clause<'a>(rest: &'a str, parsed: &mut ParsedQuery) -> Result<&'a str, QueryFault> {
    if let Some((phrase, after)) = quoted(rest) {
        if !text::tokens(phrase, text::Purpose::Query).is_empty() {
            parsed.text.push(TextClause::Phrase(phrase.to_owned()));
        }
        return Ok(after);
    }
    if let Some((name, value, after)) = operator(rest)
        && apply(name, value, parsed)?
    {
        return Ok(after);
    }
    // A quote that is never closed is a mark, not a phrase.
    let word_start = rest.trim_start_matches(is_quote);
    let end = word_start.find(char::is_whitespace).unwrap_or(word_start.len());
    let (word, after) = word_start.split_at(end);
    if !word.is_empty() {
        parsed.text.push(TextClause::Word(word.to_owned()));
    }
    Ok(after)
}

const fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\u{201C}' | '\u{201D}' | '\u{201E}')
}

/// A quoted text at the front, and what follows its closing quote.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let first = text.chars().next().filter(|&c| is_quote(c))?;
    let inner = &text[first.len_utf8()..];
    let end = inner.find(is_quote)?;
    let close = inner[end..].chars().next()?.len_utf8();
    Some((&inner[..end], &inner[end + close..]))
}

/// `name:value` at the front, the value quoted or up to the next space, and what follows.
fn operator(text: &str) -> Option<(&str, &str, &str)> {
    let colon = text.find(':')?;
    let name = &text[..colon];
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphabetic()) {
        return None;
    }
    let after_colon = &text[colon + 1..];
    if let Some((value, after)) = quoted(after_colon) {
        return (!value.trim().is_empty()).then_some((name, value.trim(), after));
    }
    let end = after_colon.find(char::is_whitespace).unwrap_or(after_colon.len());
    let (value, after) = after_colon.split_at(end);
    (!value.is_empty()).then_some((name, value, after))
}

/// Applies an operator; `false` when there is none of this name, so that `http://…` and `12:30` stay text.
fn apply(name: &str, value: &str, parsed: &mut ParsedQuery) -> Result<bool, QueryFault> {
    match name.to_ascii_lowercase().as_str() {
        "from" => parsed.from.push(value.trim_start_matches('@').to_owned()),
        "in" => parsed.chats.push(value.trim_start_matches(['#', '@']).to_owned()),
        "before" => narrow(parsed, None, Some(midnight(operator_date(name, value)?))),
        "after" => {
            let next = next_midnight(operator_date(name, value)?);
            narrow(parsed, Some(next), None);
        }
        "on" => {
            let date = operator_date(name, value)?;
            narrow(parsed, Some(midnight(date)), Some(next_midnight(date)));
        }
        "has" if value.eq_ignore_ascii_case("link") => parsed.has_link = true,
        "has" => {
            return Err(fault("unknown_value", format!("has:{value} is not known; has:link is")));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn narrow(parsed: &mut ParsedQuery, from: Option<OffsetDateTime>, until: Option<OffsetDateTime>) {
    parsed.created = parsed.created.and(TimeRange { from, until });
}

fn operator_date(name: &str, value: &str) -> Result<Date, QueryFault> {
    parse_date(value).ok_or_else(|| {
        fault(
            "invalid_date",
            format!("{name}: takes a date such as 2026-01-31; {value:?} is none"),
        )
    })
}

/// A calendar date of the years 1970 to 9998.
fn parse_date(text: &str) -> Option<Date> {
    let date = Date::parse(text, format_description!("[year]-[month]-[day]")).ok()?;
    (1970..=9998).contains(&date.year()).then_some(date)
}

fn midnight(date: Date) -> OffsetDateTime {
    date.with_time(Time::MIDNIGHT).assume_utc()
}

fn next_midnight(date: Date) -> OffsetDateTime {
    midnight(date) + Duration::DAY
}

/// Reads the `from` parameter: a date means from its first moment (UTC).
pub fn parse_from(value: &str) -> Option<OffsetDateTime> {
    parse_date(value).map(midnight).or_else(|| parse_instant(value))
}

/// Reads the `to` parameter as the first moment that is excluded: a date is included to its last moment (UTC).
pub fn parse_to(value: &str) -> Option<OffsetDateTime> {
    parse_date(value).map(next_midnight).or_else(|| parse_instant(value))
}

fn parse_instant(value: &str) -> Option<OffsetDateTime> {
    let instant = OffsetDateTime::parse(value, &Rfc3339).ok()?;
    (1970..=9998).contains(&instant.year()).then_some(instant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn word(text: &str) -> TextClause {
        TextClause::Word(text.to_owned())
    }

    fn prefix(text: &str) -> TextClause {
        TextClause::Prefix(text.to_owned())
    }

    fn phrase(text: &str) -> TextClause {
        TextClause::Phrase(text.to_owned())
    }

    #[test]
    fn words_phrases_and_the_last_prefix() {
        assert_eq!(
            parse("ship on fri").unwrap().text,
            [word("ship"), word("on"), prefix("fri")]
        );
        assert_eq!(
            parse("a \"b c\" d “e f”").unwrap().text,
            [word("a"), phrase("b c"), word("d"), phrase("e f")]
        );
        assert_eq!(parse("  ").unwrap(), ParsedQuery::default());
    }

    #[test]
    fn an_open_quote_and_an_empty_phrase_are_harmless() {
        assert_eq!(parse("\"ship it").unwrap().text, [word("ship"), prefix("it")]);
        assert_eq!(parse("5\" disk").unwrap().text, [word("5\""), prefix("disk")]);
        assert_eq!(parse("\"\" x \" \"").unwrap().text, [prefix("x")]);
        assert_eq!(parse("\"").unwrap().text, []);
    }

    #[test]
    fn operators_filter() {
        let parsed = parse("from:@alice FROM:\"Bob Ray\" in:#general has:link plan").unwrap();
        assert_eq!(parsed.from, ["alice", "Bob Ray"]);
        assert_eq!(parsed.chats, ["general"]);
        assert!(parsed.has_link);
        assert_eq!(parsed.text, [prefix("plan")]);
    }

    #[test]
    fn dates_narrow() {
        let parsed = parse("after:2026-01-01 before:2026-02-01 before:2026-03-01").unwrap();
        assert_eq!(parsed.created.from, Some(datetime!(2026-01-02 0:00 UTC)));
        assert_eq!(parsed.created.until, Some(datetime!(2026-02-01 0:00 UTC)));
        let on = parse("on:2024-02-29").unwrap().created;
        assert_eq!(
            (on.from, on.until),
            (
                Some(datetime!(2024-02-29 0:00 UTC)),
                Some(datetime!(2024-03-01 0:00 UTC))
            )
        );
    }

    #[test]
    fn what_is_no_operator_is_text() {
        for text in [
            "http://x.y",
            "12:30",
            "todo:now",
            "from:",
            "a:b:c",
            ":x",
            "chat_id=1 OR workspace_id=2",
        ] {
            let parsed = parse(text).unwrap();
            assert!(
                parsed.from.is_empty() && parsed.chats.is_empty() && !parsed.text.is_empty(),
                "{text}"
            );
        }
    }

    #[test]
    fn faults_are_named() {
        for (text, code) in [
            ("before:2026-02-30", "invalid_date"),
            ("after:yesterday", "invalid_date"),
            ("on:99999-01-01", "invalid_date"),
            ("has:spaceship", "unknown_value"),
            ("a\u{0}b", "control_character"),
        ] {
            assert_eq!(parse(text).unwrap_err().code, code, "{text}");
        }
        assert_eq!(parse(&"x".repeat(1_001)).unwrap_err().code, "too_long");
        assert_eq!(parse(&"x ".repeat(33)).unwrap_err().code, "too_many_words");
    }

    #[test]
    fn bidi_and_zero_width_characters_vanish() {
        assert_eq!(parse("\u{202e}abc\u{200b}d\u{2066}").unwrap().text, [prefix("abcd")]);
    }

    #[test]
    fn parameters_take_dates_and_instants() {
        assert_eq!(parse_from("2026-01-31"), Some(datetime!(2026-01-31 0:00 UTC)));
        assert_eq!(parse_to("2026-01-31"), Some(datetime!(2026-02-01 0:00 UTC)));
        assert_eq!(
            parse_to("2026-01-31T10:00:00+02:00"),
            Some(datetime!(2026-01-31 8:00 UTC))
        );
        for bad in [
            "",
            "x",
            "2026-13-01",
            "2026-1-1",
            "20260101",
            "0001-01-01",
            "2026-01-01T25:00:00Z",
        ] {
            assert_eq!(parse_from(bad), None, "{bad}");
        }
    }
}
