//! Exports spans to a collector by OTLP over HTTP, with the SDK of OpenTelemetry.
//!
//! Spans that have ended go to a bounded queue, which a thread of the SDK sends in
//! batches. If a collector is slow or unreachable, only spans are lost. The SDK has no
//! runtime, so requests run on the workers, with the HTTP client of the hooks.
//!
//! A future carries its span as the current context of each poll, so a request to a hook finds the
//! event that it belongs to without an argument.

use std::{
    env, fmt,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator as _,
    trace::{
        FutureExt as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use tokio::{runtime::Handle, task::spawn_blocking, time::timeout};

use super::Span;
use crate::gateway::{
    outbound::{self, Versions},
    values::{OrOff, or_off},
};

/// Set while spans are exported.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Time for one request to the collector.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for the spans that are left when the process ends.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The largest response of a collector, in bytes.
const MAX_RESPONSE: usize = 1 << 20;

/// The variables with which OpenTelemetry names a collector.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// The options of builds with the feature `otlp`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Traces")]
pub(crate) struct TraceOptions {
    /// Collector that traces are sent to by OTLP over HTTP: `off` or a URL such as
    /// http://127.0.0.1:4318
    ///
    /// The standard variables OTEL_EXPORTER_OTLP_ENDPOINT and
    /// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT name one, too; this option wins.
    #[arg(long, value_name = "URL", default_value = "off", value_parser = or_off(endpoint))]
    pub(crate) otlp_endpoint: OrOff<String>,

    /// Share of the traces that begin here and are sent, from 0 to 1; or `env`, for
    /// OTEL_TRACES_SAMPLER
    ///
    /// A call of the API that continues a trace is sent if its caller has chosen that trace.
    #[arg(long, value_name = "RATIO", default_value = "env", value_parser = ratio)]
    pub(crate) otlp_sample: Ratio,
}

/// A fraction, or the value of the environment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio(Option<f64>);

fn endpoint(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|_| "expected a URL".to_owned())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
        return Err("expected `off` or a URL with http:// or https://".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn ratio(text: &str) -> Result<Ratio, String> {
    if text == "env" {
        return Ok(Ratio(None));
    }
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Ratio(Some(ratio))),
        _ => Err("expected `env` or a number from 0 to 1".to_owned()),
    }
}

/// The exporter of the process.
pub(crate) struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Begins to export, if a collector is configured. Must be called in the runtime of
    /// the workers.
    pub(crate) fn start(options: &TraceOptions, node: &str) -> Result<Self, String> {
        let is_named = |variable: &&str| env::var(variable).is_ok_and(|value| !value.is_empty());
        if options.otlp_endpoint.0.is_none() && !ENDPOINTS.iter().any(is_named) {
            return Ok(Self(None));
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new()?)
            .with_protocol(Protocol::HttpBinary);
        let exporter = match &options.otlp_endpoint.0 {
            Some(url) => exporter.with_endpoint(format!("{url}/v1/traces")),
            None => exporter,
        };
        let exporter = exporter.build().map_err(|error| error.to_string())?;
        let resource = Resource::builder()
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", node.to_owned()));
        // The SDK reads the variable itself. Otherwise, all nodes are one service, and
        // each an instance.
        let resource = match env::var("OTEL_SERVICE_NAME") {
            Ok(_) => resource,
            Err(_) => resource.with_service_name("roomcast"),
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build());
        let provider = match options.otlp_sample.0 {
            Some(ratio) => {
                let root = Sampler::TraceIdRatioBased(ratio);
                provider.with_sampler(Sampler::ParentBased(Box::new(root)))
            }
            None => provider,
        };
        let provider = provider.build();
        // A process starts once.
        let _ = TRACER.set(provider.tracer("roomcast"));
        tracing::info!("traces are exported");
        Ok(Self(Some(provider)))
    }

    /// Sends the remaining spans.
    pub(crate) async fn end(self) {
        if let Some(provider) = self.0 {
            // It waits for a thread that needs the workers.
            let ended = spawn_blocking(move || provider.shutdown_with_timeout(END_TIMEOUT)).await;
            if let Ok(Err(error)) = ended {
                tracing::warn!(%error, "the last traces were not exported");
            }
        }
    }
}

/// A span that has begun. It ends when this, or the future that it was given, is dropped.
pub(crate) struct Begun(Context);

