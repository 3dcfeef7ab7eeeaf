//! Users' roles and what their names, emails and passwords may be.

use serde::{Deserialize, Serialize};

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
/// Longest password, in bytes; a bound on what one sign-in may cost.
pub const PASSWORD_BYTES_MAX: usize = 1_024;

/// Checks a display name (user, workspace, chat): visible, trimmed, no control characters, at most `chars_max`.
pub fn is_name(text: &str, chars_max: usize) -> bool {
    !text.is_empty()
        && text.trim() == text
        && text.chars().count() <= chars_max
        && !crate::message::has_control_characters(text, &[])
}

/// Checks the outer form of an email address: `local@domain` with a dotted domain or a bare host, printable, no spaces.
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
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
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
    text.chars().count() >= PASSWORD_CHARS_MIN && text.len() <= PASSWORD_BYTES_MAX
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
            "", "a", "@b.co", "a@", "a b@c.de", "a@b..c", "a@-b.c", "a@b@c.de", "a@b.c\n",
        ] {
            assert!(!is_email(bad), "{bad:?}");
        }
    }

    #[test]
    fn names_are_trimmed_and_visible() {
        assert!(is_name("Ada Lovelace", FULLNAME_CHARS_MAX));
        for bad in ["", " Ada", "Ada\u{0}", "a\nb"] {
            assert!(!is_name(bad, FULLNAME_CHARS_MAX), "{bad:?}");
        }
    }
}
