//! Who may do what to a container: the one place that decides.
//!
//! | | full_access | read_only | provisioner |
//! |---|---|---|---|
//! | [`Deed::Read`] | yes | yes | yes |
//! | [`Deed::Copy`] of a template it names, or of any where it names none | yes | no | yes |
//! | [`Deed::Copy`], [`Deed::Change`] of what it made | yes | no | yes |
//! | [`Deed::Change`] of anything else | yes | no | no |
//! | [`Deed::Govern`] | yes | no | no |
//! | [`Deed::Scripts`] | where the token says so | no | no |
//!
//! All within the token's project: what lies outside of it is not there, which is decided before.

use super::container::Container;
use super::token::{Permissions, Token};

/// What is to be done, as far as it matters for who may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Nothing is changed.
    Read,
    /// A container is made from another one.
    Copy,
    /// One container, or what belongs to it, is changed, started, stopped, entered or deleted.
    Change,
    /// Everything else: projects, images, tokens, containers from images.
    Govern,
    /// Scripts, their secrets and their logs are read or written.
    Scripts,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It changes something.
    #[error("this token is read_only")]
    ReadOnly,
    /// It is no container's.
    #[error("this token is a provisioner: it copies templates, and changes and deletes what it made")]
    NotForProvisioners,
    /// The container is none of its templates.
    #[error("this token may not copy that container: it is none of its templates, and it did not make it")]
    NoTemplate,
    /// The container is not one that it made.
    #[error("this token did not make that container")]
    NotItsOwn,
    /// It has nothing to do with scripts.
    #[error("this token may not manage scripts")]
    NoScripts,
}

/// Whether a token may do it; to `container`, where it is done to one. Where that is not there, nothing can be done to it, and
/// whoever finds that out says so.
///
/// # Errors
/// Why it may not.
pub fn may(token: &Token, deed: Deed, container: Option<&Container>) -> Result<(), Denied> {
    match (token.permissions, deed) {
        (_, Deed::Scripts) if !token.scripts => Err(Denied::NoScripts),
        (Permissions::FullAccess, _) | (_, Deed::Read) => Ok(()),
        (Permissions::ReadOnly, _) => Err(Denied::ReadOnly),
        (Permissions::Provisioner, Deed::Govern | Deed::Scripts) => Err(Denied::NotForProvisioners),
        (Permissions::Provisioner, Deed::Copy) => match container {
            Some(source) if !(may_copy(token, source) || made(token, source)) => Err(Denied::NoTemplate),
            _ => Ok(()),
        },
        (Permissions::Provisioner, Deed::Change) => match container {
            Some(container) if !made(token, container) => Err(Denied::NotItsOwn),
            _ => Ok(()),
        },
    }
}

fn made(token: &Token, container: &Container) -> bool {
    container.made_by == Some(token.id)
}

fn may_copy(token: &Token, source: &Container) -> bool {
    if token.templates.is_empty() {
        return source.settings.template;
    }
    token.templates.iter().any(|template| template.is(source))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::domain::container::tests::container as a_container;
    use crate::domain::token::TokenHash;
    use crate::domain::{ProjectId, TokenId};

    fn token(permissions: Permissions) -> Token {
        Token {
            id: TokenId::generate(),
            alias: "t".into(),
            hash: TokenHash::of("x"),
            permissions,
            project: None,
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: None,
            templates: Vec::new(),
            scripts: false,
            previous: None,
        }
    }

    const DEEDS: [Deed; 5] = [Deed::Read, Deed::Copy, Deed::Change, Deed::Govern, Deed::Scripts];

    /// For each deed whether it may be done: `y` or `-`.
    fn row(token: &Token, container: &Container) -> String {
        DEEDS.map(|deed| if may(token, deed, Some(container)).is_ok() { 'y' } else { '-' }).iter().collect()
    }

    #[test]
    fn the_table() {
        let provisioner = token(Permissions::Provisioner);
        let naming = |text: &str| Token { templates: vec![text.parse().unwrap()], ..provisioner.clone() };
        let other = a_container(ProjectId::NIL, "other");
        let mut own = a_container(ProjectId::NIL, "own");
        own.made_by = Some(provisioner.id);
        let mut template = a_container(ProjectId::NIL, "template");
        template.settings.template = true;
        let admin = Token { scripts: true, ..token(Permissions::FullAccess) };
        let id = other.id.to_string();
        for (who, container, wanted) in [
            (&admin, &other, "yyyyy"),
            (&token(Permissions::FullAccess), &other, "yyyy-"),
            (&token(Permissions::ReadOnly), &other, "y----"),
            (&token(Permissions::ReadOnly), &template, "y----"),
            (&provisioner, &other, "y----"),
            (&provisioner, &template, "yy---"),
            (&provisioner, &own, "yyy--"),
            (&naming("template"), &template, "yy---"),
            (&naming("other"), &template, "y----"),
            (&naming("other"), &other, "yy---"),
            (&naming(&id), &other, "yy---"),
            (&naming("other"), &own, "yyy--"),
            (&token(Permissions::Provisioner), &own, "y----"),
        ] {
            assert_eq!(row(who, container), wanted, "{who:?} {}", container.name);
        }
    }

    #[test]
    fn a_flag_for_scripts_gives_nobody_else_what_only_full_access_has() {
        for permissions in [Permissions::ReadOnly, Permissions::Provisioner] {
            let token = Token { scripts: true, ..token(permissions) };
            assert!(may(&token, Deed::Scripts, None).is_err() && may(&token, Deed::Govern, None).is_err());
        }
    }

    #[test]
    fn of_a_container_that_is_not_there_nothing_is_said() {
        let provisioner = token(Permissions::Provisioner);
        assert!(may(&provisioner, Deed::Change, None).is_ok() && may(&provisioner, Deed::Copy, None).is_ok());
        assert_eq!(may(&token(Permissions::ReadOnly), Deed::Change, None), Err(Denied::ReadOnly));
    }
}
