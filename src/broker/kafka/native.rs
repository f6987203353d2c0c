//! The few calls into librdkafka that its Rust binding does not offer, or offers at half the speed: reading a
//! partition's queue a batch at a time, and commits whose results come back.
//!
//! All `unsafe` of the adapter is here. The rules that each block relies on:
//!
//! - a queue holds an [`Rc`] of its consumer, so the native client outlives it; neither is `Send`, so both stay on
//!   the poll thread, and the consumer is closed there after the last queue is gone;
//! - a message that the batch call gave is ours until `rd_kafka_message_destroy`, which is called exactly once, and
//!   nothing that points into it leaves the function: all bytes are copied.

use std::ffi::{CStr, CString, c_void};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka_sys as sys;

use super::arena::Arena;
use crate::message::{Message, headers};
use crate::time::Timestamp;

/// Events of a consumer that are served at once.
const EVENTS: usize = 10_000;

/// What begins the name of a header whose own name is not UTF-8: its bytes follow in hexadecimal.
pub const HEX_NAME: &str = "windlass-hex-";

/// Wakes the poll thread.
#[derive(Default)]
pub struct Wake(Mutex<Option<Thread>>);

impl Wake {
    /// The calling thread is the one to wake.
    pub fn here(&self) {
        *self.0.lock() = Some(std::thread::current());
    }

    /// Wakes it; if it is awake, its next park returns at once.
    pub fn wake(&self) {
        if let Some(thread) = &*self.0.lock() {
            thread.unpark();
        }
    }
}

/// A record as it lay in the log.
#[derive(Debug)]
pub struct Arrived {
    /// Its offset.
    pub offset: i64,
    /// When the broker or the producer says it was stored.
    pub at: Timestamp,
    /// Headers, body and key.
    pub message: Message,
}

/// Scratch space for batch reads, used again for each.
pub struct Batch {
    pointers: Vec<*mut sys::rd_kafka_message_t>,
    arena: Arena,
    /// Bytes of the record before: the next one is likely to have as many.
    like: usize,
    /// What the last read gave, in order.
    pub records: Vec<Arrived>,
    /// What librdkafka said instead of records.
    pub errors: Vec<RDKafkaErrorCode>,
}

impl Batch {
    /// Room for `size` records a read.
    pub fn new(size: usize) -> Self {
        Self {
            pointers: vec![std::ptr::null_mut(); size],
            arena: Arena::default(),
            like: 0,
            records: Vec::with_capacity(size),
            errors: Vec::new(),
        }
    }
}

/// A partition's own queue, split off the consumer's.
pub struct PartitionQueue<C: ConsumerContext> {
    queue: *mut sys::rd_kafka_queue_t,
    // Both live for as long as the callback may run.
    _wake: Arc<Wake>,
    _consumer: Rc<BaseConsumer<C>>,
}

impl<C: ConsumerContext> PartitionQueue<C> {
    /// Splits the queue off; to be done before the partition is assigned. `wake` is woken when the empty queue gets
    /// something.
    pub fn split(consumer: &Rc<BaseConsumer<C>>, topic: &str, partition: i32, wake: &Arc<Wake>) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: the client lives (we hold it); the topic is a C string. The queue returned is a reference of our
        // own, given back in `drop`. Forwarding to null makes it stand alone.
        let queue = unsafe {
            let queue = sys::rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), partition);
            if queue.is_null() {
                return None;
            }
            sys::rd_kafka_queue_forward(queue, std::ptr::null_mut());
            queue
        };
        // SAFETY: see `enable`; `_wake` keeps what the pointer names alive until `drop` disables the callback.
        unsafe { enable(queue, wake) };
        Some(Self { queue, _wake: wake.clone(), _consumer: consumer.clone() })
    }

    /// Reads what is there, at most `max` records, without waiting, into `batch`.
    pub fn read(&self, batch: &mut Batch, max: usize) {
        batch.records.clear();
        batch.errors.clear();
        let max = max.min(batch.pointers.len());
        // SAFETY: the queue lives; the buffer has room for `max` pointers.
        let count = unsafe { sys::rd_kafka_consume_batch_queue(self.queue, 0, batch.pointers.as_mut_ptr(), max) };
        let Ok(count) = usize::try_from(count) else { return };
        for index in 0..count {
            let pointer = batch.pointers[index];
            // SAFETY: the call gave `count` valid messages, each ours; `copy` lets nothing of it escape, and it is
            // destroyed once.
            unsafe {
                let message = &*pointer;
                if message.err == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                    let record = copy(message, batch.arena.room(batch.like, count - index));
                    batch.like = record.message.size();
                    batch.records.push(record);
                } else {
                    batch.errors.push(message.err.into());
                }
                sys::rd_kafka_message_destroy(pointer);
            }
        }
    }
}

