//! What is wrong with the settings shows at once, and says what would be right.

use roomcast_adapter::{NodeId, PrivateRooms, RedisBus, RedisConfig, StartError};
use roomcast_emitter::ConnectError;
use roomcast_protocol::channel::{Dialect, Mode};

use crate::{
    deployment::{Deployment, node},
    node::broadcast,
    support::{Redis, assert_matches, free_port},
};

pub(crate) const COMMANDS: &str = "+@pubsub +@sortedset +time +ping +select +client|setname";

/// The deployment's settings for a user with these rights.
pub(crate) fn as_user(deployment: &Deployment, rights: &str) -> RedisConfig {
    let mut command = vec![
        "ACL",
        "SETUSER",
        "node",
        "reset",
        "on",
        ">secret",
        "resetchannels",
    ];
    command.extend(rights.split(' '));
    deployment.server.command(&command);
    let url = deployment.server.url();
    let mut config = deployment.config.clone();
    config.url = url.replace("://", "://node:secret@").parse().unwrap();
    config
}

async fn refused(config: &RedisConfig) -> String {
    let node = NodeId::new("a-node-in-need-of-it");
    let error = RedisBus::connect(config.clone(), &node).await.unwrap_err();
    assert_matches!(error, StartError::Forbidden { .. });
    error.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_too_few_rights_is_told_which_are_missing() {
    for dialect in [Dialect::Classic, Dialect::Sharded(Mode::Dynamic)] {
        let deployment = Deployment::of(dialect);
        let all = format!("&socket.io* ~socket.io* {COMMANDS}");
        for (less, refused_command) in [
            ("-publish -spublish", "PUBLISH socket.io-probe#"),
            ("-subscribe -ssubscribe", "SUBSCRIBE socket.io#"),
            ("-pubsub", "PUBSUB"),
            ("-time", "TIME"),
            ("-zadd", "ZADD socket.io-nodes"),
            ("-zrem", "ZREM socket.io-nodes"),
            ("-zrevrange", "ZREVRANGE socket.io-nodes"),
            ("-zremrangebyscore", "ZREMRANGEBYSCORE socket.io-nodes"),
            ("resetchannels &other*", "PUBLISH socket.io-probe#"),
            ("resetkeys ~other*", "socket.io-nodes"),
        ] {
            let config = as_user(&deployment, &format!("{all} {less}"));
            let error = refused(&config).await;
            assert!(error.contains(refused_command), "{less}: {error}");
            assert!(error.contains("NOPERM"), "{less}: {error}");
            for needed in ["`&socket.io*`", "`~socket.io*`", COMMANDS] {
                assert!(error.contains(needed), "{less}: {error}");
            }
        }
        // Nothing was missing but that.
        let config = as_user(&deployment, &all);
        node(&config, "/").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_of_some_channels_has_no_patterns_and_needs_none() {
    let deployment = Deployment::start();
    let mut config = as_user(&deployment, &format!("&socket.io* ~socket.io* {COMMANDS}"));
    let (a, b) = (node(&config, "/").await, node(&config, "/").await);
    let socket = b.connect(1);
    b.confirm(socket.as_str()).await;
    a.publish(broadcast(&[socket.as_str()], 1)).await;
    assert_eq!(b.heard(1).await, [broadcast(&[socket.as_str()], 1)]);
    assert_eq!(deployment.patterns(), 0);
    config.private_rooms = PrivateRooms::Pattern;
    let error = refused(&config).await;
    assert!(error.contains("PSUBSCRIBE socket.io#/#"), "{error}");
    assert!(error.contains("`&*`"), "{error}");
    // With all channels there is a pattern.
    let config = as_user(&deployment, &format!("&* ~socket.io* {COMMANDS}"));
    let _with_pattern = node(&config, "/").await;
    assert_eq!(deployment.patterns(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_a_cluster_is_not_taken_for_a_single_one() {
    let bus = free_port().to_string();
    let server = Redis::with(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
    for dialect in [Dialect::Classic, Dialect::Sharded(Mode::Dynamic)] {
        let mut config = RedisConfig::new(server.url().parse().unwrap());
        config.dialect = dialect;
        let node = NodeId::new("a-node-in-need-of-it");
        let error = RedisBus::connect(config, &node).await.unwrap_err();
        let is_cluster = matches!(error, StartError::Connect(ConnectError::IsCluster { .. }));
        assert!(is_cluster, "{error:?}");
    }
}
