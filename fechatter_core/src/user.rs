//! Users' roles and what their names, emails and passwords may be.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use unicode_normalization::is_nfkc;

/// A user's role in the workspace, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Member,
    Admin,
    Owner,
}

impl Role {
    /// The name on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// Whether this role may invite, change roles and deactivate.
    pub const fn manages_workspace(self) -> bool {
        matches!(self, Self::Admin | Self::Owner)
    }
}

impl std::str::FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "member" => Ok(Self::Member),
            "admin" => Ok(Self::Admin),
            "owner" => Ok(Self::Owner),
            _ => Err(UnknownRole),
        }
    }
}

/// The text names no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a role is owner, admin or member")]
pub struct UnknownRole;

/// Longest full name, in Unicode scalar values.
pub const FULLNAME_CHARS_MAX: usize = 64;
/// Longest workspace name, in Unicode scalar values.
pub const WORKSPACE_NAME_CHARS_MAX: usize = 64;
/// Longest email, in bytes (RFC 5321 path limit less the brackets).
pub const EMAIL_BYTES_MAX: usize = 254;
/// Shortest password, in Unicode scalar values (NIST SP 800-63B asks for at least 8).
pub const PASSWORD_CHARS_MIN: usize = 8;
/// Longest password, in Unicode scalar values; a bound on what one sign-in may cost.
pub const PASSWORD_CHARS_MAX: usize = 256;
/// Longest password, in bytes: none that has at most [`PASSWORD_CHARS_MAX`] is longer.
pub const PASSWORD_BYTES_MAX: usize = 4 * PASSWORD_CHARS_MAX;

/// Characters of which nothing is seen and which can make one name look like another: soft hyphen, marks and overrides of
/// direction, zero width spaces, separators of lines, annotations and the like (Unicode `Default_Ignorable_Code_Point` and `Zl`, `Zp`).
pub(crate) const MISLEADING: [RangeInclusive<char>; 11] = [
    '\u{ad}'..='\u{ad}',
    '\u{34f}'..='\u{34f}',
    '\u{61c}'..='\u{61c}',
    '\u{17b4}'..='\u{17b5}',
    '\u{180e}'..='\u{180e}',
    '\u{200b}'..='\u{200b}',
    '\u{200e}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{feff}'..='\u{feff}',
    '\u{fff0}'..='\u{fffb}',
];

/// Characters of which nothing is seen either, but which scripts and emoji need within a name: Hangul fillers, variation selectors,
/// joiners, the empty Braille pattern, controls of shorthand and music, tags.
pub(crate) const QUIET: [RangeInclusive<char>; 10] = [
    '\u{115f}'..='\u{1160}',
    '\u{180b}'..='\u{180f}',
    '\u{200c}'..='\u{200d}',
    '\u{2800}'..='\u{2800}',
    '\u{3164}'..='\u{3164}',
    '\u{fe00}'..='\u{fe0f}',
    '\u{ffa0}'..='\u{ffa0}',
    '\u{1bca0}'..='\u{1bca3}',
    '\u{1d173}'..='\u{1d17a}',
    '\u{e0000}'..='\u{e0fff}',
];

fn is_in(ranges: &[RangeInclusive<char>], c: char) -> bool {
    ranges.iter().any(|range| range.contains(&c))
}

/// Checks a display name (user, workspace, chat): trimmed, at most `chars_max`, beginning with something to see, without control
/// characters and [`MISLEADING`] ones.
pub fn is_name(text: &str, chars_max: usize) -> bool {
    text.chars().next().is_some_and(|first| !is_in(&QUIET, first))
        && text.trim() == text
        && text.chars().count() <= chars_max
        && !crate::message::has_control_characters(text, &[])
        && !text.chars().any(|c| is_in(&MISLEADING, c))
}

/// Checks the outer form of an email address: `local@domain` with a dotted domain or a bare host, no spaces, nothing that is not seen
/// ([`MISLEADING`], [`QUIET`]), and letters in their one normal form (Unicode NFKC): two accounts do not look the same because one is
/// written in full width or with its accents apart.
///
/// Whether it can receive mail only a mail can tell, so nothing finer is attempted.
pub fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else {
        return false;
    };
    text.len() <= EMAIL_BYTES_MAX
        && !local.is_empty()
        && local.len() <= 64
        && !local.contains('@')
        && !text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || is_in(&MISLEADING, c) || is_in(&QUIET, c))
        && is_nfkc(text)
        && !domain.is_empty()
        && domain.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| c.is_alphanumeric() || c == '-')
        })
}

/// Checks a new password's length; its content is the user's business.
pub fn is_password(text: &str) -> bool {
    (PASSWORD_CHARS_MIN..=PASSWORD_CHARS_MAX).contains(&text.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_rank_member_admin_owner() {
        assert!(Role::Member < Role::Admin && Role::Admin < Role::Owner);
        assert!(!Role::Member.manages_workspace() && Role::Admin.manages_workspace());
        for role in [Role::Member, Role::Admin, Role::Owner] {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
    }

    #[test]
    fn emails() {
        for good in ["a@b.co", "A.B+c@mail.example.org", "x@localhost", "jo@exämple.de"] {
            assert!(is_email(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "@b.co",
            "a@",
            "a b@c.de",
            "a@b..c",
            "a@-b.c",
            "a@b@c.de",
            "a@b.c\n",
            // What looks like another address: unseen characters, full width, accents apart.
            "ada\u{200B}@example.org",
            "ada\u{200D}@example.org",
            "\u{202E}ada@example.org",
            "ａda@example.org",
            "jo@exa\u{308}mple.de",
        ] {
            assert!(!is_email(bad), "{bad:?}");
        }
    }

    #[test]
    fn passwords_are_counted_in_characters() {
        for (good, count) in [("a", 8), ("a", 256), ("\u{1f980}", 256)] {
            assert!(is_password(&good.repeat(count)), "{count}");
            assert!(good.repeat(count).len() <= PASSWORD_BYTES_MAX);
        }
        for (bad, count) in [("a", 7), ("\u{1f980}", 7), ("a", 257)] {
            assert!(!is_password(&bad.repeat(count)), "{count}");
        }
    }

    #[test]
    fn names_are_trimmed_and_visible() {
        let family = "\u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467}";
        let england = "\u{1F3F4}\u{E0067}\u{E0062}\u{E0065}\u{E006E}\u{E0067}\u{E007F}";
        for good in [
            "Ada Lovelace",
            "日本語",
            "O'Neil-Ünal",
            "می\u{200C}خواهم",
            "\u{2764}\u{FE0F}",
            family,
            england,
        ] {
            assert!(is_name(good, FULLNAME_CHARS_MAX), "{good:?}");
        }
        let invisible = [
            "\u{200B}",
            "\u{200D}",
            "\u{3164}",
            "\u{2800}",
            "\u{FE0F}",
            "\u{E0067}",
            "\u{AD}",
        ];
        let misleading = ["Ada\u{202E}evil", "Ada\u{200B}", "\u{FEFF}Ada", "a\u{2028}b"];
        for bad in ["", " Ada", "Ada\u{0}", "a\nb"]
            .into_iter()
            .chain(invisible)
            .chain(misleading)
        {
            assert!(!is_name(bad, FULLNAME_CHARS_MAX), "{bad:?}");
        }
    }
}
