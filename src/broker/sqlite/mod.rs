//! `sqlite://PATH`: the embedded queue.
use super::{Broker, Error, Options};
use std::sync::Arc;
pub(super) async fn connect(_address: &str, _options: Options) -> Result<Arc<dyn Broker>, Error> {
    unimplemented!()
}
