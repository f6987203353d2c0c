//! Tells the patient that a report is ready, by e-mail: into a folder, or to an SMTP server where one is configured.
//!
//! A mail that is sent twice is the same mail: its `Message-ID` is made of the event's id, and mail programs show it
//! once. In the folder it is the same file.

use std::fmt;
use std::path::PathBuf;

use lettre::message::header::ContentType;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use windlass::{Context, Error};

use crate::Lab;
use crate::file::write_whole;
use crate::report::Report;

/// The job.
pub async fn notify(report: Report, cx: Context) -> Result<(), Error> {
    cx.state::<Lab>().post().send(cx.event_id(), &report).await
}

/// Where mail goes.
pub struct Post(Way);

enum Way {
    Folder(PathBuf),
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
}

impl Post {
    /// Into this folder, a file each: `EVENT.eml`.
    pub fn folder(folder: PathBuf) -> Self {
        Self(Way::Folder(folder))
    }

    /// To this server: `smtp://HOST:PORT` in plain text, `smtps://USER:PASSWORD@HOST` by TLS.
    pub fn smtp(url: &str) -> Result<Self, Error> {
        Ok(Self(Way::Smtp(AsyncSmtpTransport::<Tokio1Executor>::from_url(url)?.build())))
    }

    /// Sends the mail about a report, for the event `event_id`.
    pub async fn send(&self, event_id: &str, report: &Report) -> Result<(), Error> {
        let mail = letter(event_id, report)?;
        match &self.0 {
            Way::Folder(folder) => {
                let path = folder.join(format!("{event_id}.eml"));
                // On a thread for what blocks: the disk may take its time.
                tokio::task::spawn_blocking(move || write_whole(&path, &mail.formatted())).await??;
                Ok(())
            }
            Way::Smtp(server) => match server.send(mail).await {
                Ok(_) => Ok(()),
                // 5xx: this mail, never. Anything else, such as 4xx or nobody there: later, perhaps.
                Err(error) if error.is_permanent() => Err(Error::permanent(error).with_kind("smtp")),
                Err(error) => Err(Error::from(error).with_kind("smtp")),
            },
        }
    }
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A server's address may have a password.
        match &self.0 {
            Way::Folder(folder) => write!(f, "Post({})", folder.display()),
            Way::Smtp(_) => write!(f, "Post(smtp)"),
        }
    }
}

fn letter(event_id: &str, report: &Report) -> Result<Message, Error> {
    let to = format!("{}@patients.example", report.patient_id.to_lowercase());
    let text = format!(
        "Dear patient {},\n\nyour report {} was finalised on {}. Your doctor will discuss it with you.\n\nThe laboratory\n",
        report.patient_id, report.report_id, report.timestamp
    );
    // What is no address will never be one.
    let address = |text: &str| text.parse().map_err(|error| Error::permanent(format_args!("{text}: {error}")));
    Message::builder()
        .from(address("The laboratory <reports@laboratory.example>")?)
        .to(address(&to)?)
        .subject(format!("Your report {} is ready", report.report_id))
        .message_id(Some(format!("<{event_id}@laboratory.example>")))
        .header(ContentType::TEXT_PLAIN)
        .body(text)
        .map_err(Error::permanent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass::handler::Verdict;
    use windlass::testing::Attempt;

    #[tokio::test]
    async fn the_same_event_is_the_same_mail() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let attempt = Attempt::new().event_id("e-1").state(Lab::at(folder.path()));
        let report = Report::new(7, "2026-11-21T10:00:00.000Z".to_owned());
        for _ in 0..2 {
            notify(report.clone(), attempt.context()).await.expect("sends");
        }
        let mails: Vec<_> = std::fs::read_dir(folder.path().join("mail")).expect("reads").flatten().collect();
        assert_eq!(mails.len(), 1);
        let text = std::fs::read_to_string(mails[0].path()).expect("reads");
        for part in
            ["To: p-0007@patients.example", "Subject: Your report R-0007", "Message-ID: <e-1@laboratory.example>"]
        {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_tried_again_and_an_address_that_is_none_is_not() {
        let free =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("a free port");
        let lab = Lab::at("unused").with_smtp(&format!("smtp://{free}")).expect("an address");
        let attempt = Attempt::new().state(lab);
        let report = Report::new(7, String::new());
        let error = notify(report.clone(), attempt.context()).await.expect_err("nobody is there");
        assert_eq!((error.verdict(), error.kind()), (Verdict::Retry, "smtp"));
        let nobody = Report { patient_id: "two words".to_owned(), ..report };
        let error = notify(nobody, attempt.context()).await.expect_err("no address");
        assert_eq!(error.verdict(), Verdict::Permanent);
        assert_eq!(format!("{:?}", attempt.context().state::<Lab>().post()), "Post(smtp)");
    }
}
