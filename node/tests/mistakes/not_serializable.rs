// error: `Point` cannot be the answer of a handler
// help: `serde::Serialize`
use roomcast::{Namespace, Socket};

struct Point;

fn main() {
    Namespace::new("/").on("where", async |_: Socket| Point);
}