impl Begun {
    /// Runs the future in the span.
    pub(crate) fn during<F: Future>(self, future: F) -> impl Future<Output = F::Output> + use<F> {
        future.with_context(self.0)
    }
}

/// Begins a span.
pub(crate) fn begin(span: &Span<'_>) -> Begun {
    let context = TRACER.get().map(|tracer| context(tracer, span));
    Begun(context.unwrap_or_else(Context::current))
}

fn context(tracer: &SdkTracer, span: &Span<'_>) -> Context {
    let (name, kind, attributes) = match span {
        Span::Connect { namespace } => (
            "connect".to_owned(),
            SpanKind::Server,
            vec![KeyValue::new("roomcast.namespace", (*namespace).to_owned())],
        ),
        // Clients choose the names of events, so they are not names of spans.
        Span::Event { namespace, event } => (
            "event".to_owned(),
            SpanKind::Server,
            vec![
                KeyValue::new("roomcast.namespace", (*namespace).to_owned()),
                KeyValue::new("roomcast.event", (*event).to_owned()),
            ],
        ),
        Span::Hook { name } => (
            format!("hook {name}"),
            SpanKind::Client,
            vec![KeyValue::new("roomcast.hook", (*name).to_owned())],
        ),
        Span::Api { path, .. } => (
            (*path).to_owned(),
            SpanKind::Server,
            vec![KeyValue::new("url.path", *path)],
        ),
    };
    let parent = match span {
        // The caller may have begun the trace. Clients cannot choose the parent of
        // another span.
        Span::Api { headers, .. } => {
            TraceContextPropagator::new().extract(&HeaderExtractor(headers))
        }
        _ => Context::current(),
    };
    let builder = tracer.span_builder(name);
    let builder = builder.with_kind(kind).with_attributes(attributes);
    let span = builder.start_with_context(tracer, &parent);
    parent.with_span(span)
}

/// Marks the current span as failed.
pub(crate) fn failed(reason: &str) {
    Context::current()
        .span()
        .set_status(Status::error(reason.to_owned()));
}

/// Adds the headers by which the receiver continues the trace.
pub(crate) fn inject(headers: &mut HeaderMap) {
    if TRACER.get().is_some() {
        let context = Context::current();
        TraceContextPropagator::new().inject_context(&context, &mut HeaderInjector(headers));
    }
}

/// Sends requests of the exporter on the workers.
struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    workers: Handle,
    /// Whether the last request failed. Only changes are logged, because batches follow each other.
    is_failing: Arc<AtomicBool>,
}

impl Collector {
    fn new() -> Result<Self, String> {
        let connector = outbound::connector(CONNECT_TIMEOUT, Versions::All)?;
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            workers: Handle::current(),
            is_failing: Arc::default(),
        })
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

impl HttpClient for Collector {
    // Written out, because the trait is declared with a macro that this crate does without.
    fn send_bytes<'c, 'f>(
        &'c self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        'c: 'f,
        Self: 'f,
    {
        let sending = self.client.request(request.map(Full::new));
        let is_failing = self.is_failing.clone();
        // The timer needs the runtime, which the thread of the SDK is not part of.
        let sent = self.workers.spawn(async move {
            let exchange = async {
                let (head, body) = sending.await?.into_parts();
                let body = Limited::new(body, MAX_RESPONSE).collect().await?;
                Ok(Response::from_parts(head, body.to_bytes()))
            };
            let response = timeout(REQUEST_TIMEOUT, exchange).await;
            let response = response.unwrap_or_else(|elapsed| Err(elapsed.into()));
            note(&is_failing, &response);
            response
        });
        Box::pin(async { sent.await? })
    }
}

/// Logs that the collector begins or ceases to fail.
fn note(is_failing: &AtomicBool, response: &Result<Response<Bytes>, HttpError>) {
    let reason = match response {
        Ok(response) if response.status().is_success() => None,
        Ok(response) => Some(format!("status {}", response.status())),
        Err(error) => Some(outbound::causes(error.as_ref())),
    };
    let was_failing = is_failing.swap(reason.is_some(), Ordering::Relaxed);
    match reason {
        Some(reason) if !was_failing => tracing::warn!(%reason, "traces are lost"),
        None if was_failing => tracing::info!("traces are exported again"),
        _ => {}
    }
}
