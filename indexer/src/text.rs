//! How text becomes searchable tokens: folded words, and bigrams for scripts written without spaces.
//!
//! The embedded index, its queries and the highlighter share this one definition, so that what was found can always
//! be marked. Rules: a word is a run of letters and digits, folded (compatibility forms, case, Latin accents); a run
//! of an unspaced script yields every pair of neighbours, and, in the index, its last character alone, so that a
//! single character is findable as the prefix of a pair or as the end of a run.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Longest token, in characters; the rest of a longer word is not searchable.
pub const TOKEN_CHARS_MAX: usize = 64;

/// What kind of token it is; decides which kinds of inexact matching make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A word of a spaced script.
    Word,
    /// A pair of neighbours, or a lone character, of an unspaced script.
    Gram,
    /// An emoji.
    Symbol,
}

/// A token and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub kind: Kind,
    /// Place in the sequence of tokens; neighbours in the text have neighbouring positions.
    pub position: usize,
    /// Byte range in the original text.
    pub start: usize,
    pub end: usize,
}

impl Token {
    /// Characters of the token.
    pub fn chars(&self) -> usize {
        self.text.chars().count()
    }
}

/// Whether the tokens are for the index or for a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Index,
    /// The lone last character of a run of two or more is left out; its position stays free.
    Query,
}

/// Splits and folds a text.
pub fn tokens(text: &str, purpose: Purpose) -> Vec<Token> {
    let mut found = Vec::new();
    let mut position = 0;
    let mut rest = text.char_indices().peekable();
    while let Some(&(start, c)) = rest.peek() {
        if is_unspaced(c) {
            position = push_run(&mut found, text, &mut rest, position, purpose);
        } else if c.is_alphanumeric() {
            let mut end = start;
            while let Some(&(at, c)) = rest.peek() {
                if is_unspaced(c) || !(c.is_alphanumeric() || is_combining_mark(c)) {
                    break;
                }
                end = at + c.len_utf8();
                rest.next();
            }
            let folded: String = fold(&text[start..end]).chars().take(TOKEN_CHARS_MAX).collect();
            if !folded.is_empty() {
                found.push(Token {
                    text: folded,
                    kind: Kind::Word,
                    position,
                    start,
                    end,
                });
                position += 1;
            }
        } else {
            rest.next();
            if is_emoji(c) {
                found.push(Token {
                    text: c.to_string(),
                    kind: Kind::Symbol,
                    position,
                    start,
                    end: start + c.len_utf8(),
                });
                position += 1;
            }
        }
    }
    found
}

/// A word, or a run of an unspaced script, as an engine with a tokenizer of its own is given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The folded word, or the folded characters of the run with one space between: how an engine's dictionaries divide
    /// a run depends on what is around it, and not every part of it would be found.
    pub text: String,
    pub kind: Kind,
}

/// The words and runs of a text, so that another engine finds the same as we do and nothing that it could take for syntax.
pub fn units(text: &str) -> Vec<Unit> {
    let found = tokens(text, Purpose::Index);
    let mut units = Vec::new();
    let mut rest = &found[..];
    while let Some(first) = rest.first() {
        let run = 1 + rest.windows(2).take_while(|pair| overlap(&pair[0], &pair[1])).count();
        let (unit, after) = rest.split_at(run);
        let text = if first.kind == Kind::Gram {
            let ends = unit[1..]
                .iter()
                .map(|next| next.start)
                .chain(unit.last().map(|last| last.end));
            let characters: Vec<String> = unit
                .iter()
                .zip(ends)
                .map(|(token, end)| fold(&text[token.start..end]))
                .collect();
            characters.join(" ")
        } else {
            first.text.clone()
        };
        units.push(Unit { text, kind: first.kind });
        rest = after;
    }
    units
}

