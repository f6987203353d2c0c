//! See [`crate::fuzz`]: what adapters read.

/// Addresses of each broker.
pub fn address(text: &str) {
    #[cfg(feature = "nats")]
    if ["nats://", "nats+tls://", "tls://"].iter().any(|scheme| text.starts_with(scheme))
        && let Ok(address) = super::nats::address::Address::parse(text)
    {
        assert!(!address.urls().is_empty() && address.urls().len() <= text.len());
        if let Some((_, password)) = &address.user
            && password.len() > 5
        {
            let error = super::nats::address::Address::parse(&format!("{text}:x")).err();
            let (said, shown) = (error.map(|error| error.to_string()).unwrap_or_default(), super::shown_address(text));
            // What is shown in any case may happen to read the same.
            let host = text.rsplit_once('@').map_or("", |(_, host)| host);
            let open =
                text.match_indices(':').nth(1).map_or(String::new(), |(at, _)| format!("{}@{host}", &text[..at]));
            let elsewhere = text.matches(password.as_str()).count() != 1 || open.contains(password.as_str());
            assert!(elsewhere || !said.contains(password.as_str()), "{said}");
            assert!(elsewhere || !shown.contains(password.as_str()), "{shown}");
        }
    }
    #[cfg(not(feature = "nats"))]
    let _ = text;
}

/// Metadata of a commit: what can be read is the same once more.
#[cfg(any(feature = "kafka", feature = "fuzz"))]
pub fn commit_metadata(input: &[u8]) {
    use super::kafka::memo::{LIMIT, Memo};
    let text = String::from_utf8_lossy(input);
    for offset in [0, 7, 1 << 40] {
        let Some(memo) = Memo::read(&text, offset) else { continue };
        let written = memo.write(offset, LIMIT);
        assert!(written.text.len() <= LIMIT);
        let again = Memo::read(&written.text, offset).expect("what was just written can be read");
        assert_eq!((again.waiting, again.started), (memo.waiting, memo.started));
    }
    // Bytes that our own checksum vouches for are believed further.
    let sealed = super::kafka::memo::sealed(input, 7);
    if let Some(memo) = Memo::read(&sealed, 7) {
        let runs = memo.finished.iter().count() + memo.waiting.len() + memo.started.len();
        assert!(runs <= 8 * input.len() + 8, "{} bytes became {runs} entries", input.len());
        assert!(memo.finished.iter().all(|(from, to)| from < to), "{memo:?}");
        assert!(memo.write(7, LIMIT).text.len() <= LIMIT);
    }
}

/// An origin in the first line, and headers that other tools write.
#[cfg(any(feature = "kafka", feature = "fuzz"))]
pub fn kafka_headers(input: &[u8]) {
    use super::kafka::outgoing;
    use crate::message::record::{Dead, Record};
    use crate::message::{JobName, Message, QueueName, Reason};
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (pairs, body) = crate::fuzz::head_and_body(input.get(end + 1..).unwrap_or_default());
    let message =
        Message { headers: pairs.into_iter().collect(), body: Some(bytes::Bytes::copy_from_slice(body)), key: None };
    let queue = QueueName::new("q").expect("a name");
    if outgoing::destination(&message).is_none() {
        let back = outgoing::arrived(outgoing::delayed(message.clone(), &queue));
        assert_eq!(back, message, "the delay lane gives back what it was given");
    }
    let origin = String::from_utf8_lossy(&input[..end]);
    let Some(lay) = outgoing::parse_lay(&origin) else { return };
    let job = JobName::new("j").expect("a name");
    let dead = Dead {
        reason: Reason::Permanent,
        attempts: 1,
        job,
        queue,
        partition: Some(lay.partition),
        offset: u64::try_from(lay.offset).ok(),
        worker: None,
    };
    let with = outgoing::foreign(&message.headers, &lay, "g", &Record::default(), &dead);
    let kept: Vec<_> = with.iter().take(message.headers.iter().count()).collect();
    assert_eq!(kept, message.headers.iter().collect::<Vec<_>>(), "headers of others are added behind");
}

/// Acknowledgement subjects, answers to publications, patterns of subjects.
#[cfg(feature = "nats")]
pub fn nats_replies(input: &[u8]) {
    use super::nats::{api, wire};
    drop(api::pub_ack(input));
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(delivered) = wire::delivered(text) {
        assert!(text.contains(delivered.stream) && text.contains(delivered.consumer));
        let _ = delivered.at();
    }
    if let Some((pattern, topic)) = text.split_once('\n') {
        let both = wire::covers(pattern, topic) && wire::covers(topic, pattern);
        assert!(!both || pattern == topic, "only the same cover each other: {pattern:?} {topic:?}");
        assert!(!wire::covers(pattern, topic) || wire::overlap(pattern, topic), "{pattern:?} covers {topic:?}");
        assert_eq!(wire::overlap(pattern, topic), wire::overlap(topic, pattern), "{pattern:?} {topic:?}");
    }
}
