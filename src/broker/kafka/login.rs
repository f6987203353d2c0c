//! Who we are to the brokers, where that changes while we are connected: a token that a command prints, a password in a
//! file that is written anew. Whoever is connected stays so; what is read here counts from the next connection on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};

use super::native;

/// A client looks at its file at most so often.
const LOOK: Duration = Duration::from_secs(1);

/// A user whose password is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Its name.
    pub user: String,
    /// Where the password is.
    pub file: PathBuf,
}

impl Secret {
    /// The password as it is now; what follows the line does not belong to it.
    pub fn password(&self) -> Result<String, String> {
        let text = std::fs::read_to_string(&self.file);
        let text =
            text.map_err(|error| format!("kafka.sasl.password_file {} cannot be read: {error}", self.file.display()))?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Login {
    /// Prints an OAUTHBEARER token.
    pub token_command: Option<String>,
    /// PLAIN's and SCRAM's.
    pub secret: Option<Secret>,
}

impl Login {
    /// Gives a client that was just made what it logs in with: a token, since librdkafka asks for it through events
    /// that only a client which is polled would see, and the password of now.
    pub fn enter<C: ClientContext>(&self, client: &Client<C>) -> Result<(), String> {
        if let Some(command) = &self.token_command {
            native::set_token(client, command)?;
        }
        match &self.secret {
            Some(secret) => native::set_credentials(client, &secret.user, &secret.password()?),
            None => Ok(()),
        }
    }
}

/// What one client was told last. Each is told by whoever uses it, on the way.
#[derive(Default)]
pub struct Renewal {
    secret: Option<Secret>,
    looked: Option<Instant>,
    /// The password, or what keeps it from being read.
    known: Option<Result<String, String>>,
}

impl Renewal {
    /// Of a client that logs in so.
    pub fn new(login: &Login) -> Self {
        Self { secret: login.secret.clone(), ..Self::default() }
    }

    /// Tells the client its password where that has changed.
    pub fn renew<C: ClientContext>(&mut self, client: &Client<C>) {
        let Some(secret) = &self.secret else { return };
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        let read = secret.password();
        if self.known.as_ref() == Some(&read) {
            return;
        }
        let told = read.clone().and_then(|password| native::set_credentials(client, &secret.user, &password));
        match told {
            Ok(()) if self.known.is_some() => tracing::info!(user = secret.user, "the password was read anew"),
            Ok(()) => {}
            // What was known stays in use.
            Err(error) => tracing::warn!(error, "the password is not read anew"),
        }
        self.known = Some(read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_s_end_is_no_part_of_the_password_and_a_file_that_is_gone_is_said() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let secret = Secret { user: "u".to_owned(), file: dir.path().join("password") };
        let said = secret.password().expect_err("it is not there");
        assert!(said.contains("kafka.sasl.password_file") && said.contains("password cannot be read"), "{said}");
        std::fs::write(&secret.file, " two words \r\n").expect("a temporary file");
        assert_eq!(secret.password(), Ok(" two words ".to_owned()));
    }
}