impl<C: ConsumerContext> Drop for PartitionQueue<C> {
    fn drop(&mut self) {
        // SAFETY: the queue is ours and still valid; after the first call the callback no longer runs.
        unsafe {
            sys::rd_kafka_queue_cb_event_enable(self.queue, None, std::ptr::null_mut());
            sys::rd_kafka_queue_destroy(self.queue);
        }
    }
}

/// # Safety
/// `queue` must be valid, and `wake` must live until the callback is disabled.
unsafe fn enable(queue: *mut sys::rd_kafka_queue_t, wake: &Arc<Wake>) {
    unsafe extern "C" fn nonempty(_: *mut sys::rd_kafka_t, wake: *mut c_void) {
        // SAFETY: the pointer is that of a `Wake` kept alive by the queue's owner; only shared access is made.
        unsafe { (*wake.cast::<Wake>()).wake() }
    }
    // SAFETY: given by the caller.
    unsafe { sys::rd_kafka_queue_cb_event_enable(queue, Some(nonempty), Arc::as_ptr(wake).cast_mut().cast()) }
}

/// # Safety
/// `message` must be a valid message without an error.
unsafe fn copy(message: &sys::rd_kafka_message_t, into: &mut headers::Builder) -> Arrived {
    // SAFETY: librdkafka says that `payload` and `key` are null or point to `len` and `key_len` bytes that live as
    // long as the message.
    let (body, key) = unsafe { (bytes(message.payload, message.len), bytes(message.key, message.key_len)) };
    let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: the message is valid; the headers that it gives stay its own and live as long.
    let at = unsafe {
        push_headers(message, into);
        sys::rd_kafka_message_timestamp(message, &mut kind)
    };
    let headers = into.finish();
    let (body, key) = (body.map(|body| into.keep(body)), key.map(|key| into.keep(key)));
    Arrived { offset: message.offset, at: Timestamp::from_millis(at.max(0)), message: Message { headers, body, key } }
}

/// # Safety
/// `message` must be valid.
unsafe fn push_headers(message: &sys::rd_kafka_message_t, into: &mut headers::Builder) {
    let mut list = std::ptr::null_mut();
    // SAFETY: valid message, valid place for the answer.
    let found = unsafe { sys::rd_kafka_message_headers(message, &mut list) };
    if found != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || list.is_null() {
        return;
    }
    for index in 0.. {
        let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
        // SAFETY: `list` is the message's own list; the answers point into the message.
        let (name, value) = unsafe {
            let got = sys::rd_kafka_header_get_all(list, index, &mut name, &mut value, &mut size);
            if got != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return;
            }
            (CStr::from_ptr(name), bytes(value, size))
        };
        let value = value.unwrap_or_default();
        match name.to_str() {
            Ok(name) => into.push(name, value),
            // A name that is not UTF-8 must not stop the queue, and its bytes must not be lost.
            Err(_) => into.push(&hex_name(name.to_bytes()), value),
        }
    }
}

/// A name for what is not UTF-8.
fn hex_name(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(HEX_NAME.to_owned(), |mut name, byte| {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// # Safety
/// `pointer` must be null or point to `length` bytes that live as long as what the caller borrows them from.
unsafe fn bytes<'a>(pointer: *const c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: given by the caller; null is excluded.
    (!pointer.is_null()).then(|| unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), length) })
}

