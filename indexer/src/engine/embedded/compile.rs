//! Turns a query into tantivy's query tree. Scores are tiers, as in Meilisearch's ranking rules: an exact word counts
//! more than a prefix, a prefix more than one typo, that more than two; words that stand together count extra.

use tantivy::query::{
    BooleanQuery, ConstScoreQuery, DisjunctionMaxQuery, EmptyQuery, FuzzyTermQuery, Occur, PhraseQuery, Query,
    TermQuery,
};
use tantivy::schema::IndexRecordOption;
use tantivy::{Searcher, Term};

use super::schema::Fields;
use crate::engine::EngineQuery;
use crate::query::TextClause;
use crate::text::{self, Kind, Purpose, Token};

/// Characters from which a word may have one typo, and two.
pub const ONE_TYPO_CHARS: usize = 5;
pub const TWO_TYPOS_CHARS: usize = 9;

const EXACT: f32 = 1.0;
const PREFIX: f32 = 0.8;
const ONE_TYPO: f32 = 0.5;
const TWO_TYPOS: f32 = 0.3;
const ADJACENT: f32 = 0.6;
const NEAR: f32 = 0.3;
/// Words that may stand between the words of a query for them to count as near.
const NEAR_SLOP: u32 = 3;
/// Up to so many chats or senders their own posting lists narrow the search; above, each match is looked up.
pub const TERM_FILTER_MAX: usize = 64;

/// A workspace with a smaller part of the index than one in so many narrows the search by its posting list.
const WORKSPACE_SHARE: u64 = 8;
/// So many words of a query tolerate typos, each of which takes a walk through the vocabulary; more must be right.
pub const TOLERANT_WORDS_MAX: usize = 16;

/// Typos that a word tolerates; digits must be right, and a wrong ideograph is another word.
pub fn typos_allowed(token: &Token) -> u8 {
    if token.kind != Kind::Word || token.text.chars().any(|c| c.is_ascii_digit()) {
        return 0;
    }
    match token.chars() {
        0..ONE_TYPO_CHARS => 0,
        ONE_TYPO_CHARS..TWO_TYPOS_CHARS => 1,
        _ => 2,
    }
}

type BoxedQuery = Box<dyn Query>;

/// The query tree: text, and the filters that posting lists answer well. The collector does the rest, and looks at each
/// match's workspace and chat whatever is here.
pub fn compile(searcher: &Searcher, fields: &Fields, query: &EngineQuery) -> tantivy::Result<BoxedQuery> {
    let mut clauses: Vec<(Occur, BoxedQuery)> = Vec::new();
    let workspace = Term::from_field_i64(fields.workspace_id, query.workspace_id.0);
    if query.text.is_empty() || searcher.doc_freq(&workspace)? < searcher.num_docs() / WORKSPACE_SHARE {
        clauses.push((Occur::Must, filter(any_of(fields.workspace_id, [query.workspace_id.0]))));
    }
    if query.chats.len() <= TERM_FILTER_MAX {
        let ids = query.chats.iter().map(|chat| chat.0);
        clauses.push((Occur::Must, filter(any_of(fields.chat_id, ids))));
    }
    if let Some(senders) = query
        .senders
        .as_ref()
        .filter(|senders| senders.len() <= TERM_FILTER_MAX)
    {
        let ids = senders.iter().map(|sender| sender.0);
        clauses.push((Occur::Must, filter(any_of(fields.sender_id, ids))));
    }
    let mut compiler = TextCompiler {
        fields,
        tolerant: TOLERANT_WORDS_MAX,
    };
    for clause in &query.text {
        compiler.add(clause, &mut clauses);
    }
    compiler.add_proximity(&query.text, &mut clauses);
    Ok(Box::new(BooleanQuery::new(clauses)))
}

fn filter(query: BoxedQuery) -> BoxedQuery {
    Box::new(ConstScoreQuery::new(query, 0.0))
}

fn any_of(field: tantivy::schema::Field, ids: impl IntoIterator<Item = i64>) -> BoxedQuery {
    let mut terms: Vec<BoxedQuery> = ids
        .into_iter()
        .map(|id| -> BoxedQuery {
            Box::new(TermQuery::new(
                Term::from_field_i64(field, id),
                IndexRecordOption::Basic,
            ))
        })
        .collect();
    match terms.len() {
        0 => Box::new(EmptyQuery),
        1 => terms.pop().unwrap_or_else(|| Box::new(EmptyQuery)),
        _ => Box::new(BooleanQuery::union(terms)),
    }
}

struct TextCompiler<'a> {
    fields: &'a Fields,
    /// How many more words may have typos.
    tolerant: usize,
}