/// The words of a text with one space between, and one between the characters of a run; see [`units`].
pub fn spaced(text: &str) -> String {
    units(text)
        .into_iter()
        .map(|unit| unit.text)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether two neighbours are of one run of an unspaced script.
fn overlap(token: &Token, next: &Token) -> bool {
    token.kind == Kind::Gram && next.kind == Kind::Gram && token.end > next.start
}

/// One written character of an unspaced script with its marks, folded.
struct Cluster {
    text: String,
    start: usize,
    end: usize,
}

fn push_run(
    found: &mut Vec<Token>,
    text: &str,
    rest: &mut std::iter::Peekable<std::str::CharIndices<'_>>,
    first_position: usize,
    purpose: Purpose,
) -> usize {
    let mut clusters: Vec<Cluster> = Vec::new();
    while let Some(&(start, c)) = rest.peek() {
        if !is_unspaced(c) {
            break;
        }
        rest.next();
        let mut end = start + c.len_utf8();
        while let Some(&(at, mark)) = rest.peek() {
            if !extends_cluster(mark) {
                break;
            }
            end = at + mark.len_utf8();
            rest.next();
        }
        clusters.push(Cluster {
            text: fold(&text[start..end]),
            start,
            end,
        });
    }
    for (i, cluster) in clusters.iter().enumerate() {
        let token = match clusters.get(i + 1) {
            Some(next) => Token {
                text: format!("{}{}", cluster.text, next.text),
                kind: Kind::Gram,
                position: first_position + i,
                start: cluster.start,
                end: next.end,
            },
            None if purpose == Purpose::Index || clusters.len() == 1 => Token {
                text: cluster.text.clone(),
                kind: Kind::Gram,
                position: first_position + i,
                start: cluster.start,
                end: cluster.end,
            },
            None => continue,
        };
        found.push(token);
    }
    first_position + clusters.len()
}

/// Folds case, compatibility forms and Latin, Greek and Cyrillic accents; leaves marks that spell other scripts.
pub fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let mut folded = String::with_capacity(text.len());
    for c in text.nfkd().filter(|&c| !is_accent(c)) {
        match c {
            'ß' | 'ẞ' => folded.push_str("ss"),
            'æ' | 'Æ' => folded.push_str("ae"),
            'œ' | 'Œ' => folded.push_str("oe"),
            'ø' | 'Ø' => folded.push('o'),
            'đ' | 'Đ' | 'ð' | 'Ð' => folded.push('d'),
            'ł' | 'Ł' => folded.push('l'),
            'þ' | 'Þ' => folded.push_str("th"),
            'ı' => folded.push('i'),
            'ς' => folded.push('σ'),
            _ => folded.extend(c.to_lowercase()),
        }
    }
    // Lower-casing may bring a mark back (İ), and Hangul and kana were taken apart.
    folded.nfc().filter(|&c| !is_accent(c)).collect()
}

const fn is_accent(c: char) -> bool {
    matches!(c as u32, 0x0300..=0x036F | 0x1AB0..=0x1AFF | 0x1DC0..=0x1DFF | 0x20D0..=0x20FF | 0xFE00..=0xFE0F | 0xFE20..=0xFE2F)
}

/// Han, kana, Hangul, Bopomofo, Thai, Lao, Khmer, Myanmar: words are not separated, or not by spaces alone.
fn is_unspaced(c: char) -> bool {
    let in_script = matches!(
        c as u32,
        0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1100..=0x11FF | 0x1780..=0x17FF | 0x2E80..=0x2FDF | 0x3005..=0x3007
        | 0x3021..=0x3029 | 0x3031..=0x3035 | 0x3038..=0x303B | 0x3041..=0x30FF | 0x3105..=0x318E | 0x31A0..=0x31BF
        | 0x31F0..=0x31FF | 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xA960..=0xA97F | 0xAC00..=0xD7FF | 0xF900..=0xFAFF
        | 0xFF66..=0xFFDC | 0x1B000..=0x1B16F | 0x20000..=0x3FFFF
    );
    in_script && (c.is_alphanumeric() || is_combining_mark(c))
}

/// Voicing marks of kana, and vowels and finals of decomposed Hangul.
const fn extends_cluster(c: char) -> bool {
    matches!(c as u32, 0x3099..=0x309A | 0xFF9E..=0xFF9F | 0x1160..=0x11FF | 0xFE00..=0xFE0F)
}

const fn is_emoji(c: char) -> bool {
    matches!(c as u32, 0x2600..=0x27BF | 0x1F300..=0x1F3FA | 0x1F400..=0x1FAFF)
}

/// Characters that only steer how text is shown: bidirectional controls, zero-width marks, the byte order mark.
pub const fn is_invisible(c: char) -> bool {
    matches!(c as u32, 0x00AD | 0x061C | 0x200B..=0x200F | 0x202A..=0x202E | 0x2060..=0x2069 | 0xFEFF)
}

/// Whether a text holds a link as chat clients recognise one.
pub fn has_link(text: &str) -> bool {
    ["https://", "http://"].iter().any(|scheme| {
        let mut from = 0;
        while let Some(at) = find_ignore_case(&text[from..], scheme) {
            from += at + scheme.len();
            if text[from..].chars().next().is_some_and(char::is_alphanumeric) {
                return true;
            }
        }
        false
    })
}

