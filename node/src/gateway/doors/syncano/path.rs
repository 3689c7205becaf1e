//! Paths. Both versions have the same ones; links in responses carry the version of the request.

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    Channels,
    Channel(String),
    Poll(String),
    Publish(String),
    History(String),
    Notification(String, u64),
    Class(String),
    Objects(String),
    Object(String, u64),
    UserAuth,
}

/// A path below an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// The part that links begin with: `/v1.1/instances/shop`.
    pub(super) base: String,
    pub(super) instance: String,
    pub(super) resource: Resource,
}

/// The prefixes under which all paths are served.
pub(super) const VERSIONS: [&str; 2] = ["/v1", "/v1.1"];

impl Path {
    /// Reads a path. Names of instances, channels and classes are folded to lower case.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut segments = path.trim_start_matches('/').split('/').map(decode);
        let version = segments.next()?;
        let version = VERSIONS.iter().find(|known| known[1..] == version)?;
        if segments.next()? != "instances" {
            return None;
        }
        let instance = segments.next()?.to_lowercase();
        let mut rest: Vec<_> = segments.collect();
        // All paths end in a slash; one without it means the same.
        rest.pop_if(|last| last.is_empty());
        let rest: Vec<_> = rest.iter().map(String::as_str).collect();
        let name = |text: &str| text.to_lowercase();
        let resource = match rest[..] {
            ["channels"] => Resource::Channels,
            ["channels", channel] => Resource::Channel(name(channel)),
            ["channels", channel, "poll"] => Resource::Poll(name(channel)),
            ["channels", channel, "publish"] => Resource::Publish(name(channel)),
            ["channels", channel, "history"] => Resource::History(name(channel)),
            ["channels", channel, "history", id] => {
                Resource::Notification(name(channel), id.parse().ok()?)
            }
            ["classes", class] => Resource::Class(name(class)),
            ["classes", class, "objects"] => Resource::Objects(name(class)),
            ["classes", class, "objects", id] => Resource::Object(name(class), id.parse().ok()?),
            ["user", "auth"] => Resource::UserAuth,
            _ => return None,
        };
        Some(Self {
            base: format!("{version}/instances/{instance}"),
            instance,
            resource,
        })
    }
}

/// Decodes `%XX`. What is not UTF-8 then names nothing that exists.
fn decode(segment: &str) -> String {
    percent_encoding::percent_decode_str(segment)
        .decode_utf8_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(rest: &str) -> Option<Resource> {
        let path = Path::parse(&format!("/v1.1/instances/shop/{rest}"))?;
        assert_eq!(
            (&*path.instance, &*path.base),
            ("shop", "/v1.1/instances/shop")
        );
        Some(path.resource)
    }

    #[test]
    fn every_path_of_the_table_is_known() {
        let chat = || "chat".to_owned();
        let rows = [
            ("channels/", Resource::Channels),
            ("channels/chat/", Resource::Channel(chat())),
            ("channels/chat/poll/", Resource::Poll(chat())),
            ("channels/chat/publish/", Resource::Publish(chat())),
            ("channels/chat/history/", Resource::History(chat())),
            (
                "channels/chat/history/7/",
                Resource::Notification(chat(), 7),
            ),
            ("classes/book/", Resource::Class("book".to_owned())),
            (
                "classes/book/objects/",
                Resource::Objects("book".to_owned()),
            ),
            (
                "classes/book/objects/7/",
                Resource::Object("book".to_owned(), 7),
            ),
            ("user/auth/", Resource::UserAuth),
        ];
        for (path, wanted) in rows {
            assert_eq!(resource(path), Some(wanted.clone()), "{path}");
            let bare = path.trim_end_matches('/');
            assert_eq!(
                resource(bare),
                Some(wanted),
                "{path} without the final slash"
            );
        }
    }

    #[test]
    fn both_versions_are_served_and_links_keep_that_of_the_request() {
        for version in VERSIONS {
            let path = Path::parse(&format!("{version}/instances/shop/channels/")).unwrap();
            assert_eq!(path.base, format!("{version}/instances/shop"));
        }
        for wrong in [
            "/v2/instances/shop/channels/",
            "/v1/instance/shop/channels/",
            "/v1/",
            "/",
        ] {
            assert_eq!(Path::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_are_folded_to_lower_case() {
        let path = Path::parse("/v1/instances/SHOP/channels/Ch%41t/poll/").unwrap();
        assert_eq!(path.instance, "shop");
        assert_eq!(path.resource, Resource::Poll("chat".to_owned()));
    }

    #[test]
    fn ids_are_numbers_and_nothing_else_is_served() {
        for wrong in [
            "channels/chat/history/x/",
            "channels//",
            "channels/chat/poll/7/",
            "batch/",
        ] {
            let found = resource(wrong);
            let is_odd_name = found == Some(Resource::Channel(String::new()));
            assert!(found.is_none() || is_odd_name, "{wrong}: {found:?}");
        }
    }
}
