//! A set of keys that somebody else publishes, read again at intervals and when a token
//! names an unknown key.
//!
//! After a failed attempt the known keys stay in use, because an unreachable issuer must not lock
//! out all users. Attempts are bounded: tokens with invented key ids cost the issuer nothing more.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jsonwebtoken::get_current_timestamp;
use parking_lot::RwLock;
use prometheus::{IntCounterVec, Opts};
use tokio::{
    sync::Mutex,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    JwksSettings,
    keys::{Key, KeyError, read_set},
};
use crate::gateway::outbound::{self, Versions};

/// The least time between two attempts that unknown keys cause, in seconds.
/// Any client can send tokens with an unknown id, and these must not all become requests to the
/// issuer.
const MIN_INTERVAL: u64 = 10;

/// The largest set that is read, in bytes.
/// A URL may lead to anything.
const MAX_SET: usize = 1 << 20;

/// How long an issuer may take to send its set. Clients with a new key wait for it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a set is.
#[derive(Debug)]
enum Place {
    File(PathBuf),
    Url(Uri, Box<HttpClient>),
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Jwks(Arc<Inner>);

struct Inner {
    settings: JwksSettings,
    place: Place,
    keys: RwLock<Arc<[Key]>>,
    /// When it was read last, in seconds since 1970. Held while it is read, so that many
    /// tokens with a new key wait for one attempt.
    last: Mutex<u64>,
    loads: IntCounterVec,
}

impl Jwks {
    /// The counter of attempts, which outlives a set.
    pub(super) fn loads() -> IntCounterVec {
        let loads = Opts::new(
            "roomcast_jwks_loads_total",
            "Attempts to read the set of keys, by result.",
        );
        IntCounterVec::new(loads, &["result"]).expect("the name of a metric is valid")
    }

    fn new(settings: JwksSettings, loads: IntCounterVec) -> Result<Self, KeyError> {
        Ok(Self(Arc::new(Inner {
            place: Place::new(&settings)?,
            settings,
            keys: RwLock::default(),
            last: Mutex::new(get_current_timestamp()),
            loads,
        })))
    }

    /// Reads the set in place of another. One that cannot be read must not replace keys that work.
    pub(super) async fn read(
        settings: JwksSettings,
        loads: IntCounterVec,
    ) -> Result<Self, KeyError> {
        let jwks = Self::new(settings, loads)?;
        jwks.load().await?;
        Ok(jwks)
    }

    /// Whether both are the same set, not only equal ones.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn settings(&self) -> &JwksSettings {
        &self.0.settings
    }

    /// Reads the set when the server starts. A mistake in a file is one of the settings. A URL is
    /// only parsed unless `asks_issuer`; an issuer may start later than this server, and its set is
    /// read again.
    pub(super) async fn start(
        settings: JwksSettings,
        loads: IntCounterVec,
        asks_issuer: bool,
    ) -> Result<Self, KeyError> {
        let jwks = Self::new(settings, loads)?;
        match jwks.0.place {
            Place::File(_) => jwks.load().await?,
            Place::Url(..) if asks_issuer => drop(jwks.load().await),
            Place::Url(..) => {}
        }
        Ok(jwks)
    }

    /// Starts to read the set at intervals, until a reload replaces it.
    pub(super) fn watch(&self) {
        let (refresh, jwks) = (self.0.settings.refresh, Arc::downgrade(&self.0));
        tokio::spawn(async move {
            let mut ticks = interval(refresh.max(Duration::from_secs(1)));
            // After a host was suspended, one reading is enough.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first tick is at once, and the set has just been read.
            ticks.tick().await;
            loop {
                ticks.tick().await;
                // A reload has replaced the set.
                let Some(jwks) = jwks.upgrade().map(Jwks) else {
                    return;
                };
                let mut last = jwks.0.last.lock().await;
                *last = get_current_timestamp();
                drop(jwks.load().await);
            }
        });
    }

    pub(super) fn keys(&self) -> Arc<[Key]> {
        Arc::clone(&self.0.keys.read())
    }

    /// Reads the set because a token names an unknown key. Returns `false` if that is too
    /// soon after the last attempt or fails.
    pub(super) async fn renew(&self) -> bool {
        let before = self.keys();
        let mut last = self.0.last.lock().await;
        if !Arc::ptr_eq(&before, &self.keys()) {
            // Another token has caused it meanwhile.
            return true;
        }
        let now = get_current_timestamp();
        if now < last.saturating_add(MIN_INTERVAL) {
            return false;
        }
        *last = now;
        self.load().await.is_ok()
    }

    async fn load(&self) -> Result<(), KeyError> {
        let json = self.0.place.read().await;
        let read = json.and_then(|json| read_set(&json, &self.0.settings.algorithms));
        let result = if read.is_ok() { "ok" } else { "failed" };
        self.0.loads.with_label_values(&[result]).inc();
        match read {
            Ok(keys) => {
                *self.0.keys.write() = keys.into();
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "the set of keys cannot be read; the known keys stay in use");
                Err(error)
            }
        }
    }
}

