//! The client's bundles under the server's path, where pages written for Node.js load them from:
//! `<script src="/socket.io/socket.io.js">`.
//!
//! The files are not part of this project. The application gives a folder with them, which is
//! `dist/` of the npm package `socket.io-client`. They are read once, so that a folder that
//! changes under a running server cannot mix versions.

use std::{collections::HashMap, fs, io, path::Path, sync::Arc};

use axum::{body::Body, response::IntoResponse as _};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use sha1::{Digest, Sha1};

use super::routes::{gzip, takes_gzip};

/// The largest file that is read, in bytes. The largest bundle with its source map has 0.3 MB.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The official bundles of the client, ready to be served. Cheap to clone.
///
/// Served are the names that Node's server serves: `socket.io.js`, with `.min`,
/// `.esm.min` and `.msgpack.min` before the `.js`, and the source map of each with `.map`
/// at the end. Responses have an `ETag` and `Cache-Control: public, max-age=0`, so
/// browsers revalidate without a download.
///
/// ```no_run
/// # use roomcast::{ClientFiles, Server};
/// # fn run() -> std::io::Result<()> {
/// let files = ClientFiles::from_directory("node_modules/socket.io-client/dist")?;
/// let builder = Server::builder().client_files(files);
/// # drop(builder);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ClientFiles(Arc<HashMap<String, File>>);

struct File {
    etag: HeaderValue,
    content_type: &'static str,
    plain: Bytes,
    gzip: Bytes,
}

impl ClientFiles {
    /// Reads the bundles of a folder: `dist/` of the npm package `socket.io-client`.
    ///
    /// # Errors
    ///
    /// The folder cannot be read, has no `socket.io.js`, or a bundle has more than 4 MiB.
    pub fn from_directory(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let mut files = HashMap::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            if is_bundle(&name) {
                if entry.metadata()?.len() > MAX_FILE_BYTES {
                    let problem = format!("{} is too large for a bundle", entry.path().display());
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
                }
                files.insert(name, File::read(&entry.path())?);
            }
        }
        if files.contains_key("socket.io.js") {
            return Ok(Self(Arc::new(files)));
        }
        let problem = format!(
            "{} has no socket.io.js: give the folder `dist` of the npm package socket.io-client",
            path.display()
        );
        Err(io::Error::new(io::ErrorKind::NotFound, problem))
    }

    fn find(&self, name: &str) -> Option<&File> {
        self.0.get(name)
    }
}

impl std::fmt::Debug for ClientFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl File {
    fn read(path: &Path) -> io::Result<Self> {
        let plain = fs::read(path)?;
        let digest = Sha1::digest(&plain);
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let is_map = path.extension().is_some_and(|extension| extension == "map");
        Ok(Self {
            etag: HeaderValue::try_from(format!("\"{digits}\"")).map_err(io::Error::other)?,
            content_type: if is_map {
                "application/json; charset=utf-8"
            } else {
                "application/javascript; charset=utf-8"
            },
            gzip: gzip(&plain).into(),
            plain: plain.into(),
        })
    }

    fn respond(&self, method: &Method, request: &HeaderMap) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.etag.clone());
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("public, max-age=0"),
        );
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if self.is_known_to(request) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(self.content_type),
        );
        let body = if takes_gzip(request) {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            &self.gzip
        } else {
            &self.plain
        };
        headers.insert(header::CONTENT_LENGTH, body.len().into());
        if method == Method::GET {
            *response.body_mut() = Body::from(body.clone());
        }
        response
    }

    /// Whether the client has this very file. A proxy that compresses makes the tag a weak one.
    fn is_known_to(&self, request: &HeaderMap) -> bool {
        request
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|tag| tag.trim().trim_start_matches("W/"))
            .any(|tag| tag == "*" || tag.as_bytes() == self.etag.as_bytes())
    }
}

/// Responds to a request for a bundle; `None` if it is for something else. `path` is the server's
/// own, without a slash at the end.
pub(super) fn respond(
    files: Option<&ClientFiles>,
    path: &str,
    method: &Method,
    target: &str,
    request: &HeaderMap,
) -> Option<Response<Body>> {
    let name = target.strip_prefix(path)?.strip_prefix('/')?;
    if !is_bundle(name) || !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let file = files.and_then(|files| files.find(name));
    Some(file.map_or_else(not_found, |file| file.respond(method, request)))
}

fn not_found() -> Response<Body> {
    let problem = "This server does not have the client's files. Give it the folder `dist` of the npm package \
         socket.io-client (--client-files or ROOMCAST_CLIENT_FILES; in Rust, Builder::client_files), \
         or load the client from your own site.\n";
    (StatusCode::NOT_FOUND, problem).into_response()
}

/// Whether Node's server would look for a file of this name among the client's bundles.
fn is_bundle(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("socket.io") else {
        return false;
    };
    let rest = rest.strip_suffix(".map").unwrap_or(rest);
    matches!(
        rest,
        ".js" | ".min.js" | ".esm.js" | ".esm.min.js" | ".msgpack.js" | ".msgpack.min.js"
    )
}
