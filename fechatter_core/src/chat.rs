//! The four chat kinds and the membership rules that follow from the kind alone.

use serde::{Deserialize, Serialize};

/// What a chat is; decides who may be in it and who may know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChatKind {
    /// Exactly two people; one per pair.
    Single,
    /// At least three people, the creator included.
    Group,
    /// Invisible to non-members; others are added.
    PrivateChannel,
    /// Anyone in the workspace may list, join and leave it.
    PublicChannel,
}

/// Members below which a group may not fall.
pub const GROUP_MEMBERS_MIN: usize = 3;
/// Most members one request may add or remove.
pub const MEMBER_BATCH_MAX: usize = 1_000;
/// Longest chat name, in Unicode scalar values.
pub const NAME_CHARS_MAX: usize = 80;
/// Longest chat description, in Unicode scalar values.
pub const DESCRIPTION_CHARS_MAX: usize = 1_000;

impl ChatKind {
    /// All kinds, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Single, Self::Group, Self::PrivateChannel, Self::PublicChannel];

    /// The name on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Group => "group",
            Self::PrivateChannel => "private_channel",
            Self::PublicChannel => "public_channel",
        }
    }

    /// Whether somebody of the workspace who is not a member may know that the chat exists.
    pub const fn is_discoverable(self) -> bool {
        matches!(self, Self::PublicChannel)
    }

    /// Whether members can be added, removed or leave after creation.
    pub const fn has_changing_members(self) -> bool {
        !matches!(self, Self::Single)
    }

    /// Whether a chat of this kind carries a name that a client must give.
    pub const fn needs_name(self) -> bool {
        matches!(self, Self::PrivateChannel | Self::PublicChannel)
    }

    /// Checks the member list a new chat would start with; `others` are distinct and exclude the creator.
    pub const fn check_founding_members(self, others: usize) -> Result<(), MembershipRule> {
        match self {
            Self::Single if others != 1 => Err(MembershipRule::SingleNeedsTwo),
            Self::Group if others + 1 < GROUP_MEMBERS_MIN => Err(MembershipRule::GroupNeedsThree),
            _ => Ok(()),
        }
    }

    /// Checks that `remaining` members are enough after someone is removed or leaves.
    pub const fn check_remaining_members(self, remaining: usize) -> Result<(), MembershipRule> {
        match self {
            Self::Single => Err(MembershipRule::SingleIsFixed),
            Self::Group if remaining < GROUP_MEMBERS_MIN => Err(MembershipRule::GroupNeedsThree),
            _ => Ok(()),
        }
    }
}

impl std::str::FromStr for ChatKind {
    type Err = UnknownChatKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(UnknownChatKind)
    }
}

impl std::fmt::Display for ChatKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no chat kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a chat kind is single, group, private_channel or public_channel")]
pub struct UnknownChatKind;

/// A membership rule that a request would break; the text is safe to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MembershipRule {
    #[error("a single chat has exactly one other member, not yourself")]
    SingleNeedsTwo,
    #[error("the members of a single chat never change")]
    SingleIsFixed,
    #[error("a group has at least three members, you included")]
    GroupNeedsThree,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn founding_members_follow_the_kind() {
        assert_eq!(
            ChatKind::Single.check_founding_members(0),
            Err(MembershipRule::SingleNeedsTwo)
        );
        assert_eq!(ChatKind::Single.check_founding_members(1), Ok(()));
        assert_eq!(
            ChatKind::Single.check_founding_members(2),
            Err(MembershipRule::SingleNeedsTwo)
        );
        assert_eq!(
            ChatKind::Group.check_founding_members(1),
            Err(MembershipRule::GroupNeedsThree)
        );
        assert_eq!(ChatKind::Group.check_founding_members(2), Ok(()));
        assert_eq!(ChatKind::PublicChannel.check_founding_members(0), Ok(()));
        assert_eq!(ChatKind::PrivateChannel.check_founding_members(0), Ok(()));
    }

    #[test]
    fn a_group_keeps_three_and_a_single_never_changes() {
        assert_eq!(
            ChatKind::Group.check_remaining_members(2),
            Err(MembershipRule::GroupNeedsThree)
        );
        assert_eq!(ChatKind::Group.check_remaining_members(3), Ok(()));
        assert_eq!(
            ChatKind::Single.check_remaining_members(1),
            Err(MembershipRule::SingleIsFixed)
        );
        assert_eq!(ChatKind::PublicChannel.check_remaining_members(0), Ok(()));
    }

    #[test]
    fn names_round_trip() {
        for kind in ChatKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert_eq!("dm".parse::<ChatKind>(), Err(UnknownChatKind));
    }
}
