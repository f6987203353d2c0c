//! The test kit for jobs: a worker on `memory://` whose clock stands still, and one attempt alone.
//!
//! [`Worker`] is the real worker (decoding, slots, retries, dead letters) on a queue in memory. Its clock stands still
//! and jumps when there is nothing else to do, so that a retry that is due in eight hours is run at once:
//!
//! ```
//! use windlass::{Context, Error, Registry, app::Tally, testing};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Report { report_id: u64 }
//!
//! async fn invoice(report: Report, cx: Context) -> Result<u64, Error> {
//!     if cx.attempt() < 3 {
//!         return Err(Error::retry("printer", "no paper"));
//!     }
//!     cx.client().enqueue("reminders", "remind", &report).await?;
//!     Ok(report.report_id * 100)
//! }
//!
//! async fn remind(report: Report) -> Result<(), Error> {
//!     Err(Error::permanent(format_args!("report {} has no address", report.report_id)))
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! // In a test of yours: #[tokio::test]. The configuration is TOML as ever: include_str!("../windlass.toml") does.
//! let registry = Registry::new().job("invoice", invoice).job("remind", remind);
//! let worker = testing::Worker::start(r#"
//!     queues.invoice.topics = ["reports.finalized"]
//!     queues.reminders.job = "remind"
//! "#, registry).await;
//!
//! worker.publish("reports.finalized", &Report { report_id: 7 }).id("r-7").await?;
//! assert_eq!(worker.drain().await, Tally { done: 1, retried: 2, dead: 1 });
//!
//! assert_eq!(worker.done("invoice")[0].result, Some(Ok(700.into())));
//! worker.assert_enqueued("reminders", "remind", &Report { report_id: 7 });
//! assert_eq!(worker.dead("reminders").await[0].failure.error, "report 7 has no address");
//! # Ok(()) })
//! # }
//! ```
//!
//! # Every kind of job
//!
//! An async function alone, with no worker around it: [`Context::test`](crate::Context::test), or an [`Attempt`] where
//! the context must be something in particular.
//!
//! ```
//! # use windlass::{Context, Error, testing};
//! struct Prices { cents: u64 }
//!
//! async fn price(pages: u64, cx: Context) -> Result<u64, Error> {
//!     let prices = cx.try_state::<Prices>().ok_or_else(|| Error::permanent("no prices"))?;
//!     cx.client().publish("pages.priced", &pages).id(format!("{}-priced", cx.event_id())).await?;
//!     Ok(pages * prices.cents)
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! assert!(price(3, Context::test()).await.is_err());
//!
//! let attempt = testing::Attempt::new().event_id("e-1").number(2).state(Prices { cents: 40 });
//! assert_eq!(price(3, attempt.context()).await.unwrap(), 120);
//! assert_eq!(attempt.sent()[0].id, "e-1-priced");
//! attempt.assert_published("pages.priced", &3);
//! # });
//! ```
//!
//! A blocking function is called as it is. That it stops when it is told to:
//!
//! ```
//! # use windlass::{Context, Error, testing};
//! fn render(pages: Vec<String>, cx: Context) -> Result<usize, Error> {
//!     let mut done = 0;
//!     for page in &pages {
//!         if cx.is_cancelled() {
//!             return Err(Error::retry("cancelled", "stopped half-way"));
//!         }
//!         done += page.len();
//!     }
//!     Ok(done)
//! }
//!
//! let pages = || vec!["one".to_owned(), "two".to_owned()];
//! assert_eq!(render(pages(), Context::test()).unwrap(), 6);
//!
//! let attempt = testing::Attempt::new();
//! attempt.cancel();
//! assert_eq!(render(pages(), attempt.context()).unwrap_err().kind(), "cancelled");
//! ```
//!
//! What takes the whole [`Event`](crate::message::Event), and what implements [`Handler`](crate::handler::Handler):
//!
//! ```
//! # use std::sync::Arc;
//! # use windlass::{Context, Error, Registry, handler::{Handler, Output}, testing};
//! use windlass::message::Event;
//!
//! async fn keep(event: Event) -> Result<usize, Error> {
//!     Ok(event.data.len())
//! }
//!
//! struct Count;
//! impl Handler for Count {
//!     fn call(&self, cx: Context) -> futures_util::future::BoxFuture<'static, Result<Output, Error>> {
//!         Box::pin(async move { Ok(Some(cx.event().data.len().into())) })
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let attempt = testing::Attempt::new().body("\u{1F9EA} not JSON").content_type("text/plain");
//! assert_eq!(keep(attempt.context().event().clone()).await.unwrap(), 13);
//!
//! let registry = Registry::new().handler("count", Arc::new(Count)).job("keep", keep);
//! let worker = testing::Worker::start("queues.count.topics = ['t']\nqueues.keep.topics = ['t']", registry).await;
//! worker.publish("t", "hello").await.unwrap();
//! worker.drain().await;
//! assert_eq!(worker.done("count")[0].result, Some(Ok(7.into())));
//! assert_eq!(worker.done("keep")[0].result, Some(Ok(7.into())));
//! # });
//! ```
//!
//! An endpoint over HTTP: start it on a port of its own, and name it in the configuration.
//!
//! ```
//! # use windlass::{Registry, testing};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let endpoint = axum::Router::new().route("/invoice", axum::routing::post(|body: String| async move {
//!     if body == "13" { (axum::http::StatusCode::UNPROCESSABLE_ENTITY, "13 is no report") }
//!     else { (axum::http::StatusCode::OK, "") }
//! }));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let port = listener.local_addr()?.port();
//! tokio::spawn(async { axum::serve(listener, endpoint).await });
//!
//! let worker = testing::Worker::start(&format!("
//!     queues.invoice.topics = ['reports.finalized']
//!     jobs.invoice.http = 'http://127.0.0.1:{port}/invoice'
//! "), Registry::new()).await;
//! worker.publish("reports.finalized", &7).await?;
//! worker.publish("reports.finalized", &13).await?;
//! worker.drain().await;
//! assert_eq!(worker.done("invoice").len(), 1);
//! assert!(worker.dead("invoice").await[0].failure.error.contains("13 is no report"));
//! # Ok(()) })
//! # }
//! ```

mod worker;

mod run;

mod sent;

mod attempt;

pub use attempt::Attempt;
pub use run::Run;
pub use sent::Sent;
pub use worker::Worker;