/// A consumer's own queue: rebalances, errors, lines of its log. The binding's poll takes one of these and says that
/// there was nothing, so that who stops polling there leaves the rest until something else wakes it.
pub struct Events<C: ConsumerContext> {
    queue: *mut sys::rd_kafka_queue_t,
    consumer: Rc<BaseConsumer<C>>,
}

impl<C: ConsumerContext> Events<C> {
    /// Of this consumer.
    pub fn new(consumer: &Rc<BaseConsumer<C>>) -> Self {
        // SAFETY: the client lives; the queue is a reference of our own, given back in `drop`.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        Self { queue, consumer: consumer.clone() }
    }

    /// Serves all that is there. What comes of it outside of the context is handed to `each`.
    pub fn serve(&self, mut each: impl FnMut(KafkaResult<BorrowedMessage<'_>>)) {
        // Once at least: polling also says that we live. Not for ever, should more come than can be served.
        for _ in 0..EVENTS {
            if let Some(event) = self.consumer.poll(Duration::ZERO) {
                each(event);
            }
            // SAFETY: the queue lives; a consumer without a group has none.
            if self.queue.is_null() || unsafe { sys::rd_kafka_queue_length(self.queue) } == 0 {
                break;
            }
        }
    }
}

impl<C: ConsumerContext> Drop for Events<C> {
    fn drop(&mut self) {
        if !self.queue.is_null() {
            // SAFETY: the reference is ours, given back once, before the consumer that we hold is closed.
            unsafe { sys::rd_kafka_queue_destroy(self.queue) };
        }
    }
}

/// What the broker said about one partition of a commit.
#[derive(Debug)]
pub struct Committed {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// What it said.
    pub result: Result<(), RDKafkaErrorCode>,
}

/// Commits whose results come back: `CommitMode::Async` of the binding never reports any.
pub struct Commits<C: ConsumerContext> {
    queue: *mut sys::rd_kafka_queue_t,
    consumer: Rc<BaseConsumer<C>>,
    _wake: Arc<Wake>,
}

impl<C: ConsumerContext> Commits<C> {
    /// For this consumer; `wake` is woken when a result is there.
    pub fn new(consumer: &Rc<BaseConsumer<C>>, wake: &Arc<Wake>) -> Self {
        // SAFETY: the client lives; the queue is ours until `drop`; see `enable` for the callback.
        let queue = unsafe {
            let queue = sys::rd_kafka_queue_new(consumer.client().native_ptr());
            enable(queue, wake);
            queue
        };
        Self { queue, consumer: consumer.clone(), _wake: wake.clone() }
    }

    /// Sends a commit; its result comes by [`Commits::poll`].
    pub fn send(&self, offsets: &TopicPartitionList) -> Result<(), RDKafkaErrorCode> {
        // SAFETY: client, list and queue live; without a callback the result is an event on the queue. The list is
        // copied by the call.
        let error = unsafe {
            sys::rd_kafka_commit_queue(
                self.consumer.client().native_ptr(),
                offsets.ptr(),
                self.queue,
                None,
                std::ptr::null_mut(),
            )
        };
        check(error)
    }

