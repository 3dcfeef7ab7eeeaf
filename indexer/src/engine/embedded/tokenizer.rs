//! Our tokens as tantivy takes them.

use tantivy::tokenizer::{Token, TokenStream, Tokenizer};

use crate::text::{self, Purpose};

/// Tokenizes by [`text::tokens`].
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatTokenizer;

/// The tokens of one text.
#[derive(Debug)]
pub struct ChatTokenStream {
    tokens: std::vec::IntoIter<text::Token>,
    token: Token,
}

impl Tokenizer for ChatTokenizer {
    type TokenStream<'a> = ChatTokenStream;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> ChatTokenStream {
        ChatTokenStream {
            tokens: text::tokens(text, Purpose::Index).into_iter(),
            token: Token::default(),
        }
    }
}

impl TokenStream for ChatTokenStream {
    fn advance(&mut self) -> bool {
        let Some(token) = self.tokens.next() else {
            return false;
        };
        self.token.offset_from = token.start;
        self.token.offset_to = token.end;
        self.token.position = token.position;
        self.token.text = token.text;
        true
    }

    fn token(&self) -> &Token {
        &self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        &mut self.token
    }
}
