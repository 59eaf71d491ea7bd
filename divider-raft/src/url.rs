//! A whole configuration in one line, for programs that take their store from a flag or a variable.

use std::time::Duration;

use divider_core::{Group, InvalidInput};

use crate::{
    builder::RaftBuilder,
    config::{Data, Role},
    store::RaftStore,
};

/// Why a URL does not name a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// It does not begin with `raft:`.
    #[error("a store of Raft begins with raft:, such as raft:/var/lib/me")]
    Scheme,
    /// A setting that does not exist.
    #[error(
        "there is no setting {0:?}; use name, cluster, listen, advertise, seeds, seed_names, voters_to_found, step_after_ms, role or plaintext"
    )]
    Unknown(String),
    /// A setting whose value is not one of its own.
    #[error("{setting} cannot be {value:?}; use {instead}")]
    Value {
        /// Which setting.
        setting: &'static str,
        /// What it was given.
        value: String,
        /// What it takes.
        instead: &'static str,
    },
    /// The name is empty or too long.
    #[error(transparent)]
    Name(#[from] InvalidInput),
}

impl RaftStore {
    /// Begins to build a store from a URL: `raft:`, the data directory, and settings.
    ///
    /// ```
    /// # use divider_core::Group;
    /// # use divider_raft::RaftStore;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let group = Group::new("/process/me/")?;
    /// // A member on its own.
    /// RaftStore::from_url("raft:/var/lib/me", group.clone())?.build()?;
    /// // One of three voters.
    /// let url = "raft:/var/lib/me?name=a&listen=10.0.0.1:7400&seeds=10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400&plaintext";
    /// RaftStore::from_url(url, group.clone())?.build()?;
    /// // A client of them.
    /// RaftStore::from_url("raft:?role=client&seeds=10.0.0.1:7400,10.0.0.2:7400&plaintext", group)?.build()?;
    /// # Ok(()) }
    /// ```
    ///
    /// `raft:` followed by `memory` instead of a directory keeps everything in memory. A setting does what the field of
    /// [`RaftConfig`](crate::RaftConfig) of its name does:
    ///
    /// - `name`, `cluster`, `listen` and `advertise` take a text;
    /// - `seeds` and `seed_names` take `host:port`, several with commas between them;
    /// - `voters_to_found` takes a number, `step_after_ms` milliseconds;
    /// - `role` takes `voter`, `learner` or `client`;
    /// - `plaintext` takes nothing.
    ///
    /// Certificates, a secret and all else are set on the builder. Nothing in the URL is decoded.
    ///
    /// # Errors
    /// [`UrlError`], which says what there is.
    pub fn from_url(url: &str, group: Group) -> Result<RaftBuilder, UrlError> {
        let (_, rest) =
            url.split_once(':').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("raft")).ok_or(UrlError::Scheme)?;
        let (directory, settings) = rest.split_once('?').unwrap_or((rest, ""));
        let data = match directory {
            "" => Data::Unset,
            "memory" => Data::Memory,
            directory => directory.into(),
        };
        let mut builder = RaftStore::builder(data, group);
        for setting in settings.split('&').filter(|setting| !setting.is_empty()) {
            let (setting, value) = setting.split_once('=').unwrap_or((setting, ""));
            let list = || value.split(',').map(str::to_owned).collect::<Vec<_>>();
            builder = match setting {
                "name" => builder.name(value)?,
                "cluster" => builder.configure(|config| config.cluster = value.to_owned()),
                "listen" => builder.listen(value),
                "advertise" => builder.configure(|config| config.advertise = Some(value.to_owned())),
                "seeds" => builder.seeds(list()),
                "seed_names" => builder.configure(|config| config.seed_names = list()),
                "voters_to_found" => {
                    let founders = number("voters_to_found", value, "a number such as 3")?;
                    builder.configure(|config| config.voters_to_found = Some(founders))
                }
                "step_after_ms" => {
                    let ms = number("step_after_ms", value, "milliseconds")?;
                    builder.configure(|config| config.step_after = Duration::from_millis(ms))
                }
                // For tests, as the field.
                "reads" => {
                    let reads = number("reads", value, "a format")?;
                    builder.configure(|config| config.reads = reads)
                }
                "plaintext" => builder.plaintext(),
                "role" => {
                    let role = match value {
                        "voter" => Role::Voter,
                        "learner" => Role::Learner,
                        "client" => Role::Client,
                        _ => {
                            let instead = "voter, learner or client";
                            return Err(UrlError::Value { setting: "role", value: value.to_owned(), instead });
                        }
                    };
                    builder.configure(|config| config.role = role)
                }
                unknown => return Err(UrlError::Unknown(unknown.to_owned())),
            };
        }
        Ok(builder)
    }
}

fn number<N: std::str::FromStr>(setting: &'static str, value: &str, instead: &'static str) -> Result<N, UrlError> {
    value.parse().map_err(|_| UrlError::Value { setting, value: value.to_owned(), instead })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_exist_is_refused_with_what_does() {
        let refused = |url| RaftStore::from_url(url, Group::new("/g/").unwrap()).unwrap_err().to_string();
        assert!(refused("redis://x").contains("raft:"));
        assert!(refused("raft:/x?lsten=y").contains("listen"));
        assert!(refused("Raft:/x?lsten=y").contains("listen"), "a scheme may be written in capitals");
        assert!(refused("raft:/x?role=boss").contains("client"));
        assert!(refused("raft:/x?name=").contains("empty"));
        assert!(refused("raft:/x?voters_to_found=few").contains("number"));
        assert!(refused("raft:/x?step_after_ms=1s").contains("milliseconds"));
    }

    #[test]
    fn a_member_that_others_reach_must_say_how_it_is_protected() {
        let build = |url| RaftStore::from_url(url, Group::new("/g/").unwrap()).unwrap().build();
        for (url, field) in [
            ("raft:", "data"),
            ("raft:/x?listen=h:1", "security"),
            ("raft:/x?seeds=h:1&plaintext", "listen"),
            ("raft:?role=client&plaintext", "seeds"),
            ("raft:/x?role=learner", "seeds"),
            ("raft:/x?listen=h:1&seeds=h&plaintext", "seeds"),
            ("raft:/x?listen=h:1&seed_names=h:1&plaintext", "voters_to_found"),
            ("raft:/x?listen=0.0.0.0:1&plaintext", "advertise"),
            ("raft:/x?listen=[::]:1&plaintext", "advertise"),
            ("raft:/x?listen=:1&plaintext", "advertise"),
            ("raft:/x?listen=h:1&advertise=0.0.0.0:1&plaintext", "advertise"),
        ] {
            assert_eq!(build(url).unwrap_err().field, field, "{url}");
        }
        build("raft:/x").unwrap();
        build("raft:/x?listen=0.0.0.0:1&advertise=h:1&plaintext").unwrap();
        build("raft:/x?listen=h:1&seed_names=h:1&voters_to_found=3&plaintext").unwrap();
    }
}