impl Place {
    fn new(settings: &JwksSettings) -> Result<Self, KeyError> {
        match (&settings.file, &settings.url) {
            (Some(path), None) => Ok(Self::File(path.clone())),
            (None, Some(url)) => {
                let uri: Uri = url
                    .parse()
                    .map_err(|_| set("url: expected http:// or https://"))?;
                if !matches!(uri.scheme_str(), Some("http" | "https")) {
                    return Err(set("url: expected http:// or https://"));
                }
                let connector = outbound::connector(FETCH_TIMEOUT, Versions::Http1).map_err(set)?;
                let client = Client::builder(TokioExecutor::new()).build(connector);
                Ok(Self::Url(uri, Box::new(client)))
            }
            _ => Err(set("needs either file or url")),
        }
    }

    async fn read(&self) -> Result<Vec<u8>, KeyError> {
        match self {
            Self::File(path) => read_file(path),
            Self::Url(uri, client) => match timeout(FETCH_TIMEOUT, fetch(client, uri)).await {
                Ok(Ok(json)) => Ok(json),
                Ok(Err(error)) => Err(set(format!("{uri}: {error}"))),
                Err(_) => Err(set(format!("{uri}: no response within 5 s"))),
            },
        }
    }
}

fn set(what: impl Into<String>) -> KeyError {
    KeyError::Set(what.into())
}

/// The size is asked before the file is read, because it may be any file.
fn read_file(path: &Path) -> Result<Vec<u8>, KeyError> {
    let failed = |error: std::io::Error| set(format!("{}: {error}", path.display()));
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > MAX_SET as u64 {
        return Err(set(format!("{}: larger than 1 MiB", path.display())));
    }
    fs::read(path).map_err(failed)
}

/// Gets a document. Redirections are not followed, because they could lead anywhere.
async fn fetch(
    client: &HttpClient,
    uri: &Uri,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let response = client.get(uri.clone()).await?;
    if response.status() != StatusCode::OK {
        return Err(format!("status {}", response.status()).into());
    }
    let body = Limited::new(response.into_body(), MAX_SET)
        .collect()
        .await?;
    Ok(body.to_bytes().into())
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use axum::{Router, routing::get};
    use jsonwebtoken::Algorithm;
    use tokio::net::TcpListener;

    use super::*;

    /// The public key of RFC 8037, appendix A.2.
    const SET: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn settings(url: String) -> JwksSettings {
        JwksSettings {
            url: Some(url),
            file: None,
            algorithms: vec![Algorithm::EdDSA],
            refresh: Duration::from_secs(600),
        }
    }

    async fn started_at(address: SocketAddr) -> Jwks {
        let settings = settings(format!("http://{address}/keys"));
        Jwks::start(settings, Jwks::loads(), true).await.unwrap()
    }

    #[tokio::test]
    async fn a_set_is_fetched_again_for_an_unknown_key_but_not_more_often_than_allowed() {
        let fetched = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&fetched);
        let respond = move || {
            counter.fetch_add(1, Ordering::Relaxed);
            async { SET }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/keys", get(respond));
        tokio::spawn(async move { axum::serve(listener, app).await });

        let jwks = started_at(address).await;
        assert_eq!(jwks.keys().len(), 1);
        assert!(!jwks.renew().await, "it has just been fetched");
        assert_eq!(fetched.load(Ordering::Relaxed), 1);
        *jwks.0.last.lock().await -= MIN_INTERVAL;
        let before = jwks.keys();
        let (one, two) = tokio::join!(jwks.renew(), jwks.renew());
        assert!(one || two);
        assert!(!Arc::ptr_eq(&before, &jwks.keys()));
        assert_eq!(
            fetched.load(Ordering::Relaxed),
            2,
            "two tokens cause one attempt"
        );
    }

    #[tokio::test]
    async fn an_issuer_that_is_away_stops_nothing_and_known_keys_stay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let jwks = started_at(address).await;
        assert!(jwks.keys().is_empty());
        let replaced = Jwks::read(settings(format!("http://{address}/keys")), Jwks::loads());
        assert!(replaced.await.is_err(), "it replaces nothing");
        let known: Arc<[Key]> = read_set(SET.as_bytes(), &[Algorithm::EdDSA])
            .unwrap()
            .into();
        *jwks.0.keys.write() = known;
        *jwks.0.last.lock().await -= MIN_INTERVAL;
        assert!(!jwks.renew().await);
        assert_eq!(jwks.keys().len(), 1);
    }

    #[tokio::test]
    async fn a_wrong_place_is_an_error() {
        for url in ["ftp://a/keys", "keys", ""] {
            let Err(error) = Jwks::start(settings(url.to_owned()), Jwks::loads(), true).await
            else {
                panic!("{url} is accepted")
            };
            assert!(error.to_string().contains("http"), "{error}");
        }
        let both = JwksSettings {
            file: Some("keys".into()),
            ..settings("http://a".to_owned())
        };
        assert!(Jwks::start(both, Jwks::loads(), true).await.is_err());
    }
}