impl TextCompiler<'_> {
    fn term(&self, token: &Token) -> Term {
        Term::from_field_text(self.fields.content, &token.text)
    }

    fn exact(&self, token: &Token) -> BoxedQuery {
        Box::new(TermQuery::new(self.term(token), IndexRecordOption::Basic))
    }

    fn starting_with(&self, token: &Token) -> BoxedQuery {
        Box::new(FuzzyTermQuery::new_prefix(self.term(token), 0, true))
    }

    fn fuzzy(&self, token: &Token, distance: u8, prefix: bool) -> BoxedQuery {
        let term = self.term(token);
        Box::new(if prefix {
            FuzzyTermQuery::new_prefix(term, distance, true)
        } else {
            FuzzyTermQuery::new(term, distance, true)
        })
    }

    /// Adds what a clause demands. A clause without a single letter or digit cannot be found in any message.
    fn add(&mut self, clause: &TextClause, clauses: &mut Vec<(Occur, BoxedQuery)>) {
        let tokens = text::tokens(clause.text(), Purpose::Query);
        match clause {
            TextClause::Phrase(_) => clauses.push((Occur::Must, self.phrase(&tokens))),
            TextClause::Word(_) | TextClause::Prefix(_) => {
                let is_prefix = matches!(clause, TextClause::Prefix(_));
                let units = units(&tokens);
                let last = units.len().saturating_sub(1);
                for (i, unit) in units.iter().enumerate() {
                    clauses.push((Occur::Must, self.unit(unit, is_prefix && i == last)));
                }
                if units.is_empty() {
                    clauses.push((Occur::Must, Box::new(EmptyQuery)));
                }
            }
        }
    }

    fn unit(&mut self, unit: &[Token], prefix: bool) -> BoxedQuery {
        match unit {
            [] => Box::new(EmptyQuery),
            [token] if token.kind == Kind::Word => self.word(token, prefix),
            tokens => self.phrase(tokens),
        }
    }

    fn word(&mut self, token: &Token, prefix: bool) -> BoxedQuery {
        let mut tiers: Vec<BoxedQuery> = vec![Box::new(ConstScoreQuery::new(self.exact(token), EXACT))];
        if prefix {
            tiers.push(Box::new(ConstScoreQuery::new(self.starting_with(token), PREFIX)));
        }
        let typos = if self.tolerant > 0 { typos_allowed(token) } else { 0 };
        if typos >= 1 {
            self.tolerant -= 1;
            tiers.push(Box::new(ConstScoreQuery::new(self.fuzzy(token, 1, prefix), ONE_TYPO)));
        }
        if typos >= 2 {
            tiers.push(Box::new(ConstScoreQuery::new(self.fuzzy(token, 2, prefix), TWO_TYPOS)));
        }
        Box::new(DisjunctionMaxQuery::new(tiers))
    }

    /// Tokens one after the other. A lone character of an unspaced script starts a pair or ends a run.
    fn phrase(&self, tokens: &[Token]) -> BoxedQuery {
        match tokens {
            [] => Box::new(EmptyQuery),
            [token] if token.kind == Kind::Gram && token.chars() == 1 => {
                Box::new(ConstScoreQuery::new(self.starting_with(token), EXACT))
            }
            [token] => Box::new(ConstScoreQuery::new(self.exact(token), EXACT)),
            tokens => Box::new(ConstScoreQuery::new(self.positions(tokens, 0), EXACT)),
        }
    }

    fn positions(&self, tokens: &[Token], slop: u32) -> BoxedQuery {
        // A lone character within a phrase is followed by a word, so it ends its run and is indexed alone.
        let terms = tokens.iter().map(|token| (token.position, self.term(token))).collect();
        Box::new(PhraseQuery::new_with_offset_and_slop(terms, slop))
    }

    /// Prefers messages in which the words of the query stand together and in order.
    fn add_proximity(&self, clauses: &[TextClause], into: &mut Vec<(Occur, BoxedQuery)>) {
        let joined = clauses.iter().map(TextClause::text).collect::<Vec<_>>().join(" ");
        let tokens = text::tokens(&joined, Purpose::Query);
        if clauses.len() < 2 || tokens.len() < 2 {
            return;
        }
        for (slop, score) in [(0, ADJACENT), (NEAR_SLOP, NEAR)] {
            into.push((
                Occur::Should,
                Box::new(ConstScoreQuery::new(self.positions(&tokens, slop), score)),
            ));
        }
    }
}

/// Groups tokens into what must be found: a word or symbol by itself, a run of pairs as one.
fn units(tokens: &[Token]) -> Vec<Vec<Token>> {
    let mut units: Vec<Vec<Token>> = Vec::new();
    for token in tokens {
        match units.last_mut() {
            Some(unit)
                if token.kind == Kind::Gram
                    && unit
                        .last()
                        .is_some_and(|last| last.kind == Kind::Gram && last.end > token.start) =>
            {
                unit.push(token.clone());
            }
            _ => units.push(vec![token.clone()]),
        }
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_pairs_are_one_unit() {
        let tokens = text::tokens("foo-bar 日本語・東京 x", Purpose::Query);
        let sizes: Vec<usize> = units(&tokens).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 1, 2, 1, 1]);
    }

    #[test]
    fn typos_follow_the_length() {
        let allowed = |text: &str| typos_allowed(&text::tokens(text, Purpose::Query)[0]);
        assert_eq!(
            (
                allowed("ship"),
                allowed("ships"),
                allowed("shipping"),
                allowed("shippings")
            ),
            (0, 1, 1, 2)
        );
        assert_eq!((allowed("release2026"), allowed("日本")), (0, 0));
    }

    #[test]
    fn only_so_many_words_tolerate_typos() {
        let (schema, fields) = super::super::schema::build();
        let index = tantivy::Index::create_in_ram(schema);
        let searcher = index.reader().unwrap().searcher();
        // One piece of text, without a space, of a hundred words.
        let query = EngineQuery {
            workspace_id: 1.into(),
            text: vec![TextClause::Word(vec!["abcdefghi"; 100].join("-"))],
            chats: [].into(),
            preferred_chats: [].into(),
            senders: None,
            created: crate::query::TimeRange::default(),
            has_link: false,
            sort: crate::engine::Sort::Relevance,
            offset: 0,
            limit: 1,
            now: time::OffsetDateTime::UNIX_EPOCH,
        };
        let tree = format!("{:?}", compile(&searcher, &fields, &query).unwrap());
        assert_eq!(tree.matches("FuzzyTermQuery").count(), 2 * TOLERANT_WORDS_MAX);
        assert!(tree.matches("TermQuery").count() >= 100);
    }
}
