//! The client's bundles under the server's path.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{fs, net::SocketAddr, path::PathBuf};

use roomcast::{ClientFiles, Server};
use support::{TestServer, http, server::main_namespace};

const BUNDLE: &str = "self.io = () => 'a bundle';\n";

/// A folder of this test alone, removed with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("roomcast-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn with(self, name: &str, content: &str) -> Self {
        fs::write(self.0.join(name), content).unwrap();
        self
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn get(address: SocketAddr, method: &str, name: &str, headers: &str) -> http::Response {
    let head = format!(
        "{method} /socket.io/{name} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n"
    );
    let mut stream = http::send(address, head).await;
    http::response(&mut stream).await
}

#[tokio::test]
async fn bundles_and_source_maps_are_served_once_per_version() {
    let folder = Folder::new("bundles")
        .with("socket.io.js", BUNDLE)
        .with("socket.io.min.js.map", "{}")
        .with("secret.txt", "not a bundle");
    let files = ClientFiles::from_directory(&folder.0).unwrap();
    let builder = Server::builder().namespace(main_namespace());
    let server = TestServer::start(builder.client_files(files)).await;

    let first = get(server.address, "GET", "socket.io.js", "").await;
    assert_eq!((first.status, first.body.as_str()), (200, BUNDLE));
    let content_type = first.header("content-type");
    assert_eq!(content_type, Some("application/javascript; charset=utf-8"));
    assert_eq!(first.header("cache-control"), Some("public, max-age=0"));

    let etag = first.header("etag").unwrap().to_owned();
    for known in [
        etag.clone(),
        format!("W/{etag}"),
        format!("\"old\", {etag}"),
    ] {
        let headers = format!("If-None-Match: {known}\r\n");
        let again = get(server.address, "GET", "socket.io.js", &headers).await;
        assert_eq!((again.status, again.body.as_str()), (304, ""));
        assert_eq!(again.header("etag"), Some(etag.as_str()));
    }
    let other = get(
        server.address,
        "GET",
        "socket.io.js",
        "If-None-Match: \"old\"\r\n",
    )
    .await;
    assert_eq!(other.status, 200);

    let map = get(server.address, "GET", "socket.io.min.js.map", "").await;
    assert_eq!((map.status, map.body.as_str()), (200, "{}"));
    for name in [
        "secret.txt",
        "../secret.txt",
        "socket.io.js/x",
        "socket.io.exe",
    ] {
        let answer = get(server.address, "GET", name, "").await;
        assert_eq!(answer.status, 400, "{name} is a handshake like any other");
    }
    let missing = get(server.address, "GET", "socket.io.esm.min.js", "").await;
    assert_eq!(missing.status, 404);
}

#[tokio::test]
async fn without_a_folder_the_response_tells_the_remedy() {
    let server = TestServer::of(main_namespace()).await;
    let answer = get(server.address, "GET", "socket.io.js", "").await;
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("--client-files"), "{}", answer.body);
}

#[test]
fn a_folder_without_bundles_is_refused_with_what_it_should_be() {
    let folder = Folder::new("empty");
    let error = ClientFiles::from_directory(&folder.0)
        .unwrap_err()
        .to_string();
    assert!(error.contains("npm package socket.io-client"), "{error}");
}
