//! Whom and what a name after `from:` or `in:` means: folded as message text is, so that `andre` is André.

use crate::text::{self, Purpose, Token};

/// A name as it was asked for.
#[derive(Debug, Clone)]
pub struct Name {
    folded: String,
    tokens: Vec<Token>,
}

impl Name {
    /// Reads a name.
    pub fn new(asked: &str) -> Self {
        Self {
            folded: text::fold(asked.trim()),
            tokens: text::tokens(asked, Purpose::Query),
        }
    }

    /// Whether this is the whole of `name`.
    pub fn is(&self, name: &str) -> bool {
        self.folded == text::fold(name.trim())
    }

    /// Whether this is the whole of `name`, or some of its words, whole and in order.
    pub fn is_in(&self, name: &str) -> bool {
        if self.is(name) {
            return true;
        }
        let Some(first) = self.tokens.first() else { return false };
        let there = text::tokens(name, Purpose::Index);
        (0..there.len()).any(|at| {
            self.tokens.iter().all(|wanted| {
                there
                    .get(at + wanted.position - first.position)
                    .is_some_and(|token| token.text == wanted.text)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_meant_by_their_whole_name_or_words_of_it() {
        for (asked, fullname, expected) in [
            ("ada", "Ada Lovelace", true),
            ("LOVELACE", "Ada Lovelace", true),
            ("ada lovelace", "Ada Lovelace", true),
            ("andre", "André Müller", true),
            ("Muller", "André Müller", true),
            ("müller", "Andre Muller", true),
            ("Sørensen", "Bo Sorensen", true),
            ("strasse", "Eva Straße", true),
            ("o'brien", "Pat O'Brien", true),
            ("mary ann", "Mary Ann Evans", true),
            ("山田", "山田 太郎", true),
            ("太郎", "山田太郎", true),
            ("山田太郎", "山田 太郎", false),
            ("ad", "Ada Lovelace", false),
            ("lovelace ada", "Ada Lovelace", false),
            ("!!!", "Ada Lovelace", false),
            ("", "Ada Lovelace", false),
        ] {
            assert_eq!(Name::new(asked).is_in(fullname), expected, "{asked} in {fullname}");
        }
    }

    #[test]
    fn chats_are_meant_by_their_whole_name() {
        assert!(Name::new("CAFE crew").is("Café Crew"));
        assert!(Name::new("...").is("..."));
        assert!(!Name::new("cafe").is("Café Crew"));
    }
}
