//! The snippet of a hit: escaped text in which the matching words are in `<mark>`, the only markup there is.
//!
//! It is made from the message as PostgreSQL has it now, never from what the index had, and the same for every engine.

use std::ops::Range;

use crate::engine::embedded::typos_allowed;
use crate::query::TextClause;
use crate::text::{self, Kind, Purpose, Token};

/// Longest snippet, in characters of the message.
pub const SNIPPET_CHARS_MAX: usize = 240;
/// Characters shown before the first match.
const LEAD_CHARS: usize = 60;
const ELLIPSIS: char = '…';

/// Makes the snippet.
pub fn snippet(content: &str, clauses: &[TextClause]) -> String {
    let marks = marks(content, clauses);
    let window = window(content, marks.first());
    let mut html = String::with_capacity(window.len() + 64);
    if window.start > 0 {
        html.push(ELLIPSIS);
    }
    let mut at = window.start;
    for mark in &marks {
        let (start, end) = (mark.start.max(at), mark.end.min(window.end));
        if start >= end {
            continue;
        }
        escape(&content[at..start], &mut html);
        html.push_str("<mark>");
        escape(&content[start..end], &mut html);
        html.push_str("</mark>");
        at = end;
    }
    escape(&content[at..window.end], &mut html);
    if window.end < content.len() {
        html.push(ELLIPSIS);
    }
    html
}

fn escape(text: &str, html: &mut String) {
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            _ => html.push(c),
        }
    }
}

/// The part of the message to show, on character boundaries.
fn window(content: &str, first: Option<&Range<usize>>) -> Range<usize> {
    let boundary = |from: usize, chars: usize| {
        content[from..]
            .char_indices()
            .nth(chars)
            .map_or(content.len(), |(at, _)| from + at)
    };
    if boundary(0, SNIPPET_CHARS_MAX) == content.len() {
        return 0..content.len();
    }
    let lead = first.map_or(0, |mark| {
        content[..mark.start]
            .char_indices()
            .rev()
            .nth(LEAD_CHARS - 1)
            .map_or(0, |(at, _)| at)
    });
    // Begin with a whole word where one begins soon.
    let start = match first {
        Some(mark) if lead > 0 => content[lead..mark.start]
            .char_indices()
            .find(|(_, c)| c.is_whitespace())
            .map_or(lead, |(at, space)| lead + at + space.len_utf8()),
        _ => lead,
    };
    start..boundary(start, SNIPPET_CHARS_MAX)
}

/// Byte ranges that match, in order and apart.
fn marks(content: &str, clauses: &[TextClause]) -> Vec<Range<usize>> {
    let tokens = text::tokens(content, Purpose::Index);
    let mut found: Vec<Range<usize>> = Vec::new();
    for clause in clauses {
        let wanted = text::tokens(clause.text(), Purpose::Query);
        if matches!(clause, TextClause::Phrase(_)) {
            mark_sequence(content, &tokens, &wanted, &mut found);
            continue;
        }
        let is_prefix = matches!(clause, TextClause::Prefix(_));
        let mut rest = &wanted[..];
        while let Some(first) = rest.first() {
            let run = if first.kind == Kind::Gram {
                rest.windows(2)
                    .take_while(|pair| pair[1].kind == Kind::Gram && pair[0].end > pair[1].start)
                    .count()
                    + 1
            } else {
                1
            };
            let (unit, after) = rest.split_at(run);
            if first.kind == Kind::Word {
                let prefix = is_prefix && after.is_empty();
                let matching = tokens.iter().filter(|token| word_matches(first, token, prefix));
                found.extend(matching.map(|token| token.start..token.end));
            } else {
                mark_sequence(content, &tokens, unit, &mut found);
            }
            rest = after;
        }
    }
    merge(found)
}