/// Position of an ASCII needle, in any case.
fn find_ignore_case(text: &str, needle: &str) -> Option<usize> {
    text.as_bytes()
        .windows(needle.len())
        .position(|window| window.eq_ignore_ascii_case(needle.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str, purpose: Purpose) -> Vec<String> {
        tokens(text, purpose).into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn words_are_folded() {
        assert_eq!(
            texts("Crème BRÛLÉE, Straße!", Purpose::Index),
            ["creme", "brulee", "strasse"]
        );
        assert_eq!(
            texts("Ærøskøbing Łódź İstanbul", Purpose::Index),
            ["aeroskobing", "lodz", "istanbul"]
        );
        assert_eq!(texts("ＡＢＣ１２ ﬁn", Purpose::Index), ["abc12", "fin"]);
        // Composed and decomposed are the same word.
        assert_eq!(texts("caf\u{e9}", Purpose::Index), texts("cafe\u{301}", Purpose::Index));
        assert_eq!(texts("Ёлка ΌΔΟΣ οδός", Purpose::Index), ["елка", "οδοσ", "οδοσ"]);
        assert_eq!(
            texts("foo_bar-baz 3.14", Purpose::Index),
            ["foo", "bar", "baz", "3", "14"]
        );
    }

    #[test]
    fn unspaced_scripts_become_bigrams() {
        assert_eq!(texts("日本語", Purpose::Index), ["日本", "本語", "語"]);
        assert_eq!(texts("日本語", Purpose::Query), ["日本", "本語"]);
        assert_eq!(texts("猫", Purpose::Index), ["猫"]);
        assert_eq!(texts("猫", Purpose::Query), ["猫"]);
        assert_eq!(texts("東京tower", Purpose::Index), ["東京", "京", "tower"]);
        assert_eq!(texts("한국어", Purpose::Index), ["한국", "국어", "어"]);
        // Half-width kana with its voicing mark is the full-width letter; decomposed Hangul is the syllable.
        assert_eq!(texts("ｶﾞｽ", Purpose::Index), texts("ガス", Purpose::Index));
        assert_eq!(texts("\u{1112}\u{1161}\u{11ab}", Purpose::Index), ["한"]);
        // Punctuation between ideographs separates.
        assert_eq!(texts("東京・大阪。", Purpose::Query), ["東京", "大阪"]);
        assert!(!texts("สวัสดี", Purpose::Index).is_empty());
    }

    #[test]
    fn words_are_spaced_for_others() {
        for (text, expected) in [
            (
                "The red, GREEN ones. -Crème_brûlée \"quoted\"!",
                "the red green ones creme brulee quoted",
            ),
            ("INC-1042: 4.2.1 🚀", "inc 1042 4 2 1 🚀"),
            ("明日は東京tower、大阪。", "明 日 は 東 京 tower 大 阪"),
            ("ｶﾞｽ 猫", "ガ ス 猫"),
            ("한국어 Straße", "한 국 어 strasse"),
            ("!!! \"-", ""),
        ] {
            assert_eq!(spaced(text), expected);
        }
    }

    #[test]
    fn positions_are_the_same_for_index_and_query() {
        let at = |text, purpose| tokens(text, purpose).last().map(|token| token.position);
        assert_eq!(at("日本語 foo", Purpose::Index), Some(3));
        assert_eq!(at("日本語 foo", Purpose::Query), Some(3));
    }

    #[test]
    fn offsets_are_those_of_the_original_text() {
        for text in ["Crème, 日本語 👍 ok", "ｶﾞｽ x", "a\u{301}b c"] {
            for token in tokens(text, Purpose::Index) {
                let slice = &text[token.start..token.end];
                assert!(
                    fold(slice).starts_with(&token.text) || token.kind != Kind::Word,
                    "{slice:?} {token:?}"
                );
            }
        }
    }

    #[test]
    fn emoji_are_tokens_and_long_words_are_cut() {
        assert_eq!(texts("ship it 🚀👍🏽", Purpose::Index), ["ship", "it", "🚀", "👍"]);
        assert_eq!(texts(&"x".repeat(500), Purpose::Index), ["x".repeat(TOKEN_CHARS_MAX)]);
    }

    #[test]
    fn links() {
        assert!(has_link("see HTTPS://example.org"));
        assert!(has_link("a http:// b http://b.c"));
        assert!(!has_link("http:// and https:/x"));
        assert!(!has_link("plain"));
    }
}