    /// The result of a commit that was sent, if one is there.
    pub fn poll(&self) -> Option<Vec<Committed>> {
        // SAFETY: the queue lives; the event is ours until destroyed, and so is the list within it.
        unsafe {
            let event = sys::rd_kafka_queue_poll(self.queue, 0);
            if event.is_null() {
                return None;
            }
            let mut results = Vec::new();
            if sys::rd_kafka_event_type(event) == sys::RD_KAFKA_EVENT_OFFSET_COMMIT {
                let whole = check(sys::rd_kafka_event_error(event));
                let list = sys::rd_kafka_event_topic_partition_list(event);
                if !list.is_null() && !(*list).elems.is_null() {
                    let count = usize::try_from((*list).cnt).unwrap_or(0);
                    for element in std::slice::from_raw_parts((*list).elems, count) {
                        let topic = CStr::from_ptr(element.topic).to_string_lossy().into_owned();
                        let result = check(element.err).and(whole);
                        results.push(Committed { topic, partition: element.partition, result });
                    }
                }
            }
            sys::rd_kafka_event_destroy(event);
            Some(results)
        }
    }
}

impl<C: ConsumerContext> Drop for Commits<C> {
    fn drop(&mut self) {
        // SAFETY: as in `PartitionQueue`.
        unsafe {
            sys::rd_kafka_queue_cb_event_enable(self.queue, None, std::ptr::null_mut());
            sys::rd_kafka_queue_destroy(self.queue);
        }
    }
}

fn check(error: sys::rd_kafka_resp_err_t) -> Result<(), RDKafkaErrorCode> {
    if error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR { Ok(()) } else { Err(error.into()) }
}

/// The consumer's place in its group, by which a transaction is fenced; `None` where it has none. One without a
/// generation would fence nothing: brokers take it from anybody, as from clients of before KIP-447.
pub fn generation<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<ConsumerGroupMetadata> {
    let now = || {
        // SAFETY: the client lives; what the call gives is null or ours, and is given back once.
        unsafe {
            let metadata = sys::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
            if metadata.is_null() {
                return -1;
            }
            let generation = sys::rd_kafka_consumer_group_metadata_generation_id(metadata);
            sys::rd_kafka_consumer_group_metadata_destroy(metadata);
            generation
        }
    };
    // The binding does not say which one it gives: what is the same before and after was so in between.
    let before = now();
    let metadata = consumer.group_metadata()?;
    (before >= 0 && before == now()).then_some(metadata)
}

/// Gives a client the OAUTHBEARER token that a command prints.
pub fn set_token<C: ClientContext>(client: &Client<C>, command: &str) -> Result<(), String> {
    let token = super::config::token(command).map_err(|error| error.to_string())?;
    let text = |text: String| CString::new(text).map_err(|_| "kafka.sasl.token_command printed a NUL".to_owned());
    let (value, principal) = (text(token.token)?, text(token.principal_name)?);
    let mut said = [0; 256];
    // SAFETY: the client lives; all strings live until the call returns, which copies them; the buffer is as long as is
    // said, and ends with a NUL where something was written.
    let (error, said) = unsafe {
        let error = sys::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            value.as_ptr(),
            token.lifetime_ms,
            principal.as_ptr(),
            std::ptr::null_mut(),
            0,
            said.as_mut_ptr(),
            said.len(),
        );
        (error, CStr::from_ptr(said.as_ptr()).to_string_lossy().into_owned())
    };
    check(error).map_err(|_| format!("kafka.sasl.token_command printed no token that can be used: {said}"))
}

/// Gives a client what it logs in with at its next connection (PLAIN and SCRAM).
pub fn set_credentials<C: ClientContext>(client: &Client<C>, user: &str, password: &str) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|_| "the user or the password has a NUL in it".to_owned());
    let (user, password) = (text(user)?, text(password)?);
    // SAFETY: the client lives; both strings live until the call returns, which copies them; the error is null or ours,
    // and is given back once, after its text was copied.
    unsafe {
        let error = sys::rd_kafka_sasl_set_credentials(client.native_ptr(), user.as_ptr(), password.as_ptr());
        if error.is_null() {
            return Ok(());
        }
        let said = CStr::from_ptr(sys::rd_kafka_error_string(error)).to_string_lossy().into_owned();
        sys::rd_kafka_error_destroy(error);
        Err(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_place_in_a_group_has_nothing_to_fence_by() {
        // Nobody is asked: it has not subscribed.
        let config = [("bootstrap.servers", "127.0.0.1:1"), ("group.id", "g")];
        let config: rdkafka::ClientConfig =
            config.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let consumer: BaseConsumer = config.create().expect("it connects to nobody");
        assert!(consumer.group_metadata().is_some(), "librdkafka gives one that fences nothing");
        assert!(generation(&consumer).is_none());
    }

    #[test]
    fn mode_18_a_header_name_that_is_not_utf8_keeps_its_bytes() {
        assert_eq!(hex_name(&[0xff, 0x00, 0x41]), "windlass-hex-ff0041");
    }
}