fn merge(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Marks every place where the wanted tokens stand at the same distances from each other.
fn mark_sequence(content: &str, tokens: &[Token], wanted: &[Token], found: &mut Vec<Range<usize>>) {
    let Some(first) = wanted.first() else { return };
    if let [lone] = wanted
        && lone.kind == Kind::Gram
        && lone.chars() == 1
    {
        mark_lone(content, tokens, lone, found);
        return;
    }
    // In a message every position has its token.
    let at = |i: usize, token: &Token| tokens.get(i + token.position - first.position);
    for i in 0..tokens.len() {
        if wanted
            .iter()
            .all(|token| at(i, token).is_some_and(|there| there.text == token.text))
        {
            found.extend(
                wanted
                    .iter()
                    .filter_map(|token| at(i, token))
                    .map(|there| there.start..there.end),
            );
        }
    }
}

/// Marks one character of an unspaced script wherever it stands.
fn mark_lone(content: &str, tokens: &[Token], lone: &Token, found: &mut Vec<Range<usize>>) {
    for token in tokens.iter().filter(|token| token.kind == Kind::Gram) {
        if token.text.starts_with(&lone.text) {
            let width = content[token.start..token.end].chars().next().map_or(0, char::len_utf8);
            found.push(token.start..token.start + width);
        }
    }
}

fn word_matches(wanted: &Token, token: &Token, prefix: bool) -> bool {
    if token.kind != Kind::Word {
        return false;
    }
    if token.text == wanted.text || (prefix && token.text.starts_with(&wanted.text)) {
        return true;
    }
    let allowed = usize::from(typos_allowed(wanted));
    allowed > 0 && within(&wanted.text, &token.text, allowed, prefix)
}

/// Whether at most `most` insertions, deletions, substitutions or swaps of neighbours make `wanted` from `text`, or,
/// for a prefix, from some beginning of `text`.
fn within(wanted: &str, text: &str, most: usize, prefix: bool) -> bool {
    let wanted: Vec<char> = wanted.chars().collect();
    let text: Vec<char> = text.chars().collect();
    if text.len() + most < wanted.len() || (!prefix && wanted.len() + most < text.len()) {
        return false;
    }
    let text = &text[..text.len().min(wanted.len() + most)];
    // Rows over `wanted`, columns over `text`: the last row holds the distance to each beginning of `text`. Only the
    // band around the diagonal can hold a distance that is small enough.
    let far = most + 1;
    let mut above: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=text.len()).map(|column| column.min(far)).collect();
    for (i, a) in wanted.iter().enumerate() {
        let mut next = vec![far; row.len()];
        next[0] = (i + 1).min(far);
        let mut least = next[0];
        for j in i.saturating_sub(most)..(i + most + 1).min(text.len()) {
            let b = &text[j];
            let mut best = (row[j] + usize::from(a != b)).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && *a == text[j - 1] && wanted[i - 1] == *b {
                best = best.min(above[j - 1] + 1);
            }
            next[j + 1] = best.min(far);
            least = least.min(best);
        }
        // A swap reaches back two rows, so both must be out of reach.
        if least > most && row.iter().all(|&distance| distance > most) {
            return false;
        }
        above = std::mem::replace(&mut row, next);
    }
    if prefix {
        row.iter().any(|&distance| distance <= most)
    } else {
        row.last().is_some_and(|&distance| distance <= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::parse;

    fn marked(content: &str, query: &str) -> String {
        snippet(content, &parse(query).unwrap().text)
    }

    #[test]
    fn only_mark_is_markup() {
        assert_eq!(
            marked("<script>alert('ship & \"sink\"')</script>", "ship"),
            "&lt;script&gt;alert(&#39;<mark>ship</mark> &amp; &quot;sink&quot;&#39;)&lt;/script&gt;"
        );
        assert_eq!(
            marked("a <mark>b</mark>", "b"),
            "a &lt;mark&gt;<mark>b</mark>&lt;/mark&gt;"
        );
    }

    #[test]
    fn what_was_found_is_marked() {
        assert_eq!(marked("Le Café est fermé", "cafe"), "Le <mark>Café</mark> est fermé");
        assert_eq!(
            marked("the deployment failed", "deploy"),
            "the <mark>deployment</mark> failed"
        );
        assert_eq!(
            marked("deployment failed", "deploymnet failed"),
            "<mark>deployment</mark> <mark>failed</mark>"
        );
        assert_eq!(
            marked("deployment ends", "deploymnt ends"),
            "<mark>deployment</mark> <mark>ends</mark>"
        );
        // Not the last word: no prefix.
        assert_eq!(
            marked("shipping ship now", "ship now"),
            "shipping <mark>ship</mark> <mark>now</mark>"
        );
    }

    #[test]
    fn phrases_are_marked_where_they_stand_whole() {
        assert_eq!(
            marked("red apple, red big apple", "\"red apple\""),
            "<mark>red</mark> <mark>apple</mark>, red big apple"
        );
        assert_eq!(
            marked("今日は東京都です。京都へ", "東京"),
            "今日は<mark>東京</mark>都です。京都へ"
        );
        assert_eq!(marked("猫と子猫", "猫"), "<mark>猫</mark>と子<mark>猫</mark>");
        assert_eq!(marked("日本語を学ぶ", "日本語"), "<mark>日本語</mark>を学ぶ");
    }

    #[test]
    fn long_messages_are_cut_around_the_first_match() {
        let content = format!("{} needle {}", "hay ".repeat(200), "straw ".repeat(200));
        let snippet = marked(&content, "needle");
        assert!(snippet.starts_with('…') && snippet.ends_with('…') && snippet.contains("<mark>needle</mark>"));
        assert!(snippet.chars().count() <= SNIPPET_CHARS_MAX + "……<mark></mark>".chars().count());
        let snippet = marked(&"界".repeat(1_000), "nothing");
        assert_eq!(snippet.chars().count(), SNIPPET_CHARS_MAX + 1);
    }

    #[test]
    fn a_long_message_is_cut_between_characters_of_any_width() {
        // Spaces of two and three bytes stand where the snippet may begin.
        for space in ['\u{a0}', '\u{3000}', '\u{2003}'] {
            let content = format!(
                "{}{space}{} needle {}",
                "é".repeat(300),
                "長".repeat(30),
                "尾".repeat(300)
            );
            let snippet = marked(&content, "needle");
            assert!(
                snippet.starts_with("…長") && snippet.contains("<mark>needle</mark>"),
                "{snippet}"
            );
        }
        // Whatever stands where: no cut may fall inside a character.
        for chars in 0..130 {
            let content = format!("{}🚀\u{3000}é {}", "界".repeat(chars), "ab\u{a0}cd needle ".repeat(40));
            assert!(marked(&content, "needle").contains("<mark>needle</mark>"), "{chars}");
        }
    }

    /// The distance by its definition: the whole table, nothing left out.
    fn distance(wanted: &[char], text: &[char]) -> usize {
        let mut table = vec![vec![0; text.len() + 1]; wanted.len() + 1];
        for i in 0..=wanted.len() {
            for j in 0..=text.len() {
                table[i][j] = match (i, j) {
                    (0, j) => j,
                    (i, 0) => i,
                    (i, j) => {
                        let substituted = table[i - 1][j - 1] + usize::from(wanted[i - 1] != text[j - 1]);
                        let mut best = substituted.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
                        if i > 1 && j > 1 && wanted[i - 1] == text[j - 2] && wanted[i - 2] == text[j - 1] {
                            best = best.min(table[i - 2][j - 2] + 1);
                        }
                        best
                    }
                };
            }
        }
        table[wanted.len()][text.len()]
    }

    proptest::proptest! {
        #[test]
        fn what_is_within_is_so_by_definition(wanted in "[ab]{1,7}", text in "[ab]{0,9}", most in 0..3_usize) {
            let letters = |text: &str| text.chars().collect::<Vec<char>>();
            let (asked, there) = (letters(&wanted), letters(&text));
            proptest::prop_assert_eq!(within(&wanted, &text, most, false), distance(&asked, &there) <= most);
            let beginning = (0..=there.len()).any(|end| distance(&asked, &there[..end]) <= most);
            proptest::prop_assert_eq!(within(&wanted, &text, most, true), beginning);
        }
    }

    #[test]
    fn distances() {
        assert!(within("deploy", "depoly", 1, false));
        assert!(!within("deploy", "dploym", 1, false));
        assert!(within("deploymet", "deployment", 1, false));
        assert!(within("deplyo", "deployment", 1, true));
        assert!(!within("abcdef", "", 2, true));
    }
}
