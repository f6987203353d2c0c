//! The API's description, OpenAPI 3.1, made of the handlers themselves. `docs/openapi.json` is the same, committed so
//! that a change of the API is seen in review; a test compares the two.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};

use super::{control, health, letters, publish, redrive, status};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Windlass admin API",
        description = "Health, metrics and steering of one worker; publishing; dead letters.\n\nErrors are problem documents (RFC 9457). Off loopback `/api` needs a bearer token; on loopback where one is set.",
    ),
    paths(
        health::health,
        health::ready,
        health::metrics,
        status::status,
        status::running,
        publish::publish,
        publish::enqueue,
        control::pause,
        control::resume,
        control::set_slots,
        control::drain,
        letters::list,
        letters::groups,
        letters::show,
        letters::raw,
        letters::export,
        redrive::replay,
        redrive::purge,
        redrive::import,
        document,
    ),
    modifiers(&Bearer, &Guarded),
    security((), ("bearer" = [])),
)]
struct Api;

/// A token a person put into `admin.token_file`.
struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        if let Some(components) = &mut api.components {
            components.add_security_scheme("bearer", scheme);
        }
    }
}

/// What every operation under `/api` may answer, whichever it is.
struct Guarded;

impl utoipa::Modify for Guarded {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let problem = |description: &str| {
            let schema = Ref::from_schema_name("Problem");
            let content = ContentBuilder::new().schema(Some(schema)).build();
            ResponseBuilder::new().description(description).content("application/problem+json", content).build()
        };
        let always = [
            ("400", "A part of the address, a parameter or the body cannot be read"),
            ("401", "A token is needed, and this is none of them"),
            ("403", "No token is set and the port is not on loopback, or a page of another origin asks"),
            ("503", "The broker does not answer, or is not connected yet"),
        ];
        let paths = api.paths.paths.iter_mut().filter(|(path, _)| path.starts_with("/api/"));
        for (_, item) in paths {
            let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                for (status, description) in always {
                    let responses = &mut operation.responses.responses;
                    responses.entry(status.to_owned()).or_insert_with(|| problem(description).into());
                }
            }
        }
    }
}

/// The document, pretty and with a line end, as it is committed.
static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = Api::openapi().to_pretty_json().expect("the description has only strings for keys");
    text.push('\n');
    text
});

/// The document as it is committed in `docs/openapi.json`.
pub fn text() -> &'static str {
    &TEXT
}

#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "worker", responses((status = 200, description = "This document", content_type = "application/json")))]
pub(super) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], text())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Run with `WINDLASS_WRITE_OPENAPI=1` to write the file anew.
    #[test]
    fn the_committed_document_is_this_one() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        if std::env::var_os("WINDLASS_WRITE_OPENAPI").is_some() {
            std::fs::write(file, text()).expect("docs/openapi.json can be written");
        }
        let committed = std::fs::read_to_string(file).expect("docs/openapi.json is there");
        assert!(
            committed == text(),
            "docs/openapi.json is not what the handlers say; run this test with WINDLASS_WRITE_OPENAPI=1 and look at the difference"
        );
    }
}
